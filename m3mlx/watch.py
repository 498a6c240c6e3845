"""Folders that are followed: what changes in them is memorized, what vanishes is forgotten.

What the system reports only says where to look; what is there and what is stored decides. So a
report that is lost, a rename, or an editor that saves by renaming need no code of their own, and
a rescan mends whatever was missed. Nothing is forgotten before it has been gone for a while, nor
while its whole watched folder is gone or empty, as where a drive is not mounted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from . import documents
from .assistant import Assistant
from .config import DEBOUNCE, GRACE, RESCAN
from .errors import DocumentError, FingerprintError, M3Error, StoreError
from .store import LockedError, MemoryStore, StoredDocument
from .store.watched import Watch

LONGEST = 15.0  # debounces that a file which never rests is waited for
TICK_MS = 300  # how long to wait for the next report
RETRY = 10.0  # seconds until what a store did not take is tried again
POLL = 30.0  # seconds between looks at everything where the system reports nothing
FILES = 32  # memorized before the store is let go
BREATH = 0.2  # seconds for which it is: who waits for it asks every 0.05
JUMP = 5.0  # seconds that the clock on the wall may run ahead of the process's own


class Event(NamedTuple):
    """Something worth telling.

    Attributes:
        what: "added", "changed", "renamed", "vanished" (and forgotten unless it returns),
            "forgotten", "failed", "waiting" (for the store), "away", "back" (a watched folder)
            or "polling" (the system reports nothing; rescans alone find changes).
        path: of the file or folder.
        detail: its former path, or the reason.
    """

    what: str
    path: str
    detail: str = ""


@dataclass
class Pending:
    """What waits, and until when. Decides only; times are seconds of one clock.

    Attributes:
        changed: of each path that was reported, when first and when last.
        vanished: of each document whose file is gone, since when.
    """

    debounce: float = DEBOUNCE
    grace: float = GRACE
    changed: dict[str, tuple[float, float]] = field(default_factory=dict)
    vanished: dict[str, float] = field(default_factory=dict)

    def note(self, path: str, now: float) -> None:
        """Something happened at a path."""
        self.changed[path] = (self.changed.get(path, (now,))[0], now)

    def take(self, now: float) -> list[str]:
        """The paths that rest since ``debounce``, or have not rested for too long."""
        ready = [
            path
            for path, (first, last) in self.changed.items()
            if now - last >= self.debounce or now - first >= LONGEST * self.debounce
        ]
        for path in ready:
            del self.changed[path]
        return ready

    def missed(self, path: str, now: float) -> bool:
        """A document's file is gone; whether that is news."""
        news = path not in self.vanished
        self.vanished.setdefault(path, now)
        return news

    def found(self, path: str) -> None:
        """It is there, or nobody asks for it any more."""
        self.vanished.pop(path, None)

    def overdue(self, now: float) -> list[str]:
        """The documents whose grace is over."""
        return [path for path, since in self.vanished.items() if now - since >= self.grace]


def slept(wall_seconds: float, own_seconds: float) -> bool:
    """Whether the machine slept or its clock was set, by what two clocks say has passed."""
    return abs(wall_seconds - own_seconds) > JUMP


class _Stopped(Exception):
    """Ends a run over files between two of its commits."""


