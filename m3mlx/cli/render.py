"""Output of the commands: progress, tables, places, numbers."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..text import cite, scrub, scrub_line
from .pace import Pace

if TYPE_CHECKING:
    from ..chat.step import Step, Timings
    from ..documents import LeftOut
    from ..memorize.run import MemorizeReport
    from ..store import Hit

SNIPPET = 160  # characters
_SENTENCE = 4  # words; fewer are a heading, as is what names sections
_PATH = 32  # characters of a path that tell it apart


class Progress:
    """What is going on, on stderr, if that is a terminal; it vanishes when the work is done.

    A task may be followed by ": " and what it is at, which changes while its bar stays.
    """

    @classmethod
    def of_context(cls) -> Progress:
        """The progress of the present command; its end removes it, whatever happened."""
        ctx = click.get_current_context()
        if (key := "m3mlx.progress") not in ctx.meta:
            ctx.meta[key] = cls()
            ctx.find_root().call_on_close(ctx.meta[key].close)
        return ctx.meta[key]

    def __init__(self) -> None:
        self._bars: Any = None
        self._pace = Pace()
        self._what = self._between = ""
        self._muted = False

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._muted or not (sys.stderr and sys.stderr.isatty()):
            return
        if total and done >= total:
            if not self._between:
                self.close()
                return
            what, done, total = self._between, 0, 0
        if self._bars is None:
            self._bars = self._open()
        task, _, detail = scrub_line(what).partition(": ")
        if task != self._what:
            for known in self._bars.task_ids:
                self._bars.remove_task(known)
            self._bars.add_task(task[:1].upper() + task[1:], total=total or None, detail="")
            self._what, self._pace = task, Pace()
        self._pace.note(done, total)
        self._bars.update(
            self._bars.task_ids[0], completed=done, total=total or None, detail=detail
        )

    @contextmanager
    def until_quiet(self, what: str) -> Iterator[Callable[[], None]]:
        """Show this between other tasks, until the function that is yielded is called.

        It closes the progress, and nothing is shown before the block ends.
        """
        self._between = what
        self(what, 0, 0)

        def quiet() -> None:
            self.close()
            self._muted = True

        try:
            yield quiet
        finally:
            self._between, self._muted = "", False
            self.close()

    def _open(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.table import Column
        from rich.text import Text

        class Bar(BarColumn):
            """Nothing for a task whose length is not known."""

            def render(self, task: Task) -> Any:
                return super().render(task) if task.total else Text("")

        class Share(TextColumn):
            def render(self, task: Task) -> Text:
                return super().render(task) if task.total else Text("")

        class Remaining(TimeElapsedColumn):
            """The time left, or the time taken where nobody knows how long it takes.

            Rich's own forgets the speed of a task whenever its total changes.
            """

            def render(column, task: Task) -> Text:
                if not task.total:
                    return super().render(task)
                left = self._pace.left()
                shown = "--:--" if left is None else _clock(left)
                return Text(shown, style="progress.remaining")

        detail = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            Bar(bar_width=20),
            Share("{task.percentage:>3.0f} %"),
            Remaining(),
            TextColumn("{task.fields[detail]}", markup=False, style="dim", table_column=detail),
            # room for the ^C that a terminal shows, which would break the line
            console=Console(file=sys.stderr, width=shutil.get_terminal_size().columns - 3),
            transient=True,
            expand=True,
        )
        bars.start()
        return bars

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._what = None, ""


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
        if minutes >= 60
        else f"{minutes:02}:{rest:02}"
    )


def echo_json(value: object) -> None:
    """Print JSON in ASCII, which every terminal's encoding can show."""
    click.echo(json.dumps(value, indent=2))


def written_to(report: object, place: str) -> dict[str, Any]:
    """A report as JSON, with the file or folder that was written as ``output``."""
    rest = dict(vars(report))
    return {"output": rest.pop(place), **rest}


