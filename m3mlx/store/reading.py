"""What any number of processes may do with a store at the same time: search, read, look."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..errors import StoreError
from ..files import os_errors_as_store_errors
from . import index, traces, watched
from .bank import DamagedRecord, stride
from .catalog import Catalog
from .cipher import Passphrase
from .filter import Filter
from .records import Records
from .rows import Edition, StoredDocument, StoredReference
from .search import Hit, Search
from .sessions import FILE as SESSIONS
from .sessions import Sessions
from .traces import Trace, Verification

CATALOG, INDEX, LOCK = "catalog.sqlite", "vectors.usearch", "lock"


class ColdReference(StoreError):
    """A reference has no memory in an edition: not yet, or not any more.

    Attributes:
        slot: of the reference.
    """

    def __init__(self, store: Path, slot: int):
        super().__init__(
            f"{store}: reference {slot} is cold, its memory has not been written yet. "
            f"Write it first."
        )
        self.slot = slot


class Reading:
    """The part of an open store that changes nothing.

    Attributes:
        path: the folder.
        id: of the store, 16 bytes.
        encoder: what made its vectors.
        dimensions: of its vectors.
    """

    def __init__(
        self,
        path: Path,
        *,
        write: bool,
        exact: int,
        passphrase: Passphrase | None,
    ):
        self.path = path
        self._catalog = Catalog(path / CATALOG, write=write)
        try:
            with self._catalog.snapshot():
                settings = self._catalog.settings()
            try:
                self.encoder: str = settings["encoder"]
                self.dimensions = int(settings["dimensions"])
                self.id = bytes.fromhex(settings["id"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._catalog.damaged(f"a setting is wrong ({error})") from error
            self._catalog.unlock(passphrase)
            if self.encrypted:
                exact = sys.maxsize  # an index file would hold the vectors as they are
            self._search = Search(self._catalog, path / INDEX, self.dimensions, exact)
            self._records = Records(path, self._catalog, self.id, write=write)
            try:
                first, *others = self.editions() or [self.edition]
                if not others:  # else nobody may need the first, which can be lost
                    self._records.bank(first.id)
            except BaseException:
                self._records.close()
                raise
        except BaseException:
            self._catalog.close()
            raise

    @property
    def encrypted(self) -> bool:
        """Whether what it keeps of documents is encrypted."""
        return self._catalog.cipher is not None

    # editions

    @property
    def edition(self) -> Edition:
        """The first edition, which is meant where no other is named."""
        return self._records.edition()

    def editions(self) -> list[Edition]:
        """All editions, by id."""
        with self._catalog.snapshot():
            return self._catalog.editions()

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
            edition: id of the edition of which hits say whether their memory is there, and by
                whose tokenizer they have tokens; None for the first.

        Returns:
            For each query its hits, the best first.
        """
        known = self._records.edition(edition)
        return self._search.hits(self._check(vectors), texts, k, mode, known, only)

    def read(self, slots: Sequence[int], edition: int | None = None) -> np.ndarray:
        """Read memories as uint8 ``(len(slots), record_bytes)``, their checksums verified.

        Args:
            edition: id of the edition; None for the first.

        Raises:
            ColdReference: a memory has not been written yet, or was dropped.
            StoreError: a memory is damaged, or its document has been forgotten.
        """
        slots = [int(slot) for slot in slots]  # also of NumPy
        known = self._records.edition(edition)
        bank = self._records.bank(known.id)
        self._require_warm(slots, known.id)
        try:
            with os_errors_as_store_errors(bank.path):
                memories = bank.read(slots)
        except DamagedRecord as error:
            self._require_warm(slots, known.id)  # it may have been forgotten or dropped just now
            (reference,) = self.references([error.slot])
            raise StoreError(
                f"{bank.path}: a memory of {reference.path} (document {reference.document}) "
                f"is damaged. Forget that document and memorize it again."
            ) from error
        self._records.usage(known).note(slots)
        return memories

    def _require_warm(self, slots: Sequence[int], edition: int) -> None:
        with self._catalog.snapshot():
            warmth = self._catalog.warmth(edition, slots)
        for slot in slots:
            if slot not in warmth:
                raise self._gone(slot)
            if not warmth[slot]:
                raise ColdReference(self.path, slot)

    def _gone(self, slot: int) -> StoreError:
        return StoreError(
            f"{self.path}: there is no reference {slot}, its document has been forgotten or "
            f"replaced. Search again."
        )

    # looking

    def missing(self, files: Iterable[tuple[str, str]]) -> set[str]:
        """Of (path, hash) pairs, the paths that are not wholly stored with that hash."""
        with self._catalog.snapshot():
            stored = self._catalog.hashes()
        return {path for path, hash in files if stored.get(path) != hash}

    def documents(self, edition: int | None = None) -> list[StoredDocument]:
        """All documents, also those that are not complete, by id, with an edition's memories."""
        with self._catalog.snapshot():
            known = self._catalog.edition(edition)
            documents = self._catalog.documents(known.id)
        record = stride(known.stored_bytes)
        return [replace(document, bytes=document.warm * record) for document in documents]

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
            return self._catalog.following(after, count)

    def hidden(self) -> dict[str, int]:
        """Paths of documents with references in quarantine, and how many those are."""
        with self._catalog.snapshot():
            return self._catalog.hidden()

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
            known = self._catalog.edition(edition)
            there = self._catalog.warmth(known.id, slots)
            found = self._catalog.references(there, known.id)
        return [found[slot] for slot in sorted(found)]

    def cold(self, after: int = -1, count: int = 256, edition: int | None = None) -> list[int]:
        """The next slots behind one that have no memory in an edition, in order."""
        with self._catalog.snapshot():
            return self._catalog.cold(self._catalog.edition(edition).id, after, count)

    def status(self, edition: int | None = None) -> dict:
        """What the store holds: counts, bytes by part and bound, editions."""
        with self._catalog.snapshot():
            chosen = self._catalog.edition(edition)
            documents, references = self._catalog.counts()
            quarantined = len(self._catalog.quarantined())
            editions = [
                {**asdict(known), "warm": self._catalog.warm(known.id)}
                for known in self._catalog.editions()
            ]
            bound = self._catalog.settings()["max_bytes"]
        for known in editions:
            known["bytes"] = self._bytes(known["file"])
        warm = {known["id"]: known["warm"] for known in editions}[chosen.id]
        return {
            "documents": documents,
            "references": references,
            "cold": references - warm,
            "quarantined": quarantined,
            "bytes": {
                "catalog": self._bytes(CATALOG, f"{CATALOG}-wal"),
                "memories": sum(known["bytes"] for known in editions),
                "index": self._bytes(INDEX),
            },
            "session_bytes": self._bytes(SESSIONS),
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

    def traces(self, documents: Iterable[int]) -> list[Trace]:
        """Take samples of documents, by id, to be looked for after they are forgotten."""
        wanted = set(documents)
        chosen = [document for document in self.documents() if document.id in wanted]
        return traces.take(chosen, self._catalog, self._records)

    def verify(self, samples: Sequence[Trace]) -> Verification:
        """Look for samples in every byte of the store's files.

        A sample that remaining documents hold too is left out.
        """
        return traces.left(samples, self.path, self._catalog, self._records)

    def certificate(
        self,
        documents: Sequence[StoredDocument],
        samples: Sequence[Trace],
        verification: Verification,
    ) -> dict:
        """What was erased and how that was verified, without naming it, as JSON-able values."""
        return traces.certificate(documents, samples, verification, self.id.hex())

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
