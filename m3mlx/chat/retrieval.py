"""What a message reads: the references that fit it and what it refers to.

A message such as "And when?" says little by itself, and one that changes the subject has nothing to
do with what was said before. So each is searched alone and together with the messages that it may
refer to, and the scores are joined: a change of subject scores high alone, a reference together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..store import Hit, different_first

TOGETHER = 2  # times as much as alone does a score count that was found together
DEPTH = 40  # hits of each search that are joined
MESSAGES = 3  # that belong to one subject, at most

Search = Callable[[Sequence[str], int], list[list[Hit]]]


class Retrieval:
    """The searches of one conversation.

    Args:
        search: texts and number of hits to the hits of each text, the best first.

    Attributes:
        floor: score from which on a hit fits well enough to be read.
        subject: the user's last messages that the next one may refer to.
    """

    def __init__(self, search: Search):
        self._search, self.floor = search, 0.0
        self.subject: tuple[str, ...] = ()

    def of_texts(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """Return the hits of each text that fit well enough."""
        return [[hit for hit in hits if hit.score >= self.floor] for hits in self._search(texts, k)]

    def of_message(self, message: str, k: int) -> list[Hit]:
        """Return the hits of a message, which then belongs to the subject."""
        if not self.subject:
            (hits,) = self.of_texts([message], k)
            self.subject = (message,)
            return hits
        said = (*self.subject, message)
        alone, together = self._search([message, "\n".join(said)], max(DEPTH, k))
        changed = _best(alone) >= _best(together)
        self.subject = (message,) if changed else said[-MESSAGES:]
        fitting = {hit for hit in (*alone, *together) if hit.score >= self.floor}
        joined = [hit for hit in _joined(alone, together) if hit in fitting]
        return different_first(joined)[0][:k]


def _best(hits: Iterable[Hit]) -> float:
    return max((hit.score for hit in hits), default=0.0)


def _joined(alone: Sequence[Hit], together: Sequence[Hit]) -> list[Hit]:
    """Return all hits by the weighted mean of both scores, one that was not found being 0."""
    scores = dict.fromkeys([*together, *alone], 0.0)
    for hits, weight in ((alone, 1), (together, TOGETHER)):
        for hit in hits:
            scores[hit] += weight * hit.score / (1 + TOGETHER)
    joined = [replace(hit, score=score) for hit, score in scores.items()]
    return sorted(joined, key=lambda hit: -hit.score)
