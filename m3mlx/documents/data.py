"""CSV and JSON to text in which every row or record stands alone.

What cannot be parsed is still text, and is read as the text that it is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .text import decode

NUMBER = re.compile(r"\s*[-+]?[\d.,]+%?\s*")


def read_table(path: Path, data: bytes) -> str:
    """Each row as ``column: value; column: value`` on the line of the file that it begins on."""
    source = decode(path, data)
    sample = source[:20_000].splitlines()[:20]
    try:
        # the delimiter that gives every row the most cells
        delimiter = max(
            "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|",
            key=lambda d: min(map(len, filter(None, csv.reader(sample, delimiter=d))), default=0),
        )
        reader = csv.reader(io.StringIO(source, newline=""), delimiter=delimiter, strict=True)
        return "\n".join(_rows(reader))
    except csv.Error:
        return source


def _rows(reader) -> Iterator[str]:
    columns: list[str] | None = None
    lines = 0
    for row in reader:
        cells = [" ".join(cell.split()) for cell in row]
        if columns is None and any(cells) and not any(map(NUMBER.fullmatch, cells)):
            columns = cells
            yield f"Columns: {'; '.join(filter(None, cells))}"
        else:
            columns = columns or []
            yield _row(cells, columns)
        lines += 1
        while lines < reader.line_num:  # a cell with newlines: the next row keeps its line
            yield ""
            lines += 1


def _row(cells: list[str], columns: list[str]) -> str:
    names = columns + [f"column {i + 1}" for i in range(len(columns), len(cells))]
    pairs = zip(names, cells, strict=False)
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell)


def read_lines(path: Path, data: bytes) -> str:
    """JSON lines: each record as ``key: value; key: value`` on its own line."""
    return "\n".join(_record(line) for line in decode(path, data).splitlines())


def _record(line: str) -> str:
    try:
        return "; ".join(_flat(json.loads(line)))
    except (ValueError, RecursionError):
        return line


def read_json(path: Path, data: bytes) -> str:
    """One line for each value, or for each element where the whole is a list."""
    source = decode(path, data)
    try:
        value = json.loads(source)
        if isinstance(value, list):
            return "\n".join("; ".join(_flat(element)) for element in value)
        return "\n".join(_flat(value))
    except (ValueError, RecursionError):
        return source


def _flat(value: object, name: str = "") -> Iterator[str]:
    """Values of a JSON tree as ``path.to.key: value``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        if any(isinstance(inner, dict | list) for inner in value):
            for i, inner in enumerate(value, 1):
                yield from _flat(inner, f"{name} {i}".strip())
        elif value:
            yield from _flat(", ".join(map(_scalar, value)), name)
    else:
        text = _scalar(value)
        yield f"{name}: {text}" if name else text


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    return json.dumps(value)
