"""The references of the training data, and which of them fit a text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import Progress, no_progress
from ..documents import Document, Tokenize, split
from ..store.index import Exact

COPY = 0.9  # overlap from which a reference is a copy of a training text (section 3.6, eq. 6)
LEAK = 2 / 3  # the same in validation (section 4.4)
BATCH = 64  # texts that are embedded at once

Reference = tuple[int, ...]  # token ids


class SentenceEncoder(Protocol):
    """Turns texts into unit vectors, float32 (n, dimensions)."""

    identity: str

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class Embeddings:
    """Vectors of texts, by an encoder that is loaded when the first is wanted.

    Args:
        folder: where the vectors of a corpus are kept between runs.
        progress: called while many texts are embedded.
    """

    def __init__(
        self, load: Callable[[], SentenceEncoder], folder: Path, progress: Progress = no_progress
    ):
        self._load, self._folder, self._progress = load, folder, progress

    @cached_property
    def encoder(self) -> SentenceEncoder:
        return self._load()

    def of(self, texts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), BATCH):
            self._progress("embedding references", start, len(texts))
            parts.append(self.encoder.encode(texts[start : start + BATCH]))
        self._progress("embedding references", len(texts), len(texts))
        return np.concatenate(parts)

    def kept(self, texts: Sequence[str]) -> np.ndarray:
        """Return vectors from the folder, where they are put at first."""
        name = hashlib.sha256("\0".join([self.encoder.identity, *texts]).encode()).hexdigest()
        path = self._folder / f"vectors-{name[:32]}.npy"
        if not path.exists():
            save_array(path, self.of(texts))
        return np.load(path, allow_pickle=False)


class Corpus:
    """Every reference of the training data; vectors are made when they are first compared.

    Args:
        documents: different texts.
        tokenize: text to token ids and their character offsets.

    Attributes:
        references: token ids of every different reference.
        texts: their texts.
        places: for each document the indices of its references, in order.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenize: Tokenize,
        embeddings: Embeddings,
    ):
        texts: dict[Reference, str] = {}
        pieces = {text: split(Document("", "", text), tokenize) for text in documents}
        for document in documents:
            for piece in pieces[document]:
                texts.setdefault(piece.tokens, piece.text)
        self.references, self.texts = list(texts), list(texts.values())
        known = {reference: i for i, reference in enumerate(self.references)}
        self.places = {text: [known[p.tokens] for p in pieces[text]] for text in documents}
        self._embeddings = embeddings

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self._embeddings.kept(self.texts)

    @cached_property
    def _index(self) -> Exact:
        return Exact(np.arange(len(self.references)), self._vectors)

    def find_answer(self, document: str, answer: str) -> int | None:
        """Return the reference of a document that holds an answer; None if it lies across a cut."""
        places = self.places[document]
        if len(places) == 1:
            return places[0]
        return next((i for i in places if answer.lower() in self.texts[i].lower()), None)

    def nearest(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """Return the references that fit each text best, best first."""
        found = self._index.search(self._embeddings.of(texts), count)
        return [[place for _, place in near] for near in found]

    def clusters(
        self, places: Sequence[int], size: int, rng: np.random.Generator
    ) -> list[list[int]]:
        """Divide references into groups of neighbours, each around one drawn at random."""
        index = np.array(places)
        free = np.ones(len(index), bool)
        groups = []
        for start in rng.permutation(len(index)):
            if not free[start]:
                continue
            free[start] = False
            others = np.flatnonzero(free)
            near = self._vectors[index[others]] @ self._vectors[index[start]]
            chosen = others[np.argsort(-near, kind="stable")[: size - 1]]
            free[chosen] = False
            groups.append(index[[start, *chosen]].tolist())
        return groups


def overlap(text: Sequence[int], reference: Sequence[int]) -> float:
    """Return the share of a reference that a text repeats (section 3.6, equation 6 of the paper).

    This is the longest common subsequence with any part of the text of twice the reference's
    length, over the reference's length: 1 for a copy.
    """
    places: dict[int, int] = {}
    for i, token in enumerate(reference):
        places[token] = places.get(token, 0) | 1 << i
    width = 2 * len(reference) + 1
    rows = [places.get(token, 0) for token in text]
    best, full = 0, (1 << len(reference)) - 1
    for start, row in enumerate(rows):
        if not row or len(rows) - start <= best:
            continue
        # bit-parallel, after Hyyrö (2004): a zero bit is a token that is matched
        state = full
        for match in rows[start : start + width]:
            if match:
                hit = state & match
                state = ((state + hit) | (state - hit)) & full
        best = max(best, len(reference) - state.bit_count())
    return best / len(reference)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a NumPy file whole or not at all; unsynced, since it can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    with unfinished.open("wb") as file:
        np.save(file, array)
    unfinished.replace(path)
