"""The suite can fail: each mutation of the product is caught, by the stage and layer named here.

Most mutations replace a piece of a function's source, in memory, which must be there exactly once;
a change of the product that it no longer fits is an error here and not a silence. The golden files
are the other side, so that this needs no PyTorch.
"""

import inspect
import textwrap
from functools import partial
from itertools import count

import mlx.core as mx
import mlx_lm.models.llama
import pytest

from m3mlx.chat import conversation as generate
from m3mlx.memory import cache, parallel, write
from m3mlx.memory.codec import Memory
from m3mlx.models import hooks
from m3mlx.parity import measure
from m3mlx.parity.cases import TINY, lora
from m3mlx.parity.check import load_case
from m3mlx.parity.compare import compare
from m3mlx.parity.golden import read_golden


def where_it_differs(name):
    """The first stage that differs from the golden file, and its first layer."""
    case = TINY[name]
    _, theirs = read_golden(case)
    ours = measure.measure(load_case(case), case, lora(case), theirs["selected"])
    differences = compare(case, ours, theirs, "float32")
    return next(((d.stage, d.layer) for d in differences if not d.ok), None)


def rewrite(owner, name, old, new, monkeypatch):
    function = inspect.getattr_static(owner, name)
    function = getattr(function, "fget", function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has changed; write its mutation anew"
    scope = dict(vars(inspect.getmodule(function)))
    exec(source.replace(old, new), scope)
    monkeypatch.setattr(owner, name, scope[name])


def in_one_layer(owner, change, monkeypatch):
    """Let ``change`` have what the second layer's cache gives to attention."""
    made, fetch, numbers = owner.__init__, owner.update_and_fetch, count()

    def __init__(self, *args):
        made(self, *args)
        self.layer = next(numbers) % 3

    def update_and_fetch(self, keys, values):
        fetched = fetch(self, keys, values)
        return tuple(change(self, x) for x in fetched) if self.layer == 1 else fetched

    monkeypatch.setattr(owner, "__init__", __init__)
    monkeypatch.setattr(owner, "update_and_fetch", update_and_fetch)


def without_prefix(self, x):
    start = getattr(self, "length", 0)  # memories stand in front of the prefix
    return mx.concatenate([x[:, :, :start], x[:, :, start + 5 :]], axis=2)


def blank_prefix(self, x):
    return mx.concatenate([mx.zeros_like(x[:, :, :5]), x[:, :, 5:]], axis=2)


def keys_before_rope(monkeypatch):
    run, score = write.Writer._run, write.Writer.score
    taps = []

    def collect(self, *args):
        taps[:] = run(self, *args)
        return taps

    def unrotated(self, references, selection, *rest):
        scores, keys, values = score(self, references, selection, *rest)
        before = [tap.rotated[1][0][:, :, : keys.shape[3]] for tap in taps]
        return scores, mx.stack(before, axis=1), values

    monkeypatch.setattr(write.Writer, "_run", collect)
    monkeypatch.setattr(write.Writer, "score", unrotated)


def softmax_in_two(monkeypatch):
    whole = mlx_lm.models.llama.scaled_dot_product_attention

    def halves(queries, keys, values, cache, scale, mask):
        n = getattr(cache, "length", 0)
        if not n:
            return whole(queries, keys, values, cache=cache, scale=scale, mask=mask)
        parts = (keys[:, :, :n], values[:, :, :n], None), (keys[:, :, n:], values[:, :, n:], mask)
        one, two = (whole(queries, k, v, cache=cache, scale=scale, mask=m) for k, v, m in parts)
        return (one + two) / 2

    monkeypatch.setattr(mlx_lm.models.llama, "scaled_dot_product_attention", halves)


def no_gradient_by_the_prefix(monkeypatch):
    states = measure.read_prefix

    def stopped(*args):
        found = states(*args)
        return cache.PrefixStates([tuple(map(mx.stop_gradient, p)) for p in found], found.made)

    monkeypatch.setattr(measure, "read_prefix", stopped)


def no_gradient_through_writing(monkeypatch):
    def write_traced(*args):
        memory = write.write_traced(*args)
        keys, values = map(mx.stop_gradient, (memory.keys, memory.values))
        return Memory(keys, values, memory.positions)

    monkeypatch.setattr(measure, "write_traced", write_traced)


# case, mutation, and the stage and layer that catch it
MUTATIONS = {
    "position of the context shifted by one": (
        "llama",
        partial(rewrite, cache.MemoryCache, "offset", "self.gap", "self.gap + 1"),
        ("layers", 0),
    ),
    "positions of memories one too few": (
        "llama",
        partial(
            rewrite,
            cache.Layout,
            "__init__",
            "config.reference_tokens",
            "127",
        ),
        ("read", 0),
    ),
    "prefix left out of one layer when reading": (
        "qwen2-untied",
        partial(in_one_layer, cache.MemoryCache, without_prefix),
        ("layers", 1),
    ),
    "prefix blank in one layer when writing": (
        "llama",
        partial(in_one_layer, write._Recorder, blank_prefix),
        ("scores attention", 2),
    ),
    "wrong KV group when scoring": (
        "llama",
        partial(
            rewrite,
            write,
            "_logits",
            "queries.reshape(batch, heads, query_heads // heads, length, head_dim)",
            "queries.reshape(batch, query_heads // heads, heads, length, head_dim).swapaxes(1, 2)",
        ),
        ("scores attention", 0),
    ),
    "wrong KV group when reading": (
        "qwen2-untied",
        partial(rewrite, cache, "_by_head", "transpose(1, 0, 2, 3)", "transpose(1, 0, 2, 3)[::-1]"),
        ("read", 0),
    ),
    "mask off by one, a token sees the next": (
        "llama",
        partial(
            rewrite, cache.MemoryCache, "widen", ">= mx.arange(keys)", ">= mx.arange(keys) - 1"
        ),
        ("read", 0),
    ),
    "mask off by one, a token misses itself": (
        "llama",
        partial(rewrite, cache.MemoryCache, "widen", ">= mx.arange(keys)", "> mx.arange(keys)"),
        ("read", 0),
    ),
    "mask off by one when scoring": (
        "llama",
        partial(rewrite, write._Reciter, "make_mask", "keys_at <= at", "keys_at < at"),
        ("scores reconstruction", 0),
    ),
    "padding of memories seen": (
        "llama",
        partial(rewrite, cache.MemoryCache, "attach", "bool(weights.any())", "False"),
        ("read", 0),
    ),
    "padding of references seen when scoring": (
        "llama",
        partial(
            rewrite,
            write,
            "_attention_score",
            "real[:, None, None], l",
            "mx.array(True), l",
        ),
        ("scores attention", 0),
    ),
    "keys before RoPE": ("llama", keys_before_rope, ("keys", 0)),
    "softmax split in two": ("paper", softmax_in_two, ("read", 0)),
    "selection over the prefix": (
        "llama",
        partial(
            rewrite,
            write,
            "_reconstruction_score",
            "logits[..., prefix : prefix + longest]",
            "logits[..., :longest]",
        ),
        ("scores reconstruction", 0),
    ),
    "best tokens dropped": (
        "llama",
        partial(rewrite, write, "_select", "np.argsort(-scores", "np.argsort(scores"),
        ("selected", 0),
    ),
    "keys not enlarged": (
        "llama",
        partial(rewrite, cache.Layout, "attach", "memory.keys * self.key_scale", "memory.keys"),
        ("read", 0),
    ),
    "memories refreshed a token late": (
        "llama",
        partial(
            rewrite,
            generate.Conversation,
            "_drawn",
            "fed > 0 and fed % CHUNK_TOKENS == 0",
            "fed > 1 and fed % CHUNK_TOKENS == 1",
        ),
        ("tokens", None),
    ),
    "memories read a chunk late in training": (
        "llama",
        partial(rewrite, parallel, "_rows_seen", "number * CHUNK", "(number + 1) * CHUNK"),
        ("loss", None),
    ),
    "padding of memories seen in training": (
        "llama",
        partial(rewrite, parallel._PassCache, "attach", "places != PADDING", "places >= 0"),
        ("loss", None),
    ),
    "keys not enlarged in training": (
        "llama",
        partial(
            rewrite, parallel._PassCache, "attach", "memory.keys * layout.key_scale", "memory.keys"
        ),
        ("loss", None),
    ),
    "a token sees the next in training": (
        "llama",
        partial(
            rewrite, parallel._PassCache, "widen", "at[:, None] >= at", "at[:, None] >= at - 1"
        ),
        ("loss", None),
    ),
    "positions of the context in training": (
        "llama",
        partial(rewrite, measure, "logits_with_memories", "config.reference_tokens", "127"),
        ("loss", None),
    ),
    "state of a recurrent layer not kept with the prefix": (
        "hybrid",
        partial(rewrite, cache, "arrange", "deepcopy(made)", "type(made)(len(made.cache))"),
        ("layers", 1),
    ),
    "state of a recurrent layer shared by passes": (
        "hybrid",
        partial(rewrite, cache, "arrange", "deepcopy(made)", "made"),
        ("scores attention", 0),
    ),
    "rotary parts of latent memories blank": (
        "latent",
        partial(
            rewrite,
            cache.Layout,
            "attach",
            "_by_head(memory.values[..., :value_dim], index)",
            "0 * _by_head(memory.values[..., :value_dim], index)",
        ),
        ("read", 0),
    ),
    "rotary part left out when scoring": (
        "latent",
        partial(rewrite, write, "_reconstruction_score", "tap.own_mask is not None", "False"),
        ("scores reconstruction", 0),
    ),
    "padding of latent memories seen": (
        "latent",
        partial(rewrite, hooks, "_widen_mask", "mx.isfinite(mask)", "mx.ones_like(mask) > 0"),
        ("read", 0),
    ),
    "no gradient by the prefix": ("qwen2-untied", no_gradient_by_the_prefix, ("gradients", None)),
    "no gradient through writing": (
        "qwen2-untied",
        no_gradient_through_writing,
        ("gradients", None),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name, monkeypatch):
    case, mutation, expected = MUTATIONS[name]
    mutation(monkeypatch=monkeypatch)
    assert where_it_differs(case) == expected
