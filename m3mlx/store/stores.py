"""Several stores that are searched and read as one.

The first is the user's own; the others are attached to it and only ever read. Each store ranks its
own references, by scores that compare: cosine similarity, and BM25 as a share of the most that the
words of the query could give in that store, which hardly depends on how rare they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import FingerprintError
from .filter import Filter
from .reading import ColdReference, Reading
from .search import Hit

_STRIDE = 2**48  # from the slots of one store to those of the next; none has as many

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
        found: list[list[Hit]] = [[] for _ in texts]
        for number, store in enumerate(self._stores):
            searched = store.search(vectors, texts, k, mode, only)
            for hits, more in zip(found, searched, strict=True):
                hits += [_of(store, number, hit) for hit in more]
        found = [sorted(hits, key=lambda hit: (-hit.score, hit.slot))[:k] for hits in found]
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
