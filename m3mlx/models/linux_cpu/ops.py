"""What MLX's CPU build on Linux computes slowly, put in terms that it computes fast.

The wheel has no vectorized exponential. It takes 15 ns a number there, so that softmax and SiLU
take as long as the matrix products of a short prompt; a power of e takes 7, a product 0.3.
OpenBLAS in turn multiplies a single row faster by a matrix that lies column by column. Results
differ from MLX's in the last digits, and gradients pass. And MLX multiplies matrices on all cores,
but does everything else on one. On a Mac and on a GPU all of this is MLX's own.
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

T = TypeVar("T")

_attention = mx.fast.scaled_dot_product_attention
_silu = nn.silu

# The error function as a quotient of polynomials in x², for |x| up to 4 (as in Eigen and XLA).
ERF_OVER = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
ERF_UNDER = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)


def install_fast_ops() -> None:
    """Let everything that calls MLX's attention and SiLU, as mlx-lm's models do, use the ones here.

    For this whole process, and on Linux only; with a GPU, MLX's go on doing the work.
    """
    if sys.platform == "linux":
        mx.fast.scaled_dot_product_attention = attention
        nn.silu = silu


def lay_out(model: nn.Module) -> None:
    """Keep a model's matrices column by column; a step of decoding takes a ninth less."""
    model.update(
        tree_map(
            lambda x: mx.contiguous(x.T).T if x.ndim == 2 and _slow(x) else x, model.parameters()
        )
    )
    mx.eval(model.parameters())


def on_all_cores(work: Callable[[Sequence], T], items: Sequence) -> list[T]:
    """Share a batch among as many threads as there are cores, each of which uses one.

    Anywhere but on a Linux CPU the whole batch is one share, and the work is done here.

    Args:
        work: given a share, does all of it, and leaves nothing to be evaluated by another thread.

    Returns:
        What ``work`` returned for each share, in the order of the items.
    """
    cores = openblas.threads() if _slow() else 1
    count = min(cores, len(items))
    if count < 2:
        return [work(items)]
    ends = [len(items) * n // count for n in range(count + 1)]
    shares = [items[start:end] for start, end in pairwise(ends)]

    def on_this_core(share: Sequence) -> T:
        with mx.stream(mx.cpu):
            return work(share)

    with openblas.one_thread():
        return list(_pool(cores).map(on_this_core, shares))


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    """Threads that stay, since MLX keeps what it has made for a thread."""
    return ThreadPoolExecutor(cores, thread_name_prefix="m3mlx-core")


def _slow(*arrays: mx.array) -> bool:
    """Whether MLX's own functions are the slow ones for these."""
    here = sys.platform == "linux" and mx.default_device() == mx.cpu
    return here and all(array.dtype == mx.float32 for array in arrays)


def softmax(x: mx.array) -> mx.array:
    """Softmax of the last axis."""
    if not _slow(x):
        return mx.softmax(x, axis=-1, precise=True)
    powers = _powers(x, _most(x))
    return powers / powers.sum(axis=-1, keepdims=True)


def logsumexp(x: mx.array) -> mx.array:
    """Logarithm of the sum of e to each number of the last axis, which stays with length 1."""
    if not _slow(x):
        return mx.logsumexp(x, axis=-1, keepdims=True)
    most = _most(x)
    return most + mx.log(_powers(x, most).sum(axis=-1, keepdims=True))


def _powers(x: mx.array, most: mx.array) -> mx.array:
    return mx.power(math.e, mx.maximum(x - most, -87.0))  # what is masked takes three times as long


def _most(x: mx.array) -> mx.array:
    return mx.stop_gradient(x.max(axis=-1, keepdims=True))


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    if not _slow(x):
        return _silu(x)
    return x / (1 + mx.power(math.e, mx.minimum(-x, 88.0)))  # more is infinite


def gelu(x: mx.array) -> mx.array:
    """GELU; on a CPU within a millionth of the larger of 1 and x."""
    if not _slow(x):
        return nn.gelu(x)
    z = mx.clip(x * 0.5**0.5, -4, 4)
    square = z * z
    over, under = ERF_OVER[0], ERF_UNDER[0]
    for factor in ERF_OVER[1:]:
        over = over * square + factor
    for factor in ERF_UNDER[1:]:
        under = under * square + factor
    return 0.5 * x * (1 + z * over / under)


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
    if others or sinks is not None or not _slow(q, k, v):
        return _attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **others)
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    # queries of the heads that share keys, one below the other
    below = (batch, kv_heads, heads // kv_heads * queries)
    logits = (q * scale).reshape(*below, head_dim) @ k.swapaxes(-1, -2)
    if isinstance(mask, str):  # causal: the last query sees all
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        if mask.dtype == mx.bool_:
            mask = mx.where(mask, 0.0, mx.finfo(mx.float32).min)
        logits = (logits.reshape(batch, heads, queries, keys) + mask).reshape(*below, keys)
    return (softmax(logits) @ v).reshape(batch, heads, queries, -1)
