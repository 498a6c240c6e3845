"""Questions answered closed book, from pasted text, and from memories written in many ways.

Every condition asks the same questions with the same template, greedily and with as many answer
tokens. The references that are pasted are those that are read as memories: the ones that the
product's search finds for the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import product
from math import inf, isnan, nan
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import mlx.core as mx

from ..config import MEMORIES, Options, Progress, digest
from ..documents.text import clean
from ..errors import M3Error
from ..memory.format import conditions
from ..models.decoder import Decoder
from ..models.inventory import machine
from ..store import Hit
from ..train.plot import draw
from .batch import answer
from .kept import Kept, Outcome
from .questions import Collection, Passage, Question
from .scores import Estimate, holds, normal, normalize, score, wilson
from .store import EvaluationStore

CONDITIONS = ("off", "oracle", "text", "explicit")
ANSWER_TOKENS = 32
RANKS = (1, 5, 20)  # at which the recall of the search is measured
BATCH = 16  # answers decoded together


@dataclass
class Row:
    """Results of one condition, with memories written in one way.

    Attributes:
        mode: "off", "oracle" (the gold passages as text), "text" or "explicit".
        memories: references pasted or read.
        exact, f1, contains: means of ``Scores`` with 95 % intervals, Wilson's for ``exact`` and
            ``contains``, normal ones for ``f1``; None without answers.
        against_text: difference in F1 to the same number of references as text, question by
            question, with a normal interval; None where that was not measured.
        nll: mean negative log-likelihood per token of the first right answer, in nats, where only
            that is measured.
        recovered: (off - nll) / (off - oracle), the share of what the gold passage gains.
        first_token_seconds: median.
        kinds: F1 and number of the questions of each kind.
        budget: as it was asked for; it and the others are None without explicit memory.
        tokens_per_head: average over all layers and heads.
        record_bytes: of the memory of one reference.
        token_bytes: of all memories, for each token of the documents.
    """

    mode: str
    memories: int
    exact: Estimate | None = None
    f1: Estimate | None = None
    contains: Estimate | None = None
    against_text: Estimate | None = None
    nll: float | None = None
    recovered: float | None = None
    first_token_seconds: float = 0.0
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    budget: str | None = None
    selection: str | None = None
    codec: str | None = None
    tokens_per_head: float | None = None
    record_bytes: int | None = None
    token_bytes: float | None = None


@dataclass
class Report:
    """All rows, in the order in which they were measured, and where.

    Attributes:
        recall: mean share of the gold passages that the search finds among the first references.
        fitting: share of the questions for which a reference fits well enough to be read.
    """

    rows: list[Row]
    questions: int
    documents: int
    tokens: int
    recall: dict[int, Estimate]
    fitting: Estimate
    model: str
    adapter: str
    machine: str
    versions: dict[str, str]

    def to_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class How:
    """How questions are asked.

    Attributes:
        modes: the conditions.
        memories: numbers of references: all are read as memories, the first is also pasted.
        answer_tokens: length of the greedy answers; 0 for the likelihood of the right ones alone.
        instruction: words behind each question; the search does not see them.
    """

    modes: Sequence[str] = CONDITIONS
    memories: Sequence[int] = (MEMORIES,)
    answer_tokens: int = ANSWER_TOKENS
    instruction: str = ""


def evaluate(
    collection: Collection,
    options: Options,
    how: How = How(),
    *,
    budgets: Sequence[str] = ("auto",),
    selections: Sequence[str | None] = (None,),
    codecs: Sequence[str | None] = (None,),
    keep: Path | None = None,
    report: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Memorize the documents and answer the questions in every condition.

    Conditions without memories are measured once, and explicit memory once for each combination
    of budget, selection, codec and number of memories.

    Args:
        options: of the assistant; ``store`` and the fields named below are ignored.
        budgets: "auto", "calibrated:8", "uniform:8", "half:8" or the like.
        selections, codecs: as of ``Options``; None for the default.
        keep: folder in which stores and results stay, so that another call goes on there.
        report: called with each row.

    Raises:
        M3Error: a document could not be memorized, the kept results are damaged, or the
            likelihood is asked for of questions that have no answer.
    """
    if not how.answer_tokens and not any(q.answers for q in collection.questions):
        raise M3Error("no question has an answer whose likelihood could be measured")
    rows: list[Row] = []
    kept = Kept(keep / "results.jsonl" if keep else None)
    baselines: dict[str, list[float]] = {}
    decoder: Decoder | None = None
    recall: dict[int, Estimate] = {}
    fitting: Estimate | None = None
    ways = list(product(budgets, selections, codecs))[: None if "explicit" in how.modes else 1]
    for number, (budget, selection, codec) in enumerate(ways):
        chosen = replace(options, selection=selection, codec=codec)
        with EvaluationStore(
            chosen, budget, progress, keep=keep, name=collection.digest, decoder=decoder
        ) as store:
            store.memorize(collection.documents, cold=True)
            asked = _Asked(store, collection, how, kept, baselines)
            for mode in CONDITIONS if number == 0 else ("explicit",):
                for count in asked.counts(mode) if mode in how.modes else ():
                    rows.append(asked.row(mode, count, budget))
                    if report:
                        report(rows[-1])
            decoder = store.assistant.decoder
            if fitting is None:
                recall, fitting = asked.recall()
    assert decoder is not None
    versions = {name: version(name) for name in ("m3mlx", "mlx", "mlx-lm")}
    adapter = str(decoder.adapter_path or "none")
    sizes = len(collection.questions), len(collection.documents), asked.tokens
    assert fitting is not None
    return Report(rows, *sizes, recall, fitting, decoder.name, adapter, str(machine()), versions)


