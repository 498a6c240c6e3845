"""Watch folders: memorize what changes in them, forget what vanishes.

Reports of the operating system only say where to look. What is on disk and what is stored decide.
So lost reports, renames and editors that save by renaming need no code of their own, and a rescan
repairs whatever was missed. A document is forgotten only after its file has been missing for a
while, and never while its whole watched folder is missing or empty, as with an unmounted drive.
Documents can be asked as soon as they are read; their memories are written when nothing else is
to be done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from . import documents
from .assistant import Assistant
from .config import DEBOUNCE, GRACE, RESCAN
from .errors import DocumentError, FingerprintError, M3Error, StoreError
from .store import BusyStore, LockedError, StoredDocument
from .store.watched import Watch

MAX_DEBOUNCES = 15.0  # a file that keeps changing is read after this many debounces
TICK_MS = 300  # wait for the next report
RETRY = 10.0  # seconds until a failed write to the store is tried again
POLL = 30.0  # seconds between rescans where the system reports nothing
FILES = 32  # memorized before the store is unlocked for others
UNLOCKED = 0.2  # seconds for which it then is; waiting writers try every 0.05
MAX_DRIFT = 5.0  # seconds by which the two clocks may differ while the machine is awake


class Event(NamedTuple):
    """An event of a watched folder.

    Attributes:
        what: "added", "changed", "renamed", "vanished" (forgotten unless it returns),
            "forgotten", "failed", "waiting" (for the store), "away", "back" (a watched folder)
            or "polling" (the system reports nothing; only rescans find changes).
        path: of the file or folder.
        detail: its former path, or the reason.
    """

    what: str
    path: str
    detail: str = ""


@dataclass
class Pending:
    """Paths to look at and documents to forget, with their times in seconds of one clock."""

    debounce: float = DEBOUNCE
    grace: float = GRACE
    changed: dict[str, tuple[float, float]] = field(default_factory=dict)  # first, last report
    missing: dict[str, float] = field(default_factory=dict)  # since when a document has no file

    def add_change(self, path: str, now: float) -> None:
        """Record a report about a path."""
        self.changed[path] = (self.changed.get(path, (now,))[0], now)

    def take_ready(self, now: float) -> list[str]:
        """Remove and return the paths at rest for ``debounce``, or changing for too long."""
        ready = [
            path
            for path, (first, last) in self.changed.items()
            if now - last >= self.debounce or now - first >= MAX_DEBOUNCES * self.debounce
        ]
        for path in ready:
            del self.changed[path]
        return ready

    def add_missing(self, path: str, now: float) -> bool:
        """Record that a document's file is missing; return whether that is new."""
        new = path not in self.missing
        self.missing.setdefault(path, now)
        return new

    def discard_missing(self, path: str) -> None:
        """Record that a file is back, or that its document is gone."""
        self.missing.pop(path, None)

    def expired(self, now: float) -> list[str]:
        """Return the documents whose files have been missing for ``grace``."""
        return [path for path, since in self.missing.items() if now - since >= self.grace]


def clock_jumped(wall_seconds: float, monotonic_seconds: float) -> bool:
    """Return whether the machine slept or its clock was set, from the time that has passed."""
    return abs(wall_seconds - monotonic_seconds) > MAX_DRIFT


class _Stopped(Exception):
    """Ends a run over files between two of its commits."""


