"""Cut a document into references of at most 128 tokens, where a reader would cut it.

Of the places where a reference may end, the best one weighs how full the reference is against the
worth of the place: before a heading, between paragraphs, after a sentence, …
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter

from ..config import REFERENCE_TOKENS
from .document import Document

Tokenize = Callable[[str], tuple[list[int], list[tuple[int, int]]]]

# worth of the place of a cut, in shares of a full reference
HEADING, PARAGRAPH, SENTENCE, LINE, WORD, CHARACTER = 1.2, 0.9, 0.6, 0.3, 0.0, -0.5

# possessive: a run of signs is tried once, so that time is linear in its length
SENTENCE_END = re.compile(
    r"(?<![.!?…؟।])(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|No|vs|cf))(?<!\b(?:Mrs|Fig|e\.g|i\.e|bzw))"
    r"[.!?…؟।]++[\"'”’»)\]]*+(?=\s++[^a-z])|[。！？．]++[」』”’）]*+"
)
ENDED = re.compile(r"[.!?…:؟।。！？．][\"'”’»)\]」』）]*\Z")
MARKED = re.compile(r"#{1,6} \S|=+ \S")  # headings of Markdown and AsciiDoc
VISIBLE = re.compile(r"\S")
RULE = re.compile(r"([=\-~^\"*+])\1{2,}")
ITEM = re.compile(r"[-*+•] |\(?\w{1,3}[.)] ")
# code points that continue a character, beside the marks: joiners, skin tones, tags, inner parts
# of old Hangul, vowels of Thai and Lao, half-width marks of Japanese
BOUND = {0x200C, 0x200D, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
BOUND |= {*range(0x1160, 0x1200), 0x0E33, 0x0EB3, 0xFF9E, 0xFF9F}


@dataclass(frozen=True)
class Reference:
    """A piece of a document that becomes one memory.

    Attributes:
        start, end: characters of the document's text.
        text: these characters, without white space at either end.
        tokens: the decoder's ids of ``text``, without special tokens.
        page, line: where it starts, from 1; None for formats without them.
    """

    start: int
    end: int
    text: str
    tokens: tuple[int, ...]
    page: int | None = None
    line: int | None = None


def split(
    document: Document, tokenize: Tokenize, max_tokens: int = REFERENCE_TOKENS
) -> list[Reference]:
    """Cut a document into references; every visible character is in exactly one, in order.

    Args:
        tokenize: text -> token ids and the characters that each came from, without special
            tokens; several tokens may share one character.

    Raises:
        ValueError: one character alone has more than ``max_tokens`` tokens.
    """
    text = document.text
    places = list(_places(text, document.kind))
    references = []
    end, guess = 0, 8 * max_tokens  # characters that will hold more than enough tokens
    while visible := VISIBLE.search(text, end):
        start = visible.start()
        limit = _reach(text, start, guess, tokenize, max_tokens)
        while True:
            end = _best_end(text, start, limit, places)
            piece = text[start:end].rstrip()
            ids, offsets = tokenize(piece)
            if len(ids) <= max_tokens:
                break
            # cut off from what follows, the last word can have more tokens
            fits = start + offsets[max_tokens - 1][1]
            limit = min(fits, limit - 1, end - 1)
        if ids:  # a tokenizer may drop what it does not know
            page, line = document.page_of(start), document.line_of(start)
            stop = start + len(piece)
            references.append(Reference(start, stop, piece, tuple(ids), page, line))
        guess = 5 * (limit - start) // 4 + max_tokens // 4
    return references


def _reach(text: str, start: int, guess: int, tokenize: Tokenize, max_tokens: int) -> int:
    """Return about where the text has ``max_tokens`` tokens, never a whole token before it."""
    while True:
        offsets = tokenize(text[start : start + guess])[1]
        if len(offsets) > max_tokens:
            return start + offsets[max_tokens - 1][1]
        if start + guess >= len(text):
            return len(text)
        guess *= 2


def _best_end(text: str, start: int, limit: int, places: list[tuple[int, float]]) -> int:
    """Return the best end of a reference in (start, limit]."""
    if limit <= start:
        raise ValueError(f"{text[start]!r} alone has more tokens than a reference may have")
    if limit == len(text):
        return limit
    first, last = (bisect_right(places, end, key=itemgetter(0)) for end in (start, limit))
    back = range(limit, start, -1)
    word = next((i for i in back if text[i].isspace()), start)
    character = next((i for i in back if _starts_character(text, start, i)), start)
    ends = [*places[first:last], (word, WORD), (character, CHARACTER)]
    # one character of base and many marks can be longer than a reference: it has to be cut
    ends = [place for place in ends if place[0] > start] or [(limit, CHARACTER)]
    return max(ends, key=lambda place: (place[0] - start) / (limit - start) + place[1])[0]


def _starts_character(text: str, start: int, i: int) -> bool:
    """Tell whether ``text[i]`` starts what a reader calls a character, as ``text[start]`` does."""
    if ord(text[i]) in BOUND or unicodedata.category(text[i])[0] == "M" or text[i - 1] == "\u200d":
        return False
    first = i  # of the letters that pair up to flags
    while first > start and _is_flag(text[i]) and _is_flag(text[first - 1]):
        first -= 1
    return (i - first) % 2 == 0


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _places(text: str, kind: str) -> Iterator[tuple[int, float]]:
    """Yield the places where a reference may well end, in order, and their worth.

    None is behind a heading, which belongs to what follows.
    """
    lines = text.split("\n")
    start = end = 0  # of this line; of the last line that was not blank
    blank = heading = False
    for i, line in enumerate(lines):
        stripped = line.strip()
        if stripped:
            was_heading = heading
            heading = kind == "prose" and (
                _is_heading(lines, i) or (was_heading and bool(RULE.fullmatch(stripped)))
            )
            if end and not was_heading:
                yield end, _worth(kind, line, lines[i - 1], blank, heading)
            if kind == "prose":
                for match in SENTENCE_END.finditer(line):
                    yield start + match.end(), SENTENCE
            end = start + len(line.rstrip())
        blank = not stripped
        start += len(line) + 1


def _worth(kind: str, line: str, before: str, blank: bool, heading: bool) -> float:
    """Return the worth of a cut between two lines."""
    if kind == "rows":
        return PARAGRAPH
    if heading or (kind == "code" and blank and not line[0].isspace()):
        return HEADING
    if blank:
        return PARAGRAPH
    if kind == "code" or ITEM.match(line.lstrip()) or ENDED.search(before.rstrip()):
        return SENTENCE
    return LINE


def _is_heading(lines: list[str], i: int) -> bool:
    """Tell whether a line is a heading (Markdown, AsciiDoc, reStructuredText) or its overline."""
    if MARKED.match(lines[i]):
        return True
    below = [bool(RULE.fullmatch(line.strip())) for line in lines[i : i + 3]]
    if below[0]:
        return len(below) > 2 and below[2] and not below[1] and bool(lines[i + 1].strip())
    return len(below) > 1 and below[1]
