"""Peers that answer from the same references: mlx-lm, and llama.cpp where it is installed."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from m3mlx.bench.rounds import Figure, Stopwatch, ratios_to, take_turns
from m3mlx.bench.workload import Workload
from m3mlx.config import Progress
from m3mlx.errors import M3Error
from m3mlx.models.builtin import BUILT_IN, fetch_gguf

LLAMA = "llama_cpp"  # module of the package llama-cpp-python
LLAMA_MISSING = "llama.cpp is left out: llama-cpp-python is not installed."

Ways = dict[str, Callable[[], Stopwatch]]


def peers(
    workload: Workload,
    prompt: int,
    rounds: int,
    progress: Progress,
    note: Callable[[str], None],
    gguf: Path | None = None,
) -> list[Figure]:
    """Measure seconds to the first token of peers, with the same model and the same text.

    mlx-lm and llama.cpp have two ways each: the references of a search pasted into the prompt, and
    a saved cache of those references, loaded from disk. The last way is our own.

    Args:
        note: called with what is left out, and why.
        gguf: the model for llama.cpp; None to fetch that of a built-in model.
    """
    question = list(workload.prompt(prompt).tokens)
    document = [
        *workload.assistant.decoder.template.prefix,
        *workload.pasted(Stopwatch(), question),
    ]
    with tempfile.TemporaryDirectory(prefix="m3mlx-bench-") as name:
        folder = Path(name)
        ways = _mlx_lm(workload, document, question, folder)
        try:
            ways |= _llama(workload, document, question, folder, gguf, progress)
        except M3Error as error:
            note(str(error))
        ways["m3mlx, explicit warm"] = partial(workload.ask, "explicit warm", prompt, [1])
        return take_turns("peers", prompt, ways, rounds, progress)


def _mlx_lm(
    workload: Workload, document: Sequence[int], question: Sequence[int], folder: Path
) -> Ways:
    model = workload.assistant.decoder.model

    def first(tokens: Sequence[int], caches: list) -> None:
        # a stream of this thread, as in mlx-lm's command
        steps = generate_step(
            mx.array(tokens),
            model,
            mx.default_stream(mx.default_device()),
            max_tokens=1,
            sampler=workload.sampler,
            prompt_cache=caches,
        )
        next(steps)
        steps.close()

    def pasted() -> Stopwatch:
        watch = Stopwatch()
        workload.search(watch, [workload.text_of(question)])
        first([*document, *question], make_prompt_cache(model))
        watch.lap("first token")
        return watch

    file = str(folder / "cache.safetensors")
    caches = make_prompt_cache(model)
    first(document, caches)
    for cache in caches:
        cache.trim(cache.offset - len(document))
    save_prompt_cache(file, caches)

    def saved() -> Stopwatch:
        watch = Stopwatch()
        first(question, load_prompt_cache(file))
        watch.lap("first token")
        return watch

    return {"mlx-lm, references in the prompt": pasted, "mlx-lm, saved prompt cache": saved}


def _llama(
    workload: Workload,
    document: Sequence[int],
    question: Sequence[int],
    folder: Path,
    gguf: Path | None,
    progress: Progress,
) -> Ways:
    """Return the ways of llama.cpp, with as many threads as BLAS uses here.

    Raises:
        M3Error: it is not installed, or there is no model for it.
    """
    llama = _load_llama(workload, len(document) + len(question) + 8, folder, gguf, progress)
    import llama_cpp

    known = np.array(document, np.int32).ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    slot = str(folder / "slot.bin").encode()

    def first(tokens: Sequence[int]) -> None:
        llama.eval(tokens)
        llama.sample(temp=0.0)

    def pasted() -> Stopwatch:
        watch = Stopwatch()
        workload.search(watch, [workload.text_of(question)])
        llama.reset()
        first([*document, *question])
        watch.lap("first token")
        return watch

    llama.eval(document)
    context = llama._ctx.ctx  # the Python classes have no method for slots
    if not llama_cpp.llama_state_seq_save_file(context, slot, 0, known, len(document)):
        raise M3Error("llama.cpp is left out: it cannot save its slot.")

    def saved() -> Stopwatch:
        watch = Stopwatch()
        llama.reset()
        read = (ctypes.c_int32 * len(document))()
        count = ctypes.c_size_t()
        given = read, len(read), ctypes.byref(count)
        if not llama_cpp.llama_state_seq_load_file(context, slot, 0, *given):
            raise M3Error("llama.cpp cannot load the slot that it has saved.")
        llama.n_tokens = count.value
        first(question)
        watch.lap("first token")
        return watch

    return {"llama.cpp, references in the prompt": pasted, "llama.cpp, saved slot": saved}


def _load_llama(
    workload: Workload, context: int, folder: Path, gguf: Path | None, progress: Progress
) -> Any:
    if find_spec(LLAMA) is None:
        raise M3Error(LLAMA_MISSING)
    import llama_cpp

    name = workload.assistant.decoder.name.lower()
    if gguf is None and name not in BUILT_IN:
        raise M3Error(f"llama.cpp is left out: name the GGUF file of {name} with --gguf.")
    path = gguf or fetch_gguf(name, folder / "gguf", progress)
    threads = _threads()
    try:
        return llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
    except (OSError, ValueError) as error:
        raise M3Error(f"llama.cpp is left out: it cannot load {path} ({error}).") from error


def _threads() -> int:
    """Return as many threads as our own matrix products have."""
    with suppress(ValueError):
        return int(os.environ.get("OPENBLAS_NUM_THREADS", ""))
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def peer_ratios(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Compare our first token with that of each peer."""
    found: dict[str, dict[str, float]] = {}
    for figure in figures:
        if figure.part == "peers" and (figure.of, figure.way[:5]) == ("first token", "m3mlx"):
            found |= ratios_to({f.way: None for f in figures}, figure, figures)
    return found
