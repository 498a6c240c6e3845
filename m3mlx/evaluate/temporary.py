"""A temporary store of documents, and questions put to a model that has memorized them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from ..assistant import Assistant
from ..calibrate import budgets
from ..chat.conversation import Conversation
from ..config import Options, Progress, no_progress
from ..errors import M3Error
from ..store import Hit, MemoryStore
from ..train.settings import parse_budget
from .questions import Question

CONDITIONS = ("off", "oracle", "text", "explicit")
ANSWER_TOKENS = 32  # length of a greedy answer that is searched for the right one

T = TypeVar("T")


@dataclass
class Result:
    """One question in one condition.

    Attributes:
        nll: mean negative log-likelihood per token of the right answer, in nats.
        right: the greedy answer contains it, in any case; None if there is no greedy answer.
    """

    nll: float
    right: bool | None
    first_token_seconds: float


def make_assistant(options: Options, budget: str, progress: Progress | None = None) -> Assistant:
    """Return an assistant whose memories have a budget such as "uniform:8", "half:8" or "auto".

    "half" keeps memories in the first half of the layers, as the paper does (section 3.3), with
    the key scale of a calibrated budget of as many tokens. An existing store keeps its budget.
    """
    if budget == "auto" or (options.store and MemoryStore.exists(options.store)):
        return Assistant.of(options, progress=progress)
    kind, tokens = parse_budget(budget)
    written = "calibrated" if kind == "half" else kind
    found = replace(options, budget=written, tokens_per_head=tokens)
    assistant = Assistant.of(found, progress=progress)
    if kind != "half" or tokens is None:
        return assistant
    (config,) = budgets(assistant.decoder, assistant.format.config, [(kind, tokens)])
    return Assistant.of(options, progress=progress, decoder=assistant.decoder, config=config)


class TemporaryStore:
    """An assistant and documents that vanish with it; for a ``with`` statement.

    Args:
        options: of the assistant; ``store`` is ignored.
        budget: as of ``make_assistant``; "auto" leaves that of the options.
    """

    def __init__(self, options: Options, budget: str = "auto", progress: Progress | None = None):
        self.progress = progress or no_progress
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-eval-")
        self.folder = Path(self._folder.name) / "documents"
        options = replace(options, store=Path(self._folder.name) / "store")
        self._open = partial(make_assistant, options, budget, progress)
        self.assistant = self._open()
        self._paths: dict[str, str] = {}  # of each text that was memorized

    def __enter__(self) -> TemporaryStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._folder.cleanup()

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, and report progress."""
        for number, item in enumerate(items):
            self.progress(what, number, len(items))
            yield item
        self.progress(what, len(items), len(items))

    # --- documents

    def memorize(
        self, documents: Iterable[str], names: Iterable[str] = (), *, cold: bool = False
    ) -> None:
        """Memorize each different text as a file of its own.

        Args:
            names: of the files, where they have some.
            cold: write memories at their first use.

        Raises:
            M3Error: one could not be memorized.
        """
        for text, name in zip_longest(documents, names, fillvalue=""):
            if text not in self._paths:
                path = self.folder / str(len(self._paths)) / (Path(name).name or "document.txt")
                path.parent.mkdir(parents=True)
                path.write_text(text, "utf-8")
                self._paths[text] = str(path)
        memorized = self.assistant.memorize([self.folder], cold=cold)
        if memorized.failed:
            raise M3Error(f"a document was not memorized: {memorized.failed[0]}")

    def rewrite(self, document: str, text: str) -> None:
        """Change the file of a memorized document; ``memorize`` then reads it again."""
        path = self._paths.pop(document)
        Path(path).write_text(text, "utf-8")
        self._paths[text] = path

    def path_of(self, text: str) -> str | None:
        """Return the path of a document, None if it is not in the store."""
        return self._paths.get(text)

    def restart(self) -> None:
        """Close the store and open it again, with models loaded anew."""
        self.assistant.close()
        self.assistant = self._open()

    # --- questions

    def search(self, text: str) -> list[Hit]:
        """Return as many references as a chunk reads."""
        return self.assistant.recall(text, self.assistant.memories)

    def conversation(self, hits: Sequence[Hit]) -> Conversation:
        """Begin a conversation that reads just these memories, or none."""
        memory, decoder = self.assistant.format, self.assistant.decoder
        return Conversation(
            decoder,
            memory.prefix,
            memory.layout,
            search=(lambda texts, k: [list(hits)] * len(texts)) if hits else None,
            read=self.assistant.read if hits else None,
            memory_temperature=decoder.memory_temperature,
        )

    def ask(
        self, message: str, answers: Sequence[str], hits: Sequence[Hit], answer_tokens: int
    ) -> list[Result]:
        """Score several answers to a message beside these memories; the prompt is read once."""
        template = self.assistant.decoder.template
        conversation = self.conversation(hits)
        logits = conversation.prefill(template.turn(message), query="message")
        losses = [conversation.fork().loss_after(logits, template.encode(a)) for a in answers]
        said, right = "", [False if answer_tokens else None] * len(answers)
        for step in conversation.decode(logits, max(answer_tokens, 1)):
            said += "" if step.thought else step.text
            if not answer_tokens:  # the first token is timed all the same
                break
            right = [answer.lower() in said.lower() for answer in answers]
            if any(right):  # what follows does not count
                break
        seconds = conversation.timings.first_token_seconds
        return [Result(loss, held, seconds) for loss, held in zip(losses, right, strict=True)]

    def measure(
        self,
        questions: Sequence[Question],
        condition: str,
        memories: int = 1,
        answer_tokens: int = ANSWER_TOKENS,
    ) -> list[Result]:
        """Ask every question, whose document is memorized, in one condition.

        Args:
            memories: references given to a question in the conditions text and explicit.
            answer_tokens: length of the greedy answers; 0 for none.
        """
        results = []
        for question in self.each(questions, "answering"):
            right, hits = self._references(question, memories)
            pasted = {"oracle": [right], "text": hits}.get(condition, [])
            text = "\n\n".join([*(hit.text for hit in pasted), question.question])
            read = hits if condition == "explicit" else []
            results += self.ask(text, [question.answer], read, answer_tokens)
        return results

    def _references(self, question: Question, count: int) -> tuple[Hit, list[Hit]]:
        """Return the reference that holds the answer; it and the best others, as ranked."""
        everything = sum(document.references for document in self.assistant.documents())
        found = self.assistant.recall(question.question, everything)
        same = [hit for hit in found if hit.path == self._paths[question.document]]
        held = (hit for hit in same if question.answer.lower() in hit.text.lower())
        right = next(held, same[0])
        others = [hit for hit in found if hit != right][: max(count - 1, 0)]
        return right, [hit for hit in found if hit == right or hit in others]
