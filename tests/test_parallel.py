"""One pass for a batch of sequences, against conversations that go chunk by chunk."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny import FAMILIES, KINDS, tiny_model

from m3mlx.config import CHUNK_TOKENS, MemoryConfig
from m3mlx.errors import ModelError
from m3mlx.memory.cache import Layout, make_cache, read_prefix
from m3mlx.memory.codec import Memory
from m3mlx.memory.parallel import logits_with_memories
from m3mlx.memory.write import Writer, write_traced
from m3mlx.models.decoder import MemoryLayer, geometry_of
from m3mlx.models.hooks import gradient_checkpoints

PREFIX, RECITE = (256, 7, 30, 11), (9, 8)
LENGTH = 24  # of references here
RAGGED = ((3, 0), (0, 0), (7, 2), (1, 5))


def tokens(seed, length):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


REFERENCES = [tokens(i, n) for i, n in enumerate((24, 20, 5, 24, 1, 11))]
# each chunk reads its own and the four before it; one sequence reads nothing, one always the same
SEQUENCES = [tokens(20, 3 * CHUNK_TOKENS + 9), tokens(21, 70), tokens(22, 30)]
READS = [[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]], [], [[4, 5]]]


def config(counts=RAGGED, model=None, **changes):
    layers = geometry_of(model) if model else [MemoryLayer(4, 2, 16, 16)] * 4
    return MemoryConfig(
        "reconstruction",
        "calibrated",
        tuple(counts[n][: layer.kv_heads] for n, layer in enumerate(layers)),
        prefix=PREFIX,
        key_bits=16,
        value_bits=16,
        reference_tokens=LENGTH,
        **MemoryConfig.lengths([(layer.key_dim, layer.value_dim) for layer in layers]),
        **changes,
    )


def one_by_one(model, prefix, settings, memory, sequence, chunks):
    """Logits of one sequence as a conversation computes them."""
    caches, layout, logits = make_cache(model, prefix), Layout(settings), []
    for start in range(0, len(sequence), CHUNK_TOKENS):
        if chunks:
            seen = chunks[min(start // CHUNK_TOKENS, len(chunks) - 1)]
            layout.attach(caches, memory.take(seen))
        logits.append(model(mx.array([sequence[start : start + CHUNK_TOKENS]]), cache=caches)[0])
    return mx.concatenate(logits)


@pytest.mark.parametrize("counts", [RAGGED, ((3, 3),) * 4], ids=["ragged", "uniform"])
@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
def test_one_pass_equals_the_loop_over_chunks(family, counts):
    if family == "llama4":
        pytest.skip("it takes one position for all sequences, see below")
    # a window that memories and prefix leave while the sequence goes on
    model = tiny_model(family, **({"sliding_window": 100} if family == "gemma3_text" else {}))
    latent = any(layer.latent for layer in geometry_of(model))
    settings = config(counts, model, key_scale=1.0 if latent else 1.2)
    prefix = read_prefix(model, PREFIX)
    memory = Writer(model, prefix, RECITE).write(REFERENCES, settings)
    wanted = [range(len(row)) for row in SEQUENCES]
    got = logits_with_memories(model, prefix, settings, SEQUENCES, memory, READS, wanted)
    assert got.shape == (sum(map(len, SEQUENCES)), 260)
    start = 0
    for sequence, chunks in zip(SEQUENCES, READS, strict=True):
        expected = one_by_one(model, prefix, settings, memory, sequence, chunks)
        part = got[start : start + len(sequence)]
        np.testing.assert_allclose(part, expected, atol=2e-4)
        start += len(sequence)


def test_a_model_that_takes_one_position_reads_sequences_that_begin_at_one():
    model = tiny_model("llama4")
    settings, prefix = config(RAGGED, model), read_prefix(model, PREFIX)
    memory = Writer(model, prefix, RECITE).write(REFERENCES, settings)
    everything = [range(len(row)) for row in SEQUENCES]
    with pytest.raises(ModelError, match="at one position only"):
        logits_with_memories(model, prefix, settings, SEQUENCES, memory, READS, everything)
    rows, reads = SEQUENCES[::2], READS[::2]
    got = logits_with_memories(model, prefix, settings, rows, memory, reads, everything[::2])
    pairs = zip(rows, reads, strict=True)
    expected = [one_by_one(model, prefix, settings, memory, *pair) for pair in pairs]
    np.testing.assert_allclose(got, mx.concatenate(expected), atol=2e-4)


def test_only_the_places_wanted_are_returned_in_order():
    model = tiny_model()
    prefix, settings = read_prefix(model, PREFIX), config()
    memory = Writer(model, prefix, RECITE).write(REFERENCES, settings)
    everything = [range(len(row)) for row in SEQUENCES]
    whole = logits_with_memories(model, prefix, settings, SEQUENCES, memory, READS, everything)
    places = [[3, 100], [], [29]]
    part = logits_with_memories(model, prefix, settings, SEQUENCES, memory, READS, places)
    rows = [3, 100, sum(map(len, SEQUENCES)) - 1]
    np.testing.assert_allclose(part, whole[mx.array(rows)], atol=1e-4)


def test_whole_memories_right_before_a_sequence_are_the_text_itself():
    model = tiny_model()
    whole = config(((LENGTH, LENGTH),) * 4)
    prefix = read_prefix(model, PREFIX)
    memory = Writer(model, prefix, RECITE).write(REFERENCES[:3], whole)
    lengths = [len(row) for row in REFERENCES[:3]]
    wanted = [range(len(row)) for row in SEQUENCES]
    got = logits_with_memories(
        model, prefix, whole, SEQUENCES, memory, [[[0]], [[1]], [[2]]], wanted,
        offsets=[len(PREFIX) + length for length in lengths],
    )  # fmt: skip
    start = 0
    for reference, sequence in zip(REFERENCES, SEQUENCES, strict=False):
        expected = model(mx.array([[*PREFIX, *reference, *sequence]]))[0, -len(sequence) :]
        np.testing.assert_allclose(got[start : start + len(sequence)], expected, atol=2e-4)
        start += len(sequence)


# --- gradients


class Step:
    """One training step's loss on the tiny model: write, read, next token."""

    def __init__(self, model, counts=RAGGED):
        self.model, self.settings = model, config(counts, model, key_scale=1.2)
        self.prefix = read_prefix(model, PREFIX)
        self.scores = Writer(model, self.prefix, RECITE).score(REFERENCES, "reconstruction")[0]
        self.wanted = [range(len(row) - 1) for row in SEQUENCES]
        self.targets = mx.array([t for row in SEQUENCES for t in row[1:]])

    def write(self):
        return write_traced(self.model, self.prefix, REFERENCES, self.scores, self.settings.counts)

    def read(self, memory):
        logits = logits_with_memories(
            self.model, self.prefix, self.settings, SEQUENCES, memory, READS, self.wanted
        )
        return nn.losses.cross_entropy(logits, self.targets).mean()

    def loss(self):
        return self.read(self.write())

    def loop_loss(self):
        """The same by conversations, chunk by chunk."""
        memory = self.write()
        logits = [
            one_by_one(self.model, self.prefix, self.settings, memory, row, chunks)[:-1]
            for row, chunks in zip(SEQUENCES, READS, strict=True)
        ]
        return nn.losses.cross_entropy(mx.concatenate(logits), self.targets).mean()

    def gradients(self, loss=None):
        value, gradients = nn.value_and_grad(self.model, loss or self.loss)()
        return value, dict(tree_flatten(gradients))


