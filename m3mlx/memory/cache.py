"""How memories reach attention: through mlx-lm's cache protocol, and nowhere else.

Each layer has a ``MemoryCache``: an ordinary mlx-lm cache that holds prefix and context, with
the layer's memories in front of them. MLX aligns its causal mask to the lower right, so keys in
front are seen by every query and the models of mlx-lm run unmodified.

Where a mask must be an array — heads that keep different numbers of tokens, sliding windows —
mlx-lm makes one for all layers, while memories need one for each. ``widen_masks`` gives the
attention modules of a model a subclass of their own class that asks the layer's cache to
widen the mask; ``restore_masks`` takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import (
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    create_attention_mask,
    make_prompt_cache,
)

from ..config import MemoryConfig
from ..errors import ModelError
from .codec import PADDING, Memory

ROOM = 256  # keys for which the mask of a decoding step is made ahead

PrefixStates = list[tuple[mx.array, mx.array]]  # keys and values, (1, KV heads, prefix, head_dim)


class MemoryCache:
    """One layer's cache: memories, then prefix and context, in one buffer of mlx-lm's cache.

    Memories are laid in front when they are attached, every 64 tokens at most, so that a step
    of decoding copies nothing. ``gap`` is the number of positions between the end of the prefix
    and the first context token that belong to the references; position is not length once
    memories are present.
    """

    def __init__(self, base: Any):
        self.base = base
        self.gap = 0
        self.length = 0  # of the memories
        self.weights: mx.array | None = None  # (KV heads, M), -inf for padding; None where all 0
        self._row: mx.array | None = None  # the mask of one query, with room for more keys

    def attach(
        self,
        keys: mx.array,
        values: mx.array,
        weights: np.ndarray,
        positions: np.ndarray,
        gap: int,
    ) -> None:
        """Show the context that follows these memories, in place of any before them.

        Args:
            keys, values: (1, KV heads, M, head_dim), keys after RoPE.
            weights: float32 (KV heads, M), added to the logits of attention; -inf for padding.
            positions: int (KV heads, M), the positions that the keys carry.
            gap: positions set apart for references; stays when the memories go.
        """
        self.gap = gap
        if not np.isfinite(weights).any():
            self.detach()
            return
        if hasattr(self.base, "bits"):
            size = {"group_size": self.base.group_size, "bits": self.base.bits}
            keys, values = mx.quantize(keys, **size), mx.quantize(values, **size)
        self._put(keys, values, weights.shape[1])
        self.weights = mx.array(weights) if weights.any() else None

    def detach(self) -> None:
        """Forget the memories; what follows sees prefix and context only."""
        if self.length:
            self._put(None, None, 0)
        self.weights = None

    def _put(self, keys: Any, values: Any, length: int) -> None:
        """Lay memories in front of the context, which starts at the buffer's begin without any."""
        base = self.base
        base.keys = _replace(base.keys, self.length, keys)
        base.values = _replace(base.values, self.length, values)
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
        """The mask over prefix and context alone; ``widen`` adds the memories."""
        return create_attention_mask(N, self.context, return_array, window_size)

    @property
    def state(self) -> Any:
        return self.base.state

    def __getattr__(self, name: str) -> Any:
        # Only what tells mlx-lm that keys and values are quantized.
        if name in ("bits", "group_size"):
            return getattr(self.base, name)
        raise AttributeError(name)

    # --- the mask

    def widen(self, mask: mx.array | str | None, queries: int, query_heads: int) -> Any:
        """Turn a mask over prefix and context into one over memories, prefix and context.

        What comes back, if it is an array, is added to the logits.

        Args:
            mask: None, "causal", or a bool array (…, queries, keys).
            queries: number of query tokens.
            query_heads: number of query heads.
        """
        if not self.length:
            return mask
        memory = self._memory_mask(queries)
        if memory is None and not isinstance(mask, mx.array):
            return mask
        if memory is None:
            memory = mx.zeros((1, 1, self.length))
        elif not hasattr(self.base, "bits"):  # the quantized attention wants KV heads
            memory = mx.repeat(memory, query_heads // len(memory), axis=0)
        if mask is None:
            return self._mask_of_one(memory)
        if isinstance(mask, mx.array):
            context = mask
        else:
            keys = self.context + queries
            context = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
        return _beside(memory, context, queries)

    def _memory_mask(self, queries: int) -> mx.array | None:
        """What is added to their logits, (KV heads, queries or 1, M); None where nothing is."""
        return None if self.weights is None else self.weights[:, None]

    def _mask_of_one(self, memory: mx.array) -> mx.array:
        """The mask of one query, which sees the whole context; made once for many steps."""
        keys = self.base.offset + 1
        if self._row is None or self._row.shape[-1] < keys:
            room = mx.ones((1, self.context + ROOM), mx.bool_)
            self._row = _beside(memory, room, 1)
        return self._row[..., :keys]


class WindowedCache(MemoryCache):
    """The same for a layer with a sliding window, which sees memories as long as it would text.

    mlx-lm's rotating buffer writes over its oldest entries, so the memories stand beside it and
    are joined with it at every step.
    """

    def __init__(self, base: RotatingKVCache):
        super().__init__(base)
        self.keys = self.values = None  # (1, KV heads, M, head_dim)
        self.positions: mx.array | None = None  # int32 (KV heads, M)

    def attach(
        self,
        keys: mx.array,
        values: mx.array,
        weights: np.ndarray,
        positions: np.ndarray,
        gap: int,
    ) -> None:
        super().attach(keys, values, weights, positions, gap)
        self.positions = mx.array(positions)

    def _put(self, keys: Any, values: Any, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    @property
    def context(self) -> int:
        return self.base.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple:
        keys, values = self.base.update_and_fetch(keys, values)
        if not self.length:
            return keys, values
        return _join(self.keys, keys), _join(self.values, values)

    def make_mask(self, *args: Any, **kwargs: Any) -> mx.array | str | None:
        return self.base.make_mask(*args, **kwargs)

    def _memory_mask(self, queries: int) -> mx.array:
        at = mx.arange(self.offset, self.offset + queries)[None, :, None]
        near = at - self.positions[:, None] < self.base.max_size
        return mx.where(near, 0.0 if self.weights is None else self.weights[:, None], -mx.inf)

    def _mask_of_one(self, memory: mx.array) -> mx.array:
        return _beside(memory, mx.ones((1, min(self.context + 1, self.base.max_size)), mx.bool_), 1)


def _beside(memory: mx.array, context: mx.array, queries: int) -> mx.array:
    """What is added to the logits of memories, (heads, queries or 1, M), and a bool mask over the
    context, (…, queries, keys), as one (1, heads, queries, M + keys)."""
    context = context[0] if context.ndim == 4 else context.reshape(1, *context.shape[-2:])
    shape = (len(memory), queries)
    context = mx.where(context, 0.0, -mx.inf)
    parts = [mx.broadcast_to(part, (*shape, part.shape[-1])) for part in (memory, context)]
    return mx.concatenate(parts, axis=-1)[None]


def _replace(buffer: Any, old: int, memory: Any) -> Any:
    """A buffer with other memories in front; what stands behind the first ``old`` entries stays."""
    if isinstance(buffer, (tuple, list)):
        return tuple(_replace(x, old, memory and memory[i]) for i, x in enumerate(buffer))
    rest = buffer[..., old:, :]
    return rest if memory is None else _join(memory, rest)


def _join(memory: mx.array, context: mx.array) -> mx.array:
    return mx.concatenate([memory.astype(context.dtype), context], axis=-2)


def widen_masks(model: nn.Module) -> None:
    """Let the caches of each layer widen its mask; parameters and their names do not change."""
    for layer in model.layers:
        attention = layer.self_attn
        if not hasattr(attention, "_plain_class"):
            attention.__class__ = _widening(type(attention))


def restore_masks(model: nn.Module) -> None:
    """Undo ``widen_masks``."""
    for layer in model.layers:
        plain = getattr(layer.self_attn, "_plain_class", None)
        if plain is not None:
            layer.self_attn.__class__ = plain


def _widening(plain: type) -> type:
    def __call__(self, x, mask=None, cache=None):
        if hasattr(cache, "widen"):
            heads = getattr(self, "n_heads", None) or self.num_attention_heads
            mask = cache.widen(mask, x.shape[1], heads)
            if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
                mask = mask.astype(x.dtype)  # as attention wants it
        return plain.__call__(self, x, mask, cache)

    return type(plain.__name__, (plain,), {"__call__": __call__, "_plain_class": plain})


def check_tokens(model: nn.Module, tokens: Iterable[int]) -> None:
    """Raise ModelError for token ids that the model does not know.

    MLX reads whatever lies behind its embeddings, or kills the process. Ids of an imported file
    are whatever somebody wrote.
    """
    embeddings = (nn.Embedding, nn.QuantizedEmbedding)
    known = next(m for m in model.modules() if isinstance(m, embeddings)).weight.shape[0]
    if foreign := [token for token in tokens if not 0 <= token < known]:
        raise ModelError(
            f"token {foreign[0]} is not one of this model's {known}; the store was damaged or "
            f"imported from a forged file. Forget the document and memorize it again"
        )


def read_prefix(model: nn.Module, prefix: Sequence[int]) -> PrefixStates:
    """Keys and values of the constant prefix, at every layer (section 3.2 of the paper)."""
    check_tokens(model, prefix)
    caches = [ConcatenateKVCache() for _ in model.layers]
    model(mx.array([list(prefix)]), cache=caches)
    states = [(cache.keys, cache.values) for cache in caches]
    mx.eval(states)
    return states


def make_cache(
    model: nn.Module, prefix: PrefixStates, *, kv_bits: int | None = None
) -> list[MemoryCache]:
    """Caches for one conversation, one for each layer, with the prefix in place.

    The model's masks are widened from here on, without which heads would see padding.

    Args:
        prefix: what ``read_prefix`` gave.
        kv_bits: 8 or 4 to keep the context quantized; layers with a sliding window stay as is.

    Raises:
        ModelError: the head dimension does not allow a quantized context.
    """
    widen_masks(model)
    caches = []
    for base, (keys, values) in zip(make_prompt_cache(model), prefix, strict=True):
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
    return caches


class Layout:
    """Where each layer's and head's tokens stand in a flat memory."""

    def __init__(self, config: MemoryConfig):
        self.first = len(config.prefix)
        self.gap = config.reference_tokens
        self.key_scale = config.key_scale
        self.rows: list[tuple[mx.array, np.ndarray] | None] = []  # index and its bool padding
        start = 0
        for counts in config.counts:
            most = max(counts)
            index = np.zeros((len(counts), most), np.int64)
            real = np.zeros((len(counts), most), bool)
            for head, count in enumerate(counts):
                index[head, :count] = np.arange(start, start + count)
                real[head, :count] = True
                start += count
            self.rows.append((index, real) if most else None)

    def attach(
        self,
        caches: Sequence[MemoryCache],
        memory: Memory | None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Put a batch of memories, in any order, before the caches of all layers.

        All memories share the interval of positions that follows the prefix. None or an empty
        batch takes the memories away.

        Args:
            weights: float32 (batch,), the logarithm of what each memory counts in the softmax of
                attention; all the same when None.
        """
        if memory is not None and self.key_scale != 1:
            memory = replace(memory, keys=memory.keys * self.key_scale)
        if memory is not None and weights is None:
            weights = np.zeros(len(memory), np.float32)
        for cache, row in zip(caches, self.rows, strict=True):
            if memory is None or not len(memory):
                cache.detach()
            elif row is None:
                cache.detach()
                cache.gap = self.gap
            else:
                index, real = row
                places = memory.positions[:, index]  # (batch, heads, most)
                there = (places != PADDING) & real
                cache.attach(
                    _lay_out(memory.keys, index),
                    _lay_out(memory.values, index),
                    _side_by_side(np.where(there, weights[:, None, None], np.float32(-np.inf))),
                    self.first + _side_by_side(places.astype(np.int32)),
                    self.gap,
                )


def _lay_out(array: mx.array, index: np.ndarray) -> mx.array:
    """(batch, kept, head_dim) to (1, heads, batch·most, head_dim)."""
    picked = array[:, mx.array(index)]  # (batch, heads, most, head_dim)
    batch, heads, most, head_dim = picked.shape
    return picked.transpose(1, 0, 2, 3).reshape(1, heads, batch * most, head_dim)


def _side_by_side(array: np.ndarray) -> np.ndarray:
    """(batch, heads, most) to (heads, batch·most)."""
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1)
