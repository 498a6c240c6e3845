"""Options that several commands share, and the assistant that they describe."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import FrameType
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
    default_store,
)
from ..errors import M3Error, ModelError
from ..text import scrub_line
from .render import Progress, human_bytes, note

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..memory.ranks import Ranks
    from ..store import Filter

Decorator = Callable[[Callable[..., Any]], Any]

_META = "m3mlx."  # prefix of our keys in the context's ``meta``, which all commands share


class Interrupted(click.Abort):
    """Ctrl-C, with a line that says what is kept and how to go on."""


def tokens(value: str | int) -> int:
    """A number of tokens; "auto" is 0."""
    if value == "auto":
        return 0
    if not str(value).isdecimal() or not 1 <= int(value) <= REFERENCE_TOKENS:
        raise click.BadParameter(f"{value!r} is neither auto nor 1 to {REFERENCE_TOKENS}.")
    return int(value)


def size(value: str | int) -> int:
    """Bytes of a size such as 500MB or 2GiB; "none" is 0."""
    if value == "none":
        return 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", str(value).lower())
    count = 0
    if found:
        number, letter, binary = found.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter or " "))
    if not 0 < count < 2**63:
        raise click.BadParameter(f"{value!r} is neither none nor a size such as 500MB or 2GB.")
    return count


class _Finite(click.FloatRange):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if not math.isfinite(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a common option in the context; one given after the command's name wins."""
    assert param.name
    key = _META + param.name
    typed = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    if value and (typed or key not in ctx.meta):
        ctx.meta[key] = value


def _kept(name: str) -> Any:
    ctx = click.get_current_context(silent=True)
    return ctx.meta.get(_META + name) if ctx else None


PATH = click.Path(readable=False)  # shells complete it; the library says what is wrong with it
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")
_MODEL = "Language model: directory, hub id or built-in name (or M3MLX_MODEL)."
_STORE = "Folder of the store (or M3MLX_STORE)."
_PASSPHRASE = "File with the passphrase in its first line (or M3MLX_PASSPHRASE)."
COMMON = [  # options of every command, accepted before its name too
    click.Option(names, expose_value=False, callback=_keep, help=help, **given)
    for names, help, given in (
        (["--model"], _MODEL, {"metavar": "NAME", "envvar": "M3MLX_MODEL"}),
        (["--passphrase-file"], _PASSPHRASE, {"metavar": "FILE", "type": PATH}),
        (["--store"], _STORE, {"metavar": "DIR", "type": PATH, "envvar": "M3MLX_STORE"}),
        (["-v", "--verbose"], "Print details, and tracebacks of errors.", {"is_flag": True}),
    )
]


def command(
    *examples: str,
    name: str | None = None,
    group: click.Group | None = None,
    as_json: bool = True,
    **settings: Any,
) -> Decorator:
    """Make a command with --json and the common options behind its own.

    Args:
        examples: shown at the end of its help; a test runs each of them.
        name: None for the function's.
        group: the command that it belongs to; None for m3mlx itself.
        settings: of ``click.command``.
    """
    title = "Examples:" if len(examples) > 1 else "Example:"
    epilog = "\n".join(("\b", title, *(f"  {line}" for line in examples)))

    def decorate(function: Callable[..., Any]) -> click.Command:
        made = click.command(name, epilog=epilog, **settings)(function)
        made.params += [_JSON, *COMMON] if as_json else COMMON
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def is_verbose() -> bool:
    return bool(_kept("verbose"))


def chosen_model() -> str | None:
    """The value of --model."""
    return _kept("model")


def add_options(**table: str | tuple[Any, ...]) -> Decorator:
    """Add options to a command, in this order.

    Args:
        table: of each parameter its help, then its kind and default: a type, a tuple of choices,
            or the metavar of a text; [kind] may be repeated. Help alone makes a flag.
    """

    def decorate(command: Callable[..., Any]) -> Any:
        for name, entry in reversed(list(table.items())):
            help, kind, *default = (entry, bool) if isinstance(entry, str) else entry
            given: dict[str, Any] = {"default": default[0]} if default else {}
            if isinstance(kind, list):
                (kind,), given["multiple"] = kind, True
            if kind is bool:
                given["is_flag"] = True
            elif isinstance(kind, str):
                given["metavar"] = kind
            else:
                given["type"] = click.Choice(kind) if isinstance(kind, tuple) else kind
            command = click.option(f"--{name.replace('_', '-')}", name, help=help, **given)(command)
        return command

    return decorate