def echo_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], optional: Sequence[str] = ()
) -> None:
    """Print a table, numbers right-aligned. Only a terminal limits its width.

    Paths, in a column of that name, are then shortened in the middle.

    Args:
        optional: columns that are left out where there is no room, the first of them first, and
            where they are empty.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    shown = [c for c in columns if c not in optional or any(row[c] != "" for row in cells)]
    width = _columns()
    if width:
        wanted = min(_PATH, width // 3) if "path" in columns else -2
        for column in optional:
            if _room(shown, cells, width) < wanted:
                shown = [name for name in shown if name != column]
        for row in cells:
            if "path" in row:
                row["path"] = _shortened(str(row["path"]), max(_room(shown, cells, width), 8))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        right = cells and not isinstance(cells[0][column], str)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(scrub_line(str(row[column]))) for column in shown))
    Console(file=sys.stdout, width=width or 10_000).print(table)


def _room(columns: Sequence[str], rows: Sequence[dict[str, object]], width: int) -> int:
    """Return how many characters of a line the other columns leave for a path."""
    others = [name for name in columns if name != "path"]
    used = sum(max([len(name), *(len(str(row[name])) for row in rows)]) for name in others)
    return width - used - 3 * len(others) - 2


def _shortened(path: str, room: int) -> str:
    """Shorten a path in the middle; its end tells more than its beginning."""
    if len(path) <= room:
        return path
    head = (room - 1) // 3
    return f"{path[:head]}…{path[len(path) - (room - 1 - head) :]}"


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
    click.echo(_stored_text(done, dry_run))
    if done.left_out:
        note(_left_out_text(done.left_out))
    if done.vanished and not done.pruned:
        note("Documents of vanished files are kept; --prune forgets them.")


def _stored_text(done: MemorizeReport, dry_run: bool) -> str:
    """What was stored and written, or would be."""
    if not dry_run:
        memories = f", {human_bytes(done.bytes)} of memories" if done.memories else ""
        return f"{done.references} references stored{memories}, {human_seconds(done.seconds)}"
    about = "about " if done.estimated else ""
    text = f"{about}{done.references} references would be stored"
    if done.memories:
        text += f", {about}{human_bytes(done.bytes)} of memories written"
    text += f"; all can be asked after about {human_seconds(done.stored_seconds)}"
    return text + (f", written after {human_seconds(done.seconds)}" if done.memories else "")


def _left_out_text(left_out: Sequence[LeftOut]) -> str:
    """Count by kind what in folders was not read, in one line: first what can be read somehow."""
    kinds = Counter((not left.advice, left.kind, left.advice) for left in left_out)
    counted = (f"{kinds[key]} {key[1]}{f' ({key[2]})' if key[2] else ''}" for key in sorted(kinds))
    return f"Left out: {scrub_line('; '.join(counted))}."


@dataclass
class Shown:
    """An answer that was printed.

    Attributes:
        spans: the references that each span of 64 tokens drew on.
        texts: the words of each span.
        shares: of the attention, of each reference in the last span that drew on it.
        used: the references that the answer used, of those that it read.
    """

    spans: dict[int, list[Hit]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    timings: Timings | None = None
    shares: dict[Hit, float] = field(default_factory=dict)
    used: set[Hit] = field(default_factory=set)

    @property
    def sources(self) -> list[Hit]:
        """Every reference once: those that were used, then by their shares of the attention."""
        hits = dict.fromkeys(hit for hits in self.spans.values() for hit in hits)
        return sorted(hits, key=lambda hit: (hit not in self.used, -self.shares.get(hit, 0.0)))

    def end(self, step: Step) -> None:
        """Note what the last step of a span drew on."""
        self.spans[step.span] = step.sources
        self.shares |= zip(step.sources, step.shares, strict=False)
        self.used |= {hit for hit, used in zip(step.sources, step.used, strict=True) if used}


def echo_answer(
    steps: Generator[Step], stopped: Callable[[], bool] = lambda: False, *, think: bool = False
) -> Shown:
    """Print an answer as it grows, and return it.

    Args:
        think: print thoughts too, on stderr, dimmed.
        stopped: called after each token; the answer ends if it returns True.
    """
    shown, thought, begun, last = Shown(), False, False, None
    with Progress.of_context().until_quiet("answering") as quiet, closing(steps):
        try:
            for step in steps:
                if think and thought and not step.thought:
                    click.echo("\n", err=True)
                thought = step.thought
                if step.text and not begun and (think or not thought):
                    quiet()
                    begun = True
                if not thought:
                    click.echo(scrub(step.text), nl=False)
                    shown.texts[step.span] = shown.texts.get(step.span, "") + step.text
                elif think:
                    click.echo(click.style(scrub(step.text), dim=True), nl=False, err=True)
                if last and last.span != step.span:
                    shown.end(last)
                last, shown.timings = step, step.timings
                if stopped():
                    quiet()
                    click.echo(" …", nl=False)
                    thought = False
                    break
        except KeyboardInterrupt:
            if begun:
                click.echo()
            raise
    click.echo()
    if last:
        shown.end(last)
    if thought:  # and nobody has stopped it
        note("The model was still thinking. Allow a longer answer with --max-tokens.")
    return shown


def short_path(path: str) -> str:
    """Return a path as one would type it: from where one stands, or from the home folder."""
    if not os.path.isabs(path):
        return path  # the name of a text or conversation
    for top, short in ((os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if top != os.sep and path.startswith(os.path.join(top, "")):
            return short + path[len(os.path.join(top, "")) :]
    return path


def place(hit: Hit) -> str:
    """Cite the place of a reference, by a short path."""
    here = SimpleNamespace(path=short_path(hit.path), page=hit.page, line=hit.line)
    return cite(here, hit.store and short_path(hit.store))


def echo_references(hits: Iterable[Hit]) -> None:
    """Print distance, place and beginning of each reference."""
    for hit in hits:
        click.echo(f"{hit.distance:.3f}  {place(hit)}")
        dim(f"       {snippet(hit.text)}")


def echo_sources(shown: Shown, question: str) -> None:
    """Print a line for each reference of an answer: place, what it says to that, and its share.

    Those that were read and not used come last, and are dimmed.
    """
    words = _words(f"{question} {' '.join(shown.texts.values())}")
    width = terminal_width()
    for hit in shown.sources:
        cited = place(hit)
        share = f"{shown.shares[hit]:.0%}" if hit in shown.shares else ""
        unused = "" if hit in shown.used else "not used"
        cited += "".join(f"  {each}" for each in (share, unused) if each)
        text = scrub_line(_closest(hit.text, words))
        room = max(width - len(cited) - 2, 0)
        text = text if len(text) <= room else text[: max(room - 1, 0)] + "…"
        click.echo(f"{cited}  {click.style(text, dim=True)}" if room > 20 else cited)


def terminal_width() -> int:
    """Columns of the terminal; where there is none, enough for a line of text."""
    return _columns() or SNIPPET


def _columns() -> int | None:
    """Columns of the terminal, None where standard output is none."""
    terminal = sys.stdout and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if terminal else None


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def _closest(text: str, words: set[str]) -> str:
    """Return the sentence that shares most with some words; the first of those alike.

    Titles, and what names sections, are none.
    """
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    if len(parts) > 1 and not parts[0].endswith((".", "!", "?", ":")):
        del parts[0]
    sentences = [found for part in parts for found in re.split(r"(?<=[.!?])\s+", part)]
    whole = [s for s in sentences if len(s.split()) >= _SENTENCE and "\u203a" not in s]
    return max(whole or sentences, key=lambda sentence: len(words & _words(sentence)))


def named(hits: Iterable[Hit]) -> str:
    """Name the documents of references by their files, each with its pages or lines."""
    places: dict[str, list[str]] = {}
    for hit in hits:
        at = f"p. {hit.page}" if hit.page is not None else str(hit.line or "")
        places.setdefault(os.path.basename(hit.path) or hit.path, []).append(at)
    texts = []
    for name, found in places.items():
        where = ", ".join(dict.fromkeys(filter(None, found)))
        texts.append(scrub_line(f"{name}:{where}" if where else name))
    return "; ".join(texts)
