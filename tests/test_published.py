"""Files of published sets: a small one of our own writing in each format, and broken ones."""

import copy
import gzip
import json

import pytest

from m3mlx import evaluate
from m3mlx.errors import M3Error
from m3mlx.evaluate import Passage, read_questions
from m3mlx.evaluate.questions import Collection, title_path

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Salt_mills",
            "paragraphs": [
                {
                    "context": "The mill at Orn was built in 1811.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "When was the mill built?",
                            "answers": [
                                {"text": "1811", "answer_start": 29},
                                {"text": "1811", "answer_start": 29},
                                {"text": "in 1811", "answer_start": 26},
                            ],
                        }
                    ],
                },
                {
                    "context": "Its owner was Ada Quill.",
                    "qas": [
                        {"question": "Who owned it?", "answers": [{"text": "Ada Quill"}]},
                        {"question": "Who sold it?", "answers": [], "is_impossible": True},
                    ],
                },
            ],
        }
    ],
}
NQ = {
    "question": "who built the orn mill",
    "answers": ["Ada Quill", "Quill"],
    "ctxs": [
        {"id": "7", "title": "Orn", "text": "Orn lies by the sea.", "isgold": False},
        {"id": "8", "title": "Mill", "text": "The mill is Ada Quill's work.", "isgold": True},
    ],
    "nq_annotated_gold": {"title": "Mill", "short_answers": ["Ada Quill"]},
}
HOTPOT = [
    {
        "_id": "x1",
        "question": "Where was the builder of the Orn mill born?",
        "answer": "Hask",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Orn mill", 0], ["Ada Quill", 1], ["Orn mill", 1]],
        "context": [
            ["Orn", ["Orn is a village.", " It lies by the sea."]],
            ["Orn mill", ["The mill was built by Ada Quill.", " It grinds salt."]],
            ["Ada Quill", ["Ada Quill was a builder.", " She was born in Hask."]],
        ],
    }
]
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Where was the mill's builder born?",
    "answer": "Hask",
    "answer_aliases": ["Hask on Sea", "Hask"],
    "answerable": True,
    "question_decomposition": [{"id": 1}, {"id": 2}],
    "paragraphs": [
        {"idx": 0, "title": "Mill", "paragraph_text": "Built by Quill.", "is_supporting": True},
        {"idx": 1, "title": "Orn", "paragraph_text": "By the sea.", "is_supporting": False},
        {"idx": 2, "title": "Quill", "paragraph_text": "Born in Hask.", "is_supporting": True},
    ],
}
LOCOMO = [
    {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ida",
            "speaker_b": "Bo",
            "session_1_date_time": "1:10 pm on 3 May, 2031",
            "session_1": [
                {"speaker": "Ida", "dia_id": "D1:1", "text": "I bought a kayak."},
                {"speaker": "Bo", "dia_id": "D1:2", "text": "", "blip_caption": "a red kayak"},
            ],
            "session_2_date_time": "8:00 am on 9 May, 2031",
            "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "Did you paddle?"}],
            "session_3_date_time": "8:00 am on 12 May, 2031",
            "session_3": [],
        },
        "qa": [
            {"question": "What, when?", "answer": "a kayak", "evidence": ["D1:1"], "category": 2},
            {"question": "Which year?", "answer": 2031, "evidence": ["D2:1; D1:2"], "category": 4},
            {"question": "Why?", "answer": "fun; health", "evidence": [], "category": "3"},
            {
                "question": "Who sank it?",
                "adversarial_answer": "Bo",
                "evidence": "['D2:1']",
                "category": 5,
            },
        ],
        "event_summary": {},
    }
]
RULER = {
    "index": 3,
    "input": "Some special magic numbers are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the numbers afterwards.\nSalt is ground here. One of the "
    "special magic numbers for red-mill is: 1234567. The sea is near. One of the special magic "
    "numbers for red-mill is: 7654321. Boats lie there.\nWhat are all the special magic numbers "
    "for red-mill mentioned in the provided text? The special magic numbers for red-mill "
    "mentioned in the provided text are",
    "outputs": ["7654321", "1234567"],
    "length": 120,
}
COLLECTION = {
    "documents": [{"path": "00.txt", "document": "First part.\n\nThe mill is old."}],
    "questions": [{"path": "00.txt", "question": "Its age?", "answers": ["old"], "passage": 1}],
}
LINE = {"question": "Its age?", "answers": ["old"], "title": "Orn/mill", "document": "It is old."}


def read(tmp_path, *values, name="set.json"):
    file = tmp_path / name
    text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_questions(file)


def test_squad_is_read_by_articles(tmp_path):
    made = read(tmp_path, SQUAD)
    whole = "The mill at Orn was built in 1811.\n\nIts owner was Ada Quill."
    assert made.documents == {"Salt_mills.txt": whole}
    built, owner, sold = made.questions
    assert built.answers == ("1811", "in 1811") and sold.answers == ()
    assert built.passages == (Passage("Salt_mills.txt", "The mill at Orn was built in 1811."),)
    assert owner.passages[0].text == "Its owner was Ada Quill." and not owner.own


