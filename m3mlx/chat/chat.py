"""Chats: turns that keep their caches, and answers with their sources."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import mlx.core as mx

from ..config import MEMORY_MODES, NOTHING_FITS, Generation, Options
from ..errors import M3Error
from ..memory.cache import PrefixStates, read_prefix
from ..memory.codec import Memory
from ..memory.format import MemoryFormat
from ..models.decoder import Decoder
from ..models.template import Turn
from ..store import Filter, Hit
from ..text import shared_length
from .conversation import Conversation, Observe
from .retrieval import Retrieval
from .sampling import choices
from .step import Step, Timings


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
        """Return what a span read, with neither a share nor a mark of use yet."""
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
            thoughts. Messages added before the first turn are read with it. A question may have
            an ``exchange``: calls of tools and their results before its answer.
        tools: what the chat template writes about tools, from ``Template.describe``.
        cached: number of tokens of the last turn's prompt that had been read before.
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
        self.messages: list[dict[str, Any]] = []
        self.tools = ""
        self.cached = self.left_out = 0
        self.reads_ahead = True
        self._retrieval = Retrieval(self._search)
        self._conversation: Conversation | None = None
        self._mode = memory, False  # of the present conversation, and whether it is raw text
        # of messages by number: the content, and what was read in its place
        self._as_read: dict[int, tuple[str, dict[str, Any]]] = {}
        self._subjects: dict[int, tuple[str, ...]] = {}  # before the messages of these numbers

    @property
    def raw(self) -> bool:
        """Whether the last turn was a text that is continued as it stands."""
        return self._mode[1]

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids in the caches, the prefix left out."""
        return self._conversation.tokens if self._conversation else ()

    @property
    def timings(self) -> Timings:
        """Of the last turn."""
        return self._conversation.timings if self._conversation else Timings()

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self._conversation.nbytes if self._conversation else 0

    def go_back(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Continue from other messages; only what they do not share with these is read again."""
        if shared_length(messages, self.messages) < len(messages):
            self._retrieval.subject = ()
        elif len(messages) < len(self.messages):
            self._retrieval.subject = self._subjects.get(len(messages), ())
        self.messages[:] = map(dict, messages)

    def fork(self) -> Chat:
        """Return a copy that continues independently."""
        other = copy(self)
        other.messages, other._as_read = self.messages.copy(), self._as_read.copy()
        other._subjects = self._subjects.copy()
        other._retrieval = Retrieval(other._search)
        other._retrieval.subject = self._retrieval.subject
        if self._conversation:
            other._conversation = self._conversation.fork(other._retrieval.of_texts)
        return other

    @property
    def attached(self) -> Sequence[Hit]:
        """Hits whose memories the next token attends to."""
        return self._conversation.attached if self._conversation else ()

    def send(
        self,
        message: str,
        generation: Generation | None = None,
        *,
        exchange: Sequence[Mapping[str, Any]] = (),
        tokens: Sequence[int] | None = None,
        blank: bool = False,
        observe: Observe | None = None,
        while_reading: Callable[[], None] = lambda: None,
        announce: bool = False,
        **changes: Any,
    ) -> Generator[Step]:
        """Send a message and stream the answer. Stop iterating to interrupt it.

        Args:
            generation: how to answer; None for the defaults.
            exchange: calls of tools and their results since the message, as OpenAI has them.
            tokens: the message as token ids, if it is ``raw``.
            blank: take a message without words too.
            observe: gets the prompt's tokens and the logits after each, which are all read again.
            while_reading: called while the prompt is read; an exception it raises ends the turn.
            announce: first yield a step without a token that has the sources of the answer's
                beginning, as soon as they are found and before they are read.
            changes: fields of ``Generation`` to override.

        Raises:
            M3Error: the message is empty, or longer than the model's context, or the
                model is asked to think and cannot.
            StoreError: nothing is memorized yet, or the store is damaged. An error while the
                answer is generated resets the conversation.
            FingerprintError: the memories were made by another model or other settings.
        """
        how = replace(generation or Generation(), **changes)
        if not (message.strip() or blank or how.raw):
            raise M3Error("the question is empty")
        decoder = self.assistant.decoder
        if how.think and not decoder.template.can_think:
            raise M3Error(f"{decoder.name} is no thinking model; ask it without --think")
        if self.memory == "explicit":
            self.assistant.check()
        start = perf_counter()
        count = how.memories or self.assistant.memories
        hits = self._hits(message, how.query, count)
        seconds = perf_counter() - start
        pasted = hits or [] if self.memory == "text" else []
        text = "\n\n".join([*(hit.text for hit in pasted), message])
        whole = partial(self._whole, text, message, how, exchange, tokens)
        if observe or self._mode != (self.memory, how.raw):
            self._conversation = None
            self._as_read.clear()
        conversation, turn = self._next_turn(whole, hits, how.raw)
        conversation.while_reading, conversation.memories = while_reading, count
        conversation.ends = how.ends
        room = self._context - conversation.position - len(turn.tokens)
        asked: dict[str, Any] = {"role": "user", "content": message}
        asked |= {"exchange": list(exchange)} if exchange else {}
        answer: dict[str, Any] = {"role": "assistant", "content": how.opening + how.prefill}
        self.messages += [asked, answer]
        number = len(self.messages) - 1
        self._as_read[number - 1] = message, {"content": text}
        if how.seed is not None:
            mx.random.seed(how.seed)  # after all loading, which draws random numbers too
        conversation.reads_ahead = self.reads_ahead
        steps = conversation.stream(
            turn,
            max_tokens=min(how.max_tokens, room),
            **choices(decoder, how),
            query=how.query,
            hits=hits,
            pasted=pasted,
            retrieve_seconds=seconds,
            tell_thoughts=not how.raw,
            observe=observe,
        )
        thought, drawn = False, decoder.template.begun(how.opening, how.prefill)
        try:
            if announce and hits:
                yield Step("", None, None, 0, hits, (), Timings(retrieve_seconds=seconds))
            for step in steps:
                thought = thought or step.thought
                answer["content"] += "" if step.thought else step.text
                drawn += [] if step.token is None else [step.token]
                yield step
        except Exception:
            self.reset()  # the caches may hold half of the turn
            raise
        finally:
            # Thinking models are trained without their earlier thoughts, which would also fill
            # the context: only the answer is read again.
            if not thought:
                self._as_read[number] = answer["content"], {"tokens": drawn}

    def _search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        return self.assistant.search(texts, k, only=self.only)

    def _hits(self, message: str, query: str, count: int) -> list[Hit] | None:
        """Return what a message reads or pastes; None if it does not, or searches by chunks."""
        if self.memory == "off":
            return None
        self._retrieval.floor = self.assistant.floor
        if self.memory == "explicit" and query != "message":
            return None
        if not message.strip():
            return []
        said = [
            each["content"] for each in self.messages[self.left_out :] if each["role"] == "user"
        ]
        if not self._retrieval.subject:
            self._retrieval.subject = tuple(said[-1:])
        self._subjects[len(self.messages)] = self._retrieval.subject
        return self._retrieval.of_message(message, count)

    def _new_conversation(self, raw: bool) -> Conversation:
        assistant, kv_bits = self.assistant, self.assistant.options.kv_bits
        if self.memory != "explicit":
            plain = raw and self.memory == "off"  # as the model itself continues a text
            prefix = read_prefix(assistant.decoder.model, ()) if plain else assistant.plain_prefix
            return Conversation(assistant.decoder, prefix, kv_bits=kv_bits)
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

    def _whole(
        self,
        text: str,
        message: str,
        how: Generation,
        exchange: Sequence[Mapping[str, Any]],
        tokens: Sequence[int] | None,
        first: int,
    ) -> Turn:
        """Render all messages from the ``first`` on, and the new one.

        Args:
            text: the user's words, with what is pasted before them.
            tokens: the message as token ids, if it is continued without the chat template.
        """
        template = self.assistant.decoder.template
        if not how.raw:
            return template.resume(
                [self._read_as(number) for number in range(first, len(self.messages))],
                text,
                system=self.system,
                tools=self.tools,
                think=how.think,
                exchange=exchange,
                prefill=how.prefill,
                opening=how.opening,
            )
        words = template.encode(text.removesuffix(message))
        words += template.continued(message, self.memory == "off") if tokens is None else tokens
        return Turn(tuple(words), (0, len(words)))

    def _read_as(self, number: int) -> dict[str, Any]:
        """Return a message as it was read, or drawn, if it is still the same."""
        message = self.messages[number]
        content, read = self._as_read.get(number, ("", {}))
        return {**message, **read} if content == message["content"] else message

    def _next_turn(
        self, whole: Callable[[int], Turn], hits: list[Hit] | None, raw: bool
    ) -> tuple[Conversation, Turn]:
        """The conversation and its next turn, which leaves room for an answer.

        Where the model's context is full, the conversation goes on with the last messages, which
        then take half of it, so that the next turns have room too.

        Args:
            whole: renders the messages from a number on, and the new one.
        """
        conversation = self._conversation or self._new_conversation(raw)
        self._mode = self.memory, raw
        turn = whole(self.left_out)
        if conversation.first + len(turn.tokens) >= self._context:
            for first in range(self.left_out, len(self.messages) + 1, 2) if not raw else ():
                turn = whole(first)
                share = 1 if first == len(self.messages) else 2
                if conversation.first + len(turn.tokens) < self._context // share:
                    self.left_out = first
                    break
            else:
                raise M3Error(
                    f"the question has {len(turn.tokens)} tokens, and the context of "
                    f"{self.assistant.decoder.name} is {self._context}. Shorten it, or use a model "
                    f"with a longer context."
                )
        rest = conversation.continued(turn, hits)
        self.cached = len(turn.tokens) - len(rest.tokens)
        if not self.cached:
            conversation = self._new_conversation(raw)
        self._conversation = conversation
        return conversation, rest

    def reset(self) -> None:
        """Clear the conversation; the documents stay."""
        self.messages.clear()
        self._as_read.clear()
        self._subjects.clear()
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
