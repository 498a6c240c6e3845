"""The maker of choices: examples of BIG-bench become lines that eval reads."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from m3mlx.evaluate import read_choices

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import make_choices as maker

CONTEXT = "The harbour light was lit in March by Ada Quill . " * 5
EXAMPLES = {
    "contextual_parametric_knowledge_conflicts": [
        {
            "input": f"\nQuestion: who lit it?\nContext: {CONTEXT}",
            "target_scores": {"Ada Quill": 1, "Bo": 0},
        },
        {"input": "\nQuestion: who?\nContext: Bo", "target_scores": {"Bo": 1, "Ada": 0}},
    ],
    "vitaminc_fact_verification": [
        {
            "input": "It sold 3 .\nClaim: It sold 2 .",
            "target_scores": {"True": 0, "False": 1, "Neither": 0},
        },
    ],
    "general_knowledge": [
        {"input": "How many legs?", "target_scores": {"two": 0, "four": 1}},
        {"input": "Both?", "target_scores": {"two": 1, "four": 1}},
    ],
}


def archive(path, tasks):
    with tarfile.open(path, "w:gz") as made:
        for task in tasks:
            data = json.dumps({"examples": EXAMPLES[task]}).encode()
            info = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json")
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["make_choices", *map(str, args)])
    maker.main()


def test_examples_become_lines_that_eval_reads(tmp_path, monkeypatch):
    run(monkeypatch, archive(tmp_path / "a.tar.gz", EXAMPLES), tmp_path / "out")
    read = {
        task: [(q.question, q.choices[q.answer], q.document) for q in read_choices(file)]
        for task in EXAMPLES
        if (file := tmp_path / "out" / f"{task}.jsonl")
    }
    claim = "Is it true, false, or neither of them? It sold 2 ."
    assert read == {
        # without the context that is too short, and the question with two right answers
        "contextual_parametric_knowledge_conflicts": [("who lit it?", "Ada Quill", CONTEXT)],
        "vitaminc_fact_verification": [(claim, "False", "It sold 3 .")],
        "general_knowledge": [("How many legs?", "four", "")],
    }


def test_what_an_archive_lacks_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="vitaminc_fact_verification"):
        run(monkeypatch, archive(tmp_path / "a.tar.gz", ["general_knowledge"]), tmp_path / "out")
