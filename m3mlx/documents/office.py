"""DOCX to text as Word shows it, with notes below their paragraph; PPTX, a page for a slide."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import open_archive
from .formula import linear
from .numbering import shown_number
from .text import Note
from .tree import child, get, parse_xml, tag, text_of, within

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

# deleted text, settings, and text that stands elsewhere too
SKIPPED = {"del", "moveFrom", "instrText", "delText", "pPr", "rPr", "Fallback", "sectPr", "tblPr"}
SKIPPED |= {"sdtPr", "rt", "posOffset", "align", "pctWidth", "pctHeight", "sizeRelH", "sizeRelV"}
SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
EDGE = "\ufdd0"  # of a formula; no character, so that no text has it
BETWEEN = re.compile(rf"(?<=[^\s(\[{{]){EDGE}(?=[^\s,.;:!?)\]}}])")
NOTES = {"footnoteReference": "footnotes", "endnoteReference": "endnotes"}


class Package:
    """The parts of an Office document, and what they refer to."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = set(archive.namelist())
        self.main = self.related("", "officeDocument")[0]

    def xml(self, name: str) -> Element:
        return parse_xml(self._archive.read(name))

    def relations(self, name: str) -> dict[str, tuple[str, str]]:
        """Return the last word of the type, and the part, for each id that a part refers to."""
        folder, file = posixpath.split(name)
        list_name = posixpath.join(folder, "_rels", f"{file}.rels")
        if list_name not in self.names:
            return {}
        found = {}
        for relation in self.xml(list_name):
            target = posixpath.normpath(posixpath.join("/", folder, get(relation, "Target")))
            kind = posixpath.basename(get(relation, "Type"))
            found[get(relation, "Id")] = kind, target.lstrip("/")
        return found

    def related(self, name: str, kind: str) -> list[str]:
        """Return the parts of a kind that a part refers to, and that are there."""
        targets = [target for its, target in self.relations(name).values() if its == kind]
        return [target for target in targets if target in self.names]

    def drawn(self, name: str, element: Element) -> str:
        """Return the words of a diagram or chart that an element of a part stands for."""
        ids = {str(value) for value in element.attrib.values()}
        parts = [part for id, (_, part) in self.relations(name).items() if id in ids]
        kinds = ("diagrams/data", "charts/chart", "charts/chartEx")
        found = (p for p in parts if p in self.names and any(kind in p for kind in kinds))
        texts = (text_of(t) for part in found for t in within(self.xml(part), "p"))
        return "\n".join(text.strip() for text in texts if text.strip())


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        return _Word(Package(archive)).text()


@dataclass(frozen=True)
class Level:
    """One level of a list: number of its first item, kind of number, and how it is shown."""

    start: int
    kind: str
    shown: str
    legal: bool = False  # the numbers of its higher levels are shown as decimal


