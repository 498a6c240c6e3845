"""What the converters' command lines share: arguments, a bar on stderr, errors in one line."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from m3mlx.cli.options import json_option
from m3mlx.cli.render import Progress
from m3mlx.errors import ConvertError

from .check import Proof
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


class _Converter(click.Command):
    def main(self, *args: Any, **settings: Any) -> Any:
        """Where the module is the program: a ConvertError is one line and exit code 1."""
        try:
            return super().main(*args, **settings)
        except ConvertError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)


def converter(*options: Callable[[Callable], Callable]) -> Callable[[Callable], click.Command]:
    """A command that takes SOURCE and OUT, and prints OUT when it is done."""

    def decorate(convert: Callable[..., Proof]) -> click.Command:
        @click.command(cls=_Converter, help=convert.__doc__)
        @click.argument("source", type=click.Path(path_type=Path))
        @click.argument("out", type=click.Path(path_type=Path))
        @functools.wraps(convert)
        def command(source: Path, out: Path, as_json: bool, **arguments: Any) -> None:
            bar = Progress()
            try:
                proof = convert(
                    source,
                    out,
                    progress=lambda done, total: bar(f"converting {source.name}", done, total),
                    **arguments,
                )
            finally:
                bar.close()
            if as_json:
                click.echo(json.dumps({"out": str(out), **proof._asdict()}, indent=2))
            else:
                click.echo(proof, err=True)
                click.echo(out)

        for option in (json_option, *reversed(options)):
            command = option(command)
        return command

    return decorate
