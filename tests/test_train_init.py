"""Training of all weights, from random ones: what is written, that it resumes, what is refused."""

import json
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import byte_tokenizer, save_encoder, tiny_config

from m3mlx import Assistant
from m3mlx.config import MEMORY_FILE, MemorySettings, no_progress
from m3mlx.errors import M3Error
from m3mlx.models.decoder import load_decoder
from m3mlx.train import Settings, train
from m3mlx.train.folder import begin
from m3mlx.train.loop import Trainer

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}


def samples(count, seed=0):
    rng = random.Random(seed)
    for i in range(count):
        name, box = "".join(rng.sample("abcdefgh", 4)), f"box {i}"
        question = f"where is {name}?"
        yield {"document": f"{name} is in {box}.", "question": question, "answer": box}
        yield {"text": f"{name} is in {box}. {question} {box}. " * 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    save_encoder(folder / "encoder")
    byte_tokenizer(folder / "bytes")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, samples(12))))
    write_config(folder / "config.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(folder / "home"))
        yield folder


def write_config(path, family="llama", **changes):
    path.write_text(json.dumps(tiny_config(family, **SMALL | {"vocab_size": 300} | changes)))
    return path


def settings(place, output, **changes):
    return Settings(
        **{
            "data": (str(place / "train.jsonl"),),
            "output": str(output),
            "init": str(place / "config.json"),
            "encoder": str(place / "encoder"),
            "stage": "warmup",
            "objectives": {"lm": 1.0, "sft": 1.0},
            "references": 4,
            "steps": 4,
            "learning_rate": 3e-3,
            "save_every": 2,
            **changes,
        }
    )


def weights(folder):
    return sorted(mx.load(str(Path(folder) / "model.safetensors")).items())


def differing(one, two):
    """Names of the weights that differ between two folders."""
    pairs = zip(weights(one), weights(two), strict=True)
    return {a[0] for a, b in pairs if a[0] != b[0] or not mx.array_equal(a[1], b[1])}


def losses(report):
    return [row["loss"] for row in report.metrics if "loss" in row]


def stopped(given, at):
    """Begin a run and stop it after a step, as an outage would."""

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == at:
            raise Stop

    with pytest.raises(Stop):
        train(given, report=stop)


def test_the_two_stages_make_a_model_that_an_assistant_uses(place, tmp_path):
    warm, done = tmp_path / "warm", tmp_path / "done"
    # the warm-up compares no texts, so it needs no encoder
    train(settings(place, warm, encoder="none-such"))
    plain = load_decoder(str(warm))
    assert plain.trained is None and plain.tokenizer.eos_token == "</s>"
    continual = {"stage": "continual", "init": str(warm)}
    train(settings(place, done, **continual))
    decoder = load_decoder(str(done))
    assert decoder.trained == MemorySettings(memory_layers=(0,), prefix="<s>Reference:")
    assert decoder.template.prefix[0] == decoder.tokenizer.bos_token_id
    names = {name for name, _ in weights(done)}
    assert differing(warm, done) == names, "every weight is trained"
    # where the memory settings come from the folder, and memories are read as they were trained
    note = tmp_path / "note.txt"
    note.write_text("abcd is in box 7.")
    with Assistant(model=str(done), store=tmp_path / "store", encoder=str(place / "encoder")) as a:
        a.memorize([note])
        assert a.format.config.counts == ((8, 8), (0, 0))
        assert a.ask("where is abcd?", max_tokens=2).sources
    # a warm-up of a model with memories is an ordinary model again
    train(settings(place, tmp_path / "again", init=str(done), steps=1))
    assert not (tmp_path / "again" / MEMORY_FILE).exists()


@pytest.mark.parametrize("stage", ["warmup", "continual"])
def test_a_run_resumes_bit_for_bit(place, tmp_path, stage):
    given = {"stage": stage, "budgets": ("uniform:4",)}
    whole = train(settings(place, tmp_path / "whole", **given))
    stopped(settings(place, tmp_path / "parts", **given), 3)  # between two checkpoints
    parts = train(settings(place, tmp_path / "parts", **given))
    assert losses(parts) == losses(whole)
    assert not differing(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_was_stopped_before_its_first_checkpoint_keeps_its_tokenizer(place, tmp_path):
    given = settings(place, tmp_path / "a", save_every=0)
    stopped(given, 1)
    before = (tmp_path / "a" / "tokenizer.json").read_bytes()
    train(given)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == before


def test_random_weights_depend_on_the_seed_alone(place, tmp_path):
    def begun(name, seed):
        (tmp_path / name).mkdir()
        begin(settings(place, tmp_path / "out", seed=seed), tmp_path / name, no_progress)
        return tmp_path / name

    one, same, other = begun("one", 1), begun("same", 1), begun("other", 2)
    assert not differing(one, same)
    assert "model.embed_tokens.weight" in differing(one, other)


def trainer(place, tmp_path, **changes):
    (tmp_path / "begun").mkdir()
    given = settings(place, tmp_path / "out", stage="continual", objectives={"sft": 1.0}, **changes)
    return Trainer(given, begin(given, tmp_path / "begun", no_progress), no_progress)


@pytest.mark.parametrize("detached", [False, True])
def test_gradients_reach_the_embeddings_through_memories(place, tmp_path, detached):
    """Untied embeddings of tokens that stand in references only learn through memories alone."""
    config = write_config(tmp_path / "c.json", tie_word_embeddings=False)
    run = trainer(place, tmp_path, init=str(config), drop=0.0, detach_memories=detached,
                  budgets=("uniform:64",))  # fmt: skip
    batch = run.loader.batch(0)
    said = {token for sequence in batch.sequences for token in sequence}
    only = sorted({token for tokens in batch.references for token in tokens} - said)
    gradients = run._gradients(0)[2]["model"]
    learned = np.abs(np.array(gradients["embed_tokens"]["weight"])).sum(axis=1)
    assert only and (learned[only] == 0).all() == detached
    assert (learned[sorted(said)] > 0).all()
    assert {"embed_tokens", "layers", "norm"} <= set(gradients)


def test_tokens_are_chosen_by_the_weights_of_each_step(place, tmp_path):
    run = trainer(place, tmp_path)
    before = run.loader.batch(0).scores
    head = run.model.layers[0].self_attn.q_proj
    head.weight = -head.weight
    after = run.loader.batch(0).scores
    assert not np.allclose(before[:, 0], after[:, 0])
    assert before.shape[1] == 2 and not before[:, 1].any()  # the second half is not computed


def test_documents_stand_in_the_context_of_the_warm_up(place, tmp_path):
    (tmp_path / "begun").mkdir()
    given = settings(place, tmp_path / "out", objectives={"sft": 1.0}, drop=0.0)
    run = Trainer(given, begin(given, tmp_path / "begun", no_progress), no_progress)
    batch = run.loader.batch(0)
    references = set(run.loader.corpus.references)
    assert batch.references == [] and batch.reads == [[]] * 4
    for sequence, wanted in zip(batch.sequences, batch.wanted, strict=True):
        found = next(r for r in references if sequence[: len(r)] == r)
        asked = run.template.decode(sequence[len(found) : wanted[0]])
        assert asked.strip().startswith("where is ")


@pytest.mark.parametrize("source", ["the data", "a folder"])
def test_the_tokenizer_is_trained_or_taken(place, tmp_path, source):
    given = {"tokenizer": str(place / "bytes")} if source == "a folder" else {}
    train(settings(place, tmp_path / "a", steps=1, **given))
    decoder = load_decoder(str(tmp_path / "a"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["eos_token_id"] == decoder.tokenizer.eos_token_id
    text = "Straße, 北京: abcd is in box 7."
    tokens = decoder.template.encode(text)
    assert decoder.template.decode(tokens) == text
    assert (len(tokens) < len(text.encode())) == (source == "the data")


def test_a_hybrid_learns(place, tmp_path):
    config = write_config(tmp_path / "c.json", "granitemoehybrid", num_local_experts=None,
                          mamba_n_heads=4, layer_types=["mamba", "attention"])  # fmt: skip
    given = {"init": str(config), "budgets": ("uniform:4",), "objectives": {"sft": 1.0}}
    train(settings(place, tmp_path / "a", **given))
    train(settings(place, tmp_path / "b", **given | {"init": str(tmp_path / "a")},
                   stage="continual"))  # fmt: skip
    names = {name.split(".", 3)[-1] for name in differing(tmp_path / "a", tmp_path / "b")}
    assert {"mamba.A_log", "mamba.conv1d.weight", "self_attn.k_proj.weight"} <= names


# --- refusals


CONFIGS = {
    "no json": ("{", "cannot be read as a config.json"),
    "no file": (None, "cannot be read as a config.json"),
    "no object": ("[1]", "names no model_type"),
    "no type": ("{}", "names no model_type"),
    "no vocabulary": ('{"model_type": "llama"}', "has no vocab_size"),
    "few tokens": ({"vocab_size": 200}, "a tokenizer of bytes needs 258"),
    "unknown": ({"model_type": "perceptron"}, "makes no model of it .*perceptron not supported"),
    "incomplete": ({"rms_norm_eps": ...}, "makes no model of it .*rms_norm_eps"),
    "uneven heads": ({"num_key_value_heads": 3}, "c.json"),
    "too large": ({"hidden_size": 2**16, "intermediate_size": 2**20}, "write a smaller one"),
    "no attention": ({"model_type": "mamba"}, "c.json"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_one_sentence_and_leaves_nothing(place, tmp_path, name):
    content, said = CONFIGS[name]
    path = tmp_path / "c.json"
    if isinstance(content, dict):
        config = tiny_config("llama", **SMALL | {"vocab_size": 300} | content)
        content = json.dumps({key: value for key, value in config.items() if value is not ...})
    if content is not None:
        path.write_text(content)
    with pytest.raises(M3Error, match=said) as caught:
        train(settings(place, tmp_path / "out", init=str(path)))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_must_fit_the_config(place, tmp_path):
    config = write_config(tmp_path / "c.json", vocab_size=259)
    given = settings(place, tmp_path / "out", init=str(config), tokenizer=str(place / "bytes"))
    with pytest.raises(M3Error, match="set vocab_size to 260 or more"):
        train(given)
    with pytest.raises(M3Error, match=r"has no tokenizer\.json"):
        train(settings(place, tmp_path / "out", tokenizer=str(tmp_path)))


REFUSED = {
    "objectives": {"objectives": {"distill": 1.0}, "stage": "continual"},
    "budgets": {"budgets": ("calibrated:4",)},
    "init": {"model": "some-model"},
    "tokenizer": {"init": None, "tokenizer": "some-folder"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_together_are_named(place, tmp_path, name):
    with pytest.raises(M3Error, match=f"training setting {name}"):
        settings(place, tmp_path, **REFUSED[name])
