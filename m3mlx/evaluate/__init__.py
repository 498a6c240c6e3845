"""What explicit memory is worth, measured on questions of one's own.

``evaluate`` compares ways of writing memories with pasted text and with nothing. ``recite``,
``update`` and ``choose`` are the other measurements, each with its controls. All of them work
in temporary stores.
"""

from .choice import choose
from .compare import Report, Row, evaluate, plot
from .questions import (
    Question,
    read_choices,
    read_documents,
    read_questions,
    spread,
    spread_documents,
)
from .recite import recite
from .trial import ANSWER_TOKENS, MODES, Trial
from .update import update

__all__ = [
    "ANSWER_TOKENS",
    "MODES",
    "Question",
    "Report",
    "Row",
    "Trial",
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
