"""A conversation: turns that keep their caches, and what an answer drew on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from ..config import MEMORY_MODES, MemoryConfig
from ..errors import M3Error
from ..memory.cache import Layout, PrefixStates
from ..memory.codec import Memory
from ..models.decoder import Decoder
from ..models.template import Template, Turn
from ..store import Hit, MemoryStore
from .conversation import Conversation, Step, Timings


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


class Assisting(Protocol):
    """What a conversation asks of an assistant."""

    decoder: Decoder
    template: Template
    config: MemoryConfig
    prefix: PrefixStates
    plain_prefix: PrefixStates
    store_path: Path
    memories: int
    kv_bits: int | None

    def check(self) -> None:
        """Refuse a store without memories of the model."""

    def search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """The references that fit each text best."""

    def read(self, slots: Sequence[int]) -> Memory:
        """The memories of references that the last search found."""


class Chat:
    """A conversation that keeps its caches between turns.

    Attributes:
        memory: "explicit", "text" or "off"; may be changed between turns.
        messages: what was said, as role and content; an answer is added as it grows. What is
            put here before the first turn is read with it.
    """

    def __init__(self, assistant: Assisting, memory: str, system: str | None):
        if memory not in MEMORY_MODES:
            raise M3Error(f"memory is one of {', '.join(MEMORY_MODES)}, not {memory}")
        self.assistant, self.memory, self.system = assistant, memory, system
        self.messages: list[dict[str, str]] = []
        self._conversation: Conversation | None = None

    def send(
        self,
        message: str,
        *,
        query: str = "message",
        raw: bool = False,
        max_tokens: int = 256,
        temp: float = 0.0,
        top_p: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Step]:
        """Say something and stream the answer. Stop iterating to interrupt it.

        Args:
            query: what prompt chunks retrieve with: their own words ("chunk", the paper's way),
                or the whole message.
            raw: continue the message as it stands, without the chat template around it.
            max_tokens: length of the answer, at most.
            temp, top_p: of mlx-lm's sampler; greedy with temp 0.
            seed: makes a sampled answer repeatable.

        Raises:
            M3Error: the message is empty.
            StoreError: nothing is memorized yet, or the store is damaged; what was raised while
                the model was reading resets the conversation.
            FingerprintError: the memories were made by another model or other settings.
        """
        if not message.strip():
            raise M3Error("the question is empty")
        assistant = self.assistant
        sources: list[Hit] = []
        start = perf_counter()
        if self.memory != "off":
            assistant.check()
        text = message
        if self.memory == "text":
            sources = assistant.search([message], assistant.memories)[0]
            text = "\n\n".join([*(hit.text for hit in sources), message])
        searched = perf_counter() - start
        fresh = self._conversation is None
        conversation = self._continue()
        if raw:
            words = assistant.template.encode(text)
            turn = Turn(tuple(words), (0, len(words)))
        elif fresh:
            turn = assistant.template.resume(self.messages, text, system=self.system)
        else:
            turn = assistant.template.turn(text, first=False)
        self.messages.append({"role": "user", "content": message})
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        if seed is not None:
            mx.random.seed(seed)  # behind all loading, which draws random numbers too
        steps = conversation.stream(
            turn, max_tokens=max_tokens, sampler=make_sampler(temp, top_p), query=query
        )
        try:
            for step in steps:
                if self.memory == "text":
                    step.sources = sources
                    if step.timings.retrieve_seconds == 0:
                        step.timings.retrieve_seconds = searched
                        step.timings.first_token_seconds += searched
                answer["content"] += step.text
                yield step
        except Exception:
            self.reset()  # nobody knows how much of the turn the caches hold
            raise

    def _continue(self) -> Conversation:
        """The conversation's caches, switched to the present kind of memory."""
        assistant, explicit = self.assistant, self.memory == "explicit"
        if self._conversation is None:
            known = MemoryStore.exists(assistant.store_path)
            prefix = assistant.prefix if known else assistant.plain_prefix
            self._conversation = Conversation(
                assistant.decoder,
                prefix,
                assistant.config if known else None,
                memories=assistant.memories,
                memory_temperature=assistant.decoder.memory_temperature,
                kv_bits=assistant.kv_bits,
            )
        if explicit and self._conversation.layout is None:  # the store was made meanwhile
            self._conversation.layout = Layout(assistant.config)
        self._conversation.search = assistant.search if explicit else None
        self._conversation.read = assistant.read if explicit else None
        return self._conversation

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
    return Answer(text, memory, sources, step.timings, step.finish_reason)
