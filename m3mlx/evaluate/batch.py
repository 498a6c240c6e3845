"""Greedy answers of several conversations, decoded together.

On a CPU a decoding step of one conversation waits for the weights to be read. A step of sixteen
takes hardly longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..chat.conversation import Conversation
from ..chat.thoughts import AnswerText
from ..memory.cache import MemoryCache
from ..models.decoder import Decoder
from ..models.hooks import last_rows


def answer(
    decoder: Decoder, begun: Sequence[tuple[Conversation, mx.array, bool]], tokens: int
) -> list[str]:
    """Decode greedy answers, without thoughts, of up to ``tokens`` tokens.

    The memories that the prompts have read stay for the whole answer.

    Args:
        begun: conversations, which cannot go on afterwards, the logits that ``prefill`` returned
            for each, and whether its prompt has opened a thought.
    """
    layers = list(zip(*(conversation.caches for conversation, *_ in begun), strict=True))
    if any(type(cache.base) is not KVCache for layer in layers for cache in layer):
        return [_alone(conversation, logits, tokens) for conversation, logits, _ in begun]
    texts = [AnswerText(decoder.tokenizer, thinking) for *_, thinking in begun]
    said = ["" for _ in begun]
    going = set(range(len(begun)))
    caches: list[_Rows] = []
    ids: list[int] = []
    logits = mx.stack([logits[-1] for _, logits, _ in begun])
    for step in range(tokens):
        if step:
            caches = caches or [_Rows(layer, tokens) for layer in layers]
            with last_rows(decoder.model, 1):
                logits = decoder.model(mx.array(ids)[:, None], cache=caches)[:, -1]
        ids = cast(list[int], mx.argmax(logits, axis=-1).tolist())
        going -= {row for row in going if ids[row] in decoder.tokenizer.eos_token_ids}
        for row in going:
            text, thought = texts[row].add(ids[row])
            said[row] += "" if thought else text
        if not going:
            break
    return [
        before + ("" if text.thinking else text.end())
        for before, text in zip(said, texts, strict=True)
    ]


def _alone(conversation: Conversation, logits: mx.array, tokens: int) -> str:
    """Decode one answer, of a model with sliding windows."""
    steps = conversation.decode(logits, tokens)
    return "".join(step.text for step in steps if not step.thought)


class _Rows:
    """One layer's caches of several conversations, padded on the left to one length."""

    def __init__(self, caches: Sequence[MemoryCache], spare: int):
        self.offset = mx.array([cache.offset for cache in caches])  # positions differ
        lengths = [cache.base.offset for cache in caches]
        self.length = max(lengths)
        self.keys, self.values = (
            mx.concatenate([_padded(getattr(c.base, name), c.base.offset, self.length, spare)
                            for c in caches])
            for name in ("keys", "values")
        )  # fmt: skip
        heads = self.keys.shape[1]
        rows = []
        for cache in caches:
            empty = mx.full((heads, self.length - cache.base.offset), -mx.inf)
            memory = cache.weights if cache.length else mx.zeros((heads, 0))
            rest = mx.zeros((heads, cache.context + spare))
            rows.append(mx.concatenate([empty, memory, rest], axis=-1))
        self.mask = mx.stack(rows)[:, :, None]  # (batch, KV heads, 1, keys), added to logits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys[..., self.length : self.length + 1, :] = keys
        self.values[..., self.length : self.length + 1, :] = values
        self.length += 1
        self.offset = self.offset + 1
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def make_mask(self, *args: Any, **kwargs: Any) -> None:
        """Return no mask; ``widen`` makes it."""

    def widen(self, mask: None, queries: int, query_heads: int) -> mx.array:
        """Return the mask of the step, (batch, query heads, 1, keys)."""
        heads = query_heads // self.mask.shape[1]
        return mx.repeat(self.mask[..., : self.length + 1], heads, axis=1)


def _padded(array: mx.array, length: int, longest: int, spare: int) -> mx.array:
    return mx.pad(array[..., :length, :], [(0, 0), (0, 0), (longest - length, spare), (0, 0)])
