"""The texts that we wrote: calibration sample, evaluation questions, demo documents, licence."""

import importlib.util
import io
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import docx
import pypdf
import pytest

from m3mlx import documents

ROOT = Path(__file__).parents[1]
DATA = ROOT / "m3mlx" / "data"
DEMO = DATA / "demo"
CALIBRATION = DATA / "calibration.jsonl"
QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"

# Words that may stand with a capital in two sets without being a name that they share.
ORDINARY = """
    January February March April May June July August September October November December
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday Mondays Tuesdays Wednesdays Thursdays
    Fridays Saturdays Sundays Mr Mrs Miss Ms Dr Dear From To Date Subject Close Notice Our Tickets
"""
COMPANIES = """
    Adobe Airbus Airbnb Alibaba Amazon Anthropic Apple BMW Boeing Bosch Cisco Coca-Cola Disney
    Facebook Ford Google Honda Huawei IBM IKEA Instagram Intel Lego McDonald's Mercedes Meta
    Microsoft Nestlé Netflix Nike Nokia Nvidia OpenAI Oracle PayPal Pepsi Philips Samsung Shell
    Siemens Sony Spotify Starbucks Tesla Toyota Twitter Uber Unilever Visa Volkswagen Volvo
    Walmart WhatsApp YouTube
"""


