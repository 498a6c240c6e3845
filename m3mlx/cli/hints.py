"""What stands beside an answer: hints, and the speed that the model had."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..config import data_folder
from .render import human_bytes, note

if TYPE_CHECKING:
    from ..chat.step import Timings

_DAY = 24 * 3600
_HOW = re.compile(r"\bhow (do|does|can|could|should|would|to)\b", re.IGNORECASE)
_THING = re.compile(r"\b(documents?|files?|folders?|conversations?|chat|m3mlx)\b", re.IGNORECASE)
_TASKS = {
    "forget": re.compile(r"\b(forget|delete|remove|erase)\b", re.IGNORECASE),
    "memorize": re.compile(r"\b(memori[sz]e|add|load|import)\b", re.IGNORECASE),
    "save": re.compile(r"\b(save|write|export)\b", re.IGNORECASE),
    "quit": re.compile(r"\b(quit|exit|leave|end)\b", re.IGNORECASE),
}
_FEW = 12  # tokens of an answer from which its speed can be told


def after_answer(model: str, timings: Timings | None) -> None:
    """Keep how fast a model has answered, and name a better one to who has seen the smallest."""
    from ..models import default, rates

    if timings and timings.decode_tokens_per_second > 0:
        tokens = timings.generated_tokens
        seconds = tokens / timings.decode_tokens_per_second
        rates.note(model, "answering", tokens, seconds, _FEW)
    if not _on_terminal() or default.kept_or_none():
        return
    better = default.better(model)
    if better is None or _hinted_today():
        return
    note(
        f"{model} is small and often wrong. {better.name} suits this machine "
        f"({human_bytes(better.download_bytes)} to download): m3mlx models use {better.name}, then "
        f"m3mlx memorize --rebuild. m3mlx models shows others."
    )


def task_of(question: str) -> str | None:
    """Return the command that a question may be about, such as "how does one forget a file?".

    No document answers that.
    """
    if _HOW.search(question) and _THING.search(question):
        for task, words in _TASKS.items():
            if words.search(question):
                return task
    return None


def _on_terminal() -> bool:
    return bool(sys.stderr and sys.stderr.isatty())


def _hinted_today() -> bool:
    """Return whether a hint was given within a day; if not, note that one is given now."""
    file = data_folder() / "hinted"
    with suppress(OSError):
        if time.time() - file.stat().st_mtime < _DAY:
            return True
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return True  # it would be given each time
    return False
