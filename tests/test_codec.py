"""Records: sizes, the format byte by byte, exact round trips in bf16 and bounded errors below."""

import hashlib
import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3mlx.config import MemoryConfig
from m3mlx.errors import M3Error
from m3mlx.memory.codec import Codec, Memory


def config(counts=((3, 1), (0, 4)), head_dim=64, keys=8, values=8):
    return MemoryConfig("reconstruction", "calibrated", counts, head_dim, (1,), keys, values)


def memory(config, seed=0, batch=2, scale=1.0):
    shape = (batch, config.kept, config.head_dim)
    rng = np.random.default_rng(seed)
    keys, values = (rng.standard_normal(shape).astype(np.float32) * scale for _ in range(2))
    positions = rng.integers(0, 128, shape[:2]).astype(np.uint8)
    positions[-1, -2:] = 255
    return Memory(mx.array(keys), mx.array(values), positions)


def test_records_of_layers_that_are_alike_have_the_bytes_that_they_always_had():
    rng = np.random.RandomState(7)
    drawn = rng.randn(2, 3, 8, 48).astype(np.float32)
    positions = rng.randint(0, 128, (3, 8)).astype(np.uint8)
    original, shape = Memory(*map(mx.array, drawn), positions), config(head_dim=48, values=4)
    records = Codec(shape).pack(original)
    assert hashlib.sha256(records.tobytes()).hexdigest()[:16] == "55265af020e87ed0"
    stored = shape.to_json()
    assert "layer_dims" not in stored and MemoryConfig.from_json(stored) == shape
    assert MemoryConfig.lengths(((48, 48),) * 2) == {"head_dim": 48, "layer_dims": ()}


MIXED = ((32, 16), (8, 24))  # lengths of a key and a value in each layer


@pytest.mark.parametrize("keys, values", [(16, 16), (8, 4)])
def test_layers_that_differ_store_their_own_numbers_only(keys, values):
    shape = replace(config(keys=keys, values=values), **MemoryConfig.lengths(MIXED))
    assert MemoryConfig.from_json(json.loads(json.dumps(shape.to_json()))) == shape
    codec, whole = Codec(shape), memory(shape)
    real = [np.repeat([pair[i] for pair in MIXED], [4, 4]) for i in (0, 1)]
    parts = [
        x[..., : max(n)] * mx.array(np.arange(max(n)) < n[:, None])
        for x, n in zip((whole.keys, whole.values), real, strict=True)
    ]
    original = Memory(*parts, whole.positions)
    records = codec.pack(original)
    numbers = [int(n.sum()) for n in real]
    sizes = [
        2 * n if bits == 16 else -(-n // 32) * (4 * bits + 4)
        for n, bits in zip(numbers, (keys, values), strict=True)
    ]
    assert numbers == [160, 160] and records.shape == (2, 8 + sum(sizes))
    back = codec.unpack(records)
    for before, after in ((original.keys, back.keys), (original.values, back.values)):
        assert before.shape == after.shape
        assert mx.array_equal(after == 0, before == 0) or keys != 16
        assert float(mx.abs(before - after).max()) < 0.35
        assert float(mx.abs(after * (before == 0)).max()) == 0
    once = codec.rounded(original)
    assert float(mx.abs(once.keys - back.keys).max()) < 1e-6
    assert float(mx.abs(once.values - back.values).max()) < 1e-6


def test_a_record_of_the_papers_shape_has_the_papers_size():
    shape = config(((8,) * 8,) * 22, head_dim=80, keys=16, values=16)
    assert shape.kept * 80 * 2 == 225_280
    assert Codec(shape).record_bytes - shape.kept == 450_560


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 12])
@pytest.mark.parametrize("bits", [16, 8, 4])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_errors_stay_within_the_stated_bounds(bits, head_dim, seed, scale):
    shape = config(head_dim=head_dim, keys=bits, values=bits)
    codec, original = Codec(shape), memory(shape, seed, scale=scale)
    records = codec.pack(original)
    assert records.dtype == np.uint8 and records.shape == (2, codec.record_bytes)
    back = codec.unpack(records)
    assert (back.positions == original.positions).all()
    for before, after in ((original.keys, back.keys), (original.values, back.values)):
        if bits == 16:
            assert mx.array_equal(before.astype(mx.bfloat16).astype(mx.float32), after)
            continue
        group = 64 if head_dim % 64 == 0 else 32
        flat, error = (np.array(x).reshape(2, -1) for x in (before, mx.abs(before - after)))
        pad = -flat.shape[1] % group
        flat, error = (np.pad(x, ((0, 0), (0, pad))).reshape(2, -1, group) for x in (flat, error))
        step = (flat.max(-1) - flat.min(-1)) / (2**bits - 1)
        bound = {8: 1.5, 4: 1.0}[bits] * step[..., None] + np.abs(flat).max(-1)[..., None] * 2**-10
        assert (error <= bound).all()


