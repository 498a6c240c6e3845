"""Multiple choice with and without memory, as in section 7.2 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from ..errors import M3Error
from .questions import Choice, named
from .store import EvaluationStore
from .table import Table


def choose(
    store: EvaluationStore,
    questions: Sequence[Choice],
    *,
    others: Sequence[str] = (),
    answer_tokens: int = 0,
) -> Table:
    """Choose the likeliest answer without memory, with what the search finds, and by chance.

    Args:
        others: documents to memorize beside those of the questions.
        answer_tokens: ignored, no answer is generated.

    Raises:
        M3Error: there is no document.
    """
    documents = [q.document for q in questions if q.document] + list(others)
    if not documents:
        raise M3Error("no line has a document, and there are no others: there is no memory to read")
    table = Table(
        {"mode": "", "right": ".1%", "error": ".1%", "change": "+.1%"},
        "right: share of questions whose right answer is the likeliest per token; error: its "
        "standard error; change: difference to off, in points.",
    )
    modes = ["off", "explicit", "text"]
    if all(question.document for question in questions):
        modes.append("oracle")
    right: dict[str, list[bool]] = {mode: [] for mode in modes}
    store.memorize(named(documents))
    for question in store.each(questions, "choosing"):
        hits = store.search(question.question)
        pasted = {"text": [hit.text for hit in hits], "oracle": [question.document]}
        for mode in modes:
            text = "\n\n".join([*pasted.get(mode, []), question.question])
            results = store.ask(text, question.choices, hits if mode == "explicit" else [], 0)
            losses = [result.nll for result in results]
            right[mode].append(losses.index(min(losses)) == question.answer)
    chance = mean(1 / len(question.choices) for question in questions)
    shares = {"chance": chance} | {mode: float(mean(values)) for mode, values in right.items()}
    for mode, share in shares.items():
        error = (share * (1 - share) / len(questions)) ** 0.5
        change = share - shares["off"] if mode not in ("chance", "off") else None
        table.rows.append({"mode": mode, "right": share, "error": error, "change": change})
    return table
