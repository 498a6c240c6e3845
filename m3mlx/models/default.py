"""The model of a new store where none is named: the kept choice, or what suits the machine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from .. import config, files
from ..errors import ModelError
from . import inventory
from .builtin import BUILT_IN, DEFAULT_DECODER
from .inventory import RECOMMENDED, Recommended

_FAST = 2.0  # tokens per second of an answer that one waits for
_FILE = "model.json"  # in the user's data folder, since a cache may be emptied


def fitting() -> Recommended | None:
    """Return the default for a Mac's memory; None for the built-in model, elsewhere always."""
    if not inventory.is_apple_silicon():
        return None
    gib = inventory.machine_memory()[0] / 2**30
    chosen = [m for m in RECOMMENDED if m.default_from_gib and m.default_from_gib <= gib]
    return max(chosen, key=lambda model: model.default_from_gib or 0, default=None)


def better(name: str) -> Recommended | None:
    """Return a model that answers better than the smallest one, and suits this machine."""
    if name != DEFAULT_DECODER:
        return None
    if model := fitting():
        return model
    fast = [m for m in RECOMMENDED[1:] if inventory.fits(m) and (m.expected_speed or 0) >= _FAST]
    return fast[-1] if fast else None


def chosen() -> tuple[str, str]:
    """Return the name of a new store's model where none is named, and why it is that.

    Raises:
        ModelError: as ``kept``.
    """
    if name := kept():
        return name, "your choice"
    if model := fitting():
        return model.name, "it suits this machine's memory"
    return DEFAULT_DECODER, "built in"


def is_whole(name: str) -> bool:
    """Return whether all files of a hub model are on this machine."""
    return any(model.name == name and not model.broken for model in inventory.cached())


def fetch(name: str, size: int) -> None:
    """Download a model of so many bytes from the hub, whose library shows progress itself.

    Raises:
        ModelError: the hub does not give it, or the disk has no room.
    """
    from mlx_lm.utils import _download as download  # slow to import

    place = inventory.hub_folder()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < size:
        raise ModelError(f"{name} cannot be fetched: {free / 1e9:.1f} GB of the disk are free.")
    try:
        download(name)
    except Exception as error:  # the hub's library passes on errors of its HTTP client
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"{name} cannot be fetched from the hub ({reason}).") from error


def kept() -> str | None:
    """Return the name of the model that the user chose, None without a choice.

    Raises:
        ModelError: the choice cannot be read, or is a folder that is gone.
    """
    remedy = "Choose again with m3mlx models use NAME, or forget it with m3mlx models use --reset."
    try:
        text = _file().read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{_file()}: the kept model cannot be read. {remedy}") from error
    try:
        name = json.loads(text)["model"]
        if not isinstance(name, str) or not name:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{_file()}: the kept model cannot be read. {remedy}") from error
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ModelError(f"{name}: the model that you chose is gone. {remedy}")
    return name


def kept_or_none() -> str | None:
    """Return ``kept``, and None also where the choice cannot be read."""
    try:
        return kept()
    except ModelError:
        return None


def keep(name: str) -> str:
    """Keep a choice for all new stores, and return its name: a folder's becomes absolute.

    Raises:
        ModelError: it is no directory of a model, built-in decoder or hub id.
    """
    short, folder = name.lower(), Path(name).expanduser()
    if short in BUILT_IN:
        if BUILT_IN[short].kind != "decoder":
            raise ModelError(f"{name} is an encoder, and answers nothing. Choose a decoder.")
        name = short
    elif name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is no model directory: it has no config.json.")
        name = str(folder.resolve())
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII):
        known = ", ".join(short for short, made in BUILT_IN.items() if made.kind == "decoder")
        raise ModelError(
            f"{name!r} is no directory, hub id or built-in model (there is {known}). "
            f"{inventory.suggestion(name)}"
        )
    try:
        files.write_text(_file(), json.dumps({"model": name}))
    except OSError as error:
        raise ModelError(f"{_file()} cannot be written: {error.strerror}.") from error
    return name


def forget() -> None:
    """Forget the choice, if there is one."""
    try:
        _file().unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{_file()} cannot be removed: {error.strerror}.") from error


def _file() -> Path:
    return config.data_folder() / _FILE
