"""The servers: a page and OpenAI's interface, and MCP."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ..config import Options
from ..errors import M3Error
from .options import (
    READING,
    Size,
    also_option,
    common_options,
    example,
    memory_options,
    open_assistant,
)
from .render import note

if TYPE_CHECKING:
    from ..assistant import Assistant

roots_option = click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="FOLDER",
    help="Clients may have files below this folder read; may be repeated.",
)


def server_options(port: int) -> Callable[[Callable], Callable]:
    """Where a server listens, and to whom."""

    def decorate(command: Callable) -> Callable:
        for option in (
            click.option(
                "--allow-host",
                "names",
                multiple=True,
                metavar="NAME",
                help="A name under which other machines call this one; may be repeated.",
            ),
            click.option(
                "--token-file",
                metavar="FILE",
                help="First line is what clients give as API key (or M3MLX_TOKEN).",
            ),
            click.option(
                "--port",
                type=click.IntRange(0, 65535),
                default=port,
                show_default=True,
                help="Port.",
            ),
            click.option(
                "--host",
                metavar="ADDRESS",
                default="127.0.0.1",
                show_default=True,
                help="Address to listen on; any but this machine's own needs a token.",
            ),
        ):
            command = option(command)
        return command

    return decorate


@click.command(epilog=example("m3mlx serve --root notes"))
@server_options(port=8642)
@roots_option
@click.option(
    "--max-upload", type=Size(), default="50MB", show_default=True, help="Size of an upload."
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="So many requests may wait.",
)
@click.option(
    "--collection",
    metavar="NAME",
    help="Search, list and forget in this collection only, and add to it.",
)
@also_option
@memory_options(*READING)
@common_options
def serve(
    host: str,
    port: int,
    token_file: str | None,
    names: tuple[str, ...],
    roots: tuple[str, ...],
    max_upload: int,
    queue: int,
    collection: str | None,
    also: tuple[str, ...],
    options: Options,
) -> None:
    """Serve a page to chat on, and OpenAI's interface, on this machine."""
    try:
        from ..serve import Settings
        from ..serve import serve as run
    except ModuleNotFoundError as error:
        raise missing("serve", error) from error
    settings = Settings(
        host=host,
        port=port,
        token=read_token(token_file),
        names=names,
        roots=roots,
        upload_bytes=max_upload or 2**40,
        waiting=queue,
        collection=collection,
    )
    run(assistant_maker(options, also), settings, _serving)
    _leave()


@click.command(epilog=example("m3mlx mcp --root notes"))
@click.option("--http", is_flag=True, help="Serve by HTTP instead of standard input and output.")
@server_options(port=8643)
@roots_option
@memory_options(*READING)
@common_options
def mcp(
    http: bool,
    host: str,
    port: int,
    token_file: str | None,
    names: tuple[str, ...],
    roots: tuple[str, ...],
    options: Options,
) -> None:
    """Serve documents and answers as tools to programs that speak MCP."""
    try:
        from ..serve import Settings
        from ..serve import serve as run
        from ..serve.mcp import serve_stdio
    except ModuleNotFoundError as error:
        raise missing("mcp", error) from error
    make = assistant_maker(options)
    if not http:
        serve_stdio(make, roots)
        _leave()
    token = read_token(token_file)
    settings = Settings(host=host, port=port, token=token, names=names, roots=roots)
    run(make, settings, _serving, mcp=True)
    _leave()


def _leave() -> NoReturn:
    """End the process here. Everything is closed, and MLX, which another thread has used, aborts
    one process in twenty when its own threads are taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _serving(address: str) -> None:
    note(f"Serving on {address}; Ctrl-C ends it.")


def assistant_maker(options: Options, also: Sequence[str] = ()) -> Callable[[], Assistant]:
    """Makes the assistant that the command's options describe, on whatever thread calls it."""
    with ExitStack() as opened:  # its options are the context's, which other threads lack
        assistant = opened.enter_context(open_assistant(options, also=also))
        opened.pop_all()
    return lambda: assistant


def read_token(file: str | None) -> str | None:
    """The token, from a file or the environment."""
    if file is None:
        return os.environ.get("M3MLX_TOKEN") or None
    try:
        token = Path(file).read_text("utf-8").splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "it has no first line"
        raise M3Error(f"{file}: the token cannot be read ({reason})") from error
    return token


def missing(extra: str, error: ModuleNotFoundError) -> M3Error:
    """What to do where a library of an extra is not there."""
    return M3Error(f"{error.name} is not installed: pip install 'm3mlx[{extra}]'")
