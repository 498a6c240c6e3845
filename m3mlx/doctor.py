"""What is well and what is not on this machine and in a store, and what to do about it.

Every part is looked at by itself, so that one that is broken does not hide another.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from . import config
from .assistant import Assistant
from .errors import FingerprintError, M3Error
from .models import decoder as models
from .models import inventory as cached
from .store import LockedError, MemoryStore
from .store.sessions import FILE as SESSIONS

_LIBRARIES = ("mlx", "mlx-lm", "numpy", "usearch", "sqlite-utils", "tokenizers", "transformers")
_BACK_ENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_LITTLE = 2_000_000_000  # bytes of memory or disk that are soon used up
_SIDE = 512  # of the matrices that are multiplied to see how fast that is


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: of the machine or the store.
        value: how it is.
        state: "ok", "note" (works, but could be better) or "broken".
        advice: what to do about it, or "".
    """

    part: str
    value: str
    state: str = "ok"
    advice: str = ""


def examine(assistant: Assistant) -> list[Finding]:
    """Look at the machine, the models on it, and an assistant's store. Fetches nothing."""
    found: list[Finding] = []
    for look in (_versions, _back_end, _memory, _blas, _disk, _models, _store, _fingerprint):
        try:
            found += look(assistant)
        except Exception as error:  # of whatever kind: that it cannot be looked at is the finding
            part = look.__name__.removeprefix("_").replace("_", " ")
            found.append(Finding(part, str(error) or type(error).__name__, "broken"))
    return found


def _versions(assistant: Assistant) -> Iterator[Finding]:
    from . import __version__

    names = [f"m3mlx {__version__}", f"Python {platform.python_version()}"]
    missing = []
    for name in _LIBRARIES:
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("versions", ", ".join(names))
    yield Finding("machine", f"{cached.machine()}, {os.cpu_count()} cores")
    if missing:
        what = "Install m3mlx again in a new environment, with pip install m3mlx."
        yield Finding("libraries", f"{', '.join(missing)} missing", "broken", what)


def _back_end(assistant: Assistant) -> Iterator[Finding]:
    installed = []
    for name in _BACK_ENDS:
        with suppress(PackageNotFoundError):
            installed.append(f"{name} {version(name)}")
    kind = "Metal" if mx.metal.is_available() else "CUDA" if _on_gpu() else "CPU"
    value = ", ".join([kind, *installed])
    if len(installed) > 1:
        advice = "Make a new environment with one of cpu, cuda12 and cuda13 only."
        yield Finding("back end", value, "broken", advice)
    elif kind == "CPU" and sys.platform == "darwin":
        advice = "MLX finds no GPU; use a Python for arm64 on a Mac with Apple silicon."
        yield Finding("back end", value, "note", advice)
    else:
        yield Finding("back end", value)


def _on_gpu() -> bool:
    return mx.default_device() != mx.cpu


def _memory(assistant: Assistant) -> Iterator[Finding]:
    total, free = cached.machine_memory()
    value = f"{total / 1e9:.1f} GB" + ("" if free is None else f", {free / 1e9:.1f} GB free")
    info = mx.device_info() if _on_gpu() else {}
    if recommended := info.get("max_recommended_working_set_size"):
        value += f", {recommended / 1e9:.1f} GB of it for the GPU"
    if free is not None and free < _LITTLE:
        advice = "Close other programs, or use a smaller model; m3mlx models shows what fits."
        yield Finding("memory", value, "note", advice)
    else:
        yield Finding("memory", value)


def _blas(assistant: Assistant) -> Iterator[Finding]:
    if sys.platform != "linux" or _on_gpu():
        return
    maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    files = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
    fast = sorted(name for name in files if name.startswith("libopenblas"))
    a = mx.random.normal((_SIDE, _SIDE))
    mx.eval(a @ a)
    start = time.perf_counter()
    mx.eval(a @ a)
    rate = 2 * _SIDE**3 / (time.perf_counter() - start) / 1e9
    value = f"{', '.join(fast) or 'the reference BLAS'}, {rate:.0f} GFLOP/s just now"
    if fast:
        yield Finding("BLAS", value)
    else:
        yield Finding(
            *("BLAS", value, "note"),
            "Everything works, 15 to 30 times slower. Install m3mlx[cpu] on x86-64, or your "
            "distribution's OpenBLAS (Debian: libopenblas0-pthread); scripts must import m3mlx "
            "before mlx.core.",
        )


