"""References to memories: run the model once, score every token, keep the best of each head.

A reference is read by itself after the constant prefix (section 3.2 of the paper). Its keys are
kept after RoPE, with the positions they had. Two scores rank the tokens:

``attention``, the paper's (section 3.3): softmax over the reference's own keys, of queries and
keys before RoPE and without causal mask, summed over the queries and the query heads of a group.

``reconstruction``, after KVzip (arXiv 2505.23416): the largest causal attention that a token
receives while the model recites the reference, times the length of its value. The attention
measures what is needed to repeat the text, where the paper's measures what the text itself
attends to; the length makes heads comparable (tools/LOG.md).
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
from ..models.hooks import RopeTap, observe_attention, tap_rope
from ..models.linux_cpu import ops
from .cache import PrefixStates, check_tokens, insert_states
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
        self._recurrent = bool(getattr(prefix, "recurrent", None))

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

        for rows in _group_by_length(references, 1.0 if self._recurrent else 1.5):
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
            Scores, float32 (batch, layers, KV heads, longest), -1 after a reference's end;
            keys after RoPE and values, (batch, layers, KV heads, longest, head_dim).
        """
        for tokens in references:
            check_tokens(self.model, tokens)
        lengths = np.array([len(tokens) for tokens in references])
        longest = int(lengths.max())
        if self._recurrent and lengths.min() < longest:  # padding would enter the states
            return _join_scores([self.score([row], selection, layers) for row in references])
        real = mx.array(np.arange(longest) < lengths[:, None])  # (batch, longest)
        recorders = [_Recorder(*state) for state in self.prefix]
        caches = insert_states(recorders, self.prefix, len(references))
        wanted = range(len(recorders)) if layers is None else layers
        if selection == "reconstruction":
            _run(self.model, references, caches)
            reciters = [_Reciter(recorder, real) for recorder in recorders]
            by_recorder = dict(zip(map(id, recorders), reciters, strict=True))
            caches = [by_recorder.get(id(cache), cache) for cache in caches]
            start = len(self.recite)
            taps = self._queries([[*self.recite, *row] for row in references], caches, reciters)
            seen = reciters[0].make_mask(start + longest)[:, :, start:]
            found = [_reconstruction_score(reciters[n], taps[n], seen, real) for n in wanted]
        else:
            with tap_rope(self.model) as taps:
                _run(self.model, references, caches)
            if [len(tap.before) for tap in taps] != [2] * len(recorders):
                raise ModelError(
                    "this model has layers without rotary positions, which the selection "
                    "'attention' needs; use 'reconstruction'"
                )
            found = [_attention_score(taps[n], real) for n in wanted]
        scores = mx.stack([mx.where(real[:, None], score, -1.0) for score in found], axis=1)
        scores = scores.astype(mx.float32)
        keys, values = _stack_layers([recorders[n] for n in wanted])
        mx.eval(scores, keys, values)
        return np.array(scores), keys, values

    def _queries(
        self, rows: Sequence[Sequence[int]], caches: Sequence[Any], wanted: Sequence[Any]
    ) -> list[RopeTap]:
        """Run the model; return what it asks of each wanted cache, as queries after RoPE."""
        taken: dict[int, RopeTap] = {}

        def take(queries: mx.array, keys: Any, cache: Any, scale: float, mask: Any) -> None:
            taken[id(cache)] = RopeTap(scale, after=[queries])

        with tap_rope(self.model) as taps, observe_attention(self.model, take):
            _run(self.model, rows, caches)
        if found := [taken[id(cache)] for cache in wanted if id(cache) in taken]:
            taps = found  # else its attention is a function of its own, as gemma2's
        if len(taps) != len(wanted) or not all(tap.after for tap in taps):
            raise ModelError("this model does not show what its attention asks for")
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
    _run(model, references, insert_states(recorders, prefix, len(references)))
    return _gather(*_stack_layers(recorders), *_select(scores, counts))


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


def _stack_layers(recorders: Sequence[_Recorder]) -> tuple[mx.array, mx.array]:
    """Keys and values of all layers, (batch, layers, KV heads, longest, head_dim)."""
    keys, values = ([recorder.outputs[i] for recorder in recorders] for i in (0, 1))
    return mx.stack(keys, axis=1), mx.stack(values, axis=1)


def _gather(keys: mx.array, values: mx.array, positions: np.ndarray, flat: np.ndarray) -> Memory:
    index = mx.array(flat)[..., None]
    batch, head_dim = len(keys), keys.shape[-1]
    keys = mx.take_along_axis(keys.reshape(batch, -1, head_dim), index, axis=1)
    values = mx.take_along_axis(values.reshape(batch, -1, head_dim), index, axis=1)
    return Memory(keys, values, positions)


