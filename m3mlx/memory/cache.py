"""Memories in attention, through mlx-lm's cache protocol.

Each layer has a ``MemoryCache``: an mlx-lm cache of prefix and context, with the layer's memories
in front. MLX aligns its causal mask to the lower right, so every query sees keys in front, and
mlx-lm's models run unmodified. Where a layer needs a mask of its own (heads that keep different
numbers of tokens, sliding windows), its cache widens mlx-lm's (``hooks.widen_masks``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import (
    ArraysCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    create_attention_mask,
    make_prompt_cache,
)

from ..config import MemoryConfig
from ..errors import ModelError
from ..models.hooks import widen_masks
from .codec import PADDING, Memory

SPARE_KEYS = 256  # for which the mask of a decoding step is made ahead


class PrefixStates(list[tuple[mx.array, mx.array]]):
    """Keys and values of the prefix, (1, KV heads, prefix, head_dim), of layers that keep them.

    Attributes:
        recurrent: caches of layers that keep a state instead, by place among all caches.
    """

    def __init__(
        self, pairs: Iterable[tuple[mx.array, mx.array]] = (), recurrent: dict | None = None
    ):
        super().__init__(pairs)
        self.recurrent: dict[int, ArraysCache] = recurrent or {}


def insert_states(
    caches: Sequence[Any], prefix: list[tuple[mx.array, mx.array]], batch: int = 1
) -> list[Any]:
    """Put copies of the recurrent layers' states among the caches of the other layers."""
    joined = list(caches)
    for place, state in getattr(prefix, "recurrent", {}).items():
        state = deepcopy(state)
        if batch > 1:
            state.cache = [
                x if x is None else mx.broadcast_to(x, (batch, *x.shape[1:])) for x in state.cache
            ]
        joined.insert(place, state)
    return joined


