"""One writer: the lock that the process writing to a store holds."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..errors import StoreError

try:
    import fcntl
except ImportError:  # no advisory locks on this platform: SQLite alone keeps writers apart
    fcntl = None


class BusyStore(StoreError):
    """Another process is writing to a store."""


class WriterLock:
    """The right to write to a store: held by one opener at a time, freed when its process ends."""

    def __init__(self, path: Path, wait: float):
        """Wait at most ``wait`` seconds. Raises BusyStore that names the process in the way."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait
        while not self._taken():
            if time.monotonic() >= deadline:
                owner = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
                self.release()
                raise BusyStore(
                    f"{path.parent}: another process ({owner or 'unknown'}) is writing to this "
                    f"store. Wait until it has finished, then try again."
                )
            time.sleep(0.05)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _taken(self) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.close(self._descriptor)
