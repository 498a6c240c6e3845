"""Diagnose this machine, its models and a store, with advice for each problem.

Each part is examined on its own, so that a broken one does not hide another.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from . import config
from .assistant import Assistant
from .errors import M3Error, ModelError
from .models import decoder as models
from .models import default
from .models import inventory as cached
from .models.verdicts import verdict_of
from .store import CheckReport, LockedError, MemoryStore
from .store.sessions import FILE as SESSIONS
from .text import mostly_foreign

_LIBRARIES = ("mlx", "mlx-lm", "numpy", "usearch", "sqlite-utils", "tokenizers", "transformers")
_BACK_ENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_SYNCED = (  # beginnings of names of folders, and whose they are
    *(("mobile documents", "iCloud"), ("com~apple~clouddocs", "iCloud"), ("icloud", "iCloud")),
    *(("dropbox", "Dropbox"), ("onedrive", "OneDrive"), ("google drive", "Google Drive")),
    *(("googledrive", "Google Drive"), ("my drive", "Google Drive"), ("cloudstorage", "a cloud")),
)
_MARKED = ((".stfolder", "Syncthing"), (".dropbox", "Dropbox"), (".dropbox.cache", "Dropbox"))
_NETWORK = ("nfs", "cifs", "smb", "afp", "webdav", "davfs", "sshfs", "fuse.sshfs", "fuse.rclone")
_LITTLE = 2_000_000_000  # bytes of free memory or disk below which to warn
_SLOW = 15  # GFLOP/s; a core of a laptop does twice as many and more
_SAMPLE = 64  # references that are looked at
_SIDE = 512  # of the matrices multiplied to measure speed


@dataclass(frozen=True)
class Diagnosis:
    """State of one part of the machine or the store."""

    part: str
    value: str
    state: str = "ok"  # "note": works, but could be better; "broken"
    advice: str = ""  # what to do


def examine(assistant: Assistant) -> list[Diagnosis]:
    """Examine the machine, its models and an assistant's store; downloads nothing."""
    found: list[Diagnosis] = []
    parts = (_versions, _back_end, _memory, _blas, _disk, _models, _store, _fingerprint)
    for examine_part in parts:
        try:
            found += examine_part(assistant)
        except Exception as error:  # any failure to examine a part is its diagnosis
            part = examine_part.__name__.removeprefix("_").replace("_", " ")
            found.append(Diagnosis(part, str(error) or type(error).__name__, "broken"))
    return found


def _versions(assistant: Assistant) -> Iterator[Diagnosis]:
    from . import __version__

    names = [f"m3mlx {__version__}", f"Python {platform.python_version()}"]
    installed = _installed(_LIBRARIES)
    yield Diagnosis("versions", ", ".join([*names, *installed.values()]))
    yield Diagnosis("machine", f"{cached.machine()}, {os.cpu_count()} cores")
    if missing := [name for name in _LIBRARIES if name not in installed]:
        advice = "Install m3mlx again in a new environment, with pip install m3mlx."
        yield Diagnosis("libraries", f"{', '.join(missing)} missing", "broken", advice)


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Return name and version of the installed ones of some packages, by name."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = f"{name} {version(name)}"
    return found


def _back_end(assistant: Assistant) -> Iterator[Diagnosis]:
    installed = _installed(_BACK_ENDS).values()
    kind = "Metal" if mx.metal.is_available() else "CUDA" if _on_gpu() else "CPU"
    state, advice = "ok", ""
    if len(installed) > 1:
        state = "broken"
        advice = "Make a new environment with one of cpu, cuda12 and cuda13 only."
    elif kind == "CPU" and sys.platform == "darwin":
        state = "note"
        advice = "MLX finds no GPU; use a Python for arm64 on a Mac with Apple silicon."
    yield Diagnosis("back end", ", ".join([kind, *installed]), state, advice)


def _on_gpu() -> bool:
    return mx.default_device() != mx.cpu


def _memory(assistant: Assistant) -> Iterator[Diagnosis]:
    total, free = cached.machine_memory()
    value = f"{total / 1e9:.1f} GB" + ("" if free is None else f", {free / 1e9:.1f} GB free")
    info = mx.device_info() if _on_gpu() else {}
    if recommended := info.get("max_recommended_working_set_size"):
        value += f", {float(recommended) / 1e9:.1f} GB of it for the GPU"
    advice = ""
    if free is not None and free < _LITTLE:
        advice = "Close other programs, or use a smaller model; m3mlx models shows what fits."
    yield Diagnosis("memory", value, "note" if advice else "ok", advice)