def _gathered(gathered: str, make: Callable[..., Any], **table: str | tuple[Any, ...]) -> Decorator:
    """Add options that the command gets as one object, made of them, under a name."""

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def gather(**params: Any) -> Any:
            return command(**{gathered: make(**{key: params.pop(key) for key in table})}, **params)

        return add_options(**table)(gather)

    return decorate


_MEMORY: dict[str, tuple[Any, ...]] = {
    "also": ("Search this store too, without changing it; may be repeated.", ["STORE"]),
    "encoder": ("Sentence encoder: directory or built-in name.", "NAME"),
    "adapter_path": (
        "LoRA adapter of mlx-lm.  [default: the one that comes with the model, if any]",
        "DIR|none",
    ),
    "selection": ("Score that selects the tokens a memory keeps.", SELECTIONS),
    "budget": ("Keep as many tokens as each head needs, or equally many in all.", BUDGETS),
    "tokens_per_head": ("Average number of tokens a head keeps; auto calibrates it.", tokens),
    "codec": ("Bits of keys and values on disk, such as k8v4.", tuple(CODECS)),
    "memories": (
        f"Memories that each 64 tokens read.  [default: the model's own, or {MEMORIES}]",
        click.IntRange(min=1),
    ),
    "kv_bits": ("Quantize keys and values of the context to this many bits.", (4, 8)),
    "retrieval": (
        "Search by meaning and words (hybrid), by meaning (dense) or by words (text).",
        RETRIEVALS,
        "hybrid",
    ),
}
WRITING = ("encoder", "adapter_path", "selection", "budget", "tokens_per_head", "codec")
READING = (*WRITING, "memories", "kv_bits", "retrieval")


def memory_options(*names: str) -> Decorator:
    """Options of an assistant; the command gets them as ``options``, with model and store."""
    return _gathered("options", _options, **{name: _MEMORY[name] for name in names})


yes_option = add_options(yes="Download the model that suits this machine without asking.")


def choose_model(options: Options, yes: bool, rebuild: bool = False) -> Options:
    """Name the model to use, where the user does not.

    A store is used with the kept choice (``m3mlx models use``) if it has its memories, else with
    the model that it was made with. Where there is no store, it is the kept choice, else on Apple
    silicon what suits the memory, else the built-in model. A person is asked before anything is
    downloaded.

    Args:
        yes: download without asking.
        rebuild: memories of the kept choice are about to be made.
    """
    from ..store import MemoryStore

    own_adapter = options.adapter_path not in (None, "none")  # fits the built-in model
    if options.model or own_adapter:
        return options
    from ..models import default

    if MemoryStore.exists(store := options.store or default_store()):
        kept = default.kept_or_none()
        own = {made.get("model") for made in MemoryStore.fingerprints(store)} if kept else ()
        return replace(options, model=kept) if kept in own or rebuild else options
    if rebuild:
        return options
    if (name := default.kept()) is not None:
        return replace(options, model=name)
    model = default.fitting()
    if model is None:
        return options
    size, instead = human_bytes(model.download_bytes), "Using the small built-in model instead."
    if default.is_whole(model.name):
        note(f"Using {model.name} ({size}), which suits this machine.")
        return replace(options, model=model.name)
    asks = all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if not (yes or asks):
        note(f"{model.name} suits this machine; --yes downloads it ({size}). {instead}")
        return options
    note(f"Using {model.name} ({size} to download), which suits this machine.")
    if not (yes or click.confirm(f"Download {size}?", default=True, err=True)):
        note(f"{instead} m3mlx models use NAME keeps another choice.")
        return options
    try:
        default.fetch(model.name, model.download_bytes)
    except ModelError as error:
        note(f"{scrub_line(str(error))} {instead}")
        return options
    return replace(options, model=model.name)


def _options(*, also: tuple[str, ...] = (), **chosen: Any) -> Options:
    store = _kept("store")
    folder = Path(store) if store else None
    return Options(model=chosen_model(), store=folder, also=tuple(map(Path, also)), **chosen)


