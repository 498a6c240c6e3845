"""The maker of training data: repeatable, answerable, and apart from what models are judged by."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import make_training_data as maker  # noqa: E402

NAMES = ("train", "valid", "test")


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def everything(folder):
    return [line for name in NAMES for line in lines(folder / f"{name}.jsonl")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    maker.write(folder, 124, 3, 0)
    return folder


def test_the_same_arguments_give_the_same_files(made, tmp_path):
    maker.write(tmp_path, 124, 3, 0)
    for name in NAMES:
        file = f"{name}.jsonl"
        assert (tmp_path / file).read_bytes() == (made / file).read_bytes()
    maker.write(tmp_path, 124, 3, 1)
    assert (tmp_path / "train.jsonl").read_bytes() != (made / "train.jsonl").read_bytes()
    assert (tmp_path / "test.jsonl").read_bytes() == (made / "test.jsonl").read_bytes()


def test_every_answer_stands_in_its_document_and_in_the_full_answers(made):
    for line in everything(made):
        assert line["answer"] in line["document"]
        assert all(line["answer"].lower() in answer.lower() for answer in line["answers"])
        assert line.get("changed", "elsewhere") not in line["document"]
        words = " ".join([line["document"], line["question"], *line["answers"]])
        assert not re.search(r"[{}¦]", words), words


def test_validation_and_test_share_no_template_and_no_document(made):
    train, valid, test = (lines(made / f"{name}.jsonl") for name in NAMES)
    assert len(test) == 210
    assert {line["source"] for line in valid} == set(maker.HELD_OUT)
    assert {line["source"] for line in test} == set(maker.HELD_OUT)
    assert not {line["source"] for line in train} & set(maker.HELD_OUT)
    assert {line["source"] for line in train} == set(maker.DOMAINS) - set(maker.HELD_OUT)
    documents = [{line["document"] for line in part} for part in (train, valid, test)]
    assert len(set.union(*documents)) == sum(map(len, documents))


def test_no_name_of_the_evaluation_is_used(made):
    text = (ROOT / "tools" / "training_templates.txt").read_text("utf-8")
    ordinary = set(re.findall(r"[a-z]+", text.replace("\\n", " ").lower()))
    names = {name for name in maker.evaluation_names() if name.lower() not in ordinary}
    assert {"Thornmere", "Sandpiper", "Tarnhall"} <= names
    for line in everything(made):
        text = f"{line['document']} {line['question']}"
        assert not set(re.findall(r"[A-Z]\w{3,}", text)) & names, text
