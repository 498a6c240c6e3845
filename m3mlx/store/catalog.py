"""What is stored: documents, references, their text, vectors and state. The one truth.

Whatever the catalog has committed exists; the other files of a store are addressed by it or
derived from it. All methods are called inside ``transaction`` or ``snapshot``, save ``scrub``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from .. import files
from ..errors import StoreError
from .memories import Memories, listed
from .rows import NewReference, StoredDocument, StoredReference

NEW_STORE = {  # the settings that change, as they begin
    "next_slot": 0,  # of the next reference; slots are not used again
    "commit": 0,  # counts what changes the results of searches
    "scrub": False,  # whether removed text may still be in free pages or full text
    "seal": None,  # of the index file
    "max_bytes": None,  # of all files together; beyond, memories are dropped
}
BLOCK = 1024  # references that are read at a time where all are needed
_CHECKED = (  # all that the checksum of a reference is about, and the checksum
    'SELECT slot, path, ordinal, "start", "end", page, line, text, tokens, vector, checksum '
    "FROM reference JOIN document ON document = id WHERE "
)
_COMPLETE = "document IN (SELECT id FROM document WHERE complete)"


class Catalog(Memories):
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
        for name in ("next_slot", "commit"):
            if type(settings[name]) is not int:
                raise self.damaged(f"the setting {name} is {settings[name]!r:.40}, no number")
        return settings

    def set(self, **settings: object) -> None:
        """Change settings."""
        for name, value in settings.items():
            self.db.execute(
                "UPDATE setting SET value = ? WHERE name = ?", [json.dumps(value), name]
            )

    def begin(
        self,
        path: str,
        hash: str,
        size: int,
        count: int,
        tokenizer: str,
        added: str | None = None,
    ) -> tuple[int, int]:
        """Find or make the document; return its id and how many references it has."""
        if any("\ud800" <= sign <= "\udfff" for sign in path):
            raise StoreError(
                f"{path!a} cannot be stored, it is not valid Unicode. Rename the file."
            )
        path, hash = self.stored_name(path), self.stored_name(hash)
        found = None
        for id, known, expected, cut, complete in self.db.execute(
            "SELECT id, hash, count, tokenizer, complete FROM document WHERE path = ?", [path]
        ).fetchall():
            # what another tokenizer began to cut would go on at another place
            if (known, expected) == (hash, count) and (complete or cut == tokenizer):
                found = id
            elif not complete:
                self.remove([id])
        if found is None:
            added = added or datetime.now(UTC).isoformat(timespec="seconds")
            found = self.db.execute(
                "INSERT INTO document (path, hash, size, count, complete, added, tokenizer) "
                "VALUES (?, ?, ?, ?, 0, ?, ?)",
                [path, hash, size, count, added, tokenizer],
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
                    f"{self.name(path)}: reference {new.ordinal} was added where {committed} of "
                    f"{count} is next. Add a document's references in order, once."
                )
            state[new.document][2] += 1
            tokens = np.asarray(new.tokens, dtype="<u4").tobytes()
            vector = np.asarray(new.vector, dtype="<f4").tobytes()
            text, tokens, vector = self.sealed(
                (new.document, new.ordinal), new.text, tokens, vector
            )
            place = (new.ordinal, new.start, new.end, new.page, new.line, text)
            checksum = _checksum(slot, path, place, tokens, vector)
            self.db.execute(
                "INSERT INTO reference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                [slot, new.document, *place, tokens, vector, checksum],
            )
        for document, (path, count, committed) in state.items():
            if committed == count:
                self._complete(document, path)

    def _complete(self, document: int, path: str) -> None:
        older = self.db.execute(
            "SELECT id FROM document WHERE path = ? AND complete", [path]
        ).fetchall()
        for (id,) in older:
            self.db.execute(
                "INSERT OR IGNORE INTO collection SELECT ?, name FROM collection "
                "WHERE document = ?",
                [document, id],
            )
        self.remove([id for (id,) in older])
        self.count_commit()
        self.db.execute(
            "UPDATE document SET complete = 1, since = (SELECT CAST(value AS INTEGER) "
            "FROM setting WHERE name = 'commit') WHERE id = ?",
            [document],
        )

    def rename(self, document: int, path: str) -> None:
        """Give a document another path. Its references' checksums, which cover it, follow."""
        new = self.stored_name(path)
        if self.db.execute("SELECT 1 FROM document WHERE path = ?", [new]).fetchone():
            raise StoreError(f"{self.path}: {path} is the path of another document.")
        rows = self.db.execute(_CHECKED + "document = ?", [document]).fetchall()
        if not rows:
            raise StoreError(f"{self.path}: there is no document {document} to be renamed.")
        self.db.execute("UPDATE document SET path = ? WHERE id = ?", [new, document])
        self.db.conn.executemany(
            "UPDATE reference SET checksum = ? WHERE slot = ?",
            [
                # a checksum that was wrong before stays wrong
                (
                    checksum
                    ^ _checksum(slot, old, place, tokens, vector)
                    ^ _checksum(slot, new, place, tokens, vector),
                    slot,
                )
                for slot, old, *place, tokens, vector, checksum in rows
            ],
        )
        self.set(scrub=True)
        self.count_commit()

    def count_commit(self) -> None:
        """Tell readers that searches may find something else than before."""
        self.db.execute(
            "UPDATE setting SET value = CAST(value AS INTEGER) + 1 WHERE name = 'commit'"
        )

    def remove(self, documents: Sequence[int]) -> None:
        """Remove documents; ``leftovers`` then lists the slots whose records remain."""
        if not documents:
            return
        ids = listed(documents)
        self.db.execute(
            "INSERT OR IGNORE INTO leftover SELECT e.id, slot FROM edition e, reference "
            "WHERE document IN (SELECT value FROM json_each(?))",
            [ids],
        )
        self.db.execute(
            "DELETE FROM memory WHERE edition IN (SELECT id FROM edition) AND slot IN (SELECT slot "
            "FROM reference WHERE document IN (SELECT value FROM json_each(?)))",
            [ids],
        )
        self.db.execute("DELETE FROM document WHERE id IN (SELECT value FROM json_each(?))", [ids])
        self.set(scrub=True)
        self.count_commit()

    def hashes(self) -> dict[str, str | None]:
        """Hash of each path's document, None where one is half added."""
        rows = self.db.execute("SELECT path, hash, complete FROM document ORDER BY complete DESC")
        return {
            self.name(path): self.name(hash) if complete else None for path, hash, complete in rows
        }

    def counts(self) -> tuple[int, int]:
        """Numbers of documents and of references."""
        return self.db.execute(
            "SELECT (SELECT count(*) FROM document), (SELECT count(*) FROM reference)"
        ).fetchone()

    def visible(self, since: int = -1) -> int:
        """Number of references that searches may find, of documents complete after a commit."""
        return self.db.execute(
            "SELECT count(*) FROM reference WHERE slot NOT IN (SELECT slot FROM reference "
            "WHERE quarantined) AND document IN "
            "(SELECT id FROM document WHERE complete AND since > ?)",
            [since],
        ).fetchone()[0]

    def documents(self, edition: int) -> list[StoredDocument]:
        """All documents by id, with ``bytes`` counted in records."""
        rows = self.db.execute(
            "SELECT d.id, d.path, d.hash, d.size, count(r.slot), count(m.slot), "
            "d.complete, d.added, c.name FROM document d "
            "LEFT JOIN collection c ON c.document = d.id "
            "LEFT JOIN reference r ON r.document = d.id "
            "LEFT JOIN memory m ON m.edition = ? AND m.slot = r.slot GROUP BY d.id ORDER BY d.id",
            [edition],
        )
        return [
            StoredDocument(
                *(id, self.name(path), self.name(hash), *counts),
                complete=bool(complete),
                added=added,
                bytes=counts[-1],
                collection=self.name(collection) if collection else "",
            )
            for id, path, hash, *counts, complete, added, collection in rows
        ]

    def slots(self, documents: Iterable[int]) -> list[int]:
        """Slots of documents, in order."""
        rows = self.db.execute(
            "SELECT slot FROM reference WHERE document IN (SELECT value FROM json_each(?)) "
            "ORDER BY slot",
            [listed(documents)],
        )
        return [slot for (slot,) in rows]

    def first_slot(self) -> int:
        """The lowest slot of a reference that there is or will be."""
        (first,) = self.db.execute("SELECT min(slot) FROM reference").fetchone()
        return self.settings()["next_slot"] if first is None else first

    def following(self, slot: int, count: int = BLOCK) -> list[int]:
        """The next slots behind one, in order, of all references."""
        rows = self.db.execute(
            "SELECT slot FROM reference WHERE slot > ? ORDER BY slot LIMIT ?", [slot, count]
        )
        return [slot for (slot,) in rows]

    def among(self, slots: Iterable[int]) -> set[int]:
        """Those of some slots that searches may find."""
        rows = self.db.execute(
            f"SELECT slot FROM reference WHERE slot IN (SELECT value FROM json_each(?)) "
            f"AND NOT quarantined AND {_COMPLETE}",
            [listed(slots)],
        )
        return {slot for (slot,) in rows}

    def visible_slots(self, since: int = -1) -> np.ndarray:
        """Slots that searches may find, int64, in order."""
        rows = self.db.execute(
            "SELECT slot FROM reference WHERE slot NOT IN (SELECT slot FROM reference "
            "WHERE quarantined) AND document IN "
            "(SELECT id FROM document WHERE complete AND since > ?) ORDER BY slot",
            [since],
        )
        return np.fromiter((slot for (slot,) in rows), dtype=np.int64)

    def vectors(self, slots: Iterable[int], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """Of some slots those that exist, int64 ``(n,)``, and their vectors, float32."""
        rows = self.db.execute(
            "SELECT slot, document, ordinal, vector FROM reference "
            "WHERE slot IN (SELECT value FROM json_each(?)) ORDER BY slot",
            [listed(slots)],
        ).fetchall()
        rows = [
            (slot, self.opened_vector((document, ordinal), vector))
            for slot, document, ordinal, vector in rows
        ]
        for slot, vector in rows:
            if not isinstance(vector, bytes) or len(vector) != 4 * dimensions:
                raise self.damaged(f"the vector of reference {slot} has another length")
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
        found = np.array([slot for slot, _ in rows], dtype=np.int64)
        return found, vectors.reshape(len(rows), dimensions)

    def quarantine(self, slots: Iterable[int], quarantined: bool) -> None:
        """Hide references from searches, or show them again."""
        self.db.execute(
            "UPDATE reference SET quarantined = ? WHERE slot IN (SELECT value FROM json_each(?))",
            [quarantined, listed(slots)],
        )
        self.set(seal=None)  # an index of other references
        self.count_commit()

    def quarantined(self) -> list[int]:
        """Slots that are hidden from searches, in order."""
        rows = self.db.execute("SELECT slot FROM reference WHERE quarantined ORDER BY slot")
        return [slot for (slot,) in rows]

    def hidden(self) -> dict[str, int]:
        """Paths of documents with references in quarantine, and how many those are."""
        rows = self.db.execute(
            "SELECT path, count(*) FROM document d JOIN reference ON document = d.id "
            "WHERE quarantined GROUP BY path"
        ).fetchall()
        return {self.name(path): count for path, count in rows}

    def references(self, slots: Collection[int], edition: int) -> dict[int, StoredReference]:
        """Read references. Raises StoreError that names the document of a damaged one."""
        rows = self.db.execute(
            'SELECT slot, document, path, tokenizer, ordinal, "start", "end", page, line, '
            "text, tokens, vector, checksum, EXISTS (SELECT 1 FROM memory m WHERE m.edition = ? "
            "AND m.slot = reference.slot) FROM reference JOIN document ON document = id "
            "WHERE slot IN (SELECT value FROM json_each(?))",
            [edition, listed(slots)],
        ).fetchall()
        if len(rows) != len(set(slots)):
            raise self.damaged("its full text knows references that it does not have")
        found = {}
        for slot, document, path, tokenizer, *place, tokens, vector, checksum, warm in rows:
            try:
                whole = checksum == _checksum(slot, path, place, tokens, vector)
            except TypeError:  # a value that is not even of its column's type
                whole = False
            path = self.name(path)
            if not whole:
                raise StoreError(
                    f"{self.path}: a reference of {path} (document {document}) is damaged. "
                    f"Forget that document and memorize it again."
                )
            place[-1], tokens, vector = self.opened((document, place[0]), place[-1], tokens, vector)
            found[slot] = StoredReference(
                *(slot, document, path, tokenizer, *place),
                tokens=tuple(np.frombuffer(tokens, dtype="<u4").tolist()),
                vector=np.frombuffer(vector, dtype="<f4"),
                warm=bool(warm),
            )
        return found

    def renumber(self, moved: Mapping[int, int], origin: int) -> None:
        """Give references other slots, and editions the record files that start at ``origin``.

        Args:
            moved: new slots by old ones, of all references; the new ones lie behind the old.
        """
        self.db.execute("CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new, checksum)")
        old = list(moved)
        for start in range(0, len(old), BLOCK):
            rows = self.db.execute(
                _CHECKED + "slot IN (SELECT value FROM json_each(?))",
                [listed(old[start : start + BLOCK])],
            ).fetchall()
            self.db.conn.executemany(
                "INSERT INTO temp.moved VALUES (?, ?, ?)",
                [
                    # a checksum that was wrong before stays wrong
                    (
                        slot,
                        moved[slot],
                        checksum
                        ^ _checksum(slot, path, place, tokens, vector)
                        ^ _checksum(moved[slot], path, place, tokens, vector),
                    )
                    for slot, path, *place, tokens, vector, checksum in rows
                ],
            )
        for statement in (
            "DELETE FROM memory WHERE slot NOT IN (SELECT old FROM temp.moved)",
            "UPDATE memory SET slot = (SELECT new FROM temp.moved WHERE old = slot)",
            "UPDATE reference SET (slot, checksum) = "
            "(SELECT new, checksum FROM temp.moved WHERE old = slot)",
            "DROP TABLE temp.moved",
        ):
            self.db.execute(statement)
        if not self.cipher:
            self.db.execute("INSERT INTO words (words) VALUES ('rebuild')")
        self.db.execute(
            "UPDATE edition SET origin = ?1, file = 'memories-' || id || '-' || ?1 || '.kv'",
            [origin],
        )
        self.set(next_slot=origin + len(moved), seal=None, scrub=True)
        self.count_commit()

    def holds(self, sample: str | bytes) -> bool:
        """Whether a name, text or word, or token or vector bytes, are in what the catalog holds."""
        if self.cipher:
            return False  # nothing as it is
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
                "SELECT 1 FROM edition WHERE instr(lower(fingerprint || memory), ?1) UNION ALL "
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
            if not self.cipher:
                self.db.execute("INSERT INTO words (words) VALUES ('rebuild')")
            self.db.execute("VACUUM")
            files.step("vacuumed")
            (busy, _, _) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(
                f"{self.path}: it is being read, so removed text may remain in its log. "
                f"Close other programs that use the store, then try again."
            )
        with self.transaction():
            self.set(scrub=False)


def _checksum(slot: int, path: str, place: Sequence, tokens: bytes, vector: bytes) -> int:
    """CRC-32 of all that a reference says about itself."""
    head = json.dumps([slot, path, *place]).encode()
    return zlib.crc32(vector, zlib.crc32(tokens, zlib.crc32(head)))
