"""Find what is damaged in a store, and which documents that concerns.

Everything that carries a checksum is read: pages and indexes of the databases, full text against
the texts, every reference, every record of every edition, the index file against its stamp and the
catalog, and every message of the sessions. ``repair`` mends what this finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..config import Progress, no_progress
from ..errors import StoreError
from ..files import os_errors_as_store_errors
from . import index, sessions
from .catalog import Catalog
from .cipher import LockedError, Passphrase
from .database import integrity_errors
from .folder import CATALOG, require_store
from .lock import FILE as LOCK
from .lock import WriterLock
from .record_file import DamagedRecord, Identity, RecordFile
from .rows import Edition
from .sessions import Sessions

_PART = 256  # references that are read at a time


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        part: "catalog", "rows" (not all those, or not only those, that were written with the key
            of an encrypted store), "words" (the full text), "document", "fact" (who said it, and
            its history), "reference", "memory", "records" (a record file as a whole), "index" or
            "sessions".
        detail: what is wrong, in a clause.
        path: the document concerned, where it is known.
        slot, edition, document: what is concerned, where it is known.
    """

    part: str
    detail: str
    path: str | None = None
    slot: int | None = None
    edition: int | None = None
    document: int | None = None


@dataclass
class CheckReport:
    """Result of a check.

    Attributes:
        damages: what is damaged.
        quarantined: paths of documents of which references are hidden, with their numbers: they
            were damaged and could not be mended. Memorizing the files again replaces them.
        references, memories: how many were read.
    """

    damages: list[Damage] = field(default_factory=list)
    quarantined: dict[str, int] = field(default_factory=dict)
    references: int = 0
    memories: int = 0

    @property
    def sound(self) -> bool:
        """Return whether nothing is damaged but at most the index, which is derived.

        A crash too can leave an index that is not the one the catalog means; searches do without
        it, and the next writer makes it again.
        """
        return all(damage.part == "index" for damage in self.damages)

    @property
    def documents(self) -> list[str]:
        """Paths of all documents of which something is damaged."""
        return sorted({damage.path for damage in self.damages if damage.path is not None})


def check(
    path: Path,
    progress: Progress = no_progress,
    *,
    wait: float = 10.0,
    passphrase: Passphrase | None = None,
) -> CheckReport:
    """Examine everything in a store, which nobody may change meanwhile.

    Raises:
        LockedError: the store is encrypted, and the passphrase is missing or wrong.
        StoreError: there is no store, or another process writes to it.
    """
    path = Path(path)
    with exclusive(path, wait):
        return examine(path, progress, passphrase)


def quick(path: Path, passphrase: Passphrase | None = None) -> CheckReport:
    """Do the part of a check that is fast and lets others write.

    Texts, vectors and memories are not read, only what holds them.

    Raises:
        LockedError: the store is encrypted, and the passphrase is missing or wrong.
        StoreError: there is no store.
    """
    path = Path(path)
    require_store(path)
    return examine(path, no_progress, passphrase, quick=True)


@contextmanager
def exclusive(path: Path, wait: float) -> Iterator[None]:
    """Keep every writer out of a store; raise StoreError where there is none, or one stays."""
    require_store(path, write=True)
    with os_errors_as_store_errors(path), closing(WriterLock(path / LOCK, wait)):
        yield


def examine(
    path: Path, progress: Progress, passphrase: Passphrase | None, *, quick: bool = False
) -> CheckReport:
    """As ``check``; the caller holds the lock, unless it is ``quick``."""
    try:
        # to write, so that full text can be checked
        with closing(Catalog(path / CATALOG, write=not quick)) as catalog:
            catalog.unlock(passphrase)
            return _Examination(path, catalog, progress, quick).findings()
    except LockedError:
        raise
    except StoreError as error:
        return CheckReport([Damage("catalog", str(error))])


