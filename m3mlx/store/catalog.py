"""The catalog: documents, references, their text, vectors and state. The one truth.

Whatever the catalog has committed exists; the other files of a store are addressed by it or
derived from it. All methods are called inside ``transaction`` or ``snapshot``, save ``purge``.

In an encrypted store paths, content hashes, texts, token ids and vectors are encrypted. Full text
on the disk would list the words of all documents, so such a store has none (see ``words``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from .. import files
from ..errors import StoreError
from .catalog_memories import IN, INSERT_EDITION, Memories, as_json
from .catalog_references import (
    BLOCK,
    CHECKED,
    VISIBLE,
    References,
    blocks,
    moved_checksum,
)
from .cipher import Cipher, Passphrase, Plain, unlock
from .columns import ABOUT, Columns
from .database import Connection, new_database
from .facts import Facts
from .filter import Filter
from .full_text import FullText
from .root import SMALL, Root
from .rows import Edition, NewReference, StoredDocument
from .sealing import seal_all

NEW_STORE = {  # the settings that change, as they begin
    "next_slot": 0,  # of the next reference; slots are not used again
    "commit": 0,  # counts what changes the results of searches
    "scrub": False,  # whether removed text may still be in free pages or full text
    "seal": None,  # of the index file
    "max_bytes": None,  # of all files together; beyond, memories are dropped
    "root": None,  # of an encrypted catalog
}
MOST_VECTORS = (  # have so many bytes
    "SELECT length(vector) FROM (SELECT vector FROM reference LIMIT 100) "
    "GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
)
MOST_SLOTS = 2**40  # or commits
_LONGEST_COLLECTION = 100  # characters


class Catalog:
    """The catalog of one store.

    Attributes:
        db: the database.
        memories: its tables of editions and memories.
        references, full_text: its tables of references, and of their words.
        facts: its table of those documents that are facts.
        columns: what is encrypted in an encrypted catalog.
        root: of an encrypted catalog that is unlocked.
        outdated: whether it is of an older version on the disk than in memory.
    """

    root: Root | None = None

    @staticmethod
    def create(
        path: Path, settings: Mapping[str, object], editions: Iterable[Edition] = ()
    ) -> None:
        """Make a catalog with these settings: complete under its name, or not at all.

        With the setting ``cipher`` there is no full text.
        """
        with new_database(path) as db:
            for name, value in settings.items():
                db.execute("INSERT INTO setting VALUES (?, ?)", [name, json.dumps(value)])
            for edition in editions:
                db.execute(INSERT_EDITION, edition.row)
            if settings.get("cipher"):
                for trigger in ("added", "removed", "pieces_removed"):
                    db.execute(f"DROP TRIGGER reference_{trigger}")
                for table in ("words", "piece"):
                    db.execute(f"DROP TABLE {table}")

    def __init__(self, path: Path, *, write: bool = False, attached: bool = False):
        """Open a catalog, as ``Connection`` does.

        Raises StoreError if it is damaged, foreign or of another version.
        """
        self.path = path
        self.db, self._writes = Connection(path, write=write, attached=attached), write
        self.outdated = self.db.outdated
        self.memories, self.columns = Memories(self.db), Columns(self.db)
        self.references = References(self.db, self.columns)
        self.facts = Facts(self.db, self.columns, self.references)
        self.full_text = FullText(self.db, self.columns)
        self.snapshot: Callable[[], AbstractContextManager] = self.db.snapshot
        self.transaction: Callable[[], AbstractContextManager] = self.db.transaction
        self.damaged, self.close = self.db.damaged, self.db.close

    @property
    def cipher(self) -> Cipher | Plain:
        """Encrypts and decrypts columns; until the catalog is unlocked, it does not."""
        return self.columns.cipher

    # settings

    def identity(self, settings: Mapping) -> tuple[str, int, bytes]:
        """Return the name of the encoder, the length of its vectors, and the store's id.

        Raises:
            StoreError: one of them is missing or damaged.
        """
        try:
            found = settings["encoder"], int(settings["dimensions"]), bytes.fromhex(settings["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged(f"a setting is wrong ({error})") from error
        return found

    def settings(self) -> dict:
        """All settings, as they were stored."""
        settings = self._settings()
        if missing := NEW_STORE.keys() - settings:
            raise self.damaged(f"the setting {min(missing)} is missing")
        for name in ("next_slot", "commit"):
            if type(settings[name]) is not int or not 0 <= settings[name] < MOST_SLOTS:
                raise self.damaged(f"the setting {name} is {settings[name]!r:.40}, no such number")
        if settings["max_bytes"] is not None and type(settings["max_bytes"]) is not int:
            raise self.damaged(f"the setting max_bytes is {settings['max_bytes']!r:.40}, no number")
        return settings

    def _settings(self) -> dict:
        rows = self.db.execute("SELECT name, value FROM setting").fetchall()
        try:
            return {name: json.loads(value) for name, value in rows}
        except (TypeError, ValueError) as error:
            raise self.damaged(f"a setting cannot be read ({error})") from error

    def set(self, **settings: object) -> None:
        """Change settings."""
        for name, value in settings.items():
            self.db.execute(
                "UPDATE setting SET value = ? WHERE name = ?", [json.dumps(value), name]
            )

    def count_commit(self) -> None:
        """Tell readers that searches may find something else than before."""
        self.db.execute(
            "UPDATE setting SET value = CAST(value AS INTEGER) + 1 WHERE name = 'commit'"
        )

    # what is encrypted

    def unlock(self, passphrase: Passphrase | None) -> None:
        """Take the keys, if the store is encrypted.

        Raises:
            LockedError: the passphrase is missing or wrong.
            StoreError: the setting that has the wrapped key is damaged.
        """
        with self.snapshot():
            settings = self._settings()
            encrypted = self.db.value("SELECT 1 FROM edition WHERE overhead")
        if locked := settings.get("cipher"):
            store = str(settings.get("id"))
            cipher, sealed = unlock(self.path.parent, store, locked, passphrase)
            self.columns.cipher, self.root = cipher, Root(self.db, cipher)
            if sealed and (self._writes or self.outdated):
                with self.db.lock, ExitStack() as stack:
                    if not self.db.conn.in_transaction:
                        stack.enter_context(self.transaction())
                    seal_all(self.db, self.columns)
                    self.set(cipher=sealed)
                    self.root.reset()
            if self._writes:
                self.root.follow()
        elif encrypted:
            raise self.damaged("it is encrypted, and its key is gone")

    def prove_settings(self) -> None:
        """Raise StoreError if settings or editions of an encrypted store were changed."""
        with self.snapshot():
            if self.root and self.root.changed(SMALL):
                raise self.damaged("its settings are not those that were written with its key")

    # adding and changing

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
        named = path, hash
        path, hash = self.cipher.encrypt_name(path), self.cipher.encrypt_name(hash)
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
            (found,) = self.db.column(
                "INSERT INTO document (path, hash, size, count, complete, added, tokenizer) "
                "VALUES (?, ?, ?, ?, 0, ?, ?) RETURNING id",
                [path, hash, size, count, added, tokenizer],
            )
            if self.cipher.encrypts:
                self.columns.put(found, *named, size, added, tokenizer)
        return found, self._committed(found)

    def _committed(self, document: int) -> int:
        return self.db.value("SELECT count(*) FROM reference WHERE document = ?", [document])

    def insert(self, first: int, references: Sequence[NewReference]) -> dict[int, bytes]:
        """Add references with the slots from ``first`` on, and complete their documents.

        Returns:
            By slot what binds a memory to its reference, see ``References.digests``.
        """
        digests = {}
        state: dict[int, list] = {}  # document -> path, expected references, committed references
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
                    f"{self.columns.name(path)}: reference {new.ordinal} was added where "
                    f"{committed} of {count} is next. Add a document's references in order, once."
                )
            state[new.document][2] += 1
            digests[slot] = self.references.put(slot, path, new)
            self.full_text.add(slot, new.text)
        for document, (path, count, committed) in state.items():
            if committed == count:
                self._complete(document, path)
        return digests

    def _complete(self, document: int, path: str) -> None:
        older = self.db.column("SELECT id FROM document WHERE path = ? AND complete", [path])
        for id in older:
            name = self.db.value("SELECT name FROM collection WHERE document = ?", [id])
            there = self.db.value("SELECT 1 FROM collection WHERE document = ?", [document])
            if name and not there:
                name = self.columns.collection(id, name)
                name = self.cipher.encrypt(name, "collection", document)
                self.db.execute("INSERT INTO collection VALUES (?, ?)", [document, name])
        self.remove(older)
        self.count_commit()
        self.db.execute(
            "UPDATE document SET complete = 1, since = (SELECT CAST(value AS INTEGER) "
            "FROM setting WHERE name = 'commit') WHERE id = ?",
            [document],
        )

    def rename(self, document: int, path: str) -> None:
        """Give a document another path. Its references' checksums, which cover it, follow."""
        new = self.cipher.encrypt_name(path)
        if self.db.value("SELECT 1 FROM document WHERE path = ?", [new]):
            raise StoreError(f"{self.path}: {path} is the path of another document.")
        rows = self.db.execute(CHECKED + "document = ?", [document]).fetchall()
        if not rows:
            raise StoreError(f"{self.path}: there is no document {document} to be renamed.")
        self.columns.describe(document, path, self.columns.about_of(document)[1])
        self.db.conn.executemany(
            "UPDATE reference SET checksum = ? WHERE slot = ?",
            [(moved_checksum(row, row[0], new), row[0]) for row in rows],
        )
        self.set(scrub=True)
        self.count_commit()

    def collect(self, documents: Iterable[int], collection: str) -> None:
        """Put documents into a collection, out of any other; "" for none."""
        if len(collection) > _LONGEST_COLLECTION or not collection.isprintable():
            raise StoreError(
                f"{collection[:40]!r} cannot name a collection: use up to {_LONGEST_COLLECTION} "
                f"printable signs."
            )
        ids = as_json(documents)
        self.db.execute(f"DELETE FROM collection WHERE document {IN}", [ids])
        if collection:
            there = f"SELECT id FROM document WHERE id {IN}"
            self.db.conn.executemany(
                "INSERT INTO collection VALUES (?, ?)",
                [
                    (id, self.cipher.encrypt(collection, "collection", id))
                    for id in self.db.column(there, [ids])
                ],
            )
        self.count_commit()

    def remove(self, documents: Sequence[int]) -> None:
        """Remove documents; ``leftovers`` then lists the slots whose records remain."""
        if not documents:
            return
        ids = [as_json(documents)]
        self.db.execute(
            "INSERT OR IGNORE INTO leftover SELECT e.id, slot FROM edition e, reference "
            f"WHERE document {IN}",
            ids,
        )
        self.db.execute(
            "DELETE FROM memory WHERE edition IN (SELECT id FROM edition) AND slot IN (SELECT slot "
            f"FROM reference WHERE document {IN})",
            ids,
        )
        self.db.execute(f"DELETE FROM document WHERE id {IN}", ids)
        self.set(scrub=True)
        self.count_commit()

    def quarantine(self, slots: Iterable[int], quarantined: bool) -> None:
        """Hide references from searches, or show them again."""
        self.db.execute(
            f"UPDATE reference SET quarantined = ? WHERE slot {IN}", [quarantined, as_json(slots)]
        )
        self.set(seal=None)  # an index of other references
        self.count_commit()

    def renumber(self, moved: Mapping[int, int], origin: int, editions: list[Edition]) -> None:
        """Give references other slots, and editions other record files, which start there.

        Args:
            moved: new slots by old ones, of all references; the new ones lie behind the old.
            origin: the first new slot.
            editions: as they are then.
        """
        self.db.execute("CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new, checksum)")
        for part in blocks(list(moved)):
            rows = self.db.execute(f"{CHECKED} slot {IN}", [as_json(part)]).fetchall()
            self.db.conn.executemany(
                "INSERT INTO temp.moved VALUES (?, ?, ?)",
                [
                    (row[0], moved[row[0]], moved_checksum(row, moved[row[0]], row[1]))
                    for row in rows
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
        self.full_text.make()
        self.db.execute("DELETE FROM edition")
        for edition in editions:
            self.memories.add_edition(edition)
        self.set(next_slot=origin + len(moved), seal=None, scrub=True)
        self.count_commit()

    # documents

    def counts(self) -> tuple[int, int]:
        """Numbers of documents and of references."""
        return self.db.execute(
            "SELECT (SELECT count(*) FROM document), (SELECT count(*) FROM reference)"
        ).fetchone()

    def documents(self, edition: int, record_bytes: int = 1) -> list[StoredDocument]:
        """All documents by id; ``record_bytes`` is what a memory takes."""
        rows = self.db.execute(
            f"SELECT count(r.slot), count(m.slot), complete, c.name, {ABOUT} FROM document "
            "LEFT JOIN collection c ON c.document = document.id "
            "LEFT JOIN reference r ON r.document = document.id "
            "LEFT JOIN memory m ON m.edition = ? AND m.slot = r.slot "
            "GROUP BY document.id ORDER BY document.id",
            [edition],
        )
        found = []
        for references, warm, complete, collection, id, *columns in rows:
            path, hash, size, added, _ = self.columns.about(id, *columns)
            counts = (references, warm, bool(complete), added, warm * record_bytes)
            name = self.columns.collection(id, collection)
            found.append(StoredDocument(id, path, hash, size, *counts, name))
        return found

    def hashes(self) -> dict[str, str | None]:
        """Hash of each path's document, None where one is half added."""
        rows = self.db.execute(f"SELECT complete, {ABOUT} FROM document ORDER BY complete DESC")
        about = [(complete, self.columns.about(*columns)) for complete, *columns in rows]
        return {path: hash if complete else None for complete, (path, hash, *_) in about}

    def matching(self, only: Filter) -> list[int]:
        """Ids of the complete documents that a filter matches."""
        rows = self.db.execute(
            f"SELECT name, {ABOUT} FROM document LEFT JOIN collection "
            "ON collection.document = document.id WHERE complete"
        )
        found = []
        for name, id, *columns in rows:
            path, _, _, added, _ = self.columns.about(id, *columns)
            if only.matches(path, self.columns.collection(id, name), added):
                found.append(id)
        return found

    def document_rows(self) -> list[tuple]:
        """Of all documents id, path and hash as stored, references wanted, complete, references
        there are, last position of one, and the remaining columns, none of them checked."""
        return self.db.execute(
            "SELECT d.id, d.path, d.hash, d.count, d.complete, count(r.slot), max(r.ordinal), "
            "d.size, d.added, d.tokenizer, d.sealed FROM document d "
            "LEFT JOIN reference r ON r.document = d.id GROUP BY d.id"
        ).fetchall()

    def latest(self) -> tuple[int | None, int | None]:
        """The highest slot, and the last commit that completed a document."""
        return self.db.execute(
            "SELECT (SELECT max(slot) FROM reference), "
            "(SELECT max(CAST(since AS INTEGER)) FROM document)"
        ).fetchone()

    def added(self, documents: Iterable[int]) -> dict[int, str]:
        """When documents were added, by id."""
        rows = self.db.execute(f"SELECT {ABOUT} FROM document WHERE id {IN}", [as_json(documents)])
        return {id: self.columns.about(id, *columns)[3] for id, *columns in rows}

    def vector_bytes(self) -> int | None:
        """Length of most vectors as they are stored, judged by the first; None without any."""
        return self.db.value(MOST_VECTORS)

    def path_of(self, slot: int) -> str | None:
        """Path of a reference's document."""
        document = self.db.value("SELECT document FROM reference WHERE slot = ?", [slot])
        return None if document is None else self.columns.path_of(document)

    def quarantined(self) -> dict[str, int]:
        """Paths of documents with references in quarantine, and how many those are."""
        rows = self.db.execute(
            f"SELECT count(*), {ABOUT} FROM document JOIN reference ON document = document.id "
            "WHERE quarantined GROUP BY document.id"
        )
        return {self.columns.about(*columns)[0]: count for count, *columns in rows}

    # slots

    def slots(self, documents: Iterable[int]) -> list[int]:
        """Slots of documents, in order."""
        return self.db.column(
            f"SELECT slot FROM reference WHERE document {IN} ORDER BY slot", [as_json(documents)]
        )

    def slots_after(self, slot: int, count: int = BLOCK) -> list[int]:
        """The next slots behind one, in order, of all references; -1 counts all."""
        return self.db.column(
            "SELECT slot FROM reference WHERE slot > ? ORDER BY slot LIMIT ?", [slot, count]
        )

    def first_slot(self) -> int:
        """The lowest slot of a reference that there is or will be."""
        first = self.db.value("SELECT min(slot) FROM reference")
        return self.settings()["next_slot"] if first is None else first

    def quarantined_slots(self) -> list[int]:
        """Slots that are hidden from searches, in order."""
        return self.db.column("SELECT slot FROM reference WHERE quarantined ORDER BY slot")

    def visible(self, since: int = -1) -> int:
        """Number of references that searches may find, of documents complete after a commit."""
        return self.db.value(f"SELECT count(*) {VISIBLE}", [since])

    def visible_slots(self, since: int = -1) -> np.ndarray:
        """Slots of the references that ``visible`` counts, int64, in order."""
        rows = self.db.execute(f"SELECT slot {VISIBLE} ORDER BY slot", [since])
        return np.fromiter((slot for (slot,) in rows), dtype=np.int64)

    def visible_among(self, slots: Iterable[int]) -> frozenset[int]:
        """Return those of some slots that searches may find."""
        return frozenset(
            self.db.column(
                f"SELECT slot FROM reference WHERE slot {IN} AND NOT quarantined "
                "AND document IN (SELECT id FROM document WHERE complete)",
                [as_json(slots)],
            )
        )

    # full text and what was removed

    def holds(self, sample: str | bytes) -> bool:
        """Return whether the catalog holds a name, text or word, or token or vector bytes."""
        if isinstance(sample, bytes):
            statement = (
                "SELECT 1 FROM reference WHERE instr(tokens, ?1) OR instr(vector, ?1) "
                "OR instr(CAST(text AS BLOB), ?1) UNION ALL "
                "SELECT 1 FROM document WHERE instr(CAST(path || hash || sealed AS BLOB), ?1) "
                "UNION ALL SELECT 1 FROM fact WHERE instr(CAST(details AS BLOB), ?1)"
            )
        elif self.cipher.encrypts:
            return False  # nothing as it is
        else:
            self.db.execute(
                "CREATE VIRTUAL TABLE IF NOT EXISTS temp.term USING fts5vocab (main, words, row)"
            )
            statement = (
                "SELECT 1 FROM document WHERE instr(path, ?1) UNION ALL "
                "SELECT 1 FROM reference WHERE instr(text, ?1) OR instr(lower(text), ?1) UNION ALL "
                "SELECT 1 FROM temp.term WHERE instr(term, ?1) UNION ALL "
                "SELECT 1 FROM fact WHERE instr(lower(details), ?1) OR instr(details, ?1) "
                "UNION ALL "
                "SELECT 1 FROM setting WHERE instr(lower(value), ?1) UNION ALL "
                "SELECT 1 FROM edition WHERE instr(lower(fingerprint || memory), ?1) UNION ALL "
                "SELECT 1 FROM sqlite_master WHERE instr(lower(sql), ?1)"
            )
        return self.db.value(statement + " LIMIT 1", [sample]) is not None

    def ciphertexts(self, slot: int) -> list[bytes]:
        """What an encrypted catalog has of a reference and its document, as it is stored."""
        if not self.cipher.encrypts:
            return []
        return list(
            self.db.execute(
                "SELECT CAST(text AS BLOB), tokens, vector, CAST(path AS BLOB), "
                "CAST(hash AS BLOB), CAST(sealed AS BLOB) "
                "FROM reference JOIN document ON document = id WHERE slot = ?",
                [slot],
            ).fetchone()
        )

    def purge(self, *, shrink: bool = False) -> None:
        """Erase what was removed from full text, pages and log, if anything was removed.

        Call it outside of transactions. Raises StoreError if a reader kept it from finishing.

        Args:
            shrink: give free pages back, even if they are few.
        """
        with self.snapshot():
            free, all_pages = map(self.db.value, ("PRAGMA freelist_count", "PRAGMA page_count"))
            shrink = 2 * free > all_pages or (shrink and free > 0)
            if not (shrink or self.settings()["scrub"]):
                return
        with self.db.lock, self.db.errors_translated():
            if shrink:
                self.db.execute("VACUUM")
                files.at_step("vacuumed")
            self.full_text.erase()
            busy = self.db.value("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(
                    f"{self.path}: it is being read, so removed text may remain in its log. "
                    f"Close other programs that use the store, then try again."
                )
            self.db.clear_gaps()
        with self.transaction():
            self.set(scrub=False)
