"""A result with a few columns, for a terminal and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Rows of one measurement.

    Attributes:
        formats: format of the numbers in each column; "" for text.
        explanation: of the columns.
        rows: values by column; None where one was not measured.
    """

    formats: dict[str, str]
    explanation: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.formats)

    def cells(self) -> list[tuple[str, ...]]:
        return [
            tuple(
                "" if row.get(name) is None else format(row[name], form)
                for name, form in self.formats.items()
            )
            for row in self.rows
        ]

    def to_json(self) -> dict:
        return {"rows": self.rows, "explanation": self.explanation}
