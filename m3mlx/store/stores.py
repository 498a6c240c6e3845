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
from .copies import different_first
from .filter import Filter
from .memory_store import MemoryStore
from .records import ColdReference
from .search import Hit

_MOST_COPIES = 64  # times as many hits as are wanted are searched for different ones

Make = Callable[[Sequence[Hit]], Mapping[Hit, np.ndarray]]  # cold hits to their new records


class Stores:
    """Open stores of one encoder, each with the edition whose memories are read.

    Args:
        stores: pairs of a store and the id of its edition (None for the first); the user's own
            store comes first.
    """

    def __init__(self, stores: Sequence[tuple[MemoryStore, int | None]]):
        self._stores = {
            str(store.path) if number else None: (store, edition)
            for number, (store, edition) in enumerate(stores)
        }

    def check_encoder(self, wanted: str) -> None:
        """Raise FingerprintError where another encoder has made the vectors of one of them."""
        for store, _ in self._stores.values():
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
        """As ``MemoryStore.search``, over all of them. Hits of attached stores name theirs.

        What says the same as a better hit comes last, behind all that says something else.
        """
        count = k
        while True:
            found = self._best(vectors, texts, count, mode, only)
            ordered = [different_first(hits) for hits in found]
            lacking = any(
                different < k and len(hits) == count
                for hits, (_, different) in zip(found, ordered, strict=True)
            )
            if not lacking or count >= _MOST_COPIES * k:
                return [hits[:k] for hits, _ in ordered]
            count *= 4

    def _best(
        self,
        vectors: np.ndarray,
        texts: Sequence[str],
        k: int,
        mode: str,
        only: Filter | None,
    ) -> list[list[Hit]]:
        found: list[list[Hit]] = [[] for _ in texts]
        for name, (store, edition) in self._stores.items():
            searched = store.search(vectors, texts, k, mode, only, edition)
            for hits, more in zip(found, searched, strict=True):
                hits += [replace(hit, store=name) for hit in more]
        # sorting is stable: of equal scores those of the first store come first
        return [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in found]

    def read(self, hits: Sequence[Hit], make: Make) -> np.ndarray:
        """Read the memories of hits, in their order: uint8 ``(len(hits), record_bytes)``.

        Args:
            make: makes the records of references that have none.
        """
        rows = dict(make([hit for hit in hits if not hit.warm]))
        for name, (store, edition) in self._stores.items():
            while missing := [hit for hit in hits if hit.store == name and hit not in rows]:
                try:
                    stored = store.read([hit.slot for hit in missing], edition)
                    rows.update(zip(missing, stored, strict=True))
                except ColdReference as error:  # dropped since the search
                    rows.update(make([hit for hit in missing if hit.slot == error.slot]))
        return np.stack([rows[hit] for hit in hits])
