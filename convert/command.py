"""What the converters' command lines share: arguments, a bar on stderr, errors in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from m3mlx.errors import ConvertError

from .writer import DTYPES, GROUP_SIZES, QUANTIZED_BITS


def dtype_option(default: str | None) -> Callable[[Callable], Callable]:
    return click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=default,
        show_default=True,
        help="Type of the weights." if default else "Type of the weights.  [default: SOURCE's]",
    )


def storage_options(dtype: str | None) -> Callable[[Callable], Callable]:
    """-q, --q-bits, --q-group-size and --dtype, as mlx-lm's converter has them."""

    def decorate(command: Callable) -> Callable:
        for option in (
            dtype_option(dtype),
            click.option("-q", "--quantize", is_flag=True, help="Quantize matrices, for MLX."),
            click.option(
                "--q-bits",
                type=click.Choice(QUANTIZED_BITS),
                default=4,
                show_default=True,
                help="Bits per weight.",
            ),
            click.option(
                "--q-group-size",
                type=click.Choice(GROUP_SIZES),
                default=64,
                show_default=True,
                help="Weights per group.",
            ),
        ):
            command = option(command)
        return command

    return decorate


check_option = click.option(
    "--check/--no-check",
    default=None,
    help="Compare logits with PyTorch's.  [default: where torch is installed]",
)


def converter(*options: Callable[[Callable], Callable]) -> Callable[[Callable], click.Command]:
    """A command that takes SOURCE and OUT, and prints OUT when it is done."""

    def decorate(convert: Callable[..., Any]) -> click.Command:
        @click.command(help=convert.__doc__)
        @click.argument("source", type=click.Path(path_type=Path))
        @click.argument("out", type=click.Path(path_type=Path))
        @functools.wraps(convert)
        def command(source: Path, out: Path, **arguments: Any) -> None:
            from rich.console import Console
            from rich.progress import Progress

            try:
                with Progress(console=Console(stderr=True), transient=True) as bars:
                    task = bars.add_task(f"Converting {source.name}", total=None)
                    arguments["progress"] = lambda done, total: bars.update(
                        task, completed=done, total=total
                    )
                    said = convert(source, out, **arguments)
            except ConvertError as error:
                click.echo(f"Error: {error}", err=True)
                sys.exit(1)
            if said:
                click.echo(said, err=True)
            click.echo(out)

        for option in options:
            command = option(command)
        return command

    return decorate