def _blas(assistant: Assistant) -> Iterator[Diagnosis]:
    if sys.platform != "linux" or _on_gpu():
        return
    maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    files = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
    fast = sorted(name for name in files if name.startswith("libopenblas"))
    a = mx.random.normal((_SIDE, _SIDE))
    mx.eval(a @ a)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(a @ a)
        rates.append(2 * _SIDE**3 / (time.perf_counter() - start) / 1e9)
    value = f"{', '.join(fast) or 'the reference BLAS'}, {max(rates):.0f} GFLOP/s just now"
    if fast and max(rates) < _SLOW:
        advice = "Other programs use the processor, or it is throttled; answers take long now."
        yield Diagnosis("BLAS", value, "note", advice)
        return
    advice = (
        "Everything works, 15 to 30 times slower. Install m3mlx[cpu] on x86-64, or your "
        "distribution's OpenBLAS (Debian: libopenblas0-pthread); scripts must import m3mlx "
        "before mlx.core."
    )
    yield Diagnosis("BLAS", value) if fast else Diagnosis("BLAS", value, "note", advice)


def _disk(assistant: Assistant) -> Iterator[Diagnosis]:
    for part, folder in (("disk", assistant.store_path), ("cache", config.cache_folder())):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        value, state, advice = f"{free / 1e9:.1f} GB free at {folder}", "ok", ""
        if not os.access(place, os.W_OK):
            value, state = f"{value}, not writable", "broken"
            advice = f"Allow writing to {place}, or name another folder."
        elif free < _LITTLE:
            state = "note"
            advice = "Make room, or bound the store with m3mlx memorize --max-bytes."
        yield Diagnosis(part, value, state, advice)


def _models(assistant: Assistant) -> Iterator[Diagnosis]:
    have = cached.cached()
    for model in have:
        value, advice = f"{model.name}, {model.bytes / 1e6:.0f} MB", ""
        if model.broken:
            value += f": {model.broken}"
            advice = f"Run m3mlx models remove {model.name}; the next use downloads it again."
        yield Diagnosis("model", value, "broken" if model.broken else "ok", advice)
    if not have:
        yield Diagnosis("model", "none cached", "note", "The first use of a model downloads it.")
    try:
        name, why = default.chosen()
    except ModelError as error:
        yield Diagnosis("default", str(error), "broken", "Choose with m3mlx models use NAME.")
    else:
        yield Diagnosis("default", f"a new store is made with {name} ({why})")


def _store(assistant: Assistant) -> Iterator[Diagnosis]:
    path = assistant.store_path
    if not assistant.has_store():
        yield Diagnosis("store", f"none at {path}", "note", "m3mlx memorize PATH makes one.")
        return
    try:
        status = assistant.status()
        report = MemoryStore.quick_check(path, assistant.passphrase)
    except LockedError as error:
        advice = "Give its passphrase; there is no recovery."
        yield Diagnosis("store", str(error), "broken", advice)
        return
    except M3Error as error:
        yield Diagnosis("store", str(error), "broken", "Run m3mlx check --repair.")
        return
    yield from _place(path)
    count = f"{status['documents']} documents, {status['references']} references"
    encrypted = f"{'' if status['encrypted'] else 'not '}encrypted"
    yield Diagnosis("store", f"{path}: opens, {count}, {encrypted}")
    yield from _store_files(assistant, report)
    if partial := sum(not document.complete for document in assistant.documents()):
        advice = "Memorize these files again; each continues where it stopped."
        yield Diagnosis("pending", f"{partial} documents half memorized", "note", advice)
    if status["cold"]:
        advice = "Each is written at its first use; m3mlx memorize writes all."
        yield Diagnosis("pending", f"{status['cold']} references cold", "note", advice)
    bound, size = status["max_bytes"], sum(status["bytes"].values())
    if bound and size > bound:
        advice = "Text and vectors alone are larger; raise it with m3mlx memorize --max-bytes."
        yield Diagnosis("size", f"{size / 1e9:.2f} of {bound / 1e9:.2f} GB", "note", advice)
    if watching := status["watching"]:
        pending = watching.get("pending", 0)
        yield Diagnosis("watched", f"by process {watching.get('pid')}, {pending} changes pending")


def _place(path: Path) -> Iterator[Diagnosis]:
    """Warn of what copies a store file by file, or does not lock and order its files as it must."""
    if whose := synced_by(path):
        advice = (
            "Files of different moments come to lie side by side there. Move the store, and let "
            "m3mlx backup put copies into that folder."
        )
        yield Diagnosis("place", f"{path} is synchronised by {whose}", "note", advice)
    if kind := network_drive(path, _mounts()):
        advice = (
            "Locks and the order of writes are not sure there. Move it to a disk of this machine."
        )
        yield Diagnosis("place", f"{path} is on a network drive ({kind})", "note", advice)


def synced_by(path: Path) -> str:
    """Return what synchronises a folder with other machines; "" if nothing is known to."""
    whole = path.resolve()
    for folder in (whole, *whole.parents):
        for beginning, whose in _SYNCED:
            if folder.name.casefold().startswith(beginning):
                return whose
        for mark, whose in _MARKED:
            if (folder / mark).exists():
                return whose
    return ""


