"""The experiment on small models: its questions, and that its ways of asking are what they say."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import small_models  # noqa: E402

from m3mlx.config import no_progress  # noqa: E402
from m3mlx.train import Settings  # noqa: E402
from m3mlx.train.folder import begin  # noqa: E402


def test_each_answer_stands_in_one_document_of_its_group():
    for group in small_models.held_out(20):
        for question, answer in group[0].asked:
            fact = f"{question[:-1]} {answer}."
            assert fact in group[0].text
            name = question[:-1].split()[1]
            assert not any(name in notes.text.split() for notes in group[1:])


@pytest.mark.parametrize("config", ["HYBRID", "LLAMA"])
def test_whole_memories_and_states_equal_the_text(config, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    (tmp_path / "config.json").write_text(json.dumps(getattr(small_models, config)))
    small_models.write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "begun").mkdir()
    settings = Settings(data=("x",), output=str(tmp_path / "out"), stage="warmup",
                        init=str(tmp_path / "config.json"),
                        tokenizer=str(tmp_path / "tokenizer"))  # fmt: skip
    decoder = begin(settings, tmp_path / "begun", no_progress)
    found = small_models.Reader(decoder, small_models.held_out(6)).found
    text = [loss for loss, _ in found["the text"]]
    alike = {"HYBRID": "both where the text would be",
             "LLAMA": "its whole memory where the text would be"}  # fmt: skip
    assert [loss for loss, _ in found[alike[config]]] == pytest.approx(text, abs=1e-4)
    assert [loss for loss, _ in found["nothing"]] != pytest.approx(text, abs=1e-3)
    if config == "HYBRID":  # what the recurrent layers have not read is missing
        alone = [loss for loss, _ in found["its whole memory where the text would be"]]
        assert alone != pytest.approx(text, abs=1e-4)
