"""Answers to conversations that come whole with every request, on the owner's thread.

A client sends all that was said each time. The caches of the last conversations are kept, so that
one that goes on is not read again: what was said before must be, word for word, what a kept
conversation holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from ..assistant import Assistant
from ..chat.chat import Chat, Source
from ..chat.conversation import Timings
from .errors import BadRequest
from .memories import within
from .openai import ChatRequest
from .owner import Job

CONTEXT_TOKENS = 16_384  # of one conversation, at most
KEPT_TOKENS = 8_192  # of all conversations that are kept together


@dataclass
class Part:
    """Some text of an answer; the first of a span of 64 tokens has the sources of the span."""

    text: str
    span: int
    sources: list[Source] | None = None


@dataclass
class End:
    """How an answer ended, and what it took.

    Attributes:
        prompt: tokens of all that was said, of which ``cached`` were not read again.
        completion: tokens of the answer.
    """

    reason: str
    memory: str
    prompt: int
    cached: int
    completion: int
    timings: Timings


@dataclass
class _Kept:
    chat: Chat
    collection: str | None
    tokens: int  # in its caches


class Answers:
    """Makes answers, and keeps the caches of the last conversations."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []  # the last used one last

    def forget(self) -> None:
        """Keep none: a document was forgotten, and what was read beside it goes with it."""
        self._kept.clear()

    def answer(
        self, assistant: Assistant, job: Job, asked: ChatRequest
    ) -> Iterator[str | Part | End]:
        """The kind of memory in use, the parts of the answer, and its end.

        Raises:
            BadRequest: the conversation is too long.
            M3Error: see ``Chat.send``.
        """
        memory = asked.memory or ("explicit" if assistant.has_store() else "off")
        room = self._room(assistant, asked)
        kept = self._take(asked, memory)
        if kept is None:
            only = within(asked.collection)
            chat = assistant.chat(memory=memory, system=asked.system, only=only)
            kept = _Kept(chat, asked.collection, 0)
            kept.chat.messages += map(dict, asked.said)
        cached, timings, generated = kept.tokens, Timings(), 0
        most = min(asked.generation.max_tokens, room)
        steps = kept.chat.send(asked.message, asked.generation, max_tokens=most)
        until, span, reason = _Until(asked.stop), -1, "length"
        yield memory
        try:
            with closing(steps):
                for step in steps:
                    timings, generated = step.timings, step.timings.generated_tokens
                    # the caches hold all but the token that was drawn last
                    kept.tokens = cached + timings.prompt_tokens + max(generated - 1, 0)
                    text = until.feed(step.text, last=step.finish_reason is not None)
                    if span != step.span:
                        span = step.span
                        yield Part(text, span, [Source.of(hit, span) for hit in step.sources])
                    elif text:
                        yield Part(text, span)
                    if until.met:
                        reason = "stop"
                        break
                    reason = step.finish_reason or reason
        finally:
            # no messages where something went wrong
            if kept.chat.messages and kept.tokens > cached and not asked.raw:
                self._keep(kept)
        prompt = cached + timings.prompt_tokens
        yield End(reason, memory, prompt, cached, generated, replace(timings))

    def _room(self, assistant: Assistant, asked: ChatRequest) -> int:
        """How many tokens the answer may have."""
        args = getattr(assistant.decoder.model, "args", None)
        positions = getattr(args, "max_position_embeddings", None) or CONTEXT_TOKENS
        limit = min(positions, CONTEXT_TOKENS)
        texts = [asked.system or "", *(said["content"] for said in asked.said), asked.message]
        count = sum(len(assistant.decoder.template.encode(text)) for text in texts)
        if count >= limit:
            raise BadRequest(
                f"This conversation has {count} tokens; {limit} is the limit. Begin a new one.",
                *("messages", "context_length_exceeded"),
            )
        return limit - count

    def _take(self, asked: ChatRequest, memory: str) -> _Kept | None:
        """The kept conversation that goes on with this, which is then in use."""
        for kept in () if asked.raw or not asked.said else self._kept:
            chat = kept.chat
            same = chat.memory == memory and kept.collection == asked.collection
            if same and (chat.system, chat.messages) == (asked.system, [*asked.said]):
                self._kept.remove(kept)
                return kept
        return None

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        while self._kept and sum(each.tokens for each in self._kept) > KEPT_TOKENS:
            self._kept.pop(0)


class _Until:
    """Text up to the first of some words, which may come in pieces."""

    def __init__(self, words: tuple[str, ...]):
        self._words, self._held, self.met = words, "", False

    def feed(self, text: str, last: bool) -> str:
        """What can be told by now."""
        self._held += text
        places = [self._held.find(word) for word in self._words]
        if found := [place for place in places if place >= 0]:
            self.met = True
            return self._held[: min(found)]
        keep = 0
        for word in () if last else self._words:
            longest = range(min(len(word) - 1, len(self._held)), 0, -1)
            keep = max(keep, next((n for n in longest if word.startswith(self._held[-n:])), 0))
        told = self._held[: len(self._held) - keep]
        self._held = self._held[len(told) :]
        return told
