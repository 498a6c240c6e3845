"""Answers to conversations that arrive whole with every request. Runs on the model thread.

A client sends the whole conversation each time. The caches of the last conversations are kept, and
a request reads only what none of them has read: what follows a common system prompt, an answer
that is to be another, a last message that was edited. mlx-lm's own store of prompt caches knows a
conversation by its tokens alone; here it also counts what was read beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx

from ..assistant import Assistant
from ..chat.chat import Chat, Source
from ..chat.step import Step
from ..config import NOTHING_FITS, Generation
from ..memory.cache import known_tokens
from ..text import shared_length
from .chances import Chances, TokenChance
from .documents import collection_filter
from .errors import BadRequest
from .model_thread import Job
from .tool_calls import ForcedCall, ToolCalls, calls_in_answer

CONTEXT_TOKENS = 16_384  # maximum length of one conversation
SHARE = 8  # of the machine's memory that caches may take: one part of so many
MOST_BYTES = 4_000_000_000  # of all cached conversations together
MOST_KEPT = 64  # conversations
WORTH = 16  # tokens that a text to be continued shares with another, to go on from its caches


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that waits for its next answer, or a text to continue.

    Attributes:
        message: the user's last message.
        earlier: the messages before it, beginning with the user's, as role and content, and with
            an ``exchange`` where tools were called.
        exchange: calls of tools and their results since the message.
        tools: that may be called.
        forced: tools of which one has to be called.
        tokens: the text as token ids, used instead of ``message``.
        memory: "explicit", "text", "off"; None for explicit where there is a store.
        collection: the only one that is searched; None for all documents.
        stop: the answer ends before the first of these.
        chances: tell how likely each token was, and so many of the likeliest; None for nothing.
        echo: begin the answer with the text itself.
        generation: how to answer; with ``raw`` the message is continued as it stands.
    """

    message: str
    earlier: tuple[dict[str, Any], ...] = ()
    system: str | None = None
    exchange: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    forced: tuple[dict[str, Any], ...] = ()
    tokens: tuple[int, ...] | None = None
    memory: str | None = None
    collection: str | None = None
    stop: tuple[str, ...] = ()
    chances: int | None = None
    echo: bool = False
    generation: Generation = field(default_factory=Generation)

    @property
    def scored(self) -> bool:
        """All tokens of the text are looked at, so that it is read anew."""
        return self.generation.raw and self.echo and self.chances is not None


@dataclass
class AnswerPart:
    """A part of an answer: the first and the last have no text of their own.

    Attributes:
        m3mlx: fields of our own: in the first part the memory mode; with the first text of each
            span of 64 tokens its number and sources; in the last part timings, all sources with
            their shares of the attention, and a note if nothing in memory fits.
        reason: "stop", "length" or "tool_calls", in the last part.
        usage: numbers of tokens as OpenAI names them, in the last part.
        reasoning: thoughts of the model; a part has these or text.
        calls: of tools, as OpenAI has them; ``first_call`` is the number of the first.
        chances: of the tokens that were drawn.
        index: which of the answers to a request it belongs to.
        total: usage of all answers together, in the last part of the last one.
    """

    text: str = ""
    m3mlx: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    first_call: int = 0
    chances: list[TokenChance] = field(default_factory=list)
    index: int = 0
    total: dict[str, Any] = field(default_factory=dict)


