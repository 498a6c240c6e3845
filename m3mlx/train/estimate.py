"""What a run will take, measured on a small batch before it begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import M3Error

ROOM = 0.8  # of the machine's memory that training may take
TEACHER = 1.5  # a step's time with the teacher's share, over the time without


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, bytes that may be taken, and seconds of all steps; rough as it is."""

    memory_bytes: float
    available_bytes: float
    seconds: float


def estimate(
    model: nn.Module, loss: Callable[[], mx.array], share: float, batches: int
) -> Estimate:
    """Measure one small batch, and tell what the run takes.

    Args:
        loss: of the small batch.
        share: how many times larger a batch of the run is.
        batches: in the whole run.
    """
    mx.clear_cache()
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), perf_counter()
    mx.eval(nn.value_and_grad(model, loss)())
    seconds = perf_counter() - start
    moments = 3 * sum(x.nbytes for _, x in tree_flatten(model.trainable_parameters()))
    peak = before + moments + (mx.get_peak_memory() - before) * share
    return Estimate(peak, available(), TEACHER * seconds * share * batches)


def check(found: Estimate) -> None:
    """Raise M3Error where a run would not fit, and say what makes it smaller."""
    if found.memory_bytes > found.available_bytes:
        raise M3Error(
            f"training would take about {found.memory_bytes / 1e9:.1f} GB, and "
            f"{found.available_bytes / 1e9:.1f} GB may be taken; use --checkpoint, fewer "
            f"--references with more --accumulate, or a smaller model"
        )


def available() -> float:
    """Bytes that training may take: of the GPU's recommended working set, or of the RAM."""
    info = mx.device_info()
    limit = info.get("max_recommended_working_set_size") or info.get("memory_size")
    return ROOM * (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
