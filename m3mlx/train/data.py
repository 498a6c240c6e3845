"""Training data: text, conversations, questions about documents, preferences.

A ``.jsonl`` file holds samples, one JSON object a line, distinguished by their keys:

    {"text": …}
    {"messages": [{"role": "user", "content": …}, …], "document": …}
    {"document": …, "question": …, "answer": …, "answers": [longer wordings of it, …]}
    {"prompt": …, "chosen": …, "rejected": …, "document": …}

Only questions need a ``document``. Any other file is read as by ``memorize``, as one text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..documents import find, read
from ..errors import DocumentError, M3Error


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Question:
    """A question about a document; the first answer is the short right one."""

    document: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """A chat, about a document or not."""

    messages: tuple[tuple[str, str], ...]  # pairs of a user's message and its answer
    document: str = ""


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the better one and the worse one."""

    prompt: str
    chosen: str
    rejected: str
    document: str = ""


Sample = Text | Question | Conversation | Preference


@dataclass
class Data:
    """Samples by kind, in the order of the files."""

    texts: list[Text] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        kinds: dict[type, list[Any]] = {
            Text: self.texts,
            Question: self.questions,
            Conversation: self.conversations,
            Preference: self.preferences,
        }
        kinds[type(sample)].append(sample)

    def documents(self) -> list[str]:
        """Return every different document and text, in order."""
        samples: list[Any] = [*self.questions, *self.conversations, *self.preferences]
        texts = [sample.document for sample in samples] + [text.text for text in self.texts]
        return list(dict.fromkeys(filter(None, texts)))


def read_data(paths: Iterable[str | Path]) -> Data:
    """Read files and folders.

    Raises:
        M3Error: a file or a line of it cannot be used; nothing is left out silently.
    """
    data = Data()
    for path in find(paths):
        if isinstance(path, DocumentError):
            raise path
        if path.suffix == ".jsonl":
            for sample in _samples(path):
                data.add(sample)
        else:
            data.add(Text(read(path).text))
    if not any(vars(data).values()):
        names = ", ".join(map(str, paths))
        raise M3Error(f"{names}: there is nothing to train on; name text files or JSONL files")
    return data


def _samples(path: Path) -> Iterable[Sample]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise M3Error(f"{path}: cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _sample(json.loads(line))
        except ValueError as error:
            raise M3Error(f"{path}, line {number}: {error}") from error


def _sample(fields: object) -> Sample:
    """Return the sample of one line; ValueError says what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    document = _text(fields, "document") if fields.get("document") is not None else ""
    if "messages" in fields:
        return Conversation(_turns(fields["messages"]), document)
    if "chosen" in fields or "rejected" in fields:
        prompt, chosen, rejected = (_text(fields, key) for key in ("prompt", "chosen", "rejected"))
        return Preference(prompt, chosen, rejected, document)
    if "question" in fields:
        answer, more = _text(fields, "answer"), fields.get("answers", [])
        if not isinstance(more, list) or not all(isinstance(x, str) and x.strip() for x in more):
            raise ValueError('"answers" must be a list of texts')
        if not document:
            raise ValueError('a question needs a "document"')
        answers = tuple(dict.fromkeys([answer, *more]))
        return Question(document, _text(fields, "question"), answers)
    if "text" in fields:
        return Text(_text(fields, "text"))
    raise ValueError(
        'expected one of "text", "messages", "question" with "document" and "answer", or '
        '"prompt" with "chosen" and "rejected"'
    )


def _text(fields: dict, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{key}" must be text that is not empty')
    return value


def _turns(messages: object) -> tuple[tuple[str, str], ...]:
    """Return pairs of message and answer; a system message goes to the first message."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError('"messages" must be a list of objects with role and content')
    said = [(m.get("role"), _text(m, "content")) for m in messages]
    system = ""
    if said and said[0][0] == "system":
        system = said.pop(0)[1] + "\n\n"
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise ValueError('"messages" must be user and assistant in turn, and end with an answer')
    texts = [text for _, text in said]
    texts[0] = system + texts[0]
    return tuple(zip(texts[::2], texts[1::2], strict=True))
