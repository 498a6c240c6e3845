"""Four processes read while one writes: nobody waits, nobody sees a half, one writer at a time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from small_store import LARGE, memorize, memory, new_store, unit

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore

from .apart import Apart, apart

READERS = 4
PARTS = 4  # references of a version
_ANSWERS = ("Search again", "is cold", "any more")  # that a reader may get while slots move


def write(path: str, until: float) -> dict:
    """Memorize one version of a document after the other; forget, compact and settle between."""
    done = {"versions": 0, "compacted": 0, "forgotten": 0, "scrub waited": 0}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        while time.time() < until:
            number = done["versions"]
            memorize(store, "/a", [f"version {number} part {part}" for part in range(PARTS)])
            done["versions"] += 1
            try:
                if number % 7 == 3:
                    memorize(store, "/other", [f"other {number}"])
                    store.forget([store.find_documents(["/other"])[0].id])
                    done["forgotten"] += 1
                elif number % 7 == 5:
                    store.compact()
                    done["compacted"] += 1
                elif number % 3 == 0:
                    store.maintain()
            except StoreError as error:
                assert "being read" in str(error), error
                done["scrub waited"] += 1
    return done


def read(path: str, until: float) -> dict:
    """Search and read; return how often, and how long it took at most."""
    seen: set[str] = set()
    times, moved, whole = [], 0, 0
    with MemoryStore.open(path, **LARGE) as store:
        while time.time() < until:
            for mode in ("dense", "text"):
                started = time.perf_counter()
                (hits,) = store.search(unit(0, 1), ["version part"], 20, mode)
                hits = [hit for hit in hits if hit.path == "/a"]
                texts = sorted(hit.text for hit in hits)
                versions = {text.split()[1] for text in texts}
                assert texts == [f"version {v} part {p}" for v in versions for p in range(PARTS)]
                assert len(versions) == 1, f"{mode} sees a half: {texts}"
                seen |= versions
                try:
                    records = store.read([hit.slot for hit in hits])
                    assert [r.tobytes() for r in records] == [memory(hit.text) for hit in hits]
                    whole += 1
                except StoreError as error:
                    assert any(answer in str(error) for answer in _ANSWERS), error
                    moved += 1
                times.append(time.perf_counter() - started)
    return {
        "reads": whole,
        "told to search again": moved,
        "versions": len(seen),
        "p50_ms": round(1000 * float(np.median(times)), 2),
        "p99_ms": round(1000 * float(np.percentile(times, 99)), 2),
        "max_ms": round(1000 * max(times), 1),
    }


def intrude(path: str) -> bool:
    """A second writer: must be told who writes, and get the store when the first is done."""
    try:
        MemoryStore.open(path, write=True, wait=0.2, **LARGE).close()
    except StoreError as error:
        assert "is writing to this store" in str(error), error
        told = True
    else:
        told = False
    MemoryStore.open(path, write=True, wait=600, **LARGE).close()
    return told


def torture(folder: Path, seconds: float) -> dict:
    """Let one process write and four read for a while.

    Raises:
        AssertionError: a reader waited, saw a half or a wrong memory, or anyone died.
    """
    path = str(folder / "store")
    apart(_create, path).returned()
    until = time.time() + seconds
    writer = Apart(write, path, until)
    readers = [Apart(read, path, until) for _ in range(READERS)]
    time.sleep(min(1, seconds / 4))
    second = Apart(intrude, path)
    limit = 3 * seconds + 60
    figures = {
        "seconds": seconds,
        "writer": writer.outcome(limit).returned(),
        "readers": [reader.outcome(limit).returned() for reader in readers],
    }
    assert second.outcome(limit).returned(), "a second writer got in"
    # a commit takes milliseconds; whoever waited for a lock would have waited ten seconds
    assert max(reader["max_ms"] for reader in figures["readers"]) < 5000
    assert all(reader["versions"] > 1 for reader in figures["readers"])
    found = apart(_sound, path).returned()
    assert found == "", found
    return figures


def _create(path: str) -> None:
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", [f"version start part {part}" for part in range(PARTS)])


def _sound(path: str) -> str:
    found = MemoryStore.check(path)
    return "" if found.sound else str(found)
