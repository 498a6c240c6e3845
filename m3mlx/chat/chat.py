"""Chats: turns that keep their caches, and answers with their sources."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from ..config import MEMORY_MODES, NOTHING_FITS, Generation, Options
from ..errors import M3Error
from ..memory.cache import PrefixStates
from ..memory.codec import Memory
from ..memory.format import MemoryFormat
from ..models.decoder import Decoder
from ..models.template import Turn
from ..store import Filter, Hit
from .conversation import Conversation, Step, Timings
from .retrieval import Retrieval


class Assistant(Protocol):
    """The part of ``m3mlx.Assistant`` that a chat uses."""

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
    @property
    def floor(self) -> float: ...

    def check(self) -> None: ...
    def search(
        self, texts: Sequence[str], k: int, *, only: Filter | None = None
    ) -> list[list[Hit]]: ...
    def read(self, hits: Sequence[Hit]) -> Memory: ...


@dataclass
class Source:
    """A reference that was read for an answer.

    Attributes:
        span: number of the 64 answer tokens it was read for, from 0.
        share: of the attention of these tokens, 0 to 1, that its memory received; None where it
            is not known: for pasted texts, and with a quantized context.
        used: whether that is at least half of what each memory of the span received on average.
        document: its id in the store.
        store: folder of the attached store it is in; None for the user's own.
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
    share: float | None = None
    used: bool = True

    @classmethod
    def of(cls, hit: Hit, span: int) -> Source:
        where = hit.path, hit.start, hit.end, hit.page, hit.line
        return cls(*where, hit.text, hit.distance, span, hit.document, hit.store)

    @classmethod
    def of_step(cls, step: Step) -> list[Source]:
        """Return what the span of a step drew on so far, the most used first."""
        sources = [cls.of(hit, step.span) for hit in step.sources]
        for source, used in zip(sources, step.used, strict=True):
            source.used = used
        for source, share in zip(sources, step.shares, strict=False):
            source.share = share
        return sources


@dataclass
class Answer:
    """A whole answer with its sources: those of each span together, the most used first."""

    text: str
    memory: str
    sources: list[Source]
    timings: Timings
    finish_reason: str
    thoughts: str = ""

    @property
    def note(self) -> str:
        """What is to be said beside the answer: that nothing in memory fitted, or ""."""
        return NOTHING_FITS if self.memory != "off" and not self.sources else ""


