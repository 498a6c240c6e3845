"""Commands that carry documents from one store to another: export, import, keygen."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Options
from ..text import scrub_line
from .options import PATH, add_options, command, encrypt_options, memory_options, open_assistant
from .render import Progress, echo_json, human_bytes, note, written_to

_file = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")


@command("m3mlx export notes.m3 notes --sign mine.key")
@_file
@click.argument("names", nargs=-1, type=PATH, metavar="[PATH|ID]…")
@add_options(sign=("Sign with the private key in this file.", "KEY"))
def export(file: Path, names: tuple[str, ...], sign: str | None, as_json: bool) -> None:
    """Write documents with their memories to one file."""
    from ..export import transfer

    with open_assistant() as assistant:
        done = transfer.export_documents(assistant, file, names, key=sign)
    if as_json:
        echo_json(written_to(done, "file"))
        return
    click.echo(
        f"Exported {done.documents} documents, {done.references} references and "
        f"{done.memories} memories to {scrub_line(done.file)} ({human_bytes(done.bytes)})"
    )
    if done.signer:
        click.echo(f"Signed by {done.signer}")
    note("The file holds the text of the documents, and is not encrypted.")


@command("m3mlx import notes.m3 --store other --verify-key mine.key.pub", name="import")
@_file
@add_options(
    replace="If a path has other content in the store, take that of the file.",
    cold="Import no memories; write each anew at its first use.",
    verify_key=("Refuse a file not signed by this public key, or the one in a file.", ["KEY"]),
)
@encrypt_options
@memory_options("encoder")
def import_file(
    file: Path,
    replace: bool,
    cold: bool,
    verify_key: tuple[str, ...],
    encrypt: str | None,
    options: Options,
    as_json: bool,
) -> None:
    """Add the documents of an exported file to the store."""
    from ..export import transfer

    progress = Progress.of_context()
    with open_assistant(options, encrypt=encrypt) as assistant:
        done = transfer.import_documents(
            assistant, file, replace=replace, cold=cold, trusted=verify_key, progress=progress
        )
    if as_json:
        echo_json(vars(done))
        return
    for path in done.kept:
        click.echo(f"kept {scrub_line(path)}")
    counts = ("added", "replaced", "unchanged", "kept")
    click.echo(", ".join(f"{len(getattr(done, word))} {word}" for word in counts))
    click.echo(f"{done.references} references, {done.memories} memories imported")
    if done.signer:
        click.echo(f"Signed by {done.signer}")
    if done.kept:
        note("Documents with other content in the store were kept; --replace takes the file's.")
    if done.refused:
        note(f"{done.refused} memories are none that a model makes, and were not taken.")
    if done.embedded:
        note("The vectors were made again, because this store has another encoder.")
    if done.references > done.memories and not cold:
        note("References without a memory for the store's model get it at their first use.")


@command("m3mlx keygen mine.key")
@_file
def keygen(file: Path, as_json: bool) -> None:
    """Make a key to sign exported files with."""
    from ..export import signature

    public = signature.new_key(file)
    if as_json:
        echo_json({"output": str(file), "public": public})
        return
    click.echo(public)
    note(f"Keep {file} to yourself; give {file}.pub to those who import what you sign.")
