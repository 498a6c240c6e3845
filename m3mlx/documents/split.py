"""Cut a document into references of at most 128 tokens, where a reader would cut it.

Between the first character of a reference and the last that fits, the best end is a compromise
of how full the reference is and how good the place: before a heading, between paragraphs, after
a sentence, X code points and tokens it has.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..config import REFERENCE_TOKENS
from .document import Document

Tokenize = Callable[[str], tuple[list[int], list[tuple[int, int]]]]

# what the place of a cut is worth, in shares of a full reference
HEADING, PARAGRAPH, SENTENCE, LINE, WORD, CHARACTER = 1.2, 0.9, 0.6, 0.3, 0.0, -0.5

# a run of signs is tried once and never again from its middle: time stays linear in its length
SENTENCE_END = re.compile(
    r"(?<![.!?…؟।])(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|No|vs|cf))(?<!\b(?:Mrs|Fig|e\.g|i\.e|bzw))"
    r"[.!?…؟।]++[\"'”’»)\]]*+(?=\s++[^a-z])|[。！？．]++[」』”’）]*+"
)
ENDED = re.compile(r"[.!?…:؟।。！？．][\"'”’»)\]」』）]*\Z")
MARKED = re.compile(r"#{1,6} \S|=+ \S")  # as in Markdown or AsciiDoc
RULE = re.compile(r"([=\-~^\"*+])\1{2,}")
ITEM = re.compile(r"[-*+•] |\(?\w{1,3}[.)] ")
# what belongs to the character before it, beside the categories of marks: joiners, skin tones,
# tags, inner parts of old Hangul, vowels of Thai and Lao, half-width marks of Japanese
BOUND = {0x200C, 0x200D, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
BOUND |= {*range(0x1160, 0x1200), 0x0E33, 0x0EB3, 0xFF9E, 0xFF9F}


@dataclass(frozen=True)
class Reference:
    """A piece of a document that becomes one memory.

    Attributes:
        start, end: characters of the document's text.
        text: these characters; neither end is white space.
        tokens: the decoder's ids of ``text``, without special tokens.
        page, line: where it starts, from 1; None where the format has none.
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
    start, guess = 0, 8 * max_tokens  # characters that will hold more than enough tokens
    while (start := _skip_space(text, start)) < len(text):
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
            references.append(
                Reference(
                    start,
                    start + len(piece),
                    piece,
                    tuple(ids),
                    document.page_of(start),
                    document.line_of(start),
                )
            )
        guess = 5 * (limit - start) // 4 + max_tokens // 4
        start = end
    return references


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _reach(text: str, start: int, guess: int, tokenize: Tokenize, max_tokens: int) -> int:
    """About where the text has one reference of tokens; never short of it by a whole token."""
    while True:
        offsets = tokenize(text[start : start + guess])[1]
        if len(offsets) > max_tokens:
            return start + offsets[max_tokens - 1][1]
        if start + guess >= len(text):
            return len(text)
        guess *= 2


def _best_end(text: str, start: int, limit: int, places: list[tuple[int, float]]) -> int:
    """The best place for an end in (start, limit]."""
    if limit <= start:
        raise ValueError(f"{text[start]!r} alone has more tokens than a reference may have")
    if limit == len(text):
        return limit
    known = places[_after(places, start) : _after(places, limit)]
    word = limit
    while word > start and not text[word].isspace():
        word -= 1
    character = limit
    while character > start and not _between_characters(text, start, character):
        character -= 1
    known += [(word, WORD), (character, CHARACTER)]
    # one character longer than a reference: base and marks without end
    known = [(end, worth) for end, worth in known if end > start] or [(limit, CHARACTER)]
    return max(known, key=lambda place: (place[0] - start) / (limit - start) + place[1])[0]


def _after(places: list[tuple[int, float]], position: int) -> int:
    return bisect_right(places, position, key=lambda place: place[0])


def _between_characters(text: str, start: int, i: int) -> bool:
    """Whether what a reader calls one character ends before ``text[i]``; one ends at start."""
    if ord(text[i]) in BOUND or unicodedata.category(text[i])[0] == "M" or text[i - 1] == "\u200d":
        return False
    first = i  # of the letters that pair up to flags
    while first > start and _is_flag(text[i]) and _is_flag(text[first - 1]):
        first -= 1
    return (i - first) % 2 == 0


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _places(text: str, kind: str) -> Iterator[tuple[int, float]]:
    """Where a reference may well end, in order, and what each place is worth.

    No place follows a heading: it starts what it is the heading of.
    """
    lines = text.split("\n")
    start = end = 0  # of the line; of the last one that was not blank
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
    """What it is worth to cut between two lines."""
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
    """Whether a line is a heading of Markdown, AsciiDoc or reStructuredText, or its overline."""
    if MARKED.match(lines[i]):
        return True
    below = [bool(RULE.fullmatch(line.strip())) for line in lines[i : i + 3]]
    if below[0]:
        return len(below) > 2 and below[2] and not below[1] and bool(lines[i + 1].strip())
    return len(below) > 1 and below[1]
