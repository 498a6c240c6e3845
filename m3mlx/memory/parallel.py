"""Many sequences in one pass, each chunk beside its own memories; for training.

A conversation goes chunk by chunk and swaps memories. Here all memories of a sequence lie side by
side in front of it, and a mask says which chunk sees which. The logits are the same, and
gradients reach the memories. Nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..config import CHUNK_TOKENS, MemoryConfig
from ..errors import ModelError
from ..models.caches import keeps_state, leaves, nearness
from ..models.hooks import chosen_rows, widen_masks
from .cache import LayerCache, Layout, PrefixStates, arrange
from .codec import PADDING, Memory

Reads = Sequence[Sequence[Sequence[int]]]  # of each sequence, for each chunk, rows of a memory


def logits_with_memories(
    model: nn.Module,
    prefix: PrefixStates,
    config: MemoryConfig,
    sequences: Sequence[Sequence[int]],
    memory: Memory | None,
    reads: Reads,
    wanted: Sequence[Sequence[int]],
    *,
    offsets: Sequence[int] | None = None,
) -> mx.array:
    """Compute logits of a batch of sequences that follow the prefix and read memories.

    Positions are those of a conversation: a sequence that reads begins after the positions that
    all memories share, one that reads nothing directly after the prefix.

    Args:
        sequences: token ids of the context, without the prefix.
        memory: every memory that any of them reads; None for none.
        reads: rows of ``memory`` that each chunk of 64 tokens of each sequence sees; the last
            chunk's are also those of all later ones. An empty list reads nothing.
        wanted: of each sequence, the places of the tokens whose logits are wanted.
        offsets: other positions of the sequences' first tokens.

    Returns:
        float32 (all wanted places, vocabulary), sequence by sequence.

    Raises:
        ModelError: the model takes one position for all sequences, and they begin at several.
    """
    widen_masks(model)
    width = max(map(len, sequences))
    tokens = mx.array([[*row, *[0] * (width - len(row))] for row in sequences])
    if offsets is None:
        first = len(config.prefix)
        offsets = [first + config.reference_tokens * any(map(len, row)) for row in reads]
    rows, seen = _rows_seen(reads, width)
    layout = Layout(config)
    plain = [cache for cache in leaves(make_prompt_cache(model)) if not keeps_state(cache)]
    if prefix.even and len(set(offsets)) > 1:
        raise ModelError("this model reads sequences of one batch at one position only")
    caches = []
    for n, (state, cache) in enumerate(zip(prefix, plain, strict=True)):
        pass_cache = _PassCache(state, len(sequences), width, offsets, nearness(cache))
        if memory is not None and layout.rows[n] is not None and rows.size:
            pass_cache.attach(memory, n, rows, seen, layout)
        caches.append(pass_cache)
    starts = np.repeat(np.arange(len(wanted)) * width, list(map(len, wanted)))
    index = starts + np.concatenate([np.asarray(places, np.int64) for places in wanted])
    with chosen_rows(model, mx.array(index)):
        logits = model(tokens, cache=arrange(caches, prefix, len(sequences)))
    return logits[0].astype(mx.float32)


def _rows_seen(reads: Reads, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of memory, int (batch, S), and which token sees which, bool (batch, width, S)."""
    used = [list(dict.fromkeys(row for chunk in chunks for row in chunk)) for chunks in reads]
    most = max(map(len, used), default=0)
    rows = np.zeros((len(reads), most), np.int64)
    seen = np.zeros((len(reads), width, most), bool)
    for b, chunks in enumerate(reads):
        rows[b, : len(used[b])] = used[b]
        for number, chunk in enumerate(chunks):
            start = number * CHUNK_TOKENS
            stop = width if number == len(chunks) - 1 else start + CHUNK_TOKENS
            seen[b, start:stop, [used[b].index(row) for row in chunk]] = True
    return rows, seen


