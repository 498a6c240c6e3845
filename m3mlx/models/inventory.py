"""The machine, the models in its cache, and those that fit its memory."""

from __future__ import annotations

import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import mlx.core as mx

from .. import config
from ..config import Progress, no_progress
from ..errors import ModelError
from . import rates
from .builtin import BUILT_IN
from .verdicts import Verdict, verdict_of
from .weights import loaded_bytes, read_weights

_OVERHEAD_BYTES = 1_000_000_000  # beside the weights: context, memories, the process itself
_SHARE = 2 / 3  # of the machine's memory that a model may take
_LARGE = 1_000_000_000  # bytes of weights that are told of before they are loaded
_FOUR_BITS = 4.5 / 8  # bytes of a weight, with the scale and bias of its group


@dataclass(frozen=True)
class CachedModel:
    """A model whose files are on the disk.

    Attributes:
        name: as given to ``--model`` or ``--encoder``.
        needs_bytes: memory that it takes, an estimate; None if it is broken.
        broken: what is wrong with its files, or "".
        verdict: what verification found of it; None if it was not verified yet, and for encoders.
    """

    name: str
    kind: Literal["built-in", "hub"]
    path: Path
    bytes: int
    needs_bytes: int | None
    broken: str
    verdict: Verdict | None

    @property
    def is_encoder(self) -> bool:
        return self.name in BUILT_IN and BUILT_IN[self.name].kind == "encoder"


@dataclass(frozen=True)
class Recommended:
    """A model worth trying.

    Attributes:
        name: built-in name or hub id.
        parameters: number of weights.
        answers: how many of 100 public questions (XQuAD) it answers from five memories; "" where
            that was not measured.
        default_from_gib: memory of a Mac for which it is the default; None for no default.
        active: weights that a token passes, where those are not all.
    """

    name: str
    parameters: int
    licence: str
    answers: str = ""
    default_from_gib: int | None = None
    active: int | None = None

    @property
    def download_bytes(self) -> int:
        """Size of its files: of a built-in model exactly, else with weights of four bits."""
        if self.name in BUILT_IN:
            return BUILT_IN[self.name].wheel_bytes
        return int(self.parameters * _FOUR_BITS)

    @property
    def needs_bytes(self) -> int:
        """Memory that it takes: an estimate, not a measurement."""
        return loaded_bytes(self.parameters, self.download_bytes) + _OVERHEAD_BYTES

    @property
    def expected_speed(self) -> float | None:
        """Tokens of an answer per second: measured here, or as another model's speed tells.

        Each token reads all weights that it passes; what those take decides. None where no model
        has answered yet on this machine.
        """
        if known := rates.rate(self.name, "answering"):
            return known
        for other in RECOMMENDED:
            if known := rates.rate(other.name, "answering"):
                return known * other._passed_bytes / self._passed_bytes
        return None

    @property
    def _passed_bytes(self) -> float:
        share = (self.active or self.parameters) / self.parameters
        return share * (self.needs_bytes - _OVERHEAD_BYTES)


# Answers are as measured (docs/evaluation.md); the count of the built-in model is of its adapter.
RECOMMENDED = (
    Recommended("smollm2-135m-instruct", 134_515_008, "Apache-2.0", "37 of 100"),
    Recommended("qwen2.5-coder-0.5b-instruct", 494_032_768, "Apache-2.0"),
    Recommended("mlx-community/Qwen3-0.6B-4bit", 596_049_920, "Apache-2.0"),
    Recommended(
        *("mlx-community/Qwen3-1.7B-4bit", 1_720_574_976, "Apache-2.0"), default_from_gib=8
    ),
    Recommended(
        *("mlx-community/Qwen3-4B-Instruct-2507-4bit", 4_022_468_096, "Apache-2.0"),
        default_from_gib=16,
    ),
    Recommended("mlx-community/Qwen3-8B-4bit", 8_190_735_360, "Apache-2.0"),
    Recommended("mlx-community/Qwen3-14B-4bit", 14_768_307_200, "Apache-2.0"),
    Recommended(
        *("mlx-community/Qwen3-30B-A3B-4bit", 30_532_122_624, "Apache-2.0"),
        default_from_gib=32,
        active=3_300_000_000,
    ),
    Recommended("mlx-community/Qwen3-32B-4bit", 32_762_123_264, "Apache-2.0"),
)


def suggestion(name: str) -> str:
    """Say which known model a wrong name may mean, and which other names there are."""
    known = [*BUILT_IN, *(model.name for model in RECOMMENDED if model.name not in BUILT_IN)]
    by_end = {full.rpartition("/")[2].lower(): full for full in known}
    close = get_close_matches(name.rpartition("/")[2].lower(), by_end, 1, 0.6)
    meant = f"Did you mean {by_end[close[0]]}? " if close else ""
    return (
        f"{meant}m3mlx models lists some, and every hub id of a model for MLX works, such as "
        f"{RECOMMENDED[2].name}."
    )


