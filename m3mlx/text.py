"""Text of documents and file names, made safe to show, and places, as they are cited."""

from __future__ import annotations

import re
from typing import Protocol

# control characters but for tab and line feed, surrogates, and marks that turn the direction
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile(r"\s*[\n\r\t\v\f\u2028\u2029]\s*")


class Place(Protocol):
    """Where a reference stands in its document."""

    @property
    def path(self) -> str: ...
    @property
    def page(self) -> int | None: ...
    @property
    def line(self) -> int | None: ...


def scrub(text: str) -> str:
    """Replace what would steer a terminal or turn the direction of text."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def scrub_line(text: str) -> str:
    """Scrub text and join its lines."""
    return scrub(_BREAKS.sub(" ", text.strip()))


def cite(place: Place, store: str | None = None) -> str:
    """Name a place as people cite it: ``path, page 3`` or ``path:12``, and the store if given."""
    if place.page is not None:
        where = f"{place.path}, page {place.page}"
    else:
        where = place.path if place.line is None else f"{place.path}:{place.line}"
    return scrub_line(f"{where} (in {store})" if store else where)
