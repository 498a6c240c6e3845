"""The same questions without memory, with pasted text, and with memories written in many ways."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..train.plot import draw
from .questions import Question
from .temporary import ANSWER_TOKENS, CONDITIONS, Result, TemporaryStore

# how memories are written: budget, selection, codec, tokens per head, bytes of a record
Way = tuple[str | None, str | None, str | None, float | None, int | None]
NO_WAY = (None, None, None, None, None)


@dataclass
class Row:
    """Results of one condition, with memories written in one way.

    Attributes:
        mode: "off", "oracle" (the right reference as text), "text" or "explicit".
        memories: references pasted or read: the right one and the best others of the search.
        budget: as it was asked for; it and the next four are None without explicit memory.
        tokens_per_head: average over all layers and heads.
        record_bytes: of the memory of one reference.
        nll: mean negative log-likelihood per token of the answers, in nats.
        recovered: (off - nll) / (off - oracle), the share of what the right reference as text
            gains; None where off or oracle was not measured.
        right: share of greedy answers that contain the answer, in any case; None if there are
            no greedy answers.
        first_token_seconds: median.
    """

    mode: str
    memories: int
    budget: str | None
    selection: str | None
    codec: str | None
    tokens_per_head: float | None
    record_bytes: int | None
    nll: float
    recovered: float | None
    right: float | None
    first_token_seconds: float


@dataclass
class Report:
    """All rows, in the order in which they were measured, and where."""

    rows: list[Row]
    questions: int
    model: str
    adapter: str
    machine: str
    versions: dict[str, str]

    def to_json(self) -> dict:
        return asdict(self)


def evaluate(
    questions: Sequence[Question],
    *,
    modes: Sequence[str] = CONDITIONS,
    memories: Sequence[int] = (1,),
    budgets: Sequence[str] = ("auto",),
    selections: Sequence[str | None] = (None,),
    codecs: Sequence[str | None] = (None,),
    answer_tokens: int = ANSWER_TOKENS,
    report: Callable[[Row], None] | None = None,
    **options: Any,
) -> Report:
    """Memorize the documents in temporary stores and answer the questions in every condition.

    Conditions without memories are measured once, and explicit memory once for each combination
    of budget, selection, codec and number of memories.

    Args:
        modes: the conditions.
        memories: numbers of references given to a question in the modes text and explicit.
        budgets: "auto", "calibrated:8", "uniform:8", "half:8" or the like.
        selections, codecs: as of ``Assistant``; None for the default.
        answer_tokens: length of the greedy answers; 0 for likelihood alone, which is quicker.
        report: called with each row.
        options: of ``TemporaryStore``, without those above.

    Raises:
        M3Error: a document could not be memorized.
    """
    rows: list[Row] = []
    losses: dict[str, float] = {}  # of off and oracle, which the others are measured by
    ways = list(product(budgets, selections, codecs))[: None if "explicit" in modes else 1]
    plain = [mode for mode in CONDITIONS if mode in modes and mode != "explicit"]
    for number, (budget, selection, codec) in enumerate(ways):
        with TemporaryStore(budget=budget, selection=selection, codec=codec, **options) as store:
            store.memorize([q.document for q in questions], [q.path for q in questions])
            asked: list[tuple[str, int, Way]] = []
            for mode in plain if number == 0 else []:
                counts = memories if mode == "text" else [int(mode == "oracle")]
                asked += [(mode, count, NO_WAY) for count in counts]
            if "explicit" in modes:
                asked += [("explicit", count, _way(store, budget)) for count in memories]
            for mode, count, way in asked:
                results = store.measure(questions, mode, count, answer_tokens)
                rows.append(_row(mode, count, way, results, losses))
                if report:
                    report(rows[-1])
            decoder = store.assistant.decoder
    machine = f"{platform.system()} {platform.machine()} {platform.processor()}".strip()
    versions = {name: version(name) for name in ("m3mlx", "mlx", "mlx-lm")}
    adapter = str(decoder.adapter_path or "none")
    return Report(rows, len(questions), decoder.name, adapter, machine, versions)


def _way(store: TemporaryStore, budget: str) -> Way:
    size, config = store.assistant.format.record_bytes, store.assistant.format.config
    codec = f"k{config.key_bits}v{config.value_bits}"
    return budget, config.selection, codec, config.tokens_per_head, size


def _row(
    mode: str, memories: int, way: Way, results: Sequence[Result], losses: dict[str, float]
) -> Row:
    nll = mean(result.nll for result in results)
    losses.setdefault(mode, nll)
    off, oracle = losses.get("off"), losses.get("oracle")
    recovered = 0.0 if mode == "off" else None
    if off is not None and oracle is not None and off != oracle:
        recovered = (off - nll) / (off - oracle)
    said = [result.right for result in results if result.right is not None]
    seconds = median(result.first_token_seconds for result in results)
    return Row(mode, memories, *way, nll, recovered, mean(said) if said else None, seconds)


def plot(report: Report, path: str | Path) -> None:
    """Draw loss against the bytes of a memory as SVG: a curve for each way, a line for text."""
    sizes = [row.record_bytes / 1000 for row in report.rows if row.record_bytes] or [0.0, 1.0]
    ways = [_names(row) for row in report.rows if row.record_bytes]
    kinds = [set(kind) for kind in zip(*ways, strict=True)]
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in report.rows:
        if row.record_bytes:
            names = [n for n, kind in zip(_names(row), kinds, strict=True) if len(kind) > 1]
            point = row.record_bytes / 1000, row.nll
            curves.setdefault(", ".join(["explicit", *names]), []).append(point)
        else:
            curves[f"{row.mode}, {row.memories}"] = [(x, row.nll) for x in (min(sizes), max(sizes))]
    Path(path).write_text(draw(curves, "kB per reference", "nats per token"), "utf-8")


def _names(row: Row) -> tuple[str, ...]:
    """Return what distinguishes a curve of explicit memory, beside the bytes."""
    kind = (row.budget or "").partition(":")[0]
    return kind, row.selection or "", row.codec or "", str(row.memories)
