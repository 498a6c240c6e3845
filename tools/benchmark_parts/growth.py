"""Answering, memorizing and opening as a store grows.

The store of the workload is filled with made-up references, so that all else stays the same: the
question, the model, and the way of reading a memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median
from uuid import uuid4

import mlx.core as mx

from m3mlx.assistant import Assistant
from m3mlx.bench.rounds import CLOCKS, Figure, Stopwatch, take_turns
from m3mlx.bench.workload import Workload
from m3mlx.config import CHUNK_TOKENS, MEMORIES, REFERENCE_TOKENS, Options, Progress
from m3mlx.store import NewReference

from .made_up import drop_cached, fill

MEMORIZED = 4  # references memorized in one turn
OPENED = 3  # times that a new process opens the store


def grow(workload: Workload, sizes: Sequence[int], rounds: int, progress: Progress) -> list[Figure]:
    """Measure the first token and memorizing a few references in stores of several sizes.

    Then a new process opens the largest store and retrieves, with the files out of the cache.

    Args:
        sizes: references in the store, ascending.
    """
    figures: list[Figure] = []
    held = workload.assistant.store().status()["references"]
    ways = {
        "off": partial(workload.ask, "off", CHUNK_TOKENS, [1]),
        "explicit warm": partial(workload.ask, "explicit warm", CHUNK_TOKENS, [1]),
        "memorize": partial(_memorize, workload),
    }
    for size in sizes:
        figure = Figure("growth", "made up", "fill", size)
        figure.add(_fill(workload, held, size, progress))
        held = size
        _write_found(workload)
        figures += [figure, *take_turns("growth", size, ways, rounds, progress)]
    return figures + _open(workload, sizes[-1], progress)


def _fill(workload: Workload, held: int, size: int, progress: Progress) -> tuple[float, float]:
    """Bring the store to a size; return the seconds, with the index."""
    counted = Counter(re.findall(r"\w+", workload.text.lower()))
    vocabulary = [word for word, _ in counted.most_common()]
    watch = Stopwatch()
    with workload.assistant.open_store(write=True) as store:
        for start, made in fill(store, held, size, vocabulary=vocabulary):
            progress(f"fill {size:,}", start + len(made), size)
    return watch.so_far()


def _write_found(workload: Workload) -> None:
    """Write a memory of every reference that the question finds, so that none is cold."""
    question = workload.text_of(workload.prompt(CHUNK_TOKENS).tokens)
    (hits,) = workload.search(Stopwatch(), [question])
    if cold := [hit.slot for hit in hits if not hit.warm]:
        tokens = list(workload.prompt(REFERENCE_TOKENS).tokens)
        record = workload.assistant.format.write([tokens])[0].tobytes()
        with workload.assistant.open_store(write=True) as store:
            store.write(dict.fromkeys(cold, record))


def _memorize(workload: Workload) -> Stopwatch:
    """Memorize a small document: embed, write, open the store, add and commit."""
    assistant, watch = workload.assistant, Stopwatch()
    name = f"/more/{uuid4().hex}"
    turns = [workload.prompt(REFERENCE_TOKENS, REFERENCE_TOKENS * n) for n in range(MEMORIZED)]
    tokens = [list(turn.tokens) for turn in turns]
    texts = [workload.text_of(row) for row in tokens]
    with watch.part("embed"):
        vectors = assistant.encoder.encode(texts)
    with watch.part("write"):
        records = assistant.format.write(tokens)
    with watch.part("add"), assistant.open_store(write=True) as store:
        document, _ = store.begin(name, name, MEMORIZED, size=1)
        store.add(
            [
                NewReference(document, n, n, n + 1, text, ids, None, 1, vector, record.tobytes())
                for n, (text, ids, vector, record) in enumerate(
                    zip(texts, tokens, vectors, records, strict=True)
                )
            ]
        )
    watch.lap("batch")
    return watch


def _open(workload: Workload, size: int, progress: Progress) -> list[Figure]:
    """Measure how a new process opens the store and retrieves, with its models loaded."""
    assistant = workload.assistant
    assistant.close()
    figures: dict[str, Figure] = {}
    for number in range(OPENED):
        progress(f"open {size:,}", number, OPENED)
        # a new process, since this one has verified the index file already
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            taken = process.submit(
                open_and_retrieve, assistant.options, workload.text[:300]
            ).result()
        for of, seconds in taken.items():
            figures.setdefault(of, Figure("open", "explicit cold files", of, size)).add(seconds)
    return list(figures.values())


def open_and_retrieve(options: Options, question: str) -> dict[str, tuple[float, float]]:
    """Load the models, open a store and read memories for a question; return seconds by part."""
    with Assistant.of(options) as assistant:
        assistant.decoder.template.encode("warm")
        assistant.encoder.encode(["warm"])
        for file in assistant.store_path.iterdir():
            drop_cached(file)
        watch = Stopwatch()
        with watch.part("open"):
            assistant.check()
        with watch.part("embed"):
            vectors = assistant.encoder.encode([question], query=True)
        with watch.part("search"):
            (hits,) = assistant.store().search(vectors, [question], MEMORIES)
        with watch.part("read"):
            warm = [hit.slot for hit in hits if hit.warm]
            memory = assistant.format.codec.unpack(assistant.store().read(warm))
            mx.eval(memory.keys, memory.values)
        watch.lap("first retrieval")
        return watch.parts


def growth_ratios(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Compare each size with the smallest, on both clocks.

    Machines drift in the minutes between two sizes, so each time is divided by that of a first
    token without memory, measured in the same round.
    """
    known = {(f.way, f.of, f.size): f for f in figures if f.part == "growth"}
    sizes = sorted({size for way, _, size in known if way == "off"})
    found: dict[str, dict[str, float]] = {}
    for clock, times in CLOCKS.items():
        of_smallest: dict[str, float] = {}
        for size in sizes:
            off, first, search, batch = (
                getattr(known[way, of, size], times)
                for way, of in (
                    *(("off", "first token"), ("explicit warm", "first token")),
                    *(("explicit warm", "search"), ("memorize", "batch")),
                )
            )
            first = [a - b for a, b in zip(first, search, strict=True)]
            for name, took in (("first token but for the search", first), ("memorize", batch)):
                value = median(a / b for a, b in zip(took, off, strict=True))
                if size == sizes[0]:
                    of_smallest[name] = value
                else:
                    full = f"growth {size}, {name}: of {sizes[0]}"
                    found.setdefault(full, {})[clock] = value / of_smallest[name]
    return found
