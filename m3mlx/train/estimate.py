"""Memory and time of a run, estimated from one small batch before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import mlx.core as mx
import mlx.nn as nn

from ..errors import M3Error
from ..models.arrays import named_arrays
from ..models.inventory import machine_memory

SHARE = 0.8  # of the machine's memory that training may take
TEACHER = 1.5  # time of a step with the teacher's part, over the time without


@dataclass(frozen=True)
class Estimate:
    """Peak bytes, available bytes, and seconds of all steps; rough."""

    memory_bytes: float
    available_bytes: float
    seconds: float


def estimate(
    model: nn.Module, loss: Callable[[], mx.array], share: float, batches: int
) -> Estimate:
    """Time one small batch, and scale it up to the run.

    Args:
        loss: of the small batch.
        share: size of the run's batches, in small batches.
        batches: of the whole run.
    """
    mx.clear_cache()
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), perf_counter()
    mx.eval(nn.value_and_grad(model, loss)())
    seconds = perf_counter() - start
    optimizer = 3 * sum(x.nbytes for x in named_arrays(model.trainable_parameters()).values())
    peak = before + optimizer + (mx.get_peak_memory() - before) * share
    return Estimate(peak, available(), TEACHER * seconds * share * batches)


def check(estimate: Estimate) -> None:
    """Raise M3Error for a run that would not fit, with the options that make it smaller."""
    if estimate.memory_bytes > estimate.available_bytes:
        raise M3Error(
            f"training would take about {estimate.memory_bytes / 1e9:.1f} GB, and "
            f"{estimate.available_bytes / 1e9:.1f} GB may be taken; use --checkpoint, fewer "
            f"--references with more --accumulate, or a smaller model"
        )


def available() -> float:
    """Bytes that training may take: of the GPU's recommended working set, or of the RAM."""
    info = mx.device_info()
    limit = info.get("max_recommended_working_set_size") or info.get("memory_size")
    return SHARE * float(limit or machine_memory()[0])
