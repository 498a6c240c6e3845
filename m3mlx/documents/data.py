"""CSV and JSON to text in which every row or record stands alone.

What cannot be parsed, or would become many times as long, is read as plain text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .text import Note, decode

NUMBER = re.compile(r"[-+(]?\s*[$€£¥]?\s*\d[\d.,:/\s-]*\s*[%$€£¥)]?")
PERIOD = re.compile(  # a year, month or day that can name a column
    r"(?:1[6-9]|20|21)\d\d(?:[-/.]\d\d?(?:[-/.]\d\d?)?)?|\d\d?[-/.](?:\d\d?[-/.])?(?:\d\d){1,2}"
)
DECIMAL = re.compile(r"(?<=\d),(?=\d)")
JSON_LINES = re.compile(r"\{[^\n]*\}\r?\n\{[^\n]*\}\s*(?:\n|\Z)")  # though named otherwise
SAMPLE = 50  # rows that tell delimiter and names
MOST = 12  # times the length of the file; longer text repeats itself
LEAST = 100_000  # characters that any file may become


class _TooLong(Exception):
    """The text would be many times as long as its file."""


def _bounded(lines: Iterable[str], limit: int) -> Iterator[str]:
    length = 0
    for line in lines:
        length += len(line) + 1
        if length > limit:
            raise _TooLong
        yield line


def read_table(path: Path, data: bytes, note: Note) -> str:
    """Write each row as ``column: value; column: value``, on its line of the file."""
    source = decode(path, data, note)
    first, _, rest = source.partition("\n")
    if named := re.fullmatch(r"\"?sep=(.)\"?\r?", first):  # a word to Excel
        delimiter, source_rows = named[1], f"\n{rest}"
    else:
        delimiter, source_rows = _delimiter(source, path.suffix.lower() == ".tsv"), source
    rows = csv.reader(io.StringIO(source_rows, newline=""), delimiter=delimiter, strict=True)
    try:
        return "\n".join(_bounded(_lined(rows), MOST * len(source) + LEAST))
    except (csv.Error, _TooLong):
        return source


def _delimiter(source: str, tabs: bool) -> str:
    """Return the delimiter by which most rows have the same number of cells, and more than one."""
    sample = source[:50_000].splitlines()[:SAMPLE]
    whole = [DECIMAL.sub("", line) if {*";\t|"} & {*line} else line for line in sample]

    def worth(delimiter: str) -> tuple[int, int]:
        lines = whole if delimiter == "," else sample
        widths = Counter(map(len, csv.reader(lines, delimiter=delimiter)))
        return max(((count, width) for width, count in widths.items() if width > 1), default=(0, 0))

    try:
        return max("\t,;|" if tabs else ",;\t|", key=worth)
    except csv.Error:  # reported where the rows are read
        return "\t" if tabs else ","


def _lined(rows: Any) -> Iterator[str]:
    """Yield a line for each row of a csv reader (its type has no name), on its line of the file."""
    ends: list[int] = []

    def cells() -> Iterator[list[str]]:
        for row in rows:
            ends.append(rows.line_num)
            yield [" ".join(cell.split()) for cell in row]

    lines = 0
    for number, line in enumerate(describe(cells())):
        yield line
        lines += 1
        while lines < ends[number]:  # a cell with newlines: the next row keeps its line
            yield ""
            lines += 1


def describe(rows: Iterable[list[str]], limit: int | None = None) -> Iterator[str]:
    """Write each row of a table with the names of its columns.

    Lines above the names stay as they are.

    Args:
        limit: characters after which cells come without the names.
    """
    rows = iter(rows)
    sample = list(islice(rows, SAMPLE))
    widths = Counter(len([cell for cell in row if cell]) and len(row) for row in sample)
    width = max(widths, key=lambda width: (width > 1, widths[width], -width), default=0)
    names: list[str] = []
    above, length = True, 0
    for row in chain(sample, rows):
        filled = sum(map(bool, row))
        if above and filled > 1 and (len(row) >= width and 2 * filled > width):
            above = False
            if _are_names(row, sample):
                names = row
                yield f"Columns: {'; '.join(filter(None, row))}"
                continue
        if above:
            yield "; ".join(filter(None, row))
            continue
        if limit is not None and length > limit:
            yield " | ".join(row)
            continue
        every = names + [f"column {i + 1}" for i in range(len(names), len(row))]
        pairs = zip(every, row, strict=False)
        line = "; ".join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell)
        length += len(line)
        yield line


def _are_names(row: list[str], sample: list[list[str]]) -> bool:
    """Tell whether a row has the names of columns: words, or years and days above what are none."""
    numbers = [i for i, cell in enumerate(row) if NUMBER.fullmatch(cell)]
    if not numbers:
        return True
    below = sample[next(i for i, each in enumerate(sample) if each is row) + 1 :]
    others = [each[i] for each in below for i in numbers if i < len(each) and each[i]]
    return (
        len(numbers) < len(row)
        and all(PERIOD.fullmatch(row[i]) for i in numbers)
        and len({row[i] for i in numbers}) == len(numbers)
        and bool(others)
        and not all(map(PERIOD.fullmatch, others))
    )


def read_lines(path: Path, data: bytes, note: Note) -> str:
    """Write each record of JSON lines as ``key: value; key: value`` on its own line."""
    lines = decode(path, data, note).splitlines()
    return "\n".join(
        _parsed(line, lambda tree, limit: [_record(tree, "", limit)]) for line in lines
    )


def read_json(path: Path, data: bytes, note: Note) -> str:
    """Write a line for each value, and one for each record of a list."""
    source = decode(path, data, note).removeprefix("\ufeff")
    if JSON_LINES.match(source):
        return read_lines(path, data, note)
    return _parsed(source, _values)


def _parsed(source: str, render: Callable[[object, int], Iterable[str]]) -> str:
    limit = MOST * len(source) + LEAST
    try:
        return "\n".join(_bounded(render(json.loads(source), limit), limit))
    except (ValueError, RecursionError, _TooLong):
        return source


def _values(tree: object, limit: int) -> Iterator[str]:
    """Yield a line for each value of a JSON tree, and one for each record of a list."""
    for name, value in _flat(tree, "", whole=False):
        yield _record(value, name, limit)


def _record(value: object, name: str, limit: int) -> str:
    pairs = ((inner, _scalar(each)) for inner, each in _flat(value, name, whole=True))
    texts = (f"{inner}: {text}" if inner else text for inner, text in pairs)
    return "; ".join(_bounded(texts, limit))


def _flat(value: object, name: str, whole: bool) -> Iterator[tuple[str, object]]:
    """Yield the values of a JSON tree with their names, ``path.to.key``.

    Args:
        whole: with lists of records in parts; else each of their records is a value.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key, whole)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for i, inner in enumerate(value, 1):
            each = f"{name} {i}".strip() if name or whole else ""
            if whole:
                yield from _flat(inner, each, whole)
            else:
                yield each, inner
    elif isinstance(value, list) and not whole and not name:
        yield from (("", inner) for inner in value)
    elif value not in ([], ""):
        yield name, value


def _scalar(value: object) -> str:
    """Write a value, or a list of values, in a line."""
    if isinstance(value, list):
        return ", ".join(map(_scalar, value))
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
