"""Batches from samples: sequences, the references that they read, and the tokens to learn.

A batch depends on the settings, the data and its number only. So nothing random has to be saved
with a checkpoint, and a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import CHUNK_TOKENS, MEMORIES, MemoryConfig
from ..errors import M3Error
from ..models.template import Template
from .corpus import COPY, Corpus, Reference, overlap
from .data import Conversation, Data, Question
from .settings import Settings
from .teacher import Prompt, Teacher

_NEIGHBOURS = 2 * MEMORIES  # references searched for one chunk, before copies are left out

ChunkReads = list[list[int]]  # references that each chunk of one sequence reads


@dataclass
class Batch:
    """Sequences of one forward and backward pass.

    Attributes:
        objective: one of ``settings.OBJECTIVES``.
        config: how the memories of this batch are written.
        references: written once each; no loss on them.
        scores: from ``Writer.score``, by which their tokens are kept.
        sequences: token ids after the prefix.
        reads: references that each chunk of each sequence reads.
        wanted: places in each sequence after which the next token is predicted.
        targets: these tokens, int64 (all places,).
        teacher: its likeliest tokens and their log probabilities, (places, k), or None.
        baseline: for ``dpo``, ``loss.answer_logprobs`` before training, (sequences,).
    """

    objective: str
    config: MemoryConfig
    references: list[Reference] = field(default_factory=list)
    scores: np.ndarray | None = None
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    reads: list[ChunkReads] = field(default_factory=list)
    wanted: list[tuple[int, ...]] = field(default_factory=list)
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    teacher: tuple[np.ndarray, np.ndarray] | None = None
    baseline: Any = None

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads, of references and sequences."""
        return sum(map(len, self.references)) + sum(map(len, self.sequences))

    def add(self, sequence: Sequence[int], learned: Sequence[int], reads: ChunkReads) -> None:
        """Add a sequence in which the tokens at the places ``learned`` are predicted."""
        self.sequences.append(tuple(sequence[: learned[-1]]))
        self.wanted.append(tuple(place - 1 for place in learned))
        self.reads.append(reads)
        new = np.array([sequence[place] for place in learned], np.int64)
        self.targets = np.concatenate([self.targets, new])

    def add_reference(self, reference: Reference) -> int:
        """Return the index of a reference, which is added if it is new."""
        if reference not in self.references:
            self.references.append(reference)
        return self.references.index(reference)


