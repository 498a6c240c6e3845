"""The whole benchmark, with kept results and a picture: memory beside its peers in one run.

    python tools/benchmark.py [--rounds 3] [--tokens 512] [--parts ask decode …] [--model NAME]
    python tools/benchmark.py --short           # for a busy machine, or a larger model
    python tools/benchmark.py --draw FILE.json  # the picture of kept results

Writes tools/results/NAME.json after each part, so that an interruption loses at most one, and
NAME.svg at the end. NAME is the device, the model unless it is the default one, the commit, and the
parts unless they are all. Prints the tables first and one JSON line last. Ratios are medians of the
ratios of each round. On a busy machine, ``--clock cpu_seconds`` draws the CPU seconds of this
process instead of the wall-clock ones. ``--references`` up to 1000000 takes half an hour more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_parts.flash import Flash, io_table
from benchmark_parts.growth import grow, growth_ratios
from benchmark_parts.peers import peer_ratios, peers

from m3mlx.bench import report as bench
from m3mlx.bench.report import Part, Report
from m3mlx.bench.rounds import Figure, take_turns
from m3mlx.bench.workload import WAYS, Workload
from m3mlx.config import CHUNK_TOKENS, Options, Progress
from m3mlx.files import write_text
from m3mlx.models.decoder import DEFAULT_DECODER
from m3mlx.train.plot import draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tools" / "results"
PARTS = ("ask", "decode", "memorize", "peers", "io", "cost", "growth")  # growth changes the store
SPLIT = ("embed", "search", "read", "write", "add", "open", "prefill")  # shown as a store grows


@dataclass(frozen=True)
class Plan(bench.Plan):
    """How much is measured.

    Attributes:
        marks: lengths of the answer at which the time is taken; none for no answers.
        answer_rounds: a whole answer takes long, and noise matters less.
        references: sizes of the store for which growth is measured, ascending.
    """

    marks: tuple[int, ...] = ()
    answer_rounds: int = 1
    references: tuple[int, ...] = (1_000, 10_000, 100_000)


def measure(
    plan: Plan,
    options: Options,
    *,
    progress: Progress,
    keep: Callable[[Report], None],
    gguf: Path | None = None,
) -> Report:
    """Run all parts of the plan.

    Args:
        keep: called after each part with the report so far.
        gguf: the model for llama.cpp; None to fetch it.
    """
    measures = bench.parts_of(plan, progress)

    def ask(workload: Workload, report: Report) -> list[Figure]:
        return measures["ask"](workload, report) + answer(workload, plan, progress)

    def against_peers(workload: Workload, report: Report) -> list[Figure]:
        note = report.setdefault("notes", []).append
        return peers(workload, CHUNK_TOKENS, plan.rounds, progress, note, gguf)

    def io(workload: Workload, report: Report) -> list[Figure]:
        memory = workload.assistant.format
        with Flash(memory.config, memory.record_bytes) as flash:
            report["io"] = flash.measure(plan.rounds, progress)
        return []

    def growth(workload: Workload, report: Report) -> list[Figure]:
        return grow(workload, plan.references, plan.rounds, progress)

    more: dict[str, Part] = {"ask": ask, "peers": against_peers, "io": io, "growth": growth}
    return bench.run(
        plan,
        options,
        progress=progress,
        measures={part: {**measures, **more}[part] for part in PARTS},
        compare=lambda f: {**growth_ratios(f), **bench.ratios(f), **peer_ratios(f)},
        keep=keep,
    )


def answer(workload: Workload, plan: Plan, progress: Progress) -> list[Figure]:
    """Measure seconds to whole answers to a question of 64 tokens."""
    if not plan.marks:
        return []
    ways = {
        way: partial(workload.ask, way, CHUNK_TOKENS, plan.marks)
        for way in plan.modes
        if way != "explicit cold"  # differs in the first token only
    }
    last, rounds = plan.marks[-1], plan.answer_rounds
    return take_turns("answer", last, ways, rounds, progress, warm=False)


def is_shown(figure: dict[str, Any]) -> bool:
    """Choose the figures of the table."""
    part, of = figure["part"], figure["of"]
    split = part in ("growth", "open") and of in SPLIT
    return split or of in (*bench.SHOWN, "fill", "first retrieval") or of.endswith(" tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tokens", type=int, help="length of the longest answer; 0 for none")
    parser.add_argument("--prompts", type=int, nargs="*")
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--references", type=int, nargs="+", help="sizes of stores, for growth")
    parser.add_argument("--gguf", type=Path, help="model for llama.cpp; fetched by default")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.draw:
        picture(json.loads(arguments.draw.read_text("utf-8")), arguments.draw, arguments.clock)
        return
    short = arguments.short
    tokens = (128 if short else 512) if arguments.tokens is None else arguments.tokens
    prompts = (64, 512) if short else (32, 64, 128, 512, 2048)
    if arguments.prompts is not None:
        prompts = arguments.prompts
    plan = Plan(
        parts=tuple(part for part in PARTS if part in arguments.parts),
        prompts=tuple(prompts),
        marks=(*range(32, tokens, 32), tokens) if tokens else (),
        contexts=tuple(arguments.contexts or ((0, 512) if short else (0, 1024, 4096))),
        batch=2 if short else 8,
        rounds=arguments.rounds or (2 if short else 3),
        modes=tuple(way for way in WAYS if way != "explicit cold") if short else WAYS,
        references=tuple(sorted(arguments.references or Plan.references)),
    )
    shown = Shown(plan, arguments.model)
    try:
        options = Options(model=arguments.model)
        report = measure(plan, options, progress=shown.tell, keep=shown.keep, gguf=arguments.gguf)
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted. {shown.file or 'Nothing'} has been kept.")
    report = {"commit": shown.commit, **report}
    for head, rows in (bench.table(report, is_shown), bench.ratio_table(report), io_table(report)):
        if rows:
            echo(head, rows)
    for note in report.get("notes", []):
        print(note, file=sys.stderr)
    picture(report, shown.file, arguments.clock)
    print(json.dumps(report))


class Shown:
    """Shows the progress of a run, and keeps its results.

    Attributes:
        commit: of the program.
        file: with the results; None until there are some.
    """

    def __init__(self, plan: Plan, model: str | None):
        self.plan, self.model = plan, model or DEFAULT_DECODER
        self.commit, self.file = commit(), None
        self._start = self._turn = time.monotonic()
        self._earlier = self._as_before()
        self._done: dict[str, float] = {}
        if self._earlier:
            print(f"About {clock(self._left())}, as the last time.", file=sys.stderr)

    def tell(self, what: str, done: int, total: int) -> None:
        """Print one line, with the time spent, and the time left of this step and of all."""
        now = time.monotonic()
        if not done:
            self._turn = now
        line = f"[{clock(now - self._start)}] {what} {done}/{total}"
        if 0 < done <= total:
            line += f", {clock((now - self._turn) * (total - done) / done)} left"
        if self._earlier:
            line += f"; of all about {clock(self._left())}"
        tell(line)

    def keep(self, report: dict) -> None:
        """Write the report so far, complete under its name."""
        self._done = report["part_seconds"]
        device = report["machine"]["device"].partition("(")[2].partition(",")[0] or "device"
        parts = [part for part in self.plan.parts if part in self._done]
        names = [
            *(device, *([] if self.model == DEFAULT_DECODER else [Path(self.model).name])),
            *(self.commit, *([] if set(parts) == set(PARTS) else parts)),
        ]
        before, self.file = self.file, RESULTS / f"{'-'.join(names)}.json"
        text = json.dumps({"commit": self.commit, **report}, indent=1)
        write_text(self.file, text + "\n")
        if before and before != self.file:
            before.unlink()

    def _as_before(self) -> dict[str, float]:
        """Return the seconds of each part in the latest kept run of this plan and model."""
        wanted = {**json.loads(json.dumps(asdict(self.plan))), "parts": None}
        for file in sorted(RESULTS.glob("*.json"), key=lambda file: -file.stat().st_mtime):
            found = json.loads(file.read_text("utf-8"))
            seconds = found.get("part_seconds", {})
            same = {**found["plan"], "parts": None} == wanted and found["model"] == self.model
            if same and set(self.plan.parts) <= set(seconds):
                return {part: seconds[part] for part in self.plan.parts}
        return {}

    def _left(self) -> float:
        """Return the seconds left, by the pace of this run against the earlier one."""
        done = [part for part in self._done if part in self._earlier]
        known = sum(self._earlier[part] for part in done)
        pace = sum(self._done[part] for part in done) / known if known else 1.0
        gone = time.monotonic() - self._start
        return max(0.0, pace * sum(self._earlier.values()) - gone)


def picture(report: dict, file: Path, seconds: str) -> None:
    """Draw the time to an answer against its length, a curve for each way."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for figure in report["figures"]:
        of = figure["of"].replace("first token", "1 tokens")
        if figure["part"] == "answer" and of.endswith(" tokens"):
            point = int(of.split()[0]), figure[seconds]
            curves.setdefault(figure["way"], []).append(point)
    if curves:
        up = {"seconds": "seconds", "cpu_seconds": "seconds of the process"}[seconds]
        file.with_suffix(".svg").write_text(draw(curves, "tokens of the answer", up), "utf-8")


def echo(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def commit() -> str:
    """Return the commit of the working tree, marked if it has changes."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run(
        [*git, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def tell(line: str) -> None:
    print(f"\r{line}".ljust(90), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
