"""The store as its users see it: catalog, record files and searches behind one interface."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import StoreError
from ..files import NEW, is_writable, os_errors_as_store_errors
from . import backup, check, index, repair, traces, watched
from . import sessions as sessions_file
from .catalog import NEW_STORE, Catalog
from .cipher import PLAIN, Passphrase, new_key
from .facts import StoredFact, Version
from .filter import Filter
from .folder import CATALOG, is_store, require_store
from .lock import FILE as LOCK
from .lock import WriterLock
from .record_file import TIE, Identity, RecordFile, stride
from .records import FIRST, Records
from .rows import Edition, NewReference, StoredDocument, StoredReference
from .search import EXACT_REFERENCES, Hit, Search
from .sessions import CONVERSATION, Sessions
from .traces import ForgetReport, Trace, Verification


class MemoryStore:
    """An open store. One may be open for writing, any number for reading at the same time.

    Where a method takes an ``edition``, that is its id; None means the first.

    Attributes:
        path: the folder.
        id: of the store, 16 bytes.
        encoder: what made its vectors.
        dimensions: of its vectors.
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        fingerprint: Mapping[str, str],
        memory: Mapping,
        encoder: str,
        dimensions: int,
        record_bytes: int,
        exact: int = EXACT_REFERENCES,
        encrypt: bool = False,
        passphrase: Passphrase | None = None,
    ) -> MemoryStore:
        """Make an empty store in a new or empty folder and open it for writing.

        Args:
            encrypt: whether what it keeps of documents is encrypted.
            passphrase: asked for the passphrase of an encrypted store; None to keep one in the
                system's key store.

        Raises:
            StoreError: there is a store already, or something else.
        """
        path = Path(path)
        if cls.exists(path):
            raise StoreError(f"{path}: there is a store already. Open it, or name another folder.")
        with os_errors_as_store_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # of a creation that was cut off, or of who watches for it
            ours = {LOCK, FIRST, FIRST + NEW, CATALOG + NEW, watched.FILE}
            if found := {entry.name for entry in path.iterdir()} - ours:
                raise StoreError(
                    f"{path}: this folder is no store and not empty (it has {min(found)}). "
                    f"Name a new folder."
                )
            path.chmod(0o700)
            with closing(WriterLock(path / LOCK, wait=0)):
                store_id = secrets.token_bytes(16)
                key, cipher = new_key(store_id.hex(), passphrase) if encrypt else (None, PLAIN)
                about = (dict(fingerprint), dict(memory), record_bytes, FIRST)
                edition = Edition(
                    *(1, *about, 0, _now(), cipher.overhead), tie=secrets.token_hex(TIE)
                )
                RecordFile.create(path / FIRST, Identity.of(store_id, edition))
                settings = {
                    "id": store_id.hex(),
                    "encoder": encoder,
                    "dimensions": dimensions,
                    "cipher": key,
                    **NEW_STORE,
                }
                # last: now the store exists
                Catalog.create(path / CATALOG, settings, [edition])
        return cls.open(path, write=True, exact=exact, passphrase=passphrase)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        write: bool = False,
        wait: float = 10.0,
        exact: int = EXACT_REFERENCES,
        passphrase: Passphrase | None = None,
        own: bool = False,
        attached: bool = False,
    ) -> MemoryStore:
        """Open a store.

        Reading changes none of its files. A store of an older format is brought up to date in
        memory, and on the disk by who writes.

        Args:
            write: whether to change it, which one process at a time may do.
            own: whether a reader may bring it up to date on the disk, and note when memories are
                used, by which those go first that are used least.
            attached: whether it is somebody else's, where a reader makes no file even for a moment.
            wait: seconds to wait until another process has finished writing.
            exact: up to so many references, searches compare with all of them.
            passphrase: asked for the passphrase if the store is encrypted.

        Raises:
            BusyStore: another process is writing to it.
            LockedError: the passphrase is missing or wrong.
            StoreError: there is none, it is damaged, or of another version.
        """
        path = Path(path)
        require_store(path, write=write)
        with os_errors_as_store_errors(path):
            store = cls(path, write, wait, exact, passphrase, attached)
            store._notes = own or write
            if own and store._catalog.outdated and is_writable(path):
                store._close()
                cls(path, True, wait, exact, passphrase)._close()
                store = cls(path, write, wait, exact, passphrase)
                store._notes = True
            return store

    exists = staticmethod(is_store)

    @staticmethod
    def fingerprints(path: str | os.PathLike) -> list[dict[str, str]]:
        """Read the fingerprints of a store's editions, by id, without its passphrase.

        Raises:
            StoreError: there is no store, it is damaged, or of another version.
        """
        path = Path(path)
        require_store(path)
        catalog = Catalog(path / CATALOG)
        with closing(catalog), catalog.snapshot():
            return [edition.fingerprint for edition in catalog.memories.editions()]

    def __init__(
        self,
        path: Path,
        write: bool,
        wait: float,
        exact: int,
        passphrase: Passphrase | None,
        attached: bool = False,
    ):
        """Use ``open`` instead."""
        self.path = path
        self._writes = self._notes = write
        with ExitStack() as opened:
            if write:
                opened.enter_context(closing(WriterLock(path / LOCK, wait)))
            self._catalog = Catalog(path / CATALOG, write=write, attached=attached)
            opened.callback(self._catalog.close)
            with self._catalog.snapshot():
                settings, editions = self._catalog.settings(), self._catalog.memories.editions()
                self.encoder, self.dimensions, self.id = self._catalog.identity(settings)
            if settings.get("cipher") or any(edition.overhead for edition in editions):
                self._catalog.unlock(passphrase)
                self._catalog.prove_settings()
            if self.encrypted:
                exact = sys.maxsize  # an index file would hold the vectors as they are
            self._search = Search(self._catalog, path / index.FILE, self.dimensions, exact)
            self._records = Records(path, self._catalog, self.id, write=write)
            opened.callback(self._records.close)
            if len(editions) <= 1:  # one of several may be lost, and not be needed
                self._records.file(None)
            if write:
                self._records.sweep()
                self._records.erase()  # and cut off what a crash has left behind
            self._opened = opened.pop_all()

    @property
    def encrypted(self) -> bool:
        """True if the texts, vectors and memories of documents are encrypted."""
        return self._catalog.cipher.encrypts

    # editions

    @property
    def edition(self) -> Edition:
        """The first edition, which is meant where no other is named."""
        return self._edition(None)

    def editions(self) -> list[Edition]:
        """All editions, by id."""
        with self._catalog.snapshot():
            return self._catalog.memories.editions()

    def _edition(self, id: int | None) -> Edition:
        with self._catalog.snapshot():
            return self._catalog.memories.edition(id)

    def add_edition(
        self, *, fingerprint: Mapping[str, str], memory: Mapping, record_bytes: int
    ) -> Edition:
        """Add an edition without memories.

        Raises:
            StoreError: there is one with this fingerprint.
        """
        self._require_writer()
        if any(known.fingerprint == dict(fingerprint) for known in self.editions()):
            raise StoreError(f"{self.path}: there are memories with this fingerprint already.")
        with os_errors_as_store_errors(self.path), self._catalog.transaction():
            id = self._catalog.memories.next_edition()
            edition = Edition(
                *(id, dict(fingerprint), dict(memory), record_bytes, f"memories-{id}.kv"),
                origin=self._catalog.first_slot(),
                added=_now(),
                overhead=self._catalog.cipher.overhead,
                tie=secrets.token_hex(TIE),
            )
            self._records.add(edition)  # in place before the catalog says so
            self._catalog.memories.add_edition(edition)
        return edition

    def remove_edition(self, edition: int) -> None:
        """Erase all memories of an edition; documents, text and vectors stay.

        Raises:
            StoreError: it is the only one, or there is none.
        """
        self._require_writer()
        if [edition] == [known.id for known in self.editions()]:
            raise StoreError(
                f"{self.path}: edition {edition} is the only one. Add another before removing it."
            )
        with os_errors_as_store_errors(self.path):
            self._records.remove(edition)

    # finding and reading

    def search(
        self,
        vectors: np.ndarray,
        texts: Sequence[str],
        k: int,
        mode: str = "hybrid",
        only: Filter | None = None,
        edition: int | None = None,
    ) -> list[list[Hit]]:
        """Find the references that fit best.

        Args:
            vectors: float32 ``(queries, dimensions)``, each of length one.
            texts: the same queries as text; any text will do.
            k: hits for each query, at most.
            mode: "dense" compares vectors, "text" ranks shared words by BM25, "hybrid" adds
                both up.
            only: which documents are searched; None for all.
            edition: decides which hits are warm, and whose tokenizer their tokens are of.

        Returns:
            For each query its hits, the best first.
        """
        return self._search.hits(self._checked(vectors), texts, k, mode, only, edition)

    def read(self, slots: Sequence[int], edition: int | None = None) -> np.ndarray:
        """Read memories as uint8 ``(len(slots), record_bytes)``, their checksums verified.

        Raises:
            ColdReference: a memory has not been written yet, or was dropped.
            StoreError: a memory is damaged, or its document has been forgotten.
        """
        return self._records.read([int(slot) for slot in slots], edition, note=self._notes)

    # what there is

    def missing(self, files: Iterable[tuple[str, str]]) -> set[str]:
        """Of (path, hash) pairs, the paths that are not wholly stored with that hash."""
        with self._catalog.snapshot():
            stored = self._catalog.hashes()
        return {path for path, hash in files if stored.get(path) != hash}

    def documents(self, edition: int | None = None) -> list[StoredDocument]:
        """All documents, also those that are not complete, by id."""
        with self._catalog.snapshot():
            known = self._catalog.memories.edition(edition)
            return self._catalog.documents(known.id, stride(known.stored_bytes))

    def moment(self) -> tuple[object, ...]:
        """Return a value that is another one once ``documents`` gives something else."""
        with self._catalog.snapshot():
            (memories,) = self._catalog.db.execute("SELECT count(*) FROM memory").fetchone()
            commit = self._catalog.settings()["commit"]
            return self.id, commit, *self._catalog.counts(), memories

    def find_documents(
        self, names: Iterable[str], edition: int | None = None
    ) -> list[StoredDocument]:
        """Documents by id, by path, or all below a folder.

        Raises:
            StoreError: nothing has one of these names.
        """
        documents = self.documents(edition)
        found: dict[int, StoredDocument] = {}
        for name in map(str, names):
            given = os.path.expanduser(name)
            paths = {name, os.path.abspath(given), os.path.realpath(given)} if name else set()
            folders = tuple(os.path.join(path, "") for path in paths)
            matches = [document for document in documents if document.path in paths] or [
                document
                for document in documents
                if str(document.id) == name or document.path.startswith(folders)
            ]
            if not matches:
                raise StoreError(
                    f"{self.path}: there is no document {name}. `m3mlx list` shows what there is."
                )
            found.update((document.id, document) for document in matches)
        return [found[id] for id in sorted(found)]

    def slots(self, after: int = -1, count: int = 256) -> list[int]:
        """The next slots of references behind one, in order: the way to go through all."""
        with self._catalog.snapshot():
            return self._catalog.slots_after(after, count)

    def quarantined(self) -> dict[str, int]:
        """Paths of documents with references in quarantine, and how many those are."""
        with self._catalog.snapshot():
            return self._catalog.quarantined()

    def slots_of(self, document: int) -> list[int]:
        """Slots of a document's references, in the order of the document."""
        with self._catalog.snapshot():
            return self._catalog.slots([document])

    def references(self, slots: Iterable[int], edition: int | None = None) -> list[StoredReference]:
        """References by slot, in order, their checksums verified; those that are gone are left.

        Raises:
            StoreError: one is damaged; it names the document.
        """
        with self._catalog.snapshot():
            known = self._catalog.memories.edition(edition)
            there = self._catalog.memories.warmth(known.id, slots)
            found = self._catalog.references.read(there, known.id)
        return [found[slot] for slot in sorted(found)]

    def cold(self, after: int = -1, count: int = 256, edition: int | None = None) -> list[int]:
        """The next slots behind one that have no memory in an edition, in order."""
        with self._catalog.snapshot():
            known = self._catalog.memories.edition(edition)
            return self._catalog.memories.cold(known.id, after, count)

    def holds_few(self, count: int) -> bool:
        """Return whether there are fewer references than this."""
        with self._catalog.snapshot():
            return len(self._catalog.slots_after(-1, count)) < count

    def facts(self, documents: Iterable[int] | None = None) -> list[StoredFact]:
        """The documents that are facts, by id; of some documents, or of all."""
        with self._catalog.snapshot():
            return self._catalog.facts.read(documents)

    def facts_near(self, vector: np.ndarray, count: int) -> dict[int, float]:
        """The facts most like a vector, by their documents' ids, with their cosine similarity."""
        with self._catalog.snapshot():
            return self._catalog.facts.near(self._checked([vector])[0], count)

    def added(self, documents: Iterable[int]) -> dict[int, str]:
        """When documents were memorized, ISO 8601 in UTC, by id."""
        with self._catalog.snapshot():
            return self._catalog.added(documents)

    def status(self, edition: int | None = None) -> dict:
        """Return counts, bytes by part, the bound and the editions."""
        with self._catalog.snapshot():
            chosen = self._catalog.memories.edition(edition)
            documents, references = self._catalog.counts()
            quarantined = len(self._catalog.quarantined_slots())
            editions = [
                {**asdict(known), "warm": self._catalog.memories.warm(known.id)}
                for known in self._catalog.memories.editions()
            ]
            bound = self._catalog.settings()["max_bytes"]
        for known in editions:
            known["bytes"] = self._bytes(known["file"])
        (warm,) = (known["warm"] for known in editions if known["id"] == chosen.id)
        return {
            "documents": documents,
            "references": references,
            "cold": references - warm,
            "quarantined": quarantined,
            "bytes": {
                "catalog": self._bytes(CATALOG, f"{CATALOG}-wal"),
                "memories": sum(known["bytes"] for known in editions),
                "index": self._bytes(index.FILE),
            },
            "session_bytes": self._bytes(sessions_file.FILE),
            "max_bytes": bound,
            "encrypted": self.encrypted,
            "editions": editions,
            "edition": chosen.id,
            "fingerprint": chosen.fingerprint,
            "watching": watched.seen(self.path),
        }

    def _bytes(self, *names: str) -> int:
        """Bytes that files take on the disk; a record file has holes for cold references."""
        present = [self.path / name for name in names]
        return sum(file.stat().st_blocks * 512 for file in present if file.exists())

    def sessions(self) -> Sessions:
        """The conversations that are kept beside the documents; also a reader may add to them."""
        return Sessions(self.path, self._catalog.cipher)

    # adding

    def begin(
        self,
        path: str,
        hash: str,
        references: int,
        *,
        size: int,
        tokenizer: str | None = None,
        added: str | None = None,
    ) -> tuple[int, int]:
        """Start to add a document, or go on with one that was interrupted.

        Until all references are there the document is not found; then it replaces the one that
        had the same path.

        Args:
            path: of the file.
            hash: of its content; another hash starts anew.
            references: how many there will be.
            size: of the file, in bytes.
            tokenizer: what makes the token ids, None for that of the first edition.
            added: when it was memorized, ISO 8601 in UTC; None for now.

        Returns:
            The document's id, and the number of references that are stored already.
        """
        self._require_writer()
        if references < 1:
            raise StoreError(f"{path}: it has no references, so there is nothing to remember.")
        cut = self.edition.tokenizer if tokenizer is None else tokenizer
        with self._catalog.transaction():
            return self._catalog.begin(path, hash, size, references, cut, added)

    def add(self, references: Sequence[NewReference], edition: int | None = None) -> None:
        """Store references in one commit. They follow those that their documents have.

        Args:
            edition: of their records.
        """
        self._require_writer()
        self._checked([reference.vector for reference in references])
        id, memories = self._edition(edition).id, self._catalog.memories
        new = [reference.record for reference in references if reference.record is not None]
        if new:
            file = self._records.writable(id)
            file.check(new)
        with os_errors_as_store_errors(self.path), self._catalog.transaction():
            first = self._catalog.settings()["next_slot"]
            records = {
                slot: reference.record
                for slot, reference in enumerate(references, first)
                if reference.record is not None
            }
            digests = self._catalog.insert(first, references)
            if records:
                # on the disk before the commit
                file.write(records, digests)
                memories.mark(id, records, warm=True)
                memories.settle_tie(id)
            self._catalog.set(next_slot=first + len(references))
        self._records.settle(records, id)

    def write(self, records: Mapping[int, bytes], edition: int | None = None) -> None:
        """Give references their memories, by slot. A memory that is there is replaced."""
        self._require_writer()
        records = {int(slot): memory for slot, memory in records.items()}
        id, memories = self._edition(edition).id, self._catalog.memories
        file = self._records.writable(id)
        file.check(records.values())
        with self._catalog.db.lock:  # no document is forgotten between the two commits
            with self._catalog.transaction():
                if gone := records.keys() - memories.warmth(id, records).keys():
                    raise self._records.gone(min(gone))
                memories.drop(id, records)  # while its bytes change, there is none
            with os_errors_as_store_errors(self.path), self._catalog.transaction():
                file.write(records, self._catalog.references.digests(records))
                memories.mark(id, records, warm=True)
                memories.settle_tie(id)
        self._records.settle(records, id)

    def describe_fact(self, document: int, by: str, history: Iterable[Version] = ()) -> None:
        """Say that a document which was begun is a fact, of one reference that follows.

        Args:
            by: who said it, "" for the user.
            history: what it replaces, the oldest first. It goes with the document.
        """
        with self._transaction():
            self._catalog.facts.put(document, by, history)

    def quarantine(self, slots: Iterable[int], quarantined: bool = True) -> None:
        """Hide references from searches, which are damaged and cannot be mended; or show them."""
        with self._transaction():
            self._catalog.quarantine(slots, quarantined)

    def rename(self, paths: Mapping[int, str]) -> None:
        """Give documents, by id, the paths to which their files were moved, all or none.

        Nothing is memorized anew; the old paths are erased with the next ``maintain``.

        Raises:
            StoreError: there is no such document, or another one has this path.
        """
        with self._transaction():
            for document, path in paths.items():
                self._catalog.rename(document, path)

    def collect(self, documents: Iterable[int], collection: str) -> None:
        """Put documents, by id, into a collection, out of any other; "" for none."""
        with self._transaction():
            self._catalog.collect(documents, collection)

    def set_bound(self, max_bytes: int | None, edition: int | None = None) -> int:
        """Keep the store within so many bytes from now on, or within none.

        When it has grown beyond, the memories that were not used for longest are dropped, of any
        edition; their references stay, cold. Text, vectors and index are never dropped.

        Args:
            edition: whose memories go last among those used alike.

        Returns:
            How many memories were dropped now.
        """
        self._require_writer()
        if max_bytes is not None and max_bytes < 1:
            raise StoreError(f"{self.path}: {max_bytes} bytes are no bound. Give at least 1.")
        with self._catalog.transaction():
            self._catalog.set(max_bytes=max_bytes)
        with os_errors_as_store_errors(self.path):
            return self._records.keep_bound(edition)

    # forgetting

    def forget(self, documents: Iterable[int], edition: int | None = None) -> list[StoredDocument]:
        """Erase documents by id: text, full text, vectors, index and all memories. Returns them.

        With the document of a conversation goes its session, which says the same.

        The bytes are gone from the store's files. Copies that a file system, its snapshots, a
        backup or the disk itself keeps are out of reach.

        Args:
            edition: whose memories the returned documents count.
        """
        self._require_writer()
        known = {document.id: document for document in self.documents(edition)}
        wanted = list(dict.fromkeys(documents))
        for id in wanted:
            if id not in known:
                raise StoreError(f"{self.path}: there is no document {id}.")
        with os_errors_as_store_errors(self.path):  # questions about them may be among the lines
            (self.path / sessions_file.TYPED).unlink(missing_ok=True)
        names = [known[id].path for id in wanted]
        if conversations := [name for name in names if name.startswith(CONVERSATION)]:
            with self.sessions() as sessions:
                for name in conversations:
                    sessions.delete(name.removeprefix(CONVERSATION))
        with self._catalog.transaction():
            self._catalog.remove(wanted)
        self.maintain()
        return [known[id] for id in wanted]

    def forget_proved(self, documents: Iterable[int], edition: int | None = None) -> ForgetReport:
        """Forget documents, and search every byte of the store's files for samples of them."""
        wanted = list(documents)
        samples = self.traces(wanted)
        gone = self.forget(wanted, edition)
        found = self.verify(samples)
        certificate = traces.certificate(gone, samples, found, self.id.hex())
        return ForgetReport(gone, found.remnants, certificate)

    def traces(self, documents: Iterable[int]) -> list[Trace]:
        """Take samples of documents, by id, to be looked for after they are forgotten."""
        wanted = set(documents)
        chosen = [document for document in self.documents() if document.id in wanted]
        return traces.sample(chosen, self._catalog, self._records)

    def verify(self, samples: Sequence[Trace]) -> Verification:
        """Look for samples in every byte of the store's files.

        A sample that remaining documents hold too is left out.
        """
        with os_errors_as_store_errors(self.path):
            return traces.find(samples, self.path, self._catalog, self._records)

    # order

    def maintain(self) -> None:
        """Do what commits leave for later: erase what was removed, bring the index up to date.

        ``close`` and ``forget`` do it; a long-lived writer may call it between two tasks.
        """
        self._maintain()

    def _maintain(self, *, shrink: bool = False) -> None:
        self._require_writer()
        with os_errors_as_store_errors(self.path):
            self._records.erase()
            self._catalog.purge(shrink=shrink)
            self._search.refresh_index()
            self._records.keep_bound()  # an index counts too

    quick_check = staticmethod(check.quick)
    check = staticmethod(check.check)
    repair = staticmethod(repair.repair)
    backup = staticmethod(backup.backup)

    def compact(self) -> int:
        """Free disk space: number references anew without gaps, and copy their records.

        This needs room for a second copy of all records. Readers go on, but must search again for
        slots that they found before. A crash leaves the old or the new store.

        Returns:
            How many memories were damaged; they are left out, and their references are cold.
        """
        self._require_writer()
        with os_errors_as_store_errors(self.path):
            self._records.erase()
            damaged = self._records.compact()
            self._maintain(shrink=True)
        return damaged

    def _checked(self, vectors: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Vectors as float32 ``(n, dimensions)``. Raises StoreError if they are not that."""
        if all(np.shape(vector) == (self.dimensions,) for vector in vectors):
            checked = np.asarray(vectors, dtype=np.float32)
            if not len(checked) or index.are_unit(checked):
                return checked
        raise StoreError(
            f"{self.path}: a vector is not {self.dimensions} finite numbers of length one. "
            f"Use the encoder that made the store ({self.encoder})."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._require_writer()
        with self._catalog.transaction():
            yield

    def _require_writer(self) -> None:
        if not self._writes:
            raise StoreError(f"{self.path}: this store is open for reading only.")

    def close(self) -> None:
        """Do what is left to do and close the files."""
        try:
            if self._writes:
                self.maintain()
        finally:
            self._close()

    def _close(self) -> None:
        self._writes = False
        self._opened.close()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # what is committed is safe, and the next writer does the rest
            self._close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
