"""What encryption at rest costs: the same work in a plain and an encrypted store, side by side.

    python tools/encryption.py [references] [rounds]

Memories and vectors are made up (98,640 bytes and 384 values each, as for the default models).
The two stores take turns in every round; figures are medians, and the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cryptography
import numpy as np

from m3mlx.store import MemoryStore, NewReference

BYTES, DIMENSIONS = 98_640, 384
WORDS = "river copper lantern meadow engine window harbour violin thirteen winter".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("references", type=int, nargs="?", default=2000)
    parser.add_argument("rounds", type=int, nargs="?", default=30)
    arguments = parser.parse_args()
    count, rounds = arguments.references, arguments.rounds
    random = np.random.default_rng(0)
    times: dict[str, dict[str, list[float]]] = {}

    def took(what: str, kind: str, start: float) -> None:
        times.setdefault(what, {}).setdefault(kind, []).append(1000 * (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in ("plain", "encrypted")}
        for kind, folder in folders.items():
            MemoryStore.create(
                folder,
                fingerprint={"made": "up"},
                memory={},
                encoder="made up",
                dimensions=DIMENSIONS,
                record_bytes=BYTES,
                encrypt=kind == "encrypted",
                passphrase=words,
            ).close()
        for number in range(count // 16):
            batch = made_up(random, 16)
            for kind, folder in turn(folders, number):
                with MemoryStore.open(folder, write=True, passphrase=words) as store:
                    document, _ = store.begin(f"/notes/{number}.md", "h", 16, size=1)
                    start = time.perf_counter()
                    store.add([NewReference(document, *fields) for fields in batch])
                    took("add 16 references", kind, start)
        stores = {
            kind: MemoryStore.open(folder, passphrase=words) for kind, folder in folders.items()
        }
        slots = stores["plain"].slots(count=count)
        for kind, store in stores.items():
            for mode in ("dense", "hybrid"):
                start = time.perf_counter()
                store.search(unit(random, 1), ["copper river"], 5, mode)
                took(f"first {mode} search", kind, start)
        for number in range(rounds):
            chosen = [int(slot) for slot in random.choice(slots, 5, replace=False)]
            query = unit(random, 1)
            text = " ".join(random.choice(WORDS, 3))
            for kind, store in turn(stores, number):
                start = time.perf_counter()
                store.read(chosen)
                took("read 5 memories", kind, start)
                for mode in ("dense", "hybrid"):
                    start = time.perf_counter()
                    store.search(query, [text], 5, mode)
                    took(f"{mode} search", kind, start)
        for store in stores.values():
            store.close()
        sizes = {
            kind: sum(file.stat().st_blocks * 512 for file in folder.iterdir())
            for kind, folder in folders.items()
        }
    report = {
        "references": count,
        "rounds": rounds,
        "milliseconds": {
            what: {kind: statistics.median(values) for kind, values in kinds.items()}
            for what, kinds in times.items()
        },
        "bytes": sizes,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "cryptography": cryptography.__version__,
    }
    print(f"{'median of ' + str(rounds) + ' rounds':24}{'plain':>12}{'encrypted':>12}{'ratio':>8}")
    for what, kinds in report["milliseconds"].items():
        plain, encrypted = kinds["plain"], kinds["encrypted"]
        print(f"{what:24}{plain:9.2f} ms{encrypted:9.2f} ms{encrypted / plain:8.2f}")
    print(f"{'bytes':24}{sizes['plain']:12,}{sizes['encrypted']:12,}"
          f"{sizes['encrypted'] / sizes['plain']:8.2f}")  # fmt: skip
    print(json.dumps(report))


def words() -> str:
    return "nine brass buttons"


def turn(kinds: dict, number: int) -> list:
    """Who goes first changes."""
    return list(kinds.items())[:: -1 if number % 2 else 1]


def unit(random: np.random.Generator, count: int) -> np.ndarray:
    vectors = random.standard_normal((count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_up(random: np.random.Generator, count: int) -> list[tuple]:
    """References but for their document, in the order of the fields of NewReference."""
    vectors = unit(random, count)
    texts = [" ".join(random.choice(WORDS, 90)) for _ in range(count)]
    return [
        (n, 0, 1, text, list(range(128)), None, 1, vectors[n], random.bytes(BYTES))
        for n, text in enumerate(texts)
    ]


if __name__ == "__main__":
    main()
