"""Questions about natural text: whole passages, none of an evaluation, nothing given away."""

import gzip
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import make_natural_questions as maker

FERRY = "The ferry to Holm leaves at nine. It was built in 1931 by the brothers Aas of Bergen."


@pytest.fixture
def avoided(tmp_path):
    """Of a set in one JSON object, another in lines, and titles."""
    often = "The harbour is old. The harbour is deep. " * 60
    whole = {"documents": [{"path": "1", "document": often}], "questions": [{"answers": [FERRY]}]}
    (tmp_path / "whole.json.gz").write_bytes(gzip.compress(json.dumps(whole).encode()))
    lines = [{"title": "Kelp"}, {"subject": "Anna Aas", "old": ["cook"]}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "titles.txt").write_text("Black Death\n")
    return maker.Avoided([tmp_path / n for n in ("whole.json.gz", "lines.jsonl", "titles.txt")])


@pytest.mark.parametrize("title", ["kelp", "Kelp (plant)", "Anna Aas", "Black Death", "Harbour"])
def test_passages_named_as_those_of_an_evaluation_are_dropped(avoided, title):
    assert avoided(title, "A text of its own.")


def test_passages_that_share_eight_words_in_a_row_are_dropped(avoided):
    assert avoided("", "Later: it was BUILT in 1931, by the brothers; and sold.")
    assert not avoided("Ferry", "It was built in 1931 by the sisters of Bergen in one winter.")


def test_a_text_is_cut_between_sentences_and_nothing_but_prose_is_taken():
    sentence = (
        "This sentence about the ferry goes on until it has about ninety characters in all, so."
    )
    text = f"Heading\n\n{' '.join([sentence] * 20)}\n\n| a | table |\n\nx = 1\n"
    parts = list(maker._parts(text))
    assert all(len(part) <= maker.MOST and part.endswith("so.") for part in parts)
    assert sum(part.count("This sentence") for part in parts) >= 18


def test_titles_of_a_dictionary_stand_before_their_entries(tmp_path):
    entry = "   <web> A {ferry} goes to Holm " + "every day of the week " * 12 + "in summer.\n"
    path = tmp_path / "words.dict.dz"
    path.write_bytes(gzip.compress(f"ferry\n\n{entry}\n   (1994-11-08)\n".encode()))
    [(title, text)] = maker.passages(path)
    assert title == "ferry" and text.startswith("ferry. A ferry goes to Holm")


@pytest.mark.parametrize(
    "question, answer",
    [
        ("When was the ferry to Holm built?", "1932"),  # stands nowhere
        ("Who built the ferry of the brothers Aas?", "the brothers Aas of Bergen"),  # given away
        ("When was it built by them?", "1931"),
        ("What of the ferry (to Holm) was built?", "1931"),
    ],
)
def test_unusable_questions(question, answer):
    assert maker.usable(FERRY, "When was the ferry to Holm built?", "1931")
    assert not maker.usable(FERRY, question, answer)