class MemoryCache:
    """Memories, then prefix and context, of one layer in the buffer of its mlx-lm cache.

    Memories are put in front when they are attached, every 64 tokens at most, so that a decoding
    step copies nothing. ``gap`` is the number of positions between prefix and context that belong
    to the references: with memories, position is not length.
    """

    def __init__(self, base: Any):
        self.base = base
        self.gap = 0
        self.length = 0  # of the memories
        self.weights: mx.array | None = None  # (KV heads, M), -inf for padding; None if all are 0
        self.positions: Any = None  # int32 (KV heads, M)
        self._row: mx.array | None = None  # mask of one query, with spare keys

    def attach(
        self, keys: mx.array, values: mx.array, weights: np.ndarray, positions: np.ndarray, gap: int
    ) -> None:
        """Show these memories to the context that follows, in place of earlier ones.

        Args:
            keys, values: (1, KV heads, M, head_dim), keys after RoPE.
            weights: float32 (KV heads, M), added to the logits of attention; -inf for padding.
            positions: int (KV heads, M), positions of the keys.
            gap: positions reserved for references; stays when the memories are detached.
        """
        self.gap = gap
        if not np.isfinite(weights).any():
            self.detach()
            return
        if hasattr(self.base, "bits"):
            size = {"group_size": self.base.group_size, "bits": self.base.bits}
            self._set(mx.quantize(keys, **size), mx.quantize(values, **size), weights.shape[1])
        else:
            self._set(keys, values, weights.shape[1])
        self.weights = mx.array(weights) if weights.any() else None
        self.positions = mx.array(positions)

    def detach(self) -> None:
        """Remove the memories; what follows sees prefix and context only."""
        if self.length:
            self._set(None, None, 0)
        self.weights = None

    def _set(self, keys: Any, values: Any, length: int) -> None:
        base = self.base
        base.keys = _replace_front(base.keys, self.length, keys)
        base.values = _replace_front(base.values, self.length, values)
        base.offset += length - self.length
        self.length, self._row = length, None

    # --- mlx-lm's cache protocol

    @property
    def offset(self) -> int:
        """Position of the next token."""
        return self.context + self.gap

    @property
    def context(self) -> int:
        """Number of tokens of prefix and context."""
        return self.base.offset - self.length

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple:
        return self.base.update_and_fetch(keys, values)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Mask over prefix and context only; ``widen`` adds the memories."""
        return create_attention_mask(N, self.context, return_array, window_size)

    @property
    def state(self) -> Any:
        return self.base.state

    def __getattr__(self, name: str) -> Any:
        if name in ("bits", "group_size"):  # by which mlx-lm knows quantized keys and values
            return getattr(self.base, name)
        raise AttributeError(name)

    # --- the mask

    def widen(self, mask: mx.array | str | None, queries: int, query_heads: int) -> Any:
        """Turn a mask over prefix and context into one over memories, prefix and context.

        A returned array is added to the logits.

        Args:
            mask: None, "causal", or a bool array (…, queries, keys).
            queries: number of query tokens.
        """
        if not self.length:
            return mask
        memory = self._memory_mask(queries)
        if memory is None and not isinstance(mask, mx.array):
            return mask
        if memory is None:
            memory = mx.zeros((1, 1, self.length))
        elif not hasattr(self.base, "bits"):  # quantized attention takes KV heads
            memory = mx.repeat(memory, query_heads // len(memory), axis=0)
        if mask is None:
            return self._single_query_mask(memory)
        if isinstance(mask, mx.array):
            context = mask
        else:
            keys = self.context + queries
            context = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
        return _join_masks(memory, context, queries)

    def _memory_mask(self, queries: int) -> mx.array | None:
        """Return what is added to logits, (KV heads, queries or 1, M); None for nothing."""
        return None if self.weights is None else self.weights[:, None]

    def _single_query_mask(self, memory: mx.array) -> mx.array:
        """Mask of one query, which sees the whole context; made once for many steps."""
        keys = self.base.offset + 1
        if self._row is None or self._row.shape[-1] < keys:
            self._row = _join_masks(memory, mx.ones((1, self.context + SPARE_KEYS), mx.bool_), 1)
        return self._row[..., :keys]


class WindowedCache(MemoryCache):
    """A cache for a layer with a sliding window, which memories leave as their text would.

    mlx-lm's rotating buffer overwrites its oldest entries, so memories are kept beside it and
    concatenated at every step.
    """

    def __init__(self, base: RotatingKVCache):
        super().__init__(base)
        self.keys: Any = None  # (1, KV heads, M, head_dim)
        self.values: Any = None

    def _set(self, keys: Any, values: Any, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    @property
    def context(self) -> int:
        return self.base.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple:
        keys, values = self.base.update_and_fetch(keys, values)
        if not self.length:
            return keys, values
        return _prepend(self.keys, keys), _prepend(self.values, values)

    def make_mask(self, *args: Any, **kwargs: Any) -> mx.array | str | None:
        return self.base.make_mask(*args, **kwargs)

    def _memory_mask(self, queries: int) -> mx.array:
        at = mx.arange(self.offset, self.offset + queries)[None, :, None]
        near = at - self.positions[:, None] < self.base.max_size
        return mx.where(near, 0.0 if self.weights is None else self.weights[:, None], -mx.inf)

    def _single_query_mask(self, memory: mx.array) -> mx.array:
        width = min(self.context + 1, self.base.max_size)
        return _join_masks(memory, mx.ones((1, width), mx.bool_), 1)


def _join_masks(memory: mx.array, context: mx.array, queries: int) -> mx.array:
    """Join what is added to the logits of memories with a mask over the context.

    Args:
        memory: (heads, queries or 1, M).
        context: bool (…, queries, keys).

    Returns:
        (1, heads, queries, M + keys), to be added to logits.
    """
    context = context[0] if context.ndim == 4 else context.reshape(1, *context.shape[-2:])
    shape = (len(memory), queries)
    context = mx.where(context, 0.0, -mx.inf)
    parts = [mx.broadcast_to(part, (*shape, part.shape[-1])) for part in (memory, context)]
    return mx.concatenate(parts, axis=-1)[None]


def _replace_front(buffer: Any, length: int, memory: Any) -> Any:
    """Replace the first ``length`` keys of a buffer, which may be quantized, by a memory."""
    if isinstance(buffer, (tuple, list)):
        return tuple(_replace_front(x, length, memory and memory[i]) for i, x in enumerate(buffer))
    rest = buffer[..., length:, :]
    return rest if memory is None else _prepend(memory, rest)


def _prepend(memory: mx.array, context: mx.array) -> mx.array:
    return mx.concatenate([memory.astype(context.dtype), context], axis=-2)


def check_tokens(model: nn.Module, tokens: Iterable[int]) -> None:
    """Raise ModelError for token ids that the model does not know.

    MLX would read beyond its embeddings, or kill the process. An imported file may hold any ids.
    """
    embeddings = (nn.Embedding, nn.QuantizedEmbedding)
    known = next(m for m in model.modules() if isinstance(m, embeddings)).weight.shape[0]
    if foreign := [token for token in tokens if not 0 <= token < known]:
        raise ModelError(
            f"token {foreign[0]} is not one of this model's {known}; the store was damaged or "
            f"imported from a forged file. Forget the document and memorize it again"
        )


def read_prefix(model: nn.Module, prefix: Sequence[int]) -> PrefixStates:
    """Compute keys and values of the constant prefix at every layer (section 3.2 of the paper).

    Layers with a recurrent or convolutional state give that state after the prefix.
    """
    check_tokens(model, prefix)
    caches: Any = [
        cache if isinstance(cache, ArraysCache) else ConcatenateKVCache()
        for cache in make_prompt_cache(model)
    ]
    model(mx.array([list(prefix)]), cache=caches)
    recurrent = {n: cache for n, cache in enumerate(caches) if isinstance(cache, ArraysCache)}
    pairs = [(c.keys, c.values) for n, c in enumerate(caches) if n not in recurrent]
    mx.eval(pairs, [cache.cache for cache in recurrent.values()])
    return PrefixStates(pairs, recurrent)


def make_cache(model: nn.Module, prefix: PrefixStates, *, kv_bits: int | None = None) -> list[Any]:
    """Make the caches of one conversation, one per layer, with the prefix in place.

    The model's masks are widened from here on, without which heads would see padding.

    Args:
        prefix: from ``read_prefix``.
        kv_bits: 8 or 4 to quantize the context; layers with a sliding window stay as they are.

    Raises:
        ModelError: the head dimension does not allow a quantized context.
    """
    widen_masks(model)
    caches: list[MemoryCache] = []
    bases = [cache for cache in make_prompt_cache(model) if not isinstance(cache, ArraysCache)]
    for base, (keys, values) in zip(bases, prefix, strict=True):
        if kv_bits and isinstance(base, KVCache):
            head_dim = keys.shape[-1]
            group = next((size for size in (64, 32) if head_dim % size == 0), None)
            if group is None:
                raise ModelError(
                    f"a quantized context needs a head dimension divisible by 32, this model "
                    f"has {head_dim}; run without --kv-bits"
                )
            base = QuantizedKVCache(group_size=group, bits=kv_bits)
        base.update_and_fetch(keys, values)
        windowed = isinstance(base, RotatingKVCache)
        caches.append(WindowedCache(base) if windowed else MemoryCache(base))
    return insert_states(caches, prefix)


class Layout:
    """Places of each layer's and head's tokens in a flat memory.

    Attributes:
        rows: of each layer the index, int (KV heads, most), and which of it is no padding, bool;
            None for a layer without memories.
    """

    def __init__(self, config: MemoryConfig):
        self.first = len(config.prefix)
        self.gap = config.reference_tokens
        self.key_scale = config.key_scale
        self.rows: list[tuple[np.ndarray, np.ndarray] | None] = []
        start = 0
        for counts in config.counts:
            index = np.zeros((len(counts), max(counts)), np.int64)
            real = np.zeros(index.shape, bool)
            for head, count in enumerate(counts):
                index[head, :count] = np.arange(start, start + count)
                real[head, :count] = True
                start += count
            self.rows.append((index, real) if index.size else None)

    def attach(
        self,
        caches: Sequence[Any],
        memory: Memory | None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Put a batch of memories, in any order, in front of the caches of all layers.

        All memories share the positions after the prefix. None or an empty batch detaches the
        present ones.

        Args:
            weights: float32 (batch,), logarithm of each memory's weight in the softmax; None for
                equal weights.
        """
        caches = [cache for cache in caches if isinstance(cache, MemoryCache)]
        if memory is None or not len(memory):
            for cache in caches:
                cache.detach()
            return
        if self.key_scale != 1:
            memory = replace(memory, keys=memory.keys * self.key_scale)
        if weights is None:
            weights = np.zeros(len(memory), np.float32)
        for cache, row in zip(caches, self.rows, strict=True):
            if row is None:
                cache.detach()
                cache.gap = self.gap
                continue
            index, real = row
            places = memory.positions[:, index]  # (batch, heads, most)
            present = (places != PADDING) & real
            cache.attach(
                _by_head(memory.keys, index),
                _by_head(memory.values, index),
                _flatten_batch(np.where(present, weights[:, None, None], np.float32(-np.inf))),
                self.first + _flatten_batch(places.astype(np.int32)),
                self.gap,
            )


def _by_head(array: mx.array, index: np.ndarray) -> mx.array:
    """(batch, kept, head_dim) to (1, heads, batch·most, head_dim)."""
    picked = array[:, mx.array(index)]  # (batch, heads, most, head_dim)
    batch, heads, most, head_dim = picked.shape
    return picked.transpose(1, 0, 2, 3).reshape(1, heads, batch * most, head_dim)


def _flatten_batch(array: np.ndarray) -> np.ndarray:
    """(batch, heads, most) to (heads, batch·most)."""
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1)
