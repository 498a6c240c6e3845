"""Locks on open files: one process writes to a store, one watches for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..errors import StoreError
from ..files import fcntl  # None: no advisory locks on this platform, SQLite keeps writers apart

FILE = "lock"


class BusyStore(StoreError):
    """Another process is writing to a store."""


class ReadOnlyStore(StoreError):
    """A store cannot be written to, on this disk or by this user."""


def try_lock(descriptor: int, *, shared: bool = False, wait: float = 0.0) -> bool:
    """Lock an open file for this process, within some seconds; return whether it is locked."""
    if fcntl is None:
        return not shared
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


class WriterLock:
    """The right to write to a store: held by one opener at a time, freed when its process ends."""

    def __init__(self, path: Path, wait: float):
        """Wait at most ``wait`` seconds. Raises BusyStore that names the process in the way."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ReadOnlyStore(
                f"{path.parent}: this store cannot be written to ({error.strerror}). Allow it, or "
                f"copy the folder to where you may write."
            ) from error
        if not try_lock(self._descriptor, wait=wait):
            owner = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            self.close()
            raise BusyStore(
                f"{path.parent}: another process ({owner or 'unknown'}) is writing to this "
                f"store. Wait until it has finished, then try again."
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)
