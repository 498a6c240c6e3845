"""PDF to text, page by page: by PDFium, and by pypdf where that fails."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import DocumentError
from .ocr import MOST_PIXELS
from .text import Note

if TYPE_CHECKING:
    from PIL.Image import Image
    from pypdf import PdfReader
    from pypdfium2 import PdfDocument, PdfPage

HYPHEN = re.compile(r"(\w+)[-\u00ad]\n(\w+)")
SPACED = re.compile(r"(?<!\w)[^\W\d_](?: [^\W\d_]){4,}(?!\w)")  # letters set wide
STAMP = 200  # characters; more than a scanner or library writes on the picture of a page
DOTS, POINTS = 200, 72  # in an inch: of a page that is recognized, and of its size
GARBLED = 0.1  # share of code points that are no characters
LINKS, POPUPS, FIELDS = 2, 16, 20  # kinds of annotations
LISTED = 8  # pages named in a note

_one_at_a_time = Lock()  # PDFium knows no threads


def read(
    path: Path, data: bytes, note: Note, recognize: Callable[[Image], str] | None = None
) -> list[str]:
    """Read a PDF; ``recognize`` returns the text in a picture, for pages that are pictures."""
    with _one_at_a_time:
        pages = list(_Reading(path, data, note, recognize).pages())
    words = set(re.findall(r"\w+-\w+", "".join(pages)))
    return [SPACED.sub(_join_letters, _join_hyphens(page, words)) for page in pages]


class _Reading:
    """One file, in which each page is tried by both libraries."""

    def __init__(
        self, path: Path, data: bytes, note: Note, recognize: Callable[[Image], str] | None
    ) -> None:
        self.path, self.data, self.note, self.recognize = path, data, note, recognize
        self._second: PdfReader | None = None

    def pages(self) -> Iterator[str]:
        first = self._open()
        count = len(first) if first else len(self._pypdf().pages)
        failed: list[int] = []
        garbled: list[int] = []
        pictures: list[int] = []
        texts = []
        for number in range(count):
            text, has_picture = self._page(first, number)
            if text is None:
                failed.append(number)
            elif _is_garbled(text):
                garbled.append(number)
            elif not text.strip() and has_picture:
                pictures.append(number)
            texts.append("" if text is None or number in garbled[-1:] else text)
        if first:
            first.close()
        if not any(text.strip() for text in texts):
            if garbled:
                reason = "holds no text, its fonts do not say which letters they show"
            elif failed:
                reason = "is broken: none of its pages can be read"
            else:
                reason = "holds no text, its pages are pictures"
                if not self.recognize:
                    reason += "; --ocr reads the text in them"
            raise DocumentError(self.path, reason)
        for numbers, why in (
            (failed, "cannot be read, they are broken"),
            (garbled, "cannot be read, their fonts do not say which letters they show"),
            (pictures, f"are pictures{'' if self.recognize else '; --ocr reads the text in them'}"),
        ):
            if numbers:
                self.note(f"{len(numbers)} of {count} pages {why}: {_listed(numbers)}")
        yield from texts

    def _open(self) -> PdfDocument | None:
        """Open the file with PDFium; None if only the other library may read it."""
        from pypdfium2 import PdfDocument, PdfiumError

        try:
            document = PdfDocument(self.data)
            document.init_forms()
            return document
        except PdfiumError as error:
            if "password" in str(error).lower():
                reason = "is encrypted; save a copy without a password"
                raise DocumentError(self.path, reason) from error
            return None

    def _pypdf(self) -> PdfReader:
        from pypdf import PdfReader

        # it logs every oddity of a file; what matters is raised
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        if self._second is None:
            self._second = PdfReader(io.BytesIO(self.data))
            if self._second.is_encrypted and not self._second.decrypt(""):
                raise DocumentError(self.path, "is encrypted; save a copy without a password")
        return self._second

    def _page(self, document: PdfDocument | None, number: int) -> tuple[str | None, bool]:
        """Return the text of a page, None if neither library can read it; has it a picture?"""
        text, has_picture = None, False
        if document:
            try:
                page = document[number]
                text, has_picture = _text(page, document), _has_picture(page)
                page.close()
            except Exception:  # of a damaged page
                text = None
        if text is None or _is_garbled(text):
            try:
                other = self._pypdf().pages[number].extract_text()
                text = text if text is not None and _is_garbled(other) else other
            except DocumentError:
                raise
            except Exception:
                pass
        if self.recognize and document:
            is_lost = text is None or _is_garbled(text)
            if is_lost or (has_picture and len(text or "") < STAMP):
                seen = self.recognize(_picture(document, number))
                text = seen if is_lost or len(seen) > len(text or "") else text
        return text, has_picture


def _text(page: PdfPage, document: PdfDocument) -> str:
    """Return the text of a page, then what its fields are filled with and its notes."""
    found = page.get_textpage()
    text = found.get_text_range() if found.count_chars() else ""
    text = text.replace("\r\n", "\n").replace("\ufffe", "-\n")  # a hyphen at the end of a line
    blocks = [text, *(line for line in _annotations(page, document) if line not in text)]
    return "\n".join(filter(None, blocks))


def _annotations(page: PdfPage, document: PdfDocument) -> Iterator[str]:
    import pypdfium2.raw as raw

    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        if kind == FIELDS and document.formenv:
            about = document.formenv.raw, annotation
            if raw.FPDFAnnot_GetFormFieldType(*about) in (
                *(raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON),
            ):
                value = "yes" if raw.FPDFAnnot_IsChecked(*about) else ""
            else:
                value = _string(raw.FPDFAnnot_GetFormFieldValue, *about)
            if value:
                yield f"{_string(raw.FPDFAnnot_GetFormFieldName, *about)}: {value}"
        elif kind not in (LINKS, POPUPS, FIELDS) and (
            text := _string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents")
        ):
            yield f"[Note: {text}]"
        raw.FPDFPage_CloseAnnot(annotation)


def _string(get: Callable[..., int], *about: Any) -> str:
    """Call a function of PDFium that fills a buffer with UTF-16."""
    import pypdfium2.raw as raw

    size = get(*about, None, 0)
    buffer = ctypes.create_string_buffer(size)
    get(*about, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size)
    text = buffer.raw.decode("utf-16-le", "replace").rstrip("\0")
    return " ".join(text.split())


def _has_picture(page: PdfPage) -> bool:
    import pypdfium2.raw as raw

    return any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=2))


def _picture(document: PdfDocument, number: int) -> Image:
    """Show a page as one reads it on paper; a very large one smaller."""
    page = document[number]
    scale = min(DOTS / POINTS, MOST_PIXELS / max(page.get_size()))
    return page.render(scale=scale).to_pil()


def _is_garbled(text: str) -> bool:
    odd = sum(c == "\ufffd" or unicodedata.category(c) in ("Co", "Cn", "Cs") for c in text)
    return odd > GARBLED * len(text)


def _listed(numbers: list[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(str(number + 1) for number in numbers[:LISTED]) + more


def _join_letters(match: re.Match[str]) -> str:
    return match[0].replace(" ", "")


def _join_hyphens(page: str, words: set[str]) -> str:
    """Join words divided at line ends; a word that has its hyphen elsewhere too keeps it."""

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        divided = first[-1].islower() and second[0].islower()
        return first + ("" if divided and f"{first}-{second}" not in words else "-") + second

    return HYPHEN.sub(join, page)
