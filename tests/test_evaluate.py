"""Evaluations with tiny random models: what is measured, and what their files must hold."""

import json
import random

import pytest
from tiny import save_encoder, save_model

from m3mlx import evaluate
from m3mlx.config import REFERENCE_TOKENS
from m3mlx.errors import M3Error
from m3mlx.evaluate.recite import edits
from m3mlx.evaluate.trial import TemporaryStore, make_assistant


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A world of tiny models; calibrations are made once."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "decoder")
    save_encoder(folder / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(folder / "home"))
        yield {"model": str(folder / "decoder"), "encoder": str(folder / "encoder")}


QUESTIONS = [
    evaluate.Question(f"The {a} is {b}.", f"What is the {a}?", b, "a.txt", changed)
    for a, b, changed in (("boat", "green", "red"), ("cat", "old", "young"), ("door", "blue", ""))
]


def test_every_combination_is_measured_and_text_once(options, tmp_path):
    told = []
    report = evaluate.evaluate(
        QUESTIONS,
        memories=(1, 2),
        budgets=("uniform:4", "half:4"),
        codecs=("k8v8", "k4v4"),
        answer_tokens=2,
        report=told.append,
        **options,
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
        assert row.recovered == pytest.approx((off.nll - row.nll) / (off.nll - oracle.nll))
        assert 0 <= row.right <= 1 and row.first_token_seconds > 0
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["mode"] == "off"

    evaluate.plot(report, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for name in ("explicit, uniform, k4v4, 2", "explicit, half, k8v8, 1", "text, 2", "oracle, 1"):
        assert f">{name}<" in drawn


def test_only_what_is_asked_for_is_measured(options):
    report = evaluate.evaluate(
        QUESTIONS, modes=("explicit",), budgets=("uniform:4",), answer_tokens=0, **options
    )
    (row,) = report.rows
    assert row.mode == "explicit" and row.right is None and row.recovered is None
    report = evaluate.evaluate(
        QUESTIONS, modes=("off",), budgets=("uniform:4", "uniform:8"), answer_tokens=0, **options
    )
    assert [row.mode for row in report.rows] == ["off"]


def test_half_keeps_as_many_in_each_head_of_the_first_half_of_the_layers(options, tmp_path):
    with make_assistant(tmp_path / "store", "half:4", **options) as assistant:
        assert assistant.format.config.counts == ((4, 4), (4, 4), (0, 0), (0, 0))
        assert assistant.format.config.budget == "uniform"
        (tmp_path / "a.txt").write_text("The boat is green.")
        assistant.memorize([tmp_path / "a.txt"])
        assert assistant.status()["references"] == 1


def test_reciting_has_its_controls(options, monkeypatch):
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdef ", k=60)) for _ in range(4)] + ["short"]
    table = evaluate.recite(
        texts, others=["the others"], answer_tokens=8, budget="uniform:60", **options
    )
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
    table = evaluate.recite(texts[:4], answer_tokens=8, budget="uniform:60", **options)
    first = table.rows[0]
    assert first["exact"] == first["characters"] == first["4 tokens"] == first["8 tokens"] == 1
    assert first["beginning"] == 8 and first["16 tokens"] == 0
    second = table.rows[1]  # its first text has one wrong character, its second is another's
    assert second["exact"] == 0 and 0 < second["characters"] < 1


def test_texts_too_short_to_recite_are_refused(options):
    with pytest.raises(M3Error, match="fewer than two of the documents have 44 tokens"):
        evaluate.recite(["a" * 50, "b"], budget="uniform:4", **options)


def test_a_changed_fact_is_read_and_the_search_follows(options):
    questions = [
        *QUESTIONS[:2],
        evaluate.Question(QUESTIONS[0].document, "What is green?", "boat", "a.txt"),
        QUESTIONS[2],  # has no other answer, so its document is left out
    ]
    others = [f"Note {i} of the tide tables." for i in range(12)]
    table = evaluate.update(questions, others=others, budget="uniform:8", **options)
    assert [row["when"] for row in table.rows] == [
        *("before, without memory", "before", "changed", "beside 10 others", "beside 12 others"),
    ]
    control, before, changed, *_ = table.rows
    assert control["found"] is None and before["found"] == changed["found"] == 1
    assert before["old"] != changed["old"] and before["new"] != changed["new"]
    assert before["neighbours"] != changed["neighbours"]  # the same text, but for the fact
    assert all(0 <= row["prefer new"] <= 1 for row in table.rows)
    assert len(table.cells()) == 5 and "" in table.cells()[0]
    with pytest.raises(M3Error, match="no line has changed"):
        evaluate.update(QUESTIONS[2:], budget="uniform:8", **options)


@pytest.mark.parametrize("budget", ["uniform:8", "half:8"])
def test_a_rewritten_document_is_memorized_in_place_of_the_old(options, budget):
    with TemporaryStore(budget=budget, **options) as store:
        counts = store.assistant.format.config.counts
        (path,) = store.memorize(["The boat is green."])
        store.rewrite("The boat is green.", "The boat is red.")
        store.memorize([])
        (hit,) = store.assistant.search(["boat"], 5)[0]
        assert "red" in hit.text and store.text_of(hit.path) == "The boat is red."
        assert hit.path == path
        store.restart()
        assert [hit.text for hit in store.assistant.search(["boat"], 5)[0]] == [hit.text]
        assert store.assistant.format.config.counts == counts


def test_choices_are_compared_by_their_likelihood(options, tmp_path):
    file = tmp_path / "choices.jsonl"
    lines = [
        {"question": f"What is {i}?", "choices": list("abc")[: 2 + i % 2], "answer": "b"}
        for i in range(4)
    ]
    file.write_text("\n".join(json.dumps({**line, "document": "b is right"}) for line in lines))
    questions = evaluate.read_choices(file)
    table = evaluate.choose(questions, budget="uniform:4", **options)
    rows = {row["mode"]: row for row in table.rows}
    assert list(rows) == ["chance", "off", "explicit", "text", "oracle"]
    assert rows["chance"]["right"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert rows["explicit"]["change"] == rows["explicit"]["right"] - rows["off"]["right"]
    # the same losses as of each answer by itself
    with TemporaryStore(budget="uniform:4", **options) as store:
        both = [result.nll for result in store.ask("What is 0?", ["a", "b cd"], [], 0)]
        assert both == [store.ask("What is 0?", [c], [], 3)[0].nll for c in ("a", "b cd")]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(M3Error, match="no line has a document"):
        evaluate.choose(evaluate.read_choices(file), budget="uniform:4", **options)


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


def test_edits_are_counted():
    pairs = [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abd", 1)]
    assert [edits(a, b) for a, b, _ in pairs] == [n for *_, n in pairs]
    assert REFERENCE_TOKENS >= 12 + 32  # a cue and what is recited lie in one reference
