"""Evaluations with tiny random models: what is measured, and what their files must hold."""

import json
import random
from dataclasses import replace
from inspect import signature

import pytest
from tiny import save_encoder, save_model

from m3mlx import evaluate
from m3mlx.assistant import Assistant
from m3mlx.config import REFERENCE_TOKENS, Options
from m3mlx.errors import M3Error
from m3mlx.evaluate import Collection, EvaluationStore, How, Passage, Question, answers
from m3mlx.evaluate.batch import answer
from m3mlx.evaluate.kept import Kept, Outcome
from m3mlx.evaluate.questions import Choice
from m3mlx.evaluate.recite import CUE, edits
from m3mlx.evaluate.store import Result


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Tiny models, and one cache folder, so that calibrations are made once."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "decoder")
    save_encoder(folder / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(folder / "home"))
        yield Options(model=str(folder / "decoder"), encoder=str(folder / "encoder"))


def collection(*changed, kinds=("", "", "")):
    """Three documents with a question each."""
    made = Collection()
    for n, (thing, what) in enumerate((("boat", "green"), ("cat", "old"), ("door", "blue"))):
        text = f"The {thing} is {what}."
        path = made.add(f"{thing}.txt", text)
        question = Question(f"What is the {thing}?", (what,), (Passage(path, text),), kind=kinds[n])
        made.questions.append(replace(question, changed=dict(changed).get(thing, "")))
    return made


def told(monkeypatch, *said):
    """Let the model say these answers, in the order in which it is asked."""
    asked, left = [], list(said)

    def answer(decoder, begun, tokens):
        asked.extend(begun)
        return [left.pop(0) for _ in begun]

    monkeypatch.setattr(answers, "answer", answer)
    return asked


