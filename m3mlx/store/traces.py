"""Prove that a forgotten document is gone, by a search in the bytes on disk.

Samples of every reference are taken before the erasing, and looked for after it in every byte of
every file. A sample that a remaining document holds too proves nothing; ``find`` leaves it out.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import AnyStr, NamedTuple

import numpy as np

from ..errors import StoreError
from . import pages
from .catalog import Catalog
from .index import quantize
from .migrations import TOKENIZER
from .records import Records
from .rows import StoredDocument, StoredReference

ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1", "cp1252")
_WINDOW = 32  # characters of a text, bytes of anything else
_WINDOWS = 3  # of each text and of each memory
_WORDS = 16  # the longest words of the full text
_CHUNK = 2**22  # bytes of a file that are searched at a time
_ANCHOR = 8  # bytes of a sample by which its places are found


@dataclass(frozen=True)
class Trace:
    """One sample.

    Attributes:
        path: the document it was taken from.
        kind: "name", "text", "word" (of the full text), "tokens", "vector", "memory", "history"
            (of a fact), or "ciphertext" of any of them.
        needle: the bytes to look for.
        original: the same as the catalog would hold it in another document.
    """

    path: str
    kind: str
    needle: bytes
    original: str | bytes


@dataclass(frozen=True)
class Remnant:
    """A sample that is still in a file of the store, at ``offset``."""

    file: str
    offset: int
    kind: str
    path: str


@dataclass(frozen=True)
class Verification:
    """Result of a search for samples.

    Attributes:
        remnants: what is still there; one place for each sample and file.
        files: name, bytes and SHA-256 of every file that was searched.
    """

    remnants: list[Remnant]
    files: list[tuple[str, int, str]]


class ForgetReport(NamedTuple):
    """Result of forgetting documents.

    Attributes:
        documents: that are gone.
        remnants: what was found of them all the same; None if no search was made.
        certificate: of that search, as JSON-able values that do not name the documents.
    """

    documents: list[StoredDocument]
    remnants: list[Remnant] | None
    certificate: dict | None


def sample(documents: Sequence[StoredDocument], catalog: Catalog, records: Records) -> list[Trace]:
    """Sample documents and all of their references, save damaged ones in quarantine."""
    traces = []
    for document in documents:
        name = document.path
        traces += [Trace(name, "name", needle, name) for needle in _encodings(name)]
    with catalog.snapshot():
        for document in documents:
            traces += _of_fact(document, catalog)
        hidden = set(catalog.quarantined_slots())
        slots = catalog.slots(document.id for document in documents)
        slots = [slot for slot in slots if slot not in hidden]
        files = {edition.id: records.file(edition.id) for edition in catalog.memories.editions()}
        warm = {id: catalog.memories.warmth(id, slots) for id in files}
        longest: dict[str, str] = {}
        for start in range(0, len(slots), 256):
            part = slots[start : start + 256]
            references = list(catalog.references.read(part, 0).values())
            for reference in references:
                traces += _of(reference)
                for stored in catalog.ciphertexts(reference.slot):
                    for window in _distinct(stored):
                        traces.append(Trace(reference.path, "ciphertext", window, window))
                for id, file in files.items():
                    if warm[id][reference.slot]:
                        for memory in _distinct(file.raw(reference.slot)):
                            traces.append(Trace(reference.path, "memory", memory, memory))
            longest = _longest({**longest, **_words(references)})
    traces += [Trace(path, "word", word.encode(), word) for word, path in longest.items()]
    return traces


def _of(reference: StoredReference) -> Iterator[Trace]:
    """Samples of what the catalog and the index hold of one reference."""
    path = reference.path
    for text in _distinct(reference.text):
        for needle in _encodings(text):
            yield Trace(path, "text", needle, text)
    for tokens in _distinct(np.array(reference.tokens, dtype="<u4").tobytes())[:1]:
        yield Trace(path, "tokens", tokens, tokens)
    vector = reference.vector[:12]
    for kept in (vector, quantize(reference.vector)[:48]):  # in the catalog, in the index
        yield Trace(path, "vector", kept.tobytes(), vector.tobytes())


def _of_fact(document: StoredDocument, catalog: Catalog) -> Iterator[Trace]:
    """Samples of what is kept of a document that is a fact, beside its reference."""
    name, stored = document.path, catalog.facts.stored(document.id)
    kind = "ciphertext" if catalog.cipher.encrypts else "history"
    for sample in _distinct((stored or "").encode()):
        yield Trace(name, kind, sample, sample)
    with suppress(StoreError):  # a damaged row says nothing
        by, history = catalog.facts.about(document.id) or ("", ())
        for text in (by, *(word for version in history for word in (version.text, version.by))):
            for window in _distinct(text):
                for needle in _encodings(window):
                    yield Trace(name, "history", needle, window)


def find(
    samples: Sequence[Trace], folder: Path, catalog: Catalog, records: Records
) -> Verification:
    """Look for samples in all files of a folder."""
    needles = _Needles([sample.needle for sample in samples])
    found: dict[tuple[int, Path], Remnant] = {}
    searched = []
    live: dict[int, bool] = {}  # by sample, asked only about those that are somewhere
    with catalog.snapshot():
        editions = {folder / edition.file: edition.id for edition in catalog.memories.editions()}
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            whole = hashlib.sha256()
            for number, offset in needles.within(_read(file, whole)):
                sample = samples[number]
                if number not in live:
                    live[number] = catalog.holds(sample.original)
                if live[number] or (number, file) in found:
                    continue
                if file in editions:
                    slot = records.file(editions[file]).slot_at(offset)
                    if catalog.memories.warmth(editions[file], [slot]).get(slot):
                        continue  # the memory of a document that remains
                found[number, file] = Remnant(file.name, offset, sample.kind, sample.path)
            searched.append((file.name, file.stat().st_size, whole.hexdigest()))
    return Verification(list(found.values()), searched)


def certificate(
    documents: Sequence[StoredDocument],
    samples: Sequence[Trace],
    verification: Verification,
    store: str,
) -> dict:
    """Certificate of what was erased and how that was verified, which names no document."""
    return {
        "certificate": "m3mlx forget",
        "version": 1,
        "store": store,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "erased": [
            {
                "path_sha256": hashlib.sha256(document.path.encode()).hexdigest(),
                "content_sha256": document.hash,
                "content_bytes": document.size,
                "references": document.references,
                "memories": document.warm,
            }
            for document in documents
        ],
        "samples": dict(Counter(sample.kind for sample in samples)),
        "encodings": ENCODINGS,
        "files": [
            {"name": name, "bytes": length, "sha256": sha256}
            for name, length, sha256 in verification.files
        ],
        "findings": [
            {"file": found.file, "offset": found.offset, "kind": found.kind}
            for found in verification.remnants
        ],
        "not_covered": "snapshots and free blocks of the file system, backups, swap space, and "
        "what a drive keeps of overwritten cells",
    }


def _read(file: Path, whole: hashlib._Hash) -> Iterator[bytes]:
    with pages.descriptor(file) as descriptor:
        at = 0
        while chunk := os.pread(descriptor, _CHUNK, at):
            whole.update(chunk)
            yield chunk
            at += len(chunk)


class _Needles:
    """Any number of byte strings, all looked for in one pass over a file."""

    def __init__(self, needles: Sequence[bytes]):
        self._needles = needles
        self._overlap = max(map(len, needles), default=1) - 1
        self._short = [number for number, needle in enumerate(needles) if len(needle) < _ANCHOR]
        self._anchored: dict[int, list[int]] = {}
        for number, needle in enumerate(needles):
            if len(needle) >= _ANCHOR:
                anchor = int.from_bytes(needle[:_ANCHOR], "little")
                self._anchored.setdefault(anchor, []).append(number)
        self._anchors = np.array(sorted(self._anchored), dtype=np.uint64)
        self._starts = np.zeros(2**24, dtype=bool)  # by the first three bytes
        self._starts[(self._anchors & np.uint64(2**24 - 1)).astype(np.int64)] = True

    def within(self, chunks: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        """Yield (number of the needle, offset) for all places in what the chunks make up."""
        start, tail = 0, b""
        for chunk in chunks:
            window = tail + chunk
            for number, at in self._places(window):
                if at + len(self._needles[number]) > len(tail):  # else the last window had it
                    yield number, start - len(tail) + at
            start += len(chunk)
            tail = window[-self._overlap :] if self._overlap else b""

    def _places(self, window: bytes) -> Iterator[tuple[int, int]]:
        for number in self._short:
            at = window.find(self._needles[number])
            while at >= 0:
                yield number, at
                at = window.find(self._needles[number], at + 1)
        data = np.frombuffer(window, dtype=np.uint8)
        if len(data) < _ANCHOR or not len(self._anchors) or not data.any():
            return
        codes = data[:-7].astype(np.uint32)
        codes |= data[1:-6].astype(np.uint32) << 8
        codes |= data[2:-5].astype(np.uint32) << 16
        candidates = np.flatnonzero(self._starts[codes])
        words = codes[candidates].astype(np.uint64)
        for byte in range(3, _ANCHOR):
            words |= data[candidates + byte].astype(np.uint64) << np.uint64(8 * byte)
        places = np.searchsorted(self._anchors, words)
        places[places == len(self._anchors)] = 0
        for at, word in zip(
            *(values[self._anchors[places] == words].tolist() for values in (candidates, words)),
            strict=True,
        ):
            for number in self._anchored[word]:
                if window.startswith(self._needles[number], at):
                    yield number, at


def _encodings(text: str) -> list[bytes]:
    """A text as programs write it to files, each form once."""
    forms: dict[bytes, None] = {}
    for encoding in ENCODINGS:
        form = text.encode(encoding, "ignore")
        if form.decode(encoding) == text:  # else it cannot say this text
            forms[form] = None
    return list(forms)


def _distinct(data: AnyStr) -> list[AnyStr]:
    """Return the windows that are least likely to stand anywhere else, the best first."""
    windows = {data[at : at + _WINDOW] for at in range(0, len(data), _WINDOW)}
    unlikely = [window for window in windows if len(set(window)) >= 8]
    return sorted(unlikely, key=lambda window: (-len(set(window)), window))[:_WINDOWS]


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
            if len(term) >= _ANCHOR:
                words[term] = paths[slot]
    db.close()
    return _longest(words)


def _longest(words: dict[str, str]) -> dict[str, str]:
    return {word: words[word] for word in sorted(words, key=len, reverse=True)[:_WORDS]}
