"""Samples become batches: sequences, the references that they read, and what is to be learned.

A batch depends on the settings, the data and its number alone. So nothing random has to be kept
between two steps, and a run that goes on where it was stopped is the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import CHUNK_TOKENS, MEMORIES, MemoryConfig
from ..errors import M3Error
from ..memory.parallel import Reads
from ..models.template import Template
from .corpus import COPY, Corpus, Reference, overlap
from .data import Data
from .frozen import Frozen, Lesson
from .settings import Settings

_NEIGHBOURS = 2 * MEMORIES  # references looked at for one chunk, of which copies are thrown out


@dataclass
class Batch:
    """Sequences that are learned from in one pass.

    Attributes:
        objective: one of ``settings.OBJECTIVES``.
        config: how the memories of this batch are written.
        references: written once each; no loss on them.
        scores: which of their tokens to keep, as ``Writer.score`` gives.
        sequences: token ids behind the prefix.
        reads: which references each chunk of each sequence sees.
        wanted: places in each sequence, behind which the next token counts.
        targets: these tokens, int64 (places in all,).
        teacher: the teacher's likeliest tokens and their log probabilities, (places, k), or None.
        baseline: for ``dpo``, what ``loss.answer_logprobs`` was before training.
    """

    objective: str
    config: MemoryConfig
    references: list[Reference] = field(default_factory=list)
    scores: np.ndarray | None = None
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    reads: Reads = field(default_factory=list)
    wanted: list[tuple[int, ...]] = field(default_factory=list)
    targets: np.ndarray | None = None
    teacher: tuple[np.ndarray, np.ndarray] | None = None
    baseline: Any = None  # mx.array (sequences,)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads: of references and sequences."""
        return sum(map(len, self.references)) + sum(map(len, self.sequences))

    def add(self, sequence: Sequence[int], learned: Sequence[int], reads: list[list[int]]) -> None:
        """Add a sequence of which the tokens at the places ``learned`` are to be predicted."""
        self.sequences.append(tuple(sequence[: learned[-1]]))
        self.wanted.append(tuple(place - 1 for place in learned))
        self.reads.append(reads)
        new = np.array([sequence[place] for place in learned], np.int64)
        self.targets = new if self.targets is None else np.concatenate([self.targets, new])


