"""Reading the memories of one answer from the drive, after "LLM in a flash" (arXiv 2312.11514).

Each way adds an idea to the one before:

``whole``       all keys and values of all tokens of the references, a read for each layer
``sparse``      only the kept tokens, a read for each layer and head
``reused``      the same, without memories that the last chunk read too
``bundled``     one contiguous record for each new memory
``ahead``       the same, all of a chunk requested at once; this is what the store does

The file is dropped from the system's cache before each measurement.

The cost model predicts a way: a read of ``b`` bytes takes ``latency + b / bandwidth``, both fitted
to the drive's measured curve of block sizes, for each number of threads and for reads ahead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from m3mlx.bench.report import Table
from m3mlx.config import CHUNK_TOKENS, MEMORIES, REFERENCE_TOKENS, MemoryConfig, Progress
from m3mlx.store.record_file import PAGE, stride

FILE_BYTES = 256 << 20
BLOCKS = (512, 4096, 16384, 65536, 262144, 1048576)
THREADS = ("1", "2", "4", "ahead")  # for the curve; ahead uses one thread, as the store does
ANSWER = 512  # tokens, so 8 chunks with memories of their own
NEW = 2  # of five memories, those that the last chunk did not read, where they are reused
AHEAD = NEW  # reads of the curve requested at once, as in most chunks of an answer

Chunks = list[list[int]]  # lengths of the reads of each chunk of an answer


class Flash:
    """Reads from a file of random bytes.

    Args:
        config: how memories are written.
        record: bytes of one memory.
    """

    def __init__(self, config: MemoryConfig, record: int):
        self.config, self.record = config, record
        self._random = np.random.default_rng(0)

    def __enter__(self) -> Flash:
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-bench-")
        path = Path(self._folder.name) / "bytes"
        with path.open("wb") as opened:
            for _ in range(FILE_BYTES >> 24):
                opened.write(self._random.bytes(1 << 24))
            opened.flush()
            os.fsync(opened.fileno())
        self._file = os.open(path, os.O_RDONLY)
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        if hasattr(os, "posix_fadvise"):  # no read-ahead of its own
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        if hasattr(fcntl, "F_NOCACHE"):  # macOS
            fcntl.fcntl(self._file, fcntl.F_NOCACHE, 1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._map.close()
        os.close(self._file)
        self._folder.cleanup()

    def measure(self, rounds: int, progress: Progress) -> dict[str, Any]:
        """Measure the curve of the drive and the ways of reading, and fit the cost model.

        Each way has its seconds for an answer of 512 tokens, and those that the model predicts.
        """
        blocks = [(block, threads) for threads in THREADS for block in BLOCKS]
        ways = self._ways()
        times: dict[Any, list[float]] = {key: [] for key in [*blocks, *ways]}
        for number in range(rounds):
            progress("io", number, rounds)
            for block, threads in blocks:
                reads = [[block] * AHEAD] * max(2, min(64, (16 << 20) // block // AHEAD))
                took = self._time(reads, threads)
                times[block, threads].append(took / len(reads) / AHEAD)
            for way, chunks in ways.items():
                times[way].append(self._time(chunks, _reader(way)))
        curve = {key: median(times[key]) for key in blocks}
        model = fitted(curve)
        return {
            "curve": [
                {"block": block, "threads": threads, "seconds": seconds}
                for (block, threads), seconds in curve.items()
            ],
            "model": {
                threads: {"latency_seconds": latency, "seconds_per_byte": per_byte}
                for threads, (latency, per_byte) in model.items()
            },
            "ways": {
                way: {
                    "reads": sum(map(len, chunks)),
                    "bytes": sum(map(sum, chunks)),
                    "seconds": median(times[way]),
                    "predicted_seconds": predicted(model[_reader(way)], chunks),
                }
                for way, chunks in ways.items()
            },
        }

    def _ways(self) -> dict[str, Chunks]:
        config = self.config
        vector = config.head_dim * 2 * 2  # key and value in bfloat16
        layers = [len(counts) * REFERENCE_TOKENS * vector for counts in config.counts]
        # in eight bits, as a memory is stored
        kept = [count * vector // 2 for counts in config.counts for count in counts if count]
        chunks = ANSWER // CHUNK_TOKENS
        new = [MEMORIES, *[NEW] * (chunks - 1)]
        records = [[stride(self.record)] * count for count in new]
        return {
            "whole": [layers * MEMORIES] * chunks,
            "sparse": [kept * MEMORIES] * chunks,
            "reused": [kept * count for count in new],
            "bundled": records,
            "ahead": records,
        }

    def _places(self, chunks: Chunks) -> list[list[tuple[int, int]]]:
        """Place reads in the file, each at a page of its own as far as there is room.

        Returns:
            Offset and length of each.
        """
        room = -(-max(map(max, chunks)) // PAGE) * PAGE
        places = FILE_BYTES // room
        count = sum(map(len, chunks))
        chosen = iter(self._random.choice(places, count, replace=count > places).tolist())
        return [[(next(chosen) * room, length) for length in chunk] for chunk in chunks]

    def _time(self, chunks: Chunks, threads: str) -> float:
        """Return the seconds to read one chunk after the other, with nothing in the cache."""
        placed = self._places(chunks)
        self._map.madvise(mmap.MADV_DONTNEED)  # what is mapped is not dropped
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        with ThreadPoolExecutor(4 if threads == "ahead" else int(threads)) as pool:
            list(pool.map(len, chunks * 4))  # start its threads
            start = perf_counter()
            for reads in placed:
                if threads == "ahead":
                    for offset, length in reads:
                        self._map.madvise(mmap.MADV_WILLNEED, offset, length)
                    for offset, length in reads:
                        bytes(memoryview(self._map)[offset : offset + length])
                elif threads == "1":
                    for offset, length in reads:
                        os.pread(self._file, length, offset)
                else:
                    list(pool.map(lambda read: os.pread(self._file, read[1], read[0]), reads))
            return perf_counter() - start


def _reader(way: str) -> str:
    """Return how a way reads, of ``THREADS``."""
    return "ahead" if way == "ahead" else "1"


def fitted(curve: Mapping[tuple[int, str], float]) -> dict[str, tuple[float, float]]:
    """Fit the cost model to a curve: latency in seconds, and seconds per byte.

    Args:
        curve: seconds of a read, by its bytes and one of ``THREADS``.
    """
    model = {}
    for how in dict.fromkeys(how for _, how in curve):
        points = {block: seconds for (block, h), seconds in curve.items() if h == how}
        seconds = np.array(list(points.values()))
        # relative errors, or the largest blocks alone would decide
        scaled = np.array([[1.0, block] for block in points]) / seconds[:, None]
        latency, per_byte = np.linalg.lstsq(scaled, np.ones(len(points)), rcond=None)[0]
        model[how] = max(0.0, float(latency)), max(0.0, float(per_byte))
    return model


def predicted(cost: tuple[float, float], chunks: Sequence[Sequence[int]]) -> float:
    """Return the seconds of reading by the cost model.

    Args:
        cost: latency, and seconds per byte.
        chunks: bytes of the reads of each chunk.
    """
    return sum(map(len, chunks)) * cost[0] + sum(map(sum, chunks)) * cost[1]


def io_table(report: dict[str, Any]) -> Table:
    """Return the ways to read the memories of an answer, where they were measured."""
    rows = [
        (
            *(way, str(found["reads"]), f"{found['bytes'] / 1e6:.2f}"),
            *(f"{1000 * found[name]:.2f}" for name in ("seconds", "predicted_seconds")),
            f"{found['predicted_seconds'] / found['seconds']:.2f}",
        )
        for way, found in report.get("io", {"ways": {}})["ways"].items()
    ]
    return ("reading for an answer", "reads", "MB", "ms", "predicted", "ratio"), rows
