"""The same questions without memory, with pasted text, and with memories written in many ways.

Figures of merit are the mean negative log-likelihood of the right answer's tokens, and from it
the share *recovered* of what the right reference pasted into the prompt gains over nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..config import Progress
from ..train.plot import draw
from .questions import Question
from .trial import ANSWER_TOKENS, MODES, Result, Trial


@dataclass
class Row:
    """What one mode achieves, with memories written in one way.

    Attributes:
        mode: "off", "oracle" (the right reference as text), "text" or "explicit".
        memories: references pasted or read: the right one and the best others of the search.
        budget: as it was asked for; it and the next four are None without explicit memory.
        tokens_per_head: average over all layers and heads.
        record_bytes: of the memory of one reference.
        nll: mean negative log-likelihood per token of the answers, in nats.
        recovered: (off - mode) / (off - oracle), of the means; None where one was not asked.
        right: share of greedy answers that contain the answer, whatever the case; None if none
            was asked for.
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
    modes: Sequence[str] = MODES,
    memories: Sequence[int] = (1,),
    budgets: Sequence[str] = ("auto",),
    selections: Sequence[str | None] = (None,),
    codecs: Sequence[str | None] = (None,),
    answer_tokens: int = ANSWER_TOKENS,
    report: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Memorize the documents in temporary stores and answer the questions in every mode.

    What reads no memories is asked once, and explicit memory once for every combination of
    budget, selection, codec and number of memories.

    Args:
        memories: numbers of references given to a question in the modes text and explicit.
        budgets: "auto", "calibrated:8", "uniform:8", "half:8" or the like.
        selections, codecs: as of ``Assistant``; None for the default.
        answer_tokens: length of the greedy answers; 0 for likelihood alone, which is quicker.
        report: called with each row when it is there.
        options: of ``Assistant``, without ``store`` and without those above.

    Raises:
        M3Error: a document could not be memorized.
    """
    rows: list[Row] = []
    losses: dict[str, float] = {}

    def measure(trial: Trial, mode: str, count: int, written: dict[str, Any]) -> None:
        results = trial.measure([mode], count, answer_tokens)[mode]
        losses.setdefault(mode, mean(result.nll for result in results))
        rows.append(_row(mode, count, results, losses, written))
        if report:
            report(rows[-1])

    # The first two of these are what all the others are measured by.
    plain = [mode for mode in MODES if mode in modes and mode != "explicit"]
    ways = list(product(budgets, selections, codecs))
    for number, (budget, selection, codec) in enumerate(ways):
        way = {"budget": budget, "selection": selection, "codec": codec}
        with Trial(questions, progress=progress, **way, **options) as trial:
            if number == 0:
                for mode in plain:
                    for count in memories if mode == "text" else (int(mode == "oracle"),):
                        measure(trial, mode, count, {})
                decoder = trial.assistant.decoder
                about = decoder.name, str(decoder.adapter_path or "none")
            if "explicit" in modes:
                config = trial.assistant.format.config
                written = {
                    "budget": budget,
                    "selection": config.selection,
                    "codec": f"k{config.key_bits}v{config.value_bits}",
                    "tokens_per_head": config.tokens_per_head,
                    "record_bytes": trial.assistant.format.record_bytes,
                }
                for count in memories:
                    measure(trial, "explicit", count, written)
        if "explicit" not in modes:
            break
    machine = f"{platform.system()} {platform.machine()} {platform.processor()}".strip()
    versions = {name: version(name) for name in ("m3mlx", "mlx", "mlx-lm")}
    return Report(rows, len(questions), *about, machine, versions)


def _row(
    mode: str,
    memories: int,
    results: Sequence[Result],
    losses: dict[str, float],
    written: dict[str, Any],
) -> Row:
    nll = mean(result.nll for result in results)
    gain = losses.get("off", 0.0) - losses.get("oracle", 0.0)
    known = "off" in losses and ("oracle" in losses or mode == "off") and gain
    asked = [result.right for result in results if result.right is not None]
    names = ("budget", "selection", "codec", "tokens_per_head", "record_bytes")
    return Row(
        mode=mode,
        memories=memories,
        **dict.fromkeys(names) | written,
        nll=nll,
        recovered=(losses["off"] - nll) / gain if known else None,
        right=mean(asked) if asked else None,
        first_token_seconds=median(result.first_token_seconds for result in results),
    )


def plot(report: Report, path: str | Path) -> None:
    """Draw loss against the bytes of a memory as SVG: a curve for each way, a line for text."""
    curves: dict[str, list[tuple[float, float]]] = {}
    explicit = [row for row in report.rows if row.record_bytes]
    sizes = [row.record_bytes / 1000 for row in explicit]
    ends = min(sizes, default=0.0), max(sizes, default=1.0)

    def way(row: Row) -> tuple[str, ...]:
        return row.budget.partition(":")[0], row.selection, row.codec, str(row.memories)

    kinds = [set(kind) for kind in zip(*map(way, explicit), strict=True)]
    for row in report.rows:
        if row in explicit:
            names = [n for n, kind in zip(way(row), kinds, strict=True) if len(kind) > 1]
            point = row.record_bytes / 1000, row.nll
            curves.setdefault(", ".join(["explicit", *names]), []).append(point)
        else:
            curves[f"{row.mode}, {row.memories}"] = [(end, row.nll) for end in ends]
    Path(path).write_text(draw(curves, "kB per reference", "nats per token"), "utf-8")
