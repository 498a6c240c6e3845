"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..config import (
    BUDGETS,
    CODECS,
    MEMORIES,
    MEMORY_MODES,
    REFERENCE_TOKENS,
    RETRIEVALS,
    SELECTIONS,
    Generation,
    Options,
)
from ..errors import M3Error
from .render import Progress

if TYPE_CHECKING:
    from ..assistant import Assistant

_META = "m3mlx."  # of the keys of the context's notes, which all commands share


class _Tokens(click.ParamType):
    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return 0
        try:
            return click.IntRange(1, REFERENCE_TOKENS).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither auto nor 1 to {REFERENCE_TOKENS}.", param, ctx)


class Size(click.ParamType):
    """A number of bytes, such as 500MB or 2GiB; none is 0."""

    name = "bytes|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "none":
            return 0
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", str(value).lower())
        count = 0
        if found:
            number, letter, binary = found.groups()
            count = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter or " "))
        if not 0 < count < 2**63:
            self.fail(f"{value!r} is neither none nor a size such as 500MB or 2GB.", param, ctx)
        return count


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.", ctx, param)
    return value


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep an option for every command; what stands behind the command's name comes last."""
    key = _META + param.name
    typed = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    if value and (typed or key not in ctx.meta):
        ctx.meta[key] = value


def common_options(command: Callable) -> Callable:
    """--model, --store, --passphrase-file and -v, before or behind the name of the command."""
    keep = {"expose_value": False, "callback": _note}
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Tell more.", **keep),
        click.option(
            "--store", metavar="DIR", envvar="M3MLX_STORE", help="Folder of memories.", **keep
        ),
        click.option(
            "--passphrase-file",
            metavar="FILE",
            help="First line is the passphrase of an encrypted store (or M3MLX_PASSPHRASE).",
            **keep,
        ),
        click.option(
            "--model",
            metavar="NAME",
            envvar="M3MLX_MODEL",
            help="Directory, hub id or built-in name of the language model.",
            **keep,
        ),
    ):
        command = option(command)
    return command


def is_verbose() -> bool:
    return bool(_noted("verbose"))


def _noted(name: str) -> Any:
    ctx = click.get_current_context(silent=True)
    return ctx.meta.get(_META + name) if ctx else None


def example(*lines: str) -> str:
    """The end of a command's help; a test runs each of these lines."""
    title = "Examples:" if len(lines) > 1 else "Example:"
    return "\n".join(("\b", title, *(f"  {line}" for line in lines)))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

memory_mode = click.option(
    "--memory",
    type=click.Choice(MEMORY_MODES),
    default="explicit",
    show_default=True,
    help="Read memories, paste the same references as text, or neither.",
)

system_prompt = click.option(
    "--system-prompt", metavar="TEXT", help="Instructions before the first message."
)

_MEMORY = {
    "encoder": click.option(
        "--encoder", metavar="NAME", help="Directory or name of the sentence encoder."
    ),
    "adapter_path": click.option(
        "--adapter-path",
        metavar="DIR|none",
        help="LoRA adapter of mlx-lm.  [default: the one that comes with the model, if any]",
    ),
    "selection": click.option(
        "--selection",
        type=click.Choice(SELECTIONS),
        help="Score that picks the tokens a memory keeps.",
    ),
    "budget": click.option(
        "--budget",
        type=click.Choice(BUDGETS),
        help="Give each attention head what it needs, or all as many.",
    ),
    "tokens_per_head": click.option(
        "--tokens-per-head", type=_Tokens(), help="Tokens that a memory keeps; auto finds out."
    ),
    "codec": click.option(
        "--codec", type=click.Choice(CODECS), help="Bits of keys and values on disk."
    ),
    "memories": click.option(
        "--memories",
        type=click.IntRange(min=1),
        help=f"Memories read by each 64 tokens.  [default: the model's own, or {MEMORIES}]",
    ),
    "kv_bits": click.option(
        "--kv-bits", type=click.Choice([4, 8]), help="Keep the context quantized."
    ),
    "retrieval": click.option(
        "--retrieval",
        type=click.Choice(RETRIEVALS),
        default="hybrid",
        show_default=True,
        help="Search by meaning and words, by meaning, or by words.",
    ),
}
WRITING = ("encoder", "adapter_path", "selection", "budget", "tokens_per_head", "codec")
READING = (*WRITING, "memories", "kv_bits", "retrieval")


def memory_options(*names: str) -> Callable[[Callable], Callable]:
    """Options of an assistant; the command gets them as ``options``, with model and store."""
    return _gathered("options", assistant_options, {name: _MEMORY[name] for name in names})


def assistant_options(**chosen: Any) -> Options:
    """The options of an assistant, with what --model and --store say."""
    store = _noted("store")
    return Options(model=_noted("model"), store=Path(store) if store else None, **chosen)


