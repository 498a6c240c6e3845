"""OpenDocument text and slides (ODT, ODP, and both as one XML file) to text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DocumentError
from .archive import open_archive
from .formula import linear
from .numbering import shown_number
from .text import Note
from .tree import get, parse_xml, tag, within

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

SKIPPED = {"tracked-changes", "forms", "sequence-decls", "user-field-decls", "annotation-end"}
SKIPPED |= {"variable-decls", "desc", "title", "date-time-decl", "footer-decl", "tab-stop"}
HEADINGS = "headings"  # name of their style here
KINDS = {
    "1": "decimal",
    "a": "lowerLetter",
    "A": "upperLetter",
    "i": "lowerRoman",
    "I": "upperRoman",
}
MOST_REPEATS = 100  # of a cell or of spaces; what repeats more often is an empty area


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        names = archive.namelist()
        if "content.xml" not in names:
            raise DocumentError(path, "is broken: it has no content")
        manifest = "META-INF/manifest.xml"
        if manifest in names and b"encryption-data" in archive.read(manifest):
            raise DocumentError(path, "is encrypted; save it without a password")
        styles = archive.read("styles.xml") if "styles.xml" in names else b""
        return _text(path, archive.read("content.xml"), styles)


def read_flat(path: Path, data: bytes, note: Note) -> str:
    return _text(path, data, b"")


def _text(path: Path, data: bytes, styles: bytes) -> str:
    root, numbers = parse_xml(data), _Numbers()
    body = next(within(root, "body"), None)
    if body is None:
        raise DocumentError(path, "is broken: it has no content")
    if styles:
        with suppress(ValueError, SyntaxError):  # of lxml; without it only numbers are missing
            numbers.add_styles(parse_xml(styles))
    numbers.add_styles(root)
    return "\n\n".join(_Body(numbers).blocks(body, ""))


class _Level(NamedTuple):
    """How the items of one level of a list are marked; without a kind they have no number."""

    kind: str = ""
    before: str = ""
    after: str = ""
    shown: int = 1  # levels in a number, as in 2.1.3
    start: int = 1
    bullet: str = ""


class _Numbers:
    """Numbers of list items and headings, as the styles of the document have them."""

    def __init__(self) -> None:
        self._styles: dict[str, dict[int, _Level]] = {}
        self._open: list[tuple[str, int]] = []  # style and number of each open list
        self._last: dict[tuple[str, int], int] = {}  # number of the last item, by style and level
        self._headings: dict[int, int] = {}

    def add_styles(self, root: Element) -> None:
        for style in within(root, "list-style", "outline-style"):
            name = get(style, "name") if tag(style) == "list-style" else HEADINGS
            self._styles[name] = {
                _count(level, "level"): _level(level)
                for level in style
                if tag(level).startswith(("list-level-style", "outline-level-style"))
            }

    def open(self, element: Element) -> None:
        """Begin a list; one within another one has its style, a level below."""
        style = get(element, "style-name") or (self._open[-1][0] if self._open else "")
        level = len(self._open) + 1
        number = self._level(style, level).start - 1
        if get(element, "continue-numbering") == "true" or get(element, "continue-list"):
            number = self._last.get((style, level), number)
        self._open.append((style, number))

    def close(self) -> None:
        style, number = self._open.pop()
        self._last[style, len(self._open) + 1] = number

    def of_item(self, element: Element) -> str:
        """Count an item, and return what stands before it."""
        if not self._open:
            return "- "
        style, number = self._open[-1]
        start = get(element, "start-value")
        number = int(start) if start.isdigit() else number + 1
        self._open[-1] = style, number
        return self._written(style, [number for _, number in self._open])

    def of_heading(self, level: int) -> str:
        """Count a heading, and return its number or ""."""
        start = self._level(HEADINGS, level).start
        self._headings[level] = self._headings.get(level, start - 1) + 1
        for lower in [each for each in self._headings if each > level]:
            del self._headings[lower]
        numbers = [
            self._headings.get(each, self._level(HEADINGS, each).start)
            for each in range(1, level + 1)
        ]
        return self._written(HEADINGS, numbers)

    def _level(self, style: str, level: int) -> _Level:
        return self._styles.get(style, {}).get(level) or _Level(
            bullet="" if style == HEADINGS else "- "
        )

    def _written(self, style: str, numbers: list[int]) -> str:
        levels = [self._level(style, n) for n in range(1, len(numbers) + 1)]
        own = levels[-1]
        if not own.kind:
            return own.bullet
        parts = [
            shown_number(number, level.kind)
            for number, level in list(zip(numbers, levels, strict=True))[-own.shown :]
            if level.kind
        ]
        return f"{own.before}{'.'.join(parts)}{own.after} "


def _level(element: Element) -> _Level:
    start = get(element, "start-value")
    return _Level(
        KINDS.get(get(element, "num-format"), ""),
        get(element, "num-prefix"),
        get(element, "num-suffix"),
        _count(element, "display-levels"),
        int(start) if start.isdigit() else 1,
        "- " if tag(element) == "list-level-style-bullet" else "",
    )


class _Body:
    """Writes what is in a document, block by block."""

    def __init__(self, numbers: _Numbers) -> None:
        self.numbers = numbers

    def blocks(self, parent: Element, mark: str) -> Iterator[str]:
        """Yield paragraphs, items and tables; ``mark`` is set before the first one of an item."""
        slides = 0
        for element in parent:
            name = tag(element)
            if name in ("p", "h"):
                notes: list[str] = []
                if text := "".join(self._runs(element, notes)).strip():
                    yield (self._heading(element, mark) if name == "h" else mark) + text
                    mark = " " * len(mark)
                yield from notes
            elif name == "list":
                self.numbers.open(element)
                yield from self.blocks(element, mark)
                self.numbers.close()
            elif name == "list-item":
                yield from self.blocks(element, mark + self.numbers.of_item(element))
            elif name == "table":
                yield "\n".join(filter(None, map(self._row, within(element, "table-row"))))
            elif name == "page":
                slides += 1
                yield f"# Slide {slides}"
                yield from self.blocks(element, "")
            elif name == "notes":
                yield from (f"Notes: {text}" for text in self.blocks(element, ""))
            elif name == "math":
                yield linear(element)
            elif name not in SKIPPED:
                yield from self.blocks(element, mark)

    def _heading(self, element: Element, mark: str) -> str:
        written = get(element, "outline-level", "1")
        level = min(int(written), 10) if written.isdigit() else 1
        if not (number := mark.strip(" -")) and get(element, "is-list-header") != "true":
            number = self.numbers.of_heading(max(1, level))
        return f"{'#' * min(6, max(1, level))} {number.strip()} ".replace("  ", " ")

    def _row(self, row: Element) -> str:
        cells: list[str] = []
        for cell in row:
            if tag(cell) in ("table-cell", "covered-table-cell"):
                text = " ".join(" ".join(self.blocks(cell, "")).split())
                cells += [text] * _count(cell, "number-columns-repeated")
        while cells and not cells[-1]:
            cells.pop()
        return " | ".join(cells)

    def _runs(self, parent: Element, notes: list[str]) -> Iterator[str]:
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
                mark = (
                    f"[{''.join(''.join(e.itertext()) for e in within(element, 'note-citation'))}]"
                )
                text = " ".join(
                    t for body in within(element, "note-body") for t in self.blocks(body, "")
                )
                notes.append(f"{mark} {text}")
                yield mark
            elif name == "annotation":
                author = " ".join(e.text or "" for e in within(element, "creator"))
                text = " ".join("".join(self._runs(p, notes)) for p in within(element, "p"))
                notes.append(f"[Comment{f' by {author}' if author else ''}: {text}]")
            elif name in ("frame", "custom-shape", "text-box"):
                notes.extend(self.blocks(element, ""))
            elif name not in SKIPPED:
                yield from self._runs(element, notes)
            yield element.tail or ""


def _count(element: Element, name: str) -> int:
    count = get(element, name, "1")
    return min(int(count), MOST_REPEATS) if count.isdigit() else 1