@dataclass
class _Word:
    """One document, while it is written in reading order."""

    package: Package
    counters: dict[str, dict[int, int]] = field(default_factory=dict)  # by list, then level
    pending: list[str] = field(default_factory=list)  # notes of the present paragraph
    boxes: list[Element] = field(default_factory=list)  # text boxes of the present paragraph
    joined: str = ""  # paragraphs whose ends were deleted

    def text(self) -> str:
        body = child(self.package.xml(self.package.main), "body")
        if body is None:
            raise ValueError("no body")
        blocks = [*self._margins("header"), *self._blocks(body), *self._margins("footer")]
        return "\n\n".join(blocks)

    def _margins(self, kind: str) -> list[str]:
        """Return the text of page headers or footers, each once."""
        found: dict[str, None] = {}
        for name in self.package.related(self.package.main, kind):
            text = "\n".join(self._blocks(self.package.xml(name)))
            if re.search(r"[^\W\d_]{2}", text):  # more than the number of the page
                found[text] = None
        return list(found)

    def _blocks(self, parent: Element) -> Iterator[str]:
        """Yield the paragraphs and tables below an element, in whatever they are wrapped."""
        for element in parent:
            name = tag(element)
            if name == "p":
                yield from self._paragraph(element)
            elif name == "tbl":
                above: dict[int, str] = {}
                kept = (e for e in _own(element, "tr") if child(e, "trPr", "del") is None)
                rows = (" | ".join(self._cells(row, above)) for row in kept)
                yield "\n".join(row for row in rows if row.strip(" |"))
            elif name not in SKIPPED:
                yield from self._blocks(element)

    def _cells(self, row: Element, above: dict[int, str]) -> Iterator[str]:
        """Yield the cells of a row; ``above`` are those that reach into it, by column."""
        column = 0
        for cell in _own(row, "tc"):
            text = " ".join(" ".join(self._blocks(cell)).split())
            merged = child(cell, "tcPr", "vMerge")
            if merged is None:
                above.pop(column, None)
            elif get(merged, "val") == "restart":
                above[column] = text
            else:
                text = text or above.get(column, "")
            yield text
            span = get(child(cell, "tcPr", "gridSpan"), "val")
            column += int(span) if span.isdigit() else 1

    def _paragraph(self, element: Element) -> Iterator[str]:
        outer, self.pending, self.boxes = (self.pending, self.boxes), [], []
        text = BETWEEN.sub(" ", "".join(self._runs(element))).replace(EDGE, "").strip()
        notes, boxes = self.pending, self.boxes
        self.pending, self.boxes = outer
        settings = child(element, "pPr")
        style = self.styles.get(get(child(settings, "pStyle"), "val"), _Style())
        if child(settings, "rPr", "del") is not None:
            self.joined += f"{text} "
            text = ""
        elif self.joined:
            text, self.joined = self.joined + text, ""
        if text:
            label, depth = self._label(settings, style)
            level = _outline(settings, style)
            if level:
                yield f"{'#' * level} {f'{label} ' if label not in ('', '-') else ''}{text}"
            else:
                yield f"{'  ' * depth}{label} {text}" if label else text
        for box in boxes:
            yield from self._blocks(box)
        yield from notes

    def _runs(self, parent: Element) -> Iterator[str]:
        """Yield the text of a paragraph, with its links, fields, insertions and formulas."""
        for element in parent:
            name = tag(element)
            if name == "t":
                yield element.text or ""
            elif name in SIGNS:
                yield SIGNS[name]
            elif name in NOTES:
                yield self._note(NOTES[name], get(element, "id"))
            elif name == "commentReference":
                self._comment(get(element, "id"))
            elif name == "txbxContent":
                self.boxes.append(element)
            elif name == "oMath":
                yield f"{EDGE}{linear(element)}{EDGE}"
            elif name in ("relIds", "chart"):
                self.pending.append(self.package.drawn(self.package.main, element))
            elif name == "sym":
                yield _symbol(element)
            elif name == "r" and _is_on(child(element, "rPr", "vanish")):
                continue
            elif name not in SKIPPED:
                yield from self._runs(element)

    def _note(self, kind: str, number: str) -> str:
        element = self._notes(kind).get(number)
        if element is None:
            return ""
        mark = f"[{'e' if kind == 'endnotes' else ''}{number}]"
        self.pending.append(f"{mark} {' '.join(' '.join(self._blocks(element)).split())}")
        return mark

    def _comment(self, number: str) -> None:
        if (element := self._notes("comments").get(number)) is not None:
            author, text = get(element, "author"), " ".join(" ".join(self._blocks(element)).split())
            self.pending.append(f"[Comment{f' by {author}' if author else ''}: {text}]")

    def _notes(self, kind: str) -> dict[str, Element]:
        if kind not in self._known_notes:
            parts = self.package.related(self.package.main, kind)
            self._known_notes[kind] = {
                get(element, "id"): element for part in parts for element in self.package.xml(part)
            }
        return self._known_notes[kind]

    @cached_property
    def _known_notes(self) -> dict[str, dict[str, Element]]:
        return {}

    @cached_property
    def styles(self) -> dict[str, _Style]:
        parts = self.package.related(self.package.main, "styles")
        elements = {get(e, "styleId"): e for part in parts for e in self.package.xml(part)}
        return {name: _Style.of(name, elements) for name in elements if name}

    @cached_property
    def _lists(self) -> dict[str, tuple[str, dict[int, Level]]]:
        """For each list: of which kind of list it is, and its levels."""
        abstract: dict[str, dict[int, Level]] = {}
        same: dict[str, str] = {}  # kind of list: the style of lists that it takes its levels from
        styles: dict[str, str] = {}  # name of a style of lists: the kind of list it is
        lists: dict[str, tuple[str, dict[int, Level]]] = {}
        for part in self.package.related(self.package.main, "numbering"):
            for element in self.package.xml(part):
                if tag(element) == "abstractNum":
                    kind = get(element, "abstractNumId")
                    abstract[kind] = _levels(element)
                    styles |= {get(child(element, "styleLink"), "val"): kind}
                    same[kind] = get(child(element, "numStyleLink"), "val")
                elif tag(element) == "num":
                    kind = get(child(element, "abstractNumId"), "val")
                    kind = styles.get(same.get(kind) or "none", kind)
                    own = _overrides(element, abstract.get(kind, {}))
                    restarts = child(element, "lvlOverride", "startOverride") is not None
                    name = get(element, "numId")
                    lists[name] = f"{kind} of {name}" if restarts else kind, own
        return lists

    def _label(self, settings: Element | None, style: _Style) -> tuple[str, int]:
        """Return number or mark of a list item and its depth, "" for what is none."""
        numbering = child(settings, "numPr")
        list_id = get(child(numbering, "numId"), "val") or style.list_id
        depth = get(child(numbering, "ilvl"), "val") or style.list_level
        known = self._lists.get(list_id)
        if known is None or not depth.isdigit():
            return "", 0
        counter_name, levels = known
        level = levels.get(at := int(depth))
        if level is None or level.kind == "none":
            return "", 0
        if level.kind == "bullet":
            return "-", at
        counters = self.counters.setdefault(counter_name, {})
        counters[at] = counters.get(at, level.start - 1) + 1
        for deeper in [deep for deep in counters if deep > at]:
            del counters[deeper]

        def number(match: re.Match[str]) -> str:
            its = levels.get(int(match[1]) - 1, level)
            kind = "decimal" if level.legal else its.kind
            return shown_number(counters.get(int(match[1]) - 1, its.start), kind)

        return re.sub(r"%([1-9])", number, level.shown), at


