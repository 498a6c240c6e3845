"""How a conversation's caches go back to what they held before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from ..models.caches import keeps_state, leaves, replaced
from .cache import WindowedCache

MARKS = 3  # places kept


def take_back(caches: Sequence[Any]) -> Callable[[], None]:
    """Return a function that undoes the next pass, if that is over one token.

    What a full window overwrites then is out of sight for the tokens that follow.
    """
    states = [(cache, list(cache.cache)) for cache in leaves(caches) if keeps_state(cache)]

    def undo() -> None:
        for cache in leaves(caches):
            if not keeps_state(cache):
                cache.base.trim(1)
        for cache, state in states:
            cache.cache = state

    return undo


class Marks:
    """Places to go back to, for caches that cannot be cut at any: states, and windows."""

    def __init__(self) -> None:
        self._copies: dict[int, list[Any]] = {}  # by tokens in the caches

    @staticmethod
    def needed(caches: Sequence[Any]) -> bool:
        """Return whether there is a cache that cannot be cut at any place."""
        return any(map(_is_marked, leaves(caches)))

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for copies in self._copies.values() for cache in copies)

    def set(self, caches: Sequence[Any], tokens: int) -> None:
        """Note the present place, behind so many tokens; the first one stays, the newest too."""
        copies = [deepcopy(cache) for cache in leaves(caches) if _is_marked(cache)]
        if tokens and copies:
            self._copies[tokens] = copies
            while len(self._copies) > MARKS:
                del self._copies[list(self._copies)[1]]  # the first is behind the system prompt

    def go_back(self, caches: list[Any], tokens: int, count: int) -> tuple[list[Any], int]:
        """Return the caches of ``tokens`` tokens cut to ``count``, or to the nearest place before.

        Returns:
            The caches, and how many tokens are in them; with none they are of no more use.
        """
        cuttable = list(leaves(caches))
        if not all(cache.is_trimmable() for cache in cuttable):
            count = max((place for place in self._copies if place <= count), default=0)
            copies = iter(deepcopy(self._copies.get(count, [])))
            caches = replaced(
                caches, lambda cache: next(copies, cache) if _is_marked(cache) else cache
            )
            cuttable = [cache for cache in leaves(caches) if not _is_marked(cache)]
        for cache in cuttable:
            cache.trim(tokens - count)
        self._copies = {place: kept for place, kept in self._copies.items() if place <= count}
        return caches, count


def _is_marked(cache: Any) -> bool:
    """Tell the caches that cannot be cut at any place: states, and what leaves a window."""
    return keeps_state(cache) or isinstance(cache, WindowedCache)
