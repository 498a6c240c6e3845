"""Loss of the model in training on held-out questions and on plain text."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import MEMORIES, MemoryConfig
from ..errors import M3Error
from ..memory.cache import read_prefix
from ..memory.codec import Memory
from ..memory.parallel import Reads, logits_with_memories
from ..memory.write import Writer, keep
from ..models.template import Template
from .corpus import LEAK, Corpus, overlap
from .data import Data

BATCH = 8  # sequences in one pass


class Validation:
    """Held-out questions about documents.

    Args:
        corpus: the references of these documents.

    Raises:
        M3Error: there are no questions in the data.
    """

    def __init__(self, data: Data, corpus: Corpus, template: Template):
        self.corpus, self.template = corpus, template
        self.answers: list[list[int]] = []
        self.turns: list[tuple[int, ...]] = []
        self.right: list[int] = []  # of each question the reference that holds its answer
        questions = []
        for question in data.questions:
            place = corpus.find_answer(question.document, question.answers[0])
            if place is not None:
                questions.append(question.question)
                self.right.append(place)
                self.turns.append(template.turn(question.question).tokens)
                self.answers.append(template.encode(question.answers[0]))
        if not questions:
            raise M3Error("the data for validation holds no questions about documents")
        near = zip(self.right, corpus.nearest(questions, 3 * MEMORIES), strict=True)
        self.five = [[right, *self._distractors(right, found)] for right, found in near]

    def _distractors(self, right: int, found: Sequence[int]) -> list[int]:
        """Return the best references that are no copies of the right one (section 4.4)."""
        references = self.corpus.references
        other = [
            place
            for place in found
            if place != right and overlap(references[right], references[place]) <= LEAK
        ]
        return other[: MEMORIES - 1]

    def measure(self, model: nn.Module, config: MemoryConfig) -> dict[str, float]:
        """Return the mean negative log-likelihood per token, in nats, by mode.

        The modes are those of ``evaluate``: "off", "oracle" (the right reference as text),
        "alone" and "five" (explicit memories, chosen by the model as it is now). "plain" is the
        loss on the documents' own text without any memory, which must not rise.
        """
        prefix = read_prefix(model, config.prefix)
        writer = Writer(model, prefix, self.template.recite)
        references = self.corpus.references
        parts = []
        for start in range(0, len(references), BATCH):
            scored = writer.score(references[start : start + BATCH], config.selection)
            parts.append(keep(*scored, config.counts))
        memory = Memory.join(parts)

        def loss(
            before: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], reads: Reads
        ) -> float:
            """Loss of targets that follow other tokens."""
            total, count = 0.0, 0
            for start in range(0, len(before), BATCH):
                part = slice(start, start + BATCH)
                pairs = list(zip(before[part], targets[part], strict=True))
                rows = [[*head, *target[:-1]] for head, target in pairs]
                wanted = [range(len(head) - 1, len(head) + len(t) - 1) for head, t in pairs]
                logits = logits_with_memories(
                    model, prefix, config, rows, memory, reads[part], wanted
                )
                goal = mx.array([token for _, target in pairs for token in target])
                total += float(nn.losses.cross_entropy(logits, goal, reduction="sum"))
                count += len(goal)
            return total / count

        gap = self.template.encode("\n\n")
        pasted = [
            [*gap, *references[right], *turn]
            for right, turn in zip(self.right, self.turns, strict=True)
        ]
        none: Reads = [[]] * len(self.turns)
        texts = [text for text in references if len(text) > 1]
        return {
            "off": loss(self.turns, self.answers, none),
            "oracle": loss(pasted, self.answers, none),
            "alone": loss(self.turns, self.answers, [[[i]] for i in self.right]),
            "five": loss(self.turns, self.answers, [[five] for five in self.five]),
            "plain": loss([t[:1] for t in texts], [t[1:] for t in texts], [[]] * len(texts)),
        }