@pytest.mark.parametrize("keys, values", [(8, 4), (4, 16), (16, 8)])
def test_numpy_alone_can_read_the_format(keys, values):
    shape = config(head_dim=64, keys=keys, values=values)
    codec, original = Codec(shape), memory(shape)
    record = codec.pack(original)[0]
    back = codec.unpack(record[None])
    kept = shape.kept
    assert (record[:kept] == original.positions[0]).all()
    offset = kept
    for bits, got in ((keys, back.keys), (values, back.values)):
        count = kept * 64
        if bits == 16:
            words = record[offset : offset + 2 * count].view("<u2").astype(np.uint32) << 16
            expected = words.view(np.float32)
            offset += 2 * count
        else:
            codes = record[offset : offset + count * bits // 8]
            if bits == 4:
                codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1)
            offset += count * bits // 8
            scale = record[offset : offset + 2 * kept].view("<f2").astype(np.float32)
            bias = record[offset + 2 * kept : offset + 4 * kept].view("<f2").astype(np.float32)
            offset += 4 * kept
            expected = codes.reshape(-1, 64) * scale[:, None] + bias[:, None]
        np.testing.assert_allclose(expected.reshape(kept, 64), np.array(got[0]), rtol=1e-6)
    assert offset == len(record)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["keys", "values"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_what_is_not_finite_is_never_stored(bits, which, bad):
    shape = config(keys=bits, values=bits)
    broken = memory(shape)
    array = np.array(getattr(broken, which))
    array[1, 2, 3] = bad
    setattr(broken, which, mx.array(array))
    with pytest.raises(M3Error, match="NaN or infinite"):
        Codec(shape).pack(broken)


def test_values_beyond_float16_are_refused_with_the_codec_that_holds_them():
    shape = config()
    with pytest.raises(M3Error, match="k16v16"):
        Codec(shape).pack(memory(shape, scale=1e9))


def test_records_do_not_depend_on_their_batch():
    shape = config(keys=8, values=4)
    codec, original = Codec(shape), memory(shape, batch=3)
    together = codec.pack(original)
    for row in range(3):
        assert (codec.pack(original.take([row]))[0] == together[row]).all()
    joined = Memory.join([original.take([2]), original.take([0, 1])])
    assert (codec.pack(joined) == together[[2, 0, 1]]).all()


@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rounding_is_a_round_trip_that_gradients_pass_straight_through(head_dim, bits):
    shape = config(head_dim=head_dim, keys=bits, values=bits)
    codec, original = Codec(shape), memory(shape)
    back, rounded = codec.unpack(codec.pack(original)), codec.rounded(original)
    np.testing.assert_allclose(rounded.keys, back.keys, atol=1e-6)
    np.testing.assert_allclose(rounded.values, back.values, atol=1e-6)
    assert (rounded.positions == original.positions).all()
    assert bits == 16 or float(mx.abs(rounded.keys - original.keys).max()) > 1e-3
    way = mx.random.normal(original.keys.shape)

    def through(keys):
        return (codec.rounded(Memory(keys, original.values, original.positions)).keys * way).sum()

    np.testing.assert_allclose(mx.grad(through)(original.keys), way, atol=1e-6)