class _PassCache(LayerCache):
    """One layer's cache for one pass over a batch: memories, prefix, then the context.

    ``inputs`` and ``outputs`` are for ``hooks.gradient_checkpoints``.
    """

    outputs: tuple = ()
    fetched: tuple = ()

    def __init__(
        self,
        prefix: tuple[mx.array, mx.array],
        batch: int,
        width: int,
        offsets: Sequence[int],
        near: Callable[[Any, Any], Any] | None,
    ):
        # one position for each sequence, or for all
        alike = len(set(offsets)) == 1
        self.offset = offsets[0] if alike else mx.array(list(offsets), mx.int32)
        self.batch, self.width, self.near = batch, width, near
        self.prefix = prefix[0].shape[2]
        self.inputs = tuple(mx.broadcast_to(x, (batch, *x.shape[1:])) for x in prefix)
        self.seen: mx.array | None = None  # bool (batch, KV heads or 1, width, memory keys)

    def attach(
        self, memory: Memory, layer: int, rows: np.ndarray, seen: np.ndarray, layout: Layout
    ) -> None:
        row = layout.rows[layer]
        assert row
        index, real = row  # both (heads, most)
        places = memory.positions[:, index][rows]  # (batch, S, heads, most)
        valid = (places != PADDING) & real
        if (valid == valid[:, :, :1]).all():
            valid = valid[:, :, :1]  # one mask serves all heads
        valid = valid.transpose(0, 2, 1, 3)  # (batch, heads or 1, S, most)
        visible = valid[:, :, None] & seen[:, None, :, :, None]  # (batch, heads, width, S, most)
        if self.near:
            keys_at = layout.first + places.astype(np.int64).transpose(0, 2, 1, 3)
            at = np.array(self._at())[:, None, :, None, None]
            visible = visible & self.near(at, keys_at[:, :, None])
        self.seen = mx.array(visible.reshape(*visible.shape[:3], -1))
        keys = memory.keys * layout.key_scale if layout.key_scale != 1 else memory.keys
        both = zip((keys, memory.values), layout.dims[layer], self.inputs, strict=True)
        self.inputs = tuple(
            mx.concatenate([_by_sequence(x[..., :dim], index, rows).astype(old.dtype), old], axis=2)
            for x, dim, old in both
        )

    def _at(self) -> mx.array:
        """Positions of the context, (batch or 1, width)."""
        return mx.array(self.offset).reshape(-1, 1) + mx.arange(self.width)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        both = zip(self.inputs, (keys, values), strict=True)
        self.fetched = tuple(mx.concatenate([old, new], axis=2) for old, new in both)
        return self.fetched

    def keys_and_values(self) -> tuple[mx.array, ...]:
        return self.fetched

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> str:
        return "causal"  # a placeholder; ``widen`` makes the mask

    def widen(self, mask: object, queries: int, query_heads: int) -> mx.array:
        """Return the mask, bool (batch, 1 or query heads, queries, keys)."""
        at = mx.arange(queries)
        own = at[:, None] >= at
        prefix = mx.ones((1, 1, queries, self.prefix), mx.bool_)
        if self.near:
            at = self._at()[:, None, :, None]  # (batch or 1, 1, queries, 1)
            own = own & self.near(at, at.swapaxes(-1, -2))
            prefix = self.near(at, mx.arange(self.prefix))
        parts, heads = [prefix, own], 1
        if self.seen is not None:
            if self.seen.shape[1] > 1:
                heads = query_heads
            parts.insert(0, mx.repeat(self.seen, heads // self.seen.shape[1], axis=1))
        shape = (self.batch, heads, queries)
        return mx.concatenate([mx.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], axis=-1)


def _by_sequence(array: mx.array, index: np.ndarray, rows: np.ndarray) -> mx.array:
    """(memories, kept, head_dim) to (batch, heads, S·most, head_dim)."""
    picked = array[:, mx.array(index)][mx.array(rows)]  # (batch, S, heads, most, head_dim)
    batch, count, heads, most, head_dim = picked.shape
    return picked.transpose(0, 2, 1, 3, 4).reshape(batch, heads, count * most, head_dim)
