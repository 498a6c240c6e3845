"""Questions put to a model that has memorized their documents, in every mode."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..assistant import Assistant
from ..calibrate import budgets
from ..chat.conversation import Conversation
from ..config import Progress, no_progress
from ..errors import M3Error
from ..store import Hit, MemoryStore
from ..train.settings import parse_budget
from .questions import Question

MODES = ("off", "oracle", "text", "explicit")
ANSWER_TOKENS = 32  # length of a greedy answer that is searched for the right one


@dataclass
class Result:
    """One question in one mode.

    Attributes:
        nll: mean negative log-likelihood per token of the right answer, in nats.
        right: whether the greedy answer contains it, whatever the case; None if none was asked.
    """

    nll: float
    right: bool | None
    first_token_seconds: float


def make_assistant(store: Path, budget: str = "auto", **options: Any) -> Assistant:
    """An assistant whose memories have a budget such as "uniform:8", "half:8", or "auto".

    "half" keeps memories in the first half of the layers, as the paper does (section 3.3); keys
    are then read as sharply as with the calibrated budget of as many tokens. A store that is
    there keeps its own budget.
    """
    if budget == "auto" or MemoryStore.exists(store):
        return Assistant(store=store, **options)
    kind, tokens = parse_budget(budget)
    written = "calibrated" if kind == "half" else kind
    assistant = Assistant(store=store, budget=written, tokens_per_head=tokens, **options)
    if kind != "half":
        return assistant
    (config,) = budgets(assistant.decoder, assistant.format.config, [(kind, tokens)])
    return Assistant(store=store, decoder=assistant.decoder, config=config, **options)


class TemporaryStore:
    """An assistant and documents that vanish with it; for a ``with`` statement.

    Args:
        options: of ``make_assistant``, without ``store``.
    """

    def __init__(self, *, progress: Progress | None = None, **options: Any):
        self.progress = progress or no_progress
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-eval-")
        self.folder = Path(self._folder.name) / "documents"
        self._options = {"progress": progress, **options}
        self.assistant = make_assistant(Path(self._folder.name) / "store", **self._options)
        self._paths: dict[str, str] = {}  # of each text that was memorized

    def __enter__(self) -> TemporaryStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._folder.cleanup()

    def memorize(
        self, documents: Iterable[str], names: Iterable[str] = (), *, cold: bool = False
    ) -> list[str]:
        """Memorize each different text as a file of its own; the path of each document.

        Args:
            names: of the files, where they have some.
            cold: write memories at their first use.

        Raises:
            M3Error: one could not be memorized.
        """
        paths = []
        for text, name in zip_longest(documents, names, fillvalue=""):
            if text not in self._paths:
                path = self.folder / str(len(self._paths)) / (Path(name).name or "document.txt")
                path.parent.mkdir(parents=True)
                path.write_text(text, "utf-8")
                self._paths[text] = str(path)
            paths.append(self._paths[text])
        memorized = self.assistant.memorize([self.folder], cold=cold)
        if memorized.failed:
            raise M3Error(f"a document was not memorized: {memorized.failed[0]}")
        return paths

    def rewrite(self, document: str, text: str) -> None:
        """Give a document that was memorized another text, in its file alone."""
        path = self._paths.pop(document)
        Path(path).write_text(text, "utf-8")
        self._paths[text] = path

    def text_of(self, path: str) -> str | None:
        """The text of a file as it was memorized last, or rewritten."""
        return next((text for text, known in self._paths.items() if known == path), None)

    def restart(self) -> None:
        """Close the store and open it again, with models loaded anew."""
        self.assistant.close()
        self.assistant = make_assistant(self.assistant.store_path, **self._options)

    def conversation(self, hits: Sequence[Hit]) -> Conversation:
        """One that reads just these memories, or none."""
        assistant = self.assistant
        return Conversation(
            assistant.decoder,
            assistant.format.prefix,
            assistant.format.layout,
            search=(lambda texts, k: [list(hits)] * len(texts)) if hits else None,
            read=assistant.read if hits else None,
            memory_temperature=assistant.decoder.memory_temperature,
        )

    def ask(
        self, message: str, answers: Sequence[str], hits: Sequence[Hit], answer_tokens: int
    ) -> list[Result]:
        """What each of several answers costs beside these memories; the prompt is read once."""
        template = self.assistant.decoder.template
        conversation = self.conversation(hits)
        logits = conversation.prefill(template.turn(message), query="message")
        losses = [conversation.fork().loss_after(logits, template.encode(a)) for a in answers]
        said, right = "", [False if answer_tokens else None] * len(answers)
        for step in conversation.decode(logits, max(answer_tokens, 1)):
            said += step.text
            if not answer_tokens:  # the first token is timed all the same
                break
            right = [answer.lower() in said.lower() for answer in answers]
            if any(right):  # what comes after it counts no more
                break
        seconds = conversation.timings.first_token_seconds
        return [Result(loss, held, seconds) for loss, held in zip(losses, right, strict=True)]


class Trial(TemporaryStore):
    """Questions and a store of their documents, ready for measuring."""

    def __init__(self, questions: Sequence[Question], **options: Any):
        super().__init__(**options)
        self.questions = questions

    def __enter__(self) -> Trial:
        try:
            self._of = self.memorize(
                [question.document for question in self.questions],
                [question.path for question in self.questions],
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def measure(
        self, modes: Sequence[str], memories: int, answer_tokens: int = ANSWER_TOKENS
    ) -> dict[str, list[Result]]:
        """Ask every question in every mode.

        Args:
            answer_tokens: length of the greedy answers; 0 for none.
        """
        results: dict[str, list[Result]] = {mode: [] for mode in modes}
        for number, (question, path) in enumerate(zip(self.questions, self._of, strict=True)):
            self.progress("answering", number, len(self.questions))
            right, hits = self._references(question, path, memories)
            for mode in modes:
                pasted = {"oracle": [right], "text": hits}.get(mode, [])
                read = hits if mode == "explicit" else []
                text = "\n\n".join([*(hit.text for hit in pasted), question.question])
                results[mode] += self.ask(text, [question.answer], read, answer_tokens)
        self.progress("answering", len(self.questions), len(self.questions))
        return results

    def _references(self, question: Question, path: str, count: int) -> tuple[Hit, list[Hit]]:
        """The reference that holds the answer; it and the best others, as the search has them."""
        everything = sum(document.references for document in self.assistant.documents())
        found = self.assistant.search([question.question], everything)[0]
        same = [hit for hit in found if hit.path == path]
        held = (hit for hit in same if question.answer.lower() in hit.text.lower())
        right = next(held, same[0])
        others = [hit for hit in found if hit.slot != right.slot][: max(count - 1, 0)]
        return right, [hit for hit in found if hit is right or hit in others]
