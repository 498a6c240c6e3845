"""Files: private, durable, and complete under their name or not there at all."""

from __future__ import annotations

import ctypes
import os
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
    fcntl = None

NEW = ".new"  # ending of a file that is still being written


def at_step(name: str) -> None:
    """A named moment in the order of writing; nothing happens here.

    What kills the process or fails the disk at every such moment replaces this function.
    """


def sync(descriptor: int) -> None:
    """Return when the written bytes are on the disk, not only in its cache where that can be."""
    if sys.platform == "darwin" and fcntl:
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:  # network and some external volumes do not know it
            pass
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Make names that were added to, changed in or removed from a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_private(path: Path) -> None:
    """Make an empty file that only its owner can read, in place of any that is there."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def punch(descriptor: int, start: int, length: int) -> None:
    """Give the blocks of a range back, which then reads as zeros; nothing where that can't be."""
    if sys.platform == "darwin" and fcntl:
        hole = struct.pack("=IIqq", 0, 0, start, length)
        with suppress(OSError):
            fcntl.fcntl(descriptor, 99, hole)  # F_PUNCHHOLE
    elif sys.platform == "linux":
        keep_size_and_punch = 0x01 | 0x02
        with suppress(AttributeError):  # a C library without it; other errors are its return value
            _libc().fallocate64(
                descriptor, keep_size_and_punch, ctypes.c_int64(start), ctypes.c_int64(length)
            )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextmanager
def replacing(path: Path, ending: str = NEW) -> Iterator[Path]:
    """Yield an empty private file to fill; it then becomes ``path`` at once, or not at all."""
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


def write_text(path: Path, text: str) -> None:
    """Write a private UTF-8 file that is complete under its name, or not there."""
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
