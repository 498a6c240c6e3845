"""Rounds in which several ways of doing the same work take turns, and the time they took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter, process_time

from ..config import Progress

CLOCKS = {"seconds": "walls", "cpu_seconds": "cpus"}  # in reports, and in figures


class Stopwatch:
    """Wall-clock and CPU seconds, by the name of what took them."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self._start = perf_counter(), process_time()
        self._inside = 0.0, 0.0  # of the block that is being timed, by parts inside it

    def so_far(self) -> tuple[float, float]:
        return _minus((perf_counter(), process_time()), self._start)

    def lap(self, name: str) -> None:
        """Record the time since the start under a name."""
        self.parts[name] = self.so_far()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a block to a name, without the parts inside it."""
        begun, outer, self._inside = self.so_far(), self._inside, (0.0, 0.0)
        yield
        took = _minus(self.so_far(), begun)
        own, then = _minus(took, self._inside), self.parts.get(name, (0.0, 0.0))
        self.parts[name] = then[0] + own[0], then[1] + own[1]
        self._inside = outer[0] + took[0], outer[1] + took[1]


def _minus(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] - b[0], a[1] - b[1]


@dataclass
class Figure:
    """The time of one way of doing something, a value for each round.

    Attributes:
        part: of the benchmark.
        way: such as "off" or "explicit".
        of: what was timed, such as "first token" or "embed".
        size: of the work, in the part's own measure.
        walls, cpus: seconds.
    """

    part: str
    way: str
    of: str
    size: int
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def add(self, seconds: tuple[float, float]) -> None:
        self.walls.append(seconds[0])
        self.cpus.append(seconds[1])

    def to_json(self) -> dict:
        low, _, high = quantiles(self.walls, n=4) if len(self.walls) > 1 else self.walls * 3
        return {
            "part": self.part,
            "way": self.way,
            "of": self.of,
            "size": self.size,
            "seconds": median(self.walls),
            "quartiles": [low, high],
            "cpu_seconds": median(self.cpus),
            "rounds": len(self.walls),
        }


def take_turns(
    part: str,
    size: int,
    ways: Mapping[str, Callable[[], Stopwatch]],
    rounds: int,
    progress: Progress,
    *,
    warm: bool = True,
) -> list[Figure]:
    """Run every way in every round, in an order that alternates.

    Args:
        ways: each does its work once, and returns its stopwatch.
        warm: run a warm-up round first.
    """
    figures: dict[tuple[str, str], Figure] = {}
    names = list(ways)
    for number in range(-warm, rounds):
        for way in names if number % 2 else reversed(names):
            progress(f"{part} {size}: {way}", number + warm, rounds + warm)
            timed = ways[way]().parts
            for of, seconds in timed.items() if number >= 0 else ():
                figures.setdefault((way, of), Figure(part, way, of, size)).add(seconds)
    return sorted(figures.values(), key=lambda figure: names.index(figure.way))


def ratios_to(
    others: Iterable[str], figure: Figure, figures: Sequence[Figure]
) -> dict[str, dict[str, float]]:
    """Return how many times longer a way takes than others: the median over rounds, by clock."""
    work = figure.part, figure.of, figure.size
    same = {f.way: f for f in figures if (f.part, f.of, f.size) == work}
    return {
        f"{figure.part} {figure.size}, {figure.of}: {figure.way} / {other}": {
            clock: median(
                a / b
                for a, b in zip(getattr(figure, times), getattr(same[other], times), strict=True)
            )
            for clock, times in CLOCKS.items()
        }
        for other in others
        if other in same and other != figure.way
    }
