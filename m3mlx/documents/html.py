"""HTML to text: headings, paragraphs, list items and table rows are lines of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .formula import linear
from .numbering import shown_number
from .text import Note
from .text import read as read_text

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

Attributes = Mapping[str, str | None]

DROPPED = re.compile(
    "head|script|style|nav|noscript|template|svg|iframe|object|canvas|audio|video|button"
    "|select|input|textarea|del|-.*|"  # comments, processing instructions
)
BLOCKS = re.compile("p|h[1-6]|table|[uod]l|blockquote|section|article|main|figure|details|center")
LINES = re.compile(
    "[bh]r|li|tr|d[td]|div|header|footer|aside|address|form|figcaption|caption|summary|legend"
    "|fieldset|hgroup|dialog|search|menu|dir"
)
VERBATIM = re.compile("pre|listing|xmp|plaintext")
TITLES = ("summary", "dt", "legend", "caption")
# classes of what is not seen, repeats a formula, numbers lines of code or links to a heading
UNSEEN = re.compile(
    r"(?:^|\s)(?:sr-only|visually-?hidden|screen-reader-text|katex-html|MathJax_Preview|mjx-chtml"
    r"|line-?nos?|line-numbers|gutter|blob-num|headerlink|anchor-link)(?:\s|$)"
)
HEADING = re.compile("h([1-6])")
WHOLE = re.compile(r"-?\d{1,6}")
# a cell with any of these lays out the page and is no value
LAYOUT = "table, ul, ol, h1, h2, h3, h4, p ~ p, div ~ div, p ~ div"
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
AS_WRITTEN = re.compile(r"white-space\s*:\s*(?:pre|break)", re.IGNORECASE)
NUMERALS = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
NAVIGATION = ("navigation", "menu", "menubar", "search", "toolbar")
ORDINAL = re.compile(r"st|nd|rd|th|[a-z]{2}|[eoaª°º]", re.IGNORECASE)
VOID = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
SELF_CLOSING = re.compile(
    rf"<(?!(?:{VOID})\b)([A-Za-z][\w:.-]*+)((?:[^<>\"'/]++|\"[^\"<]*+\"|'[^'<]*+'|/(?!>))*+)/>"
)
CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
XHTML = re.compile(r"\s*(?:<\?xml|<!DOCTYPE[^>]{0,100}XHTML|<html[^>]{0,300}/1999/xhtml)")
MATH = re.compile(r"<math\b.*</math>", re.DOTALL)
BOXES = ("ul", "ol", "div", "section", "aside", "header", "footer", "form", "table", "dl")
LINKS, LINKED = 6, 0.8  # a menu has so many links, and so much of its text in links
LEAST_PROSE = 500  # characters in paragraphs; a page with less has no main part
MAIN_PROSE = 0.6  # of the characters in paragraphs are in the main part, where there is one
ADDED_PROSE, ADDED_LINKED = 0.5, 0.3  # of the text around it, to be read with it
LEAST_PART, PART_LINKED = 300, 0.2  # characters of one of several main parts, most share in links
PAGE = ("body", "html", "-document")
MOST_ROWS = 1000  # that a cell spans; a few characters could name millions
MOST_DEEP = 1000  # levels of elements; the parser's time grows with their square
TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*+)[^<>]*+>")
UNCOUNTED = re.compile(  # end by themselves
    rf"(?:{VOID}|p|li|t[dhr]|d[td]|option|thead|tbody|tfoot)", re.IGNORECASE
)


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

    def mark(self, sign: str, indent: int = 0) -> None:
        """Write the sign of a heading or list item before its first word."""
        self._separate(False)
        self.parts.append(" " * indent + sign)
        self.space = self.marked = True

    def unmark(self) -> None:
        """Take back a sign behind which nothing was written."""
        if self.marked:
            self.parts.pop()
            self.space = self.marked = False
            if self.parts and not self.parts[-1].strip("\n"):
                self.newlines = max(self.newlines, len(self.parts.pop()))

    def write(self, text: str) -> None:
        text = re.sub(r"\s+", " ", text)
        if not (stripped := text.strip()):
            self.space = self.space or bool(text)
            return
        self._separate(text.startswith(" "))
        self.parts.append(stripped)
        self.space = text.endswith(" ")

    def write_sign(self, sign: str) -> None:
        """Write a sign that is set close to what follows or to what is before it."""
        if sign == "“":
            self._separate(False)
            self.parts.append(sign)
        elif self.parts and not self.newlines:
            self.parts.append(sign)
            self.space = False

    def write_verbatim(self, text: str) -> None:
        """Write a piece of text in which line ends and spaces count."""
        if self.newlines or self.marked:  # the first piece
            text = text.removeprefix("\n")
        if text:
            self._separate(False)
            self.parts.append(text)

    def _separate(self, space: bool) -> None:
        if self.newlines and self.parts:
            self.parts.append("\n" * self.newlines)
        elif self.parts and (self.space or space):
            self.parts.append(" ")
        self.newlines, self.space, self.marked = 0, False, False


class _Table:
    """Cells that reach into later rows."""

    def __init__(self) -> None:
        self.spans: dict[int, tuple[int, str]] = {}  # by column: rows left, text
        self.column = 0

    def pending(self) -> list[str]:
        """Take the texts that reach into this row, from the present column on."""
        texts = []
        while self.column in self.spans:
            left, text = self.spans.pop(self.column)
            if left > 1:
                self.spans[self.column] = left - 1, text
            texts.append(text)
            self.column += 1
        return texts


@dataclass
class _List:
    """An open list: number of its next item, step to the one behind it, and kind of numbers."""

    number: int = 1
    step: int = 1
    kind: str = ""  # "" for a list without numbers


class _Page:
    """Writes one page, element by element."""

    def __init__(self) -> None:
        self.writer = _Writer()
        self.cells = self.verbatim = self.headings = 0  # depth of nesting
        self.lists: list[_List] = []
        self.tables: list[_Table] = []
        self.rows: list[int] = []  # cells written in each open row
        self.starts: list[int] = []  # where the text of each open cell begins

    def enter(self, node: LexborNode, tag: str) -> bool:
        """Write what stands before an element; return whether to go on with what is inside."""
        attributes = node.attributes
        if tag == "script" and (attributes.get("type") or "").startswith("math/tex"):
            self.writer.write(f" {node.text()} ")
        if self._is_unseen(tag, attributes):
            return False
        if tag == "math":
            self.writer.write(f" {_formula(node)} ")
            return False
        if tag in ("sup", "sub") and _is_short(text := (node.text() or "").strip()):
            self._raise(node, tag, text)
            return False
        if tag == "img" and self.headings and self.writer.marked:
            self.writer.write(attributes.get("alt") or "")
        self._break(tag)
        if tag in ("ul", "ol"):
            self.lists.append(_list(node, attributes) if tag == "ol" else _List())
        elif tag == "li":
            self._item(attributes.get("value") or "")
        elif tag == "table":
            self.tables.append(_Table())
        elif tag == "tr":
            self.rows.append(0)
            if self.tables:
                self.tables[-1].column = 0
        elif tag == "q":
            self.writer.write_sign("“")
        if level := _heading_level(tag, attributes):
            self.writer.mark("#" * level)
        self.headings += bool(level) or tag in TITLES
        self.verbatim += _is_verbatim(tag, attributes)
        return True

    def _is_unseen(self, tag: str, attributes: Attributes) -> bool:
        if tag == "button" and (
            self.headings or "aria-expanded" in attributes or "aria-controls" in attributes
        ):
            return False  # opens what it is the title of
        return bool(
            DROPPED.fullmatch(tag)
            or "hidden" in attributes
            or (tag == "dialog" and "open" not in attributes)
            or HIDDEN.search(attributes.get("style") or "")
            or UNSEEN.search(attributes.get("class") or "")
            or (attributes.get("role") or "").lower() in NAVIGATION
        )

    def leave(self, tag: str, attributes: Attributes) -> None:
        if tag == "tr":
            self._spanning()
            self.rows.pop()
        level = _heading_level(tag, attributes)
        if level or tag == "li":
            self.writer.unmark()
        self._break(tag)
        self.headings -= bool(level) or tag in TITLES
        self.verbatim -= _is_verbatim(tag, attributes)
        if tag in ("ul", "ol"):
            self.lists.pop()
        elif tag == "table":
            self.tables.pop()
        elif tag == "q":
            self.writer.write_sign("”")

    def enter_cell(self) -> None:
        """Begin a cell that is a value; the row's earlier cells are set off by a bar."""
        self._spanning()
        self._bar()
        self.cells += 1
        self.starts.append(len(self.writer.parts))

    def leave_cell(self, rows: str, columns: str) -> None:
        start = self.starts.pop()
        self.cells -= 1
        if self.tables:
            table = self.tables[-1]
            rows = str(MOST_ROWS) if rows == "0" else rows  # to the end of the table
            if rows.isdigit() and int(rows) > 1:
                text = "".join(self.writer.parts[start:]).strip(" |\n")
                table.spans[table.column] = min(int(rows), MOST_ROWS) - 1, text
            table.column += min(int(columns), MOST_ROWS) if columns.isdigit() else 1

    def _spanning(self) -> None:
        """Write cells of earlier rows that reach into this one."""
        for text in self.tables[-1].pending() if self.tables and not self.cells else ():
            self._bar()
            self.writer.write(text)

    def _bar(self) -> None:
        if self.rows:
            if self.rows[-1]:
                self.writer.write(" | ")
            self.rows[-1] += 1

    def _break(self, tag: str) -> None:
        newlines = 2 if BLOCKS.fullmatch(tag) or VERBATIM.fullmatch(tag) else 0
        newlines = newlines or (1 if LINES.fullmatch(tag) else 0)
        if newlines and self.cells:
            self.writer.write(" ")
        elif newlines:
            nested = tag in ("ul", "ol") and self.lists
            self.writer.break_line(1 if nested else newlines)

    def _item(self, value: str) -> None:
        indent = 2 * max(0, len(self.lists) - 1)
        its = self.lists[-1] if self.lists else _List()
        if not its.kind:
            self.writer.mark("-", indent)
            return
        its.number = int(value) if WHOLE.fullmatch(value) else its.number
        self.writer.mark(f"{shown_number(its.number, its.kind)}.", indent)
        its.number += its.step

    def _raise(self, node: LexborNode, tag: str, text: str) -> None:
        """Write an exponent, index or mark of a note, set off from the word before it."""
        if node.css_first("a") is not None:
            self.writer.write(f"[{text.strip('[]')}]")
            return
        sign = "" if ORDINAL.fullmatch(text) else "^" if tag == "sup" else "_"
        self.writer.write(f"{sign}{text}")


