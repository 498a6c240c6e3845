"""Follow folders: watch, and ``memorize --watch``."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..config import DEBOUNCE, GRACE, RESCAN, Options
from ..text import scrub_line
from .options import (
    PATH,
    WRITING,
    add_options,
    choose_model,
    command,
    document_options,
    encrypt_options,
    memory_options,
    open_assistant,
    set_on_signals,
    yes_option,
)
from .render import note

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..watch import Event

_NICENESS = 10  # other work on the machine goes first
_WORDS = {
    "added": "added {path}",
    "changed": "changed {path}",
    "renamed": "renamed {detail} to {path}",
    "vanished": "gone {path}; it will be forgotten unless it returns",
    "forgotten": "forgot {path}, its file is gone",
    "failed": "Failed: {path}: {detail}",
    "waiting": "Waiting: {detail}",
    "away": "{path} is gone or empty; its documents are kept",
    "back": "{path} is back",
    "polling": "The system does not report changes ({detail}); checking every half minute instead.",
}
_NOTES = ("failed", "waiting", "away", "back", "polling")  # printed to stderr


@command("m3mlx watch notes --grace 300")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH…")
@document_options
@add_options(
    debounce=("Seconds a file must be unchanged to be read.", click.FloatRange(0, 3600), DEBOUNCE),
    grace=("Seconds after which a vanished file is forgotten.", click.FloatRange(0), GRACE),
    rescan=("Seconds between checks of all files.", click.FloatRange(1), RESCAN),
)
@encrypt_options
@memory_options(*WRITING)
@yes_option
def watch(
    paths: tuple[str, ...],
    reading: dict[str, Any],
    encrypt: str | None,
    options: Options,
    yes: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Follow folders: memorize what changes, forget what is gone.

    Ctrl-C or SIGTERM ends it. With --json each event is a line of JSON."""
    with open_assistant(choose_model(options, yes), encrypt=encrypt) as assistant:
        follow(assistant, paths, as_json=as_json, **reading, **settings)


def follow(
    assistant: Assistant, paths: tuple[str, ...], *, as_json: bool = False, **settings: Any
) -> None:
    """Follow paths until the process is interrupted; ``settings`` are those of ``Watcher``."""
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
    with set_on_signals(stop, signal.SIGINT, signal.SIGTERM):
        note(f"Watching {', '.join(scrub_line(str(top)) for top in watcher.tops)}. Ctrl-C ends it.")
        watcher.run()
    note("Stopped watching.")
