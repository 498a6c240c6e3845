"""Rounds in which several ways of doing the same work take turns, and what they took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter, process_time

from ..config import Progress


class Watch:
    """Seconds on the wall and of this process, by the name of what took them."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self._start = perf_counter(), process_time()
        self._inside = 0.0, 0.0  # of the block that is being timed, by parts inside it

    def so_far(self) -> tuple[float, float]:
        return _minus((perf_counter(), process_time()), self._start)

    def lap(self, name: str) -> None:
        """All that has passed since the beginning, under a name."""
        self.parts[name] = self.so_far()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what a block takes to a name, but for the parts inside it."""
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
    """What one way of doing something took, a value for each round.

    Attributes:
        part: of the benchmark.
        way: of doing it, such as "off" or "explicit".
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

    @property
    def seconds(self) -> float:
        return median(self.walls)

    @property
    def cpu_seconds(self) -> float:
        return median(self.cpus)

    def to_json(self) -> dict:
        low, _, high = quantiles(self.walls, n=4) if len(self.walls) > 1 else self.walls * 3
        return {
            "part": self.part,
            "way": self.way,
            "of": self.of,
            "size": self.size,
            "seconds": self.seconds,
            "quartiles": [low, high],
            "cpu_seconds": self.cpu_seconds,
            "rounds": len(self.walls),
        }


def take_turns(
    part: str,
    size: int,
    ways: Mapping[str, Callable[[], Watch]],
    rounds: int,
    progress: Progress,
    *,
    warm: bool = True,
) -> list[Figure]:
    """Run every way in every round, and who goes first changes.

    Args:
        ways: each does its work once, and returns its watch.
        warm: whether a round that does not count comes first.
    """
    figures: dict[tuple[str, str], Figure] = {}
    names = list(ways)
    for number in range(-warm, rounds):
        for way in names if number % 2 else reversed(names):
            progress(f"{part} {size}: {way}", number + warm, rounds + warm)
            watch = ways[way]()
            for of, (wall, cpu) in watch.parts.items() if number >= 0 else ():
                figure = figures.setdefault((way, of), Figure(part, way, of, size))
                figure.walls.append(wall)
                figure.cpus.append(cpu)
    return sorted(figures.values(), key=lambda figure: names.index(figure.way))


def ratio(figures: list[Figure], of: str, size: int, way: str, to: str) -> dict[str, float]:
    """How many times longer one way takes than another: the median over rounds, on each clock."""
    found = {f.way: f for f in figures if (f.of, f.size) == (of, size)}
    above, below = found[way], found[to]
    return {
        "seconds": median(a / b for a, b in zip(above.walls, below.walls, strict=True)),
        "cpu_seconds": median(a / b for a, b in zip(above.cpus, below.cpus, strict=True)),
    }
