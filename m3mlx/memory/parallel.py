"""Many sequences in one pass, each chunk beside its own memories; for training.

Where a conversation goes chunk by chunk and swaps memories (``generate.py``), this lays all
memories of a sequence side by side in front of it, and a mask says which chunk sees which. The
logits are the same, and gradients reach the memories. Nothing is evaluated here, and nothing
that a pass makes outlives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..config import CHUNK_TOKENS, MemoryConfig
from .cache import Layout, PrefixStates, widen_masks
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
    """Logits of a batch of sequences that stand behind the prefix and read memories.

    The positions are those of a conversation: a sequence that reads anything begins behind the
    interval that all memories share, one that reads nothing right behind the prefix.

    Args:
        sequences: token ids of the context, without the prefix.
        memory: every memory that any of them reads; None if none does.
        reads: which rows of ``memory`` each chunk of 64 tokens of each sequence sees; what the
            last chunk named sees, all later ones see. An empty list reads nothing.
        wanted: of each sequence, the places of the tokens whose logits are wanted.
        offsets: the position of each sequence's first token, where it is another.

    Returns:
        float32 (places wanted in all, vocabulary), sequence by sequence.
    """
    widen_masks(model)
    width = max(map(len, sequences))
    tokens = mx.array([[*row, *[0] * (width - len(row))] for row in sequences])
    if offsets is None:
        first = len(config.prefix)
        offsets = [first + config.reference_tokens * any(map(len, row)) for row in reads]
    slots, seen = _slots(reads, width)
    layout = Layout(config)
    caches = []
    plain = make_prompt_cache(model)
    for state, row, cache in zip(prefix, layout.rows, plain, strict=True):
        window = getattr(cache, "max_size", None)
        pass_cache = _PassCache(state, len(sequences), width, offsets, window)
        if memory is not None and row is not None and slots.size:
            pass_cache.attach(memory, row, slots, seen, layout)
        caches.append(pass_cache)
    hidden = model.model(tokens, cache=caches)
    rows = np.concatenate([np.full(len(places), b) for b, places in enumerate(wanted)])
    places = np.concatenate([np.asarray(places, np.int64) for places in wanted])
    hidden = hidden.reshape(-1, hidden.shape[-1])[mx.array(rows * width + places)]
    return head(model)(hidden).astype(mx.float32)


def head(model: nn.Module) -> nn.Module:
    """What turns hidden vectors into logits."""
    return model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear


def _slots(reads: Reads, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The memories of each sequence, int (batch, S), and bool (batch, width, S): who sees what."""
    used = [list(dict.fromkeys(row for chunk in chunks for row in chunk)) for chunks in reads]
    most = max(map(len, used), default=0)
    slots = np.zeros((len(reads), most), np.int64)
    seen = np.zeros((len(reads), width, most), bool)
    for b, chunks in enumerate(reads):
        slots[b, : len(used[b])] = used[b]
        for number, chunk in enumerate(chunks):
            start = number * CHUNK_TOKENS
            stop = width if number == len(chunks) - 1 else start + CHUNK_TOKENS
            seen[b, start:stop, [used[b].index(row) for row in chunk]] = True
    return slots, seen


class _PassCache:
    """One layer's cache for one pass over a batch: memories, prefix, then the context.

    ``inputs`` and ``outputs`` are for gradient checkpoints (``train/checkpointing.py``).
    """

    outputs: tuple = ()

    def __init__(
        self,
        prefix: tuple[mx.array, mx.array],
        batch: int,
        width: int,
        offsets: Sequence[int],
        window: int | None,
    ):
        self.offset = mx.array(list(offsets), mx.int32)  # one position for each sequence
        self.batch, self.width, self.window = batch, width, window
        self.prefix = prefix[0].shape[2]
        self.inputs = tuple(mx.broadcast_to(x, (batch, *x.shape[1:])) for x in prefix)
        self.seen: mx.array | None = None  # bool (batch, KV heads, width, memory keys)

    def attach(
        self,
        memory: Memory,
        row: tuple[np.ndarray, np.ndarray],
        slots: np.ndarray,
        seen: np.ndarray,
        layout: Layout,
    ) -> None:
        index, real = row  # both (heads, most)
        places = memory.positions[:, index][slots]  # (batch, S, heads, most)
        valid = (places != PADDING) & real
        if (valid == valid[:, :, :1]).all():
            valid = valid[:, :, :1]  # one mask serves all heads
        valid = valid.transpose(0, 2, 1, 3)  # (batch, heads or 1, S, most)
        sight = valid[:, :, None] & seen[:, None, :, :, None]  # (batch, heads, width, S, most)
        if self.window:
            at = np.array(self.offset)[:, None] + np.arange(self.width)
            where = layout.first + places.astype(np.int64).transpose(0, 2, 1, 3)
            near = at[:, None, :, None, None] - where[:, :, None] < self.window
            sight = sight & near
        self.seen = mx.array(sight.reshape(*sight.shape[:3], -1))
        keys = memory.keys * layout.key_scale if layout.key_scale != 1 else memory.keys
        self.inputs = tuple(
            mx.concatenate([_lay_out(kept, index, slots).astype(old.dtype), old], axis=2)
            for kept, old in zip((keys, memory.values), self.inputs, strict=True)
        )

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return tuple(
            mx.concatenate([old, new], axis=2)
            for old, new in zip(self.inputs, (keys, values), strict=True)
        )

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None):
        return "causal"  # a placeholder; ``widen`` makes the mask

    def widen(self, mask: object, queries: int, query_heads: int) -> mx.array:
        """bool (batch, 1 or query heads, queries, keys)."""
        at = mx.arange(queries)
        own = at[:, None] >= at
        prefix = mx.ones((1, 1, queries, self.prefix), mx.bool_)
        if self.window:
            own = own & (at[:, None] - at < self.window)
            # as in a conversation, whose window counts tokens and not positions
            prefix = (self.prefix + at[:, None] - mx.arange(self.prefix) < self.window)[None, None]
        parts = [prefix, own]
        heads = 1
        if self.seen is not None:
            seen = self.seen
            if seen.shape[1] > 1:
                seen = mx.repeat(seen, query_heads // seen.shape[1], axis=1)
                heads = query_heads
            parts = [seen, *parts]
        shape = (self.batch, heads, queries)
        return mx.concatenate([mx.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], axis=-1)


def _lay_out(array: mx.array, index: np.ndarray, slots: np.ndarray) -> mx.array:
    """(memories, kept, head_dim) to (batch, heads, S·most, head_dim)."""
    picked = array[:, mx.array(index)][mx.array(slots)]  # (batch, S, heads, most, head_dim)
    batch, count, heads, most, head_dim = picked.shape
    return picked.transpose(0, 2, 1, 3, 4).reshape(batch, heads, count * most, head_dim)
