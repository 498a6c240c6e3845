"""Change one fact in each document, and look whether its answer changes and nothing else.

The files are memorized again, and the same questions asked: about the fact, and about other facts
of the same documents, which must stay. Then unrelated documents are added, ten times as many each
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from ..errors import M3Error
from .questions import Question
from .table import Table
from .temporary import TemporaryStore


def update(
    questions: Sequence[Question],
    *,
    others: Sequence[str] = (),
    answer_tokens: int = 32,
    **options: Any,
) -> Table:
    """Change one fact of each document that has a question with ``changed``.

    Args:
        others: unrelated documents, added at the end: 10, 100, 1,000 of them and so on.
        answer_tokens: length of the greedy answers; 0 for likelihood alone.
        options: of ``TemporaryStore``.

    Raises:
        M3Error: no question has ``changed``.
    """
    facts = {q.document: q for q in reversed(questions) if q.changed}  # the first of each
    if not facts:
        raise M3Error("no line has changed, another answer that takes the place of the first")
    table = Table(
        {
            "when": "",
            "found": ".0%",
            "prefer new": ".0%",
            "old": ".3f",
            "new": ".3f",
            "say old": ".0%",
            "say new": ".0%",
            "neighbours": ".3f",
            "neighbours right": ".0%",
        },
        "found: questions whose document the search gives; old, new: loss of the two answers in "
        "nats per token; prefer new: share where the new one is likelier; say old, say new: greedy "
        "answers that contain them; neighbours: other questions about the same documents.",
    )
    with TemporaryStore(**options) as store:
        texts = {document: document for document in facts}  # as it stands now
        store.memorize(facts)

        def measure(when: str, memory: bool = True) -> None:
            changed, neighbours = [], []
            asked = [q for q in questions if q.document in facts]
            for question in store.each(asked, f"asking, {when}"):
                fact = facts[question.document]
                if question is not fact and fact.answer in question.answer:
                    continue  # its answer changes too
                hits = store.search(question.question)
                answers = [question.answer, *([fact.changed] if question is fact else [])]
                read = hits if memory else []
                results = store.ask(question.question, answers, read, answer_tokens)
                if question is fact:
                    text = texts[question.document]
                    changed.append((any(store.text_of(h.path) == text for h in hits), *results))
                else:
                    neighbours += results
            table.rows.append({"when": when, **_summary(changed, neighbours, memory)})

        measure("before, without memory", memory=False)
        measure("before")
        for document, fact in facts.items():
            texts[document] = document.replace(fact.answer, fact.changed)
            store.rewrite(document, texts[document])
        store.memorize([])
        measure("changed")
        count = 10
        while others:
            store.memorize(others[:count], cold=True)
            measure(f"beside {min(count, len(others))} others")
            if count >= len(others):
                break
            count *= 10
    return table


def _summary(changed: Sequence[tuple], neighbours: Sequence, memory: bool) -> dict[str, Any]:
    def share(values: Sequence[bool | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    found, old, new = zip(*changed, strict=True)
    return {
        "found": share(found) if memory else None,
        "prefer new": share([n.nll < o.nll for o, n in zip(old, new, strict=True)]),
        "old": mean(result.nll for result in old),
        "new": mean(result.nll for result in new),
        "say old": share([result.right for result in old]),
        "say new": share([result.right for result in new]),
        "neighbours": mean(r.nll for r in neighbours) if neighbours else None,
        "neighbours right": share([result.right for result in neighbours]),
    }
