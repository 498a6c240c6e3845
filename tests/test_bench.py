"""The benchmark measures what it says, on a tiny model; how fast that is nobody asks here."""

import json

import pytest
from tiny import save_encoder, save_model

from m3mlx.bench import flash
from m3mlx.bench.cost import Shape, cost
from m3mlx.bench.flash import Flash
from m3mlx.bench.parts import MODES
from m3mlx.bench.report import PARTS, Plan, ratio_table, run, table
from m3mlx.bench.rounds import Watch, ratio, take_turns
from m3mlx.bench.workload import Workload, ask
from m3mlx.config import MemoryConfig


def silent(what, done, total):
    pass


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "model": str(save_model(folder / "decoder")),
        "encoder": str(save_encoder(folder / "encoder")),
        "budget": "uniform",
        "tokens_per_head": 2,
    }


@pytest.fixture(scope="module")
def workload(options):
    with Workload(progress=silent, **options) as workload:
        yield workload


def test_the_papers_costs_come_out():
    found = cost(Shape())
    tera = [value / 1e12 for value in (found.learn, found.write, found.read, found.text)]
    assert tera == pytest.approx([2.2385, 0.30818, 1.4418e-4, 0.62422], rel=1e-4)
    assert found.worth == pytest.approx((0.4937, 13388), rel=5e-4)


def test_parts_within_parts_are_counted_once():
    watch = Watch()
    with watch.part("outer"):
        with watch.part("inner"):
            sum(range(300_000))
        with watch.part("inner"):
            sum(range(300_000))
    watch.lap("all")
    outer, inner, whole = (watch.parts[name][1] for name in ("outer", "inner", "all"))
    assert 0 <= outer < inner and outer + inner <= whole


def test_ways_take_turns_and_the_first_round_does_not_count():
    order = []

    def way(name):
        def run():
            order.append(name)
            watch = Watch()
            watch.parts["all"] = (float(len(order)), 1.0)
            return watch

        return run

    figures = take_turns("part", 7, {"a": way("a"), "b": way("b")}, 3, silent)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [(f.way, f.walls) for f in figures] == [("a", [4, 5, 8]), ("b", [3, 6, 7])]
    assert figures[0].to_json()["seconds"] == 5
    assert ratio(figures, "all", 7, "a", "b")["seconds"] == pytest.approx(8 / 7)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_as_long_as_asked_and_says_what_it_did(workload, mode):
    watch = ask(workload, mode, 20, [70])
    parts = watch.parts
    assert {"first token", "70 tokens", "prefill", "decode"} <= set(parts)
    assert parts["first token"][0] <= parts["70 tokens"][0]
    asked = {"embed", "search"} <= set(parts)
    assert asked == (mode != "off")
    assert ("read" in parts) == (mode == "explicit warm")
    assert ("write" in parts) == (mode == "explicit cold")


def test_the_modes_read_what_their_names_say(workload, monkeypatch):
    fed = []
    model = workload.assistant.decoder.model
    kind = type(model)

    class Noted(kind):
        def __call__(self, tokens, cache=None):
            fed.append(tokens.shape[1])
            return kind.__call__(self, tokens, cache=cache)

    model.__class__ = Noted
    try:
        counts = {}
        for mode in ("off", "text", "text refreshed", "explicit warm"):
            fed.clear()
            ask(workload, mode, 20, [70])
            counts[mode] = sum(fed)
    finally:
        model.__class__ = kind
    assert counts["off"] == counts["explicit warm"] == 20 + 69
    assert counts["text"] > counts["off"]
    assert counts["text refreshed"] >= counts["text"] + 20 + 64


def test_a_whole_run_is_json_with_a_ratio_for_each_claim(options, monkeypatch):
    monkeypatch.setattr(flash, "FILE_BYTES", 16 << 20)
    plan = Plan(
        parts=PARTS, prompts=(8,), marks=(2, 66), contexts=(0, 20), batch=2, rounds=2, modes=MODES
    )
    report = run(plan, progress=silent, **options)
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report))
    for wanted in (
        "ask 8, first token: explicit warm / off",
        "ask 8, first token: explicit warm / text",
        "answer 66, 66 tokens: explicit warm / text refreshed",
        "decode 20: speed with memories and a refresh every 64 tokens / without",
        "memorize 2, batch: attention / plain prefill",
        "peers 64, first token: m3mlx, explicit warm / mlx-lm, saved prompt cache",
    ):
        value = report["ratios"][wanted]
        assert value["seconds"] > 0 and value["cpu_seconds"] > 0
    assert report["record_bytes"]["k16v16"] > report["record_bytes"]["k4v4"]
    assert set(report["io"]["ways"]) == {"whole", "sparse", "reused", "bundled", "ahead"}
    assert report["cost"]["the paper"]["worth"][1] > 13_000
    for columns, rows in (table(report), ratio_table(report)):
        assert rows and all(len(row) == len(columns) for row in rows)


def test_a_bundled_memory_is_one_read_and_a_sparse_one_a_read_for_each_head():
    config = MemoryConfig("attention", "calibrated", ((2, 0), (0, 0), (3, 1)), 16, (1,))
    ways = Flash(config, 1000)._ways()
    counts = {name: len(reads) for name, reads in ways.items()}
    assert counts == {"whole": 15, "sparse": 15, "reused": 6, "bundled": 2, "ahead": 2}
    sizes = {name: sum(length for _, length in reads) for name, reads in ways.items()}
    assert sizes["whole"] == 5 * 3 * 2 * 128 * 16 * 2 * 2
    assert sizes["sparse"] == 5 * 6 * 16 * 2
