"""A model's chat template, cut where a reference would stand.

The template's text before the user's first words is the constant prefix; the rest belongs to the
context. A user's own system prompt goes to the head of the context, so that the prefix stays a
constant of the model, without which memories cannot be read. A model without a template has the
prefix of the paper, ``<bos>Reference:`` (section 3.2). A model that was trained with memories
brings its own prefix; its context then begins with all that the template puts before the user's
words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import ModelError

_USER, _ANSWER, _NEXT = "m3mlxfirstuser", "m3mlxfirstanswer", "m3mlxseconduser"


@dataclass(frozen=True)
class Turn:
    """Token ids of one user turn, and the half-open range of the user's own words in them."""

    tokens: tuple[int, ...]
    words: tuple[int, int]


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
        return self._turn(message, self._after_to_think if think else self._after, system, first)

    def _turn(self, message: str, after_words: str, system: str | None, first: bool) -> Turn:
        head = self._head if first else self._between
        if system and first:
            message = f"{system}\n\n{message}"
        before, after = map(self.encode_rendered, (head, after_words))
        words, start = self.encode(message), len(before)
        return Turn((*before, *words, *after), (start, start + len(words)))

    def resume(
        self,
        said: Sequence[Mapping[str, str]],
        message: str,
        *,
        system: str | None = None,
        think: bool = False,
    ) -> Turn:
        """Render earlier messages and a new one as one turn, whose words are the new message's.

        Earlier answers stand without thoughts, as templates of thinking models have it.

        Args:
            think: see ``turn``.
            said: earlier messages as role and content, the user's and the answers in turn.
        """
        tokens: list[int] = []
        after = self._after
        if self.opens_thought(self.encode_rendered(after)):
            after = self._answered  # the thought that followed is gone
        for asked, answered in zip(said[::2], said[1::2], strict=True):
            turn = self._turn(asked["content"], after, system, not tokens)
            tokens += [*turn.tokens, *self.encode(answered["content"])]
        last = self.turn(message, system=system, first=not tokens, think=think)
        start, end = (len(tokens) + place for place in last.words)
        return Turn((*tokens, *last.tokens), (start, end))

    def _render(self, messages: list[tuple[str, str]], think: bool = False) -> str:
        return self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=think,
        )


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
