"""Evaluations with tiny random models: what is measured, and what their files must hold."""

import json
import random
from dataclasses import replace
from inspect import signature

import pytest
from tiny import save_encoder, save_model

from m3mlx import evaluate
from m3mlx.config import REFERENCE_TOKENS, Options
from m3mlx.errors import M3Error
from m3mlx.evaluate.questions import Choice
from m3mlx.evaluate.recite import CUE, edits
from m3mlx.evaluate.temporary import Result, TemporaryStore, make_assistant


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Tiny models, and one cache folder, so that calibrations are made once."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "decoder")
    save_encoder(folder / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(folder / "home"))
        yield Options(model=str(folder / "decoder"), encoder=str(folder / "encoder"))


QUESTIONS = [
    evaluate.Question(f"The {a} is {b}.", f"What is the {a}?", b, "a.txt", changed)
    for a, b, changed in (("boat", "green", "red"), ("cat", "old", "young"), ("door", "blue", ""))
]


def test_every_combination_is_measured_and_text_once(options, tmp_path):
    told = []
    report = evaluate.evaluate(
        QUESTIONS,
        options,
        memories=(1, 2),
        budgets=("uniform:4", "half:4"),
        codecs=("k8v8", "k4v4"),
        answer_tokens=2,
        report=told.append,
    )
    assert report.rows == told and report.questions == 3 and report.adapter == "none"
    kinds = [(row.mode, row.memories, row.budget, row.codec) for row in report.rows]
    assert kinds == [
        ("off", 0, None, None),
        ("oracle", 1, None, None),
        ("text", 1, None, None),
        ("text", 2, None, None),
        *(
            ("explicit", count, budget, codec)
            for budget in ("uniform:4", "half:4")
            for codec in ("k8v8", "k4v4")
            for count in (1, 2)
        ),
    ]
    rows = {(row.budget, row.codec, row.memories): row for row in report.rows}
    uniform, half = rows["uniform:4", "k8v8", 1], rows["half:4", "k8v8", 1]
    assert (uniform.tokens_per_head, half.tokens_per_head) == (4, 2)
    assert half.record_bytes < uniform.record_bytes
    assert rows["uniform:4", "k4v4", 1].record_bytes < uniform.record_bytes
    assert len({row.nll for row in report.rows}) > 6  # they really differ
    off, oracle = report.rows[:2]
    assert off.recovered == 0 and oracle.recovered == pytest.approx(1)
    for row in report.rows:
        assert 0 <= row.right <= 1 and row.first_token_seconds > 0
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["mode"] == "off"

    evaluate.plot(report, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for name in ("explicit, uniform, k4v4, 2", "explicit, half, k8v8, 1", "text, 2", "oracle, 1"):
        assert f">{name}<" in drawn


@pytest.mark.parametrize(
    ("oracle", "recovered"),
    [
        ((0.5, 1.5), {"off": 0, "oracle": 1, "text": 0.75, "explicit": 0.5}),  # gains 4 - 1 = 3
        ((5.0, 7.0), {"off": 0, "oracle": 1, "text": -1.125, "explicit": -0.75}),  # harms: 4 - 6
        ((4.0, 4.0), {"off": 0, "oracle": None, "text": None, "explicit": None}),  # no difference
    ],
)
def test_recovered_is_the_share_of_what_the_right_text_gains(
    options, monkeypatch, oracle, recovered
):
    losses = {"off": (3.0, 5.0), "oracle": oracle, "text": (1.0, 2.5), "explicit": (2.0, 3.0)}

    def measure(store, questions, condition, memories, answer_tokens):
        said = zip(losses[condition], (True, False), (0.25, 0.75), strict=True)
        return [Result(*values) for values in said]

    monkeypatch.setattr(TemporaryStore, "measure", measure)
    report = evaluate.evaluate(QUESTIONS[:2], options, budgets=("uniform:4",))
    assert {row.mode: row.recovered for row in report.rows} == recovered
    assert [row.nll for row in report.rows] == [4, sum(oracle) / 2, 1.75, 2.5]
    assert {(row.right, row.first_token_seconds) for row in report.rows} == {(0.5, 0.5)}
    some = evaluate.evaluate(
        QUESTIONS[:2], options, modes=("off", "explicit"), budgets=("uniform:4",)
    )
    assert [row.recovered for row in some.rows] == [0, None]


def test_only_what_is_asked_for_is_measured(options):
    report = evaluate.evaluate(
        QUESTIONS, options, modes=("explicit",), budgets=("uniform:4",), answer_tokens=0
    )
    (row,) = report.rows
    assert row.mode == "explicit" and row.right is None and row.recovered is None
    report = evaluate.evaluate(
        QUESTIONS, options, modes=("off",), budgets=("uniform:4", "uniform:8"), answer_tokens=0
    )
    assert [row.mode for row in report.rows] == ["off"]


def test_half_keeps_as_many_in_each_head_of_the_first_half_of_the_layers(options, tmp_path):
    with make_assistant(replace(options, store=tmp_path / "store"), "half:4") as assistant:
        config = assistant.format.config
        assert config.counts == ((4, 4), (4, 4), (0, 0), (0, 0)) and config.budget == "uniform"
        (tmp_path / "a.txt").write_text("The boat is green.")
        assistant.memorize([tmp_path / "a.txt"])
        assert assistant.status()["references"] == 1


def test_reciting_has_its_controls(options, monkeypatch):
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdef ", k=60)) for _ in range(4)] + ["short"]
    with TemporaryStore(options, "uniform:60") as store:
        table = evaluate.recite(store, texts, others=["the others"], answer_tokens=8)
    rows = {row["texts"]: row for row in table.rows}
    assert list(rows) == [
        *("memorized", "as text in the prompt", "without memory", "cue shuffled"),
        *("never memorized", "beside 1 others", "after a restart"),
    ]
    assert all(row["tried"] == 2 for row in rows.values())
    assert rows["memorized"]["found"] == rows["after a restart"]["found"] == 1
    assert rows["never memorized"]["found"] == 0
    assert rows["without memory"]["found"] is None
    assert rows["memorized"].keys() == set(table.columns)
    # a random model cannot recite; one that says what it should gets all there is
    assert rows["memorized"]["exact"] == 0
    decoded = iter([texts[0][12:20], texts[2][12:20], texts[0][12:19] + "x"] * 9)

    class Told:
        def __init__(self, token):
            self.token = token

    def decode(self, logits, count):
        ids = self.decoder.tokenizer.encode(next(decoded), add_special_tokens=False)
        return iter([*map(Told, ids), Told(None)])

    monkeypatch.setattr("m3mlx.chat.conversation.Conversation.decode", decode)
    with TemporaryStore(options, "uniform:60") as store:
        table = evaluate.recite(store, texts[:4], answer_tokens=8)
    first = table.rows[0]
    assert first["exact"] == first["characters"] == first["4 tokens"] == first["8 tokens"] == 1
    assert first["beginning"] == 8 and first["16 tokens"] == 0
    second = table.rows[1]  # its first text has one wrong character, its second is another's
    assert second["exact"] == 0 and 0 < second["characters"] < 1


def test_texts_too_short_to_recite_are_refused(options):
    refused = pytest.raises(M3Error, match="fewer than two of the documents have 44 tokens")
    with TemporaryStore(options, "uniform:4") as store, refused:
        evaluate.recite(store, ["a" * 50, "b"])


def test_a_changed_fact_is_read_and_the_search_follows(options):
    questions = [
        *QUESTIONS[:2],
        evaluate.Question(QUESTIONS[0].document, "What is green?", "boat", "a.txt"),
        QUESTIONS[2],  # has no other answer, so its document is left out
    ]
    others = [f"Note {i} of the tide tables." for i in range(12)]
    with TemporaryStore(options, "uniform:8") as store:
        table = evaluate.update(store, questions, others=others)
    assert [row["when"] for row in table.rows] == [
        *("before, without memory", "before", "changed", "beside 10 others", "beside 12 others"),
    ]
    control, before, changed, *_ = table.rows
    assert control["found"] is None and before["found"] == changed["found"] == 1
    assert before["old"] != changed["old"] and before["new"] != changed["new"]
    assert before["neighbours"] != changed["neighbours"]  # the same text, but for the fact
    assert all(0 <= row["prefer new"] <= 1 for row in table.rows)
    assert len(table.cells()) == 5 and "" in table.cells()[0]
    refused = pytest.raises(M3Error, match="no line has changed")
    with TemporaryStore(options, "uniform:8") as store, refused:
        evaluate.update(store, QUESTIONS[2:])


@pytest.mark.parametrize("budget", ["uniform:8", "half:8"])
def test_a_rewritten_document_is_memorized_in_place_of_the_old(options, budget):
    with TemporaryStore(options, budget) as store:
        counts = store.assistant.format.config.counts
        store.memorize(["The boat is green."])
        (path,) = (hit.path for hit in store.search("boat"))
        store.rewrite("The boat is green.", "The boat is red.")
        store.memorize([])
        (hit,) = store.search("boat")
        assert "red" in hit.text and store.path_of("The boat is red.") == hit.path
        assert hit.path == path
        store.restart()
        assert [hit.text for hit in store.search("boat")] == [hit.text]
        assert store.assistant.format.config.counts == counts


def test_choices_are_compared_by_their_likelihood(options, tmp_path):
    file = tmp_path / "choices.jsonl"
    lines = [
        {"question": f"What is {i}?", "choices": list("abc")[: 2 + i % 2], "answer": "b"}
        for i in range(4)
    ]
    file.write_text("\n".join(json.dumps({**line, "document": "b is right"}) for line in lines))
    questions = evaluate.read_choices(file)
    with TemporaryStore(options, "uniform:4") as store:
        table = evaluate.choose(store, questions)
    rows = {row["mode"]: row for row in table.rows}
    assert list(rows) == ["chance", "off", "explicit", "text", "oracle"]
    assert rows["chance"]["right"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    # the same losses as of each answer by itself
    with TemporaryStore(options, "uniform:4") as store:
        both = [result.nll for result in store.ask("What is 0?", ["a", "b cd"], [], 0)]
        assert both == [store.ask("What is 0?", [c], [], 3)[0].nll for c in ("a", "b cd")]
    file.write_text("\n".join(map(json.dumps, lines)))
    refused = pytest.raises(M3Error, match="no line has a document")
    with TemporaryStore(options, "uniform:4") as store, refused:
        evaluate.choose(store, evaluate.read_choices(file))


def test_shares_of_right_choices_have_their_error_and_change(options, monkeypatch):
    """By hand: off is right once in four, explicit memory three times, text and oracle always."""

    def ask(store, text, choices, hits, answer_tokens):
        number, pasted = int(text[-2]), "right" in text  # a question ends with its number
        right = pasted or number < (3 if hits else 1)
        return [Result(1.0 if (choice == "b") == right else 2.0, None, 0.0) for choice in choices]

    monkeypatch.setattr(TemporaryStore, "ask", ask)
    questions = [Choice(f"What is {i}?", ("a", "b"), 1, f"b is right {i}") for i in range(4)]
    with TemporaryStore(options, "uniform:4") as store:
        table = evaluate.choose(store, questions)
    assert [(row["mode"], row["right"], row["change"]) for row in table.rows] == [
        *(("chance", 0.5, None), ("off", 0.25, None), ("explicit", 0.75, 0.5)),
        *(("text", 1, 0.75), ("oracle", 1, 0.75)),
    ]
    errors = [row["error"] for row in table.rows]
    assert errors == pytest.approx([0.25, 0.2165, 0.2165, 0, 0], abs=1e-4)


GOOD = {"document": "d e", "question": "q", "answer": "e", "choices": ["e", "f"]}


@pytest.mark.parametrize(
    ("read", "line", "words"),
    [
        ("questions", {**GOOD, "changed": 3}, "line 2.*changed must be text"),
        ("questions", {**GOOD, "answer": "x", "changed": "y"}, "line 2.*stand in the document"),
        ("documents", {"document": ""}, "line 2.*expected.*a document"),
        ("documents", {"text": "a"}, "line 2.*document"),
        ("choices", {**GOOD, "choices": ["e"]}, "line 2.*at least two"),
        ("choices", {**GOOD, "choices": ["e", "e"]}, "line 2.*different"),
        ("choices", {**GOOD, "answer": "g"}, "line 2.*one of"),
        ("choices", {**GOOD, "choices": [1, 2]}, "line 2.*must be text"),
        ("choices", {**GOOD, "choices": 5}, "line 2"),
    ],
)
def test_bad_lines_are_named(tmp_path, read, line, words):
    file = tmp_path / "file.jsonl"
    file.write_text("\n".join(map(json.dumps, [GOOD, line])))
    with pytest.raises(M3Error, match=words):
        getattr(evaluate, f"read_{read}")(file)


def test_a_limit_spreads_over_the_file():
    assert evaluate.spread(range(10), 3) == [0, 3, 6]
    assert evaluate.spread(range(3), 9) == evaluate.spread(range(3), None) == range(3)
    pair = [evaluate.Question("same", q, "a", "p") for q in "xy"]
    assert evaluate.spread_documents([*pair, *QUESTIONS], 2) == [*pair, QUESTIONS[1]]


def test_a_cue_and_what_is_recited_of_it_fit_into_one_reference():
    recited = signature(evaluate.recite).parameters["answer_tokens"].default
    assert CUE + recited <= REFERENCE_TOKENS


def test_edits_are_counted():
    pairs = [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abd", 1)]
    assert [edits(a, b) for a, b, _ in pairs] == [n for *_, n in pairs]