def generation_options(query: str) -> Callable[[Callable], Callable]:
    """Options of an answer, which the command gets as ``generation``; ``query`` is a default."""
    return _gathered(
        "generation",
        Generation,
        {
            "max_tokens": click.option(
                "--max-tokens",
                type=click.IntRange(min=1),
                default=256,
                show_default=True,
                help="Length of an answer, at most.",
            ),
            "temp": click.option(
                "--temp",
                type=click.FloatRange(min=0),
                default=0.0,
                show_default=True,
                callback=_finite,
                help="Temperature; 0 always takes the likeliest token.",
            ),
            "top_p": click.option(
                "--top-p",
                type=click.FloatRange(0, 1),
                default=1.0,
                show_default=True,
                callback=_finite,
                help="Draw from the likeliest tokens that add up to this.",
            ),
            "seed": click.option(
                "--seed",
                type=click.IntRange(0, 2**64 - 1),
                help="Makes drawing repeatable.",
            ),
            "query": click.option(
                "--query",
                type=click.Choice(["chunk", "message"]),
                default=query,
                show_default=True,
                help="Retrieve with each 64 tokens of the prompt, or with all of it.",
            ),
        },
    )


def _gathered(
    name: str, make: Callable[..., Any], options: Mapping[str, Callable]
) -> Callable[[Callable], Callable]:
    """Gather some options into one object that the command gets under a name."""

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def gathering(**params: Any) -> Any:
            gathered = make(**{key: params.pop(key) for key in options})
            return command(**{name: gathered}, **params)

        for option in reversed(options.values()):
            gathering = option(gathering)
        return gathering

    return decorate


also_option = click.option(
    "--also",
    multiple=True,
    metavar="STORE",
    help="Search and read this store too, which is never changed; may be repeated.",
)

collection_option = click.option(
    "--collection", metavar="NAME", help="Put the documents into this collection."
)


def filter_options(command: Callable) -> Callable:
    """Which documents are searched; the command gets ``only``: a Filter, or None for all."""

    @functools.wraps(command)
    def filtering(
        collection: str | None,
        only_paths: tuple[str, ...],
        only_types: tuple[str, ...],
        since: datetime | None,
        **params: Any,
    ) -> Any:
        from ..store import Filter

        # a day begins where the user is
        day = since and since.astimezone().astimezone(UTC).isoformat(timespec="seconds")
        only = Filter(collection, only_paths, only_types, day)
        return command(only=None if only == Filter() else only, **params)

    for option in (
        click.option(
            "--since",
            type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
            help="Search only what was memorized since then.",
        ),
        click.option(
            *("--type", "only_types"),
            multiple=True,
            metavar="ENDING",
            help="Search only files with this ending, such as pdf.",
        ),
        click.option(
            *("--path", "only_paths"),
            multiple=True,
            metavar="GLOB",
            help="Search only files with this path, below this folder, or like this.",
        ),
        click.option("--collection", metavar="NAME", help="Search only this collection."),
    ):
        filtering = option(filtering)
    return filtering


def chosen_model() -> str | None:
    """What --model says."""
    return _noted("model")


def encrypt_options(command: Callable) -> Callable:
    """--encrypt and --keyring; the command gets them as ``encrypt``: None or where the key is."""
    for place, option, help in (
        ("keyring", "--keyring", "Encrypt a new store; the system's key store has the key."),
        ("passphrase", "--encrypt", "Encrypt a new store with a passphrase."),
    ):
        command = click.option(option, "encrypt", flag_value=place, help=help)(command)
    return command


@contextmanager
def open_assistant(
    options: Options | None = None, *, encrypt: str | None = None, also: Sequence[str] = ()
) -> Iterator[Assistant]:
    """The assistant that the command's options describe."""
    from ..assistant import Assistant

    options = options or assistant_options()
    options = replace(options, also=tuple(map(Path, also)), encrypt=encrypt is not None)
    progress = Progress.of_context()
    ask = None if encrypt == "keyring" else _passphrase(encrypt is not None, progress)
    with Assistant.of(options, passphrase=ask, progress=progress) as assistant:
        yield assistant


def _passphrase(new: bool, progress: Progress) -> Callable[[], str]:
    """Asks once for the passphrase: the file, the environment, or who sits at the terminal."""
    file = _noted("passphrase_file")  # now, because there may be no context later

    @functools.cache
    def ask() -> str:
        if file:
            try:
                with open(file, encoding="utf-8") as opened:
                    return opened.readline().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8"
                raise M3Error(f"{file}: the passphrase cannot be read ({reason}).") from error
        if words := os.environ.get("M3MLX_PASSPHRASE"):
            return words
        if not (sys.stdin and sys.stdin.isatty()):
            raise M3Error(
                "a passphrase is needed and nobody is there to type it. Give it in "
                "M3MLX_PASSPHRASE or with --passphrase-file."
            )
        progress.close()  # or it would draw over the question
        return click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)

    return ask
