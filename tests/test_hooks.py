"""The hooks, and what they rely on in the installed mlx-lm, for every verified family."""

import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import (
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from tiny import FAMILIES, tiny_model

from m3mlx.memory.cache import MemoryCache
from m3mlx.models import hooks

PROMPT = mx.array([[5, 80, 200, 33, 7]])
CONTEXTS = {
    "last_rows": lambda model: hooks.last_rows(model, 1),
    "layer_outputs": hooks.layer_outputs,
    "tap_attention": hooks.tap_attention,
    "observe_attention": lambda model: hooks.observe_attention(model, lambda *seen: None),
    "gradient_checkpoints": hooks.gradient_checkpoints,
}


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


class Calls:
    """A cache that notes what attention asks of it, in order."""

    def __init__(self, base, calls):
        self.base, self.calls = base, calls

    @property
    def offset(self):
        self.calls.append("offset")
        return self.base.offset

    def update_and_fetch(self, keys, values):
        self.calls.append("update_and_fetch")
        return self.base.update_and_fetch(keys, values)

    def make_mask(self, *args, **kwargs):
        inspect.signature(MemoryCache.make_mask).bind(self, *args, **kwargs)
        return self.base.make_mask(*args, **kwargs)


def state(model):
    """Everything that a hook may change."""
    modules = dict(model.named_modules())
    functions = {
        name: module.scaled_dot_product_attention
        for name, module in sys.modules.items()
        if name.startswith("mlx_lm.models.") and hasattr(module, "scaled_dot_product_attention")
    }
    kinds = {name: (type(module), set(vars(module))) for name, module in modules.items()}
    return kinds, {name: id(module) for name, module in modules.items()}, functions


# --- what mlx-lm does not promise


def test_a_model_is_a_head_on_a_body_of_layers_with_self_attn_and_rope(model):
    assert isinstance(model.model, nn.Module) and list(model.layers) == list(model.model.layers)
    for layer in model.layers:
        assert isinstance(layer.self_attn.rope, nn.Module)
        assert getattr(layer.self_attn, "n_heads", None) or layer.self_attn.num_attention_heads
        assert isinstance(layer.self_attn.scale, float)
    # a tap of one layer must not see another's
    assert len({id(layer.self_attn.rope) for layer in model.layers}) == len(model.layers)
    body = model.model(PROMPT)
    head = model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear
    np.testing.assert_allclose(np.array(head(body)), np.array(model(PROMPT)), atol=1e-5)


def test_layers_and_attention_take_x_mask_and_cache(model):
    for module in (model.layers[0], model.layers[0].self_attn):
        names = list(inspect.signature(type(module).__call__).parameters)
        assert names[:4] == ["self", "x", "mask", "cache"]
    assert list(inspect.signature(type(model.model).__call__).parameters)[:3] == [
        *("self", "inputs", "cache"),
    ]


def test_attention_rotates_queries_then_keys_and_then_updates_its_cache(model, monkeypatch):
    calls, shapes = [], []
    attention = model.layers[0].self_attn
    rope = type(attention.rope)

    class Noted(rope):
        def __call__(self, x, *args, **kwargs):
            calls.append("rope")
            shapes.append(x.shape)
            return super().__call__(x, *args, **kwargs)

    monkeypatch.setattr(attention.rope, "__class__", Noted)
    caches = [
        Calls(base, calls if n == 0 else []) for n, base in enumerate(make_prompt_cache(model))
    ]
    model(PROMPT, cache=caches)
    order = [call for call in calls if call != "offset"]
    assert order == ["rope", "rope", "update_and_fetch"]
    assert calls.index("offset") < calls.index("update_and_fetch")
    assert shapes == [(1, 4, 5, 16), (1, 2, 5, 16)]


def test_each_layer_calls_the_modules_attention_function_with_these_arguments(model, monkeypatch):
    module = sys.modules[type(model.layers[0].self_attn).__module__]
    plain, seen = getattr(module, hooks.ATTENTION), []
    names = ["queries", "keys", "values", "cache", "scale", "mask"]
    assert list(inspect.signature(plain).parameters)[:6] == names

    def attention(queries, keys, values, cache, scale, mask, **others):
        seen.append((queries.shape, keys.shape, cache, scale, mask))
        return plain(queries, keys, values, cache, scale=scale, mask=mask, **others)

    monkeypatch.setattr(module, hooks.ATTENTION, attention)
    caches = make_prompt_cache(model)
    model(PROMPT, cache=caches)
    assert [cache for *_, cache, _, _ in seen] == caches
    for layer, (queries, keys, _, scale, mask) in zip(model.layers, seen, strict=True):
        assert queries == (1, 4, 5, 16) and keys[:2] == (1, 2)
        assert scale == layer.self_attn.scale and mask == "causal"


def test_caches_have_the_protocol_that_memories_stand_in(model):
    caches = make_prompt_cache(model)
    assert len(caches) == len(model.layers)
    assert {type(cache) for cache in caches} <= {KVCache, RotatingKVCache}
    keys = mx.zeros((1, 2, 3, 16))
    quantized = QuantizedKVCache(group_size=32, bits=8)
    assert (quantized.group_size, quantized.bits) == (32, 8)
    for cache in [*caches, ConcatenateKVCache()]:
        assert cache.offset == 0
        fetched = cache.update_and_fetch(keys, keys)
        assert cache.offset == 3 and fetched[0].shape == (1, 2, 3, 16)
        assert (
            cache.keys.shape[2] >= 3
            and cache.make_mask(1, return_array=False, window_size=None) is None
        )
        assert cache.make_mask(2, return_array=False, window_size=None) == "causal"
    assert all(c.max_size > 0 for c in caches if isinstance(c, RotatingKVCache))


def test_mlx_lm_calls_attention_and_silu_by_the_names_that_fast_ops_replace(model, monkeypatch):
    called = []
    fast, silu = mx.fast.scaled_dot_product_attention, nn.silu
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda *a, **k: called.append("a") or fast(*a, **k)
    )
    monkeypatch.setattr(nn, "silu", lambda x: called.append("s") or silu(x))
    model(PROMPT)
    assert called.count("a") == len(model.layers)
    assert called.count("s") == (0 if "gemma" in type(model).__module__ else len(model.layers))


