"""DOCX to text: paragraphs, headings, lists and tables, in their order."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import docx
from docx.oxml.ns import qn
from docx.oxml.xmlchemy import BaseOxmlElement as Element

from .archive import open_archive
from .text import Note

PARAGRAPH, TABLE, ROW, CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
# deleted text, and text that stands elsewhere too
SKIPPED = {qn("w:del"), qn("w:moveFrom"), qn("w:instrText"), qn("w:pPr"), qn("w:rPr")}
SKIPPED |= {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
SIGNS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}


def read(path: Path, data: bytes, note: Note) -> str:
    open_archive(path, data).close()
    document = docx.Document(io.BytesIO(data))
    names = {style.style_id: style.name or "" for style in document.styles}
    return "\n\n".join(_blocks(document.element.body, names))


def _blocks(parent: Element, names: dict[str, str]) -> Iterator[str]:
    """Yield the paragraphs and tables below an element, in whatever they are wrapped."""
    for child in parent:
        if child.tag == PARAGRAPH:
            if text := _paragraph(child, names):
                yield text
        elif child.tag == TABLE:
            rows = (" | ".join(_cells(row, names)) for row in _own(child, ROW))
            yield "\n".join(row for row in rows if row.strip(" |"))
        elif child.tag not in SKIPPED:
            yield from _blocks(child, names)


def _own(parent: Element, tag: str) -> Iterator[Element]:
    """Return the rows of a table or cells of a row, without those of nested tables."""
    return (e for e in parent.iter(tag) if next(e.iterancestors(parent.tag)) is parent)


def _cells(row: Element, names: dict[str, str]) -> Iterator[str]:
    for cell in _own(row, CELL):
        yield " ".join(" ".join(_blocks(cell, names)).split())


def _paragraph(element: Element, names: dict[str, str]) -> str:
    text = "".join(_runs(element)).strip()
    if not text:
        return ""
    style = element.find(f"{qn('w:pPr')}/{qn('w:pStyle')}")
    name = names.get(style.get(qn("w:val")), "") if style is not None else ""
    if heading := re.fullmatch(r"heading ([1-9])", name.lower()):
        return f"{'#' * min(6, int(heading[1]))} {text}"
    if name == "Title":
        return f"# {text}"
    numbered = element.find(f"{qn('w:pPr')}/{qn('w:numPr')}") is not None
    return f"- {text}" if numbered or name.startswith("List ") else text


def _runs(parent: Element) -> Iterator[str]:
    """Yield the text of a paragraph, with its links, fields, insertions and text boxes."""
    for child in parent:
        if child.tag == qn("w:t"):
            yield child.text or ""
        elif child.tag in SIGNS:
            yield SIGNS[child.tag]
        elif child.tag not in SKIPPED:
            if child.tag == PARAGRAPH:
                yield "\n"
            yield from _runs(child)
