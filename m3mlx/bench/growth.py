"""What changes as a store grows: answers, memorizing, and opening it.

The store of the workload gets made-up references until it has as many as wanted, so that
everything else stays the same: the question, the model, and how a memory is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlx.core as mx

from ..assistant import Assistant
from ..config import CHUNK_TOKENS, MEMORIES, REFERENCE_TOKENS, Progress
from ..store import NewReference
from .made_up import drop_cached, fill
from .rounds import Figure, Watch, take_turns
from .workload import Workload, ask

MEMORIZED = 4  # references that are memorized in one turn
OPENED = 3  # times that a new process opens the store


def growing(
    workload: Workload, sizes: Sequence[int], rounds: int, progress: Progress
) -> list[Figure]:
    """Seconds to the first token and to memorize a few references, in stores of several sizes.

    Then a new process opens the largest store and retrieves, with the files out of the cache.

    Args:
        sizes: references in the store, ascending.
    """
    figures: list[Figure] = []
    held = workload.assistant.store().status()["references"]
    ways = {
        "off": lambda: ask(workload, "off", CHUNK_TOKENS, [1]),
        "explicit warm": lambda: ask(workload, "explicit warm", CHUNK_TOKENS, [1]),
        "memorize": lambda: memorize(workload),
    }
    for size in sizes:
        filled = _fill(workload, held, size, progress)
        held = size
        figures.append(Figure("growth", "made up", "fill", size, *([took] for took in filled)))
        _write_found(workload)
        figures += take_turns("growth", size, ways, rounds, progress)
    return figures + opening(workload, sizes[-1], progress)


def _fill(workload: Workload, held: int, size: int, progress: Progress) -> tuple[float, float]:
    """Bring the store to a size; seconds, with the index."""
    counted = Counter(re.findall(r"\w+", workload.text.lower()))
    vocabulary = [word for word, _ in counted.most_common()]
    watch = Watch()
    with workload.assistant.open_store(write=True) as store:
        for start, made in fill(store, held, size, vocabulary=vocabulary):
            progress(f"fill {size:,}", start + len(made), size)
    return watch.so_far()


def _write_found(workload: Workload) -> None:
    """Give those made-up references a memory that the question finds; none of them is cold then."""
    question = workload.text_of(workload.prompt(CHUNK_TOKENS).tokens)
    (hits,) = workload.search(Watch(), [question])
    if cold := [hit.slot for hit in hits if not hit.warm]:
        tokens = list(workload.prompt(REFERENCE_TOKENS).tokens)
        record = workload.assistant.format.write([tokens])[0].tobytes()
        with workload.assistant.open_store(write=True) as store:
            store.write(dict.fromkeys(cold, record))


def memorize(workload: Workload) -> Watch:
    """Memorize a small document: open the store, embed, write, add, and settle."""
    assistant, watch = workload.assistant, Watch()
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


def opening(workload: Workload, size: int, progress: Progress) -> list[Figure]:
    """Seconds that a new process takes to open the store and retrieve, its models loaded."""
    assistant = workload.assistant
    assistant.close()
    figures: dict[str, Figure] = {}
    options = {**workload.options, "store": assistant.store_path}
    for number in range(OPENED):
        progress(f"open {size:,}", number, OPENED)
        # what this process has proved of the index file must not count
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            taken = process.submit(open_and_retrieve, options, workload.text[:300]).result()
        for of, (wall, cpu) in taken.items():
            figure = figures.setdefault(of, Figure("open", "explicit cold files", of, size))
            figure.walls.append(wall)
            figure.cpus.append(cpu)
    return list(figures.values())


def open_and_retrieve(options: dict[str, Any], question: str) -> dict[str, tuple[float, float]]:
    """Load the models; then open a store and read what fits a question. Seconds by part."""
    path = Path(options["store"])
    with Assistant(**options) as assistant:
        assistant.decoder.template.encode("warm")
        assistant.encoder.encode(["warm"])
        for file in path.iterdir():
            drop_cached(file)
        watch = Watch()
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
