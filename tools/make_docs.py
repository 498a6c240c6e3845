"""Write docs/cli.md, the command line reference, from what ``--help`` prints.

python tools/make_docs.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from m3mlx.cli import main

FILE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Command line

What `--help` prints for every command. This page is generated: change the help texts in
`m3mlx/cli/` and run `make docs`.
"""


def helps(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Path and help text of a command and of all commands below it."""
    settings = {**command.context_settings, "terminal_width": 100}
    with click.Context(command, parent=parent, info_name=command.name, **settings) as ctx:
        yield ctx.command_path, command.get_help(ctx)
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                yield from helps(command.commands[name], ctx)


def reference() -> str:
    """The whole page."""
    found = list(helps(main))
    links = "\n".join(f"- [`{path}`](#{path.replace(' ', '-')})" for path, _ in found)
    parts = [f"## {path}\n\n```\n{text}\n```" for path, text in found]
    return "\n\n".join([HEAD.rstrip(), links, *parts]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    if not parser.parse_args().check:
        FILE.write_text(reference(), "utf-8")
    elif FILE.read_text("utf-8") != reference():
        sys.exit("docs/cli.md is stale: run make docs")