@dataclass(frozen=True)
class _Style:
    """What a style of paragraphs, and those that it is based on, say about them."""

    outline: int = 0  # level of a heading; 0 for text
    list_id: str = ""
    list_level: str = "0"

    @classmethod
    def of(cls, name: str, elements: dict[str, Element]) -> _Style:
        outline, list_id, list_level, seen = 0, "", "", set[str]()
        while name in elements and name not in seen:
            seen.add(name)
            element = elements[name]
            settings = child(element, "pPr")
            outline = outline or _heading(get(child(element, "name"), "val"), settings)
            list_id = list_id or get(child(settings, "numPr", "numId"), "val")
            list_level = list_level or get(child(settings, "numPr", "ilvl"), "val")
            name = get(child(element, "basedOn"), "val")
        return cls(outline, list_id, list_level or "0")


def _heading(name: str, settings: Element | None) -> int:
    if name == "Title":
        return 1
    if match := re.fullmatch(r"heading ([1-9])", name.lower()):
        return min(6, int(match[1]))
    level = get(child(settings, "outlineLvl"), "val")
    return min(6, int(level) + 1) if level.isdigit() and int(level) < 9 else 0


def _outline(settings: Element | None, style: _Style) -> int:
    return _heading("", settings) or style.outline


def _levels(element: Element) -> dict[int, Level]:
    levels = {}
    for each in element:
        if tag(each) == "lvl" and get(each, "ilvl").isdigit():
            start = get(child(each, "start"), "val", "1")
            levels[int(get(each, "ilvl"))] = Level(
                int(start) if start.isdigit() else 1,
                get(child(each, "numFmt"), "val", "decimal"),
                get(child(each, "lvlText"), "val"),
                _is_on(child(each, "isLgl")),
            )
    return levels


