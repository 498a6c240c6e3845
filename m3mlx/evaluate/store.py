"""A store of documents for an evaluation, and questions put to a model that has memorized them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import mlx.core as mx

from ..assistant import Assistant
from ..calibrate import budgets
from ..chat.conversation import Conversation
from ..config import MemoryConfig, Options, Progress, digest, no_progress
from ..errors import M3Error
from ..memory.format import conditions
from ..models.decoder import Decoder
from ..models.template import Turn
from ..store import Filter, Hit
from ..train.settings import parse_budget

READ_BATCH = 16  # memories written together

T = TypeVar("T")


@dataclass
class Result:
    """One answer to a question.

    Attributes:
        nll: mean negative log-likelihood per token of the answer, in nats.
        right: the greedy answer contains it, in any case; None if there is no greedy answer.
    """

    nll: float
    right: bool | None


def configure(options: Options, budget: str, **others: Any) -> tuple[Decoder, MemoryConfig]:
    """Return the model, and its memories' configuration under a budget.

    Args:
        options: of an assistant whose store does not exist yet.
        budget: "uniform:8", "half:8" or the like; "auto" leaves that of the options. "half" keeps
            memories in the first half of the layers, as the paper does (section 3.3), with the
            key scale of a calibrated budget of as many tokens.
        others: of ``Assistant``.
    """
    kind, tokens = parse_budget(budget)
    if budget != "auto":
        written = "calibrated" if kind == "half" else kind
        options = replace(options, budget=written, tokens_per_head=tokens)
    assistant = Assistant.of(options, **others)
    config = assistant.format.config
    if kind == "half" and tokens is not None:
        (config,) = budgets(assistant.decoder, config, [(kind, tokens)])
    return assistant.decoder, config


class EvaluationStore:
    """An assistant and its documents; for a ``with`` statement.

    Args:
        options: of the assistant; ``store`` is ignored.
        budget: as of ``configure``.
        keep: folder in which the store stays; None for a store that vanishes in the end.
        name: what else than its memories tells the store from others in the folder.
        decoder: a loaded model, used instead of loading that of the options.
    """

    def __init__(
        self,
        options: Options,
        budget: str = "auto",
        progress: Progress | None = None,
        *,
        keep: Path | None = None,
        name: str = "",
        decoder: Decoder | None = None,
    ):
        self.progress = progress or no_progress
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="m3mlx-eval-")))
        options = replace(options, store=folder / "store")
        decoder, config = configure(options, budget, progress=progress, decoder=decoder)
        if keep:
            written = conditions(decoder, config), config.to_json(), options.encoder, name
            options = replace(options, store=keep / f"store-{digest(written)[:16]}")
        self._open = partial(Assistant.of, options, progress=progress, config=config)
        self.assistant = self._open(decoder=decoder)

    def __enter__(self) -> EvaluationStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._stack.close()

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, and report progress."""
        for number, item in enumerate(items):
            self.progress(what, number, len(items))
            yield item
        self.progress(what, len(items), len(items))

    def restart(self) -> None:
        """Close the store and open it again, with models loaded anew."""
        self.assistant.close()
        self.assistant = self._open()

    # --- documents

    def memorize(self, documents: Mapping[str, str], *, cold: bool = False) -> None:
        """Memorize texts, each under its path; a changed text takes the place of the old.

        Args:
            cold: write memories at their first use.

        Raises:
            M3Error: one could not be memorized.
        """
        contents = {path: text.encode() for path, text in documents.items()}
        memorized = self.assistant.memorize(contents=contents, cold=cold)
        if memorized.failed:
            raise M3Error(f"a document was not memorized: {memorized.failed[0]}")

    def write(self, hits: Sequence[Hit]) -> None:
        """Write the memories of hits that have none yet."""
        cold = sorted({hit for hit in hits if not hit.warm}, key=lambda hit: hit.slot)
        parts = [cold[i : i + READ_BATCH] for i in range(0, len(cold), READ_BATCH)]
        for part in self.each(parts, "writing memories"):
            self.assistant.read(part)

    # --- questions

    def recall(self, text: str, k: int, folder: str = "") -> list[Hit]:
        """Return the best references, however badly they fit.

        Args:
            folder: search only the documents below it; "" for all.
        """
        only = Filter(paths=(folder,)) if folder else None
        return self.assistant.recall(text, k, only=only)

    def search(self, text: str, k: int | None = None, folder: str = "") -> list[Hit]:
        """Return the references that an answer reads: the best ones that fit well enough.

        Args:
            k: how many at most; None for as many as a chunk reads.
            folder: as of ``recall``.
        """
        hits = self.recall(text, k or self.assistant.memories, folder)
        return [hit for hit in hits if hit.score >= self.assistant.floor]

    def conversation(self, hits: Sequence[Hit]) -> Conversation:
        """Begin a conversation that reads just these memories, or none."""
        memory, decoder = self.assistant.format, self.assistant.decoder
        hits = [replace(hit, warm=True) for hit in hits]  # written since they were found
        return Conversation(
            decoder,
            memory.prefix,
            memory.layout,
            search=(lambda texts, k: [list(hits)] * len(texts)) if hits else None,
            read=self.assistant.read if hits else None,
            memory_temperature=decoder.memory_temperature,
        )

    def begin(self, message: str, hits: Sequence[Hit]) -> tuple[Conversation, mx.array, Turn]:
        """Read a message beside these memories; also return the logits and the turn."""
        turn = self.assistant.decoder.template.turn(message)
        conversation = self.conversation(hits)
        return conversation, conversation.prefill(turn, query="message"), turn

    def ask(
        self, message: str, answers: Sequence[str], hits: Sequence[Hit], answer_tokens: int
    ) -> list[Result]:
        """Score several answers to a message beside these memories; the prompt is read once."""
        encode = self.assistant.decoder.template.encode
        conversation, logits, _ = self.begin(message, hits)
        losses = [conversation.fork().loss_after(logits, encode(answer)) for answer in answers]
        if not answer_tokens:
            return [Result(loss, None) for loss in losses]
        steps = conversation.decode(logits, answer_tokens)
        said = "".join(step.text for step in steps if not step.thought).lower()
        held = [answer.lower() in said for answer in answers]
        return [Result(*both) for both in zip(losses, held, strict=True)]
