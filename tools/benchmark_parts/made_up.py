"""Made-up references, to fill stores of any size in minutes instead of days.

Vectors lie in 2,000 clusters of uneven size, always the same ones. Texts are words of uneven
frequency, as in a language. The store adds them like any others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from m3mlx.store import MemoryStore, NewReference

DIMENSIONS = 384  # of all-MiniLM-L6-v2
BLOCK = 2_000  # references of a document, and of a commit
WORDS = 40  # of a text


def vectors(seed: int, count: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Return clustered unit vectors, float32 (count, dimensions); the clusters do not change."""
    same, random = np.random.default_rng(0), np.random.default_rng(seed)
    centers = same.standard_normal((2_000, dimensions), np.float32)
    directions = same.standard_normal((64, dimensions), np.float32)
    weights = np.arange(1, len(centers) + 1) ** -0.5
    made = centers[random.choice(len(centers), count, p=weights / weights.sum())]
    made = made + 0.1 * random.standard_normal((count, 64), np.float32) @ directions
    return unit(made + 0.3 * random.standard_normal((count, dimensions), np.float32))


def unit(made: np.ndarray) -> np.ndarray:
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def texts(seed: int, count: int, vocabulary: Sequence[str] = ()) -> list[str]:
    """Return texts of few frequent and many rare words.

    Args:
        vocabulary: the most frequent words, in this order; the others are made up.
    """
    ranks = np.random.default_rng(seed).zipf(1.3, (count, WORDS)) % 50_000
    return [
        " ".join(vocabulary[rank] if rank < len(vocabulary) else f"w{rank:x}" for rank in row)
        for row in ranks
    ]


def fill(
    store: MemoryStore,
    first: int,
    end: int,
    *,
    vocabulary: Sequence[str] = (),
    record: Callable[[int], bytes | None] = lambda number: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Add made-up references of some numbers to a store, a document and a commit at a time.

    Args:
        vocabulary: as of ``texts``.
        record: the memory of a reference by its number; None leaves it cold.

    Yields:
        After each commit, the number of its first reference and its vectors.
    """
    for start in range(first, end, BLOCK):
        size = min(BLOCK, end - start)
        seed = start // BLOCK + 1
        made = vectors(seed, size, store.dimensions)
        document, _ = store.begin(f"/made up/{start}", str(start), size, size=1)
        store.add(
            [
                NewReference(
                    document=document,
                    ordinal=ordinal,
                    start=ordinal,
                    end=ordinal + 1,
                    text=text,
                    tokens=range(128),
                    page=None,
                    line=1,
                    vector=vector,
                    record=record(start + ordinal),
                )
                for ordinal, (text, vector) in enumerate(
                    zip(texts(seed, size, vocabulary), made, strict=True)
                )
            ]
        )
        yield start, made


def drop_cached(path: Path) -> None:
    """Drop a file from the system's cache, so that the next read is cold."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