def close(a, b, relative=1e-3):
    assert a.keys() == b.keys()
    for name in a:
        scale = float(mx.abs(b[name]).max()) + 1e-6
        error = float(mx.abs(a[name] - b[name]).max())
        assert error < relative * scale + 1e-6, (name, error, scale)


def test_traced_writing_equals_the_writer():
    step = Step(tiny_model())
    traced = step.write()
    written = Writer(step.model, step.prefix, RECITE).write(REFERENCES, step.settings)
    assert (traced.positions == written.positions).all()
    real = mx.array(traced.positions != 255)[..., None]
    np.testing.assert_allclose(traced.keys * real, written.keys * real, atol=1e-5)
    np.testing.assert_allclose(traced.values * real, written.values * real, atol=1e-5)


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "qwen3"])
def test_gradients_equal_those_of_the_loop_over_chunks(family):
    step = Step(tiny_model(family))
    value, gradients = step.gradients()
    expected_value, expected = step.gradients(step.loop_loss)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    close(gradients, expected)


def test_gradients_through_writing_and_reading_equal_finite_differences():
    step = Step(tiny_model())
    _, gradients = step.gradients()
    parts = ("0.self_attn.k_proj", "1.self_attn.v_proj", "2.mlp.up_proj", "3.self_attn.q_proj")
    names = [f"model.layers.{part}.weight" for part in parts]
    weights = dict(tree_flatten(step.model.parameters()))
    rng = np.random.default_rng(0)
    for name in names:
        way = mx.array(rng.normal(size=weights[name].shape).astype(np.float32))
        losses = []
        for sign in (1, -1):
            step.model.load_weights([(name, weights[name] + sign * 2e-3 * way)], strict=False)
            losses.append(step.loss().item())
        step.model.load_weights([(name, weights[name])], strict=False)
        slope = (losses[0] - losses[1]) / 4e-3
        assert slope == pytest.approx(float((gradients[name] * way).sum()), rel=3e-2, abs=2e-3), (
            name
        )


def test_every_weight_below_a_kept_key_learns_from_reading():
    """Without a gradient into the writing pass, only the reading would teach."""
    step = Step(tiny_model())
    _, whole = step.gradients()

    def detached():
        memory = step.write()
        return step.read(
            Memory(mx.stop_gradient(memory.keys), mx.stop_gradient(memory.values), memory.positions)
        )

    _, reading = step.gradients(detached)
    for layer in (0, 2):
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert float(mx.abs(whole[name] - reading[name]).max()) > 1e-4


@pytest.mark.parametrize(
    ("family", "lora"),
    [pytest.param("llama", False, marks=pytest.mark.slow), ("llama", True)]
    + [(family, True) for family in ("lfm2", "gemma4_text", "deepseek_v3")],
)
def test_checkpoints_change_no_gradient(family, lora):
    model = tiny_model(family)
    if lora:
        model.freeze()
        keys = [f"self_attn.{name}_proj" for name in "qkvo"]
        linear_to_lora_layers(model, 4, {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys})
        model.apply_to_modules(
            lambda name, module: (
                "lora_b" in module
                and module.update({"lora_b": 0.1 * mx.random.normal(module.lora_b.shape)})
            )
        )
    step = Step(model)
    value, expected = step.gradients()
    with gradient_checkpoints(model):
        again, gradients = step.gradients()
    assert float(value) == pytest.approx(float(again), rel=1e-6)
    close(gradients, expected, 1e-4)
    assert len(gradients) == len(tree_flatten(model.trainable_parameters()))
    assert all(mx.any(x != 0).item() for name, x in gradients.items() if "lora_a" in name)
