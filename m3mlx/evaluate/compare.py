"""The same questions without memory, with pasted text, and with memories written in many ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..config import Options, Progress
from ..models.inventory import machine
from ..train.plot import draw
from .questions import Question
from .table import mean_of_known
from .temporary import ANSWER_TOKENS, CONDITIONS, Result, TemporaryStore


@dataclass
class Row:
    """Results of one condition, with memories written in one way.

    Attributes:
        mode: "off", "oracle" (the right reference as text), "text" or "explicit".
        memories: references pasted or read: the right one and the best others of the search.
        nll: mean negative log-likelihood per token of the answers, in nats.
        recovered: (off - nll) / (off - oracle), the share of what the right reference as text
            gains; None where off or oracle was not measured.
        right: share of greedy answers that contain the answer, in any case; None without them.
        first_token_seconds: median.
        budget: as it was asked for; it and the next four are None without explicit memory.
        tokens_per_head: average over all layers and heads.
        record_bytes: of the memory of one reference.
    """

    mode: str
    memories: int
    nll: float
    recovered: float | None
    right: float | None
    first_token_seconds: float
    budget: str | None = None
    selection: str | None = None
    codec: str | None = None
    tokens_per_head: float | None = None
    record_bytes: int | None = None


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
    options: Options,
    *,
    modes: Sequence[str] = CONDITIONS,
    memories: Sequence[int] = (1,),
    budgets: Sequence[str] = ("auto",),
    selections: Sequence[str | None] = (None,),
    codecs: Sequence[str | None] = (None,),
    answer_tokens: int = ANSWER_TOKENS,
    report: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Memorize the documents in temporary stores and answer the questions in every condition.

    Conditions without memories are measured once, and explicit memory once for each combination
    of budget, selection, codec and number of memories.

    Args:
        options: of the assistant; ``store`` and the fields named below are ignored.
        modes: the conditions.
        memories: numbers of references given to a question in the modes text and explicit.
        budgets: "auto", "calibrated:8", "uniform:8", "half:8" or the like.
        selections, codecs: as of ``Options``; None for the default.
        answer_tokens: length of the greedy answers; 0 for likelihood alone, which is quicker.
        report: called with each row.

    Raises:
        M3Error: a document could not be memorized.
    """
    rows: list[Row] = []
    losses: dict[str, float] = {}  # of off and oracle, which the others are measured by
    ways = list(product(budgets, selections, codecs))[: None if "explicit" in modes else 1]
    for number, (budget, selection, codec) in enumerate(ways):
        chosen = replace(options, selection=selection, codec=codec)
        with TemporaryStore(chosen, budget, progress) as store:
            store.memorize([q.document for q in questions], [q.path for q in questions])
            for mode in CONDITIONS if number == 0 else ("explicit",):
                if mode not in modes:
                    continue
                way = _way(store, budget) if mode == "explicit" else {}
                for count in {"off": (0,), "oracle": (1,)}.get(mode, memories):
                    results = store.measure(questions, mode, count, answer_tokens)
                    rows.append(_row(mode, count, results, losses, way))
                    if report:
                        report(rows[-1])
            decoder = store.assistant.decoder
    versions = {name: version(name) for name in ("m3mlx", "mlx", "mlx-lm")}
    adapter = str(decoder.adapter_path or "none")
    return Report(rows, len(questions), decoder.name, adapter, str(machine()), versions)


def _way(store: TemporaryStore, budget: str) -> dict[str, Any]:
    """Return the columns of a row that say how memories are written."""
    config = store.assistant.format.config
    return {
        "budget": budget,
        "selection": config.selection,
        "codec": f"k{config.key_bits}v{config.value_bits}",
        "tokens_per_head": config.tokens_per_head,
        "record_bytes": store.assistant.format.record_bytes,
    }


def _row(
    mode: str, count: int, results: Sequence[Result], losses: dict[str, float], way: dict[str, Any]
) -> Row:
    nll = mean(result.nll for result in results)
    losses.setdefault(mode, nll)
    off, oracle = losses.get("off"), losses.get("oracle")
    recovered = 0.0 if mode == "off" else None
    if off is not None and oracle is not None and off != oracle:
        recovered = (off - nll) / (off - oracle)
    right = mean_of_known(result.right for result in results)
    seconds = median(result.first_token_seconds for result in results)
    return Row(mode, count, nll, recovered, right, seconds, **way)


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
