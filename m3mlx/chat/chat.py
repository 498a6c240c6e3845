"""A conversation: turns that keep their caches, and what an answer drew on."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from ..config import MEMORY_MODES, Generation, Options
from ..errors import M3Error
from ..memory.cache import PrefixStates
from ..memory.codec import Memory
from ..memory.format import MemoryFormat
from ..models.decoder import Decoder
from ..models.template import Turn
from ..store import Filter, Hit
from .conversation import Conversation, Step, Timings


class Assistant(Protocol):
    """What a chat asks of an assistant."""

    @property
    def options(self) -> Options: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def format(self) -> MemoryFormat: ...
    @property
    def plain_prefix(self) -> PrefixStates: ...
    @property
    def memories(self) -> int: ...

    def check(self) -> None:
        """Refuse a store without memories of the model."""

    def search(
        self, texts: Sequence[str], k: int, *, only: Filter | None = None
    ) -> list[list[Hit]]:
        """Return the references that fit each text best."""

    def read(self, hits: Sequence[Hit]) -> Memory:
        """Return the memories of hits."""


@dataclass
class Source:
    """A reference that an answer drew on.

    Attributes:
        span: of 64 answer tokens, counted from 0.
        document: its id in the store.
        store: folder of the attached store that it is of; None for the user's own.
    """

    path: str
    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    distance: float
    span: int
    document: int
    store: str | None

    @classmethod
    def of(cls, hit: Hit, span: int) -> Source:
        where = hit.path, hit.start, hit.end, hit.page, hit.line
        return cls(*where, hit.text, hit.distance, span, hit.document, hit.store)


@dataclass
class Answer:
    """A whole answer with its sources."""

    text: str
    memory: str
    sources: list[Source]
    timings: Timings
    finish_reason: str


class Chat:
    """A conversation that keeps its caches between turns.

    Attributes:
        memory: "explicit", "text" or "off". Another value, set between two turns, begins anew
            with what was said.
        only: documents that are searched; None for all.
        messages: what was said, as role and content; an answer is added as it grows. What is
            put here before the first turn is read with it.
    """

    def __init__(
        self,
        assistant: Assistant,
        memory: str = "explicit",
        system: str | None = None,
        only: Filter | None = None,
    ):
        if memory not in MEMORY_MODES:
            raise M3Error(f"memory is one of {', '.join(MEMORY_MODES)}, not {memory}")
        self.assistant, self.memory, self.system, self.only = assistant, memory, system, only
        self.messages: list[dict[str, str]] = []
        self._conversation: Conversation | None = None
        self._mode = memory  # of the conversation

    @property
    def attached(self) -> Sequence[Hit]:
        """The hits whose memories the next token sees."""
        return self._conversation.attached if self._conversation else ()

    def send(
        self, message: str, generation: Generation | None = None, **changes: Any
    ) -> Generator[Step]:
        """Say something and stream the answer. Stop iterating to interrupt it.

        Args:
            generation: how to answer; None for the defaults.
            changes: fields of ``Generation`` that differ from it.

        Raises:
            M3Error: the message is empty.
            StoreError: nothing is memorized yet, or the store is damaged; what was raised while
                the model was reading resets the conversation.
            FingerprintError: the memories were made by another model or other settings.
        """
        if not message.strip():
            raise M3Error("the question is empty")
        how = replace(generation or Generation(), **changes)
        pasted: list[Hit] = []
        start = perf_counter()
        if self.memory == "explicit":
            self.assistant.check()
        elif self.memory == "text":
            (pasted,) = self._search([message], self.assistant.memories)
        searched = perf_counter() - start if pasted else 0.0
        if self._mode != self.memory:
            self._conversation, self._mode = None, self.memory
        fresh = self._conversation is None
        conversation = self._conversation = self._conversation or self._begin()
        turn = self._turn("\n\n".join([*(hit.text for hit in pasted), message]), fresh, how.raw)
        self.messages.append({"role": "user", "content": message})
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        if how.seed is not None:
            mx.random.seed(how.seed)  # after all loading, which draws random numbers too
        steps = conversation.stream(
            turn,
            max_tokens=how.max_tokens,
            sampler=make_sampler(how.temp, how.top_p),
            query=how.query,
            pasted=pasted,
            retrieve_seconds=searched,
        )
        try:
            for step in steps:
                answer["content"] += step.text
                yield step
        except Exception:
            self.reset()  # the caches may hold half of the turn
            raise

    def _search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        return self.assistant.search(texts, k, only=self.only)

    def _begin(self) -> Conversation:
        """A conversation that reads with what the memory mode needs."""
        assistant = self.assistant
        if self.memory != "explicit":
            return Conversation(
                assistant.decoder, assistant.plain_prefix, kv_bits=assistant.options.kv_bits
            )
        return Conversation(
            assistant.decoder,
            assistant.format.prefix,
            assistant.format.layout,
            search=self._search,
            read=assistant.read,
            memories=assistant.memories,
            memory_temperature=assistant.decoder.memory_temperature,
            kv_bits=assistant.options.kv_bits,
        )

    def _turn(self, text: str, fresh: bool, raw: bool) -> Turn:
        template = self.assistant.decoder.template
        if raw:
            words = template.encode(text)
            return Turn(tuple(words), (0, len(words)))
        if fresh:
            return template.resume(self.messages, text, system=self.system)
        return template.turn(text, first=False)

    def reset(self) -> None:
        """Forget what was said; the documents stay."""
        self.messages.clear()
        self._conversation = None


def collect(steps: Iterable[Step], memory: str) -> Answer:
    """Gather a stream of steps into an answer."""
    text, sources, span = "", [], -1
    for step in steps:
        text += step.text
        if step.span != span:
            span = step.span
            sources += [Source.of(hit, span) for hit in step.sources]
    return Answer(text, memory, sources, step.timings, step.finish_reason or "length")