def _overrides(element: Element, levels: dict[int, Level]) -> dict[int, Level]:
    """Return the levels of one list, some of which may differ from those of its kind."""
    levels = dict(levels)
    for each in element:
        if tag(each) == "lvlOverride" and get(each, "ilvl").isdigit():
            levels |= _levels(each)
            at, start = int(get(each, "ilvl")), get(child(each, "startOverride"), "val")
            if start.isdigit() and at in levels:
                levels[at] = replace(levels[at], start=int(start))
    return levels


def _symbol(element: Element) -> str:
    code = int(get(element, "char") or "20", 16)
    return "" if 0xE000 <= code < 0xF900 else chr(code)  # of a font that has its own letters


def _is_on(setting: Element | None) -> bool:
    return setting is not None and get(setting, "val", "1") not in ("0", "false", "off")


def _own(parent: Element, name: str) -> Iterator[Element]:
    """Yield the rows of a table or cells of a row, without those of nested tables."""
    for element in parent:
        if tag(element) == name:
            yield element
        elif tag(element) not in ("tbl", *SKIPPED):
            yield from _own(element, name)


def read_slides(path: Path, data: bytes, note: Note) -> list[str]:
    """Read a PPTX: a page for each slide, with its speaker's notes."""
    with open_archive(path, data) as archive:
        package = Package(archive)
        relations = package.relations(package.main)
        shown = within(package.xml(package.main), "sldId")
        names = [relations.get(_relation_id(slide), ("", ""))[1] for slide in shown]
        return [_slide(package, name) for name in names if name in package.names]


def _relation_id(element: Element) -> str:
    """Return the id of a relation; beside it an element may have another one of its own."""
    return next((str(v) for key, v in element.attrib.items() if str(key).endswith("}id")), "")


def _slide(package: Package, name: str) -> str:
    blocks = list(_shapes(package.xml(name), package, name))
    for part in package.related(name, "notesSlide"):
        shapes = _shapes(package.xml(part), package, part)
        notes = [text for text in shapes if not text.isdigit()]
        blocks += [f"Notes: {text}" for text in notes]
    return "\n\n".join(filter(None, blocks))


def _shapes(parent: Element, package: Package, part: str) -> Iterator[str]:
    """Yield the text of each shape and table of a slide."""
    for element in parent:
        name = tag(element)
        if name == "tbl":
            rows = (
                " | ".join(" ".join(" ".join(_lines(cell)).split()) for cell in _own(row, "tc"))
                for row in _own(element, "tr")
            )
            yield "\n".join(row for row in rows if row.strip(" |"))
        elif name == "txBody":
            lines = list(_lines(element))
            is_title = get(child(parent, "nvSpPr", "nvPr", "ph"), "type") in ("title", "ctrTitle")
            yield f"# {' '.join(lines)}" if is_title and any(lines) else "\n".join(lines)
        elif name in ("relIds", "chart"):
            yield package.drawn(part, element)
        elif name != "Fallback":
            yield from _shapes(element, package, part)


def _lines(body: Element) -> Iterator[str]:
    for paragraph in within(body, "p"):
        texts = []
        for element in within(paragraph, "t", "br", "oMath"):
            if tag(element) == "oMath":
                texts.append(f" {linear(element)} ")
            elif not any(tag(above) in ("oMath", "Fallback") for above in element.iterancestors()):
                texts.append("\n" if tag(element) == "br" else text_of(element))
        if line := "".join(texts).strip():
            yield line
