"""Recite memorized texts from their first words.

Controls, which should fail: without memory, with the words of the cue shuffled, and texts that
were never memorized. What should change nothing: other documents, and a restart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ..errors import M3Error
from ..models.template import Turn
from .questions import named
from .store import EvaluationStore
from .table import Table, mean_of_known

CUE = 12  # tokens at the head of a text that are given
REQUEST = "Recite the text that begins like this, word for word."
LENGTHS = (4, 8, 16)  # tokens of a right beginning, counted in a column each
COLUMNS = {
    "found": ".0%",
    "exact": ".0%",
    "characters": ".1%",
    "beginning": ".1f",
    **{f"{length} tokens": ".0%" for length in LENGTHS},
}
EXPLANATION = (
    f"Of the {{tokens}} tokens behind a cue of {CUE}: found: the search for the cue gives the "
    f"text; exact: all are right; characters: share that is right after the fewest corrections; "
    f"beginning: tokens up to the first error; the last columns: share of texts whose beginning is "
    f"at least so long."
)


def recite(
    store: EvaluationStore,
    documents: Sequence[str],
    *,
    others: Sequence[str] = (),
    answer_tokens: int = 32,
) -> Table:
    """Memorize every second document, and recite all of them.

    Args:
        others: unrelated documents, memorized for one of the rows.
        answer_tokens: tokens behind the cue to recite.

    Raises:
        M3Error: fewer than two documents are long enough.
    """
    columns = {"texts": "", "tried": "d", **COLUMNS}
    table = Table(columns, EXPLANATION.format(tokens=answer_tokens))
    encode = store.assistant.decoder.template.encode
    tokens = [encode(text)[: CUE + answer_tokens] for text in documents]
    long = [i for i, row in enumerate(tokens) if len(row) == CUE + answer_tokens]
    if len(long) < 2:
        raise M3Error(
            f"fewer than two of the documents have {CUE + answer_tokens} tokens; give longer "
            f"ones, or fewer --answer-tokens"
        )
    known, unseen = ([(documents[i], tokens[i]) for i in long[start::2]] for start in (0, 1))
    paths = {text: path for path, text in named(text for text, _ in known).items()}
    store.memorize({path: text for text, path in paths.items()})

    def measure(
        name: str,
        texts: Sequence[tuple[str, list[int]]],
        mode: str = "explicit",
        shuffled: bool = False,
    ) -> None:
        results = [
            _recite(store, text, row, mode, shuffled, paths.get(text))
            for text, row in store.each(texts, f"reciting, {name}")
        ]
        means = {name: mean_of_known(result[name] for result in results) for name in COLUMNS}
        table.rows.append({"texts": name, "tried": len(texts), **means})

    measure("memorized", known)
    measure("as text in the prompt", known, "text")
    measure("without memory", known, "off")
    measure("cue shuffled", known, shuffled=True)
    measure("never memorized", unseen)
    if others:
        store.memorize(named(others, "others"), cold=True)
        measure(f"beside {len(others)} others", known)
    store.restart()
    measure("after a restart", known)
    return table


def _recite(
    store: EvaluationStore,
    text: str,
    tokens: Sequence[int],
    mode: str,
    shuffled: bool,
    path: str | None,
) -> dict[str, Any]:
    template = store.assistant.decoder.template
    cue, rest = list(tokens[:CUE]), list(tokens[CUE:])
    if shuffled:
        words = template.decode(cue).split()
        random.Random(text).shuffle(words)
        cue = template.encode(" ".join(words))
    hits = store.search(template.decode(cue))
    pasted = f"{text}\n\n" if mode == "text" else ""
    turn = template.turn(pasted + REQUEST)
    conversation = store.conversation(hits if mode == "explicit" else [])
    logits = conversation.prefill(Turn((*turn.tokens, *cue), turn.words), query="message")
    steps = conversation.decode(logits, len(rest))
    said = [step.token for step in steps if step.token is not None]
    right = next((i for i, token in enumerate(rest) if said[i : i + 1] != [token]), len(rest))
    wanted, got = template.decode(rest), template.decode(said)
    found = any(hit.path == path for hit in hits)
    return {
        "found": found if mode == "explicit" else None,
        "exact": right == len(rest),
        "characters": max(0.0, 1 - edits(wanted, got) / len(wanted)),
        "beginning": right,
        **{f"{length} tokens": right >= length for length in LENGTHS},
    }


def edits(one: str, other: str) -> int:
    """Return the Levenshtein distance of two texts."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, theirs in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (mine != theirs))
    return row[-1]
