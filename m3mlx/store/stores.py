"""Several stores that are searched and read as one.

The first is the user's own; the others are attached to it and only ever read. Each store ranks its
own references; what they find is then ranked anew, together. Distances of one encoder compare as
they are. Words do not, since BM25 weighs a word by how rare it is in one store: so what was found
is the collection in which words are counted. That ranks as one store of all documents would.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import FingerprintError
from .filter import Filter
from .reading import ColdReference, Reading
from .search import Hit, fused

_STRIDE = 2**48  # from the slots of one store to those of the next; none has as many
_POOL = 20  # references of each store that are ranked together, at least
_TIMES = 4  # as many as are wanted
_SATURATION, _LENGTH = 1.2, 0.75  # of BM25, as in SQLite

Make = Callable[[Sequence[Hit]], Mapping[int, np.ndarray]]  # cold references to records, by slot


class Stores:
    """Open stores of one encoder, and for ``read`` of one way of making memories."""

    def __init__(self, own: Reading, attached: Sequence[Reading] = ()):
        self._stores = [own, *attached]
        self._hits: dict[int, Hit] = {}  # of the last search

    def check_encoder(self, wanted: str) -> None:
        """Raise FingerprintError where another encoder has made the vectors of one of them."""
        for store in self._stores:
            if store.encoder != wanted:
                raise FingerprintError(
                    f"{store.path}: its vectors were made with another encoder "
                    f"({store.encoder:.40} instead of {wanted:.40}). Use the one it was made with, "
                    f"or name another store."
                )

    def search(
        self,
        vectors: np.ndarray,
        texts: Sequence[str],
        k: int,
        mode: str = "hybrid",
        only: Filter | None = None,
    ) -> list[list[Hit]]:
        """As ``Reading.search``, over all of them. Hits of attached stores name theirs."""
        if len(self._stores) == 1:
            found = self._stores[0].search(vectors, texts, k, mode, only)
        else:
            many = max(_POOL, _TIMES * k)
            pools: list[list[Hit]] = [[] for _ in texts]
            for number, store in enumerate(self._stores):
                for pool, hits in zip(
                    pools, store.search(vectors, texts, many, mode, only), strict=True
                ):
                    pool += [_of(store, number, hit) for hit in hits]
            found = [ranked(text, pool, mode)[:k] for text, pool in zip(texts, pools, strict=True)]
        self._hits = {hit.slot: hit for hits in found for hit in hits}
        return found

    def read(self, slots: Sequence[int], make: Make) -> np.ndarray:
        """Memories of references that the last search found: uint8 (len(slots), record_bytes).

        Args:
            make: makes the memories of references that have none.
        """
        rows = dict(make([self._hits[slot] for slot in slots if not self._hits[slot].warm]))
        while missing := [slot for slot in slots if slot not in rows]:
            try:
                for number, store in enumerate(self._stores):
                    part = [slot for slot in missing if slot // _STRIDE == number]
                    if part:
                        stored = store.read([slot % _STRIDE for slot in part])
                        rows.update(zip(part, stored, strict=True))
            except ColdReference as error:  # dropped since the search
                rows.update(make([self._hits[number * _STRIDE + error.slot]]))
        return np.stack([rows[slot] for slot in slots])


def _of(store: Reading, number: int, hit: Hit) -> Hit:
    if not number:
        return hit
    return replace(hit, slot=number * _STRIDE + hit.slot, store=str(store.path))


def ranked(text: str, pool: Sequence[Hit], mode: str) -> list[Hit]:
    """References of several stores in one order, the best first."""
    hits = {hit.slot: hit for hit in pool}
    near = sorted(hits, key=lambda slot: (hits[slot].distance, slot))
    lists = [near]
    if mode != "dense":
        scores = dict(zip(hits, _bm25(text, [hit.text for hit in hits.values()]), strict=True))
        by_words = sorted(near, key=lambda slot: -scores[slot])
        lists = [by_words] if mode == "text" else [near, [s for s in by_words if scores[s] > 0]]
    return [hits[slot] for slot in fused(lists)]


def _bm25(query: str, texts: Sequence[str]) -> list[float]:
    """How well each text matches the words of a query, by their frequency in all these texts."""
    counts = [Counter(_words(text)) for text in texts]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / max(len(lengths), 1) or 1.0
    scores = [0.0] * len(texts)
    for word in dict.fromkeys(_words(query)):
        holding = sum(word in count for count in counts)
        weight = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            often = count[word]
            damped = often + _SATURATION * (1 - _LENGTH + _LENGTH * length / mean)
            scores[number] += weight * often * (_SATURATION + 1) / damped
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
