"""Copy a store to another folder while it is in use: one moment of it, and only what is new.

The catalog is copied by SQLite as one commit has it. Then the memories that it has are copied, each
proved by its checksum; what the folder has already from an earlier backup is proved there and left.
At the end the new catalog takes the place of the old one, so that the folder is the old backup or
the new one, whenever this is cut off. Only then memories are erased that the new one does not have.

A backup is a store, which is restored by opening it. Its record files have ties of their own, so
they never pass for those of the store that it was made of.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .. import files
from ..config import Progress, no_progress
from ..errors import StoreError
from ..files import NEW, os_errors_as_store_errors
from . import index
from .catalog import Catalog
from .catalog_references import blocks
from .cipher import Passphrase
from .database import errors_translated
from .folder import CATALOG, check_plain, require_store
from .lock import FILE as LOCK
from .lock import WriterLock
from .record_file import TIE, Identity, RecordFile
from .rows import Edition
from .sessions import FILE as SESSIONS
from .usage import Usage

_SETTING = "backup"  # of a catalog that is one: its commit and ties, as they were when it was made
_TURNS = 3  # of copying, while a writer moves or erases what is to be copied
_PART = 64  # memories that are copied at a time


@dataclass(frozen=True)
class BackupReport:
    """Result of a backup.

    Attributes:
        documents, references: that it has.
        copied, unchanged: memories that were copied now, and that were there from an earlier one.
        cold: memories that could not be read, or were erased meanwhile; they are written again
            from the text.
        bytes: of all its files.
    """

    folder: str
    documents: int
    references: int
    copied: int
    unchanged: int
    cold: int
    bytes: int


def backup(
    path: Path,
    folder: Path,
    progress: Progress = no_progress,
    *,
    passphrase: Passphrase | None = None,
) -> BackupReport:
    """Copy a store, which others may read and write meanwhile.

    Args:
        folder: a new or empty one, or an earlier backup of this store, which becomes the present.

    Raises:
        LockedError: the store is encrypted, and the passphrase is missing or wrong.
        StoreError: there is no store, or the folder is something else.
    """
    path, folder = Path(path), Path(folder)
    require_store(path)
    with os_errors_as_store_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.samefile(path) or folder.resolve().is_relative_to(path.resolve()):
            raise StoreError(
                f"{folder}: a backup cannot lie in its own store. Name another folder."
            )
        check_plain(folder, write=True)
        if not (folder / CATALOG).exists():
            _check_empty(folder)
        folder.chmod(0o700)
        with closing(WriterLock(folder / LOCK, wait=0)):
            for turn in range(_TURNS):
                run = _Backup(path, folder, progress, passphrase)
                if run.copy(last=turn == _TURNS - 1):
                    break
            run.finish()
            return run.report()


def _check_empty(folder: Path) -> None:
    """Raise StoreError for a folder with anything but the beginnings of a backup."""
    names = {file.name for file in folder.iterdir()} - {LOCK, f"{CATALOG}{NEW}"}
    if others := [name for name in names if not name.startswith((CATALOG, "memories", "vectors"))]:
        raise StoreError(
            f"{folder}: this folder is no backup and not empty (it has {min(others)}). "
            f"Name a new folder."
        )


class _Backup:
    """One try."""

    def __init__(self, path: Path, folder: Path, progress: Progress, passphrase: Passphrase | None):
        self._path, self._folder = path, folder
        self._progress, self._passphrase = progress, passphrase
        self._new = folder / f"{CATALOG}{NEW}"
        self._copied = self._unchanged = self._cold = 0

    def copy(self, *, last: bool) -> bool:
        """Copy all but what makes it valid; False if a writer has moved things meanwhile."""
        for ending in ("", "-wal", "-shm"):
            self._new.with_name(self._new.name + ending).unlink(missing_ok=True)
        files.create_private(self._new)
        with closing(Catalog(self._path / CATALOG)) as source:
            self._check_folder(source)
            with errors_translated(self._path), closing(sqlite3.connect(self._new)) as target:
                source.db.conn.backup(target)
        files.at_step("catalog copied")
        with closing(Catalog(self._new, write=True)) as catalog:
            catalog.unlock(self._passphrase)
            with catalog.snapshot():
                settings, editions = catalog.settings(), catalog.memories.editions()
                *_, store = catalog.identity(settings)
            lost: dict[int, list[int]] = {}
            for edition in editions:
                own = replace(edition, tie=self._tie(store, edition), next_tie="")
                with catalog.transaction():
                    catalog.memories.announce_tie(edition.id, bytes.fromhex(own.tie), b"")
                lost[edition.id] = list(self._copy_memories(catalog, store, edition, own))
                if lost[edition.id] and not last:
                    return False
            ties = {e.id: e.tie for e in self._editions(catalog)}
            with catalog.transaction():
                for id, slots in lost.items():
                    catalog.memories.drop(id, slots)
                    self._cold += len(slots)
                catalog.db.execute(
                    "INSERT OR REPLACE INTO setting VALUES (?, ?)",
                    [_SETTING, json.dumps({"commit": settings["commit"], "ties": ties})],
                )
            self._copy_index(settings["seal"])
            with catalog.db.lock:
                catalog.db.value("PRAGMA wal_checkpoint(TRUNCATE)")
        return True

    def _check_folder(self, source: Catalog) -> None:
        """Raise StoreError if the folder has another store, or one that was changed since."""
        if not (self._folder / CATALOG).exists():
            return
        present = Catalog(self._folder / CATALOG)
        with closing(present), present.snapshot(), source.snapshot():
            old, new = present.settings(), source.settings()
            ties = {str(e.id): e.tie for e in present.memories.editions()}
        if old.get("id") != new.get("id"):
            raise StoreError(f"{self._folder}: it has another store. Name a new folder.")
        if old.get(_SETTING) != {"commit": old["commit"], "ties": ties}:
            raise StoreError(
                f"{self._folder}: it is no backup, or was changed since it was made. Name a new "
                f"folder, and remove this one if nothing in it is needed."
            )

    def _editions(self, catalog: Catalog) -> list[Edition]:
        with catalog.snapshot():
            return catalog.memories.editions()

    def _tie(self, store: bytes, edition: Edition) -> str:
        """The tie of the folder's record file, which stays; that of a new one if there is none."""
        file = self._folder / edition.file
        with suppress(StoreError), closing(RecordFile(file, Identity.of(store, edition))) as there:
            return there.tie.hex()
        tie = secrets.token_hex(TIE)
        RecordFile.create(file, Identity.of(store, replace(edition, tie=tie, next_tie="")))
        return tie

    def _copy_memories(
        self, catalog: Catalog, store: bytes, edition: Edition, own: Edition
    ) -> Iterator[int]:
        """Copy what is not there yet; yield slots that cannot be read."""
        with catalog.snapshot():
            warm = catalog.memories.warm_slots(edition.id).tolist()
        identity = Identity.of(store, own)
        try:
            source = RecordFile(self._path / edition.file, Identity.of(store, edition))
        except StoreError:  # a writer has put another in its place, or it is damaged
            yield from warm
            return
        target = RecordFile(self._folder / edition.file, identity, write=True)
        with closing(source), closing(target):
            for part in blocks(warm):
                with catalog.snapshot():
                    digests = catalog.references.digests(part)
                missing = [slot for slot in part if not _has(target, slot, digests)]
                self._unchanged += len(part) - len(missing)
                for start in range(0, len(missing), _PART):
                    found = {}
                    for slot in missing[start : start + _PART]:
                        if _has(source, slot, digests):
                            found[slot] = source.read([slot], digests)[0].tobytes()
                        else:
                            yield slot
                    target.write(found, digests)
                    self._copied += len(found)
                self._progress("copying memories", self._copied + self._unchanged, len(warm))
            strays = target.strays(set(warm), edition.origin + target.records)
            with catalog.transaction():
                catalog.memories.drop(edition.id, strays)  # erased when the catalog is in place
        with suppress(OSError):
            used = Usage(self._folder / edition.file, edition.origin).path
            files.copy(self._path / used.name, used)

    def _copy_index(self, seal: dict | None) -> None:
        """Copy the index, unless it is there; where that fails, the next writer makes it."""
        with suppress(index.StaleIndex, TypeError, OSError):
            stamp = index.IndexStamp(**(seal or {}))
            with suppress(index.StaleIndex):
                index.Graph(self._folder / index.FILE, stamp)
                return
            files.copy(self._path / index.FILE, self._folder / index.FILE)

    def finish(self) -> None:
        """Put the new catalog in place, and erase what it does not have."""
        self._copy_sessions()
        with errors_translated(self._folder / CATALOG):
            for ending in ("-wal", "-shm"):  # of a backup that was opened and cut off
                (self._folder / f"{CATALOG}{ending}").unlink(missing_ok=True)
        os.replace(self._new, self._folder / CATALOG)
        files.at_step("backup in place")
        files.sync_folder(self._folder)
        with closing(Catalog(self._folder / CATALOG, write=True)) as catalog:
            catalog.unlock(self._passphrase)
            with catalog.snapshot():
                *_, store = catalog.identity(catalog.settings())
            for edition in self._editions(catalog):
                file = self._folder / edition.file
                records = RecordFile(file, Identity.of(store, edition), write=True)
                with closing(records), catalog.transaction():
                    records.erase(catalog.memories.leftovers(edition.id))
                    records.trim(max(catalog.memories.end(edition.id), edition.origin))
                    catalog.memories.clear_leftovers(edition.id)
            known = {edition.file for edition in self._editions(catalog)}
        for file in self._folder.glob("memories*"):  # of editions and times that are gone
            if file.with_suffix(".kv").name not in known:
                file.unlink()

    def _copy_sessions(self) -> None:
        source, target = self._path / SESSIONS, self._folder / SESSIONS
        if not source.exists():
            target.unlink(missing_ok=True)
            return
        with errors_translated(source), files.replacing(target) as new:
            reading = f"{source.absolute().as_uri()}?mode=ro"
            with (
                closing(sqlite3.connect(reading, uri=True)) as kept,
                closing(sqlite3.connect(new)) as copy,
            ):
                kept.backup(copy)

    def report(self) -> BackupReport:
        with closing(Catalog(self._folder / CATALOG)) as catalog, catalog.snapshot():
            documents, references = catalog.counts()
        size = sum(file.stat().st_blocks * 512 for file in self._folder.iterdir())
        counts = self._copied, self._unchanged, self._cold
        return BackupReport(str(self._folder), documents, references, *counts, size)


def _has(file: RecordFile, slot: int, digests: dict[int, bytes]) -> bool:
    """Return whether a file has the memory of a reference."""
    with suppress(StoreError):
        file.read([slot], digests)
        return True
    return False
