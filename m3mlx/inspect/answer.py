"""Show what an answer attends to, for every 64 tokens.

The attention of the last query of each layer is computed a second time and summed by what it
falls on. The model's own results do not change.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..chat.chat import Chat
from ..chat.conversation import Step
from ..models.hooks import observe_attention
from ..store import Hit
from ..text import cite
from .page import Part, Span, answer_page

_EXCERPT = 160  # characters of a reference to show


class AnswerView:
    """Watches an answer grow, and makes a page of what it attended to.

    Args:
        chat: gives the answer, with explicit memory.
        question: title of the page.
    """

    def __init__(self, chat: Chat, question: str):
        self.question = question
        self._chat, self._model = chat, chat.assistant.decoder.model
        self._prefix = len(chat.assistant.format.config.prefix)
        self._layer_shares: dict[int, mx.array] = {}  # (memories + 2,) of each cache's last pass
        self._spans: list[_GrowingSpan] = []

    def watch(self, steps: Iterator[Step]) -> Generator[Step]:
        """Yield the steps of an answer of the chat; it must not have begun."""
        with observe_attention(self._model, self._observe):
            for step in steps:
                text = "" if step.thought else step.text
                if step.token is not None:
                    if step.span == len(self._spans):
                        self._spans.append(_GrowingSpan(list(self._chat.attached)))
                    self._spans[-1].tokens.append(text)
                    self._spans[-1].shares.append(self._mean_shares())
                elif self._spans and text:
                    self._spans[-1].tokens[-1] += text
                yield step

    def page(self) -> str:
        """Return the page of the answer so far."""
        return answer_page(self.question, [span.finished() for span in self._spans])

    def _observe(
        self, queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any
    ) -> None:
        """Note what the last query attends to: each memory, the prefix, the context.

        ``keys`` are (1, KV heads, memories + prefix + context, head_dim).
        """
        length = getattr(cache, "length", None)  # of the memories
        if length is None or isinstance(keys, (tuple, list)):
            return  # not a cache of m3mlx, or a quantized one
        heads, width = queries.shape[1], queries.shape[-1]
        grouped = queries[0, :, -1].reshape(keys.shape[1], -1, width)
        logits = (grouped @ keys[0].swapaxes(-1, -2)).reshape(heads, -1) * scale
        if isinstance(mask, mx.array):
            row = mask.reshape(-1, *mask.shape[-2:])[:, -1]
            logits += mx.where(row, 0.0, -mx.inf) if row.dtype == mx.bool_ else row
        weights = mx.softmax(logits.astype(mx.float32), axis=-1).mean(axis=0)
        memories = mx.zeros(count := len(self._chat.attached))
        if length and count and length % count == 0:
            memories = weights[:length].reshape(count, -1).sum(axis=1)
        prefix, context = mx.split(weights[length:], [self._prefix])
        shares = mx.concatenate([memories, mx.stack([prefix.sum(), context.sum()])])
        self._layer_shares[id(cache)] = shares

    def _mean_shares(self) -> np.ndarray:
        """Return the mean over the layers of the last pass, float32 (memories + 2,)."""
        if not self._layer_shares:
            return np.zeros(len(self._chat.attached) + 2, np.float32)
        return np.array(mx.stack(list(self._layer_shares.values())).mean(axis=0))


@dataclass
class _GrowingSpan:
    """A span of the answer; ``shares`` are (memories + 2,) for each token."""

    hits: list[Hit]
    tokens: list[str] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)

    def finished(self) -> Span:
        mean = np.mean(self.shares, axis=0).tolist()
        parts = [
            Part(cite(hit), "memory", " ".join(hit.text.split())[:_EXCERPT], share)
            for hit, share in zip(self.hits, mean, strict=False)
        ]
        parts.sort(key=lambda part: -part.share)
        parts.append(Part("prefix", "prefix", "constant of the model", mean[-2]))
        parts.append(Part("question and answer", "context", "", mean[-1]))
        return Span(self.tokens, [float(share[:-2].sum()) for share in self.shares], parts)