class Watcher:
    """Follows files and folders for one assistant.

    Args:
        assistant: its store is kept up to date.
        paths: files and folders.
        collection, include, exclude, ocr: as in ``Assistant.memorize``.
        cold: write each memory at its first use only; otherwise also while nothing else is to be
            done.
        on_event: called with each event.
        stop: set it to end ``run``, from a signal handler or another thread.
        debounce, grace, rescan: in seconds.

    Raises:
        M3Error: a path does not exist, or the library watchfiles is missing.
    """

    def __init__(
        self,
        assistant: Assistant,
        paths: Iterable[str | Path],
        *,
        collection: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ocr: bool = False,
        cold: bool = False,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: threading.Event | None = None,
        debounce: float = DEBOUNCE,
        grace: float = GRACE,
        rescan: float = RESCAN,
    ):
        if not find_spec("watchfiles"):
            raise M3Error(
                "watching folders needs the library watchfiles; install it with "
                "pip install 'm3mlx[watch]'"
            )
        self.assistant, self.rescan = assistant, rescan
        self.patterns: dict[str, Any] = {"include": include, "exclude": exclude, "ocr": ocr}
        self.cold, self.collection, self.on_event = cold, collection, on_event
        self.stop = stop or threading.Event()
        self.pending = Pending(debounce, grace)
        self.tops: list[Path] = []
        for path in paths:
            path = documents.absolute(Path(path).expanduser())
            if not path.exists():
                raise DocumentError(path, "does not exist, so it cannot be watched")
            self.tops.append(path.resolve() if path.is_dir() else path)
        self._folders = [top for top in self.tops if top.is_dir()]
        self._states: dict[str, tuple[int, ...]] = {}  # of files when they were memorized
        self._away: set[Path] = set()  # watched folders that are missing or empty
        self._unfinished = 0  # files of the present run
        self._writing: Iterator[Any] | None = None  # memories, while nothing else is to be done
        self._all_written = False
        self._failures: dict[str, str] = {}  # reason reported last, by path

    def run(self) -> None:
        """Watch until ``stop`` is set.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
            StoreError: another process watches for this store.
        """
        self._watch = Watch(self.assistant.store_path)
        try:
            if self.assistant.has_store():
                self.assistant.check()  # fail now, not at the first change
            self._follow()
        except _Stopped:
            pass
        finally:
            self.assistant.close()
            self._watch.close()

    def _follow(self) -> None:
        rescan_at = -self.rescan
        wall, monotonic = time.time(), time.monotonic()
        for reported in self._reports():
            now = time.monotonic()
            if clock_jumped(time.time() - wall, now - monotonic) or now - monotonic >= self.rescan:
                rescan_at = now
            wall, monotonic = time.time(), now
            if now >= rescan_at:
                rescan_at, self._all_written = now + self.rescan, False
                self._add_all(now - self.pending.debounce)  # ready at once
            for path in reported:
                self._add_change(Path(path), now)
            try:
                self._update(now)
            except (FingerprintError, LockedError):
                raise
            except StoreError as error:  # a busy store or a full disk: try again later
                self._add_all(time.monotonic() + RETRY)
                self._report_failure("waiting", str(self.assistant.store_path), str(error))
            finally:
                self.assistant.close()  # let others write and repair
            self._publish_status()

    def _update(self, now: float) -> None:
        """Memorize and forget what is due."""
        if ready := self.pending.take_ready(now):
            self._look_at(ready)
            self._failures.pop(str(self.assistant.store_path), None)
        if expired := self.pending.expired(time.monotonic()):
            self._forget(expired)
        if not (ready or expired or self.pending.changed or self.cold or self._all_written):
            self._write_memories()

    def _write_memories(self) -> None:
        """Write some of the memories that documents lack."""
        if self._writing is None and self.assistant.has_store():
            self._writing = self.assistant.memories_in_steps(wait=0)
        try:
            self._all_written = self._writing is None or next(self._writing, None) is None
        except BusyStore:
            self._writing = None
        if self._all_written:
            self._writing = None

    def _end_if_stopped(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _publish_status(self) -> None:
        self._watch.tell(
            {
                "folders": len(self.tops),
                "away": len(self._away),
                "pending": len(self.pending.changed) + self._unfinished,
                "vanished": len(self.pending.missing),
            }
        )

    # --- reports of the system

    def _reports(self) -> Generator[set[str]]:
        """Yield the paths that the system reports, or an empty set after each quiet tick.

        To the system, a folder that vanished and returned is a new one, so watching starts again.
        """
        polling = False
        while not self.stop.is_set():
            present = self._present_folders()
            source = self._system_reports(present) if present and not polling else self._ticks()
            try:
                with closing(source):
                    for reported in source:
                        yield reported
                        if self.stop.is_set() or self._present_folders() != present:
                            break
            except (OSError, RuntimeError) as error:
                if self._present_folders() == present:  # usually too many folders for the system
                    polling, self.rescan = True, min(self.rescan, POLL)
                    self.on_event(Event("polling", str(self.tops[0]), str(error)))
            self._add_all(time.monotonic())

    def _present_folders(self) -> dict[Path, tuple[int, ...]]:
        """Return the watched folders that exist, with device and inode."""
        return {folder: state[:2] for folder in self._folders if (state := _state(folder))}

    def _system_reports(self, folders: Iterable[Path]) -> Generator[set[str]]:
        import watchfiles

        for changes in watchfiles.watch(
            *folders,
            watch_filter=None,
            debounce=TICK_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=self.stop,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            yield {path for _, path in changes} | self._changed_files()

    def _ticks(self) -> Generator[set[str]]:
        while not self.stop.wait(TICK_MS / 1000):
            yield self._changed_files()

    def _changed_files(self) -> set[str]:
        """Return the watched single files that have changed; the system watches only folders."""
        known = self.pending.changed.keys() | self.pending.missing.keys()
        files = {str(top) for top in self.tops if top not in self._folders} - known
        return {file for file in files if _state(file) != self._states.get(file)}

    def _add_change(self, path: Path, now: float) -> None:
        top = next((top for top in self.tops if path.is_relative_to(top)), None)
        if top is None or path.is_relative_to(self.assistant.store_path.resolve()):
            return
        if path.name == ".gitignore":
            path = path.parent  # its rules are about the whole folder
        if not any(part.startswith(".") for part in path.relative_to(top).parts):
            self.pending.add_change(str(path), now)

    def _add_all(self, now: float) -> None:
        for top in self.tops:
            self.pending.add_change(str(top), now)

    # --- changes to the store

    def _look_at(self, paths: list[str]) -> None:
        """Bring the store up to date with what is at or below some paths."""
        now, found = time.monotonic(), {}
        tops = [top for top in self.tops if top.exists()]
        for file in documents.find(tops, **self.patterns, near=paths):
            if isinstance(file, DocumentError):
                self._report_failure("failed", file.path, file.reason)
            elif (state := _state(file)) is not None:
                found[str(file)] = state
        self._update_away()
        stored, places = self._stored(), set(map(Path, paths))
        for path in stored:
            if not _is_below(path, places):
                continue
            if os.path.exists(path):
                self.pending.discard_missing(path)
            elif (
                _is_below(path, self.tops)
                and not _is_below(path, self._away)
                and self.pending.add_missing(path, now)
            ):
                self.on_event(Event("vanished", path))
        fresh = [path for path in found if found[path] != self._states.get(path)]
        try:
            for start in range(0, len(fresh), FILES):
                self._unfinished = len(fresh) - start
                self._publish_status()
                if self.stop.wait(UNLOCKED if start else 0):
                    raise _Stopped
                part = fresh[start : start + FILES]
                self._memorize(part, stored)
                self._states.update((path, found[path]) for path in part)
        finally:
            self._unfinished = 0

    def _memorize(self, paths: list[str], stored: dict[str, StoredDocument]) -> None:
        """Bring files that may have changed into the store: rename, memorize or skip each."""
        hashes = {}
        for path in paths:
            try:
                hashes[path] = documents.file_hash(path)
            except DocumentError:  # memorizing reports the reason
                hashes[path] = ""
        known = {path: doc.hash for path, doc in stored.items() if doc.complete}
        changed = {path: hash for path, hash in hashes.items() if known.get(path) != hash}
        self._rename({path: hash for path, hash in changed.items() if path not in stored}, stored)
        if not changed:
            return
        report = self.assistant.memorize(
            changed,
            collection=self.collection,
            ocr=self.patterns["ocr"],
            cold=True,  # memories follow when nothing else is to be done
            between_batches=self._end_if_stopped,
        )
        self.assistant.close()
        self._writing, self._all_written = None, False
        for path in changed:
            self._failures.pop(path, None)
        for path in [*report.added, *report.changed]:
            self.on_event(Event("added" if path in report.added else "changed", path))
        for error in report.failed:
            self._report_failure("failed", error.path, error.reason)

    def _rename(self, hashes: dict[str, str], stored: dict[str, StoredDocument]) -> None:
        """Give documents whose files have moved their new paths, so that none is read again."""
        missing = {stored[path].hash: path for path in self.pending.missing if path in stored}
        moved = {
            path: old
            for path, hash in hashes.items()
            if (old := missing.pop(hash, None)) and stored[old].complete
        }
        if not moved:
            return
        with self.assistant.open_store(write=True) as store:
            store.rename({stored[old].id: path for path, old in moved.items()})
        for path, old in moved.items():
            self._drop(old)
            self.on_event(Event("renamed", path, old))

    def _forget(self, paths: list[str]) -> None:
        """Forget documents whose grace is over, except in watched folders that are away."""
        self._update_away()
        stored, gone = self._stored(), []
        for path in paths:
            if path not in stored or os.path.exists(path):
                self.pending.discard_missing(path)
            elif not _is_below(path, self._away):
                gone.append(path)
        if not gone:
            return
        with self.assistant.open_store(write=True) as store:
            store.forget(document.id for document in store.documents() if document.path in gone)
        for path in gone:
            self._drop(path)
            self.on_event(Event("forgotten", path))

    def _drop(self, path: str) -> None:
        self.pending.discard_missing(path)
        self._states.pop(path, None)

    def _update_away(self) -> None:
        """Find which watched folders are missing or empty, and which are back."""
        for folder in self._folders:
            try:
                away = not any(folder.iterdir())
            except OSError:
                away = True
            if away and folder not in self._away:
                self._away.add(folder)
                for path in list(self.pending.missing):
                    if _is_below(path, [folder]):
                        self.pending.discard_missing(path)  # a new grace when the folder is back
                self.on_event(Event("away", str(folder)))
            elif not away and folder in self._away:
                self._away.remove(folder)
                self.on_event(Event("back", str(folder)))

    def _stored(self) -> dict[str, StoredDocument]:
        """Return the stored documents by path; of two with the same path, the complete one."""
        if not self.assistant.has_store():
            return {}
        stored = self.assistant.documents()
        return {document.path: document for document in sorted(stored, key=lambda d: d.complete)}

    def _report_failure(self, what: str, path: str, reason: str) -> None:
        """Report a failure, but not twice in a row."""
        if self._failures.get(path) != reason:
            self._failures[path] = reason
            self.on_event(Event(what, path, reason))


def _is_below(path: str, places: Collection[Path]) -> bool:
    """Return whether a path is one of some places, or below one."""
    return any(part in places for part in (Path(path), *Path(path).parents))


def _state(path: Path | str) -> tuple[int, ...] | None:
    """Return device, inode, size and time of change of a file; None if it is missing."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
