"""Measure what explicit memory is worth, on questions of the user's own or of published sets.

``evaluate`` compares ways of writing memories with pasted text and with nothing. ``recite``,
``update``, ``edits`` and ``choose`` are other measurements, with their controls.
"""

from .answers import CONDITIONS, How, evaluate, plot
from .choice import choose
from .edits import Edit, edits
from .formats import read_choices, read_documents, read_edits, read_questions
from .questions import Collection, Passage, Question, named, spread
from .recite import recite
from .store import EvaluationStore
from .update import update

__all__ = [
    "CONDITIONS",
    "Collection",
    "Edit",
    "EvaluationStore",
    "How",
    "Passage",
    "Question",
    "choose",
    "edits",
    "evaluate",
    "named",
    "plot",
    "read_choices",
    "read_documents",
    "read_edits",
    "read_questions",
    "recite",
    "spread",
    "update",
]
