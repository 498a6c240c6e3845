"""DOCX to text: paragraphs, headings, lists and tables in the order of the document."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import docx
from docx.oxml.ns import qn

from .archive import open_archive

PARAGRAPH, TABLE, ROW, CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
# text of these stands elsewhere too, or was deleted
SKIPPED = {qn("w:del"), qn("w:moveFrom"), qn("w:instrText"), qn("w:pPr"), qn("w:rPr")}
SKIPPED |= {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
SIGNS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}


def read(path: Path, data: bytes) -> str:
    open_archive(path, data).close()
    document = docx.Document(io.BytesIO(data))
    names = {style.style_id: style.name or "" for style in document.styles}
    return "\n\n".join(_blocks(document.element.body, names))


def _blocks(parent, names: dict[str, str]) -> Iterator[str]:
    """Paragraphs and tables below an element; whatever wraps them is looked through."""
    for child in parent:
        if child.tag == PARAGRAPH:
            if text := _paragraph(child, names):
                yield text
        elif child.tag == TABLE:
            rows = (" | ".join(_cells(row, names)) for row in _own(child, ROW))
            yield "\n".join(row for row in rows if row.strip(" |"))
        elif child.tag not in SKIPPED:
            yield from _blocks(child, names)


def _own(parent, tag: str) -> Iterator:
    """Rows of a table or cells of a row, without those of the tables inside."""
    return (e for e in parent.iter(tag) if next(e.iterancestors(parent.tag)) is parent)


def _cells(row, names: dict[str, str]) -> Iterator[str]:
    for cell in _own(row, CELL):
        yield " ".join(" ".join(_blocks(cell, names)).split())


def _paragraph(element, names: dict[str, str]) -> str:
    text = "".join(_runs(element)).strip()
    style = element.find(f"{qn('w:pPr')}/{qn('w:pStyle')}")
    name = names.get(style.get(qn("w:val")), "") if style is not None else ""
    if not text:
        return ""
    if heading := re.fullmatch(r"heading ([1-9])", name.lower()):
        return f"{'#' * min(6, int(heading[1]))} {text}"
    if name == "Title":
        return f"# {text}"
    numbered = element.find(f"{qn('w:pPr')}/{qn('w:numPr')}") is not None
    return f"- {text}" if numbered or name.startswith("List ") else text


def _runs(parent) -> Iterator[str]:
    """Text below a paragraph, also in links, fields, insertions and text boxes."""
    for child in parent:
        if child.tag == qn("w:t"):
            yield child.text or ""
        elif child.tag in SIGNS:
            yield SIGNS[child.tag]
        elif child.tag not in SKIPPED:
            if child.tag == PARAGRAPH:
                yield "\n"
            yield from _runs(child)