def _list(node: LexborNode, attributes: Attributes) -> _List:
    """Return how the items of a list with numbers begin."""
    start, step = attributes.get("start") or "", 1
    number = int(start) if WHOLE.fullmatch(start) else 1
    if "reversed" in attributes:
        step = -1
        if not start:
            number = sum(child.tag == "li" for child in node.iter())
    return _List(number, step, NUMERALS.get(attributes.get("type") or "", "decimal"))


def _heading_level(tag: str, attributes: Attributes) -> int:
    """Return the level of a heading, 0 for what is none."""
    if heading := HEADING.fullmatch(tag):
        return int(heading[1])
    if attributes.get("role") == "heading":
        level = attributes.get("aria-level") or "2"
        return min(max(int(level), 1), 6) if WHOLE.fullmatch(level) else 2
    return 0


def _is_verbatim(tag: str, attributes: Attributes) -> bool:
    return bool(VERBATIM.fullmatch(tag) or AS_WRITTEN.search(attributes.get("style") or ""))


def _is_short(text: str) -> bool:
    return 0 < len(text) <= 12 and "\n" not in text


def _formula(node: LexborNode) -> str:
    """Write MathML in a line."""
    from lxml import etree

    if text := node.attributes.get("alttext"):
        return text
    found = MATH.search(node.html or "")
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True)
    root = etree.fromstring(found[0].encode(), parser) if found else None
    return linear(root) if root is not None else node.text()


