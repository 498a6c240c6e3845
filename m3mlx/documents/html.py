"""HTML to text: headings, paragraphs, lists and table rows keep their own lines."""

from __future__ import annotations

import re
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from .text import declared_encoding, decode

DROPPED = re.compile(
    "head|script|style|nav|noscript|template|svg|math|iframe|object|canvas|audio|video|button"
    "|select|input|textarea|-comment"
)
PARTED = re.compile("p|h[1-6]|table|[uod]l|pre|blockquote|section|article|main|figure")
LINES = re.compile("[bh]r|li|tr|d[td]|div|header|footer|aside|address|form|figcaption|caption")
HEADING = re.compile("h([1-6])")
# a cell with any of these is a piece of page layout, not one value
LAYOUT = "table, ul, ol, h1, h2, h3, h4, p ~ p, div ~ div, p ~ div"


class _Writer:
    """Text in the making: runs of white space become one space, breaks the newlines they need."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.newlines = 0  # wanted before the next word
        self.space = self.marked = False  # wanted before the next word; a mark was just written

    def break_line(self, newlines: int) -> None:
        if not self.marked:  # a mark stays on the line of what it marks
            self.newlines, self.space = max(self.newlines, newlines), False

    def mark(self, sign: str) -> None:
        """Write the sign of a heading or list item, which belongs to the next word."""
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
    """The readable text of an HTML page; headings begin with ``#`` as in Markdown."""
    tree = LexborHTMLParser(source)
    writer = _Writer()
    title = tree.css_first("head > title")
    if title is not None and tree.css_first("h1") is None and title.text().strip():
        writer.write(f"# {title.text()}")
        writer.break_line(2)
    cells = verbatim = 0  # how many of them we are in
    in_row = False
    stack: list[tuple[LexborNode, bool]] = [(tree.root, False)] if tree.root else []
    while stack:
        node, leaving = stack.pop()
        tag = node.tag
        if tag == "-text":
            writer.write(node.text_content or "", verbatim > 0)
            continue
        if DROPPED.fullmatch(tag):
            continue
        cell = tag in ("td", "th") and node.css_first(LAYOUT) is None
        cells += (-1 if leaving else 1) * cell
        verbatim += (-1 if leaving else 1) * (tag == "pre")
        if newlines := 2 if PARTED.fullmatch(tag) else 1 if LINES.fullmatch(tag) else 0:
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
        children = []
        child = node.child
        while child is not None:
            children.append((child, False))
            child = child.next
        stack.extend(reversed(children))
    return "".join(writer.parts)


def read(path: Path, data: bytes) -> str:
    return render(decode(path, data, declared_encoding(data)))
