"""Change one fact in each document, and look whether its answer changes and nothing else.

The files are memorized again, and the same questions asked: about the fact, and about other facts
of the same documents, which must stay. Then unrelated documents are added, ten times as many each
time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import M3Error
from .questions import Question
from .table import Table, mean_of_known
from .temporary import Result, TemporaryStore

COLUMNS = {
    "when": "",
    "found": ".0%",
    "prefer new": ".0%",
    "old": ".3f",
    "new": ".3f",
    "say old": ".0%",
    "say new": ".0%",
    "neighbours": ".3f",
    "neighbours right": ".0%",
}
EXPLANATION = (
    "found: questions whose document the search gives; old, new: loss of the two answers in nats "
    "per token; prefer new: share where the new one is likelier; say old, say new: greedy answers "
    "that contain them; neighbours: other questions about the same documents."
)


def update(
    store: TemporaryStore,
    questions: Sequence[Question],
    *,
    others: Sequence[str] = (),
    answer_tokens: int = 32,
) -> Table:
    """Change one fact of each document that has a question with ``changed``.

    Args:
        others: unrelated documents, added at the end: 10, 100, 1,000 of them and so on.
        answer_tokens: length of the greedy answers; 0 for likelihood alone.

    Raises:
        M3Error: no question has ``changed``.
    """
    facts = {q.document: q for q in reversed(questions) if q.changed}  # the first of each
    if not facts:
        raise M3Error("no line has changed, another answer that takes the place of the first")
    asked = [q for q in questions if q.document in facts]
    table = Table(COLUMNS, EXPLANATION)
    store.memorize(facts)
    paths = {document: store.path_of(document) for document in facts}

    def measure(when: str, memory: bool = True) -> None:
        changed, neighbours = [], []
        for question in store.each(asked, f"asking, {when}"):
            fact = facts[question.document]
            if question is not fact and fact.answer in question.answer:
                continue  # its answer changes too
            hits = store.search(question.question)
            answers = [question.answer, *([fact.changed] if question is fact else [])]
            read = hits if memory else []
            results = store.ask(question.question, answers, read, answer_tokens)
            if question is fact:
                found = any(hit.path == paths[question.document] for hit in hits)
                old, new = results
                changed.append((found if memory else None, old, new))
            else:
                neighbours += results
        table.rows.append({"when": when, **_summary(changed, neighbours)})

    measure("before, without memory", memory=False)
    measure("before")
    for document, fact in facts.items():
        store.rewrite(document, document.replace(fact.answer, fact.changed))
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


def _summary(
    changed: Sequence[tuple[bool | None, Result, Result]], neighbours: Sequence[Result]
) -> dict[str, float | None]:
    found, old, new = zip(*changed, strict=True)
    return {
        "found": mean_of_known(found),
        "prefer new": mean_of_known(n.nll < o.nll for o, n in zip(old, new, strict=True)),
        "old": mean_of_known(result.nll for result in old),
        "new": mean_of_known(result.nll for result in new),
        "say old": mean_of_known(result.right for result in old),
        "say new": mean_of_known(result.right for result in new),
        "neighbours": mean_of_known(result.nll for result in neighbours),
        "neighbours right": mean_of_known(result.right for result in neighbours),
    }