def machine_memory() -> tuple[int, int | None]:
    """Return the machine's bytes of memory, and the free ones if known; in a container its own."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = None
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
            free = min(free, total - used)
    except (OSError, StopIteration, ValueError):  # no Linux, or no container
        pass
    return total, free


def fits(model: Recommended, memory_bytes: int | None = None) -> bool:
    """Return whether a model leaves enough of the machine's memory to other programs."""
    total = machine_memory()[0] if memory_bytes is None else memory_bytes
    return model.needs_bytes <= _SHARE * total


@contextmanager
def memory_told(name: str, folder: Path, progress: Progress) -> Iterator[None]:
    """Tell what the model that the block loads takes, where its weights become float32, on a CPU.

    Raises:
        ModelError: before the block, if it is more than the machine has, which would kill the
            process.
    """
    takes, (total, _) = 0, machine_memory()
    if mx.default_device() == mx.cpu:
        with suppress(ModelError):  # loading it tells what is wrong
            takes = read_weights(folder).loaded_bytes
    if takes > total:
        smaller = [model for model in RECOMMENDED if fits(model, total)] or RECOMMENDED[:1]
        raise ModelError(
            f"{name} takes {takes / 1e9:.1f} GB of memory, since its weights become float32 on a "
            f"CPU, and this machine has {total / 1e9:.1f} GB; {smaller[-1].name} would fit."
        )
    tell = progress if takes >= _LARGE else no_progress
    tell(what := f"loading {takes / 1e9:.1f} GB of memory (float32)", 0, 1)
    try:
        yield
    finally:
        tell(what, 1, 1)


def is_apple_silicon() -> bool:
    """Return whether this is a Mac with Apple silicon whose GPU MLX can use."""
    found = platform.system(), platform.machine()
    return found == ("Darwin", "arm64") and mx.metal.is_available()


@dataclass(frozen=True)
class Machine:
    """Names for people: of the processor or GPU, and of the system and its architecture."""

    processor: str
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.system}"


def machine() -> Machine:
    """Return the names of this machine; MLX knows the processor's better than Python does."""
    processor = mx.device_info().get("device_name") or platform.processor() or platform.machine()
    return Machine(str(processor), f"{platform.system()} {platform.machine()}")


def cached() -> list[CachedModel]:
    """Return all models that m3mlx would find here: built-in ones, then those of the hub."""
    found = []
    for folder in _folders(config.cache_folder() / "models"):
        if folder.name in BUILT_IN:
            found.append(_cached(folder.name, "built-in", folder, folder))
    for folder in _folders(hub_folder()):
        if folder.name.startswith("models--"):
            name = folder.name.removeprefix("models--").replace("--", "/")
            snapshots = _folders(folder / "snapshots")
            if snapshots and any((s / "config.json").exists() for s in snapshots):
                latest = max(snapshots, key=lambda path: path.stat().st_mtime)
                found.append(_cached(name, "hub", folder, latest))
    return found


def is_here(name: str) -> bool:
    """Return whether a model can be loaded without downloading what m3mlx does not know."""
    return (
        name.lower() in BUILT_IN
        or Path(name).expanduser().is_dir()
        or name.lower() in {model.name.lower() for model in cached()}
    )


def remove(name: str) -> CachedModel:
    """Remove a model's files; it is fetched again when it is used.

    Raises:
        ModelError: it is not there, or cannot be removed.
    """
    known = {model.name.lower(): model for model in cached()}
    model = known.get(name.lower())
    if model is None:
        have = ", ".join(known) or "nothing"
        raise ModelError(f"{name}: no such model is cached (there is {have}).")
    removed = model.path.with_name(f".{model.path.name}-{uuid.uuid4().hex}")
    try:
        model.path.rename(removed)  # at once, for other processes
        shutil.rmtree(removed)
    except OSError as error:
        raise ModelError(f"{model.path} cannot be removed: {error.strerror}.") from error
    return model


def hub_folder() -> Path:
    """Return the folder in which the hub's library keeps models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _cached(name: str, kind: Literal["built-in", "hub"], path: Path, files: Path) -> CachedModel:
    found = [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.lstat().st_size for p in found if not p.is_symlink())
    changed = max((p.stat().st_mtime for p in found if p.suffix == ".safetensors"), default=0.0)
    try:
        needs, broken = read_weights(files).loaded_bytes + _OVERHEAD_BYTES, ""
    except ModelError as error:
        needs, broken = None, str(error)
    return CachedModel(name, kind, path, size, needs, broken, verdict_of(name, changed))
