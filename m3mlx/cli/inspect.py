"""A look inside: inspect, and the page of ``ask --inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Options
from ..text import scrub_line
from .options import WRITING, common_options, example, json_option, memory_options, open_assistant
from .render import echo_json, note


@click.command(
    epilog=example(
        "m3mlx inspect notes/house.md -o house.html", "m3mlx inspect notes/house.md#1 -o house.png"
    )
)
@click.argument("name", metavar="DOCUMENT[#N]")
@click.option(
    *("-o", "--output"),
    type=click.Path(dir_okay=False, path_type=Path),
    default="memory.html",
    show_default=True,
    metavar="OUT.html|OUT.png",
    help="Where the page, or picture, is written.",
)
@memory_options(*WRITING)
@json_option
@common_options
def inspect(name: str, output: Path, options: Options, as_json: bool) -> None:
    """Show which tokens of a document its memories hold, on an HTML page or as a picture.

    DOCUMENT is a path or id; #N behind it shows its reference number N alone."""
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
        echo_json({"page": str(output)})
    else:
        click.echo(scrub_line(str(output)))


def write_page(path: Path, page: bytes) -> None:
    """Write a page or picture that only its owner can read: it holds what documents say."""
    from ..files import os_errors_as_store_errors, replacing

    with os_errors_as_store_errors(path), replacing(path) as new:
        new.write_bytes(page)
    if path.suffix == ".html":
        note(f"Open {scrub_line(str(path))} in a browser; it asks for nothing outside itself.")
