"""Several processes started by ``mlx.launch``: the same records and losses as one alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_encoder, save_model

from m3mlx.store import MemoryStore

pytestmark = pytest.mark.slow
DRIVER = """
import os
import m3mlx
from m3mlx.cli import main
from m3mlx.memory.format import MemoryFormat
from m3mlx.train.loop import Trainer

def dies(function, call):
    calls = []
    def wrapped(*arguments):
        calls.append(0)
        if len(calls) == call:
            os._exit(9)
        return function(*arguments)
    return wrapped

if os.environ.get("MLX_RANK") == os.environ.get("DIES"):
    MemoryFormat.write = dies(MemoryFormat.write, 3)
    Trainer._gradients = dies(Trainer._gradients, 4)
main()
"""
LAUNCH = Path(sys.executable).with_name("mlx.launch")
ANIMALS = ("owl", "cat", "bee", "elk", "fox", "gnu", "hen", "jay", "koi", "yak", "ant")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_model(folder / "model")
    save_encoder(folder / "encoder")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "notes").mkdir()
    for number, animal in enumerate(ANIMALS):
        text = f"the {animal} in box {number} eats. " * (1 + 7 * number)
        (folder / "notes" / f"{animal}.txt").write_text(text)
    lines = [
        {"document": f"box {i} holds {word}.", "question": f"what is in box {i}?", "answer": word}
        for i, word in enumerate(("a hat", "a cup", "a pen", "a map"))
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(place, ranks, *words, dies="none"):
    """Run m3mlx in so many processes; the rank named dies half-way."""
    command = [sys.executable, str(place / "driver.py"), *map(str, words)]
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = [sys.executable, str(LAUNCH), "-n", ranks, "--starting-port", port]
        command = [*map(str, launch), "--cwd", str(place), "--", *command]
    environment = os.environ | {
        "M3MLX_HOME": str(place / "home"),
        "M3MLX_MODEL": str(place / "model"),
        "DIES": dies,
    }
    return subprocess.run(
        command, env=environment, cwd=place, capture_output=True, text=True, timeout=120
    )


def memorize(place, ranks, store, dies="none"):
    return run(
        *(place, ranks, "memorize", "notes", "--store", store, "--encoder", place / "encoder"),
        *("--tokens-per-head", 4, "--budget", "uniform"),
        dies=dies,
    )


def records(store):
    """Record of each text that has one."""
    with MemoryStore.open(store) as opened:
        warm = sorted({*opened.slots(-1, 1000)} - {*opened.cold(-1, 1000)})
        texts = [reference.text for reference in opened.references(warm)]
        return dict(zip(texts, map(bytes, opened.read(warm)), strict=True))


def train(place, ranks, output, accumulate, dies="none"):
    return run(
        *(place, ranks, "train", "train.jsonl", "--output", output, "--encoder", place / "encoder"),
        *("--budget", "uniform:4", "--steps", 4, "--accumulate", accumulate, "--save-every", 1),
        *("--references", 2, "--objective", "distill=1", "--objective", "keep=1"),
        dies=dies,
    )


def losses(output):
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["gradient"], row["tokens"]) for row in rows]


@pytest.fixture(scope="module")
def alone(place):
    done = memorize(place, 1, "alone")
    assert done.returncode == 0, done.stderr
    found = records(place / "alone")
    assert len(found) > 20
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_write_the_records_of_one_process(place, alone, ranks):
    done = memorize(place, ranks, f"shared-{ranks}")
    assert done.returncode == 0, done.stderr
    assert records(place / f"shared-{ranks}") == alone
    assert done.stdout.count("memories written") == 1  # rank 0 alone talks


def test_after_the_death_of_a_rank_the_same_command_goes_on(place, alone):
    memorize(place, 2, "killed", dies="1")
    first = records(place / "killed")
    assert 0 < len(first) < len(alone)
    assert memorize(place, 2, "killed").returncode == 0
    assert records(place / "killed") == alone


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one_process_does(place, ranks):
    one = train(place, 1, f"one-{ranks}", ranks)
    shared = train(place, ranks, f"all-{ranks}", ranks)
    assert one.returncode == shared.returncode == 0, one.stderr + shared.stderr
    for ours, theirs in zip(
        losses(place / f"one-{ranks}"), losses(place / f"all-{ranks}"), strict=True
    ):
        assert (ours[0], ours[3]) == (theirs[0], theirs[3])
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5, abs=1e-6)
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4, abs=1e-6)


def test_a_training_run_goes_on_after_the_death_of_a_rank(place):
    whole, killed = place / "whole", place / "cut"
    assert train(place, 2, whole, 2).returncode == 0
    train(place, 2, killed, 2, dies="1")
    assert 0 < len(losses(killed)) < 4
    assert train(place, 2, killed, 2).returncode == 0
    for ours, theirs in zip(losses(whole), losses(killed), strict=True):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5, abs=1e-6)


def test_uneven_shares_of_a_step_are_refused(place):
    done = train(place, 2, "uneven", 3)
    assert "accumulate is 3, which 2 processes cannot share" in done.stdout + done.stderr
    assert not (place / "uneven").exists()