class _Asked:
    """The questions of a collection, asked of a store that holds its documents.

    Args:
        baselines: losses without memory and with the gold passage, and F1 with text; shared by
            all ways of writing memories.
    """

    def __init__(
        self,
        store: EvaluationStore,
        collection: Collection,
        how: How,
        kept: Kept,
        baselines: dict[str, list[float]],
    ):
        self.store, self.how, self.kept, self.baselines = store, how, kept, baselines
        self.documents, self.questions = collection.documents, collection.questions
        self.name = collection.digest
        encode = store.assistant.decoder.template.encode
        self.tokens = sum(len(encode(text)) for text in self.documents.values())
        self._found: dict[int, tuple[list[list[Hit]], list[float]]] = {}

    def hits(self, count: int) -> tuple[list[list[Hit]], list[float]]:
        """Return the references read for each question, and the seconds of each search.

        What is found first depends a little on how many are asked for, as in the product.
        """
        if count == 0:
            return [[] for _ in self.questions], [0.0 for _ in self.questions]
        if count not in self._found:
            found: list[list[Hit]] = []
            seconds = []
            for question in self.store.each(self.questions, "searching"):
                start = perf_counter()
                found.append(self.store.search(question.question, count, question.folder))
                seconds.append(perf_counter() - start)
            self._found[count] = found, seconds
        return self._found[count]

    def counts(self, mode: str) -> Sequence[int]:
        """Return the numbers of references that a mode is measured with."""
        few = {"off": (0,), "oracle": (0,), "text": self.how.memories[:1]}
        return few.get(mode, self.how.memories)

    def row(self, mode: str, count: int, budget: str) -> Row:
        """Answer what has not been answered yet in one condition, and sum it up."""
        outcomes = self._measure(mode, count)
        row = Row(mode, count)
        row.first_token_seconds = median(outcome.first_token_seconds for outcome in outcomes)
        if self.how.answer_tokens:
            self._score(row, [outcome.said for outcome in outcomes])
        else:
            row.nll = mean(outcome.nll for outcome in outcomes if outcome.nll is not None)
            self.baselines.setdefault(mode, [row.nll])
            (off,), (oracle,) = (self.baselines.get(name, [nan]) for name in ("off", "oracle"))
            share = 0.0 if mode == "off" else (off - row.nll) / ((off - oracle) or nan)
            row.recovered = None if isnan(share) else share
        if mode == "explicit":
            self._describe(row, budget)
        return row

    def recall(self) -> tuple[dict[int, Estimate], Estimate]:
        """Return ``recall`` and ``fitting`` of a report.

        A passage that holds an answer is found if a reference of it does that holds one too.
        """
        found: dict[int, list[float]] = {rank: [] for rank in RANKS}
        fitting = []
        for question in self.store.each(self.questions, "searching"):
            hits = self.store.recall(question.question, max(RANKS), question.folder)
            fitting.append(any(hit.score >= self.store.assistant.floor for hit in hits))
            ranks = [self._rank(passage, question, hits) for passage in question.passages]
            for rank in RANKS if ranks else ():
                found[rank].append(mean(place < rank for place in ranks))
        recall = {rank: wilson(shares) for rank, shares in found.items() if shares}
        return recall, wilson(fitting)

    def _rank(self, passage: Passage, question: Question, hits: Sequence[Hit]) -> float:
        text = self.documents[passage.path]
        wanted = clean(passage.text) if clean(passage.text) in text else text
        start, end = text.index(wanted), text.index(wanted) + len(wanted)
        answered = _holds(wanted, question)
        for rank, hit in enumerate(hits):
            inside = hit.path == passage.path and hit.start < end and hit.end > start
            if inside and (_holds(hit.text, question) or not answered):
                return rank
        return inf

    # --- one condition

    def _measure(self, mode: str, count: int) -> list[Outcome]:
        condition = self._condition(mode, count)
        keys = [digest(asdict(question)) for question in self.questions]
        missing = [n for n, key in enumerate(keys) if (condition, key) not in self.kept.outcomes]
        if mode == "explicit":
            self.store.write([hit for n in missing for hit in self.hits(count)[0][n]])
        what = f"answering, {mode} {count or ''}".strip()
        batch = BATCH if self.how.answer_tokens else 1
        for done in range(0, len(missing), batch):
            self.store.progress(what, len(keys) - len(missing) + done, len(keys))
            part = missing[done : done + batch]
            for n, outcome in zip(part, self._ask(part, mode, count), strict=True):
                about = {"asked": self.questions[n].question, "mode": mode, "memories": count}
                self.kept.add(condition, keys[n], outcome, about)
            mx.clear_cache()
        self.store.progress(what, len(keys), len(keys))
        return [self.kept.outcomes[condition, key] for key in keys]

    def _condition(self, mode: str, count: int) -> str:
        """Name everything that an outcome depends on, except the question."""
        assistant = self.store.assistant
        config = assistant.format.config
        known = conditions(assistant.decoder, config)
        named: list[Any] = [mode, count, self.how.answer_tokens, self.how.instruction]
        named += [known[name] for name in ("weights", "adapter", "tokenizer", "rope", "prefix")]
        if mode != "off":
            search = assistant.encoder.identity, assistant.options.retrieval
            named += [*search, self.name]
        if mode in ("text", "explicit") and assistant.floor:
            named.append(assistant.floor)
        if mode == "explicit":
            named += [known, config.to_json(), assistant.decoder.memory_temperature]
        return digest(named)

    def _ask(self, part: Sequence[int], mode: str, count: int) -> list[Outcome]:
        """Answer some questions together; each prompt is read alone, and timed."""
        decoder, template = self.store.assistant.decoder, self.store.assistant.decoder.template
        begun, outcomes = [], []
        found, searching = self.hits(count)
        for n in part:
            question, hits = self.questions[n], found[n]
            pasted = [hit.text for hit in hits] if mode == "text" else []
            if mode == "oracle":
                pasted = self._gold(question)
            asked = " ".join(filter(None, [question.question, self.how.instruction]))
            message = "\n\n".join([*pasted, asked])
            conversation, logits, turn = self.store.begin(message, hits if not pasted else [])
            timings = conversation.timings
            seconds = timings.retrieve_seconds + timings.read_seconds + timings.prefill_seconds
            outcomes.append(Outcome("", None, seconds + searching[n]))
            if not self.how.answer_tokens and question.answers:
                right = template.encode(question.answers[0])
                outcomes[-1].nll = conversation.loss_after(logits, right)
            begun.append((conversation, logits, template.opens_thought(turn.tokens)))
        if self.how.answer_tokens:
            said = answer(decoder, begun, self.how.answer_tokens)
            for outcome, text in zip(outcomes, said, strict=True):
                outcome.said = text
        return outcomes

    def _gold(self, question: Question) -> list[str]:
        """Return the gold passages; of a document as a whole the reference that answers."""
        texts = []
        for passage in question.passages:
            hits = [] if passage.text else self.store.recall(question.question, 1000, passage.path)
            held = [hit.text for hit in hits if _holds(hit.text, question)]
            texts.append(passage.text or next(iter([*held, *(hit.text for hit in hits)])))
        return list(dict.fromkeys(texts))

    # --- figures

    def _score(self, row: Row, said: Sequence[str]) -> None:
        scores = [score(s, q.answers, q.every) for s, q in zip(said, self.questions, strict=True)]
        f1s = [scored.f1 for scored in scores]
        row.exact = wilson([scored.exact for scored in scores])
        row.contains = wilson([scored.contains for scored in scores])
        row.f1 = normal(f1s)
        self.baselines.setdefault(f"{row.mode} f1", f1s)
        if row.mode == "explicit" and (texts := self.baselines.get("text f1")):
            row.against_text = normal([f - text for f, text in zip(f1s, texts, strict=True)])
        kinds: dict[str, list[float]] = {}
        for question, f1 in zip(self.questions, f1s, strict=True):
            kinds.setdefault(question.kind, []).append(f1)
        row.kinds = {kind: (mean(values), len(values)) for kind, values in kinds.items() if kind}

    def _describe(self, row: Row, budget: str) -> None:
        """Say how the memories were written."""
        assistant = self.store.assistant
        config, references = assistant.format.config, assistant.status()["references"]
        row.budget, row.selection = budget, config.selection
        row.codec = f"k{config.key_bits}v{config.value_bits}"
        row.tokens_per_head = config.tokens_per_head
        row.record_bytes = assistant.format.record_bytes
        row.token_bytes = row.record_bytes * references / self.tokens


