"""Edits: each told as a sentence, asked for in blocks, and gone on with where a run stopped."""

import json

import pytest
import tiny
from click.testing import CliRunner

from m3mlx.cli import main
from m3mlx.errors import M3Error
from m3mlx.evaluate import Edit, edits, read_edits
from m3mlx.evaluate.edits import sentence


@pytest.mark.parametrize(
    ("question", "subject", "told"),
    [
        ("What is the colour of Mona Boat?", "Mona Boat", "The colour of Mona Boat is X."),
        ("What is Mona Boat named after?", "Mona Boat", "Mona Boat is named after X."),
        ("What  was Mona's trade?", "Mona", "Mona's trade was X."),
        ("Which port did Mona leave?", "Mona", "The port that Mona did leave is X."),
        ("In which port is Mona?", "Mona", "The port in which Mona is is X."),
        ("When was Mona built?", "Mona", "Mona was built in X."),
        ("Who built Mona?", "Mona", "X built Mona."),
        ("Which yard was used for Mona?", "Mona", "X is the yard that was used for Mona."),
        ("Mona, by whom?", "Mona", "The answer to “Mona, by whom?” is X."),
        ("Who (or what) built M+?", "M+", "X (or what) built M+."),
        ("Who built it?", "{s}", "The answer to “Who built it?” is X."),
    ],
)
def test_a_question_and_its_answer_make_a_sentence(question, subject, told):
    assert sentence(question, subject, "X") == told


def case(n, new="red"):
    return {
        "subject": f"Boat {n}",
        "question": f"What is the colour of Boat {n}?",
        "rephrase": f"Which colour has Boat {n}?",
        "old": ["blue"],
        "new": new,
        "unrelated": f"Who found the moon {n}?",
        "unrelated_answer": "nobody",
    }


@pytest.fixture
def file(tmp_path):
    lines = [case(1), case(2, ""), case(3, "green")]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "edits.jsonl"


def test_edits_are_read_and_broken_ones_named(file, tmp_path):
    read = read_edits(file)
    known = {name: text for name, text in case(1).items() if name in vars(read[0])}
    assert read[0] == Edit(**{**known, "old": ("blue",)})
    for broken in ({"subject": ""}, {"old": []}, {"old": "blue"}, {"new": None}):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(json.dumps({**case(1), **broken}))
        with pytest.raises(M3Error, match="line 1: expected a JSON object with an edit"):
            read_edits(bad)


def test_edits_are_told_and_asked_for_once(file, tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "decoder")
    tiny.save_encoder(tmp_path / "encoder")
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M3MLX_MODEL", str(tmp_path / "decoder"))
    words = ["eval", file, "--task", "edits", "--keep", tmp_path / "kept", "--answer-tokens", 4]
    words += ["--encoder", tmp_path / "encoder", "--budget", "uniform:4", "--json"]
    first = CliRunner().invoke(main, list(map(str, words)))
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)
    assert [row["n"] for row in told["rows"]] == [2] * 6 and "1 without" in told["explanation"]
    assert [row["question"] for row in told["rows"]][-1] == "unrelated, after"
    assert told["rows"][1]["found"].startswith("100.0%")  # of two facts both are read
    kept = (tmp_path / "kept" / "results.jsonl").read_text()
    assert len(kept.splitlines()) == 12
    again = CliRunner().invoke(main, list(map(str, words)))
    assert again.stdout == first.stdout
    assert (tmp_path / "kept" / "results.jsonl").read_text() == kept


def test_edits_need_answers():
    with pytest.raises(M3Error, match="answer-tokens"):
        edits(None, [], answer_tokens=0)
    with pytest.raises(M3Error, match="no edit"):
        edits(None, [Edit("s", "q", "r", ("o",), " ", "u")])
