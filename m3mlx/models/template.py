"""A model's chat template, cut where a reference would stand.

The template's text before the user's first words is the constant prefix; the rest belongs to the
context. A user's own system prompt goes to the head of the context, so that the prefix stays a
constant of the model, without which memories cannot be read. A model without a template has the
prefix of the paper, ``<bos>Reference:`` (section 3.2). A model that was trained with memories
brings its own prefix; its context then begins with all that the template puts before the user's
words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import ModelError
from ..text import shared_length

_USER, _ANSWER, _NEXT = "m3mlxfirstuser", "m3mlxfirstanswer", "m3mlxseconduser"
_SYSTEM = "m3mlxsystem"
_MARK = re.compile(r"m3mlxmark(\d+)x")


@dataclass(frozen=True)
class Turn:
    """Token ids of one user turn, or of a whole conversation that ends with one.

    Attributes:
        words: half-open range of the user's own words in them.
        head: number of tokens at the beginning that every conversation with the same system
            prompt and tools has.
        start: where the last turn begins; below 0 if it began before.
    """

    tokens: tuple[int, ...]
    words: tuple[int, int]
    head: int = 0
    start: int = 0

    def rest(self, count: int) -> Turn:
        """Return it without the first ``count`` tokens."""
        first, last = (max(place - count, 0) for place in self.words)
        return Turn(
            self.tokens[count:], (first, last), max(self.head - count, 0), self.start - count
        )


class Template:
    """Renders turns as token ids.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        prefix: the own prefix of a model that was trained with memories.

    Raises:
        ModelError: the chat template drops or repeats the user's message.
    """

    def __init__(self, tokenizer: Any, prefix: str | None = None):
        self._tokenizer = tokenizer
        self._control_ids, self._controls = _controls(tokenizer)
        bos = getattr(tokenizer, "bos_token", None) or ""
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if has_template:
            first = self._render([("user", _USER)])
            thinking = self._render([("user", _USER)], think=True)
            both = self._render([("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)])
            if first.count(_USER) != 1 or both.count(_ANSWER) != 1 or both.count(_NEXT) != 1:
                raise ModelError(
                    "the chat template of this model does not show each message once; "
                    "use a model with another template"
                )
            self.prefix_text, self._after = first.split(_USER)
            # Only this part of a thinking template is used, as the prefix is a constant.
            self._after_to_think = thinking.split(_USER)[-1]
            self._answered = both.partition(_USER)[2].partition(_ANSWER)[0]
            self._between = both.split(_ANSWER)[1].split(_NEXT)[0]
        else:
            self.prefix_text = f"{bos}Reference:"
            self._after = self._after_to_think = self._answered = self._between = "\n"
        self._head = "\n\n"
        if prefix is not None:
            self._head = self.prefix_text if has_template else bos
            self.prefix_text = prefix
        self.prefix = tuple(self.encode_rendered(self.prefix_text))

    @property
    def recite(self) -> tuple[int, ...]:
        """Token ids between a reference and its recitation: an empty user turn's."""
        return self.turn("").tokens

    @property
    def end(self) -> int:
        """Return the token that ends an answer."""
        ends = self._tokenizer.eos_token_ids
        first = self.encode_rendered(self._between)[0]
        return first if first in ends else self._tokenizer.eos_token_id

    @property
    def can_think(self) -> bool:
        """Whether the tokenizer has marks of thoughts."""
        return self._tokenizer.has_thinking

    def opens_thought(self, tokens: Sequence[int]) -> bool:
        """Return whether what follows these tokens is a thought."""
        if not self.can_think:
            return False
        find_start, find_end = self._tokenizer.rfind_think_start, self._tokenizer.rfind_think_end
        return find_start(tokens) > find_end(tokens)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of what a person wrote, none of which is a control token."""
        return self.tokenize(text)[0]

    def encode_rendered(self, text: str) -> list[int]:
        """Return the token ids of what a template wrote, its control tokens included."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def continued(self, text: str, begins: bool) -> list[int]:
        """Return the token ids of a text that is to be continued as it stands.

        Args:
            begins: nothing is before it, so it begins as the model's texts do.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=begins)
        return ids or [self._tokenizer.bos_token_id or self._tokenizer.eos_token_id]

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of what a person wrote, and their character offsets.

        Words that look like a control token are cut behind their first character, so that they
        are read as the text that they are.
        """
        cuts = [0]
        while self._controls and (found := self._controls.search(text, cuts[-1])):
            cuts.append(found.start() + 1)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise([*cuts, len(text)]):
            part, places = self._encode(text[start:end])
            if not self._control_ids.isdisjoint(part):  # made by the tokenizer's normalization
                part, places = self._encode_apart(text[start:end])
            ids += part
            offsets += [(start + a, start + b) for a, b in places]
        return ids, offsets

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _encode_apart(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode each character by itself, and leave out what is a control token even so."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for place, character in enumerate(text):
            kept = [id for id in self._encode(character)[0] if id not in self._control_ids]
            ids += kept
            offsets += [(place, place + 1)] * len(kept)
        return ids, offsets

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def turn(
        self, message: str, *, system: str | None = None, first: bool = True, think: bool = False
    ) -> Turn:
        """Render a message, from the end of the prefix or the last answer to the next answer.

        Args:
            think: ask a thinking model to think before it answers.
        """
        return self._turn(message, self._behind((), think), system if first else None, "", first)

    def _turn(
        self, message: str, behind: Sequence[int], system: str | None, tools: str, first: bool
    ) -> Turn:
        head = self.encode_rendered(self._head if first else self._between)
        start = len(head)
        if system:
            head += self.encode(f"{system}\n\n")
        if tools:
            head += self.encode_rendered(f"{tools}\n\n")
        words = self.encode(message)
        place = len(head)
        shared = place if place > start else 0
        return Turn((*head, *words, *behind), (place, place + len(words)), shared)

    def _behind(self, exchange: Sequence[Mapping[str, Any]], think: bool) -> list[int]:
        """Return the tokens between a user's words and the answer that follows."""
        if exchange:
            return self._exchange(exchange, think)
        return self.encode_rendered(self._after_to_think if think else self._after)

    def resume(
        self,
        said: Sequence[Mapping[str, Any]],
        message: str,
        *,
        system: str | None = None,
        tools: str = "",
        think: bool = False,
        exchange: Sequence[Mapping[str, Any]] = (),
        prefill: str = "",
        opening: str = "",
    ) -> Turn:
        """Render earlier messages and a new one as one turn, whose words are the new message's.

        Earlier answers stand without thoughts, as templates of thinking models have it.

        Args:
            said: earlier messages as role and content, the user's and the answers in turn. A
                user's message may have an ``exchange``, an answer the ``tokens`` that were drawn.
            tools: from ``describe``.
            think: see ``turn``.
            exchange: calls of tools and their results since the new message, as OpenAI has them.
            prefill: how the answer begins.
            opening: the same as the template would write it, before the prefill.
        """
        tokens: list[int] = []
        head = 0
        after = self.encode_rendered(self._after)
        if self.opens_thought(after):
            after = self.encode_rendered(self._answered)  # the thought that followed is gone
        for asked, answered in zip(said[::2], said[1::2], strict=True):
            called = asked.get("exchange")
            behind = self._exchange(called, False) if called else after
            about = ("", "") if tokens else (system or "", tools)
            turn = self._turn(asked["content"], behind, *about, not tokens)
            head = head or turn.head
            tokens += [*turn.tokens, *(answered.get("tokens") or self.encode(answered["content"]))]
        about = ("", "") if tokens else (system or "", tools)
        last = self._turn(message, self._behind(exchange, think), *about, not tokens)
        first, end = (len(tokens) + place for place in last.words)
        whole = (*tokens, *last.tokens, *self.begun(opening, prefill))
        return Turn(whole, (first, end), head or last.head, len(tokens))

    def begun(self, opening: str, prefill: str) -> list[int]:
        """Return the tokens that an answer begins with: the template's, then a person's."""
        return self.encode_rendered(opening) + self.encode(prefill)

    def describe(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Return what the chat template writes about tools; "" if it knows none."""
        if not tools or not getattr(self._tokenizer, "chat_template", None):
            return ""
        asked = [{"role": "user", "content": _USER}]
        for said in ([{"role": "system", "content": _SYSTEM}, *asked], asked):
            try:
                plain, told = self._apply(said), self._apply(said, tools=list(tools))
            except Exception:  # a template may raise anything, for roles that it does not know
                continue
            places = re.compile(f"{_SYSTEM}|{_USER}")
            parts = zip(places.split(plain)[:-1], places.split(told)[:-1], strict=False)
            added = (_added(one, other).strip() for one, other in parts)
            return "\n\n".join(text for text in added if text)
        return ""

    def _exchange(self, messages: Sequence[Mapping[str, Any]], think: bool) -> list[int]:
        """Return the tokens of calls and their results, to the beginning of the next answer.

        The template writes them; their texts are put in its place afterwards, as text.
        """
        texts: list[str] = []

        def mark(text: str) -> str:
            texts.append(text)
            return f"m3mlxmark{len(texts) - 1}x"

        marked = [_marked(message, mark, self._controls) for message in messages]
        try:
            rendered = self._apply([{"role": "user", "content": _USER}, *marked], think=think)
            parts = _MARK.split(rendered.partition(_USER)[2])
            shown = [int(number) for number in parts[1::2]] == list(range(len(texts)))
        except Exception:  # a template may raise anything, for roles that it does not know
            shown = False
        if not shown:
            texts.clear()
            after = self._after_to_think if think else self._after
            parts = self._plainly(messages, mark, after)
        return [
            token
            for number, part in enumerate(parts)
            for token in (
                self.encode(texts[int(part)]) if number % 2 else self.encode_rendered(part)
            )
        ]

    def _plainly(
        self, messages: Iterable[Mapping[str, Any]], mark: Callable[[str], str], after: str
    ) -> list[str]:
        """Render calls and results for a template that does not know them, as ordinary turns."""
        text, answering = self._after, True
        for message in messages:
            called = [json.dumps(each["function"]) for each in message.get("tool_calls") or ()]
            said = mark("\n".join([*filter(None, [message.get("content")]), *called]))
            if message["role"] == "assistant":
                text += said if answering else f"{self._after}{said}"
            else:
                text += f"{self._between}{said}" if answering else f"\n\n{said}"
            answering = message["role"] == "assistant"
        return _MARK.split(text + ("" if answering else after))

    def _render(self, messages: list[tuple[str, str]], think: bool = False) -> str:
        return self._apply([{"role": role, "content": text} for role, text in messages], think)

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], think: bool = False, **others: Any
    ) -> str:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=think, **others
        )


def _added(plain: str, told: str) -> str:
    """Return what a text has between its beginning and end that another one shares with it."""
    start = shared_length(plain, told)
    end = 0
    while end < min(len(plain), len(told)) - start and plain[-1 - end] == told[-1 - end]:
        end += 1
    return told[start : len(told) - end]


def _marked(
    message: Mapping[str, Any], mark: Callable[[str], str], controls: re.Pattern[str] | None
) -> dict[str, Any]:
    """Return a message with marks for its text, and for texts in calls with control tokens."""

    def shielded(value: Any) -> Any:
        match value:
            case str():
                unsafe = controls is not None and controls.search(value)
                return mark(json.dumps(value, ensure_ascii=False)[1:-1]) if unsafe else value
            case dict():
                return {shielded(name): shielded(each) for name, each in value.items()}
            case list():
                return [shielded(each) for each in value]
        return value

    copied = dict(message)
    copied["content"] = mark(text) if (text := message.get("content")) else ""
    if message.get("tool_calls"):
        copied["tool_calls"] = shielded(message["tool_calls"])
    return copied


def _controls(tokenizer: Any) -> tuple[set[int], re.Pattern[str] | None]:
    """Return the control tokens of a tokenizer: their ids, and a pattern of their texts.

    These are its special tokens and, of the others that were added to its vocabulary, those that
    the chat template writes, such as ``<think>`` and ``<tool_call>``, and marks of thoughts.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    template += f"{tokenizer.think_start} {tokenizer.think_end}"
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    found = {
        id: token.content
        for id, token in added.items()
        if len(token.content) > 1
        and id != getattr(tokenizer, "unk_token_id", None)
        and (token.special or token.content in template)
    }
    texts = sorted(found.values(), key=len, reverse=True)
    return set(found), re.compile("|".join(map(re.escape, texts))) if texts else None
