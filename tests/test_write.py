"""The two scores against a plain NumPy computation, and what is kept of them."""

import sys
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model

from m3mlx.config import SELECTIONS, MemoryConfig
from m3mlx.errors import ModelError
from m3mlx.memory.cache import read_prefix
from m3mlx.memory.write import Writer, _Reciter, _Recorder, _run, _select, keep

pytestmark = pytest.mark.usefixtures("two_blas_threads")

PREFIX, RECITE = [256, 7, 30], [9, 8]
HEADS, KV_HEADS, DIM = 4, 2, 16


def tokens(seed, length):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def project(model, row, name):
    """Queries, keys or values of the first layer before RoPE: (heads, tokens, DIM)."""
    layer = model.model.layers[0]
    x = np.array(model.model.embed_tokens.weight)[row]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.array(layer.input_layernorm.weight)
    y = x @ np.array(getattr(layer.self_attn, name).weight).T
    return y.reshape(len(row), -1, DIM).transpose(1, 0, 2)


def rotate(x):
    """RoPE of positions 0, 1, …, halves paired."""
    half = DIM // 2
    angle = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def writer():
    model = tiny_model("llama")
    return Writer(model, read_prefix(model, PREFIX), RECITE)


@pytest.mark.parametrize("length", [1, 7, 24])
def test_the_papers_score_is_attention_without_positions_and_mask(writer, length):
    row = tokens(0, length)
    got = writer.score([row, tokens(1, 24)], "attention")[0][0, 0]
    q, k = (project(writer.model, row, name) for name in ("q_proj", "k_proj"))
    expected = np.zeros((KV_HEADS, length))
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        expected[kv] += softmax(q[head] @ k[kv].T / np.sqrt(DIM)).sum(axis=0)
    np.testing.assert_allclose(got[:, :length], expected, rtol=1e-4)
    assert (got[:, length:] == -1).all()


@pytest.mark.parametrize("length", [1, 7, 24])
def test_the_reconstruction_score_is_what_reciting_takes_from_a_token(writer, length):
    row = tokens(0, length)
    got = writer.score([row, tokens(1, 24)], "reconstruction")[0][0, 0]
    whole = [*PREFIX, *row, *RECITE, *row]
    q, k = (rotate(project(writer.model, whole, name)) for name in ("q_proj", "k_proj"))
    value = np.linalg.norm(project(writer.model, whole, "v_proj"), axis=-1)
    start = len(PREFIX) + length + len(RECITE)
    reference = slice(len(PREFIX), len(PREFIX) + length)
    expected = np.zeros((KV_HEADS, length))
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        for query in range(start, len(whole)):
            weights = softmax(q[head, query] @ k[kv, : query + 1].T / np.sqrt(DIM))
            expected[kv] = np.maximum(expected[kv], weights[reference] * value[kv, reference])
    np.testing.assert_allclose(got[:, :length], expected, rtol=2e-4)
    assert (got[:, length:] == -1).all()


def test_keys_are_kept_after_rope_with_the_positions_after_the_prefix(writer):
    row = tokens(0, 12)
    _, keys, values = writer.score([row], "attention")
    expected = rotate(project(writer.model, [*PREFIX, *row], "k_proj"))[:, len(PREFIX) :]
    np.testing.assert_allclose(np.array(keys[0, 0]), expected, rtol=1e-4, atol=1e-5)
    expected = project(writer.model, row, "v_proj")
    np.testing.assert_allclose(np.array(values[0, 0]), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(writer):
    ropes = [layer.self_attn.rope for layer in writer.model.layers]
    writer.score([tokens(0, 5)], "reconstruction")
    with pytest.raises(ValueError):
        writer.score([[0.5]], "attention")  # no token id
    assert all(
        layer.self_attn.rope is rope for layer, rope in zip(writer.model.layers, ropes, strict=True)
    )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_each_head_keeps_its_best_tokens_in_order(data):
    longest = data.draw(st.integers(1, 12))
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 15), min_size=2, max_size=2), min_size=1, max_size=3)
    )
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = rng.random((len(lengths), len(counts), 2, longest)).astype(np.float32)
    for row, length in enumerate(lengths):
        scores[row, ..., length:] = -1
    positions, flat = _select(scores, counts)
    assert positions.shape == flat.shape == (len(lengths), sum(map(sum, counts)))
    for row, length in enumerate(lengths):
        start = 0
        for layer, budget in enumerate(counts):
            for head, count in enumerate(budget):
                kept = positions[row, start : start + count].tolist()
                real = [p for p in kept if p != 255]
                assert real == sorted(real) and kept[: len(real)] == real
                assert len(real) == min(count, length)
                score = scores[row, layer, head]
                worst = min((score[p] for p in real), default=np.inf)
                assert all(score[p] <= worst for p in set(range(length)) - set(real))
                where = flat[row, start : start + len(real)] - (layer * 2 + head) * longest
                assert where.tolist() == real
                start += count


