"""The range that memories have: one that is much larger than all others decides every answer."""

from __future__ import annotations

from contextlib import suppress

import mlx.core as mx
import numpy as np

from ..errors import StoreError
from ..store import MemoryStore
from .codec import Codec, Memory

_LARGEST = 4096.0  # of keys and values, where a store has no memories to compare with
_MARGIN = 4  # times the largest that the store's own memories have
_SAMPLE = 16  # of the store's own memories that are looked at


class Bounds:
    """What memories from elsewhere may be, beside those of an edition of one's own store."""

    def __init__(self, codec: Codec, store: MemoryStore, edition: int):
        self.codec = codec
        self._largest = np.full(2, _LARGEST)  # of keys and of values
        some = store.references(store.slots(count=_SAMPLE), edition)
        sizes = []
        for slot in (reference.slot for reference in some if reference.warm):
            with suppress(StoreError):  # damaged, or forgotten just now
                sizes.append(_sizes(codec.unpack(store.read([slot], edition)))[0])
        if sizes:
            self._largest = _MARGIN * np.max(sizes, axis=0)

    def hold(self, memory: Memory) -> np.ndarray:
        """Tell which memories have only finite numbers within the range, bool ``(batch,)``."""
        return np.all(_sizes(memory) <= self._largest, axis=1)  # no NaN is


def _sizes(memory: Memory) -> np.ndarray:
    """The largest key and value of each memory, ``(batch, 2)``."""
    largest = [mx.abs(part.astype(mx.float32)) for part in (memory.keys, memory.values)]
    return np.stack([np.array(part).max(axis=(1, 2)) for part in largest], axis=1)
