"""What a batch costs: write its references, read them, compare with what is to be learned."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..memory.cache import PrefixStates
from ..memory.codec import Codec, Memory
from ..memory.parallel import logits_with_memories
from ..memory.write import write_traced
from .batches import Batch
from .settings import Settings


def batch_loss(
    model: nn.Module, prefix: PrefixStates, batch: Batch, settings: Settings
) -> mx.array:
    """The loss of one batch, in nats per token but for ``dpo``; gradients reach every weight used.

    Args:
        prefix: read by the model as it is now. No gradient goes through it: it is a constant of
            each step, a few tokens that every pass shares.
    """
    memory = None
    if batch.references:
        memory = write_traced(model, prefix, batch.references, batch.scores, batch.config.counts)
        if settings.codec:
            memory = Codec(batch.config).rounded(memory)
        if settings.detach_memories:
            memory = Memory(
                mx.stop_gradient(memory.keys), mx.stop_gradient(memory.values), memory.positions
            )
    logits = logits_with_memories(
        model, prefix, batch.config, batch.sequences, memory, batch.reads, batch.wanted
    )
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    right = mx.take_along_axis(logprobs, mx.array(batch.targets)[:, None], axis=-1)[:, 0]
    if batch.objective == "dpo":
        return preference_loss(right, batch, settings.beta)
    if batch.teacher is None:
        return -right.mean()
    loss = divergence(logprobs, *batch.teacher).mean()
    if batch.objective == "distill":
        loss = loss - settings.hardness * right.mean()
    return loss


def divergence(logprobs: mx.array, ids: np.ndarray, teacher: np.ndarray) -> mx.array:
    """KL(teacher ‖ model) of each place, over the teacher's likeliest tokens and the rest as one.

    Args:
        logprobs: (places, vocabulary).
        ids, teacher: the likeliest tokens and their log probabilities, (places, k).
    """
    own = mx.take_along_axis(logprobs, mx.array(ids), axis=-1)
    teacher = mx.array(teacher)
    share = mx.exp(teacher)
    loss = (share * (teacher - own)).sum(axis=-1)
    if ids.shape[-1] == logprobs.shape[-1]:
        return loss
    tiny = 1e-6
    rest = mx.maximum(1 - share.sum(axis=-1), tiny)
    own_rest = mx.maximum(1 - mx.exp(own).sum(axis=-1), tiny)
    return loss + rest * (mx.log(rest) - mx.log(own_rest))


def preference_loss(right: mx.array, batch: Batch, beta: float) -> mx.array:
    """Direct preference optimization (arXiv 2305.18290); answers come in pairs, the better first.

    Args:
        right: log probabilities of the answers' tokens.
    """
    cuts = np.cumsum([len(wanted) for wanted in batch.wanted])[:-1].tolist()
    whole = mx.stack([part.sum() for part in mx.split(right, cuts)])
    gain = (whole - mx.array(batch.baseline)).reshape(-1, 2)
    return -nn.log_sigmoid(beta * (gain[:, 0] - gain[:, 1])).mean()


def without_memories(batch: Batch) -> Batch:
    """The same sequences with nothing to read."""
    return replace(batch, references=[], scores=None, reads=[[] for _ in batch.sequences])
