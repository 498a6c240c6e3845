"""Answers to conversations that arrive whole with every request. Runs on the model thread.

A client sends the whole conversation each time. The caches of the last conversations are kept, so
that one that goes on is not read again, if its earlier messages are the same word for word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from ..assistant import Assistant
from ..chat.chat import Chat, Source
from ..chat.conversation import Step, Timings
from ..config import NOTHING_FITS, Generation
from .documents import collection_filter
from .errors import BadRequest
from .model_thread import Job

CONTEXT_TOKENS = 16_384  # maximum length of one conversation
CACHED_TOKENS = 8_192  # maximum length of all cached conversations together


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that waits for its next answer, or a text to continue.

    Attributes:
        message: the user's last message.
        earlier: the messages before it, beginning with the user's, as role and content.
        memory: "explicit", "text", "off"; None for explicit where there is a store.
        collection: the only one that is searched; None for all documents.
        usage: end a stream with the numbers of tokens.
        stop: the answer ends before the first of these.
        generation: how to answer; with ``raw`` the message is continued as it stands.
    """

    message: str
    earlier: tuple[dict[str, str], ...] = ()
    system: str | None = None
    memory: str | None = None
    collection: str | None = None
    stream: bool = False
    usage: bool = False
    stop: tuple[str, ...] = ()
    generation: Generation = field(default_factory=Generation)


@dataclass
class AnswerPart:
    """A part of an answer: the first and the last have no text of their own.

    Attributes:
        m3mlx: fields of our own: in the first part the memory mode; with the first text of each
            span of 64 tokens its number and sources; in the last part timings, all sources with
            their shares of the attention, and a note if nothing in memory fits.
        reasoning: thoughts of the model; a part has these or text.
        reason: "stop" or "length", in the last part.
        usage: numbers of tokens as OpenAI names them, in the last part.
    """

    text: str = ""
    m3mlx: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    reasoning: str = ""


@dataclass
class _Cached:
    chat: Chat
    tokens: int = 0  # in its caches


class ConversationCache:
    """Answers conversations, and keeps the caches of the last ones."""

    def __init__(self) -> None:
        self._cached: list[_Cached] = []  # the last used one last

    def clear(self) -> None:
        """Drop all: a document was forgotten, and caches may hold text read beside it."""
        self._cached.clear()

    def answer(self, assistant: Assistant, job: Job, request: ChatRequest) -> Iterator[AnswerPart]:
        """Yield the parts of an answer.

        Raises:
            BadRequest: the conversation is too long.
            M3Error: see ``Chat.send``.
        """
        room = _room(assistant, request)
        conversation = self._take(assistant, request)
        chat, cached = conversation.chat, conversation.tokens
        length = min(request.generation.max_tokens, room)
        steps = chat.send(request.message, request.generation, announce=True, max_tokens=length)
        stop, reason, timings = _StopFilter(request.stop), "length", Timings()
        spans: dict[int, Step] = {}  # the last step of each
        thought = False
        yield AnswerPart(m3mlx={"memory": chat.memory})
        try:
            with closing(steps):
                for step in steps:
                    timings = step.timings
                    # the caches hold all but the last drawn token
                    drawn = max(timings.generated_tokens - 1, 0)
                    conversation.tokens = cached + timings.prompt_tokens + drawn
                    thought = thought or step.thought
                    text, reasoning = ("", step.text) if step.thought else (step.text, "")
                    text = stop.feed(text, last=step.finish_reason is not None)
                    part = AnswerPart(text, reasoning=reasoning)
                    if step.span not in spans:
                        part.m3mlx = {"span": step.span, "sources": _sources([step])}
                    spans[step.span] = step
                    if part.m3mlx or text or reasoning:
                        yield part
                    reason = "stop" if stop.found else step.finish_reason or reason
                    if stop.found:
                        break
        finally:
            # an error has reset the chat, so it has no messages; thoughts are not kept in caches
            kept = not (thought or request.generation.raw)
            if kept and chat.messages and conversation.tokens > cached:
                self._keep(conversation)
        prompt, completion = cached + timings.prompt_tokens, timings.generated_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        about: dict[str, Any] = {"sources": _sources(spans.values()), "timings": asdict(timings)}
        if chat.memory != "off" and not about["sources"]:
            about["note"] = NOTHING_FITS
        yield AnswerPart(m3mlx=about, reason=reason, usage=usage)

    def _take(self, assistant: Assistant, request: ChatRequest) -> _Cached:
        """Take the cached conversation that the request continues, or begin a new one."""
        memory = request.memory or ("explicit" if assistant.has_store() else "off")
        wanted = memory, collection_filter(request.collection), request.system
        for cached in () if request.generation.raw or not request.earlier else self._cached:
            chat = cached.chat
            same = (chat.memory, chat.only, chat.system) == wanted
            if same and chat.messages == [*request.earlier]:
                self._cached.remove(cached)
                return cached
        chat = assistant.chat(memory=memory, only=wanted[1], system=request.system)
        chat.messages += map(dict, request.earlier)
        return _Cached(chat)

    def _keep(self, conversation: _Cached) -> None:
        self._cached.append(conversation)
        while self._cached and sum(each.tokens for each in self._cached) > CACHED_TOKENS:
            self._cached.pop(0)


def join_turns(messages: Iterable[tuple[str, str]]) -> tuple[list[str], list[dict[str, str]]]:
    """Split messages, as role and text, into system prompts and turns; one role's are joined."""
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for role, text in messages:
        if role == "system":
            system.append(text)
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    return system, turns


def _sources(steps: Iterable[Step]) -> list[dict[str, Any]]:
    return [vars(source) for step in steps for source in Source.of_step(step)]


def _room(assistant: Assistant, request: ChatRequest) -> int:
    """Return how many tokens the answer may have."""
    limit = min(assistant.decoder.context_tokens or CONTEXT_TOKENS, CONTEXT_TOKENS)
    earlier = (message["content"] for message in request.earlier)
    texts = [request.system or "", *earlier, request.message]
    count = sum(len(assistant.decoder.template.encode(text)) for text in texts)
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
