"""How fast each model works on this machine, as measured whenever it works.

Rates are kept in the cache folder, one file for each model and device, and say what a run will
take before anything is computed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from .. import files
from ..config import cache_folder, digest

_ENOUGH = 400  # tokens; fewer tell nothing


def note(model: str, task: str, tokens: float, seconds: float, enough: int = _ENOUGH) -> None:
    """Keep how long a model took for so many tokens of a task: storing, writing or answering."""
    if tokens < enough or seconds <= 0:
        return
    rate, known = tokens / seconds, _read(model)
    before = known.get(task, rate)
    with suppress(OSError):  # without it only an estimate is missing
        files.write_text(_file(model), json.dumps({**known, task: (before + rate) / 2}))


def rate(model: str, task: str) -> float | None:
    """Return the tokens of a task that a model does in a second; None if none was measured."""
    return _read(model).get(task)


def seconds(model: str, task: str, tokens: float) -> float | None:
    """Return how long so many tokens of a task take; None if nothing was measured."""
    known = rate(model, task)
    return tokens / known if known else None


def _read(model: str) -> dict[str, float]:
    try:
        known = json.loads(_file(model).read_text("utf-8"))
        return {str(task): float(rate) for task, rate in known.items() if float(rate) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # nothing measured, or damaged


def _file(model: str) -> Path:
    return cache_folder() / "rates" / f"{digest(['rates', model])[:32]}.json"
