"""The references of the training data, and which of them fit a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..documents import Document, Tokenize, split
from ..store.index import Exact

COPY = 0.9  # overlap from which a reference is a copy of a training text (section 3.6, eq. 6)
LEAK = 2 / 3  # the same when evaluating (section 4.4)

Reference = tuple[int, ...]  # token ids
Encode = Callable[[Sequence[str]], np.ndarray]


class Corpus:
    """Every reference of the training data, with its vector.

    Args:
        documents: texts, each different from the others.
        tokenize: text to token ids and the characters that each came from.
        encode: texts to unit vectors, float32 (n, dimensions).
        folder: where vectors are kept between runs.
        identity: of the encoder.

    Attributes:
        references: token ids of every different reference.
        texts: of the same.
        places: for each document the indices of its references, in order.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenize: Tokenize,
        encode: Encode,
        folder: Path,
        identity: str,
    ):
        self.references: list[Reference] = []
        self.texts: list[str] = []
        self.places: dict[str, list[int]] = {}
        known: dict[Reference, int] = {}
        for document in documents:
            self.places[document] = []
            for piece in split(Document("", "", document), tokenize):
                if piece.tokens not in known:
                    known[piece.tokens] = len(self.references)
                    self.references.append(piece.tokens)
                    self.texts.append(piece.text)
                self.places[document].append(known[piece.tokens])
        self._encode = encode
        self._vectors = self._load(folder, identity)
        self._index = Exact(np.arange(len(self.references)), self._vectors)

    def _load(self, folder: Path, identity: str) -> np.ndarray:
        name = hashlib.sha256("\0".join([identity, *self.texts]).encode()).hexdigest()
        path = folder / f"vectors-{name[:32]}.npy"
        if path.exists():
            return np.load(path, allow_pickle=False)
        vectors = self._encode(self.texts)
        save_array(path, vectors)
        return vectors

    def right(self, document: str, answer: str) -> int | None:
        """The reference of a document that holds an answer; None if it lies across a cut."""
        places = self.places[document]
        holding = [i for i in places if answer.lower() in self.texts[i].lower()]
        if holding or len(places) > 1:
            return holding[0] if holding else None
        return places[0]

    def nearest(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """The references that fit each text best, best first."""
        found = self._index.search(self._encode(list(texts)), count)
        return [[place for _, place in near] for near in found]

    def clusters(
        self, places: Sequence[int], size: int, rng: np.random.Generator
    ) -> list[list[int]]:
        """Cut references into groups of neighbours, each around one drawn at random."""
        places = np.array(places)
        free = np.ones(len(places), bool)
        groups = []
        for start in rng.permutation(len(places)):
            if not free[start]:
                continue
            free[start] = False
            others = np.flatnonzero(free)
            near = self._vectors[places[others]] @ self._vectors[places[start]]
            chosen = others[np.argsort(-near, kind="stable")[: size - 1]]
            free[chosen] = False
            groups.append([int(place) for place in places[[start, *chosen]]])
        return groups


def overlap(text: Sequence[int], reference: Sequence[int]) -> float:
    """How much of a reference a text repeats (section 3.6, equation 6 of the paper).

    The longest common subsequence that lies within twice the reference's length of the text, over
    the reference's length: 1 for a copy.
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
    """Write a NumPy file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.save(file, array)
    unfinished.replace(path)
