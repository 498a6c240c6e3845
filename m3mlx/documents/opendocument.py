"""OpenDocument text and slides (ODT, ODP, and both as one XML file) to text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DocumentError
from .archive import open_archive
from .formula import linear
from .text import Note
from .tree import get, parse_xml, tag, within

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

SKIPPED = {"tracked-changes", "forms", "sequence-decls", "user-field-decls", "annotation-end"}
SKIPPED |= {"variable-decls", "desc", "title", "date-time-decl", "footer-decl", "tab-stop"}
MOST_REPEATS = 100  # of a cell or of spaces; what repeats more often is an empty area


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        if "content.xml" not in archive.namelist():
            raise DocumentError(path, "is broken: it has no content")
        manifest = "META-INF/manifest.xml"
        if manifest in archive.namelist() and b"encryption-data" in archive.read(manifest):
            raise DocumentError(path, "is encrypted; save it without a password")
        return _text(path, archive.read("content.xml"))


def read_flat(path: Path, data: bytes, note: Note) -> str:
    return _text(path, data)


def _text(path: Path, data: bytes) -> str:
    body = next(within(parse_xml(data), "body"), None)
    if body is None:
        raise DocumentError(path, "is broken: it has no content")
    return "\n\n".join(_blocks(body, ""))


def _blocks(parent: Element, mark: str) -> Iterator[str]:
    """Yield paragraphs, items and tables; ``mark`` is set before the first paragraph of an item."""
    number = 0
    for element in parent:
        name = tag(element)
        if name in ("p", "h"):
            notes: list[str] = []
            if text := "".join(_runs(element, notes)).strip():
                level = get(element, "outline-level", "1")
                head = f"{'#' * min(6, int(level))} " if name == "h" and level.isdigit() else mark
                yield head + text
                mark = " " * len(mark)
            yield from notes
        elif name == "list-item":
            number += 1
            yield from _blocks(element, f"{mark}- ")
        elif name == "table":
            yield "\n".join(filter(None, map(_row, within(element, "table-row"))))
        elif name == "page":
            number += 1
            yield f"# Slide {number}"
            yield from _blocks(element, "")
        elif name == "notes":
            yield from (f"Notes: {text}" for text in _blocks(element, ""))
        elif name == "math":
            yield linear(element)
        elif name not in SKIPPED:
            yield from _blocks(element, mark)


def _row(row: Element) -> str:
    cells: list[str] = []
    for cell in row:
        if tag(cell) in ("table-cell", "covered-table-cell"):
            text = " ".join(" ".join(_blocks(cell, "")).split())
            cells += [text] * _count(cell, "number-columns-repeated")
    while cells and not cells[-1]:
        cells.pop()
    return " | ".join(cells)


def _count(element: Element, name: str) -> int:
    count = get(element, name, "1")
    return min(int(count), MOST_REPEATS) if count.isdigit() else 1


def _runs(parent: Element, notes: list[str]) -> Iterator[str]:
    """Yield the text of a paragraph; its notes, comments and text boxes are collected."""
    yield parent.text or ""
    for element in parent:
        name = tag(element)
        if name == "s":
            yield " " * _count(element, "c")
        elif name == "tab":
            yield "\t"
        elif name == "line-break":
            yield "\n"
        elif name == "note":
            mark = f"[{''.join(''.join(e.itertext()) for e in within(element, 'note-citation'))}]"
            text = " ".join(t for body in within(element, "note-body") for t in _blocks(body, ""))
            notes.append(f"{mark} {text}")
            yield mark
        elif name == "annotation":
            author = " ".join(e.text or "" for e in within(element, "creator"))
            text = " ".join("".join(_runs(p, notes)) for p in within(element, "p"))
            notes.append(f"[Comment{f' by {author}' if author else ''}: {text}]")
        elif name in ("frame", "custom-shape", "text-box"):
            notes.extend(_blocks(element, ""))
        elif name not in SKIPPED:
            yield from _runs(element, notes)
        yield element.tail or ""
