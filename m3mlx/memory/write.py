"""References to memories: run the model once, score every token, keep the best of each head.

A reference is read by itself after the constant prefix (section 3.2 of the paper). Its keys are
kept after RoPE, with the positions they had. Two scores rank the tokens:

``attention``, the paper's (section 3.3): softmax over the reference's own keys, of queries and
keys before RoPE and without causal mask, summed over the queries and the query heads of a group.

``reconstruction``, after KVzip (arXiv 2505.23416): the largest causal attention that a token
receives while the model recites the reference, times the length of its value. The attention
measures what is needed to repeat the text, where the paper's measures what the text itself
attends to; the length makes heads comparable (tools/LOG.md). Recurrent layers recite without
having read the reference, as they are when a memory is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import create_attention_mask

from ..config import MemoryConfig
from ..errors import ModelError
from ..models.hooks import Tap, tap_attention, widen_masks
from ..models.linux_cpu import ops
from .cache import LayerCache, PrefixStates, arrange, check_tokens
from .codec import PADDING, Memory


class Writer:
    """Writes memories with one model.

    Args:
        model: a decoder of mlx-lm.
        prefix: from ``read_prefix``.
        recite: token ids between a reference and its recitation, for ``reconstruction``.
    """

    def __init__(self, model: nn.Module, prefix: PrefixStates, recite: Sequence[int]):
        self.model = model
        self.prefix = prefix
        self.recite = list(recite)
        widen_masks(model)  # for attentions that take masks in a shape of their own

    def write(self, references: Sequence[Sequence[int]], config: MemoryConfig) -> Memory:
        """Make the memories of a batch of references.

        Args:
            references: token ids, each 1 to ``config.reference_tokens`` long.

        Returns:
            A batch in the order given; a reference shorter than its budget is padded.
        """
        layers = [n for n, counts in enumerate(config.counts) if any(counts)]
        counts = [config.counts[n] for n in layers]
        parts, order = [], []

        def write(rows: Sequence[int]) -> Memory:
            scored = self.score([references[row] for row in rows], config.selection, layers)
            return keep(*scored, counts)

        for rows in _group_by_length(references, 1.0 if self.prefix.even else 1.5):
            parts += ops.split_over_cores(write, rows)
            order += rows
        return Memory.join(parts).take(np.argsort(order))

    def score(
        self,
        references: Sequence[Sequence[int]],
        selection: str,
        layers: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, mx.array, mx.array]:
        """Score the tokens of a batch of references.

        Args:
            layers: those to score, None for all. What follows the attention of the last one is
                not computed.

        Returns:
            Scores, float32 (batch, layers, KV heads, longest), -1 after a reference's end and where
            a layer has fewer heads; keys after RoPE and values, (batch, layers, KV heads, longest,
            longest of their lengths).
        """
        for tokens in references:
            check_tokens(self.model, tokens)
        lengths = np.array([len(tokens) for tokens in references])
        longest = int(lengths.max())
        if self.prefix.even and lengths.min() < longest:
            return _join_scores([self.score([row], selection, layers) for row in references])
        real = mx.array(np.arange(longest) < lengths[:, None])  # (batch, longest)
        recorders = [_Recorder(*state) for state in self.prefix]
        wanted = range(len(recorders)) if layers is None else layers
        taps = self._run(references, recorders)
        if selection == "reconstruction":
            reciters = [_Reciter(recorder, real, self.prefix.even) for recorder in recorders]
            taps = self._run([[*self.recite, *tokens] for tokens in references], reciters)
            found = [_reconstruction_score(reciters[n].readers(taps), reciters[n]) for n in wanted]
        else:
            asked = [recorders[n] for n in wanted]
            found = [_attention_score(cache.readers(taps), cache, real) for cache in asked]
        scores = _stack_scores(
            [mx.where(real[:, None], score, -1.0) for score in found], self.prefix
        )
        keys, values = _stack_layers([recorders[n] for n in wanted], self.prefix)
        mx.eval(scores, keys, values)
        return np.array(scores), keys, values

    def _run(self, rows: Sequence[Sequence[int]], caches: Sequence[_Recorder]) -> list[Tap]:
        """Run the model after what the caches show; return what its attentions compute with."""
        with tap_attention(self.model) as taps:
            _run(self.model, rows, arrange(caches, self.prefix, len(rows)))
        return taps


def keep(
    scores: np.ndarray, keys: mx.array, values: mx.array, counts: Sequence[Sequence[int]]
) -> Memory:
    """Keep the best tokens of each head, of what ``Writer.score`` returned.

    Args:
        counts: tokens to keep, by layer and KV head.
    """
    memory = _gather(keys, values, *_select(scores, counts))
    mx.eval(memory.keys, memory.values)
    return memory


def write_traced(
    model: nn.Module,
    prefix: PrefixStates,
    references: Sequence[Sequence[int]],
    scores: np.ndarray,
    counts: Sequence[Sequence[int]],
) -> Memory:
    """Make memories through which gradients reach the model that writes them; for training.

    Nothing is evaluated. Gradients pass through the kept keys and values; the choice of tokens
    and the prefix are constants, so the prefix must be of the model's present weights.

    Args:
        references: token ids, each at least one long.
        scores: float32 (batch, layers, KV heads, longest), from ``Writer.score``, of this model
            or of the model before training.
        counts: tokens to keep, by layer and KV head.
    """
    recorders = [_Recorder(*state) for state in prefix]
    _run(model, references, arrange(recorders, prefix, len(references)))
    return _gather(*_stack_layers(recorders, prefix), *_select(scores, counts))


def _group_by_length(references: Sequence[Sequence[int]], ratio: float = 1.5) -> list[list[int]]:
    """Rows of references in groups of similar length, so that little padding is computed."""
    groups: list[list[int]] = []
    for row in sorted(range(len(references)), key=lambda row: len(references[row])):
        if not groups or len(references[row]) > ratio * len(references[groups[-1][0]]):
            groups.append([])
        groups[-1].append(row)
    return groups


def _run(model: nn.Module, rows: Sequence[Sequence[int]], caches: Sequence[Any]) -> None:
    """Run the model on rows of tokens after what the caches hold; nothing is evaluated."""
    width = max(map(len, rows))
    model(mx.array([[*row, *[0] * (width - len(row))] for row in rows]), cache=caches)


def _join_scores(
    parts: Sequence[tuple[np.ndarray, mx.array, mx.array]],
) -> tuple[np.ndarray, mx.array, mx.array]:
    """Join what ``Writer.score`` returned, padded to the longest reference."""
    longest = max(scores.shape[3] for scores, _, _ in parts)
    scores, keys, values = [], [], []
    for one, own_keys, own_values in parts:
        pad = [(0, 0), (0, 0), (0, 0), (0, longest - one.shape[3])]
        scores.append(np.pad(one, pad, constant_values=-1))
        keys.append(mx.pad(own_keys, [*pad, (0, 0)]))
        values.append(mx.pad(own_values, [*pad, (0, 0)]))
    return np.concatenate(scores), mx.concatenate(keys), mx.concatenate(values)


def _stack_scores(scores: Sequence[mx.array], prefix: PrefixStates) -> mx.array:
    """Scores of all layers, float32 (batch, layers, KV heads, longest); -1 for missing heads."""
    heads = max(len(keys[0]) for keys, _ in prefix)
    padded = [mx.pad(x, _room(x, 1, heads), constant_values=-1.0) for x in scores]
    return mx.stack(padded, axis=1).astype(mx.float32)


def _stack_layers(
    recorders: Sequence[_Recorder], prefix: PrefixStates
) -> tuple[mx.array, mx.array]:
    """Keys and values of all layers, (batch, layers, KV heads, longest, length).

    Layers with fewer heads or shorter keys end in zeros.
    """
    heads = max(len(keys[0]) for keys, _ in prefix)

    def stack(part: int) -> mx.array:
        length = max(pair[part].shape[-1] for pair in prefix)
        arrays = [recorder.outputs[part] for recorder in recorders]
        arrays = [mx.pad(x, _room(x, 1, heads)) for x in arrays]
        return mx.stack([mx.pad(x, _room(x, 3, length)) for x in arrays], axis=1)

    return stack(0), stack(1)


def _room(array: mx.array, axis: int, size: int) -> list[tuple[int, int]]:
    """Return widths of padding that make an axis this long."""
    return [(0, size - n if at == axis else 0) for at, n in enumerate(array.shape)]


def _gather(keys: mx.array, values: mx.array, positions: np.ndarray, flat: np.ndarray) -> Memory:
    index = mx.array(flat)[..., None]
    keys, values = (
        mx.take_along_axis(x.reshape(len(x), -1, x.shape[-1]), index, axis=1)
        for x in (keys, values)
    )
    return Memory(keys, values, positions)


class _Recorder(LayerCache):
    """A cache that shows the prefix and keeps the keys and values of one forward pass.

    ``inputs`` and ``outputs`` are for ``hooks.gradient_checkpoints``.
    """

    outputs: tuple = ()  # keys and values of the pass
    fetched: tuple = ()  # those of what is shown, then of the pass

    def __init__(self, keys: mx.array, values: mx.array):
        self.inputs = keys, values
        self.offset: Any = keys.shape[2]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(N, self.offset, return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        self.outputs = keys, values
        self.fetched = tuple(
            mx.concatenate([mx.broadcast_to(old, (len(new), *old.shape[1:])), new], axis=2)
            for old, new in zip(self.inputs, self.outputs, strict=True)
        )
        return self.fetched

    def keys_and_values(self) -> tuple[mx.array, ...]:
        return self.fetched

    def readers(self, taps: Sequence[Tap]) -> list[Tap]:
        """Return the taps of attentions that read this cache, or share what it has returned."""
        found = [tap for tap in taps if tap.cache is self or tap.keys is self.fetched[0]]
        if not found:
            raise ModelError("this model does not show what its attention asks for")
        return found


class _Reciter(_Recorder):
    """A cache that shows prefix and references while the references are recited.

    Args:
        recorder: of the pass that has read the references.
        real: bool (batch, longest), where a reference has tokens.
        even: all references are as long.
    """

    def __init__(self, recorder: _Recorder, real: mx.array, even: bool = False):
        super().__init__(*recorder.fetched)
        self.real, self.prefix = real, recorder.offset
        if even:
            self.offset = self.prefix + real.shape[1]
        else:
            self.offset = self.prefix + real.sum(axis=1)  # one position for each reference

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Bool (batch, 1, N, keys)."""
        batch, longest = self.real.shape
        own = mx.array(self.offset).reshape(-1, 1) + mx.arange(N)  # positions, (batch or 1, N)
        own = mx.broadcast_to(own, (batch, N))
        before = mx.broadcast_to(mx.arange(self.prefix + longest), (batch, self.prefix + longest))
        at, keys_at = own[..., None], mx.concatenate([before, own], axis=1)[:, None]
        near = at - keys_at < window_size if window_size else True
        present = mx.concatenate(
            [mx.ones((batch, self.prefix), mx.bool_), self.real, mx.ones(own.shape, mx.bool_)],
            axis=1,
        )
        return ((keys_at <= at) & present[:, None] & near)[:, None]


