"""Show what an answer attends to, for every 64 tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..chat.attention import AttentionShares
from ..chat.chat import Chat
from ..chat.step import Step
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
        self._chat, prefix = chat, len(chat.assistant.format.config.prefix)
        model = chat.assistant.decoder.model
        self._shares = AttentionShares(model, prefix, lambda: len(chat.attached))
        self._spans: list[_GrowingSpan] = []
        chat.reads_ahead = False  # a look at each pass

    def watch(self, steps: Iterator[Step]) -> Generator[Step]:
        """Yield the steps of an answer of the chat; it must not have begun."""
        with self._shares.observe():
            for step in steps:
                text = "" if step.thought else step.text
                if step.token is not None:
                    if step.span == len(self._spans):
                        self._spans.append(_GrowingSpan(list(self._chat.attached)))
                    self._spans[-1].tokens.append(text)
                    mean = self._shares.mean()
                    nothing = np.zeros(len(self._chat.attached) + 2, np.float32)
                    self._spans[-1].shares.append(nothing if mean is None else np.array(mean))
                elif self._spans and text:
                    self._spans[-1].tokens[-1] += text
                yield step

    def page(self) -> str:
        """Return the page of the answer so far."""
        return answer_page(self.question, [span.finished() for span in self._spans])


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