def _shallow(source: str) -> str:
    """Leave out the tags of elements that are nested more deeply than pages are."""
    if source.count("<") <= MOST_DEEP:
        return source
    depth = 0

    def keep(tag: re.Match[str]) -> str:
        nonlocal depth
        if UNCOUNTED.fullmatch(tag[2]):
            return tag[0]
        depth = max(0, depth - 1) if tag[1] else depth + 1
        return tag[0] if depth + bool(tag[1]) <= MOST_DEEP else ""

    return TAG.sub(keep, source)


class _Amounts(NamedTuple):
    """Characters at and below an element, and its links."""

    text: int = 0
    linked: int = 0
    prose: int = 0  # in paragraphs, not linked
    links: int = 0

    def plus(self, other: _Amounts, sign: int = 1) -> _Amounts:
        return _Amounts(*(a + sign * b for a, b in zip(self, other, strict=True)))


class _Outline:
    """How much text and how many links the elements of a page have."""

    def __init__(self, root: LexborNode) -> None:
        self.of: dict[int, _Amounts] = {}
        self.tags: dict[int, str] = {}
        sums, links, paragraphs = [_Amounts()], 0, 0
        stack = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            tag = node.tag or ""
            step = -1 if leaving else 1
            if leaving:
                self.of[node.mem_id], self.tags[node.mem_id] = sums[-1], tag
                last = sums.pop()
                sums[-1] = sums[-1].plus(last)
            elif tag == "-text":
                length = len((node.text_content or "").strip())
                prose = length * (paragraphs > 0 and not links)
                sums[-1] = sums[-1].plus(_Amounts(length, length * (links > 0), prose))
                continue
            elif DROPPED.fullmatch(tag):
                continue
            else:
                sums.append(_Amounts(links=int(tag == "a")))
                stack.append((node, True))
                stack += [(child, False) for child in node.iter(include_text=True)]
            links += step * (tag == "a")
            paragraphs += step * (tag == "p")

    def at(self, node: LexborNode) -> _Amounts:
        return self.of.get(node.mem_id, _Amounts())

    def menus(self, root: LexborNode) -> set[int]:
        """Return the lists and boxes that are little but links, on a page that is mostly text."""
        all = self.at(root)
        if 2 * all.linked >= all.text:
            return set()
        return {
            key
            for key, its in self.of.items()
            if self.tags[key] in BOXES and its.links >= LINKS and its.linked > LINKED * its.text
        }

    def main(self, tree: LexborHTMLParser) -> LexborNode | None:
        """Return the element that holds what the page is about; the whole page where none does."""
        prose = self.at(tree.root).prose if tree.root else 0
        if prose < LEAST_PROSE:
            return tree.root
        for names in ("article", "main, [role=main]"):
            found = max(tree.css(names), key=lambda each: self.at(each).prose, default=None)
            if found is not None and self.at(found).prose >= MAIN_PROSE * prose:
                return self._with_surroundings(found)
        return tree.root

    def _with_surroundings(self, main: LexborNode) -> LexborNode:
        """Return the largest element around the main one that adds little but text to it."""
        node = main
        while (parent := node.parent) is not None and parent.tag not in PAGE:
            added = self.at(parent).plus(self.at(main), -1)
            is_prose = added.prose >= ADDED_PROSE * added.text > 0
            if (is_prose and added.linked <= ADDED_LINKED * added.text) or self._is_one_of(node):
                main = parent
            elif added.text:
                break
            node = parent
        return main

    def _is_one_of(self, article: LexborNode) -> bool:
        """Tell whether most articles beside this one are text too, as parts of the same."""
        if article.tag != "article" or article.parent is None:
            return False
        others = [each for each in article.parent.iter() if each.tag == "article"]
        texts = [
            its
            for each in others
            if each.mem_id != article.mem_id
            and (its := self.at(each)).text >= LEAST_PART
            and its.linked <= PART_LINKED * its.text
        ]
        return len(texts) > 0 and 2 * len(texts) >= len(others) - 1


