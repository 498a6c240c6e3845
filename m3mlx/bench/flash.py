"""What reading memories asks of the drive, in the shape of "LLM in a flash" (arXiv 2312.11514).

Ways of bringing five memories in, each with one idea more than the one before:

``whole``       all keys and values of all tokens of the references, a read for each layer
``sparse``      only what is kept, a read for each layer and head
``reused``      the same, but for memories that the last chunk read too
``bundled``     one contiguous record for each memory that is new
``ahead``       the same, all asked for at once

Nothing is in the system's cache: it is told to drop the file before each measurement.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ..config import MEMORIES, REFERENCE_TOKENS, MemoryConfig
from ..store.bank import PAGE, stride
from .rounds import Progress

FILE_BYTES = 256 << 20
BLOCKS = (4096, 16384, 65536, 262144, 1048576)
THREADS = (1, 4)
NEW = 2  # of five memories, those that the last chunk did not read, where reuse is counted

Reads = list[tuple[int, int]]  # offset and length


class Flash:
    """A file of random bytes, and reads from it.

    Args:
        config: how memories are written.
        record: bytes of one.
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
        if hasattr(fcntl, "F_NOCACHE"):  # macOS
            fcntl.fcntl(self._file, fcntl.F_NOCACHE, 1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._map.close()
        os.close(self._file)
        self._folder.cleanup()

    def measure(self, rounds: int, progress: Progress) -> dict[str, Any]:
        """The curve of the drive, the cost model that fits it, and the ways of reading.

        The model is ``seconds = reads · latency + bytes / bandwidth``, fitted to single reads of
        the curve; each way says what it predicts.
        """
        blocks = [(block, threads) for threads in THREADS for block in BLOCKS]
        ways = self._ways()
        times: dict[Any, list[float]] = {key: [] for key in [*blocks, *ways]}
        for number in range(rounds):
            progress("io", number, rounds)
            for block, threads in blocks:
                count = max(8, min(64, (8 << 20) // block))
                took = self._time(self._places(count, block), threads)
                times[block, threads].append(took / count)
            for way, reads in ways.items():
                times[way].append(self._time(self._elsewhere(reads), ahead=way == "ahead"))
        design = np.array([[1.0, block] for block in BLOCKS])
        seconds = np.array([median(times[block, 1]) for block in BLOCKS])
        # relative errors count, or the largest blocks alone would decide
        latency, per_byte = np.linalg.lstsq(
            design / seconds[:, None], np.ones(len(BLOCKS)), rcond=None
        )[0]
        return {
            "curve": [
                {"block": block, "threads": threads, "seconds": median(times[block, threads])}
                for block, threads in blocks
            ],
            "latency_seconds": float(latency),
            "bytes_per_second": float(1 / per_byte) if per_byte > 0 else None,
            "ways": {
                way: {
                    "reads": len(reads),
                    "bytes": (size := sum(length for _, length in reads)),
                    "seconds": median(times[way]),
                    "predicted_seconds": float(latency * len(reads) + per_byte * size),
                }
                for way, reads in ways.items()
            },
        }

    def _ways(self) -> dict[str, Reads]:
        """Reads of one chunk, from offset 0 on; only their lengths and number matter."""
        config = self.config
        vector = config.head_dim * 2 * 2  # key and value in bfloat16
        layers = [len(counts) * REFERENCE_TOKENS * vector for counts in config.counts]
        # in eight bits, as a memory is stored
        kept = [count * vector // 2 for counts in config.counts for count in counts if count]
        aligned = stride(self.record)
        return {
            "whole": _apart(layers * MEMORIES),
            "sparse": _apart(kept * MEMORIES),
            "reused": _apart(kept * NEW),
            "bundled": _apart([aligned] * NEW),
            "ahead": _apart([aligned] * NEW),
        }

    def _places(self, count: int, block: int) -> Reads:
        places = self._random.choice(FILE_BYTES // block, count, replace=False)
        return [(int(place) * block, block) for place in places]

    def _elsewhere(self, reads: Reads) -> Reads:
        """The same reads all over the file, each at the begin of a page."""
        pages = (FILE_BYTES - max(length for _, length in reads)) // PAGE
        places = self._random.choice(pages, len(reads), replace=False)
        return [(int(p) * PAGE, length) for p, (_, length) in zip(places, reads, strict=True)]

    def _time(self, reads: Reads, threads: int = 1, ahead: bool = False) -> float:
        self._map.madvise(mmap.MADV_DONTNEED)  # what is mapped is not dropped
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        start = perf_counter()
        if ahead:
            for offset, length in reads:
                self._map.madvise(mmap.MADV_WILLNEED, offset, length)
            for offset, length in reads:
                bytes(memoryview(self._map)[offset : offset + length])
        elif threads == 1:
            for offset, length in reads:
                os.pread(self._file, length, offset)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda read: os.pread(self._file, read[1], read[0]), reads))
        return perf_counter() - start


def _apart(lengths: list[int]) -> Reads:
    return [(0, length) for length in lengths]
