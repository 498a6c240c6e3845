"""The command line: parse, call ``Assistant``, show.

Results go to stdout; progress, notes and errors to stderr. Exit codes: 0, 1 for bad data,
2 for bad flags, 130 after Ctrl-C. Heavy modules are imported inside the commands, so that
``--help`` is quick.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import click

from .. import __version__
from ..errors import M3Error
from ..text import scrub_line
from . import (
    answers,
    backup,
    bench,
    chat,
    conversion,
    documents,
    evaluate,
    facts,
    inspect,
    machine,
    parity,
    serve,
    sessions,
    train,
    transfer,
    watch,
)
from .options import COMMON, is_verbose

_NARROW = 52  # columns


class _Formatter(click.HelpFormatter):
    """In a narrow terminal, what an option does stands below its name."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        super().write_dl(rows, col_max if self.width >= _NARROW else 8, col_spacing)


click.Context.formatter_class = _Formatter  # of all commands; click has no other way


class _Commands(click.Group):
    """Turns exceptions into a line on stderr and an exit code; nothing else does."""

    def main(self, *args: Any, **settings: Any) -> Any:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # None when closed
                stream.reconfigure(errors="replace")
        if (columns := shutil.get_terminal_size().columns) < _NARROW:
            settings["terminal_width"] = columns  # click's help would be wider
        try:
            code = super().main(*args, **{**settings, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            message, code = error.format_message(), error.exit_code
            if isinstance(error, click.UsageError):
                command = error.ctx.command_path if error.ctx else "m3mlx"
                end = "" if message.endswith("?") else "."
                message = f"{message.rstrip('.')}{end} See {command} --help."
            _echo_error(message)
        except click.Abort as stop:
            if sys.stderr and sys.stderr.isatty():
                click.echo(err=True)  # behind the ^C that the terminal shows
            click.echo(str(stop) or "Interrupted.", err=True)
            code = 130
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are needed

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, self.commands))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{command.name:{longest}}", command.get_short_help_str(limit=70))
                        for command in commands
                    ]
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Environment"):
            formatter.write_dl(ENVIRONMENT)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, EOFError):
            raise
        except (M3Error, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe is gone, and click ends silently
            _echo_error(str(error))
        except Exception as error:
            _echo_error(
                f"unexpected {type(error).__name__}: {error}. This is a bug in m3mlx; "
                f"please report it with what the same command prints with -v."
            )
        ctx.exit(1)


def _echo_error(message: str) -> None:
    if is_verbose() and sys.exc_info()[0]:
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(f"Error: {scrub_line(message)}", err=True)


ENVIRONMENT = (
    ("M3MLX_MODEL", "stands for --model"),
    ("M3MLX_STORE", "stands for --store"),
    ("M3MLX_HOME", "one folder for models and store, in place of the system's"),
    ("M3MLX_PASSPHRASE", "of encrypted stores"),
    ("M3MLX_TOKEN", "which clients of serve and mcp --http must give"),
)
GROUPS = {  # as people need them
    "Ask": (answers.ask, chat.chat, documents.recall, sessions.sessions, answers.demo),
    "Manage documents": (
        *(
            documents.memorize,
            facts.remember,
            facts.facts,
            watch.watch,
            documents.list_documents,
            documents.status,
        ),
        *(documents.forget, inspect.inspect),
    ),
    "Serve": (serve.serve, serve.mcp),
    "Models": (
        *(machine.models, evaluate.eval_file, bench.bench, conversion.convert, parity.parity),
        *(train.train, train.fuse),
    ),
    "Maintain": (
        *(machine.doctor, documents.check, documents.compact, backup.backup, transfer.export),
        *(transfer.import_file, transfer.keygen, machine.completion),
    ),
}


@click.group(
    "m3mlx",
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(__version__, prog_name="m3mlx", message="%(prog)s %(version)s")
def main() -> None:
    """A language model on your computer that remembers your documents as explicit memory."""
    if not is_verbose():  # libraries print to stderr by themselves
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if not (sys.stderr and sys.stderr.isatty()):
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


main.params[:0] = COMMON
for commands in GROUPS.values():
    for command in commands:
        main.add_command(command)