def _disk(assistant: Assistant) -> Iterator[Finding]:
    for part, folder in (("disk", assistant.store_path), ("cache", config.cache_folder())):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        value = f"{free / 1e9:.1f} GB free at {folder}"
        if not os.access(place, os.W_OK):
            advice = f"Allow writing to {place}, or name another folder."
            yield Finding(part, f"{value}, not writable", "broken", advice)
        elif free < _LITTLE:
            advice = "Make room, or bound the store with m3mlx memorize --max-bytes."
            yield Finding(part, value, "note", advice)
        else:
            yield Finding(part, value)


def _models(assistant: Assistant) -> Iterator[Finding]:
    have = cached.cached()
    for model in have:
        value = f"{model.name}, {model.bytes / 1e6:.0f} MB"
        if model.broken:
            advice = f"Run m3mlx models remove {model.name}; it is fetched again when it is used."
            yield Finding("model", f"{value}: {model.broken}", "broken", advice)
        else:
            yield Finding("model", value)
    if not have:
        yield Finding("model", "none cached", "note", "The first use of a model fetches it.")


def _store(assistant: Assistant) -> Iterator[Finding]:
    path = assistant.store_path
    if not assistant.has_store():
        yield Finding("store", f"none at {path}", "note", "m3mlx memorize PATH makes one.")
        return
    try:
        state = assistant.status()
        found = MemoryStore.quick_check(path, assistant.passphrase)
    except LockedError as error:
        yield Finding("store", str(error), "broken", "Give its passphrase; there is no recovery.")
        return
    except M3Error as error:
        yield Finding("store", str(error), "broken", "Run m3mlx check --repair.")
        return
    count = f"{state['documents']} documents, {state['references']} references"
    yield Finding(
        "store", f"{path}: opens, {count}, {'' if state['encrypted'] else 'not '}encrypted"
    )
    for damage in found.damages:
        advice = "Run m3mlx check for all that is damaged, and m3mlx check --repair."
        broken = "note" if damage.part == "index" else "broken"
        yield Finding(damage.part, damage.detail, broken, advice)
    if not found.damages:
        yield Finding("store's files", "sound, as far as a quick look tells; m3mlx check reads all")
    if (path / SESSIONS).exists():
        try:
            with assistant.store().sessions() as sessions:
                kept = len(sessions.list())
        except M3Error as error:
            advice = "Restore the file from a backup, or remove it."
            yield Finding("sessions", str(error), "broken", advice)
        else:
            yield Finding("sessions", f"{kept} conversations kept")
    if found.quarantined:
        names = ", ".join(found.quarantined)
        yield Finding("quarantine", names, "note", "Memorize these files again.")
    if mode := path.stat().st_mode & 0o077:
        advice = f"Others may look into it: chmod 700 {path}."
        yield Finding("privacy", f"mode of the folder has {mode:03o}", "broken", advice)
    partial = sum(not document.complete for document in assistant.documents())
    if partial:
        advice = "Memorize these files again, and they go on where they stopped."
        yield Finding("pending", f"{partial} documents half memorized", "note", advice)
    if state["cold"]:
        advice = "Each is written at its first use; m3mlx memorize --rebuild writes all."
        yield Finding("pending", f"{state['cold']} references cold", "note", advice)
    bound, size = state["max_bytes"], sum(state["bytes"].values())
    if bound and size > bound:
        advice = "Text and vectors alone are larger; raise it with m3mlx memorize --max-bytes."
        yield Finding("size", f"{size / 1e9:.2f} of {bound / 1e9:.2f} GB", "note", advice)
    if watching := state["watching"]:
        pending = watching.get("pending", 0)
        yield Finding("watched", f"by process {watching.get('pid')}, {pending} changes pending")


def _fingerprint(assistant: Assistant) -> Iterator[Finding]:
    """Whether the memories are those of the model and encoder that would be used."""
    if not assistant.has_store():
        return
    for name, default in (
        (assistant.options.model, models.DEFAULT_DECODER),
        (assistant.options.encoder, models.DEFAULT_ENCODER),
    ):
        name = str(name or default)
        have = {model.name.lower(): model.broken for model in cached.cached()}
        if not Path(name).is_dir() and have.get(name.lower(), "missing"):
            advice = "It is fetched when it is used; then run m3mlx doctor again."
            yield Finding("fingerprint", f"{name} is not cached whole", "note", advice)
            return
    try:
        assistant.check()
    except FingerprintError as error:
        advice = "Name the model it was made with, or run m3mlx memorize --rebuild."
        yield Finding("fingerprint", str(error), "broken", advice)
    except M3Error as error:
        yield Finding("fingerprint", str(error), "broken", "Mend what is said above first.")
    else:
        edition = assistant.store().edition
        yield Finding("fingerprint", f"memories {edition.id} are of this model and encoder")
