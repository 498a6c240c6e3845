"""The catalog: documents, references, their text, vectors and state. The one truth.

Whatever the catalog has committed exists; the other files of a store are addressed by it or
derived from it. All methods are called inside ``transaction`` or ``snapshot``, save ``purge``.

In an encrypted store paths, content hashes, texts, token ids and vectors are encrypted. Full text
on the disk would list the words of all documents, so such a store has none (see ``words``).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, AnyStr

import numpy as np

from .. import files
from ..errors import StoreError
from . import pieces
from .catalog_memories import IN, INSERT_EDITION, Memories, as_json
from .cipher import PLAIN, Cipher, Passphrase, Plain, Tampered, unlock
from .database import Connection, new_database
from .filter import Filter
from .root import SMALL, Root
from .rows import Edition, NewReference, StoredDocument, StoredReference

NEW_STORE = {  # the settings that change, as they begin
    "next_slot": 0,  # of the next reference; slots are not used again
    "commit": 0,  # counts what changes the results of searches
    "scrub": False,  # whether removed text may still be in free pages or full text
    "seal": None,  # of the index file
    "max_bytes": None,  # of all files together; beyond, memories are dropped
    "root": None,  # of an encrypted catalog
}
BLOCK = 1024  # references that are read at a time where all are needed
_LONGEST_COLLECTION = 100  # characters
_FULL_TEXT = ("words", "piece")  # its tables
_CHECKED = (  # all that the checksum of a reference is about, and the checksum
    'SELECT slot, path, ordinal, "start", "end", page, line, text, tokens, vector, checksum '
    "FROM reference JOIN document ON document = id WHERE "
)
_ABOUT = "document.id, path, hash, size, added, tokenizer, sealed"  # see ``_about``
_VISIBLE = (
    "FROM reference WHERE slot NOT IN (SELECT slot FROM reference WHERE quarantined) AND "
    "document IN (SELECT id FROM document WHERE complete AND since > ?)"
)


class Catalog:
    """The catalog of one store.

    Attributes:
        db: the database.
        memories: its tables of editions and memories.
        cipher: encrypts and decrypts columns; until it is unlocked, it does not.
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
        self.memories = Memories(self.db)
        self.cipher: Cipher | Plain = PLAIN
        self.snapshot: Callable[[], AbstractContextManager] = self.db.snapshot
        self.transaction: Callable[[], AbstractContextManager] = self.db.transaction
        self.damaged, self.close = self.db.damaged, self.db.close

    # settings

    def identity(self) -> tuple[str, int, bytes]:
        """Return the name of the encoder, the length of its vectors, and the store's id.

        Raises:
            StoreError: one of them is missing or damaged.
        """
        settings = self.settings()
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
            if type(settings[name]) is not int:
                raise self.damaged(f"the setting {name} is {settings[name]!r:.40}, no number")
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
            self.cipher, self.root = cipher, Root(self.db, cipher)
            if sealed and (self._writes or self.outdated):
                self._seal_all(self.root, sealed)
            if self._writes:
                self.root.follow()
        elif encrypted:
            raise self.damaged("it is encrypted, and its key is gone")

    def _seal_all(self, root: Root, key: dict) -> None:
        """Bind everything to its row, which earlier releases did not."""
        with self.db.lock, ExitStack() as stack:
            if not self.db.conn.in_transaction:
                stack.enter_context(self.transaction())
            for id, path, hash, *rest, _ in self.db.execute(
                f"SELECT {_ABOUT} FROM document"
            ).fetchall():
                with suppress(StoreError):  # what is damaged stays so
                    self._describe(id, self.name(path), self.name(hash), *rest)
            for id, name in self.db.execute("SELECT document, name FROM collection").fetchall():
                with suppress(StoreError):
                    sealed = self.cipher.encrypt(self.name(name), "collection", id)
                    self.db.execute(
                        "UPDATE collection SET name = ? WHERE document = ?", [sealed, id]
                    )
            for part in blocks(self.slots_after(-1, -1)):
                for row in self.db.execute(f"{_CHECKED} slot {IN}", [as_json(part)]).fetchall():
                    slot, path, *place, text, tokens, vector, checksum = row
                    document = self.db.value(
                        "SELECT document FROM reference WHERE slot = ?", [slot]
                    )
                    with suppress(Tampered, TypeError):
                        clear = self.cipher.decrypt(text, "text", document, place[0])
                        sealed = self.cipher.encrypt(clear, "text", document, *place)
                        before = _checksum(slot, path, [*place, text, tokens, vector])
                        after = _checksum(slot, path, [*place, sealed, tokens, vector])
                        self.db.execute(
                            "UPDATE reference SET text = ?, checksum = ? WHERE slot = ?",
                            [sealed, checksum ^ before ^ after, slot],
                        )
            self.set(cipher=key)
            root.reset()

    def prove_settings(self) -> None:
        """Raise StoreError if settings or editions of an encrypted store were changed."""
        with self.snapshot():
            if self.root and self.root.changed(SMALL):
                raise self.damaged("its settings are not those that were written with its key")

    def name(self, stored: str) -> str:
        """Decrypt a path or hash, as it is looked up."""
        try:
            return self.cipher.decrypt_name(stored)
        except Tampered as error:
            raise self.damaged("a name is not what was encrypted") from error

    def _about(self, id: int, *columns: Any) -> list[Any]:
        """What is said of a document: path, hash, size, added and tokenizer."""
        *about, sealed = columns
        if not self.cipher.encrypts:
            return about
        try:
            return list(json.loads(self.cipher.decrypt(sealed, "document", id)))
        except (Tampered, ValueError) as error:
            raise self.damaged(f"document {id} is not what was encrypted") from error

    def about(self, document: int) -> list[Any]:
        """Path, hash, size, time of adding and tokenizer of a document."""
        statement = f"SELECT {_ABOUT} FROM document WHERE id = ?"
        row = self.db.execute(statement, [document]).fetchone()
        if row is None:
            raise self.damaged(f"it has references of document {document}, which it does not have")
        return self._about(*row)

    def describe(self, document: int, path: str, hash: str) -> None:
        """Give a document this path and hash."""
        try:
            rest = self.about(document)[2:]
        except StoreError:
            statement = "SELECT size, added, tokenizer FROM document WHERE id = ?"
            rest = self.db.execute(statement, [document]).fetchone()
        self._describe(document, path, hash, *rest)

    def _describe(self, id: int, path: str, hash: str, *rest: Any) -> None:
        encrypted = self.cipher.encrypts
        about = json.dumps([path, hash, *rest])
        names = [self.cipher.encrypt_name(name) for name in (path, hash)]
        self.db.execute(
            "UPDATE document SET path = ?, hash = ?, size = ?, added = ?, tokenizer = ?, "
            "sealed = ? WHERE id = ?",
            [*names, *rest, self.cipher.encrypt(about, "document", id) if encrypted else "", id],
        )

    def _collection(self, document: int, stored: str | None) -> str:
        return self._decrypt(stored, "collection", document) if stored else ""

    def _decrypt(self, stored: AnyStr, column: str, document: int, *place: int) -> AnyStr:
        try:
            return self.cipher.decrypt(stored, column, document, *place)
        except Tampered as error:
            raise StoreError(
                f"{self.path}: {column} of document {document} is not what was encrypted. Forget "
                f"that document and memorize it again."
            ) from error

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
            self._describe(found, *named, size, added, tokenizer)
        return found, self._committed(found)

    def _committed(self, document: int) -> int:
        return self.db.value("SELECT count(*) FROM reference WHERE document = ?", [document])

    def insert(self, first: int, references: Sequence[NewReference]) -> None:
        """Add references with the slots from ``first`` on, and complete their documents."""
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
                    f"{self.name(path)}: reference {new.ordinal} was added where {committed} of "
                    f"{count} is next. Add a document's references in order, once."
                )
            state[new.document][2] += 1
            owner = (new.document, new.ordinal)
            place = (new.start, new.end, new.page, new.line)
            text = self.cipher.encrypt(new.text, "text", *owner, *place)
            tokens = np.asarray(new.tokens, dtype="<u4").tobytes()
            tokens = self.cipher.encrypt(tokens, "tokens", *owner)
            vector = np.asarray(new.vector, dtype="<f4").tobytes()
            vector = self.cipher.encrypt(vector, "vector", *owner)
            row = (new.ordinal, *place, text, tokens, vector)
            self.db.execute(
                "INSERT INTO reference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                [slot, new.document, *row, _checksum(slot, path, row)],
            )
            if not self.cipher.encrypts and (found := pieces.pieces(new.text)):
                self.db.execute("INSERT INTO piece (rowid, text) VALUES (?, ?)", [slot, found])
        for document, (path, count, committed) in state.items():
            if committed == count:
                self._complete(document, path)

    def _complete(self, document: int, path: str) -> None:
        older = self.db.column("SELECT id FROM document WHERE path = ? AND complete", [path])
        for id in older:
            name = self.db.value("SELECT name FROM collection WHERE document = ?", [id])
            there = self.db.value("SELECT 1 FROM collection WHERE document = ?", [document])
            if name and not there:
                name = self.cipher.encrypt(self._collection(id, name), "collection", document)
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
        rows = self.db.execute(_CHECKED + "document = ?", [document]).fetchall()
        if not rows:
            raise StoreError(f"{self.path}: there is no document {document} to be renamed.")
        self.describe(document, path, self.about(document)[1])
        self.db.conn.executemany(
            "UPDATE reference SET checksum = ? WHERE slot = ?",
            [(_moved_checksum(row, row[0], new), row[0]) for row in rows],
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
            rows = self.db.execute(f"{_CHECKED} slot {IN}", [as_json(part)]).fetchall()
            self.db.conn.executemany(
                "INSERT INTO temp.moved VALUES (?, ?, ?)",
                [
                    (row[0], moved[row[0]], _moved_checksum(row, moved[row[0]], row[1]))
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
        self.make_full_text()
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

    def documents(self, edition: int) -> list[StoredDocument]:
        """All documents by id, with ``bytes`` counted in records."""
        rows = self.db.execute(
            f"SELECT count(r.slot), count(m.slot), complete, c.name, {_ABOUT} FROM document "
            "LEFT JOIN collection c ON c.document = document.id "
            "LEFT JOIN reference r ON r.document = document.id "
            "LEFT JOIN memory m ON m.edition = ? AND m.slot = r.slot "
            "GROUP BY document.id ORDER BY document.id",
            [edition],
        )
        found = []
        for references, warm, complete, collection, id, *columns in rows:
            path, hash, size, added, _ = self._about(id, *columns)
            counts = (references, warm, bool(complete), added, warm)
            name = self._collection(id, collection)
            found.append(StoredDocument(id, path, hash, size, *counts, name))
        return found

    def hashes(self) -> dict[str, str | None]:
        """Hash of each path's document, None where one is half added."""
        rows = self.db.execute(f"SELECT complete, {_ABOUT} FROM document ORDER BY complete DESC")
        about = [(complete, self._about(*columns)) for complete, *columns in rows]
        return {path: hash if complete else None for complete, (path, hash, *_) in about}

    def matching(self, only: Filter) -> list[int]:
        """Ids of the complete documents that a filter matches."""
        rows = self.db.execute(
            f"SELECT name, {_ABOUT} FROM document LEFT JOIN collection "
            "ON collection.document = document.id WHERE complete"
        )
        found = []
        for name, id, *columns in rows:
            path, _, _, added, _ = self._about(id, *columns)
            if only.matches(path, self._collection(id, name), added):
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

    def path_of(self, slot: int) -> str | None:
        """Path of a reference's document."""
        document = self.db.value("SELECT document FROM reference WHERE slot = ?", [slot])
        return None if document is None else str(self.about(document)[0])

    def quarantined(self) -> dict[str, int]:
        """Paths of documents with references in quarantine, and how many those are."""
        rows = self.db.execute(
            f"SELECT count(*), {_ABOUT} FROM document JOIN reference ON document = document.id "
            "WHERE quarantined GROUP BY document.id"
        )
        return {self._about(*columns)[0]: count for count, *columns in rows}

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
        return self.db.value(f"SELECT count(*) {_VISIBLE}", [since])

    def visible_slots(self, since: int = -1) -> np.ndarray:
        """Slots of the references that ``visible`` counts, int64, in order."""
        rows = self.db.execute(f"SELECT slot {_VISIBLE} ORDER BY slot", [since])
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

    # references

    def references(self, slots: Collection[int], edition: int) -> dict[int, StoredReference]:
        """Read references. Raises StoreError that names the document of a damaged one."""
        rows = self.db.execute(
            f'SELECT slot, {_ABOUT}, ordinal, "start", "end", page, line, '
            "text, tokens, vector, checksum, EXISTS (SELECT 1 FROM memory m WHERE m.edition = ? "
            "AND m.slot = reference.slot) FROM reference JOIN document ON document = id "
            f"WHERE slot {IN}",
            [edition, as_json(slots)],
        ).fetchall()
        if len(rows) != len(set(slots)):
            raise self.damaged("its full text knows references that it does not have")
        found, documents = {}, {row[1]: row[1:8] for row in rows}
        about = {document: self._about(*columns) for document, columns in documents.items()}
        for slot, document, stored, *columns, checksum, warm in rows:
            row = columns[5:]
            try:
                whole = checksum == _checksum(slot, stored, row)
            except TypeError:  # a value that is not even of its column's type
                whole = False
            path, *_, tokenizer = about[document]
            if not whole:
                raise StoreError(
                    f"{self.path}: a reference of {path} (document {document}) is damaged. "
                    f"Forget that document and memorize it again."
                )
            *place, text, tokens, vector = row
            owner = document, place[0]
            text = self._decrypt(text, "text", document, *place)
            tokens = np.frombuffer(self._decrypt(tokens, "tokens", *owner), dtype="<u4")
            vector = np.frombuffer(self._decrypt(vector, "vector", *owner), dtype="<f4")
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
        rows = self.db.execute(
            "SELECT slot, CAST(text AS BLOB), CAST(tokens AS BLOB) "
            f"FROM reference {memory} WHERE slot {IN}" + (" AND edition = ?" if memory else ""),
            [as_json(slots)] + ([warm_in] if memory else []),
        )
        return {slot: hashlib.sha256(tokens + text).digest() for slot, text, tokens in rows}

    def vectors(self, slots: Iterable[int], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """Return those of some slots that exist, int64 ``(n,)``, and their vectors, float32."""
        rows = self.db.execute(
            f"SELECT slot, document, ordinal, vector FROM reference WHERE slot {IN} ORDER BY slot",
            [as_json(slots)],
        )
        found, vectors = [], []
        for slot, document, ordinal, stored in rows:
            vector = self._decrypt(stored, "vector", document, ordinal)
            if not isinstance(vector, bytes) or len(vector) != 4 * dimensions:
                raise self.damaged(f"the vector of reference {slot} has another length")
            found.append(slot)
            vectors.append(vector)
        joined = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(found), dimensions)
        return np.array(found, dtype=np.int64), joined

    def texts(self) -> Iterator[tuple[int, str]]:
        """Slots and texts of all references that searches may find."""
        columns = 'slot, document, text, ordinal, "start", "end", page, line'
        for slot, document, text, *place in self.db.execute(f"SELECT {columns} {_VISIBLE}", [-1]):
            yield slot, self._decrypt(text, "text", document, *place)

    # full text and what was removed

    def make_full_text(self) -> None:
        """Make the full text again from the texts; an encrypted store has none."""
        if not self.cipher.encrypts:
            pieces.fill(self.db.conn)
            for table in _FULL_TEXT:
                self.db.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")

    def _erase_from_full_text(self) -> None:
        """Merge the parts of the full text, of which older ones have what younger ones delete."""
        if not self.cipher.encrypts:
            for table in _FULL_TEXT:
                self.db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            files.at_step("full text merged")

    def check_full_text(self) -> None:
        """Raise StoreError if the full text is not that of the texts; needs the right to write."""
        if self.cipher.encrypts:
            return
        for table in _FULL_TEXT:
            self.db.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        for slot, text, found in self.db.execute(
            "SELECT slot, r.text, p.text FROM reference r LEFT JOIN piece p ON p.rowid = slot"
        ):
            if isinstance(text, str) and pieces.pieces(text) != (found or ""):
                raise self.damaged(f"its full text lacks pieces of reference {slot}")

    def holds(self, sample: str | bytes) -> bool:
        """Return whether the catalog holds a name, text or word, or token or vector bytes."""
        if isinstance(sample, bytes):
            statement = (
                "SELECT 1 FROM reference WHERE instr(tokens, ?1) OR instr(vector, ?1) "
                "OR instr(CAST(text AS BLOB), ?1) UNION ALL "
                "SELECT 1 FROM document WHERE instr(CAST(path || hash || sealed AS BLOB), ?1)"
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
            self._erase_from_full_text()
            busy = self.db.value("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(
                    f"{self.path}: it is being read, so removed text may remain in its log. "
                    f"Close other programs that use the store, then try again."
                )
            self.db.clear_gaps()
        with self.transaction():
            self.set(scrub=False)


def blocks(slots: Sequence[int] | np.ndarray) -> Iterator[list[int]]:
    """Cut a list of slots, of any length, into parts that are read at a time."""
    for start in range(0, len(slots), BLOCK):
        yield list(slots[start : start + BLOCK])


def _checksum(slot: int, path: str, row: Sequence) -> int:
    """CRC-32 of all that a reference says about itself."""
    *place, tokens, vector = row
    head = json.dumps([slot, path, *place]).encode()
    return zlib.crc32(vector, zlib.crc32(tokens, zlib.crc32(head)))


def _moved_checksum(row: Sequence, slot: int, path: str) -> int:
    """Checksum of a row of ``_CHECKED`` under another slot or path; if wrong, it stays wrong."""
    before, old, *rest, checksum = row
    return checksum ^ _checksum(before, old, rest) ^ _checksum(slot, path, rest)
