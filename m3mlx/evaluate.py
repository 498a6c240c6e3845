"""What explicit memory is worth: the same questions without it, with it, and with pasted text.

Figures of merit are the mean negative log-likelihood of the right answer's tokens, and from it
the share *recovered* of what the right reference pasted into the prompt gains over nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from statistics import mean, median
from typing import Any

from .assistant import Assistant
from .errors import M3Error
from .generate import Conversation
from .store import Hit

MODES = ("off", "oracle", "text", "explicit")
ANSWER_TOKENS = 32  # length of a greedy answer that is searched for the right one

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A question about one document; ``answer`` is a short text."""

    document: str
    question: str
    answer: str
    path: str


@dataclass
class Score:
    """What one mode achieves.

    Attributes:
        nll: mean negative log-likelihood per token of the answers, in nats.
        recovered: (off - mode) / (off - oracle), of the means.
        right: share of greedy answers that contain the answer, whatever the case.
        first_token_seconds: median.
    """

    nll: float
    recovered: float
    right: float
    first_token_seconds: float


@dataclass
class Report:
    """Scores by mode: "off", "oracle" (the right reference as text), "text", "explicit"."""

    modes: dict[str, Score]
    questions: int
    memories: int
    tokens_per_head: float

    def to_json(self) -> dict:
        return asdict(self)


def read_questions(path: str | Path) -> list[Question]:
    """Read JSON lines with document, question, answer and, if given, path.

    Raises:
        M3Error: the file or a line of it cannot be read; names the line.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise M3Error(f"{path}: cannot be read as UTF-8 text ({error})") from error
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            texts = [data[key] for key in ("document", "question", "answer")]
            name = data.get("path", f"document-{number}.txt")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise M3Error(
                f"{path}, line {number}: expected a JSON object with document, question and "
                f"answer ({error})"
            ) from error
        if not all(isinstance(text, str) and text.strip() for text in [*texts, name]):
            raise M3Error(f"{path}, line {number}: document, question and answer must be text")
        questions.append(Question(*texts, path=name))
    if not questions:
        raise M3Error(f"{path}: there are no questions in it")
    return questions


def evaluate(
    questions: Sequence[Question],
    *,
    memories: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Memorize the documents in a temporary store and answer the questions in every mode.

    Args:
        memories: references given to a question in the modes text and explicit: the right one
            and those that the search finds best besides it.
        options: of ``Assistant``, without ``store``.

    Raises:
        M3Error: a document could not be memorized.
    """
    with Trial(questions, progress=progress, **options) as trial:
        results = trial.measure(MODES, memories)
        average = trial.assistant.config.tokens_per_head
    nll = {mode: mean(result.nll for result in results[mode]) for mode in MODES}
    gain = nll["off"] - nll["oracle"]
    scores = {
        mode: Score(
            nll=nll[mode],
            recovered=(nll["off"] - nll[mode]) / gain if gain else nan,
            right=mean(result.right for result in results[mode]),
            first_token_seconds=median(result.first_token_seconds for result in results[mode]),
        )
        for mode in MODES
    }
    return Report(scores, len(questions), memories, average)


@dataclass
class Result:
    """One question in one mode: loss of the right answer, whether the greedy one contains it."""

    nll: float
    right: bool
    first_token_seconds: float


class Trial:
    """The documents of questions in a temporary store, ready for measuring.

    Args:
        options: of ``Assistant``, without ``store``.
    """

    def __init__(
        self, questions: Sequence[Question], *, progress: Progress | None = None, **options: Any
    ):
        self.questions = questions
        self.progress = progress or (lambda what, done, total: None)
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-eval-")
        folder = Path(self._folder.name)
        self.assistant = Assistant(store=folder / "store", progress=progress, **options)
        self._paths = _write_documents(questions, folder / "documents")

    def __enter__(self) -> Trial:
        try:
            memorized = self.assistant.memorize([Path(self._folder.name) / "documents"])
            if memorized.failed:
                raise M3Error(f"a document was not memorized: {memorized.failed[0]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._folder.cleanup()

    def measure(
        self, modes: Sequence[str], memories: int, answer_tokens: int = ANSWER_TOKENS
    ) -> dict[str, list[Result]]:
        """Ask every question in every mode.

        Args:
            answer_tokens: length of the greedy answers; 0 for none.
        """
        results: dict[str, list[Result]] = {mode: [] for mode in modes}
        for number, (question, path) in enumerate(zip(self.questions, self._paths, strict=True)):
            self.progress("answering", number, len(self.questions))
            right, hits = _references(self.assistant, question, path, memories)
            for mode in modes:
                pasted = {"oracle": [right], "text": hits}.get(mode, [])
                read = hits if mode == "explicit" else []
                result = _answer(self.assistant, question, pasted, read, answer_tokens)
                results[mode].append(result)
        self.progress("answering", len(self.questions), len(self.questions))
        return results


def _write_documents(questions: Iterable[Question], folder: Path) -> list[str]:
    """Each different document as a file of its own; the path of each question's document."""
    files: dict[str, str] = {}
    for question in questions:
        if question.document not in files:
            path = folder / str(len(files)) / (Path(question.path).name or "document.txt")
            path.parent.mkdir(parents=True)
            path.write_text(question.document, "utf-8")
            files[question.document] = str(path)
    return [files[question.document] for question in questions]


def _references(
    assistant: Assistant, question: Question, path: str, count: int
) -> tuple[Hit, list[Hit]]:
    """The reference that holds the answer; it and the best others, in the order of the search."""
    everything = sum(document.references for document in assistant.documents())
    found = assistant.search([question.question], everything)[0]
    same = [hit for hit in found if hit.path == path]
    right = next((hit for hit in same if question.answer.lower() in hit.text.lower()), same[0])
    others = [hit for hit in found if hit.slot != right.slot][: max(count - 1, 0)]
    return right, [hit for hit in found if hit is right or hit in others]


def _answer(
    assistant: Assistant,
    question: Question,
    pasted: list[Hit],
    read: list[Hit],
    answer_tokens: int,
) -> Result:
    text = "\n\n".join([*(hit.text for hit in pasted), question.question])
    conversation = _conversation(assistant, read)
    logits = conversation.prefill(assistant.template.turn(text), query="message")
    tokens = assistant.template.encode(question.answer)
    loss = conversation.fork().loss_after(logits, tokens)
    said, right = "", False
    for step in conversation.decode(logits, answer_tokens):
        said += step.text
        right = question.answer.lower() in said.lower()
        if right:  # what comes after it cannot change that
            break
    return Result(loss, right, conversation.timings.first_token_seconds)


def _conversation(assistant: Assistant, hits: list[Hit]) -> Conversation:
    return Conversation(
        assistant.decoder,
        assistant.prefix,
        assistant.config,
        search=(lambda texts, k: [hits] * len(texts)) if hits else None,
        read=assistant.read if hits else None,
        relevance=assistant.decoder.relevance,
    )
