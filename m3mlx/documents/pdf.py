"""PDF to text, page by page."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from pathlib import Path

from pypdf import PdfReader
from pypdf.errors import LimitReachedError

from ..errors import DocumentError
from .text import Note

HYPHEN = re.compile(r"(\w+)[-\u00ad]\n(\w+)")
GARBLED = 0.1  # share of code points that are no characters

# it logs every oddity of a file; what matters is raised
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


def read(path: Path, data: bytes, note: Note) -> list[str]:
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(path, "is encrypted; save a copy without a password")
        pages = [page.extract_text() for page in reader.pages]
    except LimitReachedError as error:
        raise DocumentError(path, f"is too large when unpacked ({error})") from error
    whole = "".join(pages)
    if not whole.strip():
        raise DocumentError(path, "holds no text, its pages are pictures; run it through OCR")
    odd = sum(c == "\ufffd" or unicodedata.category(c) in ("Co", "Cn", "Cs") for c in whole)
    if odd > GARBLED * len(whole):
        raise DocumentError(path, "holds no text, its fonts do not say which letters they show")
    words = set(re.findall(r"\w+-\w+", whole))
    return [_join_hyphens(page, words) for page in pages]


def _join_hyphens(page: str, words: set[str]) -> str:
    """Join words divided at line ends; a word that has its hyphen elsewhere too keeps it."""

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        divided = first[-1].islower() and second[0].islower()
        return first + ("" if divided and f"{first}-{second}" not in words else "-") + second

    return HYPHEN.sub(join, page)
