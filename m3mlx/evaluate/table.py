"""A result with a few columns, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return float(mean(known)) if known else None


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
