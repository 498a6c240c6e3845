"""Training runs of the tiny model: what is learned, and that a killed run is the same run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from tiny import save_encoder, save_model

from m3mlx import calibrate
from m3mlx.errors import M3Error
from m3mlx.models.decoder import load_decoder
from m3mlx.train import Settings, train
from m3mlx.train.loss import divergence
from m3mlx.train.settings import parse_budget


def questions(count, seed):
    rng = random.Random(seed)
    for i in range(count):
        name = "".join(rng.choice("abcdefgh") for _ in range(5))
        yield {
            "document": f"the key of {name} lies in box {i}. bring {rng.choice('abc')}.",
            "question": f"where is the key of {name}?",
            "answer": f"box {i}",
            "answers": [f"it lies in box {i}."],
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, an encoder and data; calibrations are made once."""
    folder = tmp_path_factory.mktemp("train")
    save_model(folder / "model")
    save_encoder(folder / "encoder")
    for name, seed, count in (("train", 1, 24), ("valid", 2, 6)):
        lines = [json.dumps(line) for line in questions(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(folder / "home"))
        # how sharply a random model should read is measured elsewhere, and takes long
        patch.setattr(calibrate._Measure, "loss", lambda self, *_, **__: 1.0)
        yield folder


def settings(place, output, **changes):
    return Settings(
        **{
            "data": (str(place / "train.jsonl"),),
            "output": str(output),
            "model": str(place / "model"),
            "encoder": str(place / "encoder"),
            "budgets": ("calibrated:4",),
            "references": 4,
            "rank": 4,
            "steps": 6,
            "learning_rate": 3e-3,
            "save_every": 2,
            **changes,
        }
    )


def losses(metrics):
    return [row["loss"] for row in metrics if "loss" in row]


def test_distilling_lowers_the_loss_on_held_out_questions(place, tmp_path):
    run = train(
        settings(place, tmp_path / "a", steps=16, valid=str(place / "valid.jsonl"), drop=0.0)
    )
    valid = [row["valid"] for row in run.metrics if "valid" in row]
    assert len(valid) == 2
    assert valid[1]["five"] < valid[0]["five"] - 0.3
    assert valid[1]["alone"] < valid[0]["alone"] - 0.3
    names = [name for name, _ in adapter(tmp_path / "a")]
    assert len(names) == 4 * 4 * 2 and all("lora_" in name for name in names)
    # the files that mlx-lm loads, and what they change
    decoder = load_decoder(str(place / "model"), adapter_path=tmp_path / "a")
    plain = load_decoder(str(place / "model"))
    assert decoder.adapter and not plain.adapter
    tokens = mx.array([[1, 2, 3]])
    assert float(mx.abs(decoder.model(tokens) - plain.model(tokens)).max()) > 1e-3
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["model"] == "model"  # its name, and not where it lies
    assert config["lora_parameters"]["rank"] == 4
    assert (tmp_path / "a" / "metrics.svg").read_text().startswith("<svg")
    assert Settings.load(tmp_path / "a").steps == 16


def test_a_run_is_deterministic_and_resumes(place, tmp_path):
    objectives = {"distill": 1.0, "keep": 0.5, "sft": 0.5, "lm": 0.5}
    whole = train(settings(place, tmp_path / "whole", objectives=objectives))

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 5:  # between two checkpoints
            raise Stop

    given = settings(place, tmp_path / "parts", objectives=objectives)
    with pytest.raises(Stop):
        train(given, report=stop)
    seen = []
    parts = train(given, report=lambda row: seen.append(row["step"]))
    assert seen == [5, 6]  # after the checkpoint of step 4
    assert losses(parts.metrics) == losses(whole.metrics)
    for one, two in zip(*(adapter(tmp_path / name) for name in ("whole", "parts")), strict=True):
        assert one[0] == two[0] and mx.array_equal(one[1], two[1])
    # once more: everything is done already
    assert losses(train(given).metrics) == losses(whole.metrics)


def adapter(folder):
    return sorted(mx.load(str(folder / "adapters.safetensors")).items())


@pytest.mark.slow
def test_a_run_that_is_killed_has_the_same_loss_curve(place, tmp_path):
    whole = train(settings(place, tmp_path / "whole", steps=12))
    command = [
        *(sys.executable, "-m", "m3mlx", "train", str(place / "train.jsonl")),
        *("--model", str(place / "model"), "--encoder", str(place / "encoder")),
        *("--output", str(tmp_path / "killed"), "--budget", "calibrated:4", "--references", "4"),
        *("--rank", "4", "--steps", "12", "--learning-rate", "3e-3", "--save-every", "2"),
    ]
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for kill_at in (3, 8):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(lines(metrics)) < kill_at:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in lines(metrics)]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert losses(rows) == losses(whole.metrics)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


