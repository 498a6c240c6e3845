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
_STEADY = 1000  # tokens of earlier runs that count beside the latest, however small that is


def note(model: str, task: str, tokens: float, seconds: float, enough: int = _ENOUGH) -> None:
    """Keep how long a model took for so many tokens of a task: storing, writing or answering.

    Earlier runs count for half of the latest at most, unless that is very small: how busy a
    machine is changes.
    """
    if tokens < enough or seconds <= 0:
        return
    all_known = _read(model)
    before = all_known.get(task, (0.0, 0.0))
    share = min(1.0, max(tokens / 2, min(_STEADY, 2 * tokens)) / before[0]) if before[0] else 0.0
    now = (tokens + share * before[0], seconds + share * before[1])
    with suppress(OSError):  # without it only an estimate is missing
        files.write_text(_file(model), json.dumps({**all_known, task: now}))


def rate(model: str, task: str) -> float | None:
    """Return the tokens of a task that a model does in a second; None if none was measured."""
    known = _read(model).get(task)
    return known[0] / known[1] if known else None


def seconds(model: str, task: str, tokens: float) -> float | None:
    """Return how long so many tokens of a task take; None if nothing was measured."""
    known = rate(model, task)
    return tokens / known if known else None


def _read(model: str) -> dict[str, tuple[float, float]]:
    """Return tokens and seconds of each task."""
    try:
        known = json.loads(_file(model).read_text("utf-8"))
        pairs = {str(task): (float(done), float(took)) for task, (done, took) in known.items()}
        return {task: pair for task, pair in pairs.items() if min(pair) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # nothing measured, or damaged, or of an earlier version


def _file(model: str) -> Path:
    return cache_folder() / "rates" / f"{digest(['rates', model])[:32]}.json"
