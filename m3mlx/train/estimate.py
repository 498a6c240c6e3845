"""What a run will take, before it begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import M3Error
from .settings import Settings

ROOM = 0.8  # of the machine's memory that training may take
_PROBE = 128  # tokens read to learn how fast the machine is


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, bytes that may be taken, and seconds for all steps, rough as it is."""

    memory_bytes: float
    available_bytes: float
    seconds: float


def estimate(
    model: nn.Module, settings: Settings, reference: float, sequence: float, kept: int
) -> Estimate:
    """What a run will take at the lengths that its data have.

    Args:
        reference, sequence: mean tokens of a reference, and of a question with its answer.
        kept: most keys that one memory holds, over all layers and heads.
    """
    written = settings.references * reference
    read = settings.references * settings.questions * sequence
    sizes = {name: x.nbytes for name, x in tree_flatten(model.parameters())}
    learned = sum(x.nbytes for _, x in tree_flatten(model.trainable_parameters()))
    layer = model.layers[0]
    width = layer.self_attn.o_proj.linear.weight.shape[0] if settings.rank else 0
    width = width or layer.self_attn.o_proj.weight.shape[0]
    wide = sum(
        max(m.weight.shape) if "weight" in m and m.weight.ndim == 2 else 0
        for _, m in layer.named_modules()
    )
    heads = getattr(layer.self_attn, "n_heads", None) or layer.self_attn.num_attention_heads
    keys = sequence + settings.memories * kept / len(model.layers) / max(1, heads // 3)
    size = mx.zeros(1, layer.self_attn.q_proj.dtype if 0 else mx.float32).itemsize
    token = (8 * width + 2 * wide) * size
    attention = 3 * heads * size * (written * reference + read * keys)
    activations = len(model.layers) * ((written + read) * token + attention)
    if settings.checkpoint:
        activations = (written + read) * (width * len(model.layers) * size + 2 * token)
    vocabulary = model.model.embed_tokens.weight.shape[0]
    logits = 4 * 4 * vocabulary * read / 3
    memory = sum(sizes.values()) + 5 * learned + activations + logits
    seconds = settings.steps * settings.accumulate * (written + read) * 3.5 * _token_seconds(model)
    return Estimate(memory, available(), seconds)


def check(found: Estimate, settings: Settings) -> None:
    """Raise M3Error where a run would not fit, and say what makes it smaller."""
    if found.memory_bytes > found.available_bytes:
        smaller = "--checkpoint, " if not settings.checkpoint else ""
        raise M3Error(
            f"training would take about {found.memory_bytes / 1e9:.1f} GB and "
            f"{found.available_bytes / 1e9:.1f} GB may be taken; use {smaller}fewer --references "
            f"with more --accumulate, or a smaller model"
        )


def available() -> float:
    """Bytes that training may take: of the GPU's recommended working set, or of the RAM."""
    info = mx.device_info() if hasattr(mx, "device_info") else {}
    limit = info.get("max_recommended_working_set_size") or info.get("memory_size")
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return ROOM * limit


def _token_seconds(model: nn.Module) -> float:
    tokens = mx.zeros((1, _PROBE), mx.int32)
    mx.eval(model.model(tokens))
    start = perf_counter()
    mx.eval(model.model(tokens))
    return (perf_counter() - start) / _PROBE
