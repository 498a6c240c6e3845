"""The command bench: how fast memory is on this machine."""

from __future__ import annotations

import click

from ..config import Options
from .options import WRITING, add_options, command, memory_options
from .render import Progress, echo_json, echo_table, note


@command("m3mlx bench --rounds 1")
@add_options(rounds=("Number of measurements; tables show medians.", click.IntRange(min=1), 3))
@memory_options(*WRITING)
def bench(rounds: int, options: Options, as_json: bool) -> None:
    """Measure what memory costs on this machine.

    The same work without memory, with the same references as text and with explicit memory takes
    turns, over sample documents in a store of its own. Takes a minute or two."""
    from ..bench.report import Plan, ratio_table, run, table

    report = run(Plan(rounds=rounds), options, progress=Progress.of_context())
    if as_json:
        echo_json(report)
        return
    echo_table(*table(report))
    echo_table(*ratio_table(report))
    machine = report["machine"]
    note(f"{machine['processor']}, {machine['device']}, mlx {machine['mlx']}")
    note("Other work on the machine adds to seconds, and less to CPU seconds: keep it quiet.")
