"""The command inspect, and the page of ``ask --inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Options
from ..files import os_errors_as_store_errors, replacing
from ..text import scrub_line
from .options import PATH, WRITING, command, memory_options, open_assistant
from .render import echo_json, note


@command(
    "m3mlx inspect notes/house.md -o house.html", "m3mlx inspect notes/house.md#1 -o house.png"
)
@click.argument("name", type=PATH, metavar="DOCUMENT[#N]")
@click.option(
    *("-o", "--output"),
    type=click.Path(dir_okay=False, path_type=Path),
    default="memory.html",
    show_default=True,
    metavar="OUT.html|OUT.png",
    help="File of the page or picture.",
)
@memory_options(*WRITING)
def inspect(name: str, output: Path, options: Options, as_json: bool) -> None:
    """Show what the memories of a document keep, on a page.

    The page is HTML, or a picture. DOCUMENT is a path or id; #N after it shows its reference
    number N alone."""
    from ..inspect.document import inspect_document
    from ..inspect.page import kept_page
    from ..inspect.picture import kept_picture

    kinds = {".html": lambda kept: kept_page(kept).encode(), ".png": kept_picture}
    if output.suffix.lower() not in kinds:
        raise click.UsageError(f"{output} ends with neither .html nor .png.")
    with open_assistant(options) as assistant:
        kept = inspect_document(assistant, name)
    write_page(output, kinds[output.suffix.lower()](kept))
    if as_json:
        echo_json({"output": str(output)})
    else:
        click.echo(scrub_line(str(output)))


def write_page(path: Path, page: bytes) -> None:
    """Write a page or picture for its owner alone: it shows the text of documents."""
    with os_errors_as_store_errors(path), replacing(path) as new:
        new.write_bytes(page)
    if path.suffix == ".html":
        note(f"Open {scrub_line(str(path))} in a browser; it loads nothing from outside.")
