"""The benchmark as a whole: what is run, and what is said of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import mlx.core as mx

from ..config import CHUNK_TOKENS, Progress
from . import parts
from .cost import Shape, cost
from .flash import Flash
from .growth import growing
from .peers import peers
from .rounds import Figure, ratio
from .workload import Workload

PARTS = ("ask", "decode", "memorize", "peers", "io", "cost", "growth")  # growth changes the store
# what a table shows; also marks
MAIN = ("first token", "step", "refresh", "batch", "answer", "fill", "first retrieval")
SPLIT = ("embed", "search", "read", "write", "add", "open", "prefill")  # shown as a store grows


@dataclass(frozen=True)
class Plan:
    """How much is measured; the default takes a minute or two on two cores.

    Attributes:
        prompts: tokens of the questions.
        marks: lengths of the answer at which the time is taken; none for no answers.
        contexts: tokens before a decoding step.
        batch: references written at once.
        rounds, answer_rounds: that count; a whole answer takes long, and noise matters less.
        modes: of asking.
        references: sizes of the store for which growth is measured, ascending.
    """

    parts: tuple[str, ...] = ("ask", "decode", "memorize", "cost")
    prompts: tuple[int, ...] = (64, 512)
    marks: tuple[int, ...] = ()
    contexts: tuple[int, ...] = (256,)
    batch: int = 8
    rounds: int = 3
    answer_rounds: int = 1
    modes: tuple[str, ...] = ("off", "text", "explicit warm")
    references: tuple[int, ...] = (1_000, 10_000, 100_000)


def run(
    plan: Plan,
    *,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
    gguf: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure, and return all of it as JSON-able values.

    Args:
        keep: called after each part with what there is so far.
        gguf: the model as llama.cpp has it, for the peers; None to fetch it.
        options: of ``Assistant``, without ``store``.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    report: dict[str, Any] = {
        **{"machine": machine(), "load_before": load, "plan": asdict(plan)},
        **{"part_seconds": {}, "notes": []},
    }
    figures: list[Figure] = []
    with Workload(progress=progress, **options) as workload:
        report["model"] = workload.assistant.decoder.name
        report["end_to_end"] = {
            "references": workload.memorized.references,
            "seconds": workload.memorizing.parts["end to end"][0],
            "cpu_seconds": workload.memorizing.parts["end to end"][1],
        }
        for part in (part for part in PARTS if part in plan.parts):
            start = perf_counter()
            figures += _measure(part, plan, workload, report, progress, gguf)
            report["part_seconds"][part] = perf_counter() - start
            report["figures"] = [figure.to_json() for figure in figures]
            report["ratios"] = ratios(figures)
            keep(report)
    return report


def _measure(
    part: str,
    plan: Plan,
    workload: Workload,
    report: dict[str, Any],
    progress: Progress,
    gguf: Path | None,
) -> list[Figure]:
    """One part's figures; what is no figure goes into the report."""
    rounds = plan.rounds
    if part == "ask":
        figures = parts.asking(workload, plan.prompts, plan.modes, rounds, progress)
        if plan.marks:
            shared = plan.marks, plan.modes, plan.answer_rounds, progress
            figures += parts.answering(workload, *shared)
        return figures
    if part == "decode":
        return parts.decoding(workload, plan.contexts, rounds, progress)
    if part == "memorize":
        mx.reset_peak_memory()
        figures = parts.memorizing(workload, plan.batch, rounds, progress)
        report["memorize_peak_bytes"] = mx.get_peak_memory()
        report["record_bytes"] = parts.record_bytes(workload)
        return figures
    if part == "peers":
        note = report["notes"].append
        return peers(workload, CHUNK_TOKENS, rounds, progress, note, gguf)
    if part == "growth":
        return growing(workload, plan.references, rounds, progress)
    if part == "io":
        assistant = workload.assistant
        with Flash(assistant.format.config, assistant.format.record_bytes) as flash:
            report["io"] = flash.measure(rounds, progress)
    if part == "cost":
        report["cost"] = _cost(workload)
    return []


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program."""
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as opened:
            name = next(line.split(":")[1].strip() for line in opened if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": mx.device_info().get("device_name") or name,
        "cores": os.cpu_count(),
        "device": str(mx.default_device()),
        "python": platform.python_version(),
        **{package: version(package) for package in ("m3mlx", "mlx", "mlx-lm")},
    }


def ratios(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """What is compared, on both clocks: of each round by itself, then the median."""
    found: dict[str, dict[str, float]] = growth(figures)
    known = {(f.part, f.of, f.size, f.way): f for f in figures}
    for part, of, size, way in known:
        same = [f for f in figures if f.part == part]

        def compare(other: str, of=of, size=size, way=way, part=part, same=same) -> None:
            if (part, of, size, other) in known:
                name = f"{part} {size}, {of}: {way} / {other}"
                found[name] = ratio(same, of, size, way, other)

        if part in ("ask", "answer") and way.startswith("explicit") and "token" in of:
            for other in ("off", "text", "text refreshed"):
                compare(other)
        if (part, of) == ("memorize", "batch") and way != "plain prefill":
            compare("plain prefill")
        if part == "peers" and way.startswith("m3mlx") and of == "first token":
            for other in {f.way: None for f in same if f.way != way}:
                compare(other)
        if (part, of, way) == ("decode", "step", "explicit"):
            off, refresh = known[part, of, size, "off"], known[part, "refresh", size, "refresh"]
            steps = known[part, of, size, way]
            name = f"decode {size}: speed with memories and a refresh every 64 tokens / without"
            found[name] = {
                clock: median(
                    a / (b + c / CHUNK_TOKENS)
                    for a, b, c in zip(
                        *(getattr(f, values) for f in (off, steps, refresh)), strict=True
                    )
                )
                for clock, values in (("seconds", "walls"), ("cpu_seconds", "cpus"))
            }
    return found


def growth(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """What takes longer in a larger store: each size beside the smallest, on both clocks.

    Machines drift in the minutes between two sizes, so each is counted in first tokens without
    memory, which were measured in the same rounds.
    """
    known = {(f.way, f.of, f.size): f for f in figures if f.part == "growth"}
    sizes = sorted({size for way, _, size in known if way == "off"})
    found: dict[str, dict[str, float]] = {}
    for clock, values in (("seconds", "walls"), ("cpu_seconds", "cpus")):

        def took(way: str, of: str, size: int, values=values) -> list[float]:
            return getattr(known[way, of, size], values)

        for size in sizes:
            off = took("off", "first token", size)
            first = took("explicit warm", "first token", size)
            search = took("explicit warm", "search", size)
            batch = took("memorize", "batch", size)
            for name, value in (
                (
                    "first token but for the search",
                    median((a - b) / c for a, b, c in zip(first, search, off, strict=True)),
                ),
                ("memorize", median(a / b for a, b in zip(batch, off, strict=True))),
            ):
                found.setdefault(f"{name} {size}", {})[clock] = value
    smallest = sizes[0] if sizes else 0
    return {
        f"growth {size}, {name}: of {smallest}": {
            clock: found[f"{name} {size}"][clock] / found[f"{name} {smallest}"][clock]
            for clock in ("seconds", "cpu_seconds")
        }
        for name in ("first token but for the search", "memorize")
        for size in sizes[1:]
    }


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the figures that matter; the parts of each are in the JSON."""
    rows = []
    for f in report["figures"]:
        split = f["part"] in ("growth", "open") and f["of"] in SPLIT
        if split or f["of"] in MAIN or f["of"].endswith(" tokens"):
            low, high = f["quartiles"]
            spread = f"{low:.3f} … {high:.3f}"
            times = f"{f['seconds']:.3f}", spread, f"{f['cpu_seconds']:.3f}"
            rows.append((f["part"], str(f["size"]), f["way"], f["of"], *times))
    return ("part", "size", "way", "time to", "seconds", "quartiles", "CPU seconds"), rows


