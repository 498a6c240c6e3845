"""From queries to references: nearest vectors, shared words, or both joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..config import RETRIEVALS
from ..errors import StoreError
from . import index
from .catalog import Catalog
from .files import NEW

EXACT_REFERENCES = 20_000  # up to so many, comparing with all is as fast as any index
_FUSION = 60  # damps the first ranks (Cormack, Clarke and Buettcher 2009)
_DEPTH = 64  # ranks of each list that take part in the fusion, at least


@dataclass(frozen=True)
class Hit:
    """A reference that a search found.

    Attributes:
        slot: names its memory in ``read`` and ``write``.
        distance: cosine distance of query and reference, whatever the mode.
        path: of its document, whose id is ``document``.
        start, end: characters of the document.
        page, line: for citing, counted from 1, or None.
        tokens: the decoder's token ids.
        warm: whether its memory has been written.
    """

    slot: int
    distance: float
    path: str
    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    tokens: tuple[int, ...]
    document: int
    warm: bool


class Search:
    """The searches of one open store, and the care of its index file."""

    def __init__(self, catalog: Catalog, path: Path, dimensions: int, exact: int):
        """``path`` is the index file; up to ``exact`` references there is none."""
        self._catalog = catalog
        self._path = path
        self._dimensions = dimensions
        self._exact = exact
        self._opened: tuple[object, index.Exact | index.Graph] | None = None

    def hits(self, queries: np.ndarray, texts: Sequence[str], k: int, mode: str) -> list[list[Hit]]:
        """See ``MemoryStore.search``. All of it sees one commit."""
        if mode not in RETRIEVALS:
            raise StoreError(f"{mode}: no such way to search. Use one of {', '.join(RETRIEVALS)}.")
        if len(queries) != len(texts) or k < 1:
            raise StoreError(
                f"{len(queries)} vectors, {len(texts)} texts and k = {k} do not make a search. "
                f"Give a vector and a text for each query, and k of at least 1."
            )
        depth = k if mode == "dense" else max(_DEPTH, 4 * k)
        with self._catalog.snapshot():
            lists = []
            if mode != "text":
                lists.append(self._neighbours().search(queries, depth))
            if mode != "dense":
                lists.append([self._catalog.matching(text, depth) for text in texts])
            ranked = [_fused(ranks)[:k] for ranks in zip(*lists, strict=True)]
            stored = self._catalog.references({slot for slots in ranked for slot in slots})
        found = []
        for query, slots in zip(queries, ranked, strict=True):
            hits = []
            for slot in slots:
                fields = dict(vars(stored[slot]))
                distance = 1.0 - float(query @ fields.pop("vector"))
                hits.append(Hit(distance=distance, **fields))
            if mode == "dense":  # an index ranks by rounded vectors
                hits.sort(key=lambda hit: (hit.distance, hit.slot))
            found.append(hits)
        return found

    def _neighbours(self) -> index.Exact | index.Graph:
        """What searches the vectors of the present commit."""
        commit, seal = self._state()
        if self._opened is None or self._opened[0] != (commit, seal):
            self._opened = (
                (commit, seal),
                self._graph(commit, seal) or index.Exact(*self._catalog.vectors(self._dimensions)),
            )
        return self._opened[1]

    def _state(self) -> tuple[int, index.Seal | None]:
        settings = self._catalog.settings()
        try:
            seal = index.Seal(**settings["seal"])
        except TypeError:  # there is none, or it is damaged: either way the index is made again
            seal = None
        return settings["commit"], seal

    def _graph(self, commit: int, seal: index.Seal | None) -> index.Graph | None:
        """The index file if it is whole and up to date."""
        if seal is None or seal.commit != commit:
            return None
        try:
            return index.Graph(self._path, seal)
        except index.Unsealed:
            return None  # exact search needs none, and the next writer makes it again

    def refresh(self) -> None:
        """Make the index file what the catalog says, if it is not. Only the writer may."""
        self._path.with_name(self._path.name + NEW).unlink(missing_ok=True)
        with self._catalog.snapshot():
            commit, seal = self._state()
            large = self._catalog.visible() > self._exact
            if large and self._graph(commit, seal):
                return
            if large:
                slots, vectors = self._catalog.vectors(self._dimensions)
        if large:
            made = index.save(self._path, slots, vectors, commit, seal)
        else:
            self._path.unlink(missing_ok=True)
            made = None
        if made != seal:
            with self._catalog.transaction():
                self._catalog.set(seal=made and asdict(made))


def _fused(ranks: Iterable[Sequence[int]]) -> list[int]:
    """Join ranked lists by reciprocal rank; a single list keeps its order."""
    scores: dict[int, float] = {}
    for slots in ranks:
        for rank, slot in enumerate(slots, 1):
            scores[slot] = scores.get(slot, 0.0) + 1 / (_FUSION + rank)
    return sorted(scores, key=lambda slot: (-scores[slot], slot))