def test_every_combination_is_measured_and_text_once(options, tmp_path):
    reported = []
    report = evaluate.evaluate(
        collection(),
        options,
        How(memories=(1, 2), answer_tokens=2),
        budgets=("uniform:4", "half:4"),
        codecs=("k8v8", "k4v4"),
        report=reported.append,
    )
    assert report.rows == reported and report.questions == report.documents == 3
    assert report.adapter == "none" and report.tokens > 30
    kinds = [(row.mode, row.memories, row.budget, row.codec) for row in report.rows]
    assert kinds == [
        ("off", 0, None, None),
        ("oracle", 0, None, None),
        ("text", 1, None, None),
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
    assert uniform.token_bytes == uniform.record_bytes * 3 / report.tokens
    for row in report.rows:
        assert 0 <= row.contains.low <= row.contains.value <= row.contains.high <= 1
        assert row.first_token_seconds > 0 and (row.against_text is None) == (row.budget is None)
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["f1"]["value"] >= 0

    evaluate.plot(report, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for name in ("explicit, uniform, k4v4, 2", "explicit, half, k8v8, 1", "text, 1", "oracle, 0"):
        assert f">{name}<" in drawn


def test_answers_are_scored_with_intervals(options, monkeypatch):
    off, gold = ["no", "no", "no"], ["It is green", "old", "The blue!"]
    text, explicit = ["green", "young", "green"], ["green", "old", "it is blue"]
    told(monkeypatch, *off, *gold, *text, *explicit)
    kinds = ("colour", "age", "colour")
    report = evaluate.evaluate(collection(kinds=kinds), options, budgets=("uniform:4",))
    rows = {row.mode: row for row in report.rows}
    assert {mode: row.exact.value for mode, row in rows.items()} == pytest.approx(
        {"off": 0, "oracle": 2 / 3, "text": 1 / 3, "explicit": 2 / 3}
    )
    assert rows["oracle"].contains.value == rows["explicit"].contains.value == 1
    assert rows["oracle"].f1.value == pytest.approx((0.5 + 1 + 1) / 3)
    assert rows["explicit"].against_text.value == pytest.approx((0 + 1 + 0.5) / 3)
    assert rows["explicit"].against_text.low < 0 < rows["explicit"].against_text.high
    assert rows["off"].against_text is None and rows["text"].against_text is None
    assert rows["text"].kinds == {"colour": (0.5, 2), "age": (0, 1)}


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

    def measure(asked, mode, count):
        return [Outcome("", loss, 0.5) for loss in losses[mode]]

    monkeypatch.setattr(answers._Asked, "_measure", measure)
    how = How(answer_tokens=0)
    report = evaluate.evaluate(collection().limited(2), options, how, budgets=("uniform:4",))
    assert {row.mode: row.recovered for row in report.rows} == recovered
    assert [row.nll for row in report.rows] == [4, sum(oracle) / 2, 1.75, 2.5]
    assert {(row.exact, row.first_token_seconds) for row in report.rows} == {(None, 0.5)}


def test_only_what_is_asked_for_is_measured(options):
    how = How(modes=("explicit",), answer_tokens=0)
    (row,) = evaluate.evaluate(collection(), options, how, budgets=("uniform:4",)).rows
    assert row.mode == "explicit" and row.nll > 0 and row.recovered is None and row.f1 is None
    how = How(modes=("off",), answer_tokens=0)
    report = evaluate.evaluate(collection(), options, how, budgets=("uniform:4", "uniform:8"))
    assert [row.mode for row in report.rows] == ["off"]


def test_without_right_answers_there_is_no_likelihood(options):
    made = collection()
    made.questions = [replace(question, answers=()) for question in made.questions]
    with pytest.raises(M3Error, match="no question has an answer"):
        evaluate.evaluate(made, options, How(answer_tokens=0), budgets=("uniform:4",))
    made.questions += collection().questions[:1]  # of some it is that of the others
    how = How(modes=("off",), answer_tokens=0)
    few, one = (
        evaluate.evaluate(c, options, how, budgets=("uniform:4",))
        for c in (made, collection().limited(1))
    )
    assert few.rows[0].nll == one.rows[0].nll


def test_an_interrupted_evaluation_goes_on_where_it_was(options, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "BATCH", 2)
    how = How(modes=("off", "explicit"), memories=(2,), answer_tokens=3)

    def run():
        return evaluate.evaluate(collection(), options, how, budgets=("uniform:4",), keep=tmp_path)

    told(monkeypatch, "green", "old")  # then there is nothing left to say
    with pytest.raises(IndexError):
        run()
    results = tmp_path / "results.jsonl"
    results.write_text(results.read_text() + '{"cut off')
    asked = told(monkeypatch, "blue", "green", "old", "blue")
    report = run()
    assert len(asked) == 4 and [row.exact.value for row in report.rows] == [1, 1]
    asked = told(monkeypatch)
    assert run().rows == report.rows and not asked  # also the times
    assert len(list(tmp_path.glob("store-*"))) == 1
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert results.stat().st_mode & 0o777 == 0o600
    assert len(lines) == 6 and lines[0]["asked"] == "What is the boat?"
    # another question, way of asking or document is not answered by what is kept
    told(monkeypatch, *"abc", *"abc")
    how = replace(how, answer_tokens=4)
    assert run().rows[0].exact.value == 0
    results.write_text("{}\n" + results.read_text())
    with pytest.raises(M3Error, match=r"results\.jsonl, line 1: damaged"):
        run()


def test_memories_are_written_once_and_before_an_answer_is_timed(options, monkeypatch):
    written, write = [], Assistant._write_cold

    def remember(assistant, cold):
        written.extend(hit.slot for hit in cold)
        return write(assistant, cold)

    monkeypatch.setattr(Assistant, "_write_cold", remember)
    how = How(modes=("explicit",), memories=(2, 3), answer_tokens=2)
    evaluate.evaluate(collection(), options, how, budgets=("uniform:4",))
    assert sorted(written) == sorted(set(written)) and len(written) == 3


def test_the_same_references_are_pasted_and_read(options, monkeypatch):
    begun, begin = [], EvaluationStore.begin

    def remember(store, message, hits):
        begun.append((message, [hit.text for hit in hits]))
        return begin(store, message, hits)

    monkeypatch.setattr(EvaluationStore, "begin", remember)
    how = How(memories=(2,), answer_tokens=0, instruction="Be brief.")
    evaluate.evaluate(collection(), options, how, budgets=("uniform:4",))
    off, oracle, text, explicit = (begun[n : n + 3] for n in (0, 3, 6, 9))
    assert off[0] == ("What is the boat? Be brief.", [])
    assert oracle[0] == ("The boat is green.\n\nWhat is the boat? Be brief.", [])
    for (pasted, none), (asked, read) in zip(text, explicit, strict=True):
        assert pasted == "\n\n".join([*read, asked]) and len(read) == 2 and not none


def test_recall_counts_passages_whose_answer_is_found(options, monkeypatch):
    """Of two passages of one document, in references of their own, the other does not count."""
    made = Collection()
    parts = ["x " * 60 + "green boat", "y " * 60 + "old cat", "z " * 60 + "green door"]
    path = made.add("a.txt", "\n\n".join(parts))
    for part, said in zip(parts, ("green", "old", "green"), strict=True):
        made.questions.append(Question(part[:20], (said,), (Passage(path, part),)))
    with EvaluationStore(options, "uniform:4") as store:
        store.memorize(made.documents)
        asked = answers._Asked(store, made, How(), Kept(None), {})
        assert asked.recall()[0][20].value == 1
        # a search that finds the third part for all
        third = [hit for hit in asked.hits(20)[0][2] if "door" in hit.text]
        monkeypatch.setattr(store, "recall", lambda *args: third)
        assert asked.recall()[0][1].value == pytest.approx(1 / 3)


def test_references_that_fit_badly_are_neither_read_nor_pasted(options, monkeypatch):
    """The best score of each question among the three documents is between two floors."""
    made = collection()
    with EvaluationStore(options, "uniform:4") as store:
        store.memorize(made.documents)
        scores = [store.recall(q.question, 3)[0].score for q in made.questions]
    floor = (sorted(scores)[-1] + sorted(scores)[-2]) / 2
    monkeypatch.setattr(Assistant, "floor", floor)
    read = []
    begin = EvaluationStore.begin

    def begun(store, message, hits):
        read.append((message.count("\n"), len(hits)))
        return begin(store, message, hits)

    monkeypatch.setattr(EvaluationStore, "begin", begun)
    how = How(modes=("text", "explicit"), memories=(3,), answer_tokens=2)
    report = evaluate.evaluate(made, options, how, budgets=("uniform:4",))
    best = [int(score > floor) for score in scores]
    assert [newlines // 2 for newlines, _ in read[:3]] == [hits for _, hits in read[3:]] == best
    assert report.fitting.value == pytest.approx(1 / 3)
    assert report.recall[20].value == 1  # the search is judged with all that it finds


def test_only_the_documents_of_a_question_are_searched(options):
    made = Collection()
    for name in ("one", "two"):
        path = made.add(f"{name}/a.txt", f"The boat of {name} is green.")
        passage = Passage(path, "The boat")
        made.questions.append(Question("boat", (name,), (passage,), folder=name))
    with EvaluationStore(options, "uniform:4") as store:
        store.memorize(made.documents)
        asked = answers._Asked(store, made, How(), Kept(None), {})
        assert [[hit.path for hit in hits] for hits in asked.hits(5)[0]] == [
            ["one/a.txt"],
            ["two/a.txt"],
        ]
        assert asked.recall()[0][1].value == 1


def test_of_a_long_document_the_reference_that_answers_is_pasted(options):
    made = Collection()
    path = made.add("a.txt", "boat " * 40 + "\n\nThe answer is 42.\n\n" + "boat " * 40)
    with EvaluationStore(options, "uniform:4") as store:
        store.memorize(made.documents)
        asked = answers._Asked(store, made, How(), Kept(None), {})
        (gold,) = asked._gold(Question("boat", ("42",), (Passage(path),)))
        assert "42" in gold and len(gold) < 200


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_answers_decoded_together_are_those_decoded_alone(options, tmp_path, family):
    """Beside different numbers of memories, of prompts of different lengths."""
    model = save_model(tmp_path / "model", family)
    with EvaluationStore(replace(options, model=str(model)), "uniform:4") as store:
        store.memorize({f"{n}.txt": f"The boat {n} is {'very ' * n}old." for n in range(4)})
        hits = store.search("boat", 4)
        asks = [("What?", hits[:3]), ("Where is it?", []), ("x " * 60, hits[:1]), ("Who", hits)]
        alone = [store.begin(*ask)[:2] for ask in asks]
        alone = ["".join(step.text for step in c.decode(logits, 12)) for c, logits in alone]
        together = [(*store.begin(*ask)[:2], False) for ask in asks]
        assert answer(store.assistant.decoder, together, 12) == alone
        assert len(set(alone)) == 4


def test_half_keeps_as_many_in_each_head_of_the_first_half_of_the_layers(options):
    with EvaluationStore(options, "half:4") as store:
        config = store.assistant.format.config
        assert config.counts == ((4, 4), (4, 4), (0, 0), (0, 0)) and config.budget == "uniform"
        store.memorize({"a.txt": "The boat is green."})
        assert store.assistant.status()["references"] == 1


def test_kept_stores_are_those_of_their_memories(options, tmp_path):
    """A default that changes does not find the memories of the old one."""
    folders = []
    for budget, name in (
        ("uniform:4", ""),
        ("uniform:8", ""),
        ("uniform:4", "x"),
        ("uniform:4", ""),
    ):
        with EvaluationStore(options, budget, keep=tmp_path, name=name) as store:
            folders.append(store.assistant.store_path)
            store.memorize({"a.txt": "The boat is green."})
            assert store.assistant.format.config.tokens_per_head == int(budget[-1])
    assert folders[3] == folders[0] and len(set(folders)) == 3
    assert {path.parent for path in folders} == {tmp_path}


def test_reciting_has_its_controls(options, monkeypatch):
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdef ", k=60)) for _ in range(4)] + ["short"]
    with EvaluationStore(options, "uniform:60") as store:
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
    with EvaluationStore(options, "uniform:60") as store:
        table = evaluate.recite(store, texts[:4], answer_tokens=8)
    first = table.rows[0]
    assert first["exact"] == first["characters"] == first["4 tokens"] == first["8 tokens"] == 1
    assert first["beginning"] == 8 and first["16 tokens"] == 0
    second = table.rows[1]  # its first text has one wrong character, its second is another's
    assert second["exact"] == 0 and 0 < second["characters"] < 1


def test_texts_too_short_to_recite_are_refused(options):
    refused = pytest.raises(M3Error, match="fewer than two of the documents have 44 tokens")
    with EvaluationStore(options, "uniform:4") as store, refused:
        evaluate.recite(store, ["a" * 50, "b"])


def test_a_changed_fact_is_read_and_the_search_follows(options):
    # the third has no other answer, so that its document is left out
    questions = collection(("boat", "red"), ("cat", "young"))
    boat = questions.questions[0]
    questions.questions.append(Question("What is green?", ("boat",), boat.passages))
    others = [f"Note {i} of the tide tables." for i in range(12)]
    with EvaluationStore(options, "uniform:8") as store:
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
    with EvaluationStore(options, "uniform:8") as store, refused:
        evaluate.update(store, collection())


@pytest.mark.parametrize("budget", ["uniform:8", "half:8"])
def test_a_changed_document_takes_the_place_of_the_old(options, budget):
    with EvaluationStore(options, budget) as store:
        counts = store.assistant.format.config.counts
        store.memorize({"a.txt": "The boat is green."})
        store.memorize({"a.txt": "The boat is red."})
        (hit,) = store.search("boat")
        assert "red" in hit.text and hit.path == "a.txt"
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
    with EvaluationStore(options, "uniform:4") as store:
        table = evaluate.choose(store, questions)
    rows = {row["mode"]: row for row in table.rows}
    assert list(rows) == ["chance", "off", "explicit", "text", "oracle"]
    assert rows["chance"]["right"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    # the same losses as of each answer by itself
    with EvaluationStore(options, "uniform:4") as store:
        both = [result.nll for result in store.ask("What is 0?", ["a", "b cd"], [], 0)]
        assert both == [store.ask("What is 0?", [c], [], 3)[0].nll for c in ("a", "b cd")]
    file.write_text("\n".join(map(json.dumps, lines)))
    refused = pytest.raises(M3Error, match="no line has a document")
    with EvaluationStore(options, "uniform:4") as store, refused:
        evaluate.choose(store, evaluate.read_choices(file))


def test_shares_of_right_choices_have_their_error_and_change(options, monkeypatch):
    """By hand: off is right once in four, explicit memory three times, text and oracle always."""

    def ask(store, text, choices, hits, answer_tokens):
        number, pasted = int(text[-2]), "right" in text  # a question ends with its number
        right = pasted or number < (3 if hits else 1)
        return [Result(1.0 if (choice == "b") == right else 2.0, None) for choice in choices]

    monkeypatch.setattr(EvaluationStore, "ask", ask)
    questions = [Choice(f"What is {i}?", ("a", "b"), 1, f"b is right {i}") for i in range(4)]
    with EvaluationStore(options, "uniform:4") as store:
        table = evaluate.choose(store, questions)
    assert [(row["mode"], row["right"], row["change"]) for row in table.rows] == [
        *(("chance", 0.5, None), ("off", 0.25, None), ("explicit", 0.75, 0.5)),
        *(("text", 1, 0.75), ("oracle", 1, 0.75)),
    ]
    errors = [row["error"] for row in table.rows]
    assert errors == pytest.approx([0.25, 0.2165, 0.2165, 0, 0], abs=1e-4)


def test_a_limit_spreads_over_the_file():
    assert evaluate.spread(range(10), 3) == [0, 3, 6]
    assert evaluate.spread(range(3), 9) == evaluate.spread(range(3), None) == range(3)
    made = collection()
    boat, cat, door = made.questions
    made.questions.insert(1, replace(boat, question="x"))
    assert made.with_documents(2).questions == [boat, made.questions[1], cat]
    assert made.limited(2).documents == made.documents
    # documents that a question brings go with it
    made.questions = [replace(q, own=(q.passages[0].path,)) for q in (boat, cat, door)]
    assert list(made.limited(1).documents) == ["boat.txt"]


def test_a_cue_and_what_is_recited_of_it_fit_into_one_reference():
    recited = signature(evaluate.recite).parameters["answer_tokens"].default
    assert CUE + recited <= REFERENCE_TOKENS


def test_edits_are_counted():
    pairs = [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abd", 1)]
    assert [edits(a, b) for a, b, _ in pairs] == [n for *_, n in pairs]
