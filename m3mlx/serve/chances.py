"""How likely the tokens of a prompt and of an answer were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class TokenChance:
    """A token and its log probability; None for the first of a prompt, before which is nothing.

    Attributes:
        top: the likeliest tokens in its place, the likeliest first.
    """

    token: int
    text: str
    logprob: float | None
    top: tuple[TokenChance, ...] = ()


class Chances:
    """Notes the log probabilities of tokens.

    Args:
        top: number of likeliest tokens to note of each place; None to note nothing.
    """

    def __init__(self, tokenizer: Any, top: int | None):
        self._tokenizer, self._top = tokenizer, top
        self._last: mx.array | None = None  # (vocabulary,), before the next token of the prompt
        self._prompt: list[TokenChance] = []

    def observe(self, tokens: list[int], logits: mx.array) -> None:
        """Note tokens of a prompt; logits: those after each of them, (tokens, vocabulary)."""
        rows = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        before = rows[:-1]
        if self._last is None:
            self._prompt.append(self._chance(tokens[0], None, []))
            tokens = tokens[1:]
        else:
            before = mx.concatenate([self._last[None], before])
        self._last = rows[-1]
        if tokens:
            self._prompt += self._rows(tokens, before)

    def prompt(self, tokens: Sequence[int] | None) -> list[TokenChance]:
        """Return those of a prompt's own tokens, which may have others before them."""
        count = len(tokens or ())
        own = self._prompt[len(self._prompt) - count :] if count else []
        if own and own[0].logprob is not None:
            own[0] = self._chance(own[0].token, None, [])
        return own

    def drawn(self, token: int, logprobs: mx.array | None) -> list[TokenChance]:
        """Return that of a drawn token, from the (vocabulary,) it was drawn from."""
        if self._top is None or logprobs is None:
            return []
        return self._rows([token], logprobs[None])

    def _rows(self, tokens: Sequence[int], logprobs: mx.array) -> list[TokenChance]:
        at = mx.array(list(tokens))[:, None]
        own = np.array(mx.take_along_axis(logprobs, at, axis=-1)[:, 0])
        likeliest: list[list[tuple[int, float]]] = [[] for _ in tokens]
        if self._top:
            top = min(self._top, logprobs.shape[-1] - 1)
            places = np.array(mx.argpartition(-logprobs, kth=top, axis=-1)[:, :top])
            values = np.array(mx.take_along_axis(logprobs, mx.array(places), axis=-1))
            for row, (ids, found) in enumerate(zip(places, values, strict=True)):
                order = np.argsort(-found, kind="stable")
                likeliest[row] = [(int(ids[n]), float(found[n])) for n in order]
        return [
            self._chance(token, float(value), others)
            for token, value, others in zip(tokens, own, likeliest, strict=True)
        ]

    def _chance(
        self, token: int, logprob: float | None, others: Sequence[tuple[int, float]]
    ) -> TokenChance:
        top = tuple(TokenChance(id, self._text(id), _finite(value)) for id, value in others)
        return TokenChance(token, self._text(token), _finite(logprob), top)

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])


def _finite(logprob: float | None) -> float | None:
    """Return a log probability that JSON can hold: an impossible token's is -inf."""
    return None if logprob is None else max(logprob, -9999.0)
