"""How well the model in training answers held-out questions, and what became of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import MEMORIES, MemoryConfig
from ..errors import M3Error
from ..memory.cache import read_prefix
from ..memory.parallel import Reads, logits_with_memories
from ..memory.write import Writer, keep
from ..models.template import Template
from .corpus import LEAK, Corpus, overlap
from .data import Data

ROWS = 8  # sequences in one pass


class Validation:
    """Held-out questions about documents, ready to be asked again and again.

    Args:
        corpus: the references of these documents.

    Raises:
        M3Error: there are no questions in the data.
    """

    def __init__(self, data: Data, corpus: Corpus, template: Template):
        self.corpus, self.template = corpus, template
        self.answers: list[list[int]] = []
        self.turns: list[tuple[int, ...]] = []
        self.right: list[int] = []
        asked = []
        for question in data.questions:
            place = corpus.right(question.document, question.answers[0])
            if place is not None:
                asked.append(question.question)
                self.right.append(place)
                self.turns.append(template.turn(question.question).tokens)
                self.answers.append(template.encode(question.answers[0]))
        if not asked:
            raise M3Error("the data for validation holds no questions about documents")
        self.five = [
            [right, *self._others(right, found)]
            for right, found in zip(self.right, corpus.nearest(asked, 3 * MEMORIES), strict=True)
        ]

    def _others(self, right: int, found: Sequence[int]) -> list[int]:
        """The best other references that are no copies of the right one (section 4.4)."""
        references = self.corpus.references
        fit = [
            place
            for place in found
            if place != right and overlap(references[right], references[place]) <= LEAK
        ]
        return fit[: MEMORIES - 1]

    def measure(self, model: nn.Module, config: MemoryConfig) -> dict[str, float]:
        """Mean negative log-likelihood per token, in nats, by mode.

        The modes are those of ``evaluate``: "off", "oracle" (the right reference as text),
        "alone" and "five" (explicit memories, chosen by the model as it is now). "plain" is the
        loss on the documents' own text, read without any memory: it must not get worse.
        """
        prefix = read_prefix(model, config.prefix)
        writer = Writer(model, prefix, self.template.recite)
        references = self.corpus.references
        parts = []
        for start in range(0, len(references), ROWS):
            part = writer.score(references[start : start + ROWS], config.selection)
            parts.append(keep(*part, config.counts))
        memory = type(parts[0]).join(parts)
        count = len(self.turns)
        none: Reads = [[]] * count
        sequences = [[*t, *a[:-1]] for t, a in zip(self.turns, self.answers, strict=True)]
        firsts = [len(turn) - 1 for turn in self.turns]
        gap = self.template.encode("\n\n")
        pasted = [
            [*gap, *references[right], *row]
            for right, row in zip(self.right, sequences, strict=True)
        ]
        later = [len(p) - len(s) for p, s in zip(pasted, sequences, strict=True)]

        def loss(rows: Sequence, firsts: Sequence[int], targets: Sequence, reads: Reads) -> float:
            total, places = 0.0, 0
            for start in range(0, len(rows), ROWS):
                part = slice(start, start + ROWS)
                wanted = [
                    range(first, first + len(target))
                    for first, target in zip(firsts[part], targets[part], strict=True)
                ]
                logits = logits_with_memories(
                    model, prefix, config, rows[part], memory, reads[part], wanted
                )
                goal = mx.array([token for target in targets[part] for token in target])
                total += nn.losses.cross_entropy(logits, goal, reduction="sum").item()
                places += len(goal)
            return total / places

        texts = [text for text in references if len(text) > 1]
        return {
            "off": loss(sequences, firsts, self.answers, none),
            "oracle": loss(
                pasted, [f + n for f, n in zip(firsts, later, strict=True)], self.answers, none
            ),
            "alone": loss(sequences, firsts, self.answers, [[[i]] for i in self.right]),
            "five": loss(sequences, firsts, self.answers, [[five] for five in self.five]),
            "plain": loss(
                [t[:-1] for t in texts], [0] * len(texts), [t[1:] for t in texts], [[]] * len(texts)
            ),
        }


def recovered(losses: dict[str, float], mode: str) -> float:
    """The share that a mode gives of what the right text, pasted, gains."""
    gain = losses["off"] - losses["oracle"]
    return (losses["off"] - losses[mode]) / gain if gain else float(np.nan)
