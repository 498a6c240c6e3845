"""Read the files of evaluations: a JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import M3Error

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question about one document.

    Attributes:
        answer: a short text.
        changed: the answer if it is replaced by this in the document; "" if there is none.
    """

    document: str
    question: str
    answer: str
    path: str
    changed: str = ""


@dataclass(frozen=True)
class Choice:
    """A question with several answers.

    Attributes:
        answer: index of the right one among the choices.
        document: "" if there is none.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    document: str = ""


def read_questions(path: str | Path) -> list[Question]:
    """Read lines with document, question, answer and, if given, path and changed.

    Raises:
        M3Error: the file or a line of it cannot be read; names the line.
    """

    def read(data: dict, number: int) -> Question:
        document, question, answer = (data[key] for key in ("document", "question", "answer"))
        name, changed = data.get("path", f"document-{number}.txt"), data.get("changed", "")
        _check_texts(document, question, answer, name)
        if not isinstance(changed, str) or (changed and answer not in document):
            raise ValueError("changed must be text, and the answer stand in the document")
        return Question(document, question, answer, name, changed)

    return _read(path, "document, question and answer", "questions", read)


def read_documents(path: str | Path) -> list[str]:
    """Read lines with a document; equal ones are returned once.

    Raises:
        M3Error: as ``read_questions``.
    """

    def read(data: dict, number: int) -> str:
        _check_texts(data["document"])
        return data["document"]

    return list(dict.fromkeys(_read(path, "a document", "documents", read)))


def read_choices(path: str | Path) -> list[Choice]:
    """Read lines with question, choices, the right one as answer and, if given, document.

    Raises:
        M3Error: as ``read_questions``.
    """

    def read(data: dict, number: int) -> Choice:
        question, choices, answer = (data[key] for key in ("question", "choices", "answer"))
        document = data.get("document", "")
        _check_texts(question, answer, *choices, document or "none")
        if len(set(choices)) != len(choices) or len(choices) < 2 or answer not in choices:
            raise ValueError("the answer must be one of at least two different choices")
        return Choice(question, tuple(choices), choices.index(answer), document)

    return _read(path, "question, choices and answer", "questions", read)


def _check_texts(*values: object) -> None:
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError("they must be text")


def _read(path: str | Path, wanted: str, things: str, read: Callable[[Any, int], T]) -> list[T]:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise M3Error(f"{path}: cannot be read as UTF-8 text ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(read(json.loads(line), number))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = f"expected a JSON object with {wanted}"
            raise M3Error(f"{path}, line {number}: {expected} ({error})") from error
    if not found:
        raise M3Error(f"{path}: there are no {things} in it")
    return found


def spread(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return at most ``limit`` items, evenly spread over all of them."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def spread_documents(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    """Return all questions about at most ``limit`` documents, evenly spread."""
    documents = list(dict.fromkeys(question.document for question in questions))
    kept = set(spread(documents, limit))
    return [question for question in questions if question.document in kept]
