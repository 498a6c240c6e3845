"""Options, progress bar and error messages of the converters' command lines."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from m3mlx.config import Progress
from m3mlx.errors import ConvertError
from m3mlx.text import scrub_line

from .check import Proof
from .writer import DTYPES, GROUP_SIZES, QUANTIZED_BITS

Decorator = Callable[[Callable], Callable]
COUNT = click.IntRange(min=1)


def _all_of(*options: Decorator) -> Decorator:
    return lambda command: functools.reduce(lambda made, option: option(made), options, command)


class _Layers(click.ParamType):
    """Layer numbers as "0-21", "0,2,4" or a mixture."""

    name = "LAYERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        layers: list[int] = []
        try:
            for part in value.split(","):
                first, _, last = part.partition("-")
                layers += range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f'{value!r} is not of the form "0-21" or "0,2,4".', param, ctx)
        return layers


check_option = click.option(
    "--check/--no-check",
    default=None,
    help="Compare logits with PyTorch's.  [default: where torch is installed]",
)
memory_options = _all_of(  # fields of ``MemorySettings``, each None where it is not given
    click.option("--memories", type=COUNT, help="Memories read by a chunk."),
    click.option("--chunk-tokens", type=COUNT, help="Tokens between two retrievals."),
    click.option("--reference-tokens", type=COUNT, help="Longest reference."),
    click.option("--prefix", help="Constant text before everything: <s>Reference:."),
    click.option("--tokens-per-head", type=COUNT, help="Tokens that each KV head keeps."),
    click.option("--memory-layers", type=_Layers(), help="Layers that hold memories: 0-21."),
)


def dtype_option(default: str | None) -> Decorator:
    return click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=default,
        show_default=True,
        help="Type of the weights." if default else "Type of the weights.  [default: SOURCE's]",
    )


def storage_options(dtype: str | None) -> Decorator:
    """Add -q, --q-bits, --q-group-size and --dtype, named as in mlx-lm's converter."""
    option = functools.partial(click.option, show_default=True)
    sizes, bits = click.Choice(GROUP_SIZES), click.Choice(QUANTIZED_BITS)
    return _all_of(
        option("--q-group-size", type=sizes, default=64, help="Weights per group."),
        option("--q-bits", type=bits, default=4, help="Bits per weight."),
        click.option("-q", "--quantize", is_flag=True, help="Quantize matrices, for MLX."),
        dtype_option(dtype),
    )


def converter(*options: Decorator) -> Callable[[Callable[..., Proof]], click.Command]:
    """Make a command that converts SOURCE to OUT and prints OUT, or JSON."""

    def decorate(convert: Callable[..., Proof]) -> click.Command:
        @click.command(cls=_Converter, help=convert.__doc__)
        @click.argument("source", type=click.Path(path_type=Path))
        @click.argument("out", type=click.Path(path_type=Path))
        @_all_of(*options, click.option("--json", "as_json", is_flag=True, help="Print JSON."))
        @functools.wraps(convert)
        def command(source: Path, out: Path, as_json: bool, **arguments: Any) -> None:
            with _progress_bar() as progress:
                proof = convert(source, out, progress=progress, **arguments)
            if as_json:
                click.echo(json.dumps({"output": str(out), **proof._asdict()}, indent=2))
            else:
                click.echo(proof, err=True)
                click.echo(out)

        return command

    return decorate


class _Converter(click.Command):
    def main(self, *args: Any, **settings: Any) -> Any:
        """Run as a program: a ConvertError becomes one line on stderr and exit code 1."""
        try:
            return super().main(*args, **settings)
        except ConvertError as error:
            click.echo(f"Error: {scrub_line(str(error))}", err=True)
            sys.exit(1)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show a bar on stderr if it is a terminal; it goes away at the end."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    hidden = not (sys.stderr and sys.stderr.isatty())
    with Progress(console=Console(stderr=True), disable=hidden, transient=True) as bars:
        task = bars.add_task("")

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=escape(what), completed=done, total=total)

        yield report
