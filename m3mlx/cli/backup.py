"""Command backup."""

from __future__ import annotations

from pathlib import Path

import click

from ..text import scrub_line
from .options import command, open_assistant
from .render import Progress, echo_json, human_bytes, note, written_to

_folder = click.Path(file_okay=False, path_type=Path)


@command("m3mlx backup work work-backup")
@click.argument("source", type=_folder, metavar="STORE")
@click.argument("folder", type=_folder, metavar="FOLDER")
def backup(source: Path, folder: Path, as_json: bool) -> None:
    """Copy a store, also one in use.

    The next time only what is new is copied.
    """
    from ..store import MemoryStore

    with open_assistant() as assistant:
        done = MemoryStore.backup(
            source.expanduser(),
            folder.expanduser(),
            Progress.of_context(),
            passphrase=assistant.passphrase,
        )
    if as_json:
        echo_json(written_to(done, "folder"))
        return
    click.echo(
        f"{scrub_line(done.folder)} has {done.documents} documents and {done.references} "
        f"references, {human_bytes(done.bytes)}: {done.copied} memories copied, "
        f"{done.unchanged} unchanged"
    )
    if done.cold:
        note(f"{done.cold} memories could not be read; they are written again from the text.")
