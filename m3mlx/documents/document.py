"""One file as plain text, with what is needed to cite a place in it."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import cast

from ..errors import DocumentError
from ..text import nfc
from .formats import PLAIN, Kind, format_of
from .text import clean

MAX_BYTES = 200_000_000  # of one file: some hundred thousand pages, which still fit in memory
MOST_TEXT = 20  # characters for each byte of a file, beyond
LEAST_TEXT = 10_000_000  # characters, which any file may become
NO_TEXT = "is empty: there is no text in it"
PAGE_BREAK = "\n\n"  # an empty line, so that references rather end with their page


@dataclass(frozen=True)
class Document:
    """A file that the user gave, as text.

    Attributes:
        path: absolute; links among its folders are resolved, one in its last place is not.
        hash: SHA-256 of the file's bytes, in hexadecimal.
        text: normalized to NFC, newlines are ``\\n``, without control characters.
        page_starts: character at which each page starts; () for formats without pages.
        kind: decides where the text may be cut; every line of "rows" stands alone.
        lined: lines of ``text`` are those of the file.
        notes: a sentence for each thing of the file that is not in the text as it should be.
    """

    path: str
    hash: str
    text: str
    page_starts: tuple[int, ...] = ()
    kind: Kind = "prose"
    lined: bool = False
    notes: tuple[str, ...] = ()

    def page_of(self, offset: int) -> int | None:
        """Return the page of a character, from 1; None for formats without pages."""
        return bisect_right(self.page_starts, offset) or None

    def line_of(self, offset: int) -> int | None:
        """Return the line of a character, from 1; None where lines are not those of the file."""
        return bisect_right(self._line_starts, offset) if self.lined else None

    @cached_property
    def _line_starts(self) -> list[int]:
        return list(accumulate((len(line) + 1 for line in self.text.split("\n")[:-1]), initial=0))


def absolute(path: str | Path) -> Path:
    """Return the path under which a file is known; a link in its last place is not resolved."""
    path = Path(path)
    if path.name in ("", ".."):
        return on_disk(path.resolve())
    return on_disk(path.parent.resolve() / path.name)


def on_disk(path: Path) -> Path:
    """Return the one spelling of a path whose accents can be written in two ways.

    It is the composed one (NFC) where the file system takes that for the same file, as on a Mac,
    else the one that exists.
    """
    if (composed := nfc(str(path))) == str(path) and (path.name.isascii() or path.exists()):
        return path
    with suppress(OSError):
        if os.path.samestat(os.lstat(composed), os.lstat(path)):
            return Path(composed)
    if path == path.parent or os.path.lexists(path):
        return path
    parent = on_disk(path.parent)
    with suppress(OSError):
        same = (name for name in os.listdir(parent) if nfc(name) == nfc(path.name))
        return parent / next(same, path.name)
    return parent / path.name


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        DocumentError: it cannot be read, or is larger than ``MAX_BYTES``.
    """
    with os_errors_as_document_errors(path):
        _check_size(path, Path(path).stat().st_size)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: str | Path, ocr: bool = False) -> Document:
    """Read one file.

    Args:
        ocr: recognize the text in pictures.

    Raises:
        DocumentError: it cannot be opened, or ``parse`` refuses it.
    """
    path = absolute(path)
    with os_errors_as_document_errors(path):
        if path.exists() and not path.is_file():
            raise DocumentError(path, "is not a file")
        with open(path, "rb") as file:
            if (form := format_of(path)) and form.pieces and path.stat().st_size:
                with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                    return parse(path, content)
            return parse(path, file.read(MAX_BYTES + 1), ocr)


def parse(path: str | Path, content: bytes | mmap, ocr: bool = False) -> Document:
    """Make a document of the bytes of a file; files of an unknown format are read as plain text.

    Args:
        path: the document's path, which tells its format; no file need be there.
        content: its bytes; those of a file in the memory map of the system are read by pieces.
        ocr: recognize the text in pictures.

    Raises:
        DocumentError: the content is empty, too large, damaged, encrypted or not text.
    """
    path = Path(path)
    _check_size(path, len(content))
    if not content:
        raise DocumentError(path, "is empty")
    form = format_of(path, ocr) or PLAIN
    notes: list[str] = []
    try:
        found = form.read(path, cast(bytes, content), notes.append)
    except (DocumentError, MemoryError):
        raise
    except BaseException as error:  # parsers raise whatever they like when a file is damaged
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # that one is of libraries in Rust
        name = path.suffix.lstrip(".").upper()
        raise DocumentError(path, f"is broken, it cannot be read as {name} ({error!r})") from error
    pages = [clean(page, notes.append) for page in ([found] if isinstance(found, str) else found)]
    if not any(page.strip() for page in pages):
        raise DocumentError(path, NO_TEXT)
    length = sum(map(len, pages))
    if length > max(MOST_TEXT * len(content), LEAST_TEXT) or length > MAX_BYTES:
        raise DocumentError(path, f"becomes {length:,} characters of text, too many for its size")
    starts = accumulate((len(page) + len(PAGE_BREAK) for page in pages[:-1]), initial=0)
    return Document(
        path=str(path),
        hash=hashlib.sha256(content).hexdigest(),
        text=PAGE_BREAK.join(pages),
        page_starts=() if isinstance(found, str) else tuple(starts),
        kind=form.kind,
        lined=form.lined,
        notes=tuple(notes),
    )


@contextmanager
def os_errors_as_document_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a DocumentError that names the path and the reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise DocumentError(path, "does not exist") from error
    except OSError as error:
        raise DocumentError(path, f"cannot be opened ({error.strerror or error})") from error


def _check_size(path: str | Path, size: int) -> None:
    form = format_of(Path(path))
    if size > MAX_BYTES and not (form and form.pieces):
        raise DocumentError(path, f"is too large, the limit is {MAX_BYTES // 1_000_000} MB")
