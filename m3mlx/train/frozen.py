"""What the model was before training: it ranks the tokens of references, and teaches.

There is no second copy of the model: its trainable weights are put back to what they were, it is
asked, and they are put in again. What it said is kept on disk, because it never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import MemoryConfig
from ..memory.cache import PrefixStates, read_prefix
from ..memory.parallel import logits_with_memories
from ..memory.write import Writer, write_traced
from .corpus import Reference, save_array

LIKELIEST = 64  # tokens of a distribution that are kept; the rest is one number
BATCH = 8


@dataclass(frozen=True)
class Lesson:
    """A sequence whose continuation the teacher is asked about, with one text before it or none.

    ``wanted`` are the places of the tokens behind which it is asked.
    """

    text: Reference  # () for none
    sequence: tuple[int, ...]
    wanted: tuple[int, ...]


class Frozen:
    """The model before training.

    Args:
        model: the model in training, before its first step.
        start: its trainable weights as they were when it knew nothing of memories.
        config: of memories; only prefix, selection and geometry are used.
        recite: token ids between a reference and its recitation.
        folder: where answers are kept; it belongs to one model.
    """

    def __init__(
        self,
        model: nn.Module,
        start: dict,
        config: MemoryConfig,
        recite: Sequence[int],
        folder: Path,
    ):
        self.model, self.start, self.config, self.folder = model, start, config, folder
        with self.asked():
            self.prefix: PrefixStates = read_prefix(model, config.prefix)
        self.writer = Writer(model, self.prefix, recite)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The model is what it was, until the block ends."""
        now = self.model.trainable_parameters()
        self.model.update(self.start)
        try:
            yield
        finally:
            self.model.update(now)

    def scores(self, references: Sequence[Reference]) -> np.ndarray:
        """Scores of tokens, float32 (references, layers, KV heads, longest), as of ``Writer``."""
        paths = [self._path("scores", reference) for reference in references]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            with self.asked():
                scores = self.writer.score([references[i] for i in part], self.config.selection)[0]
            for i, score in zip(part, scores, strict=True):
                save_array(paths[i], score[..., : len(references[i])].astype(np.float16))
        loaded = [np.load(path, allow_pickle=False).astype(np.float32) for path in paths]
        longest = max(map(len, references))
        ends = [((0, 0), (0, 0), (0, longest - score.shape[-1])) for score in loaded]
        return np.stack(
            [np.pad(s, e, constant_values=-1) for s, e in zip(loaded, ends, strict=True)]
        )

    def teach(self, lessons: Sequence[Lesson]) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens behind each place wanted, with the text in the prompt.

        Returns:
            Token ids, int64, and log probabilities, float32, (places in all, LIKELIEST).
        """
        paths = [self._path("lesson", lesson) for lesson in lessons]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            with self.asked():
                logits = self._read([lessons[i] for i in part])
                logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                count = min(LIKELIEST, logits.shape[-1])
                ids = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
                logits = mx.take_along_axis(logits, ids, axis=-1)
                mx.eval(ids, logits)
            both = np.stack([np.array(ids).astype(np.float32), np.array(logits)])
            cuts = np.cumsum([len(lessons[i].wanted) for i in part])[:-1]
            for i, piece in zip(part, np.split(both, cuts, axis=1), strict=True):
                save_array(paths[i], piece)
        both = np.concatenate([np.load(path, allow_pickle=False) for path in paths], axis=1)
        return both[0].astype(np.int64), both[1]

    def _read(self, lessons: Sequence[Lesson]) -> mx.array:
        """Logits with whole memories right before each sequence, which is the text itself."""
        texts = list(dict.fromkeys(lesson.text for lesson in lessons if lesson.text))
        longest = max(map(len, texts), default=0)
        layers, heads = len(self.config.counts), len(self.config.counts[0])
        whole = replace(self.config, counts=((longest,) * heads,) * layers, key_scale=1.0)
        memory = None
        if texts:
            scores = np.full((len(texts), layers, heads, longest), -1.0, np.float32)
            for score, text in zip(scores, texts, strict=True):
                score[..., : len(text)] = 1
            memory = write_traced(self.model, self.prefix, texts, scores, whole.counts)
        return logits_with_memories(
            self.model,
            self.prefix,
            whole,
            [lesson.sequence for lesson in lessons],
            memory,
            [[[texts.index(lesson.text)]] if lesson.text else [] for lesson in lessons],
            [lesson.wanted for lesson in lessons],
            offsets=[len(self.config.prefix) + len(lesson.text) for lesson in lessons],
        )

    def _path(self, kind: str, key: object) -> Path:
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        return self.folder / kind / name[:2] / f"{name}.npy"