class ConversationCache:
    """Answers conversations, and keeps the caches of the last ones.

    Args:
        limit: bytes of all caches together; the last conversation is kept even beyond it. None
            for a share of the machine's memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._kept: list[Chat] = []  # the last used one last

    @property
    def nbytes(self) -> int:
        """Bytes of all kept caches."""
        return sum(chat.nbytes for chat in self._kept)

    @property
    def limit(self) -> int:
        """Bytes that the caches may take together."""
        if self._limit is None:
            memory = int(mx.device_info().get("memory_size", 0)) or MOST_BYTES
            self._limit = min(MOST_BYTES, memory // SHARE)
        return self._limit

    def clear(self) -> None:
        """Drop all: a document was forgotten, and caches may hold text read beside it."""
        self._kept.clear()

    def answers(
        self, assistant: Assistant, job: Job, requests: Sequence[ChatRequest], count: int = 1
    ) -> Iterator[AnswerPart]:
        """Yield the parts of answers, one after the other: so many to each request."""
        total: dict[str, Any] = {}
        for index in range(len(requests) * count):
            number, again = divmod(index, count)
            request = requests[number]
            seed = request.generation.seed
            if again and seed is not None:  # another answer to the same, and not the same again
                how = replace(request.generation, seed=(seed + again) % 2**64)
                request = replace(request, generation=how)
            for part in self.answer(assistant, job, request):
                part.index = index
                if part.usage:
                    _add_usage(total, part.usage, again > 0)
                    part.total = total if index == len(requests) * count - 1 else {}
                yield part

    def answer(self, assistant: Assistant, job: Job, request: ChatRequest) -> Iterator[AnswerPart]:
        """Yield the parts of an answer.

        Raises:
            BadRequest: the conversation is too long.
            M3Error: see ``Chat.send``.
        """
        template = assistant.decoder.template
        request = _readable(assistant, request)
        calls = calls_in_answer(assistant.decoder.tokenizer, request.tools, request.forced)
        how = replace(request.generation, **calls.changes)
        request = replace(request, generation=how)
        room = _room(assistant, request)
        chat = self._take(assistant, request)
        chances = Chances(assistant.decoder.tokenizer, request.chances)
        steps = chat.send(
            request.message,
            how,
            announce=how.max_tokens > 0 and not request.echo,
            exchange=request.exchange,
            tokens=request.tokens,
            blank=True,
            observe=chances.observe if request.scored else None,
            while_reading=job.check,
            max_tokens=max(min(how.max_tokens, room), 1),
            think=how.think and template.can_think,
        )
        answer = _Answer(request, chat, calls)
        yield AnswerPart(m3mlx={"memory": chat.memory})
        try:
            with closing(steps):
                for number, step in enumerate(steps):
                    if request.echo and not number:
                        known = chances.prompt(request.tokens)
                        yield AnswerPart(request.message, chances=known)
                    yield from answer.parts(step, chances) if how.max_tokens else ()
                    if answer.stopped or not how.max_tokens:
                        break
        finally:
            # an error has reset the chat, so it has no messages
            if chat.messages and not request.scored:
                self._keep(chat)
        yield answer.end()

    def _take(self, assistant: Assistant, request: ChatRequest) -> Chat:
        """Return a chat with the earlier messages, and with the caches that share most of them.

        Texts that are continued as they stand have chats too, which share tokens.
        """
        memory = request.memory or ("explicit" if assistant.has_store() else "off")
        only = collection_filter(request.collection)
        tools = assistant.decoder.template.describe(request.tools)
        raw, tokens = request.generation.raw, request.tokens or ()
        wanted = raw, memory, only, request.system, tools
        asked = [*request.earlier, _asked(request)]
        chat, shared = None, WORTH - 1 if raw else -1
        for kept in reversed(self._kept if not request.scored else ()):
            if (kept.raw, kept.memory, kept.only, kept.system, kept.tools) == wanted:
                both = (kept.tokens, tokens) if raw else (kept.messages, asked)
                if (count := shared_length(*both)) > shared:
                    chat, shared = kept, count
        if chat is None:
            chat = assistant.chat(memory=memory, only=only, system=request.system)
            chat.tools = tools
        elif _goes_on(chat, shared, len(tokens)):
            self._kept.remove(chat)
        else:
            chat = chat.fork()
        chat.go_back(request.earlier)
        return chat

    def _keep(self, chat: Chat) -> None:
        self._kept.append(chat)
        while len(self._kept) > 1 and (len(self._kept) > MOST_KEPT or self.nbytes > self.limit):
            self._kept.pop(0)


def _goes_on(chat: Chat, shared: int, tokens: int) -> bool:
    """Return whether a chat goes on, or only its last turn is to be another.

    Args:
        shared: number of messages, or of tokens of a text that is continued.
        tokens: of that text.
    """
    if chat.raw:
        return shared >= len(chat.tokens) - 1 or shared == tokens
    return shared >= len(chat.messages) - 1 or 0 < shared == len(chat.messages) - 2


class _Answer:
    """One answer as it grows: what of each step is told, and the usage at its end.

    Attributes:
        drawn: number of tokens.
        reason: why it ended.
    """

    def __init__(self, request: ChatRequest, chat: Chat, tools: ToolCalls | ForcedCall):
        self._request, self._chat, self._tools = request, chat, tools
        self._stop = _StopFilter(request.stop)
        self._spans: dict[int, Step] = {}  # the last step of each
        self._calls = 0
        self.drawn, self.reason = 0, "length"

    @property
    def stopped(self) -> bool:
        """A stop word was found, or the call that was asked for is whole."""
        return self._stop.found or self._tools.whole

    def parts(self, step: Step, chances: Chances) -> Iterator[AnswerPart]:
        """Yield what a step adds."""
        last = step.finish_reason is not None
        text, reasoning = ("", step.text) if step.thought else (step.text, "")
        text, calls = self._tools.feed(text, last)
        text = self._stop.feed(text, last)
        part = AnswerPart(text, reasoning=reasoning, calls=calls, first_call=self._calls)
        self._calls += len(calls)
        if step.token is not None:
            self.drawn += 1
            part.chances = chances.drawn(step.token, step.logprobs)
        if step.span not in self._spans:
            part.m3mlx = {"span": step.span, "sources": _sources([step])}
        self._spans[step.span] = step
        if part.m3mlx or text or reasoning or calls or part.chances:
            yield part
        self.reason = "stop" if self.stopped else step.finish_reason or self.reason

    def end(self) -> AnswerPart:
        """Return the last part."""
        timings, cached = self._chat.timings, self._chat.cached
        prompt = cached + timings.prompt_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self.drawn,
            "total_tokens": prompt + self.drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        sources = _sources(self._spans.values())
        about: dict[str, Any] = {"sources": sources, "timings": asdict(timings)}
        if self._chat.memory != "off" and not sources:
            about["note"] = NOTHING_FITS
        reason = "tool_calls" if self._calls and self.reason == "stop" else self.reason
        return AnswerPart(m3mlx=about, reason=reason, usage=usage)


def _asked(request: ChatRequest) -> dict[str, Any]:
    """Return the message that a request asks, as chats keep it."""
    exchange = {"exchange": list(request.exchange)} if request.exchange else {}
    return {"role": "user", "content": request.message, **exchange}


def _add_usage(total: dict[str, Any], usage: Mapping[str, Any], again: bool) -> None:
    """Add the usage of an answer; a prompt that is answered again counts once."""
    for name, value in usage.items():
        if name == "prompt_tokens_details":
            _add_usage(total.setdefault(name, {}), value, again)
        elif not again or name == "completion_tokens":
            total[name] = total.get(name, 0) + value
    if "completion_tokens" in total:
        total["total_tokens"] = total["prompt_tokens"] + total["completion_tokens"]


def _readable(assistant: Assistant, request: ChatRequest) -> ChatRequest:
    """Return a request with the text of its tokens; raises BadRequest for foreign tokens."""
    known = known_tokens(assistant.decoder.model)
    bias = request.generation.logits.get("logit_bias", ())
    for name, tokens in (("prompt", request.tokens or ()), ("logit_bias", bias)):
        if foreign := [token for token in tokens if not 0 <= token < known]:
            raise BadRequest(f"Token {foreign[0]} is not one of this model's {known}.", name)
    if request.tokens is None:
        if request.generation.raw:
            memory = request.memory or ("explicit" if assistant.has_store() else "off")
            begins = memory == "off"
            tokens = assistant.decoder.template.continued(request.message, begins)
            return replace(request, tokens=tuple(tokens))
        return request
    text = assistant.decoder.tokenizer.decode(list(request.tokens))
    return replace(request, message=text)


def _sources(steps: Iterable[Step]) -> list[dict[str, Any]]:
    return [vars(source) for step in steps for source in Source.of_step(step)]


def _room(assistant: Assistant, request: ChatRequest) -> int:
    """Return how many tokens the answer may have."""
    limit = min(assistant.decoder.context_tokens or CONTEXT_TOKENS, CONTEXT_TOKENS)
    encode = assistant.decoder.template.encode
    if request.tokens is not None:
        count = len(request.tokens)
    else:
        messages = [*request.earlier, _asked(request)]
        called = (each for message in messages for each in message.get("exchange", ()))
        texts = [request.system or "", request.generation.prefill]
        texts += [message["content"] for message in (*messages, *called)]
        count = sum(len(encode(text)) for text in texts)
    if count >= limit:
        raise BadRequest(
            f"This conversation has {count} tokens; {limit} is the limit. Begin a new one.",
            *("messages", "context_length_exceeded"),
        )
    return limit - count


class _StopFilter:
    """Passes text on up to the first stop word, which may arrive in pieces."""

    def __init__(self, words: tuple[str, ...]):
        self._words, self._held, self.found = words, "", False

    def feed(self, text: str, last: bool) -> str:
        """Add text and return what can be passed on: all that cannot begin a stop word."""
        self._held += text
        places = [self._held.find(word) for word in self._words]
        if found := [place for place in places if place >= 0]:
            self.found = True
            return self._held[: min(found)]
        keep = 0
        for word in () if last else self._words:
            longest = range(min(len(word) - 1, len(self._held)), 0, -1)
            keep = max(keep, next((n for n in longest if word.startswith(self._held[-n:])), 0))
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(passed) :]
        return passed