def rows(path: Path) -> list[dict[str, str]]:
    """Each question with its document; a line has one question or several."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{**line, **asked} for line in lines for asked in line.get("questions", [line])]


def flat(text: str) -> str:
    return " ".join(text.split())


def demo_questions() -> list[dict[str, str]]:
    return json.loads((DATA / "demo.json").read_text(encoding="utf-8"))["questions"]


def demo_files() -> list[Path]:
    return sorted(path for path in DEMO.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def demo_texts() -> dict[str, str]:
    return {path.name: flat(documents.read(path).text) for path in demo_files()}


@pytest.fixture(scope="module")
def sets(demo_texts: dict[str, str]) -> dict[str, str]:
    """The whole text of each of the three sets."""
    return {
        "calibration": "\n".join(row["document"] for row in rows(CALIBRATION)),
        "questions": "\n".join(dict.fromkeys(row["document"] for row in rows(QUESTIONS))),
        "demo": "\n".join(demo_texts.values()),
    }


@pytest.fixture(scope="module")
def make_demo():
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "tools" / "make_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", [CALIBRATION, QUESTIONS], ids=lambda path: path.stem)
def test_answers_are_short_and_stand_verbatim_in_their_documents_only(path):
    everything = {row["document"] for row in rows(path)}
    for row in rows(path):
        answer, question = row["answer"], row["question"]
        assert 1 <= len(answer.split()) <= 6, answer
        assert [text for text in everything if answer in text] == [row["document"]], answer
        assert answer.lower() not in question.lower(), question
        assert question.endswith("?"), question


@pytest.mark.parametrize("path", [CALIBRATION, QUESTIONS], ids=lambda path: path.stem)
def test_documents_are_short_enough_for_one_reference(path):
    # English words and the numbers in them stay under 128 tokens; digits are a token each.
    for row in rows(path):
        pieces = re.findall(r"\d|[^\W\d]+|[^\w\s]+", row["document"])
        assert len(row["document"].split()) <= 90, row["document"]
        assert len(pieces) <= 125, row["document"]


def test_calibration_is_small_and_asks_for_two_things_of_each_document():
    assert CALIBRATION.stat().st_size < 24_000
    asked = Counter(row["document"] for row in rows(CALIBRATION))
    assert len(asked) == 24 and set(asked.values()) == {2}
    assert len({(row["document"], row["answer"]) for row in rows(CALIBRATION)}) == 48


def test_evaluation_has_two_questions_on_each_of_24_documents():
    lines = rows(QUESTIONS)
    assert len(lines) == 48 and len({line["question"] for line in lines}) == 48
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first["path"], first["document"]) == (second["path"], second["document"])
        assert first["answer"] != second["answer"]
    assert len({line["path"] for line in lines}) == 24
    assert len({line["document"] for line in lines}) == 24


def test_the_three_sets_share_no_names_and_no_long_numbers(sets):
    lower_case = set(re.findall(r"\b[a-z][\w'-]*", "\n".join(sets.values())))
    names, numbers = {}, {}
    for which, text in sets.items():
        capitals = set(re.findall(r"\b[A-Z][\w'-]*\w", text)) - set(ORDINARY.split())
        names[which] = {word for word in capitals if word.lower() not in lower_case}
        numbers[which] = set(re.findall(r"\d[\d.,:]*\d\d", text))
        assert len(names[which]) > 30
    for one, other in combinations(sets, 2):
        assert names[one] & names[other] == set(), (one, other)
        assert numbers[one] & numbers[other] == set(), (one, other)


def test_no_answer_of_one_set_is_given_in_another(sets):
    answers = {
        "calibration": [row["answer"] for row in rows(CALIBRATION)],
        "questions": [row["answer"] for row in rows(QUESTIONS)],
        "demo": [row["answer"] for row in demo_questions()],
    }
    for one, other in combinations(sets, 2):
        assert [answer for answer in answers[one] if answer in sets[other]] == []
        assert [answer for answer in answers[other] if answer in sets[one]] == []


def test_no_big_company_is_named(sets):
    for which, text in sets.items():
        found = [name for name in COMPANIES.split() if re.search(rf"\b{re.escape(name)}\b", text)]
        assert found == [], which


def test_demo_files_are_read_whole_in_every_format(demo_texts):
    suffixes = " ".join(sorted(Path(name).suffix for name in demo_texts))
    assert suffixes == ".csv .docx .eml .html .md .pdf .py .txt"
    last_words = {
        "exposure.py": "12 if moonlit else 5",
        "history.pdf": "stayed dark.",
        "night-diary.txt": "night assistant",
        "roof-repair.eml": "Dorrit Halgrave",
        "telescopes.csv": "Ulric Penn",
        "visitors.html": "for 4.80 each.",
        "volunteers.docx": "Thea Brockwell.",
        "welcome.md": "with the stove lit.",
    }
    for name, words in last_words.items():
        assert words in demo_texts[name][-40:], name
    assert all(len(text.split()) <= 250 for text in demo_texts.values())


def test_demo_answers_stand_in_their_own_file_only(demo_texts):
    questions = demo_questions()
    assert len(questions) == 3 and len({row["path"] for row in questions}) == 3
    assert {Path(row["path"]).suffix for row in questions} & {".pdf", ".docx"}
    for row in questions:
        assert [name for name, text in demo_texts.items() if row["answer"] in text] == [row["path"]]
        assert 1 <= len(row["answer"].split()) <= 6


def test_the_demo_is_small():
    assert (DEMO / "history.pdf").stat().st_size < 30_000
    assert sum(path.stat().st_size for path in demo_files()) < 64_000


def test_the_binary_demo_files_are_what_the_tool_writes(make_demo, tmp_path):
    make_demo.main(tmp_path)
    assert (tmp_path / "history.pdf").read_bytes() == (DEMO / "history.pdf").read_bytes()
    # The zip inside depends on the version of zlib, so compare what a reader sees.
    made, shipped = (docx.Document(folder / "volunteers.docx") for folder in (tmp_path, DEMO))
    assert [p.text for p in made.paragraphs] == [p.text for p in shipped.paragraphs]
    assert [p.text for p in made.paragraphs] == make_demo.VOLUNTEERS


def test_the_tool_writes_the_same_bytes_every_time(make_demo, monkeypatch):
    first = make_demo.docx_bytes(make_demo.VOLUNTEERS)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert make_demo.docx_bytes(make_demo.VOLUNTEERS) == first
    assert make_demo.pdf_bytes(make_demo.HISTORY) == make_demo.pdf_bytes(make_demo.HISTORY)


def test_the_pdf_writer_makes_pages_that_a_strict_reader_understands(make_demo):

    pages = [["A (b) \\ c", "café 5–6 " * 30], ["Second"], ["Third", "one", "two"]]
    reader = pypdf.PdfReader(io.BytesIO(make_demo.pdf_bytes(pages)), strict=True)
    read = [flat(page.extract_text()) for page in reader.pages]
    assert read == [flat(" ".join(page)) for page in pages]


def test_the_pdf_writer_refuses_what_its_font_cannot_show(make_demo):
    with pytest.raises(UnicodeEncodeError):
        make_demo.pdf_bytes([["日本"]])


def test_the_licence_is_mit_and_ours():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) 2026 The m3mlx founders\n")
