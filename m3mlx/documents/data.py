"""CSV and JSON to text in which every row or record stands alone.

What cannot be parsed is read as plain text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .text import Note, decode

NUMBER = re.compile(r"\s*[-+]?[\d.,]+%?\s*")


def read_table(path: Path, data: bytes, note: Note) -> str:
    """Write each row as ``column: value; column: value``, on its line of the file."""
    source = decode(path, data, note=note)
    sample = source[:20_000].splitlines()[:20]
    try:
        # the delimiter that gives every row the most cells
        delimiter = max(
            "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|",
            key=lambda d: min(map(len, filter(None, csv.reader(sample, delimiter=d))), default=0),
        )
        rows = csv.reader(io.StringIO(source, newline=""), delimiter=delimiter, strict=True)
        return "\n".join(_lines(rows))
    except csv.Error:
        return source


def _lines(rows: Any) -> Iterator[str]:
    """Yield a line for each row of a csv reader; its type has no public name."""
    columns: list[str] | None = None
    lines = 0
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        if columns is None and any(cells) and not any(map(NUMBER.fullmatch, cells)):
            columns = cells
            yield f"Columns: {'; '.join(filter(None, cells))}"
        else:
            columns = columns or []
            names = columns + [f"column {i + 1}" for i in range(len(columns), len(cells))]
            pairs = zip(names, cells, strict=False)
            yield "; ".join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell)
        lines += 1
        while lines < rows.line_num:  # a cell with newlines: the next row keeps its line
            yield ""
            lines += 1


def read_lines(path: Path, data: bytes, note: Note) -> str:
    """Write each record of JSON lines as ``key: value; key: value`` on its own line."""
    return "\n".join(_parsed(line, _record) for line in decode(path, data, note=note).splitlines())


def read_json(path: Path, data: bytes, note: Note) -> str:
    """Write a line for each value, or for each element where the whole is a list."""
    return _parsed(
        decode(path, data, note=note),
        lambda tree: "\n".join(map(_record, tree) if isinstance(tree, list) else _flat(tree)),
    )


def _parsed(source: str, render: Callable[[object], str]) -> str:
    try:
        return render(json.loads(source))
    except (ValueError, RecursionError):
        return source


def _record(value: object) -> str:
    return "; ".join(_flat(value))


def _flat(value: object, name: str = "") -> Iterator[str]:
    """Yield the values of a JSON tree as ``path.to.key: value``."""
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
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
