"""The replacements of MLX's slow functions give the same values and gradients."""

import math
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import tiny_model

from m3mlx.models.hooks import install_fast_ops
from m3mlx.models.linux_cpu import openblas, ops

SLOW_HERE = sys.platform == "linux" and mx.default_device() == mx.cpu


def random(*shape, spread=1.0, seed=0):
    return spread * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 100.0]), st.integers(1, 90))
def test_softmax_and_logsumexp_are_those_of_float64(seed, spread, length):
    logits = random(3, length, spread=spread, seed=seed)
    logits[1, (length + 1) // 2 :] = np.finfo(np.float32).min  # masked
    logits[2, (length + 1) // 2 :] = -np.inf
    below = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    total = np.exp(below).sum(-1, keepdims=True)
    expected = np.exp(below) / total
    got = np.array(ops.softmax(mx.array(logits)))
    likely = expected > 1e-30
    np.testing.assert_allclose(got[likely], expected[likely], rtol=2e-5 if spread > 3 else 5e-6)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert (got[~likely] <= 1e-30).all() and (got >= 0).all()
    whole = np.array(ops.logsumexp(mx.array(logits)))
    # The largest logit and the logarithm of the sum cancel where both are below log(90) = 4.5;
    # float32 rounds each to 2.4e-7, so there the error is not relative to their sum.
    expected = logits.max(-1, keepdims=True) + np.log(total)
    np.testing.assert_allclose(whole, expected, rtol=2e-6, atol=5e-7)


EDGES = np.array([-3e38, -1e4, -100, -88.5, 0, 88.5, 100, 1e4, 3e38], np.float32)


@pytest.mark.parametrize("function, x", [(ops.silu, EDGES), (ops.softmax, EDGES[1:-1])])
def test_extreme_numbers_give_numbers_and_finite_gradients(function, x):
    weight = mx.arange(len(x)) + 1.0
    value, slope = mx.value_and_grad(lambda x: (function(x) * weight)[:-1].sum())(mx.array(x))
    assert np.isfinite(np.array(function(mx.array(x)))).all()
    assert np.isfinite(np.array(slope)).all() and np.isfinite(value.item())


def test_silu_and_gelu_are_those_of_float64():
    x = np.concatenate([np.linspace(-12, 12, 4801), [-1e30, 1e30, 0.0]]).astype(np.float32)
    expected = np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    got = np.array(ops.gelu(mx.array(x)), np.float64)
    assert (np.abs(got - expected) <= 1e-6 * np.maximum(1, np.abs(x))).all()
    wide = x.astype(np.float64)
    expected = wide / (1 + np.exp(np.minimum(-wide, 700)))
    np.testing.assert_allclose(np.array(ops.silu(mx.array(x))), expected, rtol=3e-6, atol=1e-8)


MASKS = {
    "none": lambda *shape: None,
    "causal": lambda *shape: "causal",
    "bool, for all heads": lambda b, h, q, k: mx.array(random(b, 1, q, k) > 0) | (mx.arange(k) < 1),
    "bool, queries and keys": lambda b, h, q, k: mx.arange(q)[:, None] + 2 >= mx.arange(k),
    "added, for each head": lambda b, h, q, k: mx.where(
        mx.arange(k) % 3 > 0, mx.array(random(1, h, q, k)), -mx.inf
    ),
    "added, for one query": lambda b, h, q, k: mx.array(random(1, h, 1, k)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "heads, kv_heads, queries, keys", [(4, 4, 5, 5), (6, 2, 3, 11), (9, 3, 1, 7)]
)
def test_attention_equals_that_of_mlx(mask, heads, kv_heads, queries, keys):
    q = mx.array(random(2, heads, queries, 8, spread=3))
    k, v = (mx.array(random(2, kv_heads, keys, n, seed=n)) for n in (8, 4))
    mask = MASKS[mask](2, heads, queries, keys)

    def run(attend):
        def loss(q, k, v):
            out = attend(q, k, v, scale=0.3, mask=mask)
            return (out * mx.arange(out.size).reshape(out.shape)).sum(), out

        (_, out), slopes = mx.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
        return [np.array(x) for x in (out, *slopes)]

    for got, expected in zip(run(ops.attention), run(ops._mlx_attention), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_what_is_not_plain_float32_is_left_to_mlx(monkeypatch):
    asked = []
    plain = ops._mlx_attention

    def attend(q, k, v, **others):
        asked.append({name for name, value in others.items() if value is not None})
        return plain(q, k, v, **others)

    monkeypatch.setattr(ops, "_mlx_attention", attend)
    q, sinks = mx.array(random(1, 2, 3, 8)), mx.array(random(2))
    half = q.astype(mx.bfloat16)
    assert ops.attention(half, half, half, scale=1.0).dtype == mx.bfloat16
    ops.attention(q, q, q, scale=1.0, sinks=sinks)
    ops.attention(q, q, q, scale=1.0, sinks=None)
    assert asked[:2] == [{"scale"}, {"scale", "sinks"}]
    assert len(asked) == (2 if SLOW_HERE else 3)
    assert ops.silu(half).dtype == ops.softmax(half).dtype == ops.gelu(half).dtype == mx.bfloat16


def test_a_batch_is_split_in_order_and_blas_gets_its_threads_back(two_blas_threads):
    before = openblas.threads()
    assert before == (2 if openblas._library else 1)
    seen = []

    def work(share):
        seen.append(openblas.threads())
        return (mx.array(share) * 2).tolist()

    for count in (1, 2, 7):
        parts = ops.split_over_cores(work, list(range(count)))
        assert sum(parts, []) == [2 * n for n in range(count)]
        assert len(parts) == (min(before, count) if SLOW_HERE else 1)
    if SLOW_HERE:
        assert set(seen[1:]) == {1}
    with pytest.raises(ValueError, match="invalid literal"):
        ops.split_over_cores(lambda share: [int(text) for text in share], ["1", "2", "three"])
    assert openblas.threads() == before


def test_a_model_with_column_major_matrices_and_fast_ops_is_the_same(monkeypatch):
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", ops._mlx_attention)
    monkeypatch.setattr(nn, "silu", ops._mlx_silu)
    model, prompt = tiny_model("llama"), mx.array([[1, 2, 3, 4]])
    before = {name: np.array(x) for name, x in tree_flatten(model.parameters())}
    expected = np.array(model(prompt))
    ops.make_column_major(model)
    install_fast_ops()
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    for name, x in after.items():
        np.testing.assert_array_equal(np.array(x), before[name])
    np.testing.assert_allclose(np.array(model(prompt)), expected, atol=1e-5)
    assert (nn.silu is ops.silu) == (sys.platform == "linux")
