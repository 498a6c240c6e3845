"""The benchmark as a whole: what is run, and how it is reported."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import CHUNK_TOKENS, Options, Progress
from ..models import inventory
from . import parts
from .cost import Shape, cost
from .rounds import CLOCKS, Figure, ratios_to
from .workload import Workload

Report = dict[str, Any]  # JSON-able
Part = Callable[[Workload, Report], list[Figure]]  # adds to the report what is no figure
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # head and rows
SHOWN = ("first token", "step", "refresh", "batch")  # in the table


@dataclass(frozen=True)
class Plan:
    """How much is measured; the default takes a minute or two on two cores.

    Attributes:
        prompts: tokens of the questions.
        contexts: tokens before a decoding step.
        batch: references written at once.
        rounds: after the warm-up.
        modes: ways of answering, of ``workload.WAYS``.
    """

    parts: tuple[str, ...] = ("ask", "decode", "memorize", "cost")
    prompts: tuple[int, ...] = (64, 512)
    contexts: tuple[int, ...] = (256,)
    batch: int = 8
    rounds: int = 3
    modes: tuple[str, ...] = ("off", "text", "explicit warm")


def parts_of(plan: Plan, progress: Progress) -> dict[str, Part]:
    """Return the parts of the benchmark by name, each with its share of the plan."""

    def ask(workload: Workload, report: Report) -> list[Figure]:
        return parts.ask(workload, plan.prompts, plan.modes, plan.rounds, progress)

    def decode(workload: Workload, report: Report) -> list[Figure]:
        return parts.decode(workload, plan.contexts, plan.rounds, progress)

    def memorize(workload: Workload, report: Report) -> list[Figure]:
        mx.reset_peak_memory()
        figures = parts.memorize(workload, plan.batch, plan.rounds, progress)
        report["memorize_peak_bytes"] = mx.get_peak_memory()
        report["record_bytes"] = parts.record_bytes(workload.assistant.format.config)
        return figures

    def costs(workload: Workload, report: Report) -> list[Figure]:
        decoder, config = workload.assistant.decoder, workload.assistant.format.config
        shapes = {"the paper": Shape(), decoder.name: Shape.of(decoder, config)}
        report["cost"] = {name: cost(shape).to_json() for name, shape in shapes.items()}
        return []

    return {"ask": ask, "decode": decode, "memorize": memorize, "cost": costs}


def ratios(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Compare the ways of the same work on both clocks: ratios of each round, then the median."""
    found: dict[str, dict[str, float]] = {}
    for figure in figures:
        part, way, of, size = figure.part, figure.way, figure.of, figure.size
        if part in ("ask", "answer") and way.startswith("explicit") and "token" in of:
            found |= ratios_to(("off", "text", "text refreshed"), figure, figures)
        if (part, of) == ("memorize", "batch"):
            found |= ratios_to(("plain prefill",), figure, figures)
        if (part, of, way) == ("decode", "step", "explicit"):
            same = {(f.of, f.way): f for f in figures if (f.part, f.size) == (part, size)}
            off, plain, refresh = (
                same[name] for name in (("step", "off"), ("step", "mlx-lm"), ("refresh", "refresh"))
            )
            name = f"decode {size}: speed with memories and a refresh every 64 tokens"
            found[f"{name} / without"] = _speed(off, figure, refresh)
            found[f"{name} / mlx-lm"] = _speed(plain, figure, refresh)
            found[f"decode {size}: speed without memories / mlx-lm"] = _speed(plain, off)
    return found


def _speed(other: Figure, step: Figure, refresh: Figure | None = None) -> dict[str, float]:
    """How many times faster steps, with a refresh in 64 of them, are than another's, by clock."""

    def speed(times: str) -> float:
        own = np.array(getattr(step, times))
        if refresh:
            own = own + np.array(getattr(refresh, times)) / CHUNK_TOKENS
        return float(np.median(np.array(getattr(other, times)) / own))

    return {clock: speed(times) for clock, times in CLOCKS.items()}


def run(
    plan: Plan,
    options: Options,
    *,
    progress: Progress,
    measures: Mapping[str, Part] | None = None,
    compare: Callable[[Sequence[Figure]], dict[str, dict[str, float]]] = ratios,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure, and return all of it as JSON-able values.

    Args:
        options: of the assistant; ``store`` is ignored.
        measures: what can be measured, by the name of the part; None for ``parts_of(plan)``.
        compare: makes the ratios.
        keep: called after each part with the report so far.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    report: Report = {"machine": machine(), "load_before": load, "plan": asdict(plan)}
    report["part_seconds"] = {}
    figures: list[Figure] = []
    with Workload(options, progress) as workload:
        report["model"] = workload.assistant.decoder.name
        seconds, cpu_seconds = workload.memorizing.parts["end to end"]
        report["end_to_end"] = {
            "references": workload.memorized.references,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }
        for part, measure in (measures or parts_of(plan, progress)).items():
            if part in plan.parts:
                start = perf_counter()
                figures += measure(workload, report)
                report["part_seconds"][part] = perf_counter() - start
                report["figures"] = [figure.to_json() for figure in figures]
                report["ratios"] = compare(figures)
                keep(report)
    return report


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program."""
    return {
        **asdict(inventory.machine()),
        "cores": os.cpu_count(),
        "device": str(mx.default_device()),
        "python": platform.python_version(),
        **{package: version(package) for package in ("m3mlx", "mlx", "mlx-lm")},
    }


def table(
    report: Report, shown: Callable[[dict[str, Any]], bool] = lambda f: f["of"] in SHOWN
) -> Table:
    """Return the figures that matter; the others are in the JSON.

    Args:
        shown: which of the report's figures these are.
    """
    rows: list[tuple[str, ...]] = []
    for f in filter(shown, report["figures"]):
        low, high = f["quartiles"]
        times = f"{f['seconds']:.3f}", f"{low:.3f} … {high:.3f}", f"{f['cpu_seconds']:.3f}"
        rows.append((f["part"], str(f["size"]), f["way"], f["of"], *times))
    return ("part", "size", "way", "time to", "seconds", "quartiles", "CPU seconds"), rows


def ratio_table(report: Report) -> Table:
    rows: list[tuple[str, ...]] = [
        (name, f"{value['seconds']:.3f}", f"{value['cpu_seconds']:.3f}")
        for name, value in report["ratios"].items()
    ]
    return ("ratio", "seconds", "CPU seconds"), rows