class _Recorder:
    """A cache that shows the prefix and keeps the keys and values of one forward pass.

    ``inputs`` and ``outputs`` are for ``hooks.gradient_checkpoints``.
    """

    outputs: tuple = ()  # keys and values of the pass

    def __init__(self, keys: mx.array, values: mx.array):
        self.inputs = keys, values
        self.offset: Any = keys.shape[2]

    def joined(self) -> tuple[mx.array, ...]:
        """Keys and values of what is shown, then of the pass."""
        return tuple(
            mx.concatenate([mx.broadcast_to(old, (len(new), *old.shape[1:])), new], axis=2)
            for old, new in zip(self.inputs, self.outputs, strict=True)
        )

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(N, self.offset, return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        self.outputs = keys, values
        return self.joined()


class _Reciter(_Recorder):
    """A cache that shows prefix and references while the references are recited.

    Args:
        recorder: of the pass that has read the references.
        real: bool (batch, longest), where a reference has tokens.
    """

    def __init__(self, recorder: _Recorder, real: mx.array):
        super().__init__(*recorder.joined())
        self.read_values, self.real, self.prefix = recorder.outputs[1], real, recorder.offset
        self.offset = self.prefix + real.sum(axis=1)  # one position for each reference

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Bool (batch, 1, N, keys)."""
        own = self.offset[:, None] + mx.arange(N)  # positions, (batch, N)
        batch, longest = self.real.shape
        before = mx.broadcast_to(mx.arange(self.prefix + longest), (batch, self.prefix + longest))
        at, keys_at = own[..., None], mx.concatenate([before, own], axis=1)[:, None]
        near = at - keys_at < window_size if window_size else True
        present = mx.concatenate(
            [mx.ones((batch, self.prefix), mx.bool_), self.real, mx.ones(own.shape, mx.bool_)],
            axis=1,
        )
        return ((keys_at <= at) & present[:, None] & near)[:, None]


def _attention_score(tap: RopeTap, real: mx.array) -> mx.array:
    """Attention received within the reference, without RoPE and mask: (batch, heads, longest)."""
    logits = _logits(tap, *(x[:, :, : real.shape[1]] for x in tap.before))
    weights = ops.softmax(logits + _bias(real[:, None, None, None], logits.dtype))
    queries = real[:, None, None, None].astype(weights.dtype)  # sums the rows of real queries
    return (queries @ weights)[..., 0, :].sum(axis=2)


def _reconstruction_score(
    cache: _Reciter, tap: RopeTap, seen: mx.array, real: mx.array
) -> mx.array:
    """Largest share of a token's value in the recitation: (batch, heads, longest).

    Args:
        seen: bool (batch, 1, longest, keys), what each token of the recitation attends to.
    """
    longest, prefix = real.shape[1], cache.prefix
    logits = _logits(tap, tap.after[0][:, :, -longest:], cache.joined()[0])
    logits = logits + _bias(seen[:, None], logits.dtype)
    weights = logits[..., prefix : prefix + longest] - ops.logsumexp(logits)  # as logarithms
    weights = weights + _bias(real[:, None, None, :, None], weights.dtype)
    return mx.exp(weights.max(axis=(2, 3))) * mx.linalg.norm(cache.read_values, axis=-1)


def _logits(tap: RopeTap, queries: mx.array, keys: mx.array) -> mx.array:
    """(batch, KV heads, queries per KV head, queries, keys)."""
    batch, query_heads, length, head_dim = queries.shape
    heads = keys.shape[1]
    queries = queries.reshape(batch, heads, query_heads // heads, length, head_dim)
    scale = tap.scale if tap.scale is not None else head_dim**-0.5
    return (queries * scale) @ keys[:, :, None].swapaxes(-1, -2)


def _bias(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return what is added to logits so that softmax leaves out what is not seen."""
    return mx.where(seen, 0.0, mx.finfo(dtype).min).astype(dtype)


def _select(scores: np.ndarray, counts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Select the best tokens of each head.

    Args:
        scores: (batch, layers, KV heads, longest), negative where there is no token.
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
        for head in range(heads):
            count = counts[layer][head]
            kept = np.full((batch, count), PADDING)
            kept[:, :longest] = order[:, layer, head, :count]
            kept.sort(axis=-1)
            positions.append(kept)
            flat.append(np.where(kept == PADDING, 0, (layer * heads + head) * longest + kept))
    return np.concatenate(positions, axis=1).astype(np.uint8), np.concatenate(flat, axis=1)
