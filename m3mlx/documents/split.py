"""Cut a document into references of at most 128 tokens, where a reader would cut it.

Of the places where a reference may end, the best one weighs how full the reference is against the
worth of the place: before a heading, between paragraphs, after a sentence, …
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from ..config import REFERENCE_TOKENS
from .document import Document
from .outline import Outline, outline

Tokenize = Callable[[str], tuple[list[int], list[tuple[int, int]]]]

WORD, CHARACTER = 0.0, -0.5  # worth of a cut between these, in shares of a full reference
ABOVE = 3  # at most a third of a reference tells what stands above it

VISIBLE = re.compile(r"\S")
# code points that continue a character, beside the marks: joiners, skin tones, tags, inner parts
# of old Hangul, vowels of Thai and Lao, half-width marks of Japanese
BOUND = {0x200C, 0x200D, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
BOUND |= {*range(0x1160, 0x1200), 0x0E33, 0x0EB3, 0xFF9E, 0xFF9F}


@dataclass(frozen=True)
class Reference:
    """A piece of a document that becomes one memory.

    Attributes:
        start, end: characters of the document's text.
        text: these characters, without white space at either end; before them the title and
            sections, and the header of the table, that they are below of.
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
    structure = outline(text, document.kind)
    references = []
    end, guess = 0, 8 * max_tokens  # characters that will hold more than enough tokens
    while visible := VISIBLE.search(text, end):
        start = visible.start()
        head, room = _above(structure, start, tokenize, max_tokens)
        limit = _reach(text, start, guess, tokenize, room)
        while True:
            if limit <= start and head:  # one character needs all the room
                head, limit = "", _reach(text, start, guess, tokenize, max_tokens)
            end = _best_end(text, start, limit, structure.places)
            piece = text[start:end].rstrip()
            ids, offsets = tokenize(head + piece)
            if len(ids) <= max_tokens:
                break
            # cut off from what follows, the last word can have more tokens
            fits = start + offsets[max_tokens - 1][1] - len(head)
            limit = min(fits, limit - 1, end - 1)
        if ids:  # a tokenizer may drop what it does not know
            page, line = document.page_of(start), document.line_of(start)
            stop = start + len(piece)
            references.append(Reference(start, stop, head + piece, tuple(ids), page, line))
        guess = 5 * (limit - start) // 4 + max_tokens // 4
    return references


def _above(structure: Outline, start: int, tokenize: Tokenize, max_tokens: int) -> tuple[str, int]:
    """Return what a reference tells of what stands above it, and the tokens left for its text."""
    path, header = structure.above(start)
    for lines in ((path, header), (header,), (path,)):
        head = "".join(f"{line}\n" for line in lines if line)
        size = len(tokenize(head)[0]) if head else 0
        if size * ABOVE <= max_tokens:
            return head, max_tokens - size
    return "", max_tokens


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
