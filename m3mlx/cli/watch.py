"""Folders that are followed: watch, and ``memorize --watch``."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ..config import DEBOUNCE, GRACE, RESCAN, Options
from ..text import scrub_line
from .options import (
    WRITING,
    collection_option,
    common_options,
    encrypt_options,
    example,
    json_option,
    memory_options,
    open_assistant,
)
from .render import note

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..watch import Event

_NICENESS = 10  # whatever else runs on the machine goes first
_WORDS = {
    "added": "added {path}",
    "changed": "changed {path}",
    "renamed": "renamed {detail} to {path}",
    "vanished": "gone {path}; it will be forgotten unless it returns",
    "forgotten": "forgot {path}, its file is gone",
    "failed": "Failed: {path}: {detail}",
    "waiting": "Waiting: {detail}",
    "away": "{path} is gone or empty; what is remembered of it is kept",
    "back": "{path} is back",
    "polling": "The system does not report changes ({detail}); looking every half minute instead.",
}
_NOTES = ("failed", "waiting", "away", "back", "polling")  # go to stderr


@click.command(epilog=example("m3mlx watch notes --grace 300"))
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these, as in .gitignore.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these, as in .gitignore.")
@collection_option
@click.option("--cold", is_flag=True, help="Write each memory at its first use.")
@click.option(
    "--debounce",
    type=click.FloatRange(min=0, max=3600),
    default=DEBOUNCE,
    show_default=True,
    help="Seconds that a file must rest before it is read.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=GRACE,
    show_default=True,
    help="Seconds that a file may be gone before it is forgotten.",
)
@click.option(
    "--rescan",
    type=click.FloatRange(min=1),
    default=RESCAN,
    show_default=True,
    help="Seconds between two looks at everything.",
)
@encrypt_options
@memory_options(*WRITING)
@json_option
@common_options
def watch(
    paths: tuple[str, ...],
    encrypt: str | None,
    options: Options,
    as_json: bool,
    **settings: Any,
) -> None:
    """Follow files and folders: memorize what changes, forget what vanishes.

    Ends with Ctrl-C or SIGTERM. With --json each event is a line of JSON."""
    with open_assistant(options, encrypt=encrypt) as assistant:
        follow(assistant, paths, as_json=as_json, **settings)


def follow(
    assistant: Assistant, paths: tuple[str, ...], *, as_json: bool = False, **settings: Any
) -> None:
    """Follow until somebody ends the process; options as of ``Watcher``."""
    from ..watch import Watcher

    def tell(event: Event) -> None:
        if as_json:
            click.echo(json.dumps(event._asdict()))
            return
        line = scrub_line(_WORDS[event.what].format(**event._asdict()))
        if event.what in _NOTES:
            note(line)
        else:
            click.echo(line)

    stop = threading.Event()
    watcher = Watcher(assistant, paths, on_event=tell, stop=stop, **settings)
    with suppress(OSError):  # where the system does not let us
        os.nice(_NICENESS)
    with _ending(stop):
        note(f"Watching {', '.join(scrub_line(str(top)) for top in watcher.tops)}. Ctrl-C ends it.")
        watcher.run()
    note("Stopped watching.")


@contextmanager
def _ending(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` on Ctrl-C or SIGTERM; who cannot wait sends it again."""

    def end(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
