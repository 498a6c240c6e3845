"""Measure what explicit memory is worth, on questions of the user's own.

``evaluate`` compares ways of writing memories with pasted text and with nothing. ``recite``,
``update`` and ``choose`` are other measurements, with their controls. All work in temporary stores.
"""

from .choice import choose
from .compare import evaluate, plot
from .questions import (
    Question,
    read_choices,
    read_documents,
    read_questions,
    spread,
    spread_documents,
)
from .recite import recite
from .temporary import CONDITIONS, TemporaryStore
from .update import update

__all__ = [
    "CONDITIONS",
    "Question",
    "TemporaryStore",
    "choose",
    "evaluate",
    "plot",
    "read_choices",
    "read_documents",
    "read_questions",
    "recite",
    "spread",
    "spread_documents",
    "update",
]
