"""Can a text that was memorized be recited from its first words?

Beside it, the same is tried with everything that would give a right recitation away as something
else: without memory, with the words of the cue shuffled, and with texts that were never memorized;
and what should change nothing: other documents, and a restart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean
from typing import Any

from ..errors import M3Error
from ..models.template import Turn
from .table import Table
from .trial import TemporaryStore

CUE = 12  # tokens of a text that are given
REQUEST = "Recite the text that begins like this, word for word."
LENGTHS = (4, 8, 16)  # of right beginnings that are counted


def recite(
    documents: Sequence[str], *, others: Sequence[str] = (), answer_tokens: int = 32, **options: Any
) -> Table:
    """Memorize every second document, and let all of them be recited.

    Args:
        others: unrelated documents, memorized for one of the rows.
        answer_tokens: how much behind the cue is to be recited.
        options: of ``TemporaryStore``.

    Raises:
        M3Error: fewer than two documents are long enough.
    """
    table = Table(
        {
            "texts": "",
            "tried": "d",
            "found": ".0%",
            "exact": ".0%",
            "characters": ".1%",
            "beginning": ".1f",
            **{f"{length} tokens": ".0%" for length in LENGTHS},
        },
        f"Of the {answer_tokens} tokens behind a cue of {CUE}: found are texts whose memory the "
        f"search gives for the cue; exact recites all of it; characters are right after the fewest "
        f"corrections; beginning is the length in tokens of what is right up to the first error, "
        f"and the last columns the share of texts where it is at least so long.",
    )
    with TemporaryStore(**options) as store:
        encode = store.assistant.decoder.template.encode
        tokens = [encode(text)[: CUE + answer_tokens] for text in documents]
        long = [i for i, row in enumerate(tokens) if len(row) == CUE + answer_tokens]
        if len(long) < 2:
            raise M3Error(
                f"fewer than two of the documents have {CUE + answer_tokens} tokens; give longer "
                f"ones, or fewer --answer-tokens"
            )
        known, unseen = ([(documents[i], tokens[i]) for i in long[start::2]] for start in (0, 1))
        store.memorize([text for text, _ in known])

        def measure(name: str, texts: Sequence, mode: str = "explicit", shuffled: bool = False):
            results = []
            for number, (text, row) in enumerate(texts):
                store.progress(f"reciting, {name}", number, len(texts))
                results.append(_recite(store, text, row, mode, shuffled))
            store.progress(f"reciting, {name}", len(texts), len(texts))
            table.rows.append({"texts": name, "tried": len(texts), **_summary(results)})

        measure("memorized", known)
        measure("as text in the prompt", known, "text")
        measure("without memory", known, "off")
        measure("cue shuffled", known, shuffled=True)
        measure("never memorized", unseen)
        if others:
            store.memorize(others, cold=True)
            measure(f"beside {len(others)} others", known)
        store.restart()
        measure("after a restart", known)
    return table


def _recite(
    store: TemporaryStore, text: str, tokens: Sequence[int], mode: str, shuffled: bool
) -> dict[str, Any]:
    template = store.assistant.decoder.template
    cue, rest = list(tokens[:CUE]), list(tokens[CUE:])
    if shuffled:
        words = template.decode(cue).split()
        random.Random(text).shuffle(words)
        cue = template.encode(" ".join(words))
    hits = store.assistant.search([template.decode(cue)], store.assistant.memories)[0]
    pasted = f"{text}\n\n" if mode == "text" else ""
    turn = template.turn(pasted + REQUEST)
    conversation = store.conversation(hits if mode == "explicit" else [])
    logits = conversation.prefill(Turn((*turn.tokens, *cue), turn.words), query="message")
    said = [step.token for step in conversation.decode(logits, len(rest))][:-1]
    right = next((i for i, token in enumerate(rest) if said[i : i + 1] != [token]), len(rest))
    wanted, got = template.decode(rest), template.decode(said)
    found = any(store.text_of(hit.path) == text for hit in hits)
    return {
        "found": found if mode == "explicit" else None,
        "exact": right == len(rest),
        "characters": max(0.0, 1 - edits(wanted, got) / len(wanted)),
        "beginning": right,
        **{f"{length} tokens": right >= length for length in LENGTHS},
    }


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    columns = {name: [result[name] for result in results] for name in results[0]}
    return {
        name: None if None in values else float(mean(values)) for name, values in columns.items()
    }


def edits(one: str, other: str) -> int:
    """Characters to insert, delete or replace until one text is the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, theirs in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (mine != theirs))
    return row[-1]
