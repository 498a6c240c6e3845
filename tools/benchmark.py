"""The whole benchmark, its results kept, and a picture: memory beside its rivals in one run.

    python tools/benchmark.py [--rounds 3] [--tokens 512] [--parts ask decode …] [--model NAME]
    python tools/benchmark.py --short           # what fits a busy machine, or a larger model
    python tools/benchmark.py --draw FILE.json  # the picture of results that were kept

Writes tools/results/NAME.json after each part, so that an interruption costs no more than one, and
NAME.svg at the end. NAME is the device, the model if it is not the default one, the commit, and the
parts if they are not all. Prints the tables first and one JSON line last. Ratios are of one round
each, then medians. On a machine that other programs use, ``--clock cpu_seconds`` draws seconds of
this process instead of the wall's. ``--references`` up to 1000000 takes half an hour more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from m3mlx.bench.parts import MODES
from m3mlx.bench.report import PARTS, Plan, io_table, ratio_table, run, table
from m3mlx.models.decoder import DEFAULT_DECODER
from m3mlx.train.plot import draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tools" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tokens", type=int, help="of the longest answer; 0 for none")
    parser.add_argument("--prompts", type=int, nargs="*")
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--references", type=int, nargs="+", help="sizes of stores, for growth")
    parser.add_argument("--gguf", type=Path, help="the model for llama.cpp; else it is fetched")
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
        modes=tuple(mode for mode in MODES if mode != "explicit cold") if short else MODES,
        references=tuple(sorted(arguments.references or Plan.references)),
    )
    shown = Shown(plan, arguments.model)
    try:
        report = run(
            plan, progress=shown.tell, keep=shown.keep, gguf=arguments.gguf, model=arguments.model
        )
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted. {shown.file or 'Nothing'} has been kept.")
    report = {"commit": shown.commit, **report}
    for head, rows in (table(report), ratio_table(report), io_table(report)):
        if rows:
            echo(head, rows)
    for note in report["notes"]:
        print(note, file=sys.stderr)
    picture(report, shown.file, arguments.clock)
    print(json.dumps(report))


class Shown:
    """What a run tells while it goes on, and keeps.

    Attributes:
        commit: that is measured.
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
        """One line, with the time that is gone, and what is left of this step and of all."""
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
        """Write what there is, whole or not at all."""
        self._done = report["part_seconds"]
        device = report["machine"]["device"].partition("(")[2].partition(",")[0] or "device"
        parts = [part for part in self.plan.parts if part in self._done]
        names = [
            *(device, *([] if self.model == DEFAULT_DECODER else [Path(self.model).name])),
            *(self.commit, *([] if set(parts) == set(PARTS) else parts)),
        ]
        RESULTS.mkdir(exist_ok=True)
        before, self.file = self.file, RESULTS / f"{'-'.join(names)}.json"
        unfinished = self.file.with_suffix(".unfinished")
        text = json.dumps({"commit": self.commit, **report}, indent=1)
        unfinished.write_text(text + "\n", "utf-8")
        unfinished.replace(self.file)
        if before and before != self.file:
            before.unlink()

    def _as_before(self) -> dict[str, float]:
        """Seconds of each part in the latest kept run of this plan and model, if there is one."""
        wanted = {**json.loads(json.dumps(asdict(self.plan))), "parts": None}
        for file in sorted(RESULTS.glob("*.json"), key=lambda file: -file.stat().st_mtime):
            found = json.loads(file.read_text("utf-8"))
            seconds = found.get("part_seconds", {})
            same = {**found["plan"], "parts": None} == wanted and found["model"] == self.model
            if same and set(self.plan.parts) <= set(seconds):
                return {part: seconds[part] for part in self.plan.parts}
        return {}

    def _left(self) -> float:
        """Seconds that are left if this run goes on as fast beside the earlier one as so far."""
        done = [part for part in self._done if part in self._earlier]
        known = sum(self._earlier[part] for part in done)
        pace = sum(self._done[part] for part in done) / known if known else 1.0
        gone = time.monotonic() - self._start
        return max(0.0, pace * sum(self._earlier.values()) - gone)


def picture(report: dict, file: Path, seconds: str) -> None:
    """Time to an answer against its length, the modes side by side."""
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
    """Of the working tree, with a mark if it has changes."""
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
