"""Memories in attention, through mlx-lm's cache protocol.

Each layer has a ``MemoryCache``: an mlx-lm cache of prefix and context, with the layer's memories
in front. MLX aligns its causal mask to the lower right, so every query sees keys in front, and
mlx-lm's models run unmodified. Where a layer needs a mask of its own (heads that keep different
numbers of tokens, sliding windows), its cache widens mlx-lm's (``hooks.widen_masks``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import (
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    create_attention_mask,
    make_prompt_cache,
)

from ..config import CHUNK_TOKENS, MemoryConfig
from ..errors import ModelError
from ..models.caches import keeps_state, leaves, nearness, replaced
from ..models.hooks import widen_masks
from .codec import PADDING, Memory

SPARE_KEYS = 256  # for which the mask of a decoding step is made ahead


class PrefixStates(list[tuple[mx.array, mx.array]]):
    """Keys and values of the prefix, (1, KV heads, prefix, length), of layers that keep them.

    Attributes:
        made: the model's caches after the prefix; those of keys and values are of no use, the
            others hold the states of recurrent and convolutional layers.
        even: rows of one batch must be equally long, as the model takes one position for all.
    """

    def __init__(self, pairs: Iterable[tuple[mx.array, mx.array]], made: Sequence[Any]):
        super().__init__(pairs)
        self.made = made
        self.even = any(isinstance(cache, ChunkedKVCache) for cache in leaves(made))


def arrange(caches: Iterable[Any], prefix: PrefixStates, batch: int = 1) -> list[Any]:
    """Put caches of keys and values in their places among copies of the others' states."""
    remaining = iter(caches)

    def place(made: Any) -> Any:
        if not keeps_state(made):
            return next(remaining)
        state = deepcopy(made)
        if batch > 1:
            state.cache = [
                x if x is None else mx.broadcast_to(x, (batch, *x.shape[1:])) for x in state.cache
            ]
        return state

    return replaced(prefix.made, place)


class LayerCache:
    """What the caches of m3mlx have that llama4 asks of its own, which is cut into chunks."""

    start_position = 0

    def maybe_trim_front(self) -> None:
        """Keep everything; the mask tells what is seen."""