def render(source: str) -> str:
    """Return the readable text of an HTML page; headings begin with ``#`` as in Markdown."""
    from selectolax.lexbor import LexborHTMLParser

    if XHTML.match(source):  # as HTML, <script/> would swallow what follows
        source = CDATA.sub(lambda found: escape(found[1]), source)
        source = SELF_CLOSING.sub(r"<\1\2></\1>", source)
    tree = LexborHTMLParser(_shallow(source))
    page = _Page()
    outline = _Outline(tree.root) if tree.root else None
    root = outline.main(tree) if outline else None
    title = tree.css_first("h1") or tree.css_first("head > title")
    words = title.text().strip() if title is not None else ""
    if words and (root is None or root.css_first("h1") is None):
        page.writer.write(f"# {words}")
        page.writer.break_line(2)
    menus = outline.menus(root) if outline and root else set()
    stack: list[tuple[LexborNode, bool]] = [(root, False)] if root else []
    while stack:
        node, leaving = stack.pop()
        tag = node.tag or ""
        if tag == "-text":
            text = node.text_content or ""
            (page.writer.write_verbatim if page.verbatim else page.writer.write)(text)
            continue
        if leaving:
            cell = page.starts and tag in ("td", "th")
            if cell:
                page.leave_cell(
                    node.attributes.get("rowspan") or "", node.attributes.get("colspan") or ""
                )
            page.leave(tag, node.attributes)
            continue
        if node.mem_id in menus or not page.enter(node, tag):
            continue
        if tag in ("td", "th") and node.css_first(LAYOUT) is None:
            page.enter_cell()
        stack.append((node, True))
        stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]
    return "".join(page.writer.parts)


def read(path: Path, data: bytes, note: Note) -> str:
    return render(read_text(path, data, note))
