"""Zip files that hold a document, with a limit on what they unpack to."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from ..errors import DocumentError

MAX_UNPACKED = 400_000_000  # bytes; a few kilobytes can be made to unpack to terabytes
OLE = b"\xd0\xcf\x11\xe0"  # container of old Office files, and of encrypted new ones


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
        megabytes = MAX_UNPACKED // 1_000_000
        raise DocumentError(path, f"is too large, it unpacks to more than {megabytes} MB")
    if any(entry.flag_bits & 1 for entry in entries):
        raise DocumentError(path, "is encrypted; save it without a password")
    return archive
