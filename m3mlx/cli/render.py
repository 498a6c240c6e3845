"""How things look: progress, tables, places, numbers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..text import cite, scrub, scrub_line

if TYPE_CHECKING:
    from ..chat.conversation import Step, Timings
    from ..memorize.editions import RebuildReport
    from ..memorize.run import MemorizeReport
    from ..store import CheckReport, Hit, RepairReport

Spans = dict[int, "list[Hit]"]  # what each span of 64 answer tokens drew on

SNIPPET = 160  # characters

# Control characters but tab and newline, halves of characters, and turns of direction.


class Progress:
    """A bar on stderr for what the library reports, where somebody is watching.

    It goes when its work is done, so that it never stands among results.
    """

    @classmethod
    def of_context(cls) -> Progress:
        """A progress that the end of the command takes away, whatever happened."""
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
    """Pure ASCII, so that no terminal's encoding can spoil it."""
    click.echo(json.dumps(value, indent=2))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; numbers stand to the right. Its lines are cut only by a terminal."""
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
    """Something beside the result, on stderr."""
    click.echo(click.style(text, dim=True), err=True)


def dim(text: str) -> None:
    """A part of the result that should not shout."""
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


def memorized_json(done: MemorizeReport, dry_run: bool) -> dict:
    failed = [{"path": error.path, "reason": error.reason} for error in done.failed]
    return {**vars(done), "failed": failed, "dry_run": dry_run}


def echo_rebuilt(done: RebuildReport) -> None:
    """What was made from the stored text."""
    click.echo(
        f"{done.references} memories made from the stored text, {human_bytes(done.bytes)}, "
        f"{human_seconds(done.seconds)}"
    )
    if done.shortened:
        note(
            f"{done.shortened} references are longer in this model's tokens than a memory can be; "
            f"only their beginning is remembered."
        )


def bound_text(max_bytes: int | None) -> str:
    return f"kept within {human_bytes(max_bytes)}" if max_bytes else "not limited"


def watched_text(state: Mapping[str, Any]) -> str:
    """What the process that watches folders told last."""
    if "pending" not in state:
        return "just beginning"
    away = f", of which {state['away']} gone or empty" if state["away"] else ""
    return (
        f"{state['folders']} paths{away} by process {state['pid']}; {state['pending']} changes "
        f"pending, {state['vanished']} files gone but not yet forgotten"
    )


def edition_text(edition: Mapping[str, Any]) -> str:
    """One edition of memories in a line."""
    memory, made = edition["memory"], edition["fingerprint"]
    name = made.get("model", made.get("weights", ""))
    how = f"{memory.get('selection')}, {memory.get('budget')}, {made.get('codec')}"
    return f"{name} ({how}): {edition['warm']} memories, {human_bytes(edition['bytes'])}"


def echo_memorized(done: MemorizeReport, *, dry_run: bool = False, verbose: bool = False) -> None:
    """What a run over files did, or would do; failures go to stderr."""
    for error in done.failed:
        click.echo(f"Failed: {scrub_line(error.path)}: {scrub_line(error.reason)}", err=True)
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
    if done.vanished and not done.pruned:
        note("Files that vanished are still remembered; --prune forgets them.")


def echo_answer(
    steps: Iterator[Step], stopped: Callable[[], bool] = lambda: False
) -> tuple[Spans, Timings | None]:
    """Print an answer as it grows; the references it drew on, and what it took.

    Args:
        stopped: asked after each token; the answer ends when it says so.
    """
    spans: Spans = {}
    timings = None
    with closing(steps):
        for step in steps:
            click.echo(scrub(step.text), nl=False)
            spans[step.span], timings = step.sources, step.timings
            if stopped():
                click.echo(" …", nl=False)
                break
    click.echo()
    return spans, timings


def echo_references(hits: Iterable[Hit]) -> None:
    """Distance and place of each reference, and how it begins."""
    for hit in hits:
        click.echo(f"{hit.distance:.3f}  {cite(hit, hit.store)}")
        dim(f"       {snippet(hit.text)}")


def echo_sources(spans: Spans) -> None:
    """Every reference of an answer once, those of the first spans first."""
    echo_references(dict.fromkeys(hit for hits in spans.values() for hit in hits))


def findings_json(found: CheckReport, done: RepairReport | None) -> dict[str, Any]:
    """What ``check`` found; with a repair, what was damaged before and what became of it."""
    answer = {
        "sound": found.sound,
        "damages": [vars(damage) for damage in found.damages],
        "documents": found.documents,
        "quarantined": found.quarantined,
        "references": found.references,
        "memories": found.memories,
    }
    if done:
        answer["repaired"] = {
            "damages": [vars(damage) for damage in done.found.damages],
            "documents": done.found.documents,
            "lost": done.lost,
            "cold": len(done.cold),
        }
    return answer


def echo_findings(found: CheckReport, done: RepairReport | None) -> None:
    for damage in done.found.damages if done else found.damages:
        place = f"{scrub_line(damage.path)}: " if damage.path else ""
        click.echo(f"Damaged {damage.part}: {place}{scrub_line(damage.detail)}")
    if done and done.cold:
        click.echo(f"{len(done.cold)} memories were taken away, to be made again from the text.")
    for path in done.lost if done else ():
        click.echo(f"Lost in part: {scrub_line(path)}. Memorize the file again.")
    for path, count in found.quarantined.items():
        click.echo(f"In quarantine: {count} references of {scrub_line(path)}. Memorize it again.")
    for damage in found.damages if done else ():
        click.echo(f"Still damaged {damage.part}: {scrub_line(damage.detail)}")
    if found.damages and not done:
        click.echo("Run m3mlx check --repair to mend what can be mended.", err=True)
    click.echo(
        f"Checked {found.references} references and {found.memories} memories: "
        f"{'sound' if found.sound else 'damaged'}"
    )