# --- what the hooks do


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_hook_leaves_everything_as_it_was(name, model):
    before, expected = state(model), np.array(model(PROMPT))
    with CONTEXTS[name](model):
        assert state(model) != before
        inside = np.array(model(PROMPT))
        with CONTEXTS[name](model):
            model(PROMPT)
        np.testing.assert_array_equal(np.array(model(PROMPT)), inside)
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), CONTEXTS[name](model):
        model(PROMPT)
        raise ZeroDivisionError
    assert state(model) == before
    np.testing.assert_array_equal(np.array(model(PROMPT)), expected)
    if name == "last_rows":  # a product of one row rounds in another way
        np.testing.assert_allclose(inside, expected[:, -1:], atol=2e-5)
    else:
        np.testing.assert_array_equal(inside, expected)


def test_hooks_end_in_any_order_beside_widened_masks(model):
    before = state(model)
    first, second = hooks.last_rows(model, 2), hooks.layer_outputs(model)
    hooks.widen_masks(model)
    hooks.widen_masks(model)
    first.__enter__()
    outputs = second.__enter__()
    assert model(PROMPT).shape[1] == 2 and len(outputs) == len(model.layers)
    first.__exit__(None, None, None)
    assert model(PROMPT).shape[1] == 5 and len(outputs) == 2 * len(model.layers)
    hooks.restore_masks(model)
    second.__exit__(None, None, None)
    hooks.restore_masks(model)
    assert state(model) == before


def test_a_hook_sees_only_the_thread_that_set_it():
    model = tiny_model("llama")
    before, meet = state(model), Barrier(4)

    def rows(count):
        with mx.stream(mx.cpu), hooks.last_rows(model, count):
            meet.wait(60)  # all hooks are set
            shape = model(PROMPT).shape[1]
            meet.wait(60)
        return shape

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(rows, (1, 2, 3, 5))) == [1, 2, 3, 5]
    assert state(model) == before


def test_taps_record_what_each_attention_computes_with(model):
    caches = make_prompt_cache(model)
    with hooks.tap_attention(model) as taps:
        model(PROMPT, cache=caches)
    assert [tap.cache for tap in taps] == caches
    for tap, layer in zip(taps, model.layers, strict=True):
        assert tap.attention is layer.self_attn and tap.scale == layer.self_attn.scale
        assert tap.query_heads == 4 and tap.own_mask is None
        for heads, (before, after) in zip((4, 2), tap.rotated, strict=True):
            assert before.shape == after.shape == (1, heads, 5, 16)
            np.testing.assert_array_equal(np.array(layer.self_attn.rope(before)), np.array(after))
        assert tap.queries is tap.rotated[0][1] and tap.keys.shape == tap.values.shape


def test_an_observer_sees_the_attention_of_every_layer(model):
    seen = []
    caches = make_prompt_cache(model)
    with hooks.observe_attention(model, lambda *arguments: seen.append(arguments)):
        model(PROMPT, cache=caches)
    assert [cache for _, _, _, cache, _, _ in seen] == caches
    for queries, keys, values, _, scale, mask in seen:
        assert values.shape == keys.shape
        assert queries.shape == (1, 4, 5, 16) and keys.shape[2] == 5
        assert isinstance(scale, float) and mask == "causal"


@pytest.mark.parametrize("rows", [0, 1, 3, 9])
def test_the_last_rows_are_those_of_all(model, rows):
    expected = np.array(model(PROMPT))[:, max(5 - rows, 0) :]
    with hooks.last_rows(model, rows):
        got = np.array(model(PROMPT))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_parameters_that_a_pass_replaces_stay_as_it_leaves_them():
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = mx.array([2.0]), mx.array([1.0])

        def __call__(self, x):
            self.weight = mx.clip(self.weight, -1, 1)
            return self.weight * x + self.bias

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = Clipped(), nn.Linear(1, 1)

    model = Holder()
    with hooks.fixed_parameters(model):
        model.inner(mx.array([3.0]))
    kept = model.inner.weight
    assert model.inner(mx.array([3.0])).item() == 4.0
    assert model.inner.weight is kept and type(model.other) is nn.Linear
    model.update({"inner": {"weight": mx.array([0.5])}})  # as adapters and training do
    assert model.inner(mx.array([3.0])).item() == 2.5
