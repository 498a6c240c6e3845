"""Change one fact in each document, and look whether its answer changes and nothing else.

The files are memorized again, and the same questions asked: about the fact, and about other facts
of the same documents, which must stay. Then unrelated documents are added, ten times as many each
time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import M3Error
from .questions import Collection, named
from .store import EvaluationStore, Result
from .table import Table, mean_of_known

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
    store: EvaluationStore,
    collection: Collection,
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
    questions = [(q.passages[0].path, q) for q in collection.questions if q.passages]
    facts = {path: q for path, q in reversed(questions) if q.changed}  # the first of each
    if not facts:
        raise M3Error("no line has changed, another answer that takes the place of the first")
    asked = [(path, question) for path, question in questions if path in facts]
    table = Table(COLUMNS, EXPLANATION)
    documents = {path: collection.documents[path] for path in facts}
    store.memorize(documents)

    def measure(when: str, memory: bool = True) -> None:
        changed, neighbours = [], []
        for path, question in store.each(asked, f"asking, {when}"):
            fact = facts[path]
            if question is not fact and fact.answers[0] in question.answers[0]:
                continue  # its answer changes too
            hits = store.search(question.question)
            answers = [question.answers[0], *([fact.changed] if question is fact else [])]
            read = hits if memory else []
            results = store.ask(question.question, answers, read, answer_tokens)
            if question is fact:
                found = any(hit.path == path for hit in hits)
                old, new = results
                changed.append((found if memory else None, old, new))
            else:
                neighbours += results
        table.rows.append({"when": when, **_summary(changed, neighbours)})

    measure("before, without memory", memory=False)
    measure("before")
    for path, fact in facts.items():
        documents[path] = documents[path].replace(fact.answers[0], fact.changed)
    store.memorize(documents)
    measure("changed")
    count = 10
    while others:
        store.memorize(named(others[:count], "others"), cold=True)
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