@pytest.mark.parametrize("foreign", [260, 2**31, 2**32 - 1, -1])
def test_tokens_that_the_model_does_not_know_are_refused(writer, foreign):
    """MLX would read beyond its embeddings, or kill the process."""
    for score in ("reconstruction", "attention"):
        with pytest.raises(ModelError, match=rf"token {foreign} .* 260"):
            writer.score([[1, 2], [3, foreign]], score)
    with pytest.raises(ModelError, match="260"):
        read_prefix(writer.model, [foreign])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_layers_without_memories_are_not_ranked(writer, selection):
    """Layers that hold nothing cost nothing, and change no bit of those that do."""
    row, counts = tokens(0, 24), ((3, 0), (0, 0), (7, 2), (0, 0))
    got = writer.write([row], MemoryConfig(selection, "calibrated", counts, DIM, tuple(PREFIX)))
    expected = keep(*writer.score([row], selection), counts)
    assert (got.positions == expected.positions).all()
    assert mx.array_equal(got.keys, expected.keys) and mx.array_equal(got.values, expected.values)
    assert writer.score([row], selection, [0, 2])[0].shape[1] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recitation_follows_its_reference_as_if_both_were_one_text(family):
    model = tiny_model(family)
    prefix = read_prefix(model, PREFIX)
    references = [tokens(0, 9), tokens(1, 24), tokens(2, 17)]
    recorders = [_Recorder(*state) for state in prefix]
    _run(model, references, recorders)
    real = mx.array(np.arange(24) < np.array([[9], [24], [17]]))
    reciters = [_Reciter(recorder, real) for recorder in recorders]
    _run(model, [[*RECITE, *row] for row in references], reciters)
    for n, row in enumerate(references):
        whole = [_Recorder(*state) for state in prefix]
        _run(model, [[*row, *RECITE, *row]], whole)
        for reciter, one in zip(reciters, whole, strict=True):
            length = len(RECITE) + len(row)
            got, expected = reciter.outputs[0][n, :, :length], one.outputs[0][0, :, len(row) :]
            np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-5)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_threads_that_write_with_one_model_do_not_interfere(writer, selection):
    rows = [tokens(n, 20) for n in range(4)]
    expected = [writer.score([row], selection)[0] for row in rows]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: writer.score([rows[n % 4]], selection)[0], range(300)))
    finally:
        sys.setswitchinterval(before)
    for n, scores in enumerate(found):
        np.testing.assert_allclose(scores, expected[n % 4], rtol=1e-4)


def test_a_short_reference_is_not_padded_to_a_long_one(writer, monkeypatch):
    lengths, batches = [100, 3, 90, 4, 20], []
    monkeypatch.setattr(
        "m3mlx.models.linux_cpu.openblas.threads", lambda: 1
    )  # else each group is shared
    score = Writer.score
    monkeypatch.setattr(
        Writer,
        "score",
        lambda self, references, *rest: (
            batches.append([len(row) for row in references]) or score(self, references, *rest)
        ),
    )
    config = MemoryConfig("attention", "uniform", ((2, 2),) * 4, DIM, tuple(PREFIX))
    rows = [tokens(n, length) for n, length in enumerate(lengths)]
    together = writer.write(rows, config)
    assert batches == [[3, 4], [20], [90, 100]]
    for n, row in enumerate(rows):  # in the order given
        assert (writer.write([row], config).positions[0] == together.positions[n]).all()