class Watcher:
    """Follows files and folders for one assistant.

    Args:
        assistant: whose store it keeps up to date.
        paths: files and folders.
        collection, include, exclude, cold: as of ``Assistant.memorize``.
        tell: called with each event.
        stop: set it to end ``run``, from a signal or another thread.
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
        cold: bool = False,
        tell: Callable[[Event], None] = lambda event: None,
        stop: threading.Event | None = None,
        debounce: float = DEBOUNCE,
        grace: float = GRACE,
        rescan: float = RESCAN,
    ):
        try:
            import watchfiles  # noqa: F401
        except ImportError as error:
            raise M3Error(
                "watching folders needs the library watchfiles; install it with "
                "pip install 'm3mlx[watch]'"
            ) from error
        self.assistant, self.rescan = assistant, rescan
        self.patterns = {"include": include, "exclude": exclude}
        self.cold, self.collection, self.tell = cold, collection, tell
        self.stop = stop or threading.Event()
        self.pending = Pending(debounce, grace)
        self.tops: list[Path] = []
        for path in paths:
            path = documents.absolute(Path(path).expanduser())
            if not path.exists():
                raise DocumentError(path, "does not exist, so it cannot be watched")
            self.tops.append(path.resolve() if path.is_dir() else path)
        self._folders = [top for top in self.tops if top.is_dir()]
        self._states: dict[str, tuple[int, ...]] = {}  # of files as they were memorized
        self._away: set[Path] = set()
        self._doing = 0  # files of the present run that are not done
        self._failures: dict[str, str] = {}  # as told last, by path

    def run(self) -> None:
        """Follow until ``stop`` is set.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
            StoreError: another process watches for this store.
        """
        self._watch = Watch(self.assistant.store_path)
        try:
            if self.assistant.has_store():
                self.assistant.check()  # what is wrong shows at once
            self._follow()
        except _Stopped:
            pass
        finally:
            self.assistant.close()
            self._watch.close()

    def _follow(self) -> None:
        rescan_at = -self.rescan
        wall, own = time.time(), time.monotonic()
        for reported in self._reports():
            now = time.monotonic()
            if slept(time.time() - wall, now - own) or now - own >= self.rescan:
                rescan_at = now
            wall, own = time.time(), now
            if now >= rescan_at:
                rescan_at = now + self.rescan
                self._note_all(now - self.pending.debounce)  # at once
            for path in reported:
                self._note(Path(path), now)
            try:
                self._step(now)
            except (FingerprintError, LockedError):
                raise
            except StoreError as error:  # busy, or a full disk: what is not done is tried again
                self._note_all(time.monotonic() + RETRY)
                self._told("waiting", str(self.assistant.store_path), str(error))
            finally:
                self.assistant.close()  # let others write and mend
            self._tell_others()

    def _step(self, now: float) -> None:
        """Do what is due."""
        if ready := self.pending.take(now):
            self._look(ready)
            self._failures.pop(str(self.assistant.store_path), None)
        if overdue := self.pending.overdue(time.monotonic()):
            self._forget(overdue)

    def _end_if_stopped(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _tell_others(self) -> None:
        self._watch.tell(
            {
                "folders": len(self.tops),
                "away": len(self._away),
                "pending": len(self.pending.changed) + self._doing,
                "vanished": len(self.pending.vanished),
            }
        )

    # what happens

    def _reports(self) -> Generator[set[str]]:
        """Paths that the system reports, or none each time when nothing happens for a while.

        A folder that vanished and returned is another one to the system, so it is watched anew.
        """
        polling = False
        while not self.stop.is_set():
            here = self._here()
            source = self._observed(here) if here and not polling else self._waited()
            try:
                with closing(source):
                    for reported in source:
                        yield reported
                        if self.stop.is_set() or self._here() != here:
                            break
            except (OSError, RuntimeError) as error:
                if self._here() == here:  # too many folders for the system, as a rule
                    polling, self.rescan = True, min(self.rescan, POLL)
                    self.tell(Event("polling", str(self.tops[0]), str(error)))
            self._note_all(time.monotonic())

    def _here(self) -> dict[Path, tuple[int, int]]:
        """The watched folders that are there, and which ones they are to the system."""
        found = {}
        for folder in self._folders:
            try:
                state = folder.stat()
            except OSError:
                continue
            found[folder] = (state.st_dev, state.st_ino)
        return found

    def _observed(self, folders: Iterable[Path]) -> Generator[set[str]]:
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

    def _waited(self) -> Generator[set[str]]:
        while not self.stop.wait(TICK_MS / 1000):
            yield self._changed_files()

    def _changed_files(self) -> set[str]:
        """Watched single files that are not as they were; the system watches folders."""
        files = [top for top in self.tops if top not in self._folders]
        return {
            str(file)
            for file in files
            if str(file) not in self.pending.changed
            and str(file) not in self.pending.vanished
            and _state(file) != self._states.get(str(file))
        }

    def _note(self, path: Path, now: float) -> None:
        top = next((top for top in self.tops if path.is_relative_to(top)), None)
        if top is None or path.is_relative_to(self.assistant.store_path.resolve()):
            return
        if path.name == ".gitignore":
            path = path.parent  # what it says is about all of the folder
        if not any(part.startswith(".") for part in path.relative_to(top).parts):
            self.pending.note(str(path), now)

    def _note_all(self, now: float) -> None:
        for top in self.tops:
            self.pending.note(str(top), now)

    # what is done about it

    def _look(self, near: list[str]) -> None:
        """Bring the store up to date with what is at or below some paths."""
        now = time.monotonic()
        there = {}
        for found in documents.find(
            [top for top in self.tops if top.exists()], **self.patterns, near=near
        ):
            if isinstance(found, DocumentError):
                self._told("failed", found.path, found.reason)
            elif (state := _state(found)) is not None:
                there[str(found)] = state
        self._note_away()
        known = self._stored()
        places = set(map(Path, near))
        for path in known:
            if not _is_below(path, places):
                continue
            if os.path.exists(path):
                self.pending.found(path)
            elif (
                _is_below(path, self.tops)
                and not _is_below(path, self._away)
                and self.pending.missed(path, now)
            ):
                self.tell(Event("vanished", path))
        fresh = [path for path in there if there[path] != self._states.get(path)]
        try:
            for start in range(0, len(fresh), FILES):
                self._doing = len(fresh) - start
                self._tell_others()
                if self.stop.wait(BREATH if start else 0):
                    raise _Stopped
                part = fresh[start : start + FILES]
                self._bring(part, known)
                self._states.update((path, there[path]) for path in part)
        finally:
            self._doing = 0

    def _bring(self, paths: list[str], known: dict[str, StoredDocument]) -> None:
        """Bring files into the store that may have changed: renamed, memorized, or as they are."""
        hashes = {}
        for path in paths:
            try:
                hashes[path] = documents.file_hash(path)
            except DocumentError:  # memorizing tells why
                hashes[path] = ""
        changed = [
            path
            for path in paths
            if path not in known or not known[path].complete or known[path].hash != hashes[path]
        ]
        self._rename({path: hashes[path] for path in changed if path not in known}, known)
        if not changed:
            return
        done = self.assistant.memorize(
            changed,
            collection=self.collection,
            cold=self.cold,
            between_batches=self._end_if_stopped,
        )
        self.assistant.close()
        for path in changed:
            self._failures.pop(path, None)
        for what in ("added", "changed"):
            for path in getattr(done, what):
                self.tell(Event(what, path))
        for error in done.failed:
            self._told("failed", error.path, error.reason)

    def _rename(self, hashes: dict[str, str], known: dict[str, StoredDocument]) -> None:
        """Give documents whose files have moved their new paths, so that nothing is read anew."""
        homeless = {
            known[path].hash: known[path] for path in self.pending.vanished if path in known
        }
        moved: dict[int, str] = {}
        for path, hash in hashes.items():
            document = homeless.pop(hash, None)
            if document and document.complete:
                moved[document.id] = path
        if not moved:
            return
        with self.assistant.open_store(write=True) as store:
            store.rename(moved)
        former = {document.id: path for path, document in known.items()}
        for id, path in moved.items():
            self.pending.found(former[id])
            self._states.pop(former[id], None)
            self.tell(Event("renamed", path, former[id]))

    def _forget(self, overdue: list[str]) -> None:
        """Forget what has been gone for long enough, save below folders that are gone whole."""
        self._note_away()
        known, gone = self._stored(), []
        for path in overdue:
            if path not in known or os.path.exists(path):
                self.pending.found(path)
            elif not _is_below(path, self._away):
                gone.append(path)
        if not gone:
            return
        with self.assistant.open_store(write=True) as store:
            store.forget(document.id for document in store.documents() if document.path in gone)
        for path in gone:
            self.pending.found(path)
            self._states.pop(path, None)
            self.tell(Event("forgotten", path))

    def _note_away(self) -> None:
        """Tell which watched folders are gone or empty, and which are back."""
        for folder in self._folders:
            try:
                away = not any(folder.iterdir())
            except OSError:
                away = True
            if away and folder not in self._away:
                self._away.add(folder)
                for path in list(self.pending.vanished):
                    if _is_below(path, [folder]):
                        self.pending.found(path)  # its grace begins anew when the folder is back
                self.tell(Event("away", str(folder)))
            elif not away and folder in self._away:
                self._away.remove(folder)
                self.tell(Event("back", str(folder)))

    def _stored(self) -> dict[str, StoredDocument]:
        """The documents by path; of two of the same, the one that is complete."""
        if not MemoryStore.exists(self.assistant.store_path):
            return {}
        stored = self.assistant.store().documents()
        return {document.path: document for document in sorted(stored, key=lambda d: d.complete)}

    def _told(self, what: str, path: str, reason: str) -> None:
        """Tell what is wrong, once."""
        if self._failures.get(path) != reason:
            self._failures[path] = reason
            self.tell(Event(what, path, reason))


def _is_below(path: str, places: Collection[Path]) -> bool:
    """Whether a path is one of some places, or below one."""
    return any(part in places for part in (Path(path), *Path(path).parents))


def _state(path: Path | str) -> tuple[int, ...] | None:
    """What changes when a file does; None where it is gone."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
