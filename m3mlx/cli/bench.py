"""The command bench: how fast memory is on this machine."""

from __future__ import annotations

import click

from ..config import Options
from .options import WRITING, common_options, example, json_option, memory_options
from .render import Progress, echo_json, echo_table, note


@click.command(epilog=example("m3mlx bench --rounds 1"))
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Repeats.")
@memory_options(*WRITING)
@json_option
@common_options
def bench(rounds: int, options: Options, as_json: bool) -> None:
    """Measure on this machine what memory costs: answering, decoding, memorizing.

    The same work without memory, with the same references as text and with explicit memory, in
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
    note("The load of other work stretches seconds; CPU seconds less. Take a quiet machine.")