def network_drive(path: Path, mounts: Iterable[tuple[str, str]]) -> str:
    """Return the file system of a path if it is one of a network, else "".

    Args:
        mounts: folders and file systems.
    """
    whole = path.resolve()
    above = [(Path(at), kind) for at, kind in mounts if whole.is_relative_to(at)]
    _, kind = max(above, key=lambda mount: len(mount[0].parts), default=(whole, ""))
    return kind if kind.startswith(_NETWORK) else ""


def _mounts() -> list[tuple[str, str]]:
    if sys.platform == "linux":
        lines = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
        fields = [line.split() for line in lines]
        return [(at.replace("\\040", " "), kind) for _, at, kind, *_ in fields]
    if sys.platform == "darwin":
        told = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=10).stdout
        found = re.findall(r"^.* on (/.*) \((\w+)[,)]", told, re.MULTILINE)
        return [(at, kind) for at, kind in found]
    return []


def _store_files(assistant: Assistant, report: CheckReport) -> Iterator[Diagnosis]:
    path = assistant.store_path
    for damage in report.damages:
        advice = "Run m3mlx check for all that is damaged, and m3mlx check --repair."
        state = "note" if damage.part == "index" else "broken"
        yield Diagnosis(damage.part, damage.detail, state, advice)
    if not report.damages:
        yield Diagnosis("store's files", "sound in a quick check; m3mlx check reads all")
    if (path / SESSIONS).exists():
        try:
            with assistant.store().sessions() as sessions:
                yield Diagnosis("sessions", f"{len(sessions.list())} conversations kept")
        except M3Error as error:
            advice = "Restore the file from a backup, or remove it."
            yield Diagnosis("sessions", str(error), "broken", advice)
    if report.quarantined:
        names = ", ".join(report.quarantined)
        yield Diagnosis("quarantine", names, "note", "Memorize these files again.")
    if mode := path.stat().st_mode & 0o077:
        advice = f"Others may look into it: chmod 700 {path}."
        yield Diagnosis("privacy", f"mode of the folder has {mode:03o}", "broken", advice)


def _fingerprint(assistant: Assistant) -> Iterator[Diagnosis]:
    """Compare the store's memories with the model and encoder that would be used."""
    if not assistant.has_store():
        return
    try:
        yield from _compared(assistant)
    except M3Error as error:
        yield Diagnosis("fingerprint", str(error), "broken", "Repair what is broken above first.")


def _compared(assistant: Assistant) -> Iterator[Diagnosis]:
    have = {model.name.lower(): model for model in cached.cached()}
    name, adapter = assistant.model
    name = name or models.DEFAULT_DECODER
    encoder = assistant.options.encoder or models.DEFAULT_ENCODER
    for needed in (name, encoder):
        known = have.get(needed.lower())
        if not Path(needed).is_dir() and (known is None or known.broken):
            advice = "It is downloaded when it is used; then run m3mlx doctor again."
            yield Diagnosis("fingerprint", f"{needed} is not cached whole", "note", advice)
            return
    folder = models.adapter_folder(name, adapter)
    files = models.identity(models.local_folder(name), folder)
    store = assistant.store()
    fitting, differing = [], ""
    for edition in store.editions():
        other = [part for part, value in files.items() if edition.fingerprint.get(part) != value]
        fitting += [edition.id] * (not other)
        differing = differing or ", ".join(other)
    advice = "Name the model it was made with, or run m3mlx memorize --rebuild."
    if not fitting:
        value = f"the memories were made with other {differing} than {name} has"
        yield Diagnosis("fingerprint", value, "broken", advice)
    elif store.encoder != models.encoder_identity(encoder):
        value = f"the vectors were made by another encoder than {encoder}"
        yield Diagnosis("fingerprint", value, "broken", "Name the encoder it was made with.")
    else:
        value = f"memories {fitting[0]} are of this model and encoder"
        yield Diagnosis("fingerprint", value)
        yield _exactness(name)
        yield from _language(store, encoder)


def _language(store: MemoryStore, encoder: str) -> Iterator[Diagnosis]:
    """Look at some references for letters that the encoder hardly knows."""
    slots = store.slots(count=_SAMPLE)
    foreign = sum(mostly_foreign(reference.text) for reference in store.references(slots))
    if 2 * foreign > len(slots) and (advice := models.encoder_advice(encoder)):
        value = f"{foreign} of {len(slots)} references are not in Latin letters"
        yield Diagnosis("language", value, "note", advice)


def _exactness(name: str) -> Diagnosis:
    verdict = verdict_of(name)
    if verdict is None:
        advice = "Its next use verifies it, in a second or two."
        return Diagnosis("memories", f"{name} is not verified on this machine", "note", advice)
    if verdict.refused:
        return Diagnosis("memories", verdict.refused, "broken", "Use another model with --model.")
    exact = f"exact to {verdict.difference:.0e} of the largest logit, on this machine"
    return Diagnosis("memories", exact)
