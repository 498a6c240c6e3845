"""What is stored: documents, references, their text, vectors and state. The one truth.

Whatever the catalog has committed exists; the other files of a store are addressed by it or
derived from it. All methods are called inside ``transaction`` or ``snapshot``, save ``scrub``.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from ..errors import StoreError
from .database import Connection

COMMON = 1000  # a word in more references than this tells little and costs much to rank
WORDS = 24  # of a query that take part in the full text search, the rarest first
NEW_STORE = {  # the settings that change, as they begin
    "next_slot": 0,  # of the next reference; slots are not used again
    "commit": 0,  # counts what changes the results of searches
    "scrub": False,  # whether removed text may still be in free pages or full text
    "seal": None,  # of the index file
}


@dataclass(frozen=True)
class NewReference:
    """One reference to be added.

    Attributes:
        document: id from ``begin``.
        ordinal: position in the document, from 0 without gaps.
        start, end: characters of the document.
        tokens: the decoder's token ids.
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


@dataclass(frozen=True)
class StoredReference:
    """One reference as the catalog has it, its checksum verified."""

    slot: int
    document: int
    path: str
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
        warm: how many of them have a memory.
        complete: whether all are committed; only then is the document found by searches.
        added: when its memorizing began, ISO 8601 in UTC.
        bytes: that its memories take in the record file.
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


