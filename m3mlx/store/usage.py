"""When each memory was last used: beside each record file, four bytes for each slot.

Readers note it too, who may not write to the catalog and must not wait for who does. So it is a
file of its own without lock, checksum or wait for the disk: what is lost or wrong in it can only
change which memories are dropped first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

SUFFIX = ".used"  # in place of that of the record file
_WIDTH = 4  # minutes since 1970, unsigned and little-endian


class Usage:
    """Times of last use of one record file's memories; its first slot is ``origin``."""

    def __init__(self, record_file: Path, origin: int):
        self.path = record_file.with_suffix(SUFFIX)
        self._origin = origin

    def note(self, slots: Iterable[int]) -> None:
        """Record that memories are used now; a failure to write is ignored."""
        self._put(slots, int(time.time() // 60))

    def forget(self, slots: Iterable[int]) -> None:
        """Clear the times of memories that are gone."""
        if self.path.exists():
            self._put(slots, 0)

    def _put(self, slots: Iterable[int], minutes: int) -> None:
        slots = [slot for slot in slots if slot >= self._origin]
        if not slots:
            return
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                note, first = minutes.to_bytes(_WIDTH, "little"), slots[0]
                if slots == list(range(first, first + len(slots))):  # as they are added
                    slots, note = [first], note * len(slots)
                for slot in slots:
                    os.pwrite(descriptor, note, _WIDTH * (slot - self._origin))
            finally:
                os.close(descriptor)

    def minutes(self, slots: np.ndarray) -> np.ndarray:
        """Minutes since 1970 of the last use of slots, int64 ``(n,)``; 0 where unknown."""
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        known = np.frombuffer(data[: len(data) // _WIDTH * _WIDTH], dtype="<u4")
        places = slots - self._origin
        found = np.zeros(len(slots), dtype=np.int64)
        inside = (places >= 0) & (places < len(known))
        found[inside] = known[places[inside]]
        return found

    def fill(self, minutes: np.ndarray) -> None:
        """Write the times of all slots from the origin on."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(minutes.astype("<u4").tobytes())
