"""The loss of a batch: write its references, read them, compare with the targets."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..memory.cache import PrefixStates
from ..memory.codec import Codec, Memory
from ..memory.parallel import logits_with_memories
from ..memory.write import write_traced
from .dataloader import Batch
from .settings import Settings


def batch_loss(
    model: nn.Module, prefix: PrefixStates, batch: Batch, settings: Settings
) -> mx.array:
    """Return the loss of a batch, in nats per token but for ``dpo``.

    Args:
        prefix: of the model's present weights. It gets no gradient: it is a constant of each step.
    """
    logprobs = _logprobs(model, prefix, batch, settings)
    targets = _target_logprobs(logprobs, batch)
    if batch.objective == "dpo":
        gain = (_sum_by_answer(targets, batch) - batch.baseline).reshape(-1, 2)
        return -nn.log_sigmoid(settings.beta * (gain[:, 0] - gain[:, 1])).mean()
    if batch.teacher is None:
        return -targets.mean()
    loss = divergence(logprobs, *batch.teacher).mean()
    if batch.objective == "distill":
        loss = loss - settings.hardness * targets.mean()
    return loss


def answer_logprobs(
    model: nn.Module, prefix: PrefixStates, batch: Batch, settings: Settings
) -> mx.array:
    """Return the log probability of each answer, (sequences,), for direct preference optimization.

    Answers come in pairs, the better first (arXiv 2305.18290).
    """
    targets = _target_logprobs(_logprobs(model, prefix, batch, settings), batch)
    return _sum_by_answer(targets, batch)


def _logprobs(model: nn.Module, prefix: PrefixStates, batch: Batch, settings: Settings) -> mx.array:
    """Write the references and read them: (wanted places, vocabulary)."""
    memory = None
    if batch.scores is not None:
        memory = write_traced(model, prefix, batch.references, batch.scores, batch.config.counts)
        if settings.codec:
            memory = Codec(batch.config).rounded(memory)
        if settings.detach_memories:
            keys, values = mx.stop_gradient(memory.keys), mx.stop_gradient(memory.values)
            memory = Memory(keys, values, memory.positions)
    logits = logits_with_memories(
        model, prefix, batch.config, batch.sequences, memory, batch.reads, batch.wanted
    )
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _target_logprobs(logprobs: mx.array, batch: Batch) -> mx.array:
    return mx.take_along_axis(logprobs, mx.array(batch.targets)[:, None], axis=-1)[:, 0]


def _sum_by_answer(targets: mx.array, batch: Batch) -> mx.array:
    cuts = np.cumsum([len(wanted) for wanted in batch.wanted])[:-1].tolist()
    return mx.stack([part.sum() for part in mx.split(targets, cuts)])


def divergence(logprobs: mx.array, ids: np.ndarray, teacher: np.ndarray) -> mx.array:
    """KL(teacher ‖ model) of each place, over the teacher's likeliest tokens and the rest as one.

    Args:
        logprobs: (places, vocabulary).
        ids, teacher: the likeliest tokens and their log probabilities, (places, k).
    """
    own = mx.take_along_axis(logprobs, mx.array(ids), axis=-1)
    expected = mx.array(teacher)
    share = mx.exp(expected)
    loss = (share * (expected - own)).sum(axis=-1)
    if ids.shape[-1] == logprobs.shape[-1]:
        return loss
    tiny = 1e-6
    rest = mx.maximum(1 - share.sum(axis=-1), tiny)
    own_rest = mx.maximum(1 - mx.exp(own).sum(axis=-1), tiny)
    return loss + rest * (mx.log(rest) - mx.log(own_rest))
