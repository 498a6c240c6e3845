"""`m3mlx bench` measures what it says, on a tiny model; its speed does not matter here."""

import json

import pytest
from tiny import save_encoder, save_model

from m3mlx.bench.cost import Shape, cost
from m3mlx.bench.report import Plan, ratio_table, run, table
from m3mlx.bench.rounds import Stopwatch, ratios_to, take_turns
from m3mlx.bench.workload import WAYS, Workload
from m3mlx.config import Options, no_progress


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return Options(
        model=str(save_model(folder / "decoder")),
        encoder=str(save_encoder(folder / "encoder")),
        budget="uniform",
        tokens_per_head=2,
    )


@pytest.fixture(scope="module")
def workload(options):
    with Workload(options, no_progress) as workload:
        yield workload


def test_the_papers_costs_come_out():
    found = cost(Shape())
    tera = [value / 1e12 for value in (found.learn, found.write, found.read, found.text)]
    assert tera == pytest.approx([2.2385, 0.30818, 1.4418e-4, 0.62422], rel=1e-4)
    assert found.worth == pytest.approx((0.4937, 13388), rel=5e-4)


def test_parts_within_parts_are_counted_once():
    watch = Stopwatch()
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
            watch = Stopwatch()
            watch.parts["all"] = (float(len(order)), 1.0)
            return watch

        return run

    figures = take_turns("part", 7, {"a": way("a"), "b": way("b")}, 3, no_progress)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [(f.way, f.walls) for f in figures] == [("a", [4, 5, 8]), ("b", [3, 6, 7])]
    assert figures[0].to_json()["seconds"] == 5
    (ratio,) = ratios_to(("a", "b", "c"), figures[0], figures).items()
    assert ratio == ("part 7, all: a / b", {"seconds": pytest.approx(8 / 7), "cpu_seconds": 1})


@pytest.mark.parametrize("way", WAYS)
def test_every_way_answers_as_long_as_asked_and_times_its_parts(workload, way):
    parts = workload.ask(way, 20, [70]).parts
    assert {"first token", "70 tokens", "prefill", "decode"} <= set(parts)
    assert parts["first token"][0] <= parts["70 tokens"][0]
    asked = {"embed", "search"} <= set(parts)
    assert asked == (way != "off")
    assert ("read" in parts) == (way == "explicit warm")
    assert ("write" in parts) == (way == "explicit cold")


def test_the_ways_read_what_their_names_say(workload, monkeypatch):
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
        for way in ("off", "text", "text refreshed", "explicit warm"):
            fed.clear()
            workload.ask(way, 20, [70])
            counts[way] = sum(fed)
    finally:
        model.__class__ = kind
    assert counts["off"] == counts["explicit warm"] == 20 + 69
    assert counts["text"] > counts["off"]
    assert counts["text refreshed"] >= counts["text"] + 20 + 64


def test_a_run_is_json_with_a_ratio_for_each_claim(options):
    plan = Plan(prompts=(8,), contexts=(20,), batch=2, rounds=1)
    kept = []
    report = run(plan, options, progress=no_progress, keep=lambda r: kept.append(json.dumps(r)))
    assert [list(json.loads(text)["part_seconds"]) for text in kept] == [
        list(plan.parts[: n + 1]) for n in range(4)
    ]
    assert json.loads(kept[-1]) == json.loads(json.dumps(report))
    for wanted in (
        "ask 8, first token: explicit warm / off",
        "ask 8, first token: explicit warm / text",
        "decode 20: speed with memories and a refresh every 64 tokens / without",
        "decode 20: speed with memories and a refresh every 64 tokens / mlx-lm",
        "decode 20: speed without memories / mlx-lm",
        "memorize 2, batch: attention / plain prefill",
    ):
        value = report["ratios"][wanted]
        assert value["seconds"] > 0 and value["cpu_seconds"] > 0
    assert report["record_bytes"]["k16v16"] > report["record_bytes"]["k4v4"]
    assert report["cost"]["the paper"]["worth"][1] > 13_000
    for columns, rows in (table(report), ratio_table(report)):
        assert rows and all(len(row) == len(columns) for row in rows)
