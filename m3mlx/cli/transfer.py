"""Commands that carry documents from one store to another: export, import, keygen."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Options
from ..text import scrub_line
from .options import (
    common_options,
    encrypt_options,
    example,
    json_option,
    memory_options,
    open_assistant,
)
from .render import Progress, echo_json, human_bytes, note


@click.command(epilog=example("m3mlx export notes.m3 notes --sign mine.key"))
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("names", nargs=-1, metavar="[PATH|ID]…")
@click.option("--sign", "key", metavar="KEY", help="Sign with the private key in this file.")
@json_option
@common_options
def export(file: Path, names: tuple[str, ...], key: str | None, as_json: bool) -> None:
    """Write documents with their memories to one file: all, or those named."""
    from ..export import transfer

    with open_assistant() as assistant:
        done = transfer.export_documents(assistant, file, names, key=key)
    if as_json:
        echo_json(vars(done))
        return
    click.echo(
        f"Exported {done.documents} documents, {done.references} references and "
        f"{done.memories} memories to {scrub_line(done.file)} ({human_bytes(done.bytes)})"
    )
    if done.signer:
        click.echo(f"Signed by {done.signer}")
    note("The file holds the text of the documents, and is not encrypted.")


@click.command(
    "import", epilog=example("m3mlx import notes.m3 --store other --verify-key mine.key.pub")
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--replace", is_flag=True, help="Where a path has other content here, take the file's."
)
@click.option("--cold", is_flag=True, help="Take no memories; write each at its first use.")
@click.option(
    "--verify-key",
    "trusted",
    multiple=True,
    metavar="KEY",
    help="Refuse what is not signed by this public key, or the one in this file.",
)
@encrypt_options
@memory_options("encoder")
@json_option
@common_options
def import_file(
    file: Path,
    replace: bool,
    cold: bool,
    trusted: tuple[str, ...],
    encrypt: str | None,
    options: Options,
    as_json: bool,
) -> None:
    """Add the documents of an exported file to the store."""
    from ..export import transfer

    with open_assistant(options, encrypt=encrypt) as assistant:
        done = transfer.import_documents(
            assistant,
            file,
            replace=replace,
            cold=cold,
            trusted=trusted,
            progress=Progress.of_context(),
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
        note("What has other content here was kept as it is here; --replace takes the file's.")
    if done.embedded:
        note("The vectors were made again, because this store has another encoder.")
    if done.references > done.memories and not cold:
        note("References without a memory for the store's model get it at their first use.")


@click.command(epilog=example("m3mlx keygen mine.key"))
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@json_option
@common_options
def keygen(file: Path, as_json: bool) -> None:
    """Make a key to sign exported files with, and print its public half."""
    from ..export import signature

    public = signature.new_key(file)
    if as_json:
        echo_json({"file": str(file), "public": public})
        return
    click.echo(public)
    note(f"Keep {file} to yourself; give {file}.pub to those who import what you sign.")
