"""Nearest neighbours: exact while a store is small, a USearch graph when it is large.

vectors.usearch is derived from the catalog, and USearch trusts the files it opens: a damaged
graph can kill the process. So the catalog keeps a stamp of the file, which is checked before the
file is opened; without a valid stamp the search is exact. USearch's own removal leaves the
removed bytes in the file, so vectors are overwritten there with zeros. These are as far from
everything as what has nothing to do with it, and the graph leads past them as before; when a
quarter of a file is erased, it is built anew.

The graph keeps a byte for each number, scaled so that the largest of a vector is 127. That takes
half the room of half floats, is twice as fast to build and to search, and costs hardly any recall:
searches take some more candidates than they need and rank them by exact vectors.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from usearch.index import Index

from .. import files

Nearest = list[tuple[float, int]]  # cosine distance and slot, the nearest first

FILE = "vectors.usearch"
UNIT_TOLERANCE = 1e-3  # of the length of a stored vector
_EXPANSION = 256  # candidates that a search of the graph keeps; fewer lose recall at a million
_BLOCK = 2**24  # distances that an exact search holds at a time
_PART = 4096  # vectors that are added to a graph at a time
_PIECE = 2**24  # bytes of a file that one thread hashes at a time
_MOST_ERASED = 0.25  # of the vectors of a file, beyond which it is built anew
_MATRIX = struct.Struct("<II")  # head of a file: vectors, bytes of each; then all vectors
_START = 8  # bytes of a vector by which its place is found
_SETTLED = 2 * 10**9  # nanoseconds after which a change would show in a file's times

_proven: dict[str, tuple[int, ...]] = {}  # hash -> the file in which this process has found it


@dataclass(frozen=True)
class IndexStamp:
    """Identity of an index file, kept in the catalog.

    Attributes:
        commit: the state of the store that the file indexes.
        length: of the file, in bytes.
        sha256: of the SHA-256 of each 16 MiB of the file, in hexadecimal; so all cores can prove
            a file, a gigabyte in a fraction of a second.
        erased: so many of its vectors are overwritten.
    """

    commit: int
    length: int
    sha256: str
    erased: int = 0


class StaleIndex(Exception):
    """An index file is not the stamped one: it is missing, damaged, older or newer."""


def are_unit(vectors: np.ndarray) -> bool:
    """Return whether every row is finite and of length one."""
    with np.errstate(invalid="ignore"):  # of an imported file, some NaN cannot be cast
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return bool(np.all(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # false for NaN


def quantize(vectors: np.ndarray) -> np.ndarray:
    """Round vectors (…, dimensions) to int8, as a graph keeps them; directions hardly change."""
    return np.round(vectors * (127 / np.abs(vectors).max(axis=-1, keepdims=True))).astype(np.int8)


def merge(some: list[Nearest], others: list[Nearest], count: int) -> list[Nearest]:
    """Return the ``count`` nearest of two searches of different vectors, for each query."""
    return [sorted([*a, *b])[:count] for a, b in zip(some, others, strict=True)]


class Exact:
    """Search by comparing with every vector."""

    def __init__(self, slots: np.ndarray, vectors: np.ndarray):
        self._slots = slots  # int64 (references,)
        self._vectors = vectors  # float32 (references, dimensions)

    def search(self, queries: np.ndarray, count: int) -> list[Nearest]:
        """For each query the ``count`` nearest vectors, nearest first."""
        count = min(count, len(self._slots))
        if not count:
            return [[] for _ in queries]
        found = []
        rows = max(1, _BLOCK // len(self._slots))
        for start in range(0, len(queries), rows):
            distances = 1 - queries[start : start + rows] @ self._vectors.T
            nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
            for row, chosen in zip(distances, nearest, strict=True):
                order = chosen[np.lexsort((self._slots[chosen], row[chosen]))]
                found.append(
                    list(zip(row[order].tolist(), self._slots[order].tolist(), strict=True))
                )
        return found


class Scan:
    """Exact search that holds a part of the vectors at a time, however many there are.

    Args:
        parts: makes an iterator over slots int64 ``(n,)`` and vectors float32
            ``(n, dimensions)``, anew for each search.
    """

    def __init__(self, parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]):
        self._parts = parts

    def search(self, queries: np.ndarray, count: int) -> list[Nearest]:
        """As of ``Exact``."""
        best: list[Nearest] = [[] for _ in queries]
        for slots, vectors in self._parts():
            best = merge(best, Exact(slots, vectors).search(queries, count), count)
        return best


class Graph:
    """Search of an index file, which is mapped; a writer only overwrites what is erased in it.

    Attributes:
        stamp: of the file.
    """

    def __init__(self, path: Path, stamp: IndexStamp):
        """Open the stamped file. Raises StaleIndex if it is missing or another."""
        self._map = _mapped(path, stamp)  # the index reads from it as long as it lives
        self._index = _restored(self._map, view=True)
        self.stamp = stamp

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: np.ndarray, count: int) -> list[list[int]]:
        """For each query the slots of about the ``count`` nearest vectors, nearest first."""
        self._index.expansion_search = max(_EXPANSION, 2 * count)  # type: ignore[misc]
        # one by one: results of a batch are padded with a valid key
        return [self._index.search(query, count).keys.tolist() for query in quantize(queries)]

    def slots(self) -> np.ndarray:
        """All that it holds, int64."""
        return _keys(self._index)


def erase(path: Path, stamp: IndexStamp, gone: np.ndarray) -> IndexStamp:
    """Overwrite vectors of the stamped file, which search then no longer finds.

    Args:
        gone: int64, all keys whose vectors are not to be there.

    Returns:
        The stamp of the file as it is then.

    Raises:
        StaleIndex: it is another file, or its vectors are not where they are expected, or so many
            are gone that it is to be built anew; nothing is changed.
    """
    mapped = _mapped(path, stamp, mmap.ACCESS_COPY)  # tried here first, not in the file
    index = _restored(mapped, view=True)
    count, width = _MATRIX.unpack_from(mapped)
    told = len(index), max(index.ndim, _START)
    if (count, width) != told or len(gone) > _MOST_ERASED * count:
        raise StaleIndex(path)
    vectors = np.ndarray((count, width), np.int8, mapped, _MATRIX.size)
    starts = np.ascontiguousarray(vectors[:, :_START]).view(np.uint64)[:, 0]
    erased = []
    for key in gone.tolist():
        vector = _vector(index, key)
        if not vector.any():
            continue
        for row in np.flatnonzero(starts == vector[:_START].view(np.uint64)[0]).tolist():
            before = vectors[row].copy()
            vectors[row] = 0
            if not _vector(index, key).any():
                erased.append(row)
                break
            vectors[row] = before  # of another key
        else:
            raise StaleIndex(path)
    with path.open("r+b", buffering=0) as file:
        for row in erased:
            files.write_at(file.fileno(), bytes(width), _MATRIX.size + row * width)
        files.sync(file.fileno())
    files.at_step("vectors erased")
    return replace(stamp, sha256=_hash(mapped), erased=len(gone))


def save(
    path: Path,
    slots: np.ndarray,
    vectors: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    dimensions: int,
    commit: int,
    stamp: IndexStamp | None,
) -> IndexStamp:
    """Index vectors in a file, starting from the present one where it holds no others.

    Vectors are asked for a part at a time; the graph itself is built in memory, a little more
    than a byte for each number of each vector.

    Args:
        slots: int64 ``(references,)``, the keys.
        vectors: of some slots those that still exist, and their vectors, float32.
        commit: the state of the store that these vectors are.
        stamp: of the present file, if there is one.
    """
    index = Index(ndim=dimensions, metric="cos", dtype="i8", multi=False)
    held = slots[:0]
    with suppress(StaleIndex):
        present = _restored(_mapped(path, stamp), view=False)
        keys = _keys(present)
        erased = keys[~np.isin(keys, slots)]
        if len(erased) <= _MOST_ERASED * len(keys) and not any(
            _vector(present, key).any() for key in erased.tolist()
        ):
            index, held = present, keys
        else:
            path.unlink()  # erased now, not only when the new one is built
            files.at_step("index erased")
    missing = slots[~np.isin(slots, held)]
    for start in range(0, len(missing), _PART):
        found, added = vectors(missing[start : start + _PART])
        if len(found):
            # threads that add side by side leave some vectors where no search ever comes
            index.add(found.astype(np.uint64), quantize(added), threads=1)
    with files.replacing(path) as file:
        try:
            index.save(file)
        except RuntimeError as error:  # USearch does not say which
            raise OSError(errno.EIO, f"the index cannot be written ({error})", str(path)) from error
        with file.open("rb") as saved, mmap.mmap(saved.fileno(), 0, access=mmap.ACCESS_READ) as all:
            return IndexStamp(commit, len(all), _hash(all), erased=len(index) - len(slots))


def _restored(data: mmap.mmap, *, view: bool) -> Index:
    index = Index.restore(memoryview(data), view=view)
    assert index is not None  # as it is for a path without a file
    return index


def _keys(index: Index) -> np.ndarray:
    return np.array(index.keys[:], dtype=np.int64)


def _vector(index: Index, key: int) -> np.ndarray:
    """A vector as it is kept, int8 ``(dimensions,)``."""
    return np.array(index.get(key), dtype=np.int8)


def _mapped(path: Path, stamp: IndexStamp | None, access: int = mmap.ACCESS_READ) -> mmap.mmap:
    """Map a file and prove that these very bytes are the stamped ones."""
    if stamp is None:
        raise StaleIndex(path)
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_size != stamp.length or not stamp.length:
                raise StaleIndex(path)
            mapped = mmap.mmap(file.fileno(), 0, access=access)
    except OSError as error:
        raise StaleIndex(path) from error
    identity = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
    if _proven.get(stamp.sha256) != identity:
        if _hash(mapped) != stamp.sha256:
            mapped.close()
            raise StaleIndex(path)
        if time.time_ns() - max(identity[2:]) > _SETTLED:
            _proven.clear()  # a process has one store open, as a rule
            _proven[stamp.sha256] = identity
    return mapped


def _hash(data: mmap.mmap) -> str:
    """Hash of a file, as a stamp has it."""
    with memoryview(data) as view:
        pieces = [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            hashes = list(threads.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
        for piece in pieces:
            piece.release()
    return hashlib.sha256(b"".join(hashes)).hexdigest()
