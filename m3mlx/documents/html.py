"""HTML to text: headings, paragraphs, list items and table rows are lines of their own."""

from __future__ import annotations

import re
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from .text import Note
from .text import read as read_text

DROPPED = re.compile(
    "head|script|style|nav|noscript|template|svg|math|iframe|object|canvas|audio|video|button"
    "|select|input|textarea|-comment"
)
BLOCKS = re.compile("p|h[1-6]|table|[uod]l|pre|blockquote|section|article|main|figure")
LINES = re.compile("[bh]r|li|tr|d[td]|div|header|footer|aside|address|form|figcaption|caption")
HEADING = re.compile("h([1-6])")
# a cell with any of these lays out the page and is no value
LAYOUT = "table, ul, ol, h1, h2, h3, h4, p ~ p, div ~ div, p ~ div"


class _Writer:
    """Collects text; white space becomes one space, breaks become as many newlines as needed."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.newlines = 0  # pending before the next word
        self.space = False  # pending before the next word
        self.marked = False  # the last thing written was a mark

    def break_line(self, newlines: int) -> None:
        if not self.marked:  # what is marked follows on the same line
            self.newlines, self.space = max(self.newlines, newlines), False

    def mark(self, sign: str) -> None:
        """Write the sign of a heading or list item before its first word."""
        self.write(sign)
        self.space = self.marked = True

    def write(self, text: str, verbatim: bool = False) -> None:
        text = text.strip("\n") if verbatim else re.sub(r"\s+", " ", text)
        stripped = text if verbatim else text.strip()
        if not stripped:
            self.space = self.space or bool(text)
            return
        if self.newlines and self.parts:
            self.parts.append("\n" * self.newlines)
        elif self.parts and (self.space or text.startswith(" ")):
            self.parts.append(" ")
        self.parts.append(stripped)
        self.newlines, self.marked = 0, False
        self.space = not verbatim and text.endswith(" ")


def render(source: str) -> str:
    """Return the readable text of an HTML page; headings begin with ``#`` as in Markdown."""
    tree = LexborHTMLParser(source)
    writer = _Writer()
    title = tree.css_first("head > title")
    if title is not None and tree.css_first("h1") is None and title.text().strip():
        writer.write(f"# {title.text()}")
        writer.break_line(2)
    cells = verbatim = 0  # depth of nesting
    in_row = False  # behind the first cell of a row
    stack: list[tuple[LexborNode, bool]] = [(tree.root, False)] if tree.root else []
    while stack:
        node, leaving = stack.pop()
        tag = node.tag or ""
        if tag == "-text":
            writer.write(node.text_content or "", verbatim > 0)
            continue
        if DROPPED.fullmatch(tag):
            continue
        cell = tag in ("td", "th") and node.css_first(LAYOUT) is None
        step = -1 if leaving else 1
        cells += step * cell
        verbatim += step * (tag == "pre")
        if newlines := 2 if BLOCKS.fullmatch(tag) else 1 if LINES.fullmatch(tag) else 0:
            if cells:
                writer.write(" ")
            else:
                writer.break_line(newlines)
        if leaving:
            continue
        if heading := HEADING.fullmatch(tag):
            writer.mark("#" * int(heading[1]))
        elif tag == "li":
            writer.mark("-")
        elif tag == "tr":
            in_row = False
        elif cell:
            if in_row:
                writer.write(" | ")
            in_row = True
        stack.append((node, True))
        stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]
    return "".join(writer.parts)


def read(path: Path, data: bytes, note: Note) -> str:
    return render(read_text(path, data, note))
