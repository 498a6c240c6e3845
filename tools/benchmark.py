"""The whole benchmark, its results kept, and a picture: memory beside its rivals in one run.

    python tools/benchmark.py [--rounds 3] [--tokens 512] [--parts ask decode …] [--model NAME]
    python tools/benchmark.py --short           # what fits a busy machine
    python tools/benchmark.py --draw FILE.json  # the picture of results that were kept

Writes tools/results/NAME.json and NAME.svg, where NAME is the device, the commit and the parts if
they are not all; prints the tables first and one JSON line last. Ratios are of one round each, then
medians. On a machine that other programs use, ``--clock cpu_seconds`` draws seconds of this process
instead of the wall's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from m3mlx.bench.parts import MODES
from m3mlx.bench.report import PARTS, Plan, ratio_table, run, table
from m3mlx.plot import draw

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
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.draw:
        picture(json.loads(arguments.draw.read_text("utf-8")), arguments.draw, arguments.clock)
        return
    short = arguments.short
    tokens = (128 if short else 512) if arguments.tokens is None else arguments.tokens
    prompts = (64, 512) if short else (32, 64, 512, 2048)
    if arguments.prompts is not None:
        prompts = arguments.prompts
    plan = Plan(
        parts=tuple(arguments.parts),
        prompts=tuple(prompts),
        marks=(*range(32, tokens, 32), tokens) if tokens else (),
        contexts=tuple(arguments.contexts or ((0, 512) if short else (0, 1024, 4096))),
        batch=2 if short else 16,
        rounds=arguments.rounds or 3,
        modes=MODES,
    )
    measured = commit()
    report = {"commit": measured, **run(plan, progress=tell, model=arguments.model)}
    for head, rows in (table(report), ratio_table(report)):
        echo(head, rows)
    RESULTS.mkdir(exist_ok=True)
    device = report["machine"]["device"].partition("(")[2].partition(",")[0] or "device"
    some = "" if set(plan.parts) == set(PARTS) else f"-{'-'.join(plan.parts)}"
    file = RESULTS / f"{device}-{measured}{some}.json"
    file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    picture(report, file, arguments.clock)
    print(json.dumps(report))


def picture(report: dict, file: Path, clock: str) -> None:
    """Time to an answer against its length, the modes side by side."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for figure in report["figures"]:
        of = figure["of"].replace("first token", "1 tokens")
        if figure["part"] == "answer" and of.endswith(" tokens"):
            point = int(of.split()[0]), figure[clock]
            curves.setdefault(figure["way"], []).append(point)
    if curves:
        up = {"seconds": "seconds", "cpu_seconds": "seconds of the process"}[clock]
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


def tell(what: str, done: int, total: int) -> None:
    print(f"\r{what} {done}/{total}".ljust(78), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
