"""Faster forms of operations that MLX's CPU build on Linux computes slowly.

The wheel has no vectorized exponential: it takes 15 ns a number, so that softmax and SiLU take as
long as the matrix products of a short prompt. A power of e takes 7 ns. OpenBLAS multiplies a
single row faster by a column-major matrix. And MLX uses all cores for matrix products only.
Results differ from MLX's by rounding; gradients pass. Elsewhere all of this is MLX's own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from . import openblas

Item = TypeVar("Item")
Result = TypeVar("Result")

_mlx_attention = mx.fast.scaled_dot_product_attention
_mlx_silu = nn.silu

# erf(x) for |x| up to 4 as x times a quotient of polynomials in x² (as in Eigen and XLA).
ERF_NUMERATOR = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
ERF_DENOMINATOR = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)


def make_column_major(model: nn.Module) -> None:
    """Turn a model's matrices to be stored by columns when they are evaluated.

    A decoding step then takes a ninth less time.
    """

    def turned(x: mx.array) -> mx.array:
        return mx.contiguous(x.T).T if x.ndim == 2 and _on_cpu(x) else x

    model.update(tree_map(turned, model.parameters()))


def split_over_cores(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item]
) -> list[Result]:
    """Split a batch over as many threads as there are cores, each of which uses one.

    Anywhere but on a Linux CPU ``work`` gets the whole batch, in this thread.

    Args:
        work: called with a part of the items; must evaluate its arrays, which belong to its thread.

    Returns:
        The result of each part, in order.
    """
    cores = openblas.threads() if _on_cpu() else 1
    count = min(cores, len(items))
    if count < 2:
        return [work(items)]
    ends = [len(items) * n // count for n in range(count + 1)]

    def run(part: Sequence[Item]) -> Result:
        with mx.stream(mx.cpu):
            return work(part)

    with openblas.one_thread():
        return list(_pool(cores).map(run, [items[start:end] for start, end in pairwise(ends)]))


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    """One pool that stays, since MLX keeps what it has made for a thread."""
    return ThreadPoolExecutor(cores, thread_name_prefix="m3mlx-core")


def _on_cpu(*arrays: mx.array) -> bool:
    """Return whether MLX's own functions would be slow for these: float32 on a Linux CPU."""
    here = sys.platform == "linux" and mx.default_device() == mx.cpu
    return here and all(array.dtype == mx.float32 for array in arrays)


def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis."""
    if not _on_cpu(x):
        return mx.softmax(x, axis=-1, precise=True)
    powers = _exp(x - _row_max(x))
    return powers / powers.sum(axis=-1, keepdims=True)


def logsumexp(x: mx.array) -> mx.array:
    """Log-sum-exp over the last axis, which is kept with length 1."""
    if not _on_cpu(x):
        return mx.logsumexp(x, axis=-1, keepdims=True)
    largest = _row_max(x)
    return largest + mx.log(_exp(x - largest).sum(axis=-1, keepdims=True))


def _exp(x: mx.array) -> mx.array:
    """Exponential of numbers up to 0, at least e^-87."""
    return mx.power(math.e, mx.maximum(x, -87.0))  # subnormal results take three times as long


def _row_max(x: mx.array) -> mx.array:
    return mx.stop_gradient(x.max(axis=-1, keepdims=True))


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    if not _on_cpu(x):
        return _mlx_silu(x)
    return x / (1 + mx.power(math.e, mx.minimum(-x, 88.0)))  # e^89 overflows


def gelu(x: mx.array) -> mx.array:
    """GELU; on a CPU within 1e-6 of the larger of 1 and |x|."""
    if not _on_cpu(x):
        return nn.gelu(x)
    z = mx.clip(x * 0.5**0.5, -4, 4)
    erf = z * _polynomial(ERF_NUMERATOR, z * z) / _polynomial(ERF_DENOMINATOR, z * z)
    return 0.5 * x * (1 + erf)


def _polynomial(factors: Sequence[float], x: mx.array) -> mx.array:
    total = x * factors[0] + factors[1]
    for factor in factors[2:]:
        total = total * x + factor
    return total


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **others: Any,
) -> mx.array:
    """``mx.fast.scaled_dot_product_attention``."""
    if others or sinks is not None or not _on_cpu(q, k, v):
        return _mlx_attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **others)
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    # the queries of all heads that share keys, in one matrix
    grouped = (batch, kv_heads, heads // kv_heads * queries)
    logits = (q * scale).reshape(*grouped, head_dim) @ k.swapaxes(-1, -2)
    if isinstance(mask, str):  # causal: the last query sees all keys
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        if mask.dtype == mx.bool_:
            mask = mx.where(mask, 0.0, mx.finfo(mx.float32).min)
        logits = (logits.reshape(batch, heads, queries, keys) + mask).reshape(*grouped, keys)
    return (softmax(logits) @ v).reshape(batch, heads, queries, -1)
