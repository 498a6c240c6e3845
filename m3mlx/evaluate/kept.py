"""Answers of an evaluation that are kept, so that it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import M3Error
from ..files import create_private


@dataclass
class Outcome:
    """One question in one condition: the answer, or the likelihood of the right one."""

    said: str
    nll: float | None
    first_token_seconds: float


class Kept:
    """Outcomes by condition and question, in a file that grows line by line.

    Raises:
        M3Error: a line is damaged; the last one may be cut off.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        if path is None or not path.exists():
            return
        lines = path.read_text("utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                data = json.loads(line)
                said, nll, seconds = (data[field] for field in Outcome.__annotations__)
                self.outcomes[data["condition"], data["question"]] = Outcome(said, nll, seconds)
            except (ValueError, KeyError, TypeError) as error:
                message = f"{path}, line {number}: damaged ({error}). Delete the line to go on"
                raise M3Error(message) from error
        if lines[-1]:  # cut off
            path.write_text("\n".join([*lines[:-1], ""]), "utf-8")

    def add(self, condition: str, question: str, outcome: Outcome, about: dict[str, Any]) -> None:
        """Add an outcome; ``about`` tells people what it is."""
        self.outcomes[condition, question] = outcome
        if self.path is not None:
            line = {"condition": condition, "question": question, **asdict(outcome), **about}
            if not self.path.exists():  # it holds what documents say
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                create_private(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
