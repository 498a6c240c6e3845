"""The newer of two references that contradict each other is read with more weight.

One of them is a fact; the other is one too, or a reference of a document. Both stay among what is
read and among the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..store import FACT, Hit
from .same import contradicts

AHEAD = 0.2  # of score, by which the newer is before the older: e² times the weight
_FAR = 0.3  # a score so much lower is of what answers another question


def newer_first(hits: Sequence[Hit], added: Mapping[int, str]) -> list[Hit]:
    """Return hits with the score of each that contradicts an older one raised above that one's.

    Args:
        hits: of one search, the best first.
        added: when their documents were memorized, ISO 8601 in UTC; those without one stay.
    """
    scores = {hit: hit.score for hit in hits}
    for hit in hits:
        for other in hits:
            known = hit.document in added and other.document in added and not hit.store
            if not known or other.store or FACT not in (hit.path[:5], other.path[:5]):
                continue
            if added[hit.document] <= added[other.document] or other.score - hit.score > _FAR:
                continue
            if contradicts(hit.text, other.text):
                scores[hit] = max(scores[hit], other.score + AHEAD)
    return sorted((replace(hit, score=scores[hit]) for hit in hits), key=lambda hit: -hit.score)
