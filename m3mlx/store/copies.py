"""Hits that say the same as better ones: copies, other editions of a file, quoted mail.

A text is known by its runs of three words, or of three signs where words do not stand apart. A hit
whose runs nearly all stand in better hits is a copy, unless it has a number that they lack; with
most of them it is another edition, of which two may take the places of different texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .search import Hit

COPY, EDITION = 0.9, 0.7  # shares of the runs that stand in better hits
EDITIONS = 2  # of one text
_APART = 12  # characters of a word on average, at most, where words stand apart


def different_first(hits: Sequence[Hit]) -> tuple[list[Hit], int]:
    """Put hits that say the same as better ones last, and count the others."""
    if not _may_say_the_same(hits):
        return list(hits), len(hits)
    kept: list[tuple[Hit, set]] = []
    same: list[Hit] = []
    runs_seen, words_seen, editions = set[tuple[str, ...]](), set[str](), Counter[int]()
    for hit in hits:
        words = _words(hit.text)
        runs: set[tuple[str, ...]] = set(zip(words, words[1:], words[2:], strict=False))
        runs = runs or {tuple(words)}
        share = len(runs & runs_seen) / len(runs)
        if share >= EDITION:
            new = set(words) - words_seen
            if share >= COPY and not any(any(map(str.isdigit, word)) for word in new):
                same.append(hit)
                continue
            nearest = max(range(len(kept)), key=lambda n: len(runs & kept[n][1]))
            editions[nearest] += 1
            if editions[nearest] >= EDITIONS:
                same.append(hit)
                continue
        kept.append((hit, runs))
        runs_seen |= runs
        words_seen.update(words)
    return [*(hit for hit, _ in kept), *same], len(kept)


def _may_say_the_same(hits: Sequence[Hit]) -> bool:
    """Tell in little time whether most of the words of a hit may stand in better ones."""
    seen = set[str]()
    for hit in hits:
        words = hit.text.casefold().split()
        new = set(words)
        if _APART * len(words) < len(hit.text) or 2 * len(new & seen) >= len(new):
            return len(hits) > 1
        seen |= new
    return False


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    apart = len(text) <= _APART * len(words)
    return words if apart else [sign for word in words for sign in word]
