"""The servers: a page and OpenAI's interface, and MCP."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..config import Options
from ..errors import M3Error
from .options import (
    READING,
    add_options,
    choose_model,
    command,
    memory_options,
    open_assistant,
    read_first_line,
    size,
    yes_option,
)
from .render import note

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..serve import Settings


def server_options(port: int) -> Callable[[Callable[..., Any]], Any]:
    """Where a server listens and what its clients may do; ``port`` is a default."""
    return add_options(
        host=("Address to listen on; any but loopback needs a token.", "ADDRESS", "127.0.0.1"),
        port=("Port to listen on; 0 takes a free one.", click.IntRange(0, 65535), port),
        token_file=("File whose first line is the clients' API key (or M3MLX_TOKEN).", "FILE"),
        allow_host=("Host name by which other machines call this one.", ["NAME"]),
        root=("Let clients have files below this folder read; may be repeated.", ["FOLDER"]),
        cold="Write each memory at its first use, and not also while nothing is asked.",
    )


def _settings(
    host: str,
    port: int,
    token_file: str | None,
    allow_host: tuple[str, ...],
    root: tuple[str, ...],
    **others: Any,
) -> Settings:
    from ..serve import Settings

    if token_file is None:
        token = os.environ.get("M3MLX_TOKEN") or None
    else:
        token = read_first_line(token_file, "token").strip()
    return Settings(host, port, token, allow_host, root, **others)


@command("m3mlx serve --root notes", as_json=False)
@server_options(port=8642)
@add_options(
    max_upload=("Maximum size of an upload; none for no limit.", size, "50MB"),
    cache_size=("Maximum size of the caches of conversations; none keeps the last one only.", size),
    queue=("Maximum number of waiting requests; more are refused.", click.IntRange(min=1), 16),
    collection=("Search, list and forget in this collection only, and add to it.", "NAME"),
)
@memory_options("also", *READING)
@yes_option
def serve(
    max_upload: int,
    cache_size: int | None,
    queue: int,
    options: Options,
    yes: bool,
    **settings: Any,
) -> None:
    """Serve a chat page, and OpenAI's interface."""
    try:
        from ..serve import serve as run
    except ModuleNotFoundError as error:
        raise _missing("serve", error) from error
    settings |= {"upload_bytes": max_upload or 2**40, "cache_bytes": cache_size, "waiting": queue}
    made = _settings(**settings)
    run(_assistant_maker(choose_model(options, yes)), made, _announce)
    _exit()


@command("m3mlx mcp --root notes", as_json=False)
@add_options(http="Serve by HTTP instead of standard input and output.")
@server_options(port=8643)
@memory_options(*READING)
@yes_option
def mcp(http: bool, options: Options, yes: bool, **settings: Any) -> None:
    """Serve documents and answers to programs that speak MCP."""
    try:
        from ..serve import serve as run
        from ..serve.mcp import serve_stdio
    except ModuleNotFoundError as error:
        raise _missing("mcp", error) from error
    make = _assistant_maker(choose_model(options, yes))
    if http:
        run(make, _settings(**settings), _announce, mcp=True)
    else:
        serve_stdio(make, settings["root"])
    _exit()


def _exit() -> NoReturn:
    """End the process at once. Everything is closed, and MLX, used by another thread, aborts one
    process in twenty when its own threads are taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _announce(address: str) -> None:
    note(f"Serving on {address}; Ctrl-C ends it.")


def _assistant_maker(options: Options) -> Callable[[], Assistant]:
    """Return a function that gives the command's assistant on whatever thread calls it."""
    with ExitStack() as opened:  # now: other threads lack the context that has the options
        assistant = opened.enter_context(open_assistant(options))
        opened.pop_all()
    return lambda: assistant


def _missing(extra: str, error: ModuleNotFoundError) -> M3Error:
    return M3Error(f"{error.name} is not installed: pip install 'm3mlx[{extra}]'")