class _Examination:
    def __init__(self, path: Path, catalog: Catalog, progress: Progress, quick: bool):
        self._path, self._catalog, self._progress = path, catalog, progress
        self._quick = quick
        self._found = CheckReport()
        self._hidden: set[int] = set()  # slots of references that are damaged or in quarantine
        self._dimensions, self._store = 0, b""

    def findings(self) -> CheckReport:
        parts = [
            *(self._pages, self._rows, self._full_text, self._settings, self._documents),
            *(self._references, self._memories, self._index, self._sessions),
        ]
        slow = (self._rows, self._full_text, self._references, self._sessions)
        names = {self._full_text: "words", self._sessions: "sessions"}
        for examine in parts:
            if self._quick and examine in slow:
                continue
            try:
                examine()
            except StoreError as error:  # what cannot even be asked for is damaged, too
                self._note(names.get(examine, "catalog"), str(error))
        self._found.damages = list(dict.fromkeys(self._found.damages))
        return self._found

    def _note(
        self,
        part: str,
        detail: str,
        *,
        path: str | None = None,
        slot: int | None = None,
        edition: int | None = None,
        document: int | None = None,
    ) -> None:
        self._found.damages.append(Damage(part, detail, path, slot, edition, document))

    def _pages(self) -> None:
        with self._catalog.snapshot():
            for error in integrity_errors(self._catalog.db.conn, quick=self._quick):
                self._note("catalog", error)

    def _rows(self) -> None:
        with self._catalog.snapshot():
            for table in self._catalog.root.changed() if self._catalog.root else ():
                what = f"rows of the table {table} were changed, moved, dropped or brought back"
                self._note("rows", what)

    def _full_text(self) -> None:
        with suppress(_Undo), self._catalog.transaction():
            self._catalog.full_text.check()
            raise _Undo

    def _settings(self) -> None:
        with self._catalog.snapshot():
            settings = self._catalog.settings()
            _, self._dimensions, self._store = self._catalog.identity(settings)
            last, since = self._catalog.latest()
            found = None if self._catalog.cipher.encrypts else self._catalog.vector_bytes()
        if found not in (None, 4 * self._dimensions):
            what = f"vectors have {found} bytes, which are not {self._dimensions} dimensions"
            self._note("catalog", what)
        if last is not None and last >= settings["next_slot"]:
            self._note("catalog", f"the next slot, {settings['next_slot']}, is in use")
        if since is not None and since > settings["commit"]:
            self._note("catalog", f"a document is of commit {since}, which has not been yet")

    def _documents(self) -> None:
        with self._catalog.snapshot():
            rows = self._catalog.document_rows()
        for id, path, hash, count, complete, have, last, *_ in rows:
            try:
                names = self._catalog.columns.name(path), self._catalog.columns.name(hash)
                with self._catalog.snapshot():
                    path, hash = self._catalog.columns.about_of(id)[:2]
            except StoreError as error:
                with self._catalog.snapshot():
                    found = self._catalog.columns.path_of(id)
                self._note("document", str(error), document=id, path=found)
                continue
            try:
                with self._catalog.snapshot():
                    self._catalog.facts.about(id)
            except StoreError as error:
                self._note("fact", str(error), path=str(path), document=id)
            if names != (path, hash):
                what = "it is not under its own name"
                self._note("document", what, path=str(path), document=id)
            # without a hash it is known to have some
            gaps = hash and not (last is None or (type(last) is int and last < max(have, 1)))
            if complete not in (0, 1) or complete != (count == have) or gaps:
                what = f"it has {have} of {count} references"
                self._note("document", what, path=str(path), document=id)
        with self._catalog.snapshot():
            self._found.quarantined = self._catalog.quarantined()

    def _references(self) -> None:
        after, done = -1, 0
        with self._catalog.snapshot():
            total = self._catalog.counts()[1]
            self._hidden.update(self._catalog.quarantined_slots())
        while True:
            with self._catalog.snapshot():
                slots = self._catalog.slots_after(after, _PART)
            if not slots:
                return
            if slots != sorted(set(slots)) or slots[0] <= after:  # it would never end
                self._note("catalog", f"references behind {after} are out of order")
                return
            wanted = [slot for slot in slots if slot not in self._hidden]
            try:
                self._read(wanted)
            except StoreError:
                for slot in wanted:
                    try:
                        self._read([slot])
                    except StoreError as error:
                        path = self._document_of(slot)
                        self._note("reference", str(error), slot=slot, path=path)
                        self._hidden.add(slot)
            after, done = slots[-1], done + len(slots)
            self._found.references = done
            self._progress("checking references", done, total)

    def _read(self, slots: list[int]) -> None:
        with self._catalog.snapshot():
            found = self._catalog.references.read(slots, 0)
        for slot, reference in found.items():
            if len(reference.vector) != self._dimensions:
                raise StoreError(f"the vector of reference {slot} has another length")

    def _document_of(self, slot: int) -> str | None:
        with suppress(StoreError), self._catalog.snapshot():
            return self._catalog.path_of(slot)
        return None

    def _memories(self) -> None:
        with self._catalog.snapshot():
            editions = self._catalog.memories.editions()
        if not editions:
            self._note("catalog", "it knows no edition of memories")
        for edition in editions:
            self._edition(edition)

    def _edition(self, edition: Edition) -> None:
        with self._catalog.snapshot():
            warm = self._catalog.memories.warm_slots(edition.id).tolist()
            known = warm if self._quick else self._catalog.memories.warmth(edition.id, warm)
        if lost := set(warm).difference(known):
            self._note("catalog", f"{len(lost)} memories are of no reference")
        path, identity = self._path / edition.file, Identity.of(self._store, edition)
        try:
            file = RecordFile(path, identity, cipher=self._catalog.cipher)
        except (StoreError, OSError) as error:
            self._note("records", str(error), edition=edition.id)
            return
        with closing(file):
            if not file.tied:
                what = "it is of another moment or copy of the store than the catalog beside it"
                self._note("records", f"{path}: {what}", edition=edition.id)
            if warm and file.records <= warm[-1] - edition.origin:
                self._note("records", f"{path} is cut short", edition=edition.id)
            if self._quick:
                return
            for start in range(0, len(warm), _PART):
                part = warm[start : start + _PART]
                with self._catalog.snapshot():
                    digests = self._catalog.references.digests(part)
                for slot in part:
                    if slot in self._hidden or slot not in digests:
                        continue
                    try:
                        file.read([slot], digests)
                        self._found.memories += 1
                    except (DamagedRecord, OSError) as error:
                        about = {"slot": slot, "edition": edition.id}
                        self._note("memory", str(error), **about, path=self._document_of(slot))
                self._progress("checking memories", start + len(part), len(warm))
            with self._catalog.snapshot():
                expected = {*warm, *self._catalog.memories.leftovers(edition.id)}
            for slot in file.strays(expected, warm[-1] if warm else 0):
                detail = f"{path}: record {slot} is of no memory that the catalog has"
                self._note("memory", detail, slot=slot, edition=edition.id)

    def _sessions(self) -> None:
        if not (self._path / sessions.FILE).exists():
            return
        with Sessions(self._path, self._catalog.cipher) as kept:
            for error in kept.errors():
                self._note("sessions", error)

    def _index(self) -> None:
        with self._catalog.snapshot():
            fields = self._catalog.settings()["seal"]
            if fields is None:
                return
            try:
                stamp = index.IndexStamp(**fields)
            except TypeError:
                self._note("index", "its stamp in the catalog is damaged")
                return
            wanted = set(self._catalog.visible_slots().tolist())
            wanted -= set(self._catalog.visible_slots(stamp.commit).tolist())
        try:
            held = index.Graph(self._path / index.FILE, stamp).slots()
        except index.StaleIndex:
            self._note("index", f"{self._path / index.FILE} is not the file that was written")
            return
        if lost := wanted.difference(held.tolist()):
            self._note("index", f"it lacks {len(lost)} references")


class _Undo(Exception):
    """Ends a transaction that is not meant to change anything."""
