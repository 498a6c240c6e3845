"""What the benchmark's program keeps while it runs, and how long it says that it takes."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from m3mlx.bench.report import Plan

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def report(plan, seconds, model):
    return {
        "machine": {"device": "Device(cpu, 0)"},
        "plan": asdict(plan),
        "model": model,
        "part_seconds": seconds,
    }


def test_each_part_is_kept_and_tells_the_next_run_how_long_it_takes(tool, tmp_path, capsys):
    plan = Plan(parts=("ask", "decode"))
    shown = tool.Shown(plan, "some/model")
    assert shown.file is None
    shown.keep(report(plan, {"ask": 60.0}, "some/model"))
    (first,) = tmp_path.iterdir()
    assert first.name == f"cpu-model-{shown.commit}-ask.json" and first == shown.file
    shown.keep(report(plan, {"ask": 60.0, "decode": 30.0}, "some/model"))
    (both,) = tmp_path.iterdir()
    assert both.name == f"cpu-model-{shown.commit}-ask-decode.json"
    kept = json.loads(both.read_text("utf-8"))
    assert kept["commit"] == shown.commit and list(kept["part_seconds"]) == ["ask", "decode"]
    capsys.readouterr()

    again = tool.Shown(plan, "some/model")
    assert "About 1:30, as the last time" in capsys.readouterr().err
    again.tell("ask 64: off", 1, 4)
    assert "ask 64: off 1/4, 0:00 left; of all about 1:" in capsys.readouterr().err
    for other in (tool.Shown(plan, None), tool.Shown(Plan(parts=("ask",), rounds=9), "some/model")):
        other.tell("ask 64: off", 1, 4)
        assert "of all" not in capsys.readouterr().err  # another model or plan says nothing
