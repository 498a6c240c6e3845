"""The model before training: it ranks the tokens of references, and teaches.

There is no second copy of the model: its trainable weights are put back to what they were while it
is asked. Its answers never change, and are kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import MemoryConfig
from ..memory.cache import PrefixStates, read_prefix
from ..memory.parallel import logits_with_memories
from ..memory.write import Writer, write_traced
from .corpus import Reference, save_array

TOP_TOKENS = 64  # tokens of a distribution that are kept
BATCH = 8


@dataclass(frozen=True)
class Prompt:
    """A sequence, the reference before it, () for none, and places after which to predict."""

    text: Reference
    sequence: tuple[int, ...]
    wanted: tuple[int, ...]


class Teacher:
    """The model before training.

    Args:
        model: the model in training, before its first step.
        weights: its trainable weights before it was trained with memories; None for a model that
            has nothing to teach yet: it then ranks tokens as it is now, and nothing is kept.
        config: of memories; only prefix, selection and counts are used.
        recite: token ids between a reference and its recitation.
        folder: where answers are kept, of this model only.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: dict[str, Any] | None,
        config: MemoryConfig,
        recite: Sequence[int],
        folder: Path,
    ):
        self.model, self.weights, self.config, self.folder = model, weights, config, folder
        with self.restored():
            self.prefix: PrefixStates = read_prefix(model, config.prefix)
        self.writer = Writer(model, self.prefix, recite)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give the model its weights before training, until the block ends."""
        now = self.model.trainable_parameters()
        if self.weights is not None:
            self.model.update(self.weights)
        try:
            yield
        finally:
            self.model.update(now)

    def scores(self, references: Sequence[Reference]) -> np.ndarray:
        """Score tokens as ``Writer`` does: float32 (references, layers, KV heads, longest)."""
        if self.weights is None:
            return self._score_now(references)

        def compute(part: Sequence[Reference]) -> list[np.ndarray]:
            found = self.writer.score(part, self.config.selection)[0].astype(np.float16)
            return [score[..., : len(row)] for score, row in zip(found, part, strict=True)]

        parts = self._cached("scores", references, compute)
        longest = max(map(len, references))
        whole = np.full((len(parts), *parts[0].shape[:2], longest), -1, np.float32)
        for row, part in zip(whole, parts, strict=True):
            row[..., : part.shape[-1]] = part
        return whole

    def _score_now(self, references: Sequence[Reference]) -> np.ndarray:
        """Score tokens with the present weights, in the layers that hold memories."""
        prefix = read_prefix(self.model, self.config.prefix)
        writer = Writer(self.model, prefix, self.writer.recite)
        counts = self.config.counts
        layers = [n for n, kept in enumerate(counts) if any(kept)]
        found = writer.score(references, self.config.selection, layers)[0]
        whole = np.zeros((len(found), len(counts), *found.shape[2:]), np.float32)
        whole[:, layers] = found
        return whole

    def top_logprobs(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest tokens after each wanted place, with the text in the context.

        Returns:
            Token ids, int64, and log probabilities, float32, (all wanted places, TOP_TOKENS).
        """

        def compute(part: Sequence[Prompt]) -> list[np.ndarray]:
            logits = self._logits(part)
            logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            count = min(TOP_TOKENS, logits.shape[-1])
            ids = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
            logits = mx.take_along_axis(logits, ids, axis=-1)
            mx.eval(ids, logits)
            both = np.stack([np.array(ids).astype(np.float32), np.array(logits)])
            return np.split(both, np.cumsum([len(p.wanted) for p in part])[:-1], axis=1)

        both = np.concatenate(self._cached("prompts", prompts, compute), axis=1)
        return both[0].astype(np.int64), both[1]

    def _cached(
        self, kind: str, keys: Sequence[Any], compute: Callable[[Any], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Load the answer of each key from disk; compute those that are missing."""
        names = [hashlib.sha256(repr(key).encode()).hexdigest()[:32] for key in keys]
        paths = [self.folder / kind / name[:2] / f"{name}.npy" for name in names]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            with self.restored():
                arrays = compute([keys[i] for i in part])
            for i, array in zip(part, arrays, strict=True):
                save_array(paths[i], array)
        return [np.load(path, allow_pickle=False) for path in paths]

    def _logits(self, prompts: Sequence[Prompt]) -> mx.array:
        """Logits with whole memories directly before each sequence, which equal the text itself."""
        texts = list(dict.fromkeys(prompt.text for prompt in prompts if prompt.text))
        longest = max(map(len, texts), default=0)
        heads = list(map(len, self.config.counts))
        counts = tuple((longest,) * n for n in heads)
        whole = replace(self.config, counts=counts, key_scale=1.0)
        memory = None
        if texts:
            shape = (len(texts), len(heads), max(heads), longest)
            scores = np.full(shape, -1.0, np.float32)
            for score, text in zip(scores, texts, strict=True):
                score[..., : len(text)] = 1
            memory = write_traced(self.model, self.prefix, texts, scores, whole.counts)
        return logits_with_memories(
            self.model,
            self.prefix,
            whole,
            [prompt.sequence for prompt in prompts],
            memory,
            [[[texts.index(prompt.text)]] if prompt.text else [] for prompt in prompts],
            [prompt.wanted for prompt in prompts],
            offsets=[len(self.config.prefix) + len(prompt.text) for prompt in prompts],
        )