class DataLoader:
    """Makes the batches of one run.

    Args:
        budgets: memory configurations, one of which is drawn for each batch.

    Attributes:
        skipped: number of questions whose answer no reference holds.

    Raises:
        M3Error: there is no data for an objective.
    """

    def __init__(
        self,
        settings: Settings,
        data: Data,
        corpus: Corpus,
        teacher: Teacher,
        template: Template,
        budgets: Sequence[MemoryConfig],
    ):
        self.settings, self.corpus, self.teacher = settings, corpus, teacher
        self.template, self.budgets, self.end = template, budgets, template.end
        self.questions: dict[int, list[Question]] = {}  # by the reference that holds the answer
        self.skipped = 0
        for question in data.questions:
            place = corpus.find_answer(question.document, question.answers[0])
            if place is None:
                self.skipped += 1
            else:
                self.questions.setdefault(place, []).append(question)
        pieces = [
            tokens
            for text in data.documents()
            for tokens in _split(template.encode(text), settings.sequence_tokens)
        ]
        self._texts = [tokens for tokens in pieces if len(tokens) > 1]
        self._samples: dict[str, Sequence[Any]] = {
            "distill": list(self.questions),
            "keep": self._texts,
            "sft": [*data.conversations, *data.questions],
            "dpo": data.preferences,
            "lm": self._texts,
        }
        for name, share in settings.objectives.items():
            if share and not self._samples[name]:
                raise M3Error(f"nothing to train {name} on; docs/training.md has the formats")
        names = list(settings.objectives)
        shares = np.array([settings.objectives[name] for name in names], float)
        rng = np.random.default_rng([settings.seed, 1])
        batches = settings.steps * settings.accumulate
        drawn = rng.choice(len(names), batches, p=shares / shares.sum())
        self._objectives = [names[i] for i in drawn]
        self._orders: dict[tuple[str, int], list[Any]] = {}

    def sample_batch(self, config: MemoryConfig) -> Batch:
        """Return meaningless sequences and a reference of the data's mean lengths, to be timed."""
        questions = [q for some in list(self.questions.values())[:99] for q in some]
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
        """Return a batch of the run, counted from 0."""
        rng = np.random.default_rng([self.settings.seed, 2, number])
        objective = self.objective(number)
        batch = Batch(objective, self.budgets[int(rng.integers(len(self.budgets)))])
        samples = self._next_samples(objective, self._objectives[:number].count(objective))
        getattr(self, f"_{objective}")(batch, samples, rng)
        if self.settings.stage == "warmup" or not batch.references:
            batch.references, batch.reads = [], [[] for _ in batch.sequences]
        if batch.references:
            batch.scores = self.teacher.scores(batch.references)
        return batch

    def objective(self, number: int) -> str:
        """Return what a batch of the run trains for, counted from 0."""
        return self._objectives[number]

    # --- objectives

    def _distill(self, batch: Batch, places: list[int], rng: np.random.Generator) -> None:
        prompts = []
        batch.references = [self.corpus.references[place] for place in places]
        for row, place in enumerate(places):
            questions = self.questions[place]
            for i in rng.permutation(len(questions))[: self.settings.questions]:
                answer = questions[i].answers[rng.integers(len(questions[i].answers))]
                reads = self._draw_reads(row, len(places), rng)
                self._add_turns(batch, [(questions[i].question, answer)], reads)
                text = batch.references[row] if reads else ()
                prompts.append(Prompt(text, batch.sequences[-1], batch.wanted[-1]))
        batch.teacher = self.teacher.top_logprobs(prompts)

    def _keep(self, batch: Batch, texts: list[Reference], rng: np.random.Generator) -> None:
        for tokens in texts:
            batch.add(tokens, range(1, len(tokens)), [])
        pairs = zip(batch.sequences, batch.wanted, strict=True)
        batch.teacher = self.teacher.top_logprobs([Prompt((), *pair) for pair in pairs])

    def _sft(self, batch: Batch, samples: list[Any], rng: np.random.Generator) -> None:
        for sample, row in zip(samples, self._add_documents(batch, samples), strict=True):
            if isinstance(sample, Conversation):
                turns = sample.messages
            else:
                answer = sample.answers[rng.integers(len(sample.answers))]
                turns = ((sample.question, answer),)
            reads = self._draw_reads(row, len(batch.references), rng)
            self._add_turns(batch, turns, reads, self._pasted(batch, reads))

    def _dpo(self, batch: Batch, samples: list[Any], rng: np.random.Generator) -> None:
        for sample, row in zip(samples, self._add_documents(batch, samples), strict=True):
            reads = self._draw_reads(row, len(batch.references), rng)
            for answer in (sample.chosen, sample.rejected):
                self._add_turns(batch, [(sample.prompt, answer)], reads, self._pasted(batch, reads))

    def _lm(self, batch: Batch, texts: list[Reference], rng: np.random.Generator) -> None:
        for tokens in texts:
            batch.add(tokens, range(1, len(tokens)), self._retrieve(batch, tokens))

    def _retrieve(self, batch: Batch, tokens: Sequence[int]) -> ChunkReads:
        """Return each chunk's own reference and those of the four chunks before (section 3.6)."""
        if self.settings.stage == "warmup":
            return []
        chunks = _split(tokens, CHUNK_TOKENS)
        queries = chunks if self.settings.query == "own" else [chunks[0], *chunks[:-1]]
        texts = [self.template.decode(chunk) for chunk in queries]
        own: ChunkReads = []
        for number, near in enumerate(self.corpus.nearest(texts, _NEIGHBOURS)):
            references = [self.corpus.references[place] for place in near]
            chosen = next((r for r in references if overlap(tokens, r) <= COPY), None)
            if self.settings.query == "previous" and not number:
                chosen = None  # nothing came before
            own.append([] if chosen is None else [batch.add_reference(chosen)])
        starts = [max(0, i + 1 - self.settings.memories) for i in range(len(own))]
        return [sorted({r for rows in own[s : i + 1] for r in rows}) for i, s in enumerate(starts)]

    # --- parts of batches

    def _add_documents(self, batch: Batch, samples: list[Any]) -> list[int | None]:
        """Add the first reference of each sample's document; return its index, None without one."""
        places = [self.corpus.places[s.document][0] if s.document else None for s in samples]
        references = self.corpus.references
        return [None if p is None else batch.add_reference(references[p]) for p in places]

    def _draw_reads(self, right: int | None, count: int, rng: np.random.Generator) -> ChunkReads:
        """Draw the right reference and some of the batch's others, or sometimes none.

        Half of the time there are as many as allowed, as in use.
        """
        if right is None or rng.random() < self.settings.drop:
            return []
        most = min(self.settings.memories, count) - 1
        extra = most if rng.random() < 0.5 else rng.integers(most + 1)
        others = [row for row in range(count) if row != right]
        return [[right, *rng.permutation(others)[:extra].tolist()]]

    def _pasted(self, batch: Batch, reads: ChunkReads) -> Reference:
        """Return the right reference where it stands in the context: without memories."""
        warmup = self.settings.stage == "warmup"
        return batch.references[reads[0][0]] if warmup and reads else ()

    def _add_turns(
        self,
        batch: Batch,
        turns: Sequence[tuple[str, str]],
        reads: ChunkReads,
        before: Reference = (),
    ) -> None:
        """Add a conversation, whose answers and their end tokens are learned.

        Args:
            before: tokens in front of it.
        """
        tokens: list[int] = []
        learned: list[int] = []
        for number, (message, answer) in enumerate(turns):
            # the template begins a later turn with the end of the answer before
            turn = self.template.turn(message, first=not number).tokens
            tokens += turn[1:] if number and turn[0] == self.end else turn
            start = len(tokens)
            tokens += [*self.template.encode(answer), self.end]
            learned += range(start, len(tokens))
        batch.add([*before, *tokens], [len(before) + place for place in learned], reads)

    # --- the order of samples

    def _next_samples(self, objective: str, turn: int) -> list[Any]:
        """Return one batch's samples: every sample once, then all of them in another order."""
        count = self.settings.references
        if objective in ("lm", "keep", "dpo"):
            count = max(1, count // 2)
        epoch, place = divmod(turn, -(-len(self._samples[objective]) // count))
        if (objective, epoch) not in self._orders:
            self._orders = {key: o for key, o in self._orders.items() if key[0] != objective}
            self._orders[objective, epoch] = self._shuffle(objective, epoch)
        return self._orders[objective, epoch][place * count : (place + 1) * count]

    def _shuffle(self, objective: str, epoch: int) -> list[Any]:
        rng = np.random.default_rng([self.settings.seed, 3, epoch])
        samples = self._samples[objective]
        if objective == "distill":  # neighbours are in one batch, as distractors of each other
            clusters = self.corpus.clusters(samples, max(2, self.settings.references // 2), rng)
            return [place for i in rng.permutation(len(clusters)) for place in clusters[i]]
        return [samples[i] for i in rng.permutation(len(samples))]


def _split(tokens: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Split tokens into pieces, without a last one of a single token."""
    pieces = [tuple(tokens[i : i + length]) for i in range(0, len(tokens), length)]
    return [piece for piece in pieces if len(piece) > 1] or pieces
