"""The catalog's rows of references: text, token ids, vector and a checksum over them.

All methods are called inside ``transaction`` or ``snapshot``.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import StoreError
from .catalog_memories import IN, as_json
from .columns import ABOUT, Columns
from .database import Connection
from .rows import NewReference, StoredReference

_WRONG = -1  # which no checksum is
BLOCK = 1024  # references that are read at a time where all are needed
CHECKED = (  # all that the checksum of a reference is about, and the checksum
    'SELECT slot, path, ordinal, "start", "end", page, line, text, tokens, vector, checksum '
    "FROM reference JOIN document ON document = id WHERE "
)
VISIBLE = (
    "FROM reference WHERE slot NOT IN (SELECT slot FROM reference WHERE quarantined) AND "
    "document IN (SELECT id FROM document WHERE complete AND since > ?)"
)


class References:
    """The references of one open catalog."""

    def __init__(self, db: Connection, columns: Columns):
        self._db, self._columns = db, columns

    def put(self, slot: int, path: str, new: NewReference) -> bytes:
        """Add a reference to a document, whose path is given as it is stored; return its digest."""
        owner = (new.document, new.ordinal)
        place = (new.start, new.end, new.page, new.line)
        text = self._columns.cipher.encrypt(new.text, "text", *owner, *place)
        tokens = np.asarray(new.tokens, dtype="<u4").tobytes()
        tokens = self._columns.cipher.encrypt(tokens, "tokens", *owner)
        vector = np.asarray(new.vector, dtype="<f4").tobytes()
        vector = self._columns.cipher.encrypt(vector, "vector", *owner)
        row = (new.ordinal, *place, text, tokens, vector)
        self._db.execute(
            "INSERT INTO reference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            [slot, new.document, *row, checksum_of(slot, path, row)],
        )
        return _digest(text.encode(), tokens)

    def read(self, slots: Collection[int], edition: int) -> dict[int, StoredReference]:
        """Read references. Raises StoreError that names the document of a damaged one."""
        rows = self._db.execute(
            f'SELECT slot, {ABOUT}, ordinal, "start", "end", page, line, '
            "text, tokens, vector, checksum, EXISTS (SELECT 1 FROM memory m WHERE m.edition = ? "
            "AND m.slot = reference.slot) FROM reference JOIN document ON document = id "
            f"WHERE slot {IN}",
            [edition, as_json(slots)],
        ).fetchall()
        if len(rows) != len(set(slots)):
            raise self._db.damaged("its full text knows references that it does not have")
        found, documents = {}, {row[1]: row[1:8] for row in rows}
        about = {document: self._columns.about(*columns) for document, columns in documents.items()}
        for slot, document, stored, *columns, checksum, warm in rows:
            row = columns[5:]
            try:
                whole = checksum == checksum_of(slot, stored, row)
            except TypeError:  # a value that is not even of its column's type
                whole = False
            path, *_, tokenizer = about[document]
            if not whole:
                raise StoreError(
                    f"{self._db.path}: a reference of {path} (document {document}) is damaged. "
                    f"Forget that document and memorize it again."
                )
            *place, text, tokens, vector = row
            owner = document, place[0]
            text = self._columns.decrypt(text, "text", document, *place)
            tokens = np.frombuffer(self._columns.decrypt(tokens, "tokens", *owner), dtype="<u4")
            vector = np.frombuffer(self._columns.decrypt(vector, "vector", *owner), dtype="<f4")
            values: list[Any] = [slot, document, path, tokenizer, *place]
            values += [text, tuple(tokens.tolist()), vector, bool(warm)]
            found[slot] = StoredReference(*values)
        return found

    def digests(self, slots: Iterable[int], warm_in: int | None = None) -> dict[int, bytes]:
        """What binds a memory to its reference: a digest of text and tokens, as they are stored.

        Args:
            warm_in: leave out references that have no memory in this edition.
        """
        memory = "" if warm_in is None else "JOIN memory USING (slot)"
        rows = self._db.execute(
            "SELECT slot, CAST(text AS BLOB), CAST(tokens AS BLOB) "
            f"FROM reference {memory} WHERE slot {IN}" + (" AND edition = ?" if memory else ""),
            [as_json(slots)] + ([warm_in] if memory else []),
        )
        # of a damaged row a value may be gone
        return {slot: _digest(text or b"", tokens or b"") for slot, text, tokens in rows}

    def vectors(self, slots: Iterable[int], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """Return those of some slots that exist, int64 ``(n,)``, and their vectors, float32."""
        rows = self._db.execute(
            f"SELECT slot, document, ordinal, vector FROM reference WHERE slot {IN} ORDER BY slot",
            [as_json(slots)],
        )
        found, vectors = [], []
        for slot, document, ordinal, stored in rows:
            vector = self._columns.decrypt(stored, "vector", document, ordinal)
            if not isinstance(vector, bytes) or len(vector) != 4 * dimensions:
                raise self._db.damaged(f"the vector of reference {slot} has another length")
            found.append(slot)
            vectors.append(vector)
        joined = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(found), dimensions)
        return np.array(found, dtype=np.int64), joined

    def texts(self) -> Iterator[tuple[int, str]]:
        """Slots and texts of all references that searches may find."""
        columns = 'slot, document, text, ordinal, "start", "end", page, line'
        for slot, document, text, *place in self._db.execute(f"SELECT {columns} {VISIBLE}", [-1]):
            yield slot, self._columns.decrypt(text, "text", document, *place)


def _digest(text: bytes, tokens: bytes) -> bytes:
    return hashlib.sha256(tokens + text).digest()


def blocks(slots: Sequence[int] | np.ndarray) -> Iterator[list[int]]:
    """Cut a list of slots, of any length, into parts that are read at a time."""
    for start in range(0, len(slots), BLOCK):
        yield list(slots[start : start + BLOCK])


def checksum_of(slot: int, path: str, row: Sequence) -> int:
    """CRC-32 of all that a reference says about itself."""
    *place, tokens, vector = row
    head = json.dumps([slot, path, *place]).encode()
    return zlib.crc32(vector, zlib.crc32(tokens, zlib.crc32(head)))


def moved_checksum(row: Sequence, slot: int, path: str) -> int:
    """Checksum of a row of ``CHECKED`` under another slot or path; if wrong, it stays wrong."""
    before, old, *rest, checksum = row
    try:
        return checksum ^ checksum_of(before, old, rest) ^ checksum_of(slot, path, rest)
    except TypeError:  # a value that is not even of its column's type
        return _WRONG
