"""The commands train and fuse: what they print, write and refuse, and that its result is used."""

import json

import pytest
from click.testing import CliRunner
from tiny import byte_tokenizer, save_encoder, save_model, tiny_config

from m3mlx import calibrate
from m3mlx.cli import main
from m3mlx.text import scrub_line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_model(folder / "model")
    save_encoder(folder / "encoder")
    lines = [
        {"document": f"box {i} holds {word}.", "question": f"what is in box {i}?", "answer": word}
        for i, word in enumerate(("a hat", "a cup", "a pen", "a map"))
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        # how sharply a random model should read is measured elsewhere, and takes long
        patch.setattr(calibrate._Measure, "loss", lambda self, *_, **__: 1.0)
        yield folder


def run(place, *words):
    environment = {"M3MLX_HOME": str(place / "home"), "M3MLX_MODEL": str(place / "model")}
    return CliRunner().invoke(main, list(map(str, words)), env=environment)


def train(place, output, *words):
    quick = ("--encoder", place / "encoder", "--budget", "uniform:4", "--steps", "2")
    data = place / "train.jsonl"
    return run(place, "train", data, "--output", output, *quick, *words)


def test_a_model_is_trained_fused_and_asked(place, tmp_path):
    dry = train(place, tmp_path / "adapter", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "of memory and" in dry.stderr and not dry.stdout
    assert not (tmp_path / "adapter").exists()
    done = train(place, tmp_path / "adapter", "--valid", place / "train.jsonl")
    assert done.exit_code == 0, done.stderr
    assert "step 2 of 2: " in done.stderr and "held-out questions: off " in done.stderr
    assert scrub_line(str(tmp_path / "adapter")) in done.stdout
    again = train(place, tmp_path / "adapter", "--valid", place / "train.jsonl", "--json")
    data = json.loads(again.stdout)
    assert data["steps"] == 2 and [row["step"] for row in data["metrics"]] == [0, 1, 2, 2]
    fused = run(place, "fuse", tmp_path / "adapter", tmp_path / "fused", "--json")
    assert json.loads(fused.stdout) == {"output": str(tmp_path / "fused")}
    # memories of the adapter are its own: the store names the difference
    (tmp_path / "note.txt").write_text("the hat is in the box.")
    common = ("--store", tmp_path / "store", "--encoder", place / "encoder")
    given = ("--adapter-path", tmp_path / "adapter")
    made = run(place, "memorize", tmp_path / "note.txt", *common, *given, "--tokens-per-head", 4)
    assert made.exit_code == 0, made.stderr
    asked = ("ask", "where is the hat?", "--max-tokens", 2, *common)
    assert run(place, *asked, *given).exit_code == 0
    refused = run(place, *asked)
    assert refused.exit_code == 1 and "another adapter" in refused.stderr


def test_a_model_is_made_from_a_config(place, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config("llama")))
    byte_tokenizer(tmp_path / "bytes")
    given = ("--init", config, "--tokenizer", tmp_path / "bytes", "--objective", "sft")
    dry = train(place, tmp_path / "model", *given, "--dry-run")
    assert dry.exit_code == 0 and "of memory and" in dry.stderr and "teacher" not in dry.stderr
    assert not (tmp_path / "model").exists()
    done = train(place, tmp_path / "model", *given)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("The model is in ")
    settings = json.loads((tmp_path / "model" / "memory.json").read_text())
    assert settings["memory_layers"] == [0, 1, 2, 3] and settings["tokens_per_head"] == 4
    config.write_text('{"model_type": "none"}')
    bad = train(place, tmp_path / "other", *given)
    assert bad.exit_code == 1 and len(bad.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "0"), "setting steps: is at least 1"),
        (("--objective", "magic"), "setting objectives"),
        (("--objective", "distill=much"), "'distill=much' is not NAME=SHARE"),
        (("--budget", "third:8"), "third:8 is no budget"),
        (("--stage", "warmup"), "warmup reads no memories"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--init", "c.json", "--objective", "keep"), "keep needs a model that can teach"),
        (("--tokenizer", "t"), "is for a model from random weights"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(place, tmp_path, words, said):
    result = train(place, tmp_path / "adapter", *words)
    assert result.exit_code == 2 and said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bad_data_is_one_line_and_exit_code_1(place, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"question": "?"}\n')
    result = run(place, "train", tmp_path / "bad.jsonl", "--output", tmp_path / "out")
    assert result.exit_code == 1 and "bad.jsonl, line 2" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(place, "fuse", tmp_path / "none", tmp_path / "out")
    assert result.exit_code == 1 and "is no adapter" in result.stderr
