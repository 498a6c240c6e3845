"""Questions about documents, and what they are asked of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..config import digest
from ..documents.text import clean

SIGNS = re.compile(r"[*?\[\]]")  # in a path they would make it a pattern

T = TypeVar("T")


@dataclass(frozen=True)
class Passage:
    """A place that is needed to answer a question.

    Attributes:
        path: of the document.
        text: in it; "" where the file does not say which.
    """

    path: str
    text: str = ""


@dataclass(frozen=True)
class Question:
    """A question about one or several documents.

    Attributes:
        answers: short right ones, of which one will do; () if the documents do not say.
        passages: the gold passages.
        every: all answers are needed.
        kind: of question, where the file has several.
        own: paths of the documents that come with this question, where each brings some.
        folder: only documents below it are searched; "" for all.
        changed: the answer if it is replaced by this in the document; "" if there is none.
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    every: bool = False
    kind: str = ""
    own: tuple[str, ...] = ()
    folder: str = ""
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


@dataclass
class Collection:
    """Documents, by path, and questions about them."""

    documents: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    _paths: dict[tuple[str, str], str] = field(default_factory=dict)  # of folders and texts

    def add(self, path: str, text: str) -> str:
        """Add a document, with its text as it would be read from a file; return its path.

        A text that is in the folder already keeps its path; another one of the same path gets a
        number.
        """
        path = SIGNS.sub("-", path)
        folder, slash, name = path.rpartition("/")
        text, number = clean(text), 1
        if known := self._paths.get((folder, text)):
            return known
        while path in self.documents:
            number += 1
            path = f"{folder}{slash}{number}-{name}"
        self.documents[path], self._paths[folder, text] = text, path
        return path

    @property
    def digest(self) -> str:
        """Digest of the documents."""
        return digest(sorted(self.documents.items()))

    def limited(self, limit: int | None) -> Collection:
        """Return at most ``limit`` questions, evenly spread.

        All documents stay, but for those that come with a question that does not.
        """
        return self._with(spread(self.questions, limit))

    def with_documents(self, limit: int | None) -> Collection:
        """Return all questions about the first documents of ``limit`` questions, evenly spread."""
        paths = list(dict.fromkeys(path for q in self.questions for path in _paths(q)))
        kept = set(spread(paths, limit))
        return self._with([q for q in self.questions if kept.intersection(_paths(q))])

    def _with(self, questions: Sequence[Question]) -> Collection:
        dropped = {path for question in self.questions for path in question.own}
        dropped -= {path for question in questions for path in question.own}
        documents = {p: text for p, text in self.documents.items() if p not in dropped}
        return replace(self, documents=documents, questions=list(questions))


def _paths(question: Question) -> Iterator[str]:
    return (passage.path for passage in question.passages)


def title_path(title: str) -> str:
    """Return a path for a document that has a title."""
    return f"{' '.join(title.replace('/', '-').split())}.txt"


def named(texts: Iterable[str], folder: str = "") -> dict[str, str]:
    """Return texts by a path made of their number."""
    start = f"{folder}/" if folder else ""
    return {f"{start}{number}.txt": text for number, text in enumerate(dict.fromkeys(texts), 1)}


def spread(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return at most ``limit`` items, evenly spread over all of them."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]
