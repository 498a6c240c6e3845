"""How many references files become, judged by their sizes and by the files read before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..documents import format_of

_SIMPLE, _OTHER = 500, 4000  # bytes of a reference, in plain text and in other formats
_MEASURED = {  # on the files of docs/formats.md, where it is far from that
    **dict.fromkeys((".xlsx", ".xlsm", ".xls"), 1000),
    **dict.fromkeys((".mbox", ".eml"), 2000),
    **{".pdf": 8500, ".pptx": 50_000},
}


class File(NamedTuple):
    """A file to memorize; ``size`` in bytes."""

    path: str
    hash: str
    size: int


class Amount:
    """The references that some files will have; each file is taken, then counted once it is read.

    Files of one ending are alike: what was read of them tells more than what was read of others.
    """

    def __init__(self, files: Iterable[File]) -> None:
        self._waiting: Counter[str] = Counter()  # bytes by ending
        self._bytes: Counter[str] = Counter()  # of what was read
        self._references: Counter[str] = Counter()
        for file in files:
            self._waiting[_ending(file)] += file.size

    def take(self, file: File) -> None:
        """Leave a file out of those that wait."""
        self._waiting[_ending(file)] -= file.size

    def count(self, file: File, references: int) -> None:
        """Learn from a file that was read."""
        self._bytes[_ending(file)] += file.size
        self._references[_ending(file)] += references

    def waiting(self) -> int:
        """Return how many references the files that wait will have."""
        return round(sum(size * self._density(ending) for ending, size in self._waiting.items()))

    def _density(self, ending: str) -> float:
        """References of a byte, with one of the size that the files read so far let expect."""
        found = self._references.total() + 1
        expected = 1 + sum(size / _usual(each) for each, size in self._bytes.items())
        one = _usual(ending) * expected / found
        return (self._references[ending] + 1) / (self._bytes[ending] + one)


def _usual(ending: str) -> int:
    """Bytes of a reference, in most files of an ending."""
    form = format_of(Path(f"a{ending}"))
    return _MEASURED.get(ending, _SIMPLE if form is None or form.simple else _OTHER)


def _ending(file: File) -> str:
    return Path(file.path).suffix.lower()
