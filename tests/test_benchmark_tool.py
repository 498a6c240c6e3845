"""The benchmark of tools/: its parts on a tiny model, kept results, and time estimates."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import save_encoder, save_model

from m3mlx.bench.report import ratio_table, table
from m3mlx.bench.workload import WAYS, Workload
from m3mlx.config import MemoryConfig, Options, no_progress
from m3mlx.store import MemoryStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import benchmark
from benchmark import PARTS, Plan
from benchmark_parts import flash, growth, made_up, peers
from benchmark_parts.flash import Flash, fitted, io_table, predicted


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    options = Options(
        model=str(save_model(folder / "decoder")),
        encoder=str(save_encoder(folder / "encoder")),
        budget="uniform",
        tokens_per_head=2,
    )
    with Workload(options, no_progress) as workload:
        yield workload


def test_a_whole_run_is_json_with_a_ratio_for_each_claim(workload, monkeypatch):
    monkeypatch.setattr(flash, "FILE_BYTES", 16 << 20)
    monkeypatch.setattr(growth, "OPENED", 1)
    plan = Plan(
        parts=PARTS,
        prompts=(8,),
        marks=(2, 66),
        contexts=(0, 20),
        batch=2,
        rounds=1,
        modes=WAYS,
        references=(60, 90),
    )
    kept = []
    report = benchmark.measure(
        plan,
        workload.assistant.options,
        progress=no_progress,
        keep=lambda report: kept.append(json.dumps(report)),
    )
    assert [list(json.loads(text)["part_seconds"]) for text in kept] == [
        list(PARTS[: n + 1]) for n in range(len(PARTS))
    ]
    assert json.loads(kept[-1]) == json.loads(json.dumps(report))
    for wanted in (
        "ask 8, first token: explicit warm / off",
        "ask 8, first token: explicit warm / text",
        "answer 66, 66 tokens: explicit warm / text refreshed",
        "decode 20: speed with memories and a refresh every 64 tokens / without",
        "decode 20: speed with memories and a refresh every 64 tokens / mlx-lm",
        "decode 20: speed without memories / mlx-lm",
        "memorize 2, batch: attention / plain prefill",
        "peers 64, first token: m3mlx, explicit warm / mlx-lm, saved prompt cache",
        "growth 90, first token but for the search: of 60",
        "growth 90, memorize: of 60",
    ):
        value = report["ratios"][wanted]
        assert value["seconds"] > 0 and value["cpu_seconds"] > 0
    assert report["record_bytes"]["k16v16"] > report["record_bytes"]["k4v4"]
    assert set(report["io"]["ways"]) == {"whole", "sparse", "reused", "bundled", "ahead"}
    assert report["cost"]["the paper"]["worth"][1] > 13_000
    opened = {f["of"]: f["seconds"] for f in report["figures"] if f["part"] == "open"}
    parts = ("open", "embed", "search", "read")
    assert opened["first retrieval"] == pytest.approx(sum(opened[part] for part in parts), rel=0.2)
    for columns, rows in (table(report, benchmark.is_shown), ratio_table(report), io_table(report)):
        assert rows and all(len(row) == len(columns) for row in rows)


def test_a_bundled_memory_is_one_read_and_a_sparse_one_a_read_for_each_head():
    config = MemoryConfig("attention", "calibrated", ((2, 0), (0, 0), (3, 1)), 16, (1,))
    ways = Flash(config, 1000)._ways()
    first, second = ({name: len(chunks[n]) for name, chunks in ways.items()} for n in (0, 1))
    assert first == {"whole": 15, "sparse": 15, "reused": 15, "bundled": 5, "ahead": 5}
    assert second == {"whole": 15, "sparse": 15, "reused": 6, "bundled": 2, "ahead": 2}
    assert {len(chunks) for chunks in ways.values()} == {8}
    assert sum(ways["whole"][0]) == 5 * 3 * 2 * 128 * 16 * 2 * 2
    assert sum(ways["sparse"][0]) == 5 * 6 * 16 * 2


def test_the_cost_model_predicts_the_machine_that_it_was_fitted_to():
    def seconds(block, how):
        return {"1": 1e-4, "ahead": 2e-5}[how] + block / {"1": 5e8, "ahead": 1e9}[how]

    curve = {(block, how): seconds(block, how) for block in flash.BLOCKS for how in ("1", "ahead")}
    model = fitted(curve)
    for how in ("1", "ahead"):
        expected = 3 * seconds(50_000, how) + seconds(7_000, how)
        assert predicted(model[how], [[50_000] * 2, [50_000, 7_000]]) == pytest.approx(expected)
    # noise must not make reading cheaper than nothing
    assert min(fitted({(512, "1"): 2e-4, (4096, "1"): 1e-4})["1"]) == 0


def test_llama_cpp_is_left_out_with_one_note_where_it_is_missing(workload, monkeypatch):
    monkeypatch.setattr(peers, "LLAMA", "no_such_package")
    notes = []
    found = peers.peers(workload, 20, 1, no_progress, notes.append)
    assert {figure.way.partition(",")[0] for figure in found} == {"mlx-lm", "m3mlx"}
    assert notes == [peers.LLAMA_MISSING]


def test_made_up_references_are_found_like_others(tmp_path):
    store = MemoryStore.create(
        tmp_path / "store",
        fingerprint={"model": "none"},
        memory={},
        encoder="none",
        dimensions=8,
        record_bytes=4,
    )
    record = lambda number: b"four" if number % 2 else None  # noqa: E731
    filled = list(made_up.fill(store, 0, 30, vocabulary=("", "pear"), record=record))
    ((start, vectors),) = filled
    assert start == 0 and vectors.shape == (30, 8)
    ((hit, *_),) = store.search(vectors[7:8], [""], 5, "dense")
    assert hit.slot == 7 and hit.warm and hit.distance == pytest.approx(0, abs=1e-5)
    assert "pear" in hit.text.split()
    assert store.status()["references"] == 30
    store.close()


def report(plan, seconds, model):
    return {
        "machine": {"device": "Device(cpu, 0)"},
        "plan": asdict(plan),
        "model": model,
        "part_seconds": seconds,
    }


def test_each_part_is_kept_and_tells_the_next_run_how_long_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    plan = Plan(parts=("ask", "decode"))
    shown = benchmark.Shown(plan, "some/model")
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

    again = benchmark.Shown(plan, "some/model")
    assert "About 1:30, as the last time" in capsys.readouterr().err
    again.tell("ask 64: off", 1, 4)
    assert "ask 64: off 1/4, 0:00 left; of all about 1:" in capsys.readouterr().err
    for other in (
        benchmark.Shown(plan, None),
        benchmark.Shown(Plan(parts=("ask",), rounds=9), "some/model"),
    ):
        other.tell("ask 64: off", 1, 4)
        assert "of all" not in capsys.readouterr().err  # another model or plan says nothing
