"""Output of the commands: progress, tables, places, numbers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..text import cite, scrub, scrub_line

if TYPE_CHECKING:
    from ..chat.conversation import Step, Timings
    from ..documents import LeftOut
    from ..memorize.run import MemorizeReport
    from ..store import Hit

Spans = dict[int, "list[Hit]"]  # references by span of 64 answer tokens

SNIPPET = 160  # characters


class Progress:
    """A progress bar on stderr, if that is a terminal; it vanishes when its work is done."""

    @classmethod
    def of_context(cls) -> Progress:
        """A progress bar that the end of the command removes, whatever happened."""
        progress = cls()
        click.get_current_context().call_on_close(progress.close)
        return progress

    def __init__(self) -> None:
        self._bars: Any = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if not (sys.stderr and sys.stderr.isatty()):
            return
        if total and done >= total:
            self.close()
            return
        if self._bars is None:
            self._bars = self._open()
        if what != self._what:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(what.capitalize(), total=total or None)
            self._what = what
        self._bars.update(self._bars.task_ids[0], completed=done, total=total or None)

    def _open(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            speed_estimate_period=120,
        )
        bars.start()
        return bars

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._what = None, ""


def echo_json(value: object) -> None:
    """Print JSON in ASCII, which every terminal's encoding can show."""
    click.echo(json.dumps(value, indent=2))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, numbers right-aligned. Only a terminal limits its width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        right = rows and not isinstance(rows[0][number], str)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(scrub_line(str(cell))) for cell in row))
    terminal = sys.stdout and sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else 10_000).print(table)


def note(text: str) -> None:
    """Print something beside the result, on stderr."""
    click.echo(click.style(text, dim=True), err=True)


def dim(text: str) -> None:
    """Print a less important part of the result, dimmed."""
    click.echo(click.style(text, dim=True))


def human_bytes(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log(count, 1000)), 4)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def human_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def snippet(text: str) -> str:
    line = scrub(" ".join(text.split()))
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1] + "…"


def minute(time: str) -> str:
    """An ISO time to the minute."""
    return time[:16].replace("T", " ")


def echo_memorized(done: MemorizeReport, *, dry_run: bool = False, verbose: bool = False) -> None:
    """Print what a run over files did, or would do; failures go to stderr."""
    for error in done.failed:
        click.echo(f"Failed: {scrub_line(error.path)}: {scrub_line(error.reason)}", err=True)
    for path, text in done.notes:
        click.echo(f"Note: {scrub_line(path)}: {scrub_line(text)}", err=True)
    if verbose:
        for left in done.left_out:
            click.echo(f"left out {scrub_line(left.path)} ({scrub_line(left.kind)})")
    for word in ("added", "changed", "vanished"):
        if verbose or word == "vanished":
            for path in getattr(done, word):
                click.echo(f"{word} {scrub_line(path)}")
    counts = ("added", "changed", "unchanged", "vanished", "failed")
    click.echo(", ".join(f"{len(getattr(done, word))} {word}" for word in counts))
    verb, when = ("would be written", "about ") if dry_run else ("written", "")
    click.echo(
        f"{done.references} references {verb}, {human_bytes(done.bytes)} of memories, "
        f"{when}{human_seconds(done.seconds)}"
    )
    if done.left_out:
        note(_left_out_text(done.left_out))
    if done.vanished and not done.pruned:
        note("Documents of vanished files are kept; --prune forgets them.")


def _left_out_text(left_out: Sequence[LeftOut]) -> str:
    """Count by kind what in folders was not read, in one line: first what can be read somehow."""
    kinds = Counter((not left.advice, left.kind, left.advice) for left in left_out)
    counted = (f"{kinds[key]} {key[1]}{f' ({key[2]})' if key[2] else ''}" for key in sorted(kinds))
    return f"Left out: {scrub_line('; '.join(counted))}."


def echo_answer(
    steps: Generator[Step], stopped: Callable[[], bool] = lambda: False, *, think: bool = False
) -> tuple[Spans, Timings | None]:
    """Print an answer as it grows; return the references it drew on, and its timings.

    Args:
        think: print thoughts too, on stderr, dimmed.
        stopped: called after each token; the answer ends if it returns True.
    """
    spans: Spans = {}
    timings, thought = None, False
    with closing(steps):
        for step in steps:
            if think and thought and not step.thought:
                click.echo("\n", err=True)
            thought = step.thought
            if not thought:
                click.echo(scrub(step.text), nl=False)
            elif think:
                click.echo(click.style(scrub(step.text), dim=True), nl=False, err=True)
            spans[step.span], timings = step.sources, step.timings
            if stopped():
                click.echo(" …", nl=False)
                thought = False
                break
    click.echo()
    if thought:  # and nobody has stopped it
        note("The model was still thinking. Allow a longer answer with --max-tokens.")
    return spans, timings


def echo_references(hits: Iterable[Hit]) -> None:
    """Print distance, place and beginning of each reference."""
    for hit in hits:
        click.echo(f"{hit.distance:.3f}  {cite(hit, hit.store)}")
        dim(f"       {snippet(hit.text)}")


def echo_sources(spans: Spans) -> None:
    """Print every reference of an answer once, those of the first spans first."""
    echo_references(dict.fromkeys(hit for hits in spans.values() for hit in hits))
