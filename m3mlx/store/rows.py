"""Editions, documents and references, as the catalog takes and returns them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RECORD_FILE = re.compile(r"memories(-\d{1,20}){0,2}\.kv")  # the names of record files
EDITION = (  # the columns of an edition
    *("id", "fingerprint", "memory", "record_bytes", "file", "origin", "added", "overhead"),
    *("tie", "next_tie", "unbound"),
)
CONTENT = ("start", "end", "page", "line", "text", "tokens")  # of a reference in any form


@dataclass(frozen=True)
class Edition:
    """All memories of a store that were made under one fingerprint, in one record file.

    Attributes:
        id: from 1, in the order in which they were added; not used again.
        fingerprint: every condition under which its memories are made.
        memory: the memory configuration, as JSON-able values.
        record_bytes: length of one memory.
        file: name of its record file.
        origin: slot of the first record in that file.
        added: when, ISO 8601 in UTC.
        overhead: bytes by which a memory is longer in the file, where the store is encrypted.
        tie: random, in hexadecimal, and also in the record file, so that files of two moments or
            of two copies of a store never pass for one; "" in stores of older releases.
        next_tie: the same, from before it is written into the file until the next commit.
        unbound: slots below may have records of older releases, which do not say of which text
            they are.
    """

    id: int
    fingerprint: dict[str, str]
    memory: dict
    record_bytes: int
    file: str
    origin: int
    added: str
    overhead: int = 0
    tie: str = ""
    next_tie: str = ""
    unbound: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what no store of ours has: a catalog may be from anybody."""
        numbers = (self.id, self.record_bytes, self.origin, self.overhead, self.unbound)
        good = all(type(n) is int and 0 <= n < 2**48 for n in numbers) and self.id < 2**31
        if not good or not RECORD_FILE.fullmatch(self.file) or len(self.tie + self.next_tie) > 64:
            raise ValueError("a value is none that is ever written")
        bytes.fromhex(self.tie + self.next_tie)

    @property
    def stored_bytes(self) -> int:
        """Length of one memory in the file."""
        return self.record_bytes + self.overhead

    @property
    def row(self) -> tuple:
        """Its columns in the catalog, as ``EDITION`` names them."""
        fingerprint, memory = (
            json.dumps(value, sort_keys=True) for value in (self.fingerprint, self.memory)
        )
        about = (self.record_bytes, self.file, self.origin, self.added, self.overhead)
        return (self.id, fingerprint, memory, *about, self.tie, self.next_tie, self.unbound)

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer of its references."""
        return self.fingerprint.get("tokenizer", "")


@dataclass(frozen=True)
class NewReference:
    """One reference to be added.

    Attributes:
        document: id from ``begin``.
        ordinal: position in the document, from 0 without gaps.
        start, end: characters of the document.
        tokens: ids by the tokenizer that ``begin`` was given.
        page, line: place for citing, counted from 1, where the format has one.
        vector: float32 ``(dimensions,)`` of length one.
        record: the memory, or None if it is written later (cold).
    """

    document: int
    ordinal: int
    start: int
    end: int
    text: str
    tokens: Sequence[int]
    page: int | None
    line: int | None
    vector: np.ndarray
    record: bytes | None

    @classmethod
    def of(
        cls, reference: Any, document: int, ordinal: int, vector: np.ndarray, record: bytes | None
    ) -> NewReference:
        """From what was cut out of a document, or read from a file of another store."""
        content = {name: getattr(reference, name) for name in CONTENT}
        return cls(document=document, ordinal=ordinal, vector=vector, record=record, **content)


@dataclass(frozen=True)
class StoredReference:
    """One reference as the catalog has it, its checksum verified.

    Attributes:
        ordinal: position in its document, from 0.
        tokens: ids by the tokenizer that cut its document, which ``tokenizer`` names.
        vector: float32 ``(dimensions,)`` of length one.
        warm: whether the edition asked for has its memory.
    """

    slot: int
    document: int
    path: str
    tokenizer: str
    ordinal: int
    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    tokens: tuple[int, ...]
    vector: np.ndarray
    warm: bool


@dataclass(frozen=True)
class StoredDocument:
    """One document.

    Attributes:
        size: of the file when it was memorized, in bytes.
        references: how many are committed.
        warm: how many of them have a memory in the edition asked for.
        complete: whether all are committed; only then is the document found by searches.
        added: when its memorizing began, ISO 8601 in UTC.
        bytes: that its memories take in the record file.
        collection: that it is in, "" for none.
    """

    id: int
    path: str
    hash: str
    size: int
    references: int
    warm: int
    complete: bool
    added: str
    bytes: int
    collection: str = ""