def test_nq_is_read_with_its_other_passages(tmp_path):
    made = read(tmp_path, NQ, {**NQ, "question": "again"}, name="nq.jsonl.gz")
    assert list(made.documents) == ["Orn.txt", "Mill.txt"]
    first, _ = made.questions
    assert first.answers == ("Ada Quill", "Quill") and first.own == ("Orn.txt", "Mill.txt")
    assert first.passages == (Passage("Mill.txt", "The mill is Ada Quill's work."),)
    oracle = read(tmp_path, {**NQ, "ctxs": NQ["ctxs"][1:]})
    assert oracle.questions[0].own == ()  # all are searched, however few questions are asked


def test_hotpot_and_2wiki_are_read_with_distractors(tmp_path):
    made = read(tmp_path, HOTPOT)
    (question,) = made.questions
    assert made.documents["Orn.txt"] == "Orn is a village. It lies by the sea."
    assert [passage.path for passage in question.passages] == ["Orn mill.txt", "Ada Quill.txt"]
    assert question.kind == "bridge" and len(question.own) == 3 and question.answers == ("Hask",)
    wiki = copy.deepcopy(HOTPOT)
    del wiki[0]["level"]
    wiki[0]["evidences"] = [["Orn mill", "builder", "Ada Quill"]]
    wiki[0]["context"] = [[title, [s.strip() for s in text]] for title, text in wiki[0]["context"]]
    assert read(tmp_path, wiki) == made


def test_musique_is_read_with_aliases_and_what_cannot_be_answered(tmp_path):
    made = read(tmp_path, MUSIQUE, {**MUSIQUE, "answerable": False}, name="musique.jsonl")
    first, other = made.questions
    assert first.answers == ("Hask", "Hask on Sea") and first.kind == "2 hops"
    assert [passage.text for passage in first.passages] == ["Built by Quill.", "Born in Hask."]
    assert other.answers == () and len(made.documents) == 3


def test_locomo_is_read_by_sessions(tmp_path):
    made = read(tmp_path, [*LOCOMO, *LOCOMO])
    session = "1:10 pm on 3 May, 2031\nIda: I bought a kayak.\nBo: [shares a red kayak]"
    assert made.documents["conversation-1/session_1.txt"] == session
    assert list(made.documents) == [
        f"conversation-{n}/session_{m}.txt" for n in (1, 2) for m in (1, 2)
    ]
    when, year, why, who = made.questions[:4]
    assert [q.kind for q in (when, year, why, who)] == [
        *("temporal", "single-hop", "open-domain", "unanswerable"),
    ]
    assert (year.answers, why.answers, who.answers) == (("2031",), ("fun",), ())
    assert [passage.text for passage in year.passages] == [
        *("Bo: Did you paddle?", "Bo: [shares a red kayak]"),
    ]
    assert who.passages == (Passage("conversation-1/session_2.txt", "Bo: Did you paddle?"),)
    assert when.folder == "conversation-1" != made.questions[4].folder


def test_ruler_is_cut_into_text_and_question(tmp_path):
    made = read(tmp_path, RULER, name="validation.jsonl")
    (question,) = made.questions
    text = made.documents["text-1/text.txt"]
    assert text.startswith("Salt is ground") and text.endswith("Boats lie there.")
    assert question.question.startswith("What are all the special magic numbers for red-mill")
    assert question.question.endswith("provided text?") and question.every
    needle = "One of the special magic numbers for red-mill is: 7654321."
    assert question.passages[0] == Passage("text-1/text.txt", needle)
    # one needle, all in one line, as the generator also writes it
    single = {**RULER, "input": RULER["input"].replace("\n", " "), "outputs": ["1234567"]}
    for old, new in (
        ("Some", "A"),
        ("numbers are", "number is"),
        ("are all", "is"),
        ("s for", " for"),
    ):
        single["input"] = single["input"].replace(old, new)
    assert (
        read(tmp_path, single).questions[0].question.startswith("What is the special magic number")
    )


def test_collections_and_lines_are_read(tmp_path):
    made = read(tmp_path, COLLECTION)
    assert made.questions[0].passages == (Passage("00.txt", "The mill is old."),)
    long = {**LINE, "document": "It is old. " * 300}
    same = {**LINE, "question": "What is it?", "passage": "old", "kind": "how"}
    made = read(tmp_path, LINE, same, long, {**LINE, "document": "It is older."})
    assert list(made.documents) == ["Orn-mill.txt", "2-Orn-mill.txt", "3-Orn-mill.txt"]
    texts = [question.passages[0].text for question in made.questions]
    assert texts == ["It is old.", "old", "", "It is older."] and made.questions[1].kind == "how"


