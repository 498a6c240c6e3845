"""Files that are private, durable, and complete under their name or not there at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import StoreError

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None  # type: ignore[assignment]

NEW = ".new"  # ending of a file that is still being written


def at_step(name: str) -> None:
    """Mark a moment in the order of writing; does nothing.

    Crash tests replace this function to kill the process or fail the disk at each of them.
    """


def sync(descriptor: int) -> None:
    """Wait until written bytes are on the disk; where possible not only in its cache."""
    if sys.platform == "darwin" and fcntl:
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:  # not supported by network and some external volumes
            pass
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Make added, changed and removed names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_writable(path: Path) -> bool:
    """Return whether a file or folder, and the disk that it is on, can be written to."""
    return os.access(path, os.W_OK)


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read, replacing any existing one."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def write_at(descriptor: int, data: bytes, at: int) -> None:
    """Write all of some bytes at an offset; one call of the system may write fewer."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def punch(descriptor: int, start: int, length: int) -> None:
    """Free the blocks of a range, which then reads as zeros; does nothing where unsupported."""
    if sys.platform == "darwin" and fcntl:
        hole = struct.pack("=IIqq", 0, 0, start, length)
        with suppress(OSError):
            fcntl.fcntl(descriptor, 99, hole)  # F_PUNCHHOLE
    elif sys.platform == "linux":
        keep_size_and_punch = 0x01 | 0x02
        with suppress(AttributeError):  # not in this C library; other errors are return values
            _libc().fallocate64(
                descriptor, keep_size_and_punch, ctypes.c_int64(start), ctypes.c_int64(length)
            )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextmanager
def replacing(path: Path, ending: str = NEW) -> Iterator[Path]:
    """Yield an empty private file to fill, then rename it to ``path``; on errors remove it."""
    new = path.with_name(path.name + ending)
    create_private(new)
    try:
        yield new
        descriptor = os.open(new, os.O_RDWR)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)
        at_step(f"{path.name} written")
        os.replace(new, path)
        at_step(f"{path.name} in place")
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copy a file: private, durable, and whole under its name."""
    with source.open("rb") as file, replacing(target) as new, new.open("wb") as copied:
        shutil.copyfileobj(file, copied)


def write_text(path: Path, text: str) -> None:
    """Write a private UTF-8 file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}{NEW}") as new:
        new.write_text(text, "utf-8")


@contextmanager
def os_errors_as_store_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or path}: {error.strerror or error}. Make room or allow access, "
            f"then try again."
        ) from error
