"""Compare what a store costs with what it cost in another checkout, in one session.

    python tools/store_costs.py OTHER [--rounds 30] [--references 4000]

A process of each checkout has a store of its own with the same made-up content, and both do the
same, in turns: open (for the first time in a process, and again), read the memories of five
references, search, add 16 references with memories of the size of SmolLM2's. Prints for each the
median of both and their ratio, and the 95th percentile of searches; one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
DIMENSIONS = 384
RECORD_BYTES = 30 * 3 * 8 * (2 * 64 + 1)  # SmolLM2: layers, KV heads, tokens, keys and values
BATCH = 16
TIMES = {"open": 20, "read": 40, "search": 40, "add": 3}  # in one turn
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "ou") for c in "lmnrst"]


class Costs:
    """One checkout's store and what is timed on it."""

    def __init__(self, folder: Path, references: int):
        from m3mlx.store import MemoryStore, NewReference

        self._store_class, self._reference = MemoryStore, NewReference
        self._path, self._chance = folder, np.random.default_rng(0)
        self._store = MemoryStore.create(
            folder,
            fingerprint={"weights": "w", "codec": "k8v8"},
            memory={},
            encoder="made up",
            dimensions=DIMENSIONS,
            record_bytes=RECORD_BYTES,
        )
        for _ in range(references // BATCH):
            self._add()
        self._store.close()
        self._store = MemoryStore.open(folder, write=True)
        (hits,) = self._store.search(self._units(1), ["bal"], references, "dense")
        self._slots = [hit.slot for hit in hits]

    def _units(self, count: int) -> np.ndarray:
        vectors = self._chance.standard_normal((count, DIMENSIONS)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _text(self, words: int) -> str:
        return " ".join(self._chance.choice(WORDS, words))

    def _add(self) -> None:
        path = f"/notes/{self._chance.integers(2**60)}.txt"
        document, _ = self._store.begin(path, path, BATCH, size=1)
        vectors, record = self._units(BATCH), self._chance.bytes(RECORD_BYTES)
        self._store.add(
            [
                self._reference(
                    *(document, place, 600 * place, 600 * place + 600, self._text(100)),
                    *(range(128), None, None, vector, record),
                )
                for place, vector in enumerate(vectors)
            ]
        )

    def _open(self) -> None:
        self._store_class.open(self._path).close()

    def _read(self) -> None:
        self._store.read(self._chance.choice(self._slots, 5).tolist())

    def _search(self) -> None:
        self._store.search(self._query, [self._asked], 5)

    def turn(self, what: str) -> list[float]:
        """Seconds of each time."""
        if what == "first open":
            program = (
                "import sys, time; from m3mlx.store import MemoryStore; s = time.perf_counter(); "
                "MemoryStore.open(sys.argv[1]).close(); print(time.perf_counter() - s)"
            )
            command = [sys.executable, "-c", program, str(self._path)]
            return [float(subprocess.run(command, capture_output=True, check=True).stdout)]
        seconds = []
        for _ in range(TIMES[what]):
            self._query, self._asked = self._units(1), self._text(12)
            started = time.perf_counter()
            getattr(self, f"_{what}")()
            seconds.append(time.perf_counter() - started)
        return seconds


def serve(folder: Path, references: int) -> None:
    """Do what is asked for by lines of the input."""
    costs = Costs(folder, references)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(costs.turn(line.strip())), flush=True)


def started(checkout: Path, folder: Path, references: int) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), str(checkout)]
    command += ["--serve", str(folder), "--references", str(references)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def compare(other: Path, rounds: int, references: int) -> dict:
    """Median milliseconds of the other checkout, of this one, and how they compare."""
    folder = Path(tempfile.mkdtemp(prefix="m3mlx-costs-"))
    pair = [
        started(checkout, folder / str(n), references) for n, checkout in enumerate((other, ROOT))
    ]
    for process in pair:
        assert process.stdout.readline() == "ready\n"
    found: dict[str, list[list[float]]] = {}
    for turn in range(rounds):
        for what in ("first open", *TIMES):
            seconds = found.setdefault(what, [[], []])
            for which in (0, 1) if turn % 2 else (1, 0):
                print(what, file=pair[which].stdin, flush=True)
                seconds[which] += json.loads(pair[which].stdout.readline())
    for process in pair:
        process.communicate()
    shutil.rmtree(folder)
    figures = {what: _figures(statistics.median, *both) for what, both in found.items()}
    figures["search, p95"] = _figures(lambda s: statistics.quantiles(s, n=20)[-1], *found["search"])
    return figures


def _figures(measure, before: list[float], now: list[float]) -> dict:
    before_ms, now_ms = (1000 * measure(seconds) for seconds in (before, now))
    return {"before_ms": before_ms, "now_ms": now_ms, "ratio": now_ms / before_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--references", type=int, default=4000)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.references)
        return
    figures = compare(arguments.other.resolve(), arguments.rounds, arguments.references)
    for what, row in figures.items():
        print(f"{what:12} {row['before_ms']:9.3f} ms {row['now_ms']:9.3f} ms  {row['ratio']:5.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