class Chat:
    """A conversation that keeps its caches between turns.

    Attributes:
        memory: "explicit", "text" or "off". Setting another value between turns starts a new
            conversation from ``messages``.
        only: documents to search; None for all.
        messages: the conversation as role and content; an answer is added as it grows, without
            thoughts. Messages added before the first turn are read with it.
        left_out: number of messages at the head that no longer fit the model's context.
        reads_ahead: as of ``Conversation``.
    """

    def __init__(
        self,
        assistant: Assistant,
        memory: str = "explicit",
        system: str | None = None,
        only: Filter | None = None,
    ):
        """Begin a conversation; ``Assistant.chat`` says what the arguments are."""
        if memory not in MEMORY_MODES:
            raise M3Error(f"memory is one of {', '.join(MEMORY_MODES)}, not {memory}")
        self.assistant, self.memory, self.system, self.only = assistant, memory, system, only
        self.messages: list[dict[str, str]] = []
        self.left_out = 0
        self.reads_ahead = True
        self._retrieval = Retrieval(self._search)
        self._conversation: Conversation | None = None
        self._mode = memory  # of the present conversation

    @property
    def attached(self) -> Sequence[Hit]:
        """Hits whose memories the next token attends to."""
        return self._conversation.attached if self._conversation else ()

    def send(
        self,
        message: str,
        generation: Generation | None = None,
        *,
        announce: bool = False,
        **changes: Any,
    ) -> Generator[Step]:
        """Send a message and stream the answer. Stop iterating to interrupt it.

        Args:
            generation: how to answer; None for the defaults.
            announce: first yield a step without a token that has the sources of the answer's
                beginning, as soon as they are found and before they are read.
            changes: fields of ``Generation`` to override.

        Raises:
            M3Error: the message is empty, or longer than the model's context, or the model is
                asked to think and cannot.
            StoreError: nothing is memorized yet, or the store is damaged. An error while the
                answer is generated resets the conversation.
            FingerprintError: the memories were made by another model or other settings.
        """
        if not message.strip():
            raise M3Error("the question is empty")
        how = replace(generation or Generation(), **changes)
        decoder = self.assistant.decoder
        if how.think and not decoder.template.can_think:
            raise M3Error(f"{decoder.name} is no thinking model; ask it without --think")
        if self.memory == "explicit":
            self.assistant.check()
        start = perf_counter()
        hits = self._hits(message, how.query)
        seconds = perf_counter() - start
        pasted = hits or [] if self.memory == "text" else []
        text = "\n\n".join([*(hit.text for hit in pasted), message])
        conversation, turn = self._next_turn(text, message if how.raw else None, how.think)
        room = self._context - conversation.position - len(turn.tokens)
        answer = {"role": "assistant", "content": ""}
        self.messages += [{"role": "user", "content": message}, answer]
        if how.seed is not None:
            mx.random.seed(how.seed)  # after all loading, which draws random numbers too
        conversation.reads_ahead = self.reads_ahead
        steps = conversation.stream(
            turn,
            max_tokens=min(how.max_tokens, room),
            sampler=make_sampler(how.temp, how.top_p) if how.temp else None,
            query=how.query,
            hits=hits,
            pasted=pasted,
            retrieve_seconds=seconds,
            tell_thoughts=not how.raw,
        )
        thought = False
        try:
            if announce and hits:
                yield Step("", None, None, 0, hits, (), Timings(retrieve_seconds=seconds))
            for step in steps:
                thought = thought or step.thought
                answer["content"] += "" if step.thought else step.text
                yield step
        except Exception:
            self.reset()  # the caches may hold half of the turn
            raise
        finally:
            # Thinking models are trained without their earlier thoughts, which would also fill
            # the context: the next turn begins anew, from the messages.
            if thought:
                self._conversation = None

    def _search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        return self.assistant.search(texts, k, only=self.only)

    def _hits(self, message: str, query: str) -> list[Hit] | None:
        """Return what a message reads or pastes; None if it does not, or searches by chunks."""
        if self.memory == "off" or (self.memory == "explicit" and query != "message"):
            return None
        said = [
            each["content"] for each in self.messages[self.left_out :] if each["role"] == "user"
        ]
        if not self._retrieval.subject:
            self._retrieval.subject = tuple(said[-1:])
        self._retrieval.floor = self.assistant.floor
        return self._retrieval.of_message(message, self.assistant.memories)

    def _new_conversation(self) -> Conversation:
        assistant, kv_bits = self.assistant, self.assistant.options.kv_bits
        if self.memory != "explicit":
            return Conversation(assistant.decoder, assistant.plain_prefix, kv_bits=kv_bits)
        return Conversation(
            assistant.decoder,
            assistant.format.prefix,
            assistant.format.layout,
            search=self._retrieval.of_texts,
            read=assistant.read,
            memories=assistant.memories,
            memory_temperature=assistant.decoder.memory_temperature,
            kv_bits=kv_bits,
        )

    @property
    def _context(self) -> int:
        return self.assistant.decoder.context_tokens or sys.maxsize

    def _next_turn(self, text: str, raw: str | None, think: bool) -> tuple[Conversation, Turn]:
        """The conversation and its next turn, which leaves room for an answer.

        Where the model's context is full, a new conversation begins with the last messages, which
        then take half of it, so that the next turns have room too.

        Args:
            text: the user's words, with what is pasted before them.
            raw: words at the end of the text that are continued without the chat template.
            think: ask the model to think first.
        """
        template = self.assistant.decoder.template
        if self._conversation is None or self._mode != self.memory:
            self._conversation, self._mode = self._new_conversation(), self.memory
            said = self.messages[self.left_out :]
            turn = template.resume(said, text, system=self.system, think=think)
        else:
            turn = template.turn(text, first=False, think=think)
        if raw is not None:
            words = template.encode(text.removesuffix(raw)) + template.encode_rendered(raw)
            turn = Turn(tuple(words), (0, len(words)))
        if self._conversation.position + len(turn.tokens) < self._context:
            return self._conversation, turn
        conversation = self._new_conversation()
        for first in range(self.left_out, len(self.messages) + 1, 2) if raw is None else ():
            said = self.messages[first:]
            turn = template.resume(said, text, system=self.system, think=think)
            share = 1 if first == len(self.messages) else 2
            if conversation.position + len(turn.tokens) < self._context // share:
                self._conversation, self.left_out = conversation, first
                return conversation, turn
        raise M3Error(
            f"the question has {len(turn.tokens)} tokens, and the context of "
            f"{self.assistant.decoder.name} is {self._context}. Shorten it, or use a model with a "
            f"longer context."
        )

    def reset(self) -> None:
        """Clear the conversation; the documents stay."""
        self.messages.clear()
        self._retrieval.subject = ()
        self._conversation, self.left_out = None, 0


def collect(steps: Iterable[Step], memory: str) -> Answer:
    """Gather a stream of steps into an answer."""
    texts, spans = {False: "", True: ""}, dict[int, Step]()
    for step in steps:
        texts[step.thought] += step.text
        spans[step.span] = step
    sources = [source for last in spans.values() for source in Source.of_step(last)]
    reason = step.finish_reason or "length"
    return Answer(texts[False], memory, sources, step.timings, reason, texts[True])
