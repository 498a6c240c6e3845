"""Where a text may well be cut, and what stands above each place: title, sections, table header."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter

from .document import Kind

# worth of the place of a cut, in shares of a full reference
HEADING, PARAGRAPH, SENTENCE, LINE = 1.2, 0.9, 0.6, 0.3

# possessive: a run of signs is tried once, so that time is linear in its length
SENTENCE_END = re.compile(
    r"(?<![.!?…؟।])(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|No|vs|cf))(?<!\b(?:Mrs|Fig|e\.g|i\.e|bzw))"
    r"[.!?…؟।]++[\"'”’»)\]]*+(?=\s++[^a-z])|[。！？．]++[」』”’）]*+"
)
ENDED = re.compile(r"[.!?…:؟।。！？．][\"'”’»)\]」』）]*\Z")
MARKED = re.compile(r"(#{1,6}|=+) (\S.*)")  # headings of Markdown and AsciiDoc
RULE = re.compile(r"([=\-~^\"*+])\1{2,}")
ITEM = re.compile(r"[-*+•] |\(?\w{1,3}[.)] ")
FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
ROW = re.compile(r"\s*\|.*|.*\S \| \S.*")
ROW_RULE = re.compile(r"\s*\|?[\s:|-]*-{2,}[\s:|-]*")
TITLE = re.compile(r"title:\s*[\"']?(.*?)[\"']?\s*")  # in the settings at the head of a note
SETTINGS = "---"
MOST_SETTINGS = 50  # lines
SHOWN = 80  # characters of a title or section


@dataclass
class Outline:
    """The structure of one text.

    Attributes:
        places: characters where a reference may well end, and how much each is worth.
        headings: character, level from 1, and words of each heading.
        tables: first character behind the header, end, and header of each table.
    """

    places: list[tuple[int, float]] = field(default_factory=list)
    headings: list[tuple[int, int, str]] = field(default_factory=list)
    tables: list[tuple[int, int, str]] = field(default_factory=list)

    def above(self, start: int) -> tuple[str, str]:
        """Return title and sections that a place is in, and the header of its table; or ""."""
        after = bisect_right(self.headings, start, key=itemgetter(0))
        level, path = 7, list[str]()
        for offset, its, words in reversed(self.headings[:after]):
            if its < level:
                level = its
                if offset < start:  # else the reference begins with it
                    path.append(words)
            if level == 1:
                break
        header = ""
        if found := bisect_right(self.tables, start, key=itemgetter(0)):
            _, end, words = self.tables[found - 1]
            header = words if start < end else ""
        return " › ".join(reversed(path)), header


def outline(text: str, kind: Kind) -> Outline:
    """Find the structure of a text. No place for a cut is behind what belongs to what follows."""
    return _Scan(text, kind).outline


class _Scan:
    """One walk over the lines of a text."""

    def __init__(self, text: str, kind: Kind) -> None:
        self.lines = text.split("\n")
        self.kind = kind
        self.outline = Outline()
        self.fence = ""  # that closes the code of these lines
        self.table: tuple[int, str] | None = None  # first character behind the header; header
        self.settings = self._end_of_settings() if kind == "prose" else 0
        start = end = 0  # of this line; of the last line that was not blank
        blank = bound = False
        for i, line in enumerate(self.lines):
            if line.strip():
                was_bound, bound = bound, False
                heading = False
                if kind == "prose":
                    heading, bound = self._look(i, start, was_bound)
                if end and not was_bound:
                    worth = self._worth(i, line, blank, heading)
                    self.outline.places.append((end, worth))
                if kind == "prose" and not (self.fence or self.table or i < self.settings):
                    ends = SENTENCE_END.finditer(line)
                    self.outline.places += ((start + e.end(), SENTENCE) for e in ends)
                end = start + len(line.rstrip())
            elif self.table:
                self._end_table(start)
            blank = not line.strip()
            start += len(line) + 1
        self._end_table(start)

    def _end_of_settings(self) -> int:
        """Return the number of lines of the settings at the head of a note, 0 if there are none."""
        if self.lines[0].strip() != SETTINGS:
            return 0
        for i, line in enumerate(self.lines[1:MOST_SETTINGS], 1):
            if line.strip() == SETTINGS:
                return i + 1
        return 0

    def _look(self, i: int, start: int, was_bound: bool) -> tuple[bool, bool]:
        """Take note of a line; return whether it is a heading, and is bound to what follows."""
        line = self.lines[i]
        if i < self.settings:
            if title := TITLE.fullmatch(line):
                self.outline.headings.append((start, 1, title[1][:SHOWN]))
            return False, True
        if fence := FENCE.match(line):
            opens = not self.fence
            if opens:
                self.fence = fence[1]
            elif line.strip().startswith(self.fence) and not line.strip().strip(self.fence[0]):
                self.fence = ""
            return False, opens
        if self.fence:
            return False, False
        if ROW.fullmatch(line):
            return False, self._look_at_row(i, start)
        self._end_table(start)
        if self._is_heading(i):
            self._add_heading(i, start)
            return True, True
        is_underline = was_bound and bool(RULE.fullmatch(line.strip()))
        return is_underline, is_underline

    def _look_at_row(self, i: int, start: int) -> bool:
        """Take note of a row of a table; return whether it is its header or below that."""
        line = self.lines[i]
        if self.table is None:
            below = self.lines[i + 1] if i + 1 < len(self.lines) else ""
            self.table = start + len(line) + 1, " ".join(line.split())
            return bool(ROW.fullmatch(below))
        if ROW_RULE.fullmatch(line):
            self.table = start + len(line) + 1, self.table[1]
            return True
        return False

    def _end_table(self, start: int) -> None:
        if self.table is not None:
            self.outline.tables.append((self.table[0], start, self.table[1]))
        self.table = None

    def _is_heading(self, i: int) -> bool:
        """Tell whether a line is a heading (Markdown, AsciiDoc, reST) or its overline."""
        if MARKED.match(self.lines[i]):
            return True
        below = [bool(RULE.fullmatch(line.strip())) for line in self.lines[i : i + 3]]
        if below[0]:
            named = bool(self.lines[i + 1].strip()) if len(below) > 2 else False
            return len(below) > 2 and below[2] and not below[1] and named
        return len(below) > 1 and below[1]

    def _add_heading(self, i: int, start: int) -> None:
        line, below = self.lines[i : i + 2] if i + 1 < len(self.lines) else (self.lines[i], "")
        if marked := MARKED.match(line):
            level, words = len(marked[1]), marked[2].rstrip("# ")
        else:
            overlined = bool(RULE.fullmatch(line.strip()))
            words, rule = (below, line) if overlined else (line, below)
            level = 1 + "=-".find(rule.strip()[0]) or 3
        self.outline.headings.append((start, min(level, 6), " ".join(words.split())[:SHOWN]))

    def _worth(self, i: int, line: str, blank: bool, heading: bool) -> float:
        """Return the worth of a cut between two lines."""
        if self.kind == "rows":
            return PARAGRAPH
        if heading or (self.kind == "code" and blank and not line[0].isspace()):
            return HEADING
        if blank:
            return PARAGRAPH
        before = self.lines[i - 1].rstrip()
        if self.kind == "code" or self.fence or self.table or ITEM.match(line.lstrip()):
            return SENTENCE
        return SENTENCE if ENDED.search(before) else LINE
