"""Read the files of evaluations: those of published sets, and lines of JSON.

A published set is known by its keys. Each is read from the file as its authors publish it, which
may be compressed by gzip. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import M3Error
from .edits import Edit
from .questions import Choice, Collection, Passage, Question, title_path

T = TypeVar("T")

LOCOMO_KINDS = ("multi-hop", "temporal", "open-domain", "single-hop", "unanswerable")
RULER = re.compile(  # the prompt of a needle task: instructions, text, question, begun answer
    r"special magic \S+ (?:is|are) hidden within the following text\..*?afterwards\.\s+"
    r"(?P<text>.+)\s(?P<question>What (?:is|are all) the special magic [^?]*\?)",
    re.DOTALL,
)
NEEDLE = r"[^.!?\n]*special magic [^.!?\n]*: {}\."
PASSAGE_CHARACTERS = 2000  # a document of a line up to this long is its own passage
EVIDENCE = re.compile(r"D\d+:\d+")

_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def read_questions(path: str | Path) -> Collection:
    """Read questions with their documents.

    Lines of JSON have a question, its answer or answers, its document and, where known, a path or
    title, the passage that answers, a kind, and another answer as ``changed``. The other formats
    are those of published sets.

    Raises:
        M3Error: the file or a part of it cannot be read; names the line or field.
    """
    collection = Collection()
    for place, number, record in _records(path):
        read = next((read for keys, read in _FORMATS if keys <= record.keys()), _read_line)
        with _located(f"{path}, {place}: expected {_EXPECTED[read]}"):
            read(collection, record, number)
    if not collection.questions:
        raise M3Error(f"{path}: there are no questions in it")
    return collection


def read_documents(path: str | Path) -> list[str]:
    """Read lines with a document; equal ones are returned once.

    Raises:
        M3Error: as ``read_questions``.
    """
    found = _lines(path, "a document", lambda data: _text(data["document"]))
    return list(dict.fromkeys(found))


def read_choices(path: str | Path) -> list[Choice]:
    """Read lines with question, choices, the right one as answer and, if given, document.

    Raises:
        M3Error: as ``read_questions``.
    """

    def read(data: dict) -> Choice:
        choices, answer = tuple(map(_text, data["choices"])), _text(data["answer"])
        document = _text(data.get("document", ""), blank=True)
        if len(set(choices)) != len(choices) or len(choices) < 2 or answer not in choices:
            raise ValueError("the answer must be one of at least two different choices")
        return Choice(_text(data["question"]), choices, choices.index(answer), document)

    return _lines(path, "question, choices and answer", read)


def read_edits(path: str | Path) -> list[Edit]:
    """Read the lines of a file, each with subject, question, rephrase, old, new and unrelated."""

    def read(data: dict) -> Edit:
        names = ("subject", "question", "rephrase", "unrelated")
        texts = {name: _text(data[name]) for name in names}
        return Edit(**texts, old=_texts(data["old"]), new=_text(data["new"], blank=True))

    return _lines(path, "an edit", read)


def _lines(path: str | Path, wanted: str, read: Callable[[dict], T]) -> list[T]:
    found = []
    for place, _, record in _records(path):
        with _located(f"{path}, {place}: expected a JSON object with {wanted}"):
            found.append(read(record))
    if not found:
        raise M3Error(f"{path}: there are no lines in it")
    return found


# --- one record each


def _read_line(collection: Collection, data: dict, number: int) -> None:
    text, question = _text(data["document"]), _text(data["question"])
    answers = _texts(data["answers"]) if "answers" in data else (_text(data["answer"]),)
    changed = _text(data.get("changed", ""), blank=True)
    if changed and answers[0] not in text:
        raise ValueError("the answer must stand in the document if it is changed")
    name = title_path(_text(data.get("title", f"document-{number}")))
    path = collection.add(_text(data.get("path", name)), text)
    passage = _text(data.get("passage", ""), blank=True)
    gold = Passage(path, passage or (text if len(text) <= PASSAGE_CHARACTERS else ""))
    kind = str(data.get("kind", ""))
    collection.questions.append(Question(question, answers, (gold,), kind=kind, changed=changed))


def _read_collection(collection: Collection, data: dict, number: int) -> None:
    """Documents with their paths, and questions with a path and the number of a paragraph."""
    paths = {}

    def read_document(item: dict) -> None:
        paths[item["path"]] = collection.add(_text(item["path"]), _text(item["document"]))

    def read_question(item: dict) -> None:
        path = paths[item["path"]]
        paragraphs = collection.documents[path].split("\n\n")
        gold = Passage(path, paragraphs[item["passage"]] if "passage" in item else "")
        answers = _texts(item["answers"])
        collection.questions.append(Question(_text(item["question"]), answers, (gold,)))

    _map(data, "documents", read_document)
    _map(data, "questions", read_question)


def _read_squad(collection: Collection, data: dict, number: int) -> None:
    def read_article(article: dict) -> None:
        texts = _map(article, "paragraphs", lambda paragraph: _text(paragraph["context"]))
        path = collection.add(title_path(_text(article["title"])), "\n\n".join(texts))
        _map(article, "paragraphs", lambda paragraph: read_paragraph(path, paragraph))

    def read_paragraph(path: str, paragraph: dict) -> None:
        gold = Passage(path, paragraph["context"])
        _map(paragraph, "qas", lambda item: read_question(gold, item))

    def read_question(gold: Passage, item: dict) -> None:
        found = _map(item, "answers", lambda answer: _text(answer["text"]))
        if not found and not item.get("is_impossible"):
            raise ValueError("there is no answer")
        answers = () if item.get("is_impossible") else tuple(dict.fromkeys(found))
        collection.questions.append(Question(_text(item["question"]), answers, (gold,)))

    _map(data, "data", read_article)


def _read_nq(collection: Collection, data: dict, number: int) -> None:
    """A question with the gold passage and others, or in the oracle file with it alone."""
    gold: list[Passage] = []

    def read_passage(item: dict) -> str:
        text = _text(item["text"])
        path = collection.add(title_path(_text(item["title"])), text)
        if item["isgold"]:
            gold.append(Passage(path, text))
        return path

    own = _map(data, "ctxs", read_passage)
    question, answers = _text(data["question"]), _texts(data["answers"])
    among = tuple(own) if len(own) > 1 else ()
    collection.questions.append(Question(question, answers, tuple(gold), own=among))


def _read_hotpot(collection: Collection, data: dict, number: int) -> None:
    """HotpotQA in the distractor setting, or 2WikiMultihopQA, which has the same keys."""
    passages = {}
    for title, sentences in data["context"]:
        text = " ".join(_text(sentence).strip() for sentence in sentences)
        passages[title] = Passage(collection.add(title_path(_text(title)), text), text)
    needed = dict.fromkeys(title for title, _ in data["supporting_facts"])
    gold = [passages[title] for title in needed]
    _add_multihop(collection, data, list(passages.values()), gold, str(data.get("type", "")))


def _read_musique(collection: Collection, data: dict, number: int) -> None:
    gold: list[Passage] = []

    def read_paragraph(item: dict) -> Passage:
        text = _text(item["paragraph_text"])
        passage = Passage(collection.add(title_path(_text(item["title"])), text), text)
        if item["is_supporting"]:
            gold.append(passage)
        return passage

    passages = _map(data, "paragraphs", read_paragraph)
    hops = len(data.get("question_decomposition", ()))
    _add_multihop(collection, data, passages, gold, f"{hops} hops" if hops else "")


def _add_multihop(
    collection: Collection,
    data: dict,
    passages: Sequence[Passage],
    gold: Sequence[Passage],
    kind: str,
) -> None:
    answers = _texts([data["answer"], *data.get("answer_aliases", ())])
    if not data.get("answerable", True):
        answers = ()
    own = tuple(passage.path for passage in passages)
    question = Question(_text(data["question"]), answers, tuple(gold), kind=kind, own=own)
    collection.questions.append(question)


def _read_locomo(collection: Collection, data: dict, number: int) -> None:
    """A long conversation of two people, whose sessions are documents of a folder."""
    said: dict[str, Passage] = {}
    folder = f"conversation-{number}"
    talk = data["conversation"]
    own = []
    for name in (name for name in talk if re.fullmatch(r"session_\d+", name) and talk[name]):
        turns = dict(_map(talk, name, lambda turn: (_text(turn["dia_id"]), _said(turn))))
        text = "\n".join([_text(talk[f"{name}_date_time"]), *turns.values()])
        own.append(collection.add(f"{folder}/{name}.txt", text))
        said |= {place: Passage(own[-1], turn) for place, turn in turns.items()}

    def read_question(item: dict) -> Question:
        kind = LOCOMO_KINDS[int(item["category"]) - 1]
        answers: tuple[str, ...] = ()
        if kind != "unanswerable":
            answer = str(item["answer"])  # some are numbers
            if kind == "open-domain":
                answer = answer.split(";")[0]  # as the set's own script: the first alternative
            answers = (_text(answer).strip(),)
        evidence = EVIDENCE.findall(str(item.get("evidence", "")))  # some lists are in a text
        gold = tuple(said[place] for place in dict.fromkeys(evidence) if place in said)
        question = _text(item["question"])
        return Question(question, answers, gold, kind=kind, own=tuple(own), folder=folder)

    collection.questions += _map(data, "qa", read_question)


def _said(turn: dict) -> str:
    parts = [_text(turn.get("text", ""), blank=True)]
    if caption := turn.get("blip_caption"):
        parts.append(f"[shares {_text(caption)}]")
    return f"{_text(turn['speaker'])}: {_text(' '.join(filter(None, parts)))}"


def _read_ruler(collection: Collection, data: dict, number: int) -> None:
    answers = _texts(data["outputs"])
    if (found := RULER.search(_text(data["input"]))) is None:
        raise ValueError("the input is none of a needle task")
    folder = f"text-{number}"
    path = collection.add(f"{folder}/text.txt", found["text"])
    needles = [re.search(NEEDLE.format(re.escape(a)), found["text"]) for a in answers]
    gold = tuple(Passage(path, needle[0].strip()) for needle in needles if needle)
    if len(gold) < len(answers):
        raise ValueError("an output is not hidden in the input")
    question = " ".join(found["question"].split())
    collection.questions.append(
        Question(question, answers, gold, every=True, own=(path,), folder=folder)
    )


Reader = Callable[[Collection, dict, int], None]
_FORMATS: tuple[tuple[set[str], Reader], ...] = (
    ({"data"}, _read_squad),
    ({"documents", "questions"}, _read_collection),
    ({"ctxs"}, _read_nq),
    ({"context", "supporting_facts"}, _read_hotpot),
    ({"paragraphs", "question"}, _read_musique),
    ({"conversation", "qa"}, _read_locomo),
    ({"input", "outputs"}, _read_ruler),
)
_EXPECTED: dict[Reader, str] = {
    _read_line: "a JSON object with document, question and answer, or a published set",
    _read_squad: "SQuAD's data with paragraphs and qas",
    _read_collection: "documents with a path, and questions with path and answers",
    _read_nq: "NQ-open's question, answers and ctxs",
    _read_hotpot: "HotpotQA's question, answer, context and supporting_facts",
    _read_musique: "MuSiQue's question, answer and paragraphs",
    _read_locomo: "LoCoMo's conversation with sessions, and qa",
    _read_ruler: "input and outputs of a needle task of RULER",
}


# --- files


def _records(path: str | Path) -> Iterator[tuple[str, int, dict]]:
    """Yield the objects of a file, a JSON document or lines of JSON: place, number, object."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise M3Error(f"{path}: cannot be read as UTF-8 text ({error})") from error
    whole: Any = None
    with suppress(ValueError, RecursionError):
        whole = json.loads(text)
    records: list[tuple[str, int, Any]]
    if isinstance(whole, list):
        records = [(f"item {number}", number, item) for number, item in enumerate(whole, 1)]
    elif whole is not None:
        records = [("line 1", 1, whole)]
    else:
        lines = enumerate(text.split("\n"), 1)
        records = [(f"line {number}", number, line) for number, line in lines if line.strip()]
    for place, number, record in records:
        with _located(f"{path}, {place}: expected a JSON object"):
            found = json.loads(record) if isinstance(record, str) else record
            if not isinstance(found, dict):
                raise ValueError(f"it is {_kind(found)}")
        yield place, number, found


@contextmanager
def _located(expected: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise M3Error(f"{expected} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__


def _map(data: dict, key: str, read: Callable[[dict], T]) -> list[T]:
    """Read each object of a list; an error names it."""
    if not isinstance(items := data[key], list):
        raise ValueError(f"{key} is no list")
    found = []
    for number, item in enumerate(items, 1):
        try:
            found.append(read(item))
        except _ERRORS as error:
            raise ValueError(f"{key} {number}: {_reason(error)}") from error
    return found


def _text(value: object, blank: bool = False) -> str:
    if not isinstance(value, str) or not (blank or value.strip()):
        raise ValueError(f"{_kind(value)} stands where text should")
    return value


def _kind(value: object) -> str:
    """Name the kind of a JSON value; the value itself may be private."""
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list"}
    names |= {dict: "an object", str: "a text" if value != "" else "an empty text"}
    return names.get(type(value), "null")


def _texts(values: object) -> tuple[str, ...]:
    """Return a list of answers, each once."""
    if not isinstance(values, list):
        raise ValueError(f"{_kind(values)} stands where a list of texts should")
    if not values:
        raise ValueError("there is no answer")
    return tuple(dict.fromkeys(map(_text, values)))