def _holds(text: str, question: Question) -> bool:
    words = normalize(text)
    return any(holds(words, normalize(answer)) for answer in question.answers)


def plot(report: Report, path: str | Path) -> None:
    """Draw F1, or loss, against the bytes of a memory as SVG: a curve for each way, and text."""
    sizes = [row.record_bytes / 1000 for row in report.rows if row.record_bytes] or [0.0, 1.0]
    ways = [_names(row) for row in report.rows if row.record_bytes]
    kinds = [set(kind) for kind in zip(*ways, strict=True)]
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in report.rows:
        value = row.f1.value if row.f1 else row.nll or 0.0
        if row.record_bytes:
            names = [n for n, kind in zip(_names(row), kinds, strict=True) if len(kind) > 1]
            point = row.record_bytes / 1000, value
            curves.setdefault(", ".join(["explicit", *names]), []).append(point)
        else:
            curves[f"{row.mode}, {row.memories}"] = [(x, value) for x in (min(sizes), max(sizes))]
    up = "F1" if any(row.f1 for row in report.rows) else "nats per token"
    Path(path).write_text(draw(curves, "kB per reference", up), "utf-8")


def _names(row: Row) -> tuple[str, ...]:
    """Return what distinguishes a curve of explicit memory, beside the bytes."""
    kind = (row.budget or "").partition(":")[0]
    return kind, row.selection or "", row.codec or "", str(row.memories)
