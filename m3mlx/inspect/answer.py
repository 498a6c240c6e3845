"""What an answer attends to, span by span.

Attention is measured beside the model: where a layer computes it, the same is computed once more
for the last query only, and summed by what it falls on. Nothing that the model computes changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

_BEGINNING = 160  # characters of a reference that are shown


class AnswerView:
    """Watches an answer grow, and makes a page of what it attended to.

    Args:
        chat: that answers, with memories read.
        question: that is asked, for the page.
    """

    def __init__(self, chat: Chat, question: str):
        self.question = question
        self._chat, self._model = chat, chat.assistant.decoder.model
        self._spans: list[_Span] = []
        prefix = len(chat.assistant.format.config.prefix)
        self._seen = _Seen(len(self._model.layers), prefix, lambda: chat.attached)

    def watch(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; they must be those of an answer of the chat that has not begun."""
        with observe_attention(self._model, self._seen.note):
            for step in steps:
                if step.token is not None:
                    self._note(step)
                elif self._spans and step.text:
                    self._spans[-1].tokens[-1] += step.text
                yield step

    def page(self) -> str:
        """The page of what was watched so far."""
        return answer_page(self.question, [span.shown() for span in self._spans])

    def _note(self, step: Step) -> None:
        if step.span == len(self._spans):
            self._spans.append(_Span(list(self._chat.attached)))
        span = self._spans[-1]
        span.tokens.append(step.text)
        span.shares.append(self._seen.take())


@dataclass
class _Span:
    """One span while it grows; ``shares`` has what ``_Seen.take`` gave for each token."""

    hits: list[Hit]
    tokens: list[str] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)

    def shown(self) -> Span:
        mean = np.mean(self.shares, axis=0).tolist()
        parts = [
            Part(cite(hit), "memory", " ".join(hit.text.split())[:_BEGINNING], share)
            for hit, share in zip(self.hits, mean, strict=False)
        ]
        parts.sort(key=lambda part: -part.share)
        parts.append(Part("prefix", "prefix", "constant of the model", mean[-2]))
        parts.append(Part("question and answer", "context", "", mean[-1]))
        return Span(self.tokens, [float(share[:-2].sum()) for share in self.shares], parts)


@dataclass
class _Seen:
    """What the last token of the last pass of the model attended to.

    Attributes:
        layers: of the model.
        prefix: length of the constant prefix.
        attached: tells which memories are attached.
        shares: of each layer so far, (memories + 2,): each memory, the prefix, the context.
    """

    layers: int
    prefix: int
    attached: Callable[[], Sequence[Hit]]
    shares: list[mx.array] = field(default_factory=list)

    def note(self, queries: mx.array, keys: Any, cache: Any, scale: float, mask: Any) -> None:
        """``keys`` are (1, KV heads, memories, prefix and context, head_dim)."""
        length = getattr(cache, "length", None)  # of the memories
        if length is None or isinstance(keys, (tuple, list)):
            return  # no cache of ours, or a quantized one
        if len(self.shares) == self.layers:
            self.shares.clear()  # another pass begins
        heads, width = queries.shape[1], queries.shape[-1]
        grouped = queries[0, :, -1].reshape(keys.shape[1], -1, width)
        logits = (grouped @ keys[0].swapaxes(-1, -2)).reshape(heads, -1) * scale
        if isinstance(mask, mx.array):
            row = mask.reshape(-1, *mask.shape[-2:])[:, -1]
            logits += mx.where(row, 0.0, -mx.inf) if row.dtype == mx.bool_ else row
        weights = mx.softmax(logits.astype(mx.float32), axis=-1).mean(axis=0)
        count = len(self.attached())
        if length and count and length % count == 0:
            memories = weights[:length].reshape(count, -1).sum(axis=1)
        else:
            memories = mx.zeros(count)
        rest = weights[length:]
        ends = mx.stack([rest[: self.prefix].sum(), rest[self.prefix :].sum()])
        self.shares.append(mx.concatenate([memories, ends]))

    def take(self) -> np.ndarray:
        """Mean over the layers, float32 (memories + 2,)."""
        if not self.shares:
            return np.zeros(len(self.attached()) + 2, np.float32)
        return np.array(mx.stack(self.shares).mean(axis=0))