def conversation_options(query: str) -> Decorator:
    """Options of commands that answer: ``memory``, ``system_prompt``, ``generation`` and ``only``.

    Args:
        query: default of --query.
    """
    memory = add_options(
        memory=(
            "Read memories (explicit), paste the same references (text), or neither (off).",
            MEMORY_MODES,
            "explicit",
        ),
        system_prompt=("Instructions before the first message.", "TEXT"),
    )
    generation = _gathered(
        *("generation", Generation),
        max_tokens=("Maximum length of an answer, in tokens.", click.IntRange(min=1), 256),
        temp=("Sampling temperature; 0 always takes the likeliest token.", _Finite(0), 0.0),
        top_p=("Sample from the likeliest tokens of this total probability.", _Finite(0, 1), 1.0),
        seed=("Seed that makes sampling repeatable.", click.IntRange(0, 2**64 - 1)),
        query=(
            "Retrieve with each 64 tokens of the message (chunk), or with all of it.",
            ("chunk", "message"),
            query,
        ),
        think="Let a thinking model think before it answers, and show its thoughts.",
    )
    return lambda command: memory(generation(filter_options(command)))


def _filter(
    collection: str | None, path: tuple[str, ...], type: tuple[str, ...], since: datetime | None
) -> Filter | None:
    """The filter that the options describe, or None for all documents."""
    from ..store import Filter

    # a day begins in the user's time zone
    day = since.astimezone().astimezone(UTC).isoformat(timespec="seconds") if since else None
    only = Filter(collection, path, type, day)
    return None if only == Filter() else only


filter_options = _gathered(
    *("only", _filter),
    collection=("Search only this collection.", "NAME"),
    path=("Search only this file, this folder, or what matches this pattern.", ["GLOB"]),
    type=("Search only files with this ending, such as pdf.", ["ENDING"]),
    since=(
        "Search only documents memorized since then.",
        click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ),
)

document_options = _gathered(
    *("reading", dict),
    include=("Read only matching files; a pattern as in .gitignore.", ["PATTERN"]),
    exclude=("Skip matching files; a pattern as in .gitignore.", ["PATTERN"]),
    ocr="Recognize the text in pictures, and in scanned pages of PDFs.",
    collection=("Put the documents into this collection.", "NAME"),
    cold="Write each memory at its first use.",
)


def encrypt_options(command: Callable[..., Any]) -> Any:
    """--encrypt and --keyring; the command gets them as ``encrypt``: None, or where the key is."""
    for place, option, help in (
        ("keyring", "--keyring", "Encrypt a new store with a key in the system's key store."),
        ("passphrase", "--encrypt", "Encrypt a new store with a passphrase."),
    ):
        command = click.option(option, "encrypt", flag_value=place, help=help)(command)
    return command


@contextmanager
def open_assistant(
    options: Options | None = None, *, encrypt: str | None = None, ranks: Ranks | None = None
) -> Iterator[Assistant]:
    """Open the assistant that the command's options describe."""
    from ..assistant import Assistant

    options = replace(options or _options(), encrypt=encrypt is not None)
    progress = Progress.of_context()
    ask = None if encrypt == "keyring" else _passphrase(options.encrypt, progress)
    with Assistant.of(options, passphrase=ask, progress=progress, ranks=ranks) as assistant:
        yield assistant


def launched() -> Ranks | None:
    """Return the processes that ``mlx.launch`` started with this one; None without others."""
    if not os.environ.keys() & {"MLX_RANK", "OMPI_COMM_WORLD_RANK"}:
        return None
    from ..memory.ranks import Ranks

    ranks = Ranks()
    return ranks if ranks.size > 1 else None


def read_first_line(file: str, what: str) -> str:
    """The first line of a file with a secret.

    Raises:
        M3Error: it cannot be read, or is empty.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            line = opened.readline()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise M3Error(f"{file}: the {what} cannot be read ({reason})") from error
    if not line:
        raise M3Error(f"{file}: the {what} cannot be read (the file is empty)")
    return line.rstrip("\r\n")


def _passphrase(new: bool, progress: Progress) -> Callable[[], str]:
    """Return a function that gets the passphrase once: from file, environment or terminal."""
    file = _kept("passphrase_file")  # now: it may be called on a thread without a context

    @functools.cache
    def ask() -> str:
        if file:
            return read_first_line(file, "passphrase")
        if words := os.environ.get("M3MLX_PASSPHRASE"):
            return words
        if not (sys.stdin and sys.stdin.isatty()):
            raise M3Error(
                "a passphrase is needed, and there is no terminal to type it. Give it in "
                "M3MLX_PASSPHRASE or with --passphrase-file."
            )
        progress.close()  # or it would draw over the question
        return click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)

    return ask


@contextmanager
def set_on_signals(event: Event, *numbers: signal.Signals) -> Iterator[None]:
    """Set an event when a signal arrives, so that work ends in order; a second one interrupts."""

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
