"""A store: documents, their references and their memories in one folder.

    STORE/
      catalog.sqlite    the truth: documents, references, text, full text, vectors, settings
      memories.kv       the memories, a fixed-size record for each slot
      memories.used     when each memory was last used; may be lost
      vectors.usearch   derived from the catalog, for large stores only
      sessions.sqlite   conversations that were kept
      lock              held by the one process that writes
      watching          what a process that watches folders tells

An edition is all memories made under one fingerprint: by one model, in one way. A store has one
or more (memories-2.kv, …), which share documents, text and vectors. Methods take the id of the
edition that is meant, and mean the first where none is given. A reference without a memory in it
is cold, until somebody writes it.

What a commit does, in this order: the records of new memories are written and are on the disk;
then one transaction adds the rows. A crash before the end of the transaction leaves bytes that
nothing refers to; they are cut off or written over. What may wait is done by ``settle``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from ..errors import StoreError
from ..files import NEW, os_errors_as_store_errors
from . import check, compact, repair, watched
from .bank import Bank, Identity
from .catalog import NEW_STORE, Catalog
from .check import CheckReport, Damage
from .cipher import OVERHEAD, LockedError, Passphrase, new_key
from .database import OlderSchema
from .filter import Filter, collect
from .lock import BusyStore, WriterLock
from .reading import CATALOG, LOCK, ColdReference, Reading
from .records import FIRST
from .repair import RepairReport
from .rows import Edition, NewReference, StoredDocument, StoredReference
from .search import EXACT_REFERENCES, Hit
from .sessions import CONVERSATION, Sessions
from .stores import Stores
from .traces import ForgetReport, Residue, Trace, Verification

__all__ = [
    "BusyStore",
    "CheckReport",
    "ColdReference",
    "Damage",
    "Edition",
    "Filter",
    "ForgetReport",
    "Hit",
    "LockedError",
    "MemoryStore",
    "NewReference",
    "Passphrase",
    "RepairReport",
    "Residue",
    "Sessions",
    "StoredDocument",
    "StoredReference",
    "Stores",
    "Trace",
    "Verification",
]


class MemoryStore(Reading):
    """An open store. One may be open for writing, any number for reading at the same time.

    Attributes:
        path: the folder.
        id: of the store, 16 bytes.
        encoder: what made its vectors.
        dimensions: of its vectors.
        edition: the first edition.
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
            lock = WriterLock(path / LOCK, wait=0)
            try:
                store_id = secrets.token_bytes(16)
                key, cipher = new_key(store_id.hex(), passphrase) if encrypt else (None, None)
                edition = Edition(
                    *(1, dict(fingerprint), dict(memory), record_bytes, FIRST, 0, _now()),
                    overhead=OVERHEAD if cipher else 0,
                )
                Bank.create(path / FIRST, Identity.of(store_id, edition))
                settings = {
                    "id": store_id.hex(),
                    "encoder": encoder,
                    "dimensions": dimensions,
                    "cipher": key,
                    **NEW_STORE,
                }
                # last: now the store exists
                Catalog.create(path / CATALOG, settings, [edition])
            finally:
                lock.release()
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
    ) -> MemoryStore:
        """Open a store.

        A store of an older format is brought up to date, which needs the right to write.

        Args:
            write: whether to change it, which one process at a time may do.
            wait: seconds to wait until another process has finished writing.
            exact: up to so many references, searches compare with all of them.
            passphrase: asked for the passphrase if the store is encrypted.

        Raises:
            BusyStore: another process is writing to it.
            LockedError: the passphrase is missing or wrong.
            StoreError: there is none, it is damaged, or of another version.
        """
        path = Path(path)
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no store. `m3mlx memorize PATH` makes one.")
        with os_errors_as_store_errors(path):
            try:
                return cls._opened(path, write, wait, exact, passphrase)
            except OlderSchema:
                cls._opened(path, True, wait, exact, passphrase)._close()
                return cls._opened(path, write, wait, exact, passphrase)

    @classmethod
    def _opened(
        cls,
        path: Path,
        write: bool,
        wait: float,
        exact: int,
        passphrase: Passphrase | None,
    ) -> MemoryStore:
        lock = WriterLock(path / LOCK, wait) if write else None
        try:
            return cls(path, lock, exact, passphrase)
        except BaseException:
            if lock:
                lock.release()
            raise

    @staticmethod
    def exists(path: str | os.PathLike) -> bool:
        """Whether there is a store in a folder."""
        return (Path(path) / CATALOG).is_file()

    def __init__(
        self,
        path: Path,
        lock: WriterLock | None,
        exact: int,
        passphrase: Passphrase | None,
    ):
        super().__init__(path, write=bool(lock), exact=exact, passphrase=passphrase)
        self._lock = lock
        if lock:
            try:
                self._records.sweep()
                self._records.erase()  # and cut off what a crash has left behind
            except BaseException:
                self._records.close()
                self._catalog.close()
                raise

    # editions

    def add_edition(
        self, *, fingerprint: Mapping[str, str], memory: Mapping, record_bytes: int
    ) -> Edition:
        """Add an edition without memories, and return it.

        Raises:
            StoreError: there is one with this fingerprint.
        """
        self._writing()
        if any(known.fingerprint == dict(fingerprint) for known in self.editions()):
            raise StoreError(f"{self.path}: there are memories with this fingerprint already.")
        with os_errors_as_store_errors(self.path), self._catalog.transaction():
            id = self._catalog.next_edition()
            file = f"memories-{id}.kv"
            edition = Edition(
                *(id, dict(fingerprint), dict(memory), record_bytes, file),
                origin=self._catalog.first_slot(),
                added=_now(),
                overhead=OVERHEAD if self._catalog.cipher else 0,
            )
            self._records.add(edition)  # in place before the catalog says so
            self._catalog.add_edition(edition)
        return edition

    def remove_edition(self, edition: int) -> None:
        """Erase all memories of an edition; documents, text and vectors stay.

        Raises:
            StoreError: it is the only one, or there is none.
        """
        self._writing()
        if [edition] == [known.id for known in self.editions()]:
            raise StoreError(
                f"{self.path}: edition {edition} is the only one. Add another before removing it."
            )
        with os_errors_as_store_errors(self.path):
            self._records.remove(edition)

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
        self._writing()
        if references < 1:
            raise StoreError(f"{path}: it has no references, so there is nothing to remember.")
        cut = self.edition.tokenizer if tokenizer is None else tokenizer
        with self._catalog.transaction():
            return self._catalog.begin(path, hash, size, references, cut, added)

    def add(self, references: Sequence[NewReference], edition: int | None = None) -> None:
        """Store references in one commit. They follow those that their documents have.

        Args:
            edition: id of the edition of their records; None for the first.
        """
        self._writing()
        self._check([reference.vector for reference in references])
        with os_errors_as_store_errors(self.path), self._catalog.transaction():
            first = self._catalog.settings()["next_slot"]
            records = {
                slot: reference.record
                for slot, reference in enumerate(references, first)
                if reference.record is not None
            }
            id = self._catalog.edition(edition).id
            if records:
                bank = self._records.bank(id)
                bank.check(records.values())
                bank.write(records)  # on the disk before any row says so
            self._catalog.insert(first, references)
            self._catalog.mark(id, records, warm=True)
            self._catalog.set(next_slot=first + len(references))
        self._written(records, id)

    def write(self, records: Mapping[int, bytes], edition: int | None = None) -> None:
        """Give references their memories, by slot. A memory that is there is replaced.

        Args:
            edition: id of the edition that they are of; None for the first.
        """
        self._writing()
        records = {int(slot): memory for slot, memory in records.items()}
        id = self._records.edition(edition).id
        bank = self._records.bank(id)
        bank.check(records.values())
        with self._catalog.thread:  # nobody forgets between the two commits
            with self._catalog.transaction():
                if gone := records.keys() - self._catalog.warmth(id, records).keys():
                    raise self._gone(min(gone))
                # while its bytes change, there is none
                self._catalog.mark(id, records, warm=False)
            with os_errors_as_store_errors(self.path), self._catalog.transaction():
                bank.write(records)
                self._catalog.mark(id, records, warm=True)
        self._written(records, id)

    def _written(self, slots: Collection[int], edition: int) -> None:
        """What follows the commit of new memories."""
        with os_errors_as_store_errors(self.path):
            self._records.erase()
            self._records.usage(self._records.edition(edition)).note(slots)
            self._records.keep_bound(edition, slots)

    def quarantine(self, slots: Iterable[int], quarantined: bool = True) -> None:
        """Hide references from searches, which are damaged and cannot be mended; or show them."""
        self._writing()
        with self._catalog.transaction():
            self._catalog.quarantine(slots, quarantined)

    def rename(self, paths: Mapping[int, str]) -> None:
        """Give documents, by id, the paths to which their files were moved, all or none.

        Nothing is memorized anew; the old paths are erased with the next ``settle``.

        Raises:
            StoreError: there is no such document, or another one has this path.
        """
        self._writing()
        with self._catalog.transaction():
            for document, path in paths.items():
                self._catalog.rename(document, path)

    def collect(self, documents: Iterable[int], collection: str) -> None:
        """Put documents, by id, into a collection, out of any other; "" for none."""
        self._writing()
        with self._catalog.transaction():
            collect(self._catalog, documents, collection)

    # the bound

    def set_bound(self, max_bytes: int | None, edition: int | None = None) -> int:
        """Keep the store within so many bytes from now on, or within none.

        When it has grown beyond, the memories that were not used for longest are dropped, of any
        edition; their references stay, cold. Text, vectors and index are never dropped.

        Args:
            edition: whose memories go last among those used alike; None for the first.

        Returns:
            How many memories were dropped now.
        """
        self._writing()
        if max_bytes is not None and max_bytes < 1:
            raise StoreError(f"{self.path}: {max_bytes} bytes are no bound. Give at least 1.")
        with self._catalog.transaction():
            self._catalog.set(max_bytes=max_bytes)
        with os_errors_as_store_errors(self.path):
            return self._records.keep_bound(edition)

    # forgetting

    def forget(self, documents: Iterable[int], edition: int | None = None) -> list[StoredDocument]:
        """Erase documents by id: text, full text, vectors, index and memories. Returns them.

        Args:
            edition: whose memories the returned documents count; those of all are erased.

        With the document of a conversation goes its session, which says the same.

        The bytes are gone from the store's files. Copies that a file system, its snapshots, a
        backup or the disk itself keeps are out of reach.
        """
        self._writing()
        known = {document.id: document for document in self.documents(edition)}
        wanted = list(dict.fromkeys(documents))
        for id in wanted:
            if id not in known:
                raise StoreError(f"{self.path}: there is no document {id}.")
        names = [known[id].path for id in wanted]
        if conversations := [name for name in names if name.startswith(CONVERSATION)]:
            with self.sessions() as sessions:
                for name in conversations:
                    sessions.delete(name.removeprefix(CONVERSATION))
        with self._catalog.transaction():
            self._catalog.remove(wanted)
        self.settle()
        return [known[id] for id in wanted]

    def forget_proved(self, documents: Iterable[int], edition: int | None = None) -> ForgetReport:
        """Forget documents, and search every byte of the store's files for samples of them."""
        wanted = list(documents)
        samples = self.traces(wanted)
        gone = self.forget(wanted, edition)
        verification = self.verify(samples)
        certificate = self.certificate(gone, samples, verification)
        return ForgetReport(gone, verification.residue, certificate)

    # order

    def settle(self) -> None:
        """Do what commits leave for later: erase what was removed, bring the index up to date.

        ``close`` and ``forget`` do it; a long-lived writer may call it between two tasks.
        """
        self._writing()
        with os_errors_as_store_errors(self.path):
            self._records.erase()
            self._catalog.scrub()
            self._search.refresh()
            self._records.keep_bound()  # an index counts too

    quick_check = staticmethod(check.quick)
    check = staticmethod(check.check)
    repair = staticmethod(repair.repair)

    def compact(self) -> int:
        """Give room back: number references anew without gaps, and copy their records.

        This needs room for a second copy of all records. Readers go on: what they
        found before, they are told to search again. A crash leaves the old or the new store.

        Returns:
            How many memories were damaged; they are left out, and their references are cold.
        """
        self._writing()
        with os_errors_as_store_errors(self.path):
            self._records.erase()
            damaged = compact.renumber(self._catalog, self._records)
            self.settle()
        return damaged

    def _writing(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path}: this store is open for reading only.")

    def close(self) -> None:
        """Settle what is left to do and close the files."""
        try:
            if self._lock:
                self.settle()
        finally:
            self._close()

    def _close(self) -> None:
        self._records.close()
        self._catalog.close()
        if self._lock:
            self._lock.release()
            self._lock = None

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
        else:  # what is committed is safe, and the next writer settles the rest
            self._close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