class MemoryCache(LayerCache):
    """Memories, then prefix and context, of one layer in the buffer of its mlx-lm cache.

    Memories are put in front when they are attached, every 64 tokens at most, so that a decoding
    step copies nothing. ``gap`` is the number of positions between prefix and context that belong
    to the references: with memories, position is not length.
    """

    def __init__(self, base: Any):
        self.base = base
        self.gap = 0
        self.before = 0  # tokens in front of the gap
        self.length = 0  # of the memories
        self.weights: Any = None  # (KV heads, M), of the type of the keys; -inf for padding
        self.weighed = False  # some weights are not 0
        self.positions: Any = None  # int32 (KV heads, M)
        self._row: mx.array | None = None  # mask of one query, with spare keys

    def attach(
        self, keys: mx.array, values: mx.array, weights: np.ndarray, positions: np.ndarray, gap: int
    ) -> None:
        """Show these memories to the context that follows, in place of earlier ones.

        Args:
            keys, values: (1, KV heads, M, length), keys after RoPE.
            weights: float32 (KV heads, M), added to the logits of attention; -inf for padding.
            positions: int (KV heads, M), positions of the keys.
            gap: positions reserved for references; stays when the memories are detached.
        """
        self.reserve(gap)
        if not np.isfinite(weights).any():
            self.detach()
            return
        if hasattr(self.base, "bits"):
            size = {"group_size": self.base.group_size, "bits": self.base.bits}
            self._set(mx.quantize(keys, **size), mx.quantize(values, **size), weights.shape[1])
        else:
            self._set(keys, values, weights.shape[1])
        self.weights, self.weighed = mx.array(weights).astype(keys.dtype), bool(weights.any())
        self.positions = mx.array(positions)

    def reserve(self, gap: int) -> None:
        """Leave positions for references between the tokens so far and those that follow."""
        if not self.gap:
            self.gap, self.before = gap, self.context

    def detach(self) -> None:
        """Remove the memories; what follows sees prefix and context only."""
        if self.length:
            self._set(None, None, 0)

    def _set(self, keys: Any, values: Any, length: int) -> None:
        base = self.base
        base.keys = _replace_front(base.keys, self.length, base.offset, keys)
        base.values = _replace_front(base.values, self.length, base.offset, values)
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
        base: Any = self.base
        needed = base.offset + keys.shape[2]
        plain = not (base.empty() or hasattr(base, "bits"))
        if plain and needed > base.keys.shape[2]:  # mlx-lm would grow to an odd capacity
            used = [x[..., : base.offset, :] for x in (base.keys, base.values)]
            base.keys, base.values = (_with_room([x], keys.shape[2]) for x in used)
        return base.update_and_fetch(keys, values)

    def keys_and_values(self) -> tuple:
        """Return what ``update_and_fetch`` returned last."""
        return self.base.keys_and_values()

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Mask over prefix and context only; ``widen`` adds the memories."""
        return create_attention_mask(N, self.context, return_array, window_size)

    @property
    def state(self) -> Any:
        return self.base.state

    def is_trimmable(self) -> bool:
        return self.base.is_trimmable()

    def trim(self, n: int) -> int:
        """Forget the last tokens."""
        trimmed = self.base.trim(n)
        if self.context < self.before:  # the place of the gap is forgotten too
            self.gap = self.before = 0
        return trimmed

    @property
    def nbytes(self) -> int:
        return 0 if self.base.empty() else self.base.nbytes

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
        if not (self.weighed or isinstance(mask, mx.array)):
            return mask
        memory = self.weights[:, None]
        if not hasattr(self.base, "bits"):  # quantized attention takes KV heads
            memory = mx.repeat(memory, query_heads // len(memory), axis=0)
        if mask is None:
            return self._single_query_mask(memory)
        if isinstance(mask, mx.array):
            context = mask
        else:
            keys = self.context + queries
            context = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
        return _join_masks(memory, context, queries)

    def _single_query_mask(self, memory: mx.array) -> mx.array:
        """Mask of one query, which sees the whole context; made once for many steps."""
        keys = self.base.offset + 1
        if self._row is None or self._row.shape[-1] < keys:
            self._row = _join_masks(memory, mx.ones((1, self.context + SPARE_KEYS), mx.bool_), 1)
        return self._row[..., :keys]


class LocalCache(MemoryCache):
    """A cache for a layer that sees only what is near, by positions and not by numbers of tokens.

    Memories are seen, and leave the window, as their text would.
    """

    def __init__(self, base: Any, near: Callable[[Any, Any], Any]):
        super().__init__(base)
        self._near = near

    def widen(self, mask: mx.array | str | None, queries: int, query_heads: int) -> Any:
        if not self.gap:  # tokens are positions, and mlx-lm's mask is right
            return mask
        at = mx.arange(self.offset, self.offset + queries)[:, None]
        tokens = self._tokens(queries)
        keys_at = tokens + self.gap * (tokens >= self.before)
        context = (keys_at <= at) & self._near(at, keys_at)
        if not self.length:
            return context
        near = self._near(at, self.positions[:, None])
        memory = mx.where(near, self.weights[:, None], -mx.inf)
        return _join_masks(mx.repeat(memory, query_heads // len(memory), axis=0), context, queries)

    def _tokens(self, queries: int) -> mx.array:
        """Return which tokens the keys of prefix and context are of, those of the queries last."""
        return mx.arange(self.context + queries)


class WindowedCache(LocalCache):
    """A cache for a layer with a sliding window.

    mlx-lm's rotating buffer overwrites its oldest entries, so memories are kept beside it and
    concatenated at every step.
    """

    def __init__(self, base: RotatingKVCache, near: Callable[[Any, Any], Any]):
        super().__init__(base, near)
        self.keys: Any = None  # (1, KV heads, M, length)
        self.values: Any = None

    def _set(self, keys: Any, values: Any, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    @property
    def context(self) -> int:
        return self.base.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple:
        return self._joined(*self.base.update_and_fetch(keys, values))

    def keys_and_values(self) -> tuple:
        return self._joined(*self.base.keys_and_values())

    def _joined(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if not self.length:
            return keys, values
        return _prepend(self.keys, keys), _prepend(self.values, values)

    def make_mask(self, *args: Any, **kwargs: Any) -> mx.array | str | None:
        return self.base.make_mask(*args, **kwargs)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self.keys.nbytes + self.values.nbytes if self.length else 0)

    def _tokens(self, queries: int) -> mx.array:
        base, size = self.base, self.base.max_size
        if queries > 1:  # a pass over several tokens puts the buffer in order, and trims it first
            width = min(self.context, size - 1) + queries
            return mx.arange(self.context + queries - width, self.context + queries)
        width = min(self.context + 1, size)
        newest = min(base._idx, size) if base.keys.shape[2] <= size else size
        newest = base.keep if newest == size else newest  # it begins anew
        return self.context - (newest - mx.arange(width)) % width


def _join_masks(memory: mx.array, context: mx.array, queries: int) -> mx.array:
    """Join what is added to the logits of memories with a mask over the context.

    Args:
        memory: (heads, queries or 1, M).
        context: bool (…, queries, keys).

    Returns:
        (1, heads, queries, M + keys), of the type of ``memory``, to be added to logits.
    """
    context = context[0] if context.ndim == 4 else context.reshape(1, *context.shape[-2:])
    shape = (len(memory), queries)
    context = mx.where(context, 0.0, -mx.inf).astype(memory.dtype)
    parts = [mx.broadcast_to(part, (*shape, part.shape[-1])) for part in (memory, context)]
    return mx.concatenate(parts, axis=-1)[None]


def _replace_front(buffer: Any, length: int, used: int, memory: Any) -> Any:
    """Replace the first ``length`` keys of a buffer, which may be quantized, by a memory.

    Args:
        used: keys in the buffer; the others are room.
    """
    if isinstance(buffer, (tuple, list)):
        parts = enumerate(buffer)
        return tuple(_replace_front(x, length, used, memory and memory[i]) for i, x in parts)
    rest = buffer[..., length:used, :]
    return _with_room([rest] if memory is None else [memory.astype(rest.dtype), rest], CHUNK_TOKENS)


def _with_room(parts: list[mx.array], tokens: int) -> mx.array:
    """Join keys or values, and add room for some tokens.

    The capacity is a multiple of 256, without which CUDA's attention of one token is slow.
    """
    used = sum(part.shape[-2] for part in parts)
    shape = list(parts[0].shape)
    shape[-2] = -(used + tokens) % KVCache.step + tokens
    return mx.concatenate([*parts, mx.zeros(shape, parts[0].dtype)], axis=-2)


def _prepend(memory: mx.array, context: mx.array) -> mx.array:
    return mx.concatenate([memory.astype(context.dtype), context], axis=-2)


def known_tokens(model: nn.Module) -> int:
    """Return how many token ids a model has embeddings for."""
    embeddings = (nn.Embedding, nn.QuantizedEmbedding)
    return next(m for m in model.modules() if isinstance(m, embeddings)).weight.shape[0]


def check_tokens(model: nn.Module, tokens: Iterable[int]) -> None:
    """Raise ModelError for token ids that the model does not know.

    MLX would read beyond its embeddings, or kill the process. An imported file may hold any ids.
    """
    known = known_tokens(model)
    if foreign := [token for token in tokens if not 0 <= token < known]:
        raise ModelError(
            f"token {foreign[0]} is not one of this model's {known}; the store was damaged or "
            f"imported from a forged file. Forget the document and memorize it again"
        )


class _PrefixCache(ConcatenateKVCache, LayerCache):
    """A cache that keeps all keys and values, whatever the layer sees of them."""


def read_prefix(model: nn.Module, prefix: Sequence[int]) -> PrefixStates:
    """Compute keys and values of the constant prefix at every layer (section 3.2 of the paper).

    Layers with a recurrent or convolutional state give that state after the prefix. Without a
    prefix there are no keys and values.
    """
    check_tokens(model, prefix)
    made = make_prompt_cache(model)
    if not prefix:
        return PrefixStates((), made)
    caches = replaced(made, lambda cache: cache if keeps_state(cache) else _PrefixCache())
    model(mx.array([list(prefix)]), cache=caches)
    pairs = [(c.keys, c.values) for c in leaves(caches) if not keeps_state(c)]
    mx.eval(pairs, [c.cache for c in leaves(made) if keeps_state(c)])
    return PrefixStates(pairs, made)


def make_cache(model: nn.Module, prefix: PrefixStates, *, kv_bits: int | None = None) -> list[Any]:
    """Make the caches of one conversation, one per layer, with the prefix in place.

    The model's masks are widened from here on, without which heads would see padding.

    Args:
        prefix: from ``read_prefix``.
        kv_bits: 8 or 4 to quantize the context; layers with a sliding window stay as they are, and
            all do without a prefix.

    Raises:
        ModelError: the head dimension does not allow a quantized context.
    """
    widen_masks(model)
    caches: list[MemoryCache] = []
    bases = [cache for cache in leaves(make_prompt_cache(model)) if not keeps_state(cache)]
    for base, pair in zip(bases, prefix or [None] * len(bases), strict=True):
        near = nearness(base)
        if isinstance(base, ChunkedKVCache):
            base = KVCache()
        elif kv_bits and pair and isinstance(base, KVCache):
            base = QuantizedKVCache(group_size=_group_size(*pair), bits=kv_bits)
        if pair:
            base.update_and_fetch(*pair)
        if near is None:
            caches.append(MemoryCache(base))
        else:
            kind = WindowedCache if isinstance(base, RotatingKVCache) else LocalCache
            caches.append(kind(base, near))
    arranged = arrange(caches, prefix)
    if kv_bits and prefix:
        _check_quantized(model, arranged)
    return arranged


def _group_size(keys: mx.array, values: mx.array) -> int:
    dims = keys.shape[-1], values.shape[-1]
    for size in (64, 32):
        if all(dim % size == 0 for dim in dims):
            return size
    raise ModelError(
        f"a quantized context needs a head dimension divisible by 32, this model "
        f"has {min(dims)}; run without --kv-bits"
    )


def _check_quantized(model: nn.Module, caches: list[Any]) -> None:
    """Raise ModelError where a model cannot attend to a quantized context.

    Some attentions compute with keys before they attend, or have sinks; nothing is computed here.
    """
    try:
        model(mx.array([[0, 1]]), cache=deepcopy(caches))
    except Exception as error:  # a foreign model can fail anywhere
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"this model cannot read a quantized context ({reason}); run without --kv-bits"
        ) from error


class Layout:
    """Places of each layer's and head's tokens in a flat memory.

    Attributes:
        rows: of each layer the index, int (KV heads, most), and which of it is no padding, bool;
            None for a layer without memories.
    """

    def __init__(self, config: MemoryConfig):
        self.dims = config.dims
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

    def reserve(self, caches: Sequence[Any]) -> None:
        """Leave positions for references in front of what follows."""
        for cache in leaves(caches):
            if isinstance(cache, MemoryCache):
                cache.reserve(self.gap)

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
        caches = [cache for cache in leaves(caches) if isinstance(cache, MemoryCache)]
        if memory is None or not len(memory):
            for cache in caches:
                cache.detach()
            return
        if self.key_scale != 1:
            memory = replace(memory, keys=memory.keys * self.key_scale)
        if weights is None:
            weights = np.zeros(len(memory), np.float32)
        for cache, row, (key_dim, value_dim) in zip(caches, self.rows, self.dims, strict=True):
            if row is None:
                cache.detach()
                cache.reserve(self.gap)
                continue
            index, real = row
            places = memory.positions[:, index]  # (batch, heads, most)
            present = (places != PADDING) & real
            cache.attach(
                _by_head(memory.keys[..., :key_dim], index),
                _by_head(memory.values[..., :value_dim], index),
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