VARIANTS = {
    "full weights": {"rank": 0, "learning_rate": 1e-3},
    "checkpoints": {"checkpoint": True},
    "detached": {"detach_memories": True},
    "quantized": {"codec": "k4v4"},
    "accumulated": {"accumulate": 3},
    "all parts": {"targets": "all"},
    "half the layers": {"budgets": ("half:4",)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_run_learn(place, tmp_path, name):
    run = train(
        settings(place, tmp_path, steps=8, objectives={"distill": 1.0}, drop=0.0, decay=0.0,
                 **VARIANTS[name])
    )  # fmt: skip
    found = [row["distill"] for row in losses(run.metrics)]
    assert np.mean(found[-3:]) < np.mean(found[:3])


def test_checkpointing_changes_nothing_but_the_memory_taken(place, tmp_path):
    one = train(settings(place, tmp_path / "a", steps=2))
    two = train(settings(place, tmp_path / "b", steps=2, checkpoint=True))
    for a, b in zip(losses(one.metrics), losses(two.metrics), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_detached_run_trains_reading_only(place, tmp_path):
    """Keys of the first layer's references get no gradient, so that results differ."""
    one = train(settings(place, tmp_path / "a", steps=2, objectives={"distill": 1.0}))
    two = train(
        settings(place, tmp_path / "b", steps=2, objectives={"distill": 1.0}, detach_memories=True)
    )
    assert one.metrics[0]["loss"] == two.metrics[0]["loss"]
    assert one.metrics[0]["gradient"] != pytest.approx(two.metrics[0]["gradient"], rel=1e-3)


def test_preferences_and_conversations_and_texts(place, tmp_path):
    path = tmp_path / "mixed.jsonl"
    samples = []
    for line in questions(8, 3):
        samples.append({"prompt": line["question"], "chosen": line["answer"],
                        "rejected": "no idea", "document": line["document"]})  # fmt: skip
        said = [line["question"], line["answer"], "sure?", "yes"]
        roles = ["user", "assistant"] * 2
        turns = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
        samples.append({"messages": turns})
        samples.append({"text": " ".join(f"{line['document']} {i}" for i in range(6))})
    path.write_text("\n".join(map(json.dumps, samples)))
    given = {"data": (str(path),), "beta": 1.0}
    run = train(settings(place, tmp_path / "a", steps=5, objectives={"dpo": 1.0}, **given))
    dpo = [row["dpo"] for row in losses(run.metrics)]
    assert dpo[0] == pytest.approx(np.log(2), rel=1e-3)  # before the first update both are alike
    assert dpo[-1] < dpo[0] - 0.05
    mixed = {"sft": 1.0, "lm": 1.0, "dpo": 1.0}
    run = train(
        settings(place, tmp_path / "b", steps=6, objectives=mixed, query="previous", **given)
    )
    assert {name for row in losses(run.metrics) for name in row} == set(mixed)


def test_warmup_reads_no_memory(place, tmp_path):
    run = train(
        settings(place, tmp_path, stage="warmup", objectives={"lm": 1.0, "sft": 1.0}, steps=2)
    )
    assert len(losses(run.metrics)) == 2
    with pytest.raises(M3Error, match="warmup reads no memories"):
        settings(place, tmp_path, stage="warmup")


def test_a_run_can_start_from_an_adapter(place, tmp_path):
    given = {"objectives": {"distill": 1.0}, "steps": 4, "drop": 0.0}
    first = train(settings(place, tmp_path / "a", **given))
    given["adapter_path"] = str(tmp_path / "a")
    file = tmp_path / "a" / "adapters.safetensors"
    halves = {name: x.astype(mx.float16) for name, x in mx.load(str(file)).items()}
    mx.save_safetensors(str(file), halves)  # as the adapter that comes with the default model
    second = train(settings(place, tmp_path / "b", **given))
    assert losses(second.metrics)[0]["distill"] < losses(first.metrics)[0]["distill"]
    with pytest.raises(M3Error, match="its weights are not those that learn here"):
        train(settings(place, tmp_path / "c", **{**given, "rank": 2}))
    with pytest.raises(M3Error, match="there is no adapter that can be read"):
        train(settings(place, tmp_path / "d", **{**given, "adapter_path": str(place)}))


# --- refusals


def test_a_folder_of_another_run_is_left_alone(place, tmp_path):
    train(settings(place, tmp_path / "a", steps=1))
    with pytest.raises(M3Error, match="a run of other settings lies here \\(seed\\)"):
        train(settings(place, tmp_path / "a", steps=1, seed=7))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("precious")
    with pytest.raises(M3Error, match="is not empty"):
        train(settings(place, tmp_path / "b"))
    assert os.listdir(tmp_path / "b") == ["thesis.txt"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(place, tmp_path):
    given = settings(place, tmp_path, steps=2, save_every=1)
    whole = train(given)
    last = tmp_path / "checkpoints" / "step-000002"
    content = (last / "weights.safetensors").read_bytes()
    (last / "weights.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(M3Error, match="step-000002"):
        train(given)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert losses(train(given).metrics) == losses(whole.metrics)


def test_a_run_that_does_not_fit_is_refused_before_it_starts(place, tmp_path, monkeypatch):
    monkeypatch.setattr("m3mlx.train.estimate.available", lambda: 1e5)
    with pytest.raises(M3Error, match="training would take about"):
        train(settings(place, tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_no_data_for_an_objective(place, tmp_path):
    with pytest.raises(M3Error, match="nothing to train dpo on"):
        train(settings(place, tmp_path, objectives={"dpo": 1.0}))


BAD = {
    "objectives": {"magic": 1.0},
    "steps": 0,
    "learning_rate": float("nan"),
    "drop": 1.5,
    "budgets": ("calibrated",),
    "query": "next",
    "codec": "k3v3",
    "rank": -1,
    "references": 0,
    "sequence_tokens": 1,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(place, tmp_path, name):
    with pytest.raises(M3Error, match=f"training setting {name}"):
        settings(place, tmp_path, **{name: BAD[name]})


def test_the_learning_rate_rises_stays_and_falls(place, tmp_path):
    given = settings(place, tmp_path, steps=100, warmup=0.1, decay=0.2, learning_rate=1.0)
    rates = [given.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and 0 < rates[0] < 0.1
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == sorted(rates[80:], reverse=True) and 0 < rates[-1] < 0.1
    assert replace(given, warmup=0, decay=0).rate(0) == 1.0


def test_budgets():
    assert parse_budget("half:8") == ("half", 8)
    assert parse_budget("auto") == ("calibrated", None)
    for bad in ("half", "half:", "half:0", "half:999", "third:8", ":8"):
        with pytest.raises(M3Error, match="is no budget"):
            parse_budget(bad)


# --- the divergence from the teacher


def test_divergence_is_kullback_leibler():
    rng = np.random.default_rng(0)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    teacher, own = (log_softmax(rng.normal(size=(5, 20))) for _ in range(2))
    everything = np.broadcast_to(np.arange(20), (5, 20))
    got = divergence(mx.array(own), everything, teacher.astype(np.float32))
    expected = (np.exp(teacher) * (teacher - own)).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    # the likeliest tokens and the rest as one: never more, and nothing where both agree
    ids = np.argsort(-teacher, axis=-1)[:, :6]
    likeliest = np.take_along_axis(teacher, ids, axis=-1)
    part = np.array(divergence(mx.array(own), ids, likeliest))
    assert (part <= expected + 1e-5).all() and (part > 0).all()
    same = divergence(mx.array(teacher), ids, likeliest)
    np.testing.assert_allclose(same, 0, atol=1e-5)
