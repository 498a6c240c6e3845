"""A store: documents, their references and their memories in one folder.

    STORE/
      catalog.sqlite    the truth: documents, references, text, full text, vectors, settings
      memories.kv       the memories, a fixed-size record for each slot
      vectors.usearch   derived from the catalog, for large stores only
      lock              held by the one process that writes

What a commit does, in this order: the records of new memories are written and are on the disk;
then one transaction adds the rows. A crash before the end of the transaction leaves bytes that
nothing refers to; they are cut off or written over. What may wait is done by ``settle``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import StoreError
from . import index, traces
from .bank import Bank, DamagedRecord, stride
from .catalog import NEW_STORE, Catalog, NewReference, StoredDocument
from .files import NEW, WriterLock, told
from .search import EXACT_REFERENCES, Hit, Search
from .traces import Residue, Trace

__all__ = ["Hit", "MemoryStore", "NewReference", "Residue", "StoredDocument", "Trace"]

_CATALOG, _BANK, _INDEX, _LOCK = "catalog.sqlite", "memories.kv", "vectors.usearch", "lock"


class MemoryStore:
    """An open store. One may be open for writing, any number for reading at the same time.

    Attributes:
        path: the folder.
        fingerprint: every condition under which its memories are made.
        memory: the memory configuration, as JSON-able values.
        encoder: what made its vectors.
        dimensions: of its vectors.
        record_bytes: length of one memory.
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
    ) -> MemoryStore:
        """Make an empty store in a new or empty folder and open it for writing.

        Raises:
            StoreError: there is a store already, or something else.
        """
        path = Path(path)
        if cls.exists(path):
            raise StoreError(f"{path}: there is a store already. Open it, or name another folder.")
        with told(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            ours = {_LOCK, _BANK, _BANK + NEW, _CATALOG + NEW}  # of a creation that was cut off
            if found := {entry.name for entry in path.iterdir()} - ours:
                raise StoreError(
                    f"{path}: this folder is no store and not empty (it has {min(found)}). "
                    f"Name a new folder."
                )
            path.chmod(0o700)
            lock = WriterLock(path / _LOCK, wait=0)
            try:
                store_id = secrets.token_bytes(16)
                Bank.create(path / _BANK, store_id, record_bytes)
                settings = {
                    "id": store_id.hex(),
                    "fingerprint": dict(fingerprint),
                    "memory": dict(memory),
                    "encoder": encoder,
                    "dimensions": dimensions,
                    "record_bytes": record_bytes,
                    **NEW_STORE,
                }
                Catalog.create(path / _CATALOG, settings)  # last: now the store exists
            finally:
                lock.release()
        return cls.open(path, write=True, exact=exact)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        write: bool = False,
        wait: float = 10.0,
        exact: int = EXACT_REFERENCES,
    ) -> MemoryStore:
        """Open a store.

        Args:
            write: whether to change it, which one process at a time may do.
            wait: seconds to wait until another process has finished writing.
            exact: up to so many references, searches compare with all of them.

        Raises:
            StoreError: there is none, it is damaged, of another version, or being written to.
        """
        path = Path(path)
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no store. `m3mlx memorize PATH` makes one.")
        with told(path):
            lock = WriterLock(path / _LOCK, wait) if write else None
            try:
                return cls(path, lock, exact)
            except BaseException:
                if lock:
                    lock.release()
                raise

    @staticmethod
    def exists(path: str | os.PathLike) -> bool:
        """Whether there is a store in a folder."""
        return (Path(path) / _CATALOG).is_file()

    def __init__(self, path: Path, lock: WriterLock | None, exact: int):
        self.path = path
        self._lock = lock
        self._catalog = Catalog(path / _CATALOG, write=bool(lock))
        try:
            with self._catalog.snapshot():
                settings = self._catalog.settings()
            try:
                self.fingerprint: dict[str, str] = settings["fingerprint"]
                self.memory: dict = settings["memory"]
                self.encoder: str = settings["encoder"]
                self.dimensions = int(settings["dimensions"])
                self.record_bytes = int(settings["record_bytes"])
                store_id = bytes.fromhex(settings["id"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._catalog.damaged(f"a setting is wrong ({error})") from error
            self._search = Search(self._catalog, path / _INDEX, self.dimensions, exact)
            self._bank = Bank(path / _BANK, store_id, self.record_bytes, write=bool(lock))
            try:
                # twice, because a writer may shorten the file between the two looks
                if self._bank.records < self._extent() and self._bank.records < self._extent():
                    raise StoreError(
                        f"{self._bank.path}: it is cut short, {self._bank.records} memories of "
                        f"{self._extent()} are left. Restore the file from a backup, or remove "
                        f"the store's folder and memorize the documents again."
                    )
                if lock:
                    self._erase()  # and cut off what a crash has left behind
            except BaseException:
                self._bank.close()
                raise
        except BaseException:
            self._catalog.close()
            raise

    # adding

    def missing(self, files: Iterable[tuple[str, str]]) -> set[str]:
        """Of (path, hash) pairs, the paths that are not wholly stored with that hash."""
        with self._catalog.snapshot():
            stored = self._catalog.hashes()
        return {path for path, hash in files if stored.get(path) != hash}

    def begin(self, path: str, hash: str, references: int, *, size: int) -> tuple[int, int]:
        """Start to add a document, or go on with one that was interrupted.

        Until all references are there the document is not found; then it replaces the one that
        had the same path.

        Args:
            path: of the file.
            hash: of its content; another hash starts anew.
            references: how many there will be.
            size: of the file, in bytes.

        Returns:
            The document's id, and the number of references that are stored already.
        """
        self._writing()
        if references < 1:
            raise StoreError(f"{path}: it has no references, so there is nothing to remember.")
        with self._catalog.transaction():
            return self._catalog.begin(path, hash, size, references)

    def add(self, references: Sequence[NewReference]) -> None:
        """Store references in one commit. They follow those that their documents have."""
        self._writing()
        self._check([reference.vector for reference in references])
        with told(self.path), self._catalog.transaction():
            first = self._catalog.settings()["next_slot"]
            records = {
                slot: reference.record
                for slot, reference in enumerate(references, first)
                if reference.record is not None
            }
            self._bank.check(records.values())
            self._bank.write(records)  # on the disk before any row says so
            self._catalog.insert(first, references)
            self._catalog.set(next_slot=first + len(references))
        self._erase()

    def write(self, records: Mapping[int, bytes]) -> None:
        """Give references their memories, by slot. A memory that is there is replaced."""
        self._writing()
        records = {int(slot): memory for slot, memory in records.items()}
        self._bank.check(records.values())
        with self._catalog.thread:  # nobody forgets between the two commits
            with self._catalog.transaction():
                if gone := records.keys() - self._catalog.warmth(records).keys():
                    raise self._gone(min(gone))
                self._catalog.mark(records, warm=False)  # while its bytes change, there is none
            with told(self.path), self._catalog.transaction():
                self._bank.write(records)
                self._catalog.mark(records, warm=True)

    # finding and reading

    def search(
        self, vectors: np.ndarray, texts: Sequence[str], k: int, mode: str = "hybrid"
    ) -> list[list[Hit]]:
        """Find the references that fit best.

        Args:
            vectors: float32 ``(queries, dimensions)``, each of length one.
            texts: the same queries as text; any text will do.
            k: hits for each query, at most.
            mode: "dense" compares vectors, "text" ranks shared words by BM25, "hybrid" joins
                both by reciprocal rank.

        Returns:
            For each query its hits, the best first.
        """
        return self._search.hits(self._check(vectors), texts, k, mode)

    def read(self, slots: Sequence[int]) -> np.ndarray:
        """Read memories as uint8 ``(len(slots), record_bytes)``, their checksums verified.

        Raises:
            StoreError: a memory is damaged, not yet written, or its document has been forgotten.
        """
        slots = [int(slot) for slot in slots]
        self._require_warm(slots)
        try:
            return self._bank.read(slots)
        except DamagedRecord as error:
            self._require_warm(slots)  # it may have been forgotten just now
            with self._catalog.snapshot():
                reference = self._catalog.references([error.slot])[error.slot]
            raise StoreError(
                f"{self._bank.path}: a memory of {reference.path} (document {reference.document}) "
                f"is damaged. Forget that document and memorize it again."
            ) from error

    def _require_warm(self, slots: Sequence[int]) -> None:
        with self._catalog.snapshot():
            warmth = self._catalog.warmth(slots)
        for slot in slots:
            if slot not in warmth:
                raise self._gone(slot)
            if not warmth[slot]:
                raise StoreError(
                    f"{self.path}: reference {slot} is cold, its memory has not been written yet. "
                    f"Write it first."
                )

    def _gone(self, slot: int) -> StoreError:
        return StoreError(
            f"{self.path}: there is no reference {slot}, its document has been forgotten or "
            f"replaced. Search again."
        )

    def documents(self) -> list[StoredDocument]:
        """All documents, also those that are not complete, by id."""
        with self._catalog.snapshot():
            documents = self._catalog.documents()
        record = stride(self.record_bytes)
        return [replace(document, bytes=document.warm * record) for document in documents]

    def find_documents(self, names: Iterable[str]) -> list[StoredDocument]:
        """Documents by id, by path, or all below a folder.

        Raises:
            StoreError: nothing has one of these names.
        """
        documents = self.documents()
        found = {}
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

    def status(self) -> dict:
        """Counts of documents, references and cold references, bytes by part, fingerprint."""
        documents = self.documents()
        references = sum(document.references for document in documents)
        return {
            "documents": len(documents),
            "references": references,
            "cold": references - sum(document.warm for document in documents),
            "bytes": {
                "catalog": self._bytes(_CATALOG, f"{_CATALOG}-wal"),
                "memories": self._bytes(_BANK),
                "index": self._bytes(_INDEX),
            },
            "fingerprint": self.fingerprint,
        }

    def _bytes(self, *names: str) -> int:
        """Bytes that files take on the disk; a record file has holes for cold references."""
        files = [self.path / name for name in names]
        return sum(file.stat().st_blocks * 512 for file in files if file.exists())

    # forgetting

    def forget(self, documents: Iterable[int]) -> list[StoredDocument]:
        """Erase documents by id: text, full text, vectors, index and memories. Returns them.

        The bytes are gone from the store's files. Copies that a file system, its snapshots, a
        backup or the disk itself keeps are out of reach.
        """
        self._writing()
        known = {document.id: document for document in self.documents()}
        wanted = list(dict.fromkeys(documents))
        for id in wanted:
            if id not in known:
                raise StoreError(f"{self.path}: there is no document {id}.")
        with self._catalog.transaction():
            self._catalog.remove(wanted)
        self.settle()
        return [known[id] for id in wanted]

    def traces(self, documents: Iterable[int]) -> list[Trace]:
        """Take samples of documents, by id, to be looked for after they are forgotten."""
        wanted = set(documents)
        chosen = [document for document in self.documents() if document.id in wanted]
        return traces.take(chosen, self._catalog, self._bank)

    def residue(self, samples: Sequence[Trace]) -> list[Residue]:
        """Look for samples in every byte of the store's files.

        A sample that remaining documents hold too is left out.
        """
        return traces.left(samples, self.path, self._catalog, self._bank)

    # order

    def settle(self) -> None:
        """Do what commits leave for later: erase what was removed, bring the index up to date.

        ``close`` and ``forget`` do it; a long-lived writer may call it between two tasks.
        """
        self._writing()
        self._erase()
        self._catalog.scrub()
        with told(self.path):
            self._search.refresh()

    def _erase(self) -> None:
        """Overwrite the records of references that are gone; cut off what is behind the last."""
        with told(self._bank.path), self._catalog.transaction():  # nothing is added meanwhile
            self._bank.erase(self._catalog.leftovers())
            self._bank.trim(self._catalog.extent())
            self._catalog.clear_leftovers()

    def _extent(self) -> int:
        with self._catalog.snapshot():
            return self._catalog.extent()

    def _check(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors as float32 ``(n, dimensions)``. Raises StoreError if they are not that."""
        if all(np.shape(vector) == (self.dimensions,) for vector in vectors):
            checked = np.asarray(vectors, dtype=np.float32)
            if not len(checked) or index.are_unit(checked):
                return checked
        raise StoreError(
            f"{self.path}: a vector is not {self.dimensions} finite numbers of length one. "
            f"Use the encoder that made the store ({self.encoder})."
        )

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
        self._bank.close()
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