class Catalog(Connection):
    """The catalog of one store."""

    def settings(self) -> dict:
        """All settings, as they were stored."""
        rows = self.db.execute("SELECT name, value FROM setting").fetchall()
        try:
            settings = {name: json.loads(value) for name, value in rows}
        except (TypeError, ValueError) as error:
            raise self.damaged(f"a setting cannot be read ({error})") from error
        if missing := NEW_STORE.keys() - settings:
            raise self.damaged(f"the setting {min(missing)} is missing")
        return settings

    def set(self, **settings: object) -> None:
        """Change settings."""
        for name, value in settings.items():
            self.db.execute(
                "UPDATE setting SET value = ? WHERE name = ?", [json.dumps(value), name]
            )

    def begin(self, path: str, hash: str, size: int, count: int) -> tuple[int, int]:
        """Find or make the document; return its id and how many references it has."""
        found = None
        for id, known, expected, complete in self.db.execute(
            "SELECT id, hash, count, complete FROM document WHERE path = ?", [path]
        ).fetchall():
            if (known, expected) == (hash, count):
                found = id
            elif not complete:
                self.remove([id])
        if found is None:
            added = datetime.now(UTC).isoformat(timespec="seconds")
            found = self.db.execute(
                "INSERT INTO document (path, hash, size, count, complete, added) "
                "VALUES (?, ?, ?, ?, 0, ?)",
                [path, hash, size, count, added],
            ).lastrowid
        return found, self._committed(found)

    def _committed(self, document: int) -> int:
        return self.db.execute(
            "SELECT count(*) FROM reference WHERE document = ?", [document]
        ).fetchone()[0]

    def insert(self, first: int, references: Sequence[NewReference]) -> None:
        """Add references with the slots from ``first`` on, and complete their documents."""
        state = {}  # document -> path, expected references, committed references
        for slot, new in enumerate(references, first):
            if new.document not in state:
                row = self.db.execute(
                    "SELECT path, count FROM document WHERE id = ? AND NOT complete",
                    [new.document],
                ).fetchone()
                if row is None:
                    raise StoreError(
                        f"{self.path}: document {new.document} is not being added. Begin it first."
                    )
                state[new.document] = [*row, self._committed(new.document)]
            path, count, committed = state[new.document]
            if new.ordinal != committed or committed >= count:
                raise StoreError(
                    f"{path}: reference {new.ordinal} was added where {committed} of {count} is "
                    f"next. Add a document's references in order, once."
                )
            state[new.document][2] += 1
            tokens = np.asarray(new.tokens, dtype="<u4").tobytes()
            vector = np.asarray(new.vector, dtype="<f4").tobytes()
            place = (new.ordinal, new.start, new.end, new.page, new.line, new.text)
            checksum = _checksum(slot, path, place, tokens, vector)
            self.db.execute(
                "INSERT INTO reference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [slot, new.document, *place, tokens, vector, checksum, new.record is not None],
            )
        for document, (path, count, committed) in state.items():
            if committed == count:
                self._complete(document, path)

    def _complete(self, document: int, path: str) -> None:
        older = self.db.execute(
            "SELECT id FROM document WHERE path = ? AND complete", [path]
        ).fetchall()
        self.remove([id for (id,) in older])
        self.db.execute("UPDATE document SET complete = 1 WHERE id = ?", [document])
        self._count_commit()

    def _count_commit(self) -> None:
        """Tell readers that searches may find something else than before."""
        self.db.execute(
            "UPDATE setting SET value = CAST(value AS INTEGER) + 1 WHERE name = 'commit'"
        )

    def remove(self, documents: Sequence[int]) -> None:
        """Remove documents; ``leftovers`` then lists the slots whose records remain."""
        if not documents:
            return
        ids = _listed(documents)
        self.db.execute(
            "INSERT INTO leftover SELECT slot FROM reference "
            "WHERE document IN (SELECT value FROM json_each(?))",
            [ids],
        )
        self.db.execute("DELETE FROM document WHERE id IN (SELECT value FROM json_each(?))", [ids])
        self.set(scrub=True)
        self._count_commit()

    def leftovers(self) -> list[int]:
        """Slots whose references are gone and whose records must still be erased."""
        return [slot for (slot,) in self.db.execute("SELECT slot FROM leftover ORDER BY slot")]

    def clear_leftovers(self) -> None:
        self.db.execute("DELETE FROM leftover")

    def mark(self, slots: Iterable[int], *, warm: bool) -> None:
        """Say whether slots have a memory."""
        self.db.execute(
            "UPDATE reference SET warm = ?1 WHERE warm != ?1 "
            "AND slot IN (SELECT value FROM json_each(?2))",
            [warm, _listed(slots)],
        )

    def warmth(self, slots: Iterable[int]) -> dict[int, bool]:
        """Whether each slot that exists has a memory."""
        rows = self.db.execute(
            "SELECT slot, warm FROM reference WHERE slot IN (SELECT value FROM json_each(?))",
            [_listed(slots)],
        )
        return {slot: bool(warm) for slot, warm in rows}

    def extent(self) -> int:
        """Number of slots that the record file must be long enough for."""
        (last,) = self.db.execute("SELECT max(slot) FROM reference WHERE warm = 1").fetchone()
        return 0 if last is None else last + 1

    def hashes(self) -> dict[str, str | None]:
        """Hash of each path's document, None where one is half added."""
        rows = self.db.execute("SELECT path, hash, complete FROM document ORDER BY complete DESC")
        return {path: hash if complete else None for path, hash, complete in rows}

    def visible(self) -> int:
        """Number of references that searches may find."""
        return self.db.execute(
            "SELECT count(*) FROM reference WHERE document IN "
            "(SELECT id FROM document WHERE complete)"
        ).fetchone()[0]

    def documents(self) -> list[StoredDocument]:
        """All documents by id, with ``bytes`` counted in records."""
        rows = self.db.execute(
            "SELECT d.id, d.path, d.hash, d.size, count(r.slot), coalesce(sum(r.warm), 0), "
            "d.complete, d.added FROM document d LEFT JOIN reference r ON r.document = d.id "
            "GROUP BY d.id ORDER BY d.id"
        )
        return [
            StoredDocument(*row[:6], complete=bool(row[6]), added=row[7], bytes=row[5])
            for row in rows
        ]

    def slots(self, documents: Iterable[int]) -> list[int]:
        """Slots of documents, in order."""
        rows = self.db.execute(
            "SELECT slot FROM reference WHERE document IN (SELECT value FROM json_each(?)) "
            "ORDER BY slot",
            [_listed(documents)],
        )
        return [slot for (slot,) in rows]

    def vectors(self, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots int64 ``(n,)`` and vectors float32 ``(n, dimensions)`` of complete documents."""
        rows = self.db.execute(
            "SELECT slot, vector FROM reference WHERE document IN "
            "(SELECT id FROM document WHERE complete) ORDER BY slot"
        ).fetchall()
        for slot, vector in rows:
            if not isinstance(vector, bytes) or len(vector) != 4 * dimensions:
                raise self.damaged(f"the vector of reference {slot} has another length")
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
        slots = np.array([slot for slot, _ in rows], dtype=np.int64)
        return slots, vectors.reshape(len(rows), dimensions)

    def references(self, slots: Collection[int]) -> dict[int, StoredReference]:
        """Read references. Raises StoreError that names the document of a damaged one."""
        rows = self.db.execute(
            'SELECT slot, document, path, ordinal, "start", "end", page, line, text, tokens, '
            "vector, checksum, warm FROM reference JOIN document ON document = id "
            "WHERE slot IN (SELECT value FROM json_each(?))",
            [_listed(slots)],
        ).fetchall()
        if len(rows) != len(set(slots)):
            raise self.damaged("its full text knows references that it does not have")
        found = {}
        for slot, document, path, *place, tokens, vector, checksum, warm in rows:
            try:
                whole = checksum == _checksum(slot, path, place, tokens, vector)
            except TypeError:  # a value that is not even of its column's type
                whole = False
            if not whole:
                raise StoreError(
                    f"{self.path}: a reference of {path} (document {document}) is damaged. "
                    f"Forget that document and memorize it again."
                )
            found[slot] = StoredReference(
                *(slot, document, path, *place[1:]),
                tokens=tuple(np.frombuffer(tokens, dtype="<u4").tolist()),
                vector=np.frombuffer(vector, dtype="<f4"),
                warm=bool(warm),
            )
        return found

    def matching(self, text: str, count: int) -> list[int]:
        """Slots of references that share words with a text, the best by BM25 first."""
        words = [f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", text.lower()))]
        frequency = {word: self._frequency(word) for word in words}
        known = sorted((word for word in words if frequency[word]), key=frequency.__getitem__)
        rare = [word for word in known if frequency[word] < COMMON]
        wanted = (rare or known)[:WORDS]
        if not wanted:
            return []
        rows = self.db.execute(
            "SELECT rowid FROM words WHERE words MATCH ? AND rowid NOT IN (SELECT slot "
            "FROM reference WHERE document IN (SELECT id FROM document WHERE NOT complete)) "
            "ORDER BY rank LIMIT ?",
            [" OR ".join(wanted), count],
        )
        return [slot for (slot,) in rows]

    def _frequency(self, word: str) -> int:
        return self.db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
            [word, COMMON],
        ).fetchone()[0]

    def holds(self, sample: str | bytes) -> bool:
        """Whether a name, text or word, or token or vector bytes, are in what the catalog holds."""
        if isinstance(sample, bytes):
            statement = "SELECT 1 FROM reference WHERE instr(tokens, ?1) OR instr(vector, ?1)"
        else:
            self.db.execute(
                "CREATE VIRTUAL TABLE IF NOT EXISTS temp.term USING fts5vocab (main, words, row)"
            )
            statement = (
                "SELECT 1 FROM document WHERE instr(path, ?1) UNION ALL "
                "SELECT 1 FROM reference WHERE instr(text, ?1) OR instr(lower(text), ?1) UNION ALL "
                "SELECT 1 FROM temp.term WHERE instr(term, ?1) UNION ALL "
                "SELECT 1 FROM setting WHERE instr(lower(value), ?1) UNION ALL "
                "SELECT 1 FROM sqlite_master WHERE instr(lower(sql), ?1)"
            )
        return self.db.execute(statement + " LIMIT 1", [sample]).fetchone() is not None

    def scrub(self) -> None:
        """Leave nothing of what was removed, if anything was, in free pages, full text or log.

        Call it outside of transactions. Raises StoreError if a reader kept it from finishing.
        """
        with self.snapshot():
            if not self.settings()["scrub"]:
                return
        with self.thread, self.translated():
            # deleting from full text only adds a note; words stay until the index is made again
            self.db.execute("INSERT INTO words (words) VALUES ('rebuild')")
            self.db.execute("VACUUM")
            (busy, _, _) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(
                f"{self.path}: it is being read, so removed text may remain in its log. "
                f"Close other programs that use the store, then try again."
            )
        with self.transaction():
            self.set(scrub=False)


def _listed(numbers: Iterable[int]) -> str:
    """Any number of integers as one SQL parameter, for ``json_each``."""
    return json.dumps([int(number) for number in numbers])


def _checksum(slot: int, path: str, place: Sequence, tokens: bytes, vector: bytes) -> int:
    """CRC-32 of all that a reference says about itself."""
    head = json.dumps([slot, path, *place]).encode()
    return zlib.crc32(vector, zlib.crc32(tokens, zlib.crc32(head)))
