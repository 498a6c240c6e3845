"""A look inside: which tokens a memory holds, and what an answer attends to.

Attention is measured beside the model: where a layer computes it, the same is computed once more
for the last query only, and summed by what it falls on. Nothing that the model computes changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..assistant import Assistant
from ..chat.conversation import Step
from ..config import MemoryConfig
from ..errors import M3Error
from ..memory.codec import PADDING
from ..store import ColdReference, Hit, StoredReference
from .page import Kept, KeptReference, Part, Span, answer_page

_FUNCTION = "scaled_dot_product_attention"  # in the files of mlx-lm's models
_BEGINNING = 160  # characters of a reference that are shown


def inspect_document(assistant: Assistant, name: str) -> Kept:
    """What is kept of a document, or with ``#N`` behind its name, of one reference.

    Raises:
        StoreError: there is no such document.
        M3Error: it is not one document, or has no such reference.
    """
    assistant.check()
    store = assistant.store()
    document, _, number = name.rpartition("#")
    if not (document and number.isdigit()):
        document, number = name, ""
    found = store.find_documents([document])
    if len(found) != 1:
        raise M3Error(f"{document}: these are {len(found)} documents; name one of them")
    slots = store.slots_of(found[0].id)
    if number and not 1 <= int(number) <= len(slots):
        raise M3Error(f"{document}: it has {len(slots)} references, and no number {number}")
    wanted = [slots[int(number) - 1]] if number else slots
    config = assistant.config
    references, counts = [], []
    for stored in store.references(wanted):
        try:
            (record,) = store.read([stored.slot])
        except ColdReference:
            references.append(KeptReference(_place(stored), [stored.text], None))
            continue
        positions = assistant.codec.unpack(record[None]).positions[0]
        tokens = _tokens(assistant, stored.text)
        heads = np.bincount(positions[positions != PADDING], minlength=len(tokens))[: len(tokens)]
        references.append(KeptReference(_place(stored), tokens, heads.tolist()))
        counts.append(kept_by_head(positions, config))
    mean = np.mean(counts, axis=0) if counts else np.array(config.counts, np.float64)
    title = f"{found[0].path}#{number}" if number else found[0].path
    return Kept(title, references, mean.tolist(), mean.size)


def kept_by_head(positions: np.ndarray, config: MemoryConfig) -> np.ndarray:
    """How many tokens each head kept of one reference: int (layers, KV heads).

    Args:
        positions: uint8 (kept,), of one memory.
    """
    ends = np.cumsum(np.ravel(config.counts))
    real = np.concatenate([[0], np.cumsum(positions != PADDING)])
    flat = np.diff(np.concatenate([[0], real[ends]]))
    return flat.reshape(len(config.counts), -1)


def _tokens(assistant: Assistant, text: str) -> list[str]:
    """The text cut where the model's tokens begin, but never inside of a character."""
    tokenizer = assistant.decoder.tokenizer.backend_tokenizer
    ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
    cuts = np.maximum.accumulate([0, *ends]).tolist()
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    return [*pieces[:-1], pieces[-1] + text[cuts[-1] :]] if pieces else [text]


def _place(stored: StoredReference | Hit) -> str:
    page = f", page {stored.page}" if stored.page else ""
    return f"{stored.path}{page}" + (f":{stored.line}" if stored.line else "")


class AnswerView:
    """Watches an answer grow, and makes a page of what it attended to.

    Args:
        question: that is asked, for the page.
    """

    def __init__(self, assistant: Assistant, question: str):
        self.assistant, self.question = assistant, question
        self._attached: list[Hit] = []
        self._spans: list[_Span] = []
        model = assistant.decoder.model
        self._seen = _Seen(len(model.layers), len(assistant.config.prefix))

    def watch(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; they must be those of a chat that has not begun, with memories read."""
        with self._measuring():
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
            self._spans.append(_Span(list(self._attached)))
        span = self._spans[-1]
        span.tokens.append(step.text)
        span.shares.append(self._seen.take())

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Note what every pass of the model attends to, and which memories it has."""
        assistant, seen = self.assistant, self._seen
        search = assistant.search

        def searching(texts: Sequence[str], k: int) -> list[list[Hit]]:
            found = search(texts, k)
            self._attached = found[-1]  # of the last chunk, with which the answer goes on
            seen.memories = len(self._attached)
            return found

        layers = assistant.decoder.model.layers
        classes = {kind for layer in layers for kind in type(layer.self_attn).mro()}
        with ExitStack() as undo:
            assistant.search = searching
            undo.callback(delattr, assistant, "search")
            for module in {sys.modules[kind.__module__] for kind in classes}:
                if plain := getattr(module, _FUNCTION, None):
                    setattr(module, _FUNCTION, seen.noting(plain))
                    undo.callback(setattr, module, _FUNCTION, plain)
            yield


@dataclass
class _Span:
    """One span while it grows; ``shares`` has what ``_Seen.take`` gave for each token."""

    hits: list[Hit]
    tokens: list[str] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)

    def shown(self) -> Span:
        mean = np.mean(self.shares, axis=0).tolist()
        parts = [
            Part(_place(hit), "memory", " ".join(hit.text.split())[:_BEGINNING], share)
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
        memories: how many are attached.
        shares: of each layer so far, (memories + 2,): each memory, the prefix, the context.
    """

    layers: int
    prefix: int
    memories: int = 0
    shares: list[mx.array] = field(default_factory=list)

    def noting(self, plain: Callable) -> Callable:
        """A function that computes attention as before, and takes note."""

        def attention(queries, keys, values, cache, scale, mask, **more):
            self._note(queries, keys, cache, scale, mask)
            return plain(queries, keys, values, cache, scale=scale, mask=mask, **more)

        return attention

    def _note(self, queries: mx.array, keys: Any, cache: Any, scale: float, mask: Any) -> None:
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
        if length and self.memories and length % self.memories == 0:
            memories = weights[:length].reshape(self.memories, -1).sum(axis=1)
        else:
            memories = mx.zeros(self.memories)
        rest = weights[length:]
        ends = mx.stack([rest[: self.prefix].sum(), rest[self.prefix :].sum()])
        self.shares.append(mx.concatenate([memories, ends]))

    def take(self) -> np.ndarray:
        """Mean over the layers, float32 (memories + 2,)."""
        if not self.shares:
            return np.zeros(self.memories + 2, np.float32)
        return np.array(mx.stack(self.shares).mean(axis=0))
