"""The share of attention that each memory receives while an answer is generated.

The attention of the last query is computed a second time, in some layers and for some tokens, and
summed by what it falls on. The model's own results do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..memory.cache import MemoryCache
from ..models.caches import leaves
from ..models.hooks import observe_attention


class AttentionShares:
    """Sums what the last query of a pass attends to.

    Args:
        model: the decoder's.
        prefix: length of the constant prefix.
        memories: returns how many memories are attached.
    """

    def __init__(self, model: nn.Module, prefix: int, memories: Callable[[], int]):
        self._model, self._prefix, self._memories = model, prefix, memories
        self._layers: dict[int, mx.array] = {}  # (memories + 2,) of each cache's last pass
        self._watched: set[int] | None = None  # ids of caches, None for all

    def observe(self) -> AbstractContextManager[None]:
        """Watch the passes that this thread computes inside."""
        return observe_attention(self._model, self._observe)

    def watch(self, caches: Sequence[Any], layers: int) -> None:
        """Watch only so many of the layers that have memories now, evenly spread; 0 for none."""
        self._layers.clear()
        self._watched = set()
        if layers:
            having = [id(c) for c in leaves(caches) if isinstance(c, MemoryCache) and c.length]
            count = min(layers, len(having))
            self._watched = {having[(2 * n + 1) * len(having) // (2 * count)] for n in range(count)}

    def mean(self) -> mx.array | None:
        """Mean over the layers of the last pass, float32: each memory, the prefix, the context.

        None if no layer was watched; not computed before somebody looks.
        """
        layers = list(self._layers.values())
        return mx.stack(layers).mean(axis=0) if layers else None

    def _observe(
        self, queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any
    ) -> None:
        """Note the attention of one layer.

        ``keys`` are (1, KV heads, memories + prefix + context, head_dim).
        """
        if self._watched is not None and id(cache) not in self._watched:
            return
        length = getattr(cache, "length", None)  # of the memories
        if length is None or isinstance(keys, (tuple, list)):
            return  # not a cache of m3mlx, or a quantized one
        heads, width = queries.shape[1], queries.shape[-1]
        grouped = queries[0, :, -1].reshape(keys.shape[1], -1, width)
        logits = (grouped @ keys[0].swapaxes(-1, -2)).reshape(heads, -1) * scale
        if isinstance(mask, mx.array):
            row = mask.reshape(-1, *mask.shape[-2:])[:, -1]
            logits += mx.where(row, 0.0, -mx.inf) if row.dtype == mx.bool_ else row
        weights = mx.softmax(logits.astype(mx.float32), axis=-1).mean(axis=0)
        memories = mx.zeros(count := self._memories())
        if length and count and length % count == 0:
            memories = weights[:length].reshape(count, -1).sum(axis=1)
        prefix, context = mx.split(weights[length:], [self._prefix])
        shares = [memories, mx.stack([prefix.sum(), context.sum()])]
        self._layers[id(cache)] = mx.concatenate(shares)
