"""What only a real model can show: the default models, from files to right answers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m3mlx import calibrate, demo
from m3mlx.models import decoder as models

pytestmark = [pytest.mark.slow, pytest.mark.model]
ROOT = Path(__file__).parents[1]
FACTS = {
    "history.pdf": ("Who founded Wrenmoor Observatory?", "Edda Tarnhall"),
    "volunteers.docx": ("Where is the spare key of the dome kept?", "blue teapot"),
    "welcome.md": ("What is the observatory cat called?", "Biscuit"),
    "exposure.py": ("What is the longest exposure time in seconds?", "240"),
}


def m3mlx(store: Path, *args: object, input: str | None = None) -> str:
    """Run the program in a process of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "m3mlx", *map(str, args)],
        env={**os.environ, "M3MLX_STORE": str(store)},
        cwd=ROOT,
        input=input,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store of the documents of the demo, one file of each kind that is asked about."""
    folder = tmp_path_factory.mktemp("real")
    for name in FACTS:
        (folder / "documents").mkdir(exist_ok=True)
        shutil.copy(demo.DATA / "demo" / name, folder / "documents")
    m3mlx(folder / "store", "memorize", folder / "documents")
    return folder / "store"


@pytest.mark.parametrize("name", FACTS)
def test_after_a_restart_the_right_document_is_named(store, name):
    question, words = FACTS[name]
    answer = json.loads(m3mlx(store, "ask", question, "--json", "--memories", 1))
    assert Path(answer["sources"][0]["path"]).name == name
    assert words in " ".join(source["text"] for source in answer["sources"])
    assert words in answer["answer"]


def test_without_memory_the_model_does_not_know(store):
    question, words = FACTS["welcome.md"]
    answer = json.loads(
        m3mlx(store, "ask", question, "--json", "--memory", "off", "--max-tokens", 32)
    )
    assert words not in answer["answer"] and answer["sources"] == []


def test_a_cold_start_gives_the_same_answer(store, tmp_path):
    cold = tmp_path / "store"
    m3mlx(cold, "memorize", store.parent / "documents", "--cold")
    ask = ("ask", FACTS["volunteers.docx"][0], "--json", "--max-tokens", 24)
    mine, theirs = json.loads(m3mlx(cold, *ask)), json.loads(m3mlx(store, *ask))
    assert mine["answer"] == theirs["answer"] and mine["sources"] == theirs["sources"]


def test_a_chat_remembers_documents_and_names_them(store):
    flags = ("--max-tokens", 24, "--memories", 1)  # of several it takes the wrong one
    said = m3mlx(store, "chat", *flags, input=FACTS["welcome.md"][0] + "\n")
    assert FACTS["welcome.md"][1] in said
    assert re.search(r"^\[From welcome\.md", said, re.M)


def test_the_adapter_that_comes_along_reads_memories_better():
    """On questions that share nothing with what it was trained on."""
    from m3mlx.config import Options
    from m3mlx.evaluate import How, evaluate, read_questions

    questions = read_questions(ROOT / "tests" / "data" / "questions.jsonl").limited(12)
    how = How(modes=("explicit",), answer_tokens=0)
    losses = []
    for path in ("none", None):
        options = Options(adapter_path=path)
        (row,) = evaluate(questions, options, how, budgets=("calibrated:8",)).rows
        losses.append(row.nll)
    assert losses[1] < losses[0]


def test_the_adapter_brings_the_calibration_that_is_its_own():
    """Nobody waits for one: of the default model it is found in the package."""
    decoder = models.load_decoder(adapter_path=models.adapter_folder(None, None))
    brought = calibrate._load(
        decoder.adapter_path / calibrate.CALIBRATION,
        {"weights": decoder.weights, "adapter": decoder.adapter},
    )
    assert brought, "run tools/make_calibration.py again: adapter, model or samples have changed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "_Measure", None)  # measuring would fail
        assert calibrate.calibrate(decoder).key_scale == brought["key_scale"]
