"""Packed files that hold a document, with a limit on what they unpack to."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import IO

from ..errors import DocumentError

MAX_UNPACKED = 400_000_000  # bytes; a few kilobytes can be made to unpack to terabytes
OLE = b"\xd0\xcf\x11\xe0"  # container of old Office files, and of encrypted new ones


def unpack_gzip(path: Path, data: bytes) -> bytes:
    """Return what a file that gzip has packed holds.

    Raises:
        DocumentError: it is damaged, or unpacks to more than ``MAX_UNPACKED``.
    """
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(path, f"is broken ({error})") from error
    if len(unpacked) > MAX_UNPACKED:
        raise DocumentError(path, _too_large())
    return unpacked


def head_of_gzip(file: IO[bytes], size: int) -> bytes:
    """Return the first bytes that a packed file holds; b"" if it is damaged."""
    try:
        return gzip.GzipFile(fileobj=file).read(size)
    except (OSError, EOFError, zlib.error):
        return b""


def _too_large() -> str:
    return f"is too large, it unpacks to more than {MAX_UNPACKED // 1_000_000} MB"


def open_archive(path: Path, data: bytes) -> zipfile.ZipFile:
    """Open a document that is a zip file.

    Raises:
        DocumentError: no zip file, encrypted, or unpacks to more than ``MAX_UNPACKED``.
    """
    if data.startswith(OLE):
        raise DocumentError(path, "is encrypted, or of an old format; save it without a password")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise DocumentError(path, f"is broken ({error})") from error
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise DocumentError(path, _too_large())
    if any(entry.flag_bits & 1 for entry in entries):
        raise DocumentError(path, "is encrypted; save it without a password")
    return archive
