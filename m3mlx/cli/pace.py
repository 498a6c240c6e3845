"""How long a task will take yet, by how it went lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_SETTLED = 10.0  # seconds after which the beginning, with all that is made once, is left out
_SAMPLES = 1000


class Pace:
    """The time left of a task whose total may be judged anew while it goes on.

    It goes by the last third of the time so far, so that neither a slow beginning nor a machine
    that was busy a while ago counts.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)], _SAMPLES)
        self._begun = self._samples[0][0]
        self._end: float | None = None  # when the task will be done

    def note(self, done: int, total: int) -> None:
        """Learn how much is done by now."""
        now = self._clock()
        if done > self._samples[-1][1]:
            self._samples.append((now, done))
            window = now - (now - self._begun) / 3
            if now - self._begun > _SETTLED:
                while len(self._samples) > 2 and self._samples[1][0] <= window:
                    self._samples.popleft()
        (since, before), (last, latest) = self._samples[0], self._samples[-1]
        if latest > before:
            self._end = last + (total - latest) * (last - since) / (latest - before)

    def left(self) -> float | None:
        """Return the seconds left; None as long as nothing is done."""
        return None if self._end is None else max(self._end - self._clock(), 0.0)
