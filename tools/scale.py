"""What a store costs as it grows: recall, search and read times, bytes, open time, memory.

    python tools/scale.py [--references 10000 100000 1000000] [--folder DIR] [--limit-mib 512]

Vectors, texts and most records are made up (a model would take days), everything else is the
product's own path: ``MemoryStore.add``, ``close``, ``search``, ``read`` and ``Codec.unpack``.
Vectors of 384 dimensions lie in 2,000 clusters of uneven size; half of the queries are near a
stored vector, half are not. Records have the size of SmolLM2's; 2,000 of them are written, spread
over the store, and the rest is cold. Recall is against exact search over the made-up vectors,
outside of the store. A store of a million takes 4 GB of disk and half an hour on two cores; it is
removed at the end unless --keep is given. Each store is measured in a process of its own, then
once more in one that may have only ``--limit-mib`` of private memory (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark_parts.made_up import BLOCK, DIMENSIONS, drop_cached, fill, texts, unit, vectors

from m3mlx.config import MemoryConfig
from m3mlx.memory.codec import Codec
from m3mlx.store import MemoryStore

CONFIG = MemoryConfig(
    selection="reconstruction",
    budget="uniform",
    counts=((8, 8, 8),) * 30,  # SmolLM2-135M: 30 layers, 3 KV heads, 8 tokens each on average
    head_dim=64,
    prefix=(1,),
)
RECORDS = 2_000  # that are written; the others stay cold
QUERIES = 400
K = 5


def queries() -> np.ndarray:
    """Half near stored vectors of the first block, half anywhere in the clusters."""
    stored = vectors(1, BLOCK)[: QUERIES // 2]
    return np.concatenate(
        [unit(stored + 0.25 * vectors(10**9, len(stored))), vectors(10**9 + 1, QUERIES // 2)]
    )


def build(path: Path, count: int) -> dict:
    """Make a store; return build times and what an exact search finds, by slot."""
    asked = queries()
    best = np.full((QUERIES, K), -2.0, np.float32)
    slots = np.zeros((QUERIES, K), np.int64)
    codec, random = Codec(CONFIG), np.random.default_rng(3)
    started = time.perf_counter()
    store = MemoryStore.create(
        path,
        fingerprint={"model": "made up"},
        memory=CONFIG.to_json(),
        encoder="made up",
        dimensions=DIMENSIONS,
        record_bytes=codec.record_bytes,
    )
    step = max(1, count // RECORDS)
    filling = fill(
        store,
        0,
        count,
        record=lambda n: None if n % step else random.bytes(codec.record_bytes),
    )
    for first, made in filling:
        size = len(made)
        near = np.hstack([best, asked @ made.T])
        known = np.hstack([slots, np.broadcast_to(np.arange(first, first + size), (QUERIES, size))])
        kept = np.argpartition(-near, K - 1, axis=1)[:, :K]
        best, slots = (np.take_along_axis(a, kept, axis=1) for a in (near, known))
        print(f"  {first + size:,} references", end="\r", file=sys.stderr, flush=True)
    added = time.perf_counter()
    store.close()  # builds the index
    return {
        "add_s": round(added - started, 1),
        "index_s": round(time.perf_counter() - added, 1),
        "nearest": slots.tolist(),
    }


def spread(times: list[float]) -> dict:
    return {f"p{p}_ms": round(float(np.percentile(times, p)), 2) for p in (50, 95, 99)}


def measure(path: Path, nearest: list[list[int]]) -> dict:
    """Search and read in this process."""
    import mlx.core as mx  # behind m3mlx, which may load OpenBLAS for it

    asked, words = queries(), texts(0, QUERIES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    store = MemoryStore.open(path)
    times.append(time.perf_counter())
    store.search(asked[:1], [""], K, "dense")  # proves the index file
    times.append(time.perf_counter())
    figures = {
        "open_ms": 1000 * (times[1] - times[0]),
        "first_search_ms": 1000 * (times[2] - times[1]),
    }
    found = []
    for mode in ("dense", "hybrid"):
        times = []
        for query, text in zip(asked, words, strict=True):
            started = time.perf_counter()
            (hits,) = store.search(query[None], [text], K, mode)
            times.append(1000 * (time.perf_counter() - started))
            found.append(hits)
        figures[mode] = spread(times)
    shared = [
        len({hit.slot for hit in hits} & set(slots))
        for hits, slots in zip(found[:QUERIES], nearest, strict=True)
    ]
    figures["recall"] = round(statistics.mean(shared) / K, 4)
    step = max(1, store.status()["references"] // RECORDS)
    codec, random = Codec(CONFIG), np.random.default_rng(4)
    for state in ("cold", "warm"):
        reading, unpacking = [], []
        for _ in range(40):
            slots = (random.choice(RECORDS, K, replace=False) * step).tolist()
            if state == "cold":
                drop_cached(path / "memories.kv")
            else:
                store.read(slots)
            started = time.perf_counter()
            records = store.read(slots)
            read = time.perf_counter()
            memory = codec.unpack(records)
            mx.eval(memory.keys, memory.values)
            unpacking.append(1000 * (time.perf_counter() - read))
            reading.append(1000 * (read - started))
        figures[f"read_{state}"] = spread(reading)
        figures[f"unpack_{state}"] = spread(unpacking)
    figures["bytes"] = store.status()["bytes"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    figures["rss_before_mib"] = before * unit_bytes >> 20
    figures["rss_peak_mib"] = peak * unit_bytes >> 20
    store.close()
    return figures


def in_process(path: Path, limit: int = 0) -> dict:
    """Measure in a new process, of limited memory if a limit in bytes is given."""
    command = [sys.executable, __file__, "--measure", str(path), "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--references", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to put the stores; a temporary one")
    parser.add_argument("--limit-mib", type=int, default=512)
    parser.add_argument("--keep", action="store_true", help="do not remove the stores")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        if arguments.limit:
            resource.setrlimit(resource.RLIMIT_DATA, (arguments.limit, arguments.limit))
        nearest = json.loads(arguments.measure.with_suffix(".json").read_text())
        print(json.dumps(measure(arguments.measure, nearest)))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="m3mlx-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for count in arguments.references:
        path = folder / str(count)
        built = build(path, count)
        path.with_suffix(".json").write_text(json.dumps(built.pop("nearest")))
        figures = {"references": count, **built, **in_process(path)}
        limited = in_process(path, arguments.limit_mib << 20)
        figures["limited"] = {"mib": arguments.limit_mib, **limited}
        results.append(figures)
        print(json.dumps(figures, indent=2), flush=True)
        if not arguments.keep:
            shutil.rmtree(path)
            path.with_suffix(".json").unlink()
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps({**machine, "results": results}))


if __name__ == "__main__":
    main()
