"""The demonstration: documents that no model knows, and questions about them in each mode."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from .assistant import Assistant
from .chat.chat import Answer
from .config import MEMORY_MODES, Options, Progress, no_progress

DATA = Path(__file__).parent / "data"
ANSWER_TOKENS = 40
MEMORIES = 1  # a model with 135 million parameters takes the wrong one of several


@dataclass
class Reply:
    """An answer, the names of its source files, and the seconds to its first token."""

    answer: str
    sources: list[str]
    first_token_seconds: float

    @classmethod
    def of(cls, answer: Answer) -> Reply:
        names = dict.fromkeys(Path(source.path).name for source in answer.sources)
        return cls(answer.text.strip(), list(names), answer.timings.first_token_seconds)


@dataclass
class Exchange:
    """A question, words of the right answer, the file that has it, and a reply for each mode."""

    question: str
    answer: str
    path: str
    replies: dict[str, Reply]


@dataclass
class Demo:
    """Memorized documents and answered questions."""

    documents: list[str]
    references: int
    memorize_seconds: float
    exchanges: list[Exchange]


def run(options: Options | None = None, *, progress: Progress | None = None) -> Demo:
    """Memorize the documents that come with m3mlx in a temporary store, and ask about them.

    Args:
        options: of the assistant, except for its store.

    Raises:
        M3Error: the model cannot be downloaded, loaded, or used with memories.
    """
    report = progress or no_progress
    questions = json.loads((DATA / "demo.json").read_text("utf-8"))["questions"]
    with tempfile.TemporaryDirectory(prefix="m3mlx-demo-") as name:
        # A copy, so that no .gitignore around an installed package hides them.
        folder = shutil.copytree(DATA / "demo", Path(name) / "documents")
        given = options or Options()
        given = replace(given, store=Path(name) / "store", memories=given.memories or MEMORIES)
        with Assistant.of(given, progress=progress) as assistant:
            memorized = assistant.memorize([folder])
            exchanges = [Exchange(**question, replies={}) for question in questions]
            tasks = [(exchange, mode) for exchange in exchanges for mode in MEMORY_MODES]
            for done, (exchange, mode) in enumerate(tasks):
                report("answering", done, len(tasks))
                answer = assistant.ask(exchange.question, memory=mode, max_tokens=ANSWER_TOKENS)
                exchange.replies[mode] = Reply.of(answer)
            report("answering", 1, 1)
    documents = [Path(path).name for path in memorized.added]
    return Demo(documents, memorized.references, memorized.seconds or 0.0, exchanges)