def test_line_separators_within_a_text_end_no_line(tmp_path):
    (question,) = read(
        tmp_path, json.dumps({**LINE, "question": "a\u2028b"}, ensure_ascii=False)
    ).questions
    assert question.question == "a\u2028b"


def test_paths_are_no_patterns_and_stay_apart():
    made = Collection()
    assert title_path("AC/DC  live") == "AC-DC live.txt"
    assert made.add("what?*[x].txt", "a") == "what---x-.txt"
    assert made.add("d/a.txt", "one") == made.add("d/b.txt", "one") == "d/a.txt"
    assert made.add("d/a.txt", "two") == "d/2-a.txt" and made.add("e/a.txt", "one") == "e/a.txt"


def without(value, *path):
    """A copy of nested lists and dicts without the last key of a path."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return value


def changed(value, *path):
    """A copy with the last element of ``path`` at the place that the others name."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-2]:
        inner = inner[key]
    inner[path[-2]] = path[-1]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (without(SQUAD, "data", 0, "title"), "line 1.*SQuAD.*data 1: 'title' is missing"),
        (
            without(SQUAD, "data", 0, "paragraphs", 1, "qas", 0, "answers"),
            "data 1: paragraphs 2: qas 1: 'answers' is missing",
        ),
        (changed(SQUAD, "data", 0, "paragraphs", 0, "qas", 0, "answers", []), "there is no answer"),
        (changed(SQUAD, "data", 0, "paragraphs", {}), "paragraphs is no list"),
        (without(NQ, "ctxs", 1, "text"), "NQ-open.*ctxs 2: 'text' is missing"),
        (changed(NQ, "answers", "Quill"), "a list of texts should"),
        (changed(HOTPOT, 0, "context", [["Orn"]]), "item 1.*HotpotQA"),
        (changed(HOTPOT, 0, "supporting_facts", [["x", 0]]), "'x' is missing"),
        (without(HOTPOT, 0, "answer"), "'answer' is missing"),
        (
            changed(MUSIQUE, "paragraphs", 0, "paragraph_text", ""),
            "paragraphs 1: an empty text stands where text should",
        ),
        (changed(MUSIQUE, "paragraphs", 2, "x"), "MuSiQue.*paragraphs 3"),
        (without(LOCOMO, 0, "qa", 0, "answer"), "item 1.*LoCoMo.*qa 1: 'answer' is missing"),
        (changed(LOCOMO, 0, "qa", 0, "category", 9), "qa 1"),
        (without(LOCOMO, 0, "conversation", "session_1_date_time"), "session_1_date_time"),
        (without(LOCOMO, 0, "conversation", "session_1", 0, "speaker"), "session_1 1: 'speaker'"),
        (changed(RULER, "outputs", ["99"]), "RULER.*an output is not hidden"),
        (changed(RULER, "input", "Count the words."), "none of a needle task"),
        (changed(COLLECTION, "questions", 0, "path", "x"), "questions 1: 'x' is missing"),
        (changed(COLLECTION, "questions", 0, "passage", 7), "questions 1: list index"),
        (changed(LINE, "answers", []), "line 1.*no answer"),
        (changed(LINE, "answers", ["a", 3]), "line 1.*a number stands where text should"),
        ([LINE, [LINE]], "item 2.*expected a JSON object"),
        (3, "line 1.*it is a number"),
        ([], "there are no questions"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, value, words):
    with pytest.raises(M3Error, match=words) as caught:
        read(tmp_path, value)
    assert str(tmp_path / "set.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_compressed_file_that_is_cut_off_is_named(tmp_path):
    file = tmp_path / "set.json.gz"
    file.write_bytes(gzip.compress(json.dumps(SQUAD).encode())[:-20])
    with pytest.raises(M3Error, match=r"set\.json\.gz: cannot be read"):
        read_questions(file)


GOOD = {"document": "d e", "question": "q", "answer": "e", "choices": ["e", "f"]}


@pytest.mark.parametrize(
    ("read", "line", "words"),
    [
        ("questions", {**GOOD, "changed": 3}, "line 2.*a number stands"),
        ("questions", {**GOOD, "answer": "x", "changed": "y"}, "line 2.*stand in the document"),
        ("documents", {"document": ""}, "line 2.*expected.*a document"),
        ("documents", {"text": "a"}, "line 2.*document"),
        ("choices", {**GOOD, "choices": ["e"]}, "line 2.*at least two"),
        ("choices", {**GOOD, "choices": ["e", "e"]}, "line 2.*different"),
        ("choices", {**GOOD, "answer": "g"}, "line 2.*one of"),
        ("choices", {**GOOD, "choices": [1, 2]}, "line 2.*a number stands"),
        ("choices", {**GOOD, "choices": 5}, "line 2"),
    ],
)
def test_bad_lines_are_named(tmp_path, read, line, words):
    file = tmp_path / "file.jsonl"
    file.write_text("\n".join(map(json.dumps, [GOOD, line])))
    with pytest.raises(M3Error, match=words):
        getattr(evaluate, f"read_{read}")(file)
