"""What must hold for every family (DESIGN, section 4): the specification of the arithmetic."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, make_prompt_cache
from tiny import FAMILIES, HYBRIDS, KINDS, tiny_model

from m3mlx.config import SELECTIONS, MemoryConfig
from m3mlx.memory.cache import Layout, PrefixStates, make_cache, read_prefix
from m3mlx.memory.codec import Codec, Memory
from m3mlx.memory.write import Writer
from m3mlx.models.caches import keeps_state, leaves
from m3mlx.models.decoder import geometry_of
from m3mlx.models.hooks import restore_masks

PREFIX = (256, 7, 30, 11)
RECITE = (9, 9, 8)
LENGTH = 24  # of references here


def tokens(seed, length):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def settings(counts, dims=((16, 16),), **changes):
    return MemoryConfig(
        selection=changes.pop("selection", "reconstruction"),
        budget="calibrated",
        counts=tuple(map(tuple, counts)),
        **MemoryConfig.lengths(dims),
        prefix=changes.pop("prefix", PREFIX),
        reference_tokens=LENGTH,
        **{"key_bits": 16, "value_bits": 16, **changes},
    )


def uniform(count):
    return [[count] * 2] * 4


RAGGED = [[3, 0], [0, 0], [7, 2], [1, 5]]


def fitted(counts, geometry):
    """Some counts for layers and heads as a model has them."""
    return [counts[n][: layer.kv_heads] for n, layer in enumerate(geometry)]


class Setup:
    def __init__(self, family, counts, prefix=PREFIX, **changes):
        self.model = tiny_model(family, **changes)
        geometry = geometry_of(self.model)
        self.counts = fitted(counts, geometry)
        self.dims = [(layer.key_dim, layer.value_dim) for layer in geometry]
        self.config = settings(self.counts, self.dims, prefix=prefix)
        empty = mx.zeros((1, 2, 0, 16))
        self.prefix = (
            read_prefix(self.model, prefix)
            if prefix
            else PrefixStates([(empty, empty)] * 4, make_prompt_cache(self.model))
        )
        self.layout = Layout(self.config)
        self.writer = Writer(self.model, self.prefix, RECITE)

    def write(self, *references):
        return self.writer.write(references, self.config)

    def caches(self, memory=None, **options):
        caches = make_cache(self.model, self.prefix, **options)
        self.layout.attach(caches, memory)
        return caches

    def read(self, caches, context):
        return self.model(mx.array([context]), cache=caches)[0]


def plain(model, sequence, last):
    """Logits of the last tokens of a sequence, from the model as mlx-lm runs it."""
    return model(mx.array([sequence]), cache=make_prompt_cache(model))[0][-last:]


def close(a, b, tolerance=1e-5):
    error = float(mx.abs(a - b).max() / mx.maximum(mx.abs(b).max(), 1))
    assert error < tolerance, error


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_memory_is_ordinary_attention_over_the_reference(family):
    setup = Setup(family, uniform(LENGTH))
    reference, context = tokens(1, LENGTH), tokens(2, 20)
    caches = setup.caches(setup.write(reference))
    close(setup.read(caches, context), plain(setup.model, [*PREFIX, *reference, *context], 20))


def test_a_whole_memory_is_ordinary_attention_also_past_a_sliding_window():
    # The window ends within the reference, then behind it. There is no prefix here, because
    # mlx-lm's rotating cache counts tokens where the memories' window counts positions.
    setup = Setup("gemma3_text", uniform(LENGTH), prefix=(), sliding_window=16)
    reference, context = tokens(1, LENGTH), tokens(2, 40)
    caches = setup.caches(setup.write(reference))
    expected = plain(setup.model, [*reference, *context], 40)
    step = [setup.read(caches, context[i : i + n]) for i, n in ((0, 7), (7, 8), (15, 1))]
    step += [setup.read(caches, [token]) for token in context[16:24]]
    step += [setup.read(caches, context[24:])]
    close(mx.concatenate(step), expected)


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_without_memories_the_model_is_plain(family):
    setup = Setup(family, RAGGED)
    context = tokens(3, 30)
    expected = plain(setup.model, [*PREFIX, *context], 30)
    close(setup.read(setup.caches(), context), expected)
    restore_masks(setup.model)
    assert not any(hasattr(type(part), "_plain_class") for part in setup.model.modules())
    close(plain(setup.model, [*PREFIX, *context], 30), expected, 1e-9)


@pytest.mark.parametrize("counts", [uniform(6), RAGGED], ids=["uniform", "ragged"])
@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_chunked_prefill_equals_decoding_token_by_token(family, counts):
    setup = Setup(family, counts, **({"sliding_window": 20} if "gemma" in family else {}))
    context = tokens(4, 32)
    memories = [setup.write(tokens(5 + i, LENGTH), tokens(9 + i, LENGTH - 9)) for i in range(2)]
    outputs = []
    for size in (16, 1):
        caches, out = setup.caches(), []
        for start in range(0, 32, size):
            setup.layout.attach(caches, memories[start // 16])
            out.append(setup.read(caches, context[start : start + size]))
        outputs.append(mx.concatenate(out))
    # a recurrent state carries rounding along
    close(outputs[0], outputs[1], 1e-4 if family in HYBRIDS else 1e-5)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_memories_come_and_go_in_front_of_a_buffer_that_grows(kv_bits):
    """Other sizes, none, and the first again, over more tokens than mlx-lm's buffer starts with."""
    setup = Setup("llama", RAGGED, head_dim=64)
    memories = [setup.write(*(tokens(9 * n + i, LENGTH) for i in range(n))) for n in (2, 5)]
    schedule, context = [memories[0], None, memories[1], memories[0]], tokens(4, 400)
    outputs = []
    for size in (100, 20):
        caches, out = setup.caches(kv_bits=kv_bits), []
        for start in range(0, 400, size):
            if start % 100 == 0:
                setup.layout.attach(caches, schedule[start // 100])
            out.append(setup.read(caches, context[start : start + size]))
            if not kv_bits:  # what CUDA's attention of one token asks of a buffer
                assert {cache.base.keys.shape[2] % 256 for cache in caches} == {0}
        outputs.append(mx.concatenate(out))
        assert [cache.context for cache in caches] == [400 + len(PREFIX)] * 4
        assert {cache.offset for cache in caches} == {400 + len(PREFIX) + LENGTH}
    close(*outputs, 2e-2 if kv_bits else 1e-5)


def test_a_step_of_decoding_neither_copies_memories_nor_makes_their_mask_again():
    setup = Setup("llama", RAGGED)
    caches = setup.caches(setup.write(tokens(1, LENGTH)))
    for token in tokens(2, 3):
        setup.read(caches, [token])
    ragged = caches[2]
    mask, room = ragged._row, ragged.base.keys.shape
    for token in tokens(3, 60):
        setup.read(caches, [token])
    assert ragged._row is mask and ragged.base.keys.shape == room


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_masks_are_of_the_type_of_the_memories(family):
    """Else each layer would turn its mask into the model's type at every step."""
    setup = Setup(family, RAGGED)
    memory = setup.write(tokens(1, LENGTH), tokens(2, LENGTH))
    memory = replace(memory, keys=memory.keys.astype(mx.bfloat16))
    caches = setup.caches()
    setup.layout.attach(caches, memory, np.array([0, -1], np.float32))
    masks = [
        cache.widen(mask, queries, 4)
        for cache in leaves(caches)
        if not keeps_state(cache)
        for mask, queries in ((None, 1), ("causal", 3))
    ]
    arrays = [mask for mask in masks if isinstance(mask, mx.array) and mask.dtype != mx.bool_]
    assert arrays and {mask.dtype for mask in arrays} == {mx.bfloat16}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_memory_equals_attention_over_just_the_kept_tokens(family):
    """One layer, so that the reference can be computed by hand: a mask over the whole text."""
    setup = Setup(family, [[5, 2], [0, 0], [0, 0], [0, 0]])
    memory = setup.write(tokens(1, LENGTH), tokens(2, LENGTH - 3))
    context = tokens(3, 10)
    got = setup.caches(memory)
    layer = setup.model.layers[0].self_attn
    seen = []
    fetch = got[0].widen
    got[0].widen = lambda mask, n, heads: seen.append(fetch(mask, n, heads)) or seen[-1]
    setup.read(got, context)
    mask = seen[0]
    assert mask.shape == (1, layer.n_heads, 10, 2 * 5 + len(PREFIX) + 10)
    kept = np.isfinite(np.array(mask[0, :, :, :10]))
    per_head = kept.sum(axis=-1)
    assert (per_head[:2] == 10).all() and (per_head[2:] == 4).all()
    context = np.isfinite(np.array(mask[0, 0, :, 10:]))
    assert (context == np.array(create_causal_mask(10, len(PREFIX)))).all()


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_the_order_of_memories_does_not_matter(family):
    setup = Setup(family, RAGGED)
    memory = setup.write(*(tokens(i, LENGTH - i) for i in range(5)))
    order = np.array([3, 0, 4, 2, 1])
    other = Memory(
        memory.keys[mx.array(order)], memory.values[mx.array(order)], memory.positions[order]
    )
    context = tokens(6, 12)
    close(setup.read(setup.caches(memory), context), setup.read(setup.caches(other), context))


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_the_prefix_is_bit_identical_whatever_the_memories_are(family):
    setup = Setup(family, RAGGED)
    bare, full = setup.caches(), setup.caches(setup.write(tokens(1, LENGTH)))
    for caches in (bare, full):
        setup.read(caches, tokens(2, 9))
    both = ([c for c in leaves(caches) if not keeps_state(c)] for caches in (bare, full))
    for (keys, values), *caches in zip(setup.prefix, *both, strict=True):
        for cache in caches:
            in_front = cache.length if isinstance(cache.base, KVCache) else 0
            got = [x[:, :, in_front:] for x in cache.base.state[:2]]
            assert mx.array_equal(got[0][:, :, : len(PREFIX)], keys)
            assert mx.array_equal(got[1][:, :, : len(PREFIX)], values)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_a_memory_does_not_depend_on_its_batch(family, selection):
    setup = Setup(family, RAGGED)
    config = settings(setup.counts, setup.dims, selection=selection)
    references = [tokens(i, length) for i, length in enumerate((LENGTH, 5, 1, 17))]
    together = setup.writer.write(references, config)
    for i, reference in enumerate(references):
        alone = setup.writer.write([reference], config)
        assert (alone.positions[0] == together.positions[i]).all()
        real = mx.array(alone.positions[0] != 255)[:, None]
        close(alone.keys[0] * real, together.keys[i] * real)
        close(alone.values[0] * real, together.values[i] * real)


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_stored_in_bf16_a_memory_comes_back_bit_for_bit(family):
    setup = Setup(family, RAGGED)
    codec = Codec(setup.config)
    memory = setup.write(tokens(1, LENGTH), tokens(2, 3))
    records = codec.pack(memory)
    assert records.shape == (2, codec.record_bytes)
    back = codec.unpack(records, mx.bfloat16)
    assert (back.positions == memory.positions).all()
    assert mx.array_equal(
        back.keys.view(mx.uint16), memory.keys.astype(mx.bfloat16).view(mx.uint16)
    )
    assert mx.array_equal(
        back.values.view(mx.uint16), memory.values.astype(mx.bfloat16).view(mx.uint16)
    )


def test_key_scale_enlarges_the_keys_of_memories_and_nothing_else():
    setup = Setup("llama", RAGGED)
    memory, context = setup.write(tokens(1, LENGTH)), tokens(3, 20)
    sharp = Layout(settings(RAGGED, key_scale=1.25))
    caches = make_cache(setup.model, setup.prefix)
    sharp.attach(caches, memory)
    larger = Memory(memory.keys * 1.25, memory.values, memory.positions)
    close(setup.read(caches, context), setup.read(setup.caches(larger), context), 1e-9)


def rounded(x):
    return mx.dequantize(*mx.quantize(x, 64, 8), 64, 8)


class RoundedCache(KVCache):
    """Stores what an 8-bit cache stores, in full precision."""

    def update_and_fetch(self, keys, values):
        return super().update_and_fetch(rounded(keys), rounded(values))


@pytest.mark.parametrize("counts", [uniform(6), RAGGED], ids=["uniform", "ragged"])
def test_a_quantized_context_reads_the_same_memories(counts):
    setup = Setup("llama", counts, head_dim=64)
    context = tokens(3, 20)
    memory = setup.write(tokens(1, LENGTH), tokens(2, 9))
    got = setup.caches(memory, kv_bits=8)
    setup.model.make_cache = lambda: [RoundedCache() for _ in range(4)]
    memory = Memory(rounded(memory.keys), rounded(memory.values), memory.positions)
    expected = setup.read(setup.caches(memory), context)
    # A sum in another order can move a value over the edge between two codes.
    close(setup.read(got, context), expected, 5e-3)
    assert float(mx.abs(setup.read(setup.caches(None), context) - expected).max()) > 0.1