def io_table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the ways to read the memories of an answer, where they were measured."""
    rows = [
        (
            *(way, str(found["reads"]), f"{found['bytes'] / 1e6:.2f}"),
            *(f"{1000 * found[name]:.2f}" for name in ("seconds", "predicted_seconds")),
            f"{found['predicted_seconds'] / found['seconds']:.2f}",
        )
        for way, found in report.get("io", {"ways": {}})["ways"].items()
    ]
    return ("reading for an answer", "reads", "MB", "ms", "predicted", "ratio"), rows


def ratio_table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (name, f"{value['seconds']:.3f}", f"{value['cpu_seconds']:.3f}")
        for name, value in report["ratios"].items()
    ]
    return ("ratio", "seconds", "CPU seconds"), rows


def _cost(workload: Workload) -> dict[str, Any]:
    """The paper's shape and the present model's, in floating point operations."""
    decoder, config = workload.assistant.decoder, workload.assistant.format.config
    embedding = next(iter(decoder.model.model.embed_tokens.parameters().values()))
    layer = decoder.model.layers[0]
    heads = decoder.query_heads * decoder.head_dim
    held = [n for n, counts in enumerate(config.counts) if any(counts)]
    own = Shape(
        layers=decoder.layers,
        memory_layers=max(held) + 1,
        query_heads=decoder.query_heads,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        width=getattr(layer, "hidden_size", heads),
        inner=layer.mlp.up_proj.weight.shape[0],
        vocabulary=embedding.shape[0],
        # kept keys, as if all memory layers had as many
        tokens_per_head=config.kept / (decoder.kv_heads * (max(held) + 1)),
    )
    shapes = {"the paper": Shape(), decoder.name: own}
    return {
        name: {**asdict(cost(shape)), "worth": cost(shape).worth} for name, shape in shapes.items()
    }
