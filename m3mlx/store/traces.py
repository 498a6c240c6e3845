"""What a forgotten document would leave behind, and the search for it in the bytes on disk.

Samples are taken before the erasing and looked for after it. A sample that a remaining document
holds too proves nothing; ``MemoryStore.residue`` leaves it out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bank import Bank
from .catalog import Catalog, StoredDocument, StoredReference
from .database import TOKENIZER

_SAMPLED = 8  # references, spread evenly: the search reads every byte once for each sample
_WORDS = 16  # the longest words of the full text
_CHUNK = 2**24  # bytes of a file that are searched at a time


@dataclass(frozen=True)
class Trace:
    """One sample.

    Attributes:
        path: the document it was taken from.
        kind: "name", "text", "word" (of the full text), "tokens", "vector" or "memory".
        needle: the bytes to look for.
        original: the same as the catalog would hold it in another document.
    """

    path: str
    kind: str
    needle: bytes
    original: str | bytes


@dataclass(frozen=True)
class Residue:
    """A sample that is still in a file of the store, at ``offset``."""

    file: str
    offset: int
    kind: str
    path: str


def take(documents: Sequence[StoredDocument], catalog: Catalog, bank: Bank) -> list[Trace]:
    """Sample documents and some of their references."""
    with catalog.snapshot():
        slots = catalog.slots(document.id for document in documents)
        places = np.linspace(0, len(slots) - 1, min(_SAMPLED, len(slots))).round().astype(int)
        references = list(catalog.references([slots[place] for place in places]).values())
    traces = []
    for document in documents:
        name = document.path
        traces += [Trace(name, "name", needle, name) for needle in _encodings(name)]
    for reference in references:
        path = reference.path
        if text := _distinct(reference.text, 32):
            traces += [Trace(path, "text", needle, text) for needle in _encodings(text)]
        if tokens := _distinct(np.array(reference.tokens, dtype="<u4").tobytes(), 32):
            traces.append(Trace(path, "tokens", tokens, tokens))
        vector = reference.vector[:12]
        for kept in (vector, vector.astype("<f2")):  # as in the catalog, as in the index
            traces.append(Trace(path, "vector", kept.tobytes(), vector.tobytes()))
        if memory := _distinct(bank.raw(reference.slot), 32):
            traces.append(Trace(path, "memory", memory, memory))
    words = _words(references)
    traces += [Trace(path, "word", word.encode(), word) for word, path in words.items()]
    return traces


def left(samples: Sequence[Trace], folder: Path, catalog: Catalog, bank: Bank) -> list[Residue]:
    """Look for samples in all files of a folder; one place for each sample and file."""
    found = {}
    live: dict[int, bool] = {}  # by sample, asked only about those that are somewhere
    with catalog.snapshot():
        for file in sorted(folder.iterdir()):
            for number, offset in find(file, [sample.needle for sample in samples]):
                sample = samples[number]
                if number not in live:
                    live[number] = catalog.holds(sample.original)
                if live[number] or (number, file) in found:
                    continue
                if file == bank.path and catalog.warmth([bank.slot_at(offset)]):
                    continue  # the memory of a document that remains
                found[number, file] = Residue(file.name, offset, sample.kind, sample.path)
    return list(found.values())


def find(file: Path, needles: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (number of the needle, offset) for all places where needles stand in a file."""
    overlap = max(map(len, needles), default=1) - 1
    with file.open("rb") as opened:
        start, tail = 0, b""
        while chunk := opened.read(_CHUNK):
            window = tail + chunk
            for number, needle in enumerate(needles):
                at = window.find(needle)
                while at >= 0:
                    if at + len(needle) > len(tail):  # else the last window had it
                        yield number, start - len(tail) + at
                    at = window.find(needle, at + 1)
            start += len(chunk)
            tail = window[-overlap:] if overlap else b""


def _encodings(text: str) -> tuple[bytes, bytes]:
    return text.encode(), text.encode("utf-16-le")


def _distinct(data: str | bytes, length: int) -> str | bytes | None:
    """The window of a text that is least likely to stand anywhere else, if one is unlikely."""
    windows = [data[at : at + length] for at in range(0, len(data), length)]
    best = max(windows, key=lambda window: len(set(window)), default=data[:0])
    return best if len(set(best)) >= 8 else None


def _words(references: Iterable[StoredReference]) -> dict[str, str]:
    """The longest words as the full text index spells them, with the document of each."""
    words = {}
    with sqlite3.connect(":memory:") as db:
        db.execute(f"CREATE VIRTUAL TABLE words USING fts5 (text, tokenize='{TOKENIZER}')")
        db.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (words, instance)")
        rows = [(reference.slot, reference.text) for reference in references]
        db.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", rows)
        paths = {reference.slot: reference.path for reference in references}
        for term, slot in db.execute("SELECT DISTINCT term, doc FROM terms"):
            if len(term) >= 8:
                words[term] = paths[slot]
    db.close()
    return {word: words[word] for word in sorted(words, key=len, reverse=True)[:_WORDS]}
