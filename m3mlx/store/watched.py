"""State of the process that watches folders, in a file beside the store that it watches for.

The file is locked for as long as the watcher lives, so that a dead one's state is ignored. It holds
numbers only: names of files would outlive their documents, and be readable in an encrypted store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import StoreError
from ..files import os_errors_as_store_errors
from .lock import try_lock

FILE = "watching"
_LENGTH = 512  # bytes of the state, always as many, so that no reader gets half of it


class Watch:
    """Held by the one process that watches for a store."""

    def __init__(self, store: Path):
        """Raises StoreError if another process watches for this store already."""
        with os_errors_as_store_errors(store):
            store.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(store / FILE, os.O_RDWR | os.O_CREAT, 0o600)
            if not try_lock(self._descriptor, wait=1):  # ``seen`` has it for a moment
                self.close()
                raise StoreError(
                    f"{store}: another process watches for this store already. Stop it, and "
                    f"name all folders in one command."
                )
        self.tell({})

    def tell(self, state: Mapping[str, object]) -> None:
        """Publish the state: JSON-able values without names."""
        line = json.dumps({"pid": os.getpid(), **state}).encode("ascii")
        os.pwrite(self._descriptor, line.ljust(_LENGTH, b"\0"), 0)  # no text: no document

    def close(self) -> None:
        os.close(self._descriptor)


def seen(store: Path) -> dict | None:
    """Return the state that the watcher of a store published last; None if there is no watcher."""
    try:
        descriptor = os.open(store / FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        if try_lock(descriptor, shared=True):
            return None
        return dict(json.loads(os.pread(descriptor, _LENGTH, 0).rstrip(b"\0")))
    except ValueError:  # it has only just begun
        return {}
    finally:
        os.close(descriptor)
