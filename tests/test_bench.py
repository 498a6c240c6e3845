"""The benchmark measures what it says, on a tiny model; how fast that is nobody asks here."""

import json

import pytest
from tiny import save_encoder, save_model

from m3mlx.bench import flash, growth, made_up, peers
from m3mlx.bench.cost import Shape, cost
from m3mlx.bench.flash import Flash, fitted, predicted
from m3mlx.bench.parts import MODES
from m3mlx.bench.report import PARTS, Plan, io_table, ratio_table, run, table
from m3mlx.bench.rounds import Watch, ratio, take_turns
from m3mlx.bench.workload import Workload, ask
from m3mlx.config import MemoryConfig
from m3mlx.store import MemoryStore


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
    monkeypatch.setattr(growth, "OPENED", 1)
    plan = Plan(
        parts=PARTS,
        prompts=(8,),
        marks=(2, 66),
        contexts=(0, 20),
        batch=2,
        rounds=1,
        modes=MODES,
        references=(60, 90),
    )
    kept = []
    report = run(plan, progress=silent, keep=lambda r: kept.append(json.dumps(r)), **options)
    assert [list(json.loads(text)["part_seconds"]) for text in kept] == [
        list(PARTS[: n + 1]) for n in range(len(PARTS))
    ]
    assert json.loads(kept[-1]) == json.loads(json.dumps(report))
    for wanted in (
        "ask 8, first token: explicit warm / off",
        "ask 8, first token: explicit warm / text",
        "answer 66, 66 tokens: explicit warm / text refreshed",
        "decode 20: speed with memories and a refresh every 64 tokens / without",
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
    for columns, rows in (table(report), ratio_table(report), io_table(report)):
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
    found = peers.peers(workload, 20, 1, silent, notes.append)
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