class Batches:
    """Makes the batches of one run.

    Args:
        budgets: memory configurations, one of which is drawn for each batch.

    Raises:
        M3Error: there is no data for an objective.
    """

    def __init__(
        self,
        settings: Settings,
        data: Data,
        corpus: Corpus,
        frozen: Frozen,
        template: Template,
        budgets: Sequence[MemoryConfig],
    ):
        self.settings, self.data, self.corpus = settings, data, corpus
        self.frozen, self.template, self.budgets = frozen, template, budgets
        self.end = template.end
        self.asked: dict[int, list] = {}  # questions by the reference that holds their answer
        self.skipped = 0
        for question in data.questions:
            place = corpus.right(question.document, question.answers[0])
            if place is None:
                self.skipped += 1
            else:
                self.asked.setdefault(place, []).append(question)
        self._texts = [
            tokens
            for text in data.documents()
            for tokens in self._cut(template.encode(text), settings.sequence_tokens)
        ]
        names = list(settings.objectives)
        shares = np.array([settings.objectives[name] for name in names], float)
        rng = np.random.default_rng([settings.seed, 1])
        drawn = rng.choice(
            len(names), settings.steps * settings.accumulate, p=shares / shares.sum()
        )
        self._plan = [names[i] for i in drawn]
        seen = dict.fromkeys(names, 0)
        self._turn = []  # how many batches of the same objective came before
        for name in self._plan:
            self._turn.append(seen[name])
            seen[name] += 1
        self._orders: dict[tuple[str, int], list] = {}
        for name, share in settings.objectives.items():
            if share and not self._size(name):
                raise M3Error(f"there is nothing to train {name} on; see the formats in the README")

    def small(self, config: MemoryConfig) -> Batch:
        """A reference of the data's mean length and its sequences, of no sense, to be timed."""
        questions = [q for asked in list(self.asked.values())[:99] for q in asked]
        lengths = [
            len(self.template.turn(q.question).tokens) + len(self.template.encode(q.answers[-1]))
            for q in questions
        ] or [len(tokens) for tokens in self._texts[:99]]
        batch = Batch("sft", config)
        reference = range(int(np.mean([len(r) for r in self.corpus.references] or [1])))
        if self.settings.stage == "continual" and reference:
            batch.references = [tuple(reference)]
            heads = (len(config.counts), len(config.counts[0]))
            batch.scores = np.ones((1, *heads, len(reference)), np.float32)
        sequence = range(max(2, int(np.mean(lengths))))
        for _ in range(self.settings.questions):
            batch.add(sequence, sequence[len(sequence) // 2 :], [[0]] if batch.references else [])
        return batch

    def batch(self, number: int) -> Batch:
        """One batch of the run, from 0."""
        rng = np.random.default_rng([self.settings.seed, 2, number])
        objective = self._plan[number]
        batch = Batch(objective, self.budgets[rng.integers(len(self.budgets))])
        getattr(self, f"_{objective}")(batch, self._turn[number], rng)
        if self.settings.stage == "warmup" or not batch.references:
            batch.references, batch.reads = [], [[] for _ in batch.sequences]
        if batch.references:
            batch.scores = self.frozen.scores(batch.references)
        return batch

    # --- objectives

    def _distill(self, batch: Batch, turn: int, rng: np.random.Generator) -> None:
        group = self._take("distill", turn)
        lessons = []
        batch.references = [self.corpus.references[place] for place in group]
        for row, place in enumerate(group):
            asked = self.asked[place]
            for i in rng.permutation(len(asked))[: self.settings.questions]:
                answer = asked[i].answers[rng.integers(len(asked[i].answers))]
                reads = self._seen(row, len(group), rng)
                self._add(batch, [(asked[i].question, answer)], reads)
                text = batch.references[row] if reads else ()
                lessons.append(Lesson(text, batch.sequences[-1], batch.wanted[-1]))
        batch.teacher = self.frozen.teach(lessons)

    def _keep(self, batch: Batch, turn: int, rng: np.random.Generator) -> None:
        for tokens in self._take("keep", turn):
            batch.add(tokens, range(1, len(tokens)), [])
        pairs = zip(batch.sequences, batch.wanted, strict=True)
        batch.teacher = self.frozen.teach([Lesson((), *pair) for pair in pairs])

    def _sft(self, batch: Batch, turn: int, rng: np.random.Generator) -> None:
        samples = self._take("sft", turn)
        rows = self._write(batch, [sample.document for sample in samples])
        for sample, row in zip(samples, rows, strict=True):
            self._add(batch, self._turns(sample, rng), self._seen(row, len(batch.references), rng))

    def _dpo(self, batch: Batch, turn: int, rng: np.random.Generator) -> None:
        samples = self._take("dpo", turn)
        rows = self._write(batch, [sample.document for sample in samples])
        for sample, row in zip(samples, rows, strict=True):
            reads = self._seen(row, len(batch.references), rng)
            for answer in (sample.chosen, sample.rejected):
                self._add(batch, [(sample.prompt, answer)], reads)

    def _lm(self, batch: Batch, turn: int, rng: np.random.Generator) -> None:
        for tokens in self._take("lm", turn):
            batch.add(tokens, range(1, len(tokens)), self._retrieved(batch, tokens))

    def _retrieved(self, batch: Batch, tokens: Sequence[int]) -> list[list[int]]:
        """Each chunk's own reference and those of the four chunks before (section 3.6)."""
        if self.settings.stage == "warmup":
            return []
        chunks = self._cut(tokens, CHUNK_TOKENS)
        queries = chunks if self.settings.query == "own" else [chunks[0], *chunks[:-1]]
        texts = [self.template.decode(chunk) for chunk in queries]
        own: list[list[int]] = []
        for number, near in enumerate(self.corpus.nearest(texts, _NEIGHBOURS)):
            references = [self.corpus.references[place] for place in near]
            fit = (r for r in references if overlap(tokens, r) <= COPY)
            chosen = next(fit, None)
            if self.settings.query == "previous" and not number:
                chosen = None  # nothing came before
            own.append([] if chosen is None else [_row(batch.references, chosen)])
        share = self.settings.memories
        return [sorted({row for rows in own[max(0, i - share + 1) : i + 1] for row in rows})
                for i in range(len(own))]  # fmt: skip

    # --- parts

    def _write(self, batch: Batch, documents: Sequence[str]) -> list[int | None]:
        """Add the first reference of each document to a batch; where it is, None without one."""
        return [
            _row(batch.references, self.corpus.references[self.corpus.places[document][0]])
            if document
            else None
            for document in documents
        ]

    def _seen(self, right: int | None, count: int, rng: np.random.Generator) -> list[list[int]]:
        """The right reference and some of the batch's others, or now and then none.

        Half of the time there are as many as may be: that is what people use.
        """
        if right is None or rng.random() < self.settings.drop:
            return []
        most = min(self.settings.memories, count) - 1
        extra = most if rng.random() < 0.5 else rng.integers(most + 1)
        others = [row for row in range(count) if row != right]
        return [[right, *rng.permutation(others)[:extra].tolist()]]

    def _turns(self, sample: object, rng: np.random.Generator) -> Sequence[tuple[str, str]]:
        if hasattr(sample, "messages"):
            return sample.messages
        return [(sample.question, sample.answers[rng.integers(len(sample.answers))])]

    def _add(self, batch: Batch, turns: Sequence[tuple[str, str]], reads: list[list[int]]) -> None:
        """Add a conversation, of which the answers and their ends are learned."""
        tokens: list[int] = []
        learned: list[int] = []
        for number, (said, answer) in enumerate(turns):
            # the next turn begins with what the template puts behind an answer, end and all
            said = self.template.turn(said, first=not number).tokens
            tokens += said[1:] if number and said[0] == self.end else said
            start = len(tokens)
            tokens += [*self.template.encode(answer), self.end]
            learned += range(start, len(tokens))
        batch.add(tokens, learned, reads)

    @staticmethod
    def _cut(tokens: Sequence[int], length: int) -> list[tuple[int, ...]]:
        pieces = [tuple(tokens[i : i + length]) for i in range(0, len(tokens), length)]
        return [piece for piece in pieces if len(piece) > 1] or pieces

    # --- which samples

    def _samples(self, objective: str) -> list:
        if objective == "distill":
            return list(self.asked)
        if objective in ("lm", "keep"):
            return [tokens for tokens in self._texts if len(tokens) > 1]
        if objective == "sft":
            return [*self.data.conversations, *self.data.questions]
        return self.data.preferences

    def _size(self, objective: str) -> int:
        return len(self._samples(objective))

    def _take(self, objective: str, turn: int) -> list:
        """The samples of one batch: every sample once, then all of them in another order."""
        share = self.settings.references
        if objective in ("lm", "keep", "dpo"):
            share = max(1, share // 2)
        for_each = -(-self._size(objective) // share)
        epoch, place = divmod(turn, for_each)
        if (objective, epoch) not in self._orders:
            self._orders = {key: o for key, o in self._orders.items() if key[0] != objective}
            self._orders[objective, epoch] = self._order(objective, epoch)
        return self._orders[objective, epoch][place * share : (place + 1) * share]

    def _order(self, objective: str, epoch: int) -> list:
        rng = np.random.default_rng([self.settings.seed, 3, epoch])
        samples = self._samples(objective)
        if objective == "distill":  # what is alike stands together: distractors worth the name
            clusters = self.corpus.clusters(samples, max(2, self.settings.references // 2), rng)
            return [place for i in rng.permutation(len(clusters)) for place in clusters[i]]
        return [samples[i] for i in rng.permutation(len(samples))]


def _row(references: list[Reference], reference: Reference) -> int:
    if reference not in references:
        references.append(reference)
    return references.index(reference)
