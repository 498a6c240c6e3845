"""Make text of documents and file names safe to show and to compare, and cite places."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

# control characters except tab and line feed, surrogates, and marks that change text direction
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_LETTER = re.compile(r"[^\W\d_]")
_FOREIGN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")  # letters that are not Latin
_BREAKS = re.compile(r"\s*[\n\r\t\v\f\u2028\u2029]\s*")


class Place(Protocol):
    """Place of a reference in its document."""

    @property
    def path(self) -> str: ...
    @property
    def page(self) -> int | None: ...
    @property
    def line(self) -> int | None: ...


def nfc(text: str) -> str:
    """Compose characters, so that two spellings of a name compare equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def has_foreign(text: str) -> bool:
    """Return whether a text has a letter that is not Latin."""
    return not text.isascii() and _FOREIGN.search(text) is not None


def mostly_foreign(text: str) -> bool:
    """Return whether most letters of a text are not Latin."""
    if text.isascii():
        return False
    return 2 * len(_FOREIGN.findall(text)) > len(_LETTER.findall(text))


def scrub(text: str) -> str:
    """Replace characters that control a terminal or the direction of text."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def scrub_line(text: str) -> str:
    """Scrub text and join its lines."""
    return scrub(_BREAKS.sub(" ", text.strip()))


def cite(place: Place, store: str | None = None) -> str:
    """Cite a place: ``path, page 3`` or ``path:12``, with the store if given."""
    if place.page is not None:
        where = f"{place.path}, page {place.page}"
    else:
        where = place.path if place.line is None else f"{place.path}:{place.line}"
    return scrub_line(f"{where} (in {store})" if store else where)


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
