"""From queries to references: nearest vectors, shared words, or both joined.

Both are joined by the sum of cosine similarity and share of BM25 (see ``Words.shares``), which
ranks better than the ranks' reciprocals, and tells by how much the first is better than the second
(after Bruch, Gai and Ingber 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from .. import files
from ..config import RETRIEVALS
from ..errors import StoreError
from ..files import NEW
from . import index, pieces
from .catalog import Catalog
from .catalog_references import blocks
from .filter import Filter
from .rows import Edition, StoredReference
from .words import RANKED, Words

EXACT_REFERENCES = 20_000  # up to so many, comparing with all is as fast as any index
SIGNS = 2  # times as much do words count in Chinese, Japanese and Korean, which few encoders read
_DEPTH = 32  # references of each list that are joined, at least
_CANDIDATES = 64  # taken from the index at least, and ranked by exact vectors
_TIMES = 2  # as many candidates as are wanted


@dataclass(frozen=True, eq=False)
class Hit:
    """A reference that a search found. Two are equal if store and slot are.

    Attributes:
        slot: names its memory in ``read`` and ``write``.
        distance: cosine distance of query and reference, whatever the mode.
        score: by which hits are ranked: cosine similarity (dense), share of BM25 (text), or the
            sum of both (hybrid), the latter times ``SIGNS`` for questions in such scripts.
        path: of its document, whose id is ``document``.
        start, end: characters of the document.
        page, line: for citing, counted from 1, or None.
        tokens: ids by the edition's tokenizer; None if another one cut the document, then its
            tokens are those of ``text``.
        warm: whether its memory has been written.
        store: folder of the attached store that it is of; None for the user's own.
    """

    slot: int
    distance: float
    score: float
    path: str
    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    tokens: tuple[int, ...] | None
    document: int
    warm: bool
    store: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hit) and (self.store, self.slot) == (other.store, other.slot)

    def __hash__(self) -> int:
        return hash((self.store, self.slot))


class Search:
    """The searches of one open store, and the care of its index file."""

    def __init__(self, catalog: Catalog, path: Path, dimensions: int, exact: int):
        """``path`` is the index file; up to ``exact`` references there is none."""
        self._catalog = catalog
        self._words = Words(catalog)
        self._path = path
        self._dimensions = dimensions
        self._exact = exact
        # the index file and what searches the rest, each with the state that it belongs to
        self._index: tuple[index.IndexStamp | None, index.Graph | None] | None = None
        self._rest: tuple[object, index.Exact | index.Scan] | None = None
        # what the last filter matched, and the commit and filter that it belongs to
        self._filtered: tuple[tuple[int, Filter], frozenset[int]] | None = None

    def hits(
        self,
        queries: np.ndarray,
        texts: Sequence[str],
        k: int,
        mode: str,
        only: Filter | None,
        edition: int | None,
    ) -> list[list[Hit]]:
        """See ``MemoryStore.search``. All of it sees one commit."""
        if mode not in RETRIEVALS:
            raise StoreError(f"{mode}: no such way to search. Use one of {', '.join(RETRIEVALS)}.")
        if len(queries) != len(texts) or k < 1:
            raise StoreError(
                f"{len(queries)} vectors, {len(texts)} texts and k = {k} do not make a search. "
                f"Give a vector and a text for each query, and k of at least 1."
            )
        with self._catalog.snapshot():
            allowed = None if only is None else self._allowed_slots(only)
            scored = self._scored(queries, texts, k, mode, allowed)
            wanted = {slot for scores in scored for slot in scores}
            known = self._catalog.memories.edition(edition)
            stored = self._catalog.references.read(wanted, known.id)
        found = []
        for query, scores in zip(queries, scored, strict=True):
            hits = [_hit(stored[slot], query, score, known) for slot, score in scores.items()]
            if mode == "dense":  # sums of products differ in the last bit
                hits.sort(key=lambda hit: (hit.distance, hit.slot))
            found.append(hits)
        return found

    def _scored(
        self,
        queries: np.ndarray,
        texts: Sequence[str],
        k: int,
        mode: str,
        allowed: frozenset[int] | None,
    ) -> list[dict[int, float]]:
        """For each query the slots that it finds and their scores, the best first."""
        if mode == "dense":
            return self._similar(queries, k, allowed)
        if mode == "text":
            shares = [self._words.shares(text, k, allowed) for text in texts]
            found = [share for share in shares if share is not None]
            if len(found) < len(shares):
                raise StoreError(
                    f"{self._path.parent}: this encrypted store is too large to be searched by "
                    f"words. Search it by meaning, with --retrieval dense."
                )
            return found
        depth = max(_DEPTH, 4 * k)
        similar = self._similar(queries, depth, allowed)
        found = [self._words.shares(text, max(RANKED, depth), allowed) or {} for text in texts]
        for query, some, share in zip(queries, similar, found, strict=True):
            best = dict.fromkeys(islice(share, depth))
            slots, vectors = self._catalog.references.vectors(best.keys() - some, self._dimensions)
            some.update(zip(slots.tolist(), (vectors @ query).tolist(), strict=True))
        return [
            _best(some, share, k, SIGNS if pieces.has_signs(text) else 1)
            for some, share, text in zip(similar, found, texts, strict=True)
        ]

    def _similar(
        self, queries: np.ndarray, count: int, allowed: frozenset[int] | None
    ) -> list[dict[int, float]]:
        """For each query the slots of the nearest vectors, with their cosine similarity."""
        found = self._nearest(queries, count, allowed)
        return [{slot: 1 - distance for distance, slot in nearest} for nearest in found]

    def _allowed_slots(self, only: Filter) -> frozenset[int]:
        """Slots of the documents that a filter matches, as searches may find them."""
        commit = self._state()[0]
        if self._filtered is None or self._filtered[0] != (commit, only):
            slots = self._catalog.visible_among(self._catalog.slots(self._catalog.matching(only)))
            self._filtered = (commit, only), slots
        return self._filtered[1]

    def _nearest(
        self, queries: np.ndarray, count: int, allowed: frozenset[int] | None
    ) -> list[index.Nearest]:
        """For each query the nearest vectors of the present commit."""
        if allowed is not None and len(allowed) <= self._exact:
            return self._compared(sorted(allowed)).search(queries, count)
        graph, rest = self._neighbours()
        if allowed is not None:
            since = -1 if graph is None else graph.stamp.commit
            new = allowed.intersection(self._catalog.visible_slots(since).tolist())
            rest = self._compared(sorted(new))
        found = rest.search(queries, count)
        if graph is not None:
            found = index.merge(found, self._in_graph(graph, queries, count, allowed), count)
        return found

    def _in_graph(
        self, graph: index.Graph, queries: np.ndarray, count: int, allowed: frozenset[int] | None
    ) -> list[index.Nearest]:
        """Search an index that may hold references which are gone by now, or are not wanted.

        It is asked for more until enough of what it gives is wanted, or for all that it holds.
        """
        more = max(_CANDIDATES, _TIMES * count)
        while more < len(graph):
            found = graph.search(queries, more)
            there = self._present({slot for slots in found for slot in slots}, allowed)
            if all(sum(slot in there for slot in slots) >= count for slots in found):
                break
            more *= 2
        else:  # a graph does not lead to all that it holds
            there = self._present(graph.slots().tolist(), allowed)
        return self._compared(sorted(there)).search(queries, count)

    def _present(self, slots: Iterable[int], allowed: frozenset[int] | None) -> frozenset[int]:
        there = self._catalog.visible_among(slots)
        return there if allowed is None else there & allowed

    def _neighbours(self) -> tuple[index.Graph | None, index.Exact | index.Scan]:
        """The index file, if there is a whole one, and what searches all that it lacks."""
        commit, stamp = self._state()
        if self._index is None or self._index[0] != stamp:
            self._index = stamp, self._open(stamp)
        graph = self._index[1]
        if self._rest is None or self._rest[0] != (commit, stamp):
            since = -1 if graph is None else graph.stamp.commit
            self._rest = (commit, stamp), self._compared(self._catalog.visible_slots(since))
        return graph, self._rest[1]

    def _compared(self, slots: Sequence[int] | np.ndarray) -> index.Exact | index.Scan:
        """An exact search of some slots, which holds few of their vectors if there are many."""
        vectors = self._catalog.references.vectors
        if len(slots) <= self._exact:
            return index.Exact(*vectors(slots, self._dimensions))
        return index.Scan(lambda: (vectors(part, self._dimensions) for part in blocks(slots)))

    def _state(self) -> tuple[int, index.IndexStamp | None]:
        settings = self._catalog.settings()
        try:
            stamp = index.IndexStamp(**settings["seal"])
        except TypeError:  # there is none, or it is damaged: either way the index is made again
            stamp = None
        return settings["commit"], stamp

    def _open(self, stamp: index.IndexStamp | None) -> index.Graph | None:
        """The index file if it is whole."""
        if stamp is None:
            return None
        try:
            return index.Graph(self._path, stamp)
        except index.StaleIndex:
            return None  # exact search needs none, and the next writer makes it again

    def refresh_index(self) -> None:
        """Make the index file what the catalog says, if it is too far from it.

        Only the writer may. Searches compare what the index lacks one by one, so a few new
        references wait for more; what is forgotten leaves the file at once.
        """
        self._path.with_name(self._path.name + NEW).unlink(missing_ok=True)
        with self._catalog.snapshot():
            commit, stamp = self._state()
            visible = self._catalog.visible()
            large = visible > self._exact
            graph = self._open(stamp) if large else None
            new = visible if graph is None else self._catalog.visible(graph.stamp.commit)
            few = graph is not None and new <= self._exact // 4
            if graph is not None and few and len(graph) - graph.stamp.erased == visible - new:
                return
            slots = self._catalog.visible_slots() if large else None
        if slots is None:
            self._path.unlink(missing_ok=True)
            made = None
        else:
            files.at_step("indexing")
            erased = self._erased(graph, slots)
            made = (erased if few else None) or index.save(
                self._path, slots, self._vectors, self._dimensions, commit, erased or stamp
            )
        if made != stamp:
            with self._catalog.transaction():
                self._catalog.set(seal=made and asdict(made))

    def _erased(self, graph: index.Graph | None, slots: np.ndarray) -> index.IndexStamp | None:
        """Erase all but some slots from the index file; None where it must be made anew."""
        if graph is None:
            return None
        held = graph.slots()
        with suppress(index.StaleIndex):
            return index.erase(self._path, graph.stamp, held[~np.isin(held, slots)])
        return None

    def _vectors(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._catalog.snapshot():
            return self._catalog.references.vectors(slots, self._dimensions)


def _hit(stored: StoredReference, query: np.ndarray, score: float, edition: Edition) -> Hit:
    names = ("slot", "path", "start", "end", "page", "line", "text", "document", "warm")
    return Hit(
        **{name: getattr(stored, name) for name in names},
        distance=1.0 - float(query @ stored.vector),
        score=score,
        tokens=stored.tokens if stored.tokenizer == edition.tokenizer else None,
    )


def _best(
    similar: dict[int, float], shares: dict[int, float], k: int, factor: float
) -> dict[int, float]:
    """The ``k`` slots with the largest sums of both scores, the best first."""
    sums = {slot: score + factor * shares.get(slot, 0.0) for slot, score in similar.items()}
    ranked = sorted(sums, key=lambda slot: (-sums[slot], slot))[:k]
    return {slot: sums[slot] for slot in ranked}