def _attention_score(taps: Sequence[Tap], cache: _Recorder, real: mx.array) -> mx.array:
    """Attention received within the reference, without RoPE and mask: (batch, heads, longest).

    Args:
        taps: of the attentions that read the cache.
    """

    def received(tap: Tap) -> mx.array:
        logits = _unrotated_logits(tap, cache)
        weights = ops.softmax(logits + _bias(real[:, None, None], logits.dtype))
        queries = real[:, None, None].astype(weights.dtype)  # sums the rows of real queries
        return _by_kv_head((queries @ weights)[..., 0, :], cache).sum(axis=2)

    return sum(map(received, taps[1:]), received(taps[0]))


def _reconstruction_score(taps: Sequence[Tap], cache: _Reciter) -> mx.array:
    """Largest share of a token's value in the recitation: (batch, heads, longest).

    Args:
        taps: of the attentions that read the cache.
    """
    real, prefix = cache.real, cache.prefix
    longest = real.shape[1]
    seen = cache.make_mask(cache.outputs[0].shape[2])[:, :, -longest:]  # (batch, 1, longest, keys)

    def share(tap: Tap) -> mx.array:
        queries, keys, values = _attended(tap, cache)
        logits = _logits(tap, queries[:, :, -longest:], keys)
        if tap.own_mask is not None:
            logits = logits + tap.own_mask[:, :, -longest:]
        logits = logits + _bias(seen, logits.dtype)
        weights = logits[..., prefix : prefix + longest] - ops.logsumexp(logits)  # as logarithms
        weights = mx.exp((weights + _bias(real[:, None, :, None], weights.dtype)).max(axis=2))
        lengths = mx.linalg.norm(values[:, :, prefix : prefix + longest], axis=-1)
        lengths = mx.repeat(lengths, weights.shape[1] // lengths.shape[1], axis=1)
        return _by_kv_head(weights * lengths, cache).max(axis=2)

    best = share(taps[0])
    for tap in taps[1:]:
        best = mx.maximum(best, share(tap))
    return best


def _attended(tap: Tap, cache: _Recorder) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values after RoPE, the keys after those of prefix and reference."""
    if tap.queries is not None:
        return tap.queries, tap.keys, tap.values
    return tap.rotated[0][1], *cache.fetched  # its attention is its own, as gemma2's


def _unrotated_logits(tap: Tap, cache: _Recorder) -> mx.array:
    """(batch, query heads, queries, keys) within the reference, of queries and keys before RoPE.

    Layers that rotate nothing, or a part of each vector only, have logits of the rest as well.
    """
    queries, keys, _ = _attended(tap, cache)
    length = queries.shape[2]
    if len(tap.rotated) < 2:
        return _logits(tap, queries, keys[:, :, -length:])
    # mlx-lm rotates the queries first, gemma3n and gemma4 the keys.
    pairs = tap.rotated[:2]
    if pairs[1][1] is queries:
        pairs = pairs[::-1]
    (before_queries, after_queries), (before_keys, after_keys) = pairs
    logits = _logits(tap, before_queries, before_keys)
    if before_queries.shape[-1] < queries.shape[-1] or tap.own_mask is not None:
        logits = logits + _logits(tap, queries, keys[:, :, -length:])
        if tap.own_mask is None:  # it also holds the rotated part
            logits = logits - _logits(tap, after_queries, after_keys)
    return logits


def _logits(tap: Tap, queries: mx.array, keys: mx.array) -> mx.array:
    """(batch, query heads, queries, keys)."""
    batch, query_heads, length, head_dim = queries.shape
    heads = keys.shape[1]
    queries = queries.reshape(batch, heads, query_heads // heads, length, head_dim)
    scale = tap.scale if tap.scale is not None else head_dim**-0.5
    logits = (queries * scale) @ keys[:, :, None].swapaxes(-1, -2)
    return logits.reshape(batch, query_heads, length, -1)


def _by_kv_head(array: mx.array, cache: _Recorder) -> mx.array:
    """(batch, query heads, tokens) to (batch, KV heads, queries per KV head, tokens)."""
    return array.reshape(len(array), cache.inputs[0].shape[1], -1, array.shape[-1])


def _bias(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return what is added to logits so that softmax leaves out what is not seen."""
    return mx.where(seen, 0.0, mx.finfo(dtype).min).astype(dtype)


def _select(scores: np.ndarray, counts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Select the best tokens of each head.

    Args:
        scores: (batch, layers, KV heads, longest), negative where there is no token; a layer may
            have fewer heads.
        counts: tokens to keep, by layer and head.

    Returns:
        Positions, uint8 (batch, kept), ascending in each head, 255 for padding; and their
        indices in (layers · KV heads · longest), 0 for padding.
    """
    batch, layers, heads, longest = scores.shape
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=-1)
    order = np.where(ranked >= 0, order, PADDING)
    positions, flat = [], []
    for layer in range(layers):
        for head, count in enumerate(counts[layer]):
            kept = np.full((batch, count), PADDING)
            kept[:, :longest] = order[:, layer, head, :count]
            kept.sort(axis=-1)
            positions.append(kept)
            flat.append(np.where(kept == PADDING, 0, (layer * heads + head) * longest + kept))
    return np.concatenate(positions, axis=1).astype(np.uint8), np.concatenate(flat, axis=1)
