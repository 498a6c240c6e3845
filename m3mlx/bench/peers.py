"""Others who answer from the same references: mlx-lm, and llama.cpp where it is installed."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from ..config import Progress
from ..errors import M3Error
from ..models.builtin import BUILT_IN, fetch_gguf
from .rounds import Figure, Watch, take_turns
from .workload import Workload, ask

LLAMA = "llama_cpp"  # of the package llama-cpp-python
LLAMA_MISSING = "llama.cpp is left out: llama-cpp-python is not installed."

Ways = dict[str, Callable[[], Watch]]


def peers(
    workload: Workload,
    prompt: int,
    rounds: int,
    progress: Progress,
    note: Callable[[str], None],
    gguf: Path | None = None,
) -> list[Figure]:
    """Seconds to the first token of others, with the same model and the same text.

    Ways, for mlx-lm and for llama.cpp: the references of a search pasted into the prompt; a
    saved cache of those references, loaded from the disk. And ours.

    Args:
        note: told what is left out, and why.
        gguf: the model as llama.cpp has it; None to fetch that of a built-in model.
    """
    question = list(workload.prompt(prompt).tokens)
    document = [*workload.assistant.decoder.template.prefix, *workload.pasted(Watch(), question)]
    with tempfile.TemporaryDirectory(prefix="m3mlx-bench-") as name:
        folder = Path(name)
        ways = _mlx_lm(workload, document, question, folder)
        try:
            ways |= _llama(workload, document, question, folder, gguf, progress)
        except M3Error as error:
            note(str(error))
        ways["m3mlx, explicit warm"] = lambda: ask(workload, "explicit warm", prompt, [1])
        return take_turns("peers", prompt, ways, rounds, progress)


def _mlx_lm(
    workload: Workload, document: Sequence[int], question: Sequence[int], folder: Path
) -> Ways:
    model = workload.assistant.decoder.model

    def first(tokens: Sequence[int], caches: list) -> None:
        # a stream of its own thread's, as mlx-lm's command has it
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

    def pasted() -> Watch:
        watch = Watch()
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

    def saved() -> Watch:
        watch = Watch()
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
    """The ways of llama.cpp, with as many threads as BLAS has here.

    Raises:
        M3Error: it is not installed, or its model cannot be had.
    """
    if find_spec(LLAMA) is None:
        raise M3Error(LLAMA_MISSING)
    import llama_cpp

    name = workload.assistant.decoder.name.lower()
    if gguf is None and name not in BUILT_IN:
        raise M3Error(f"llama.cpp is left out: name the GGUF file of {name} with --gguf.")
    path = gguf or fetch_gguf(name, folder / "gguf", progress)
    threads = _threads()
    try:
        llama = llama_cpp.Llama(
            str(path),
            n_ctx=len(document) + len(question) + 8,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
    except (OSError, ValueError) as error:
        raise M3Error(f"llama.cpp is left out: it cannot load {path} ({error}).") from error
    known = np.array(document, np.int32).ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    slot = str(folder / "slot.bin").encode()

    def first(tokens: Sequence[int]) -> None:
        llama.eval(tokens)
        llama.sample(temp=0.0)

    def pasted() -> Watch:
        watch = Watch()
        workload.search(watch, [workload.text_of(question)])
        llama.reset()
        first([*document, *question])
        watch.lap("first token")
        return watch

    llama.eval(document)
    context = llama._ctx.ctx  # the slots of its server have no name in the Python classes
    if not llama_cpp.llama_state_seq_save_file(context, slot, 0, known, len(document)):
        raise M3Error("llama.cpp is left out: it cannot save its slot.")

    def saved() -> Watch:
        watch = Watch()
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


def _threads() -> int:
    """As many as our own matrix products have."""
    with suppress(ValueError):
        return int(os.environ.get("OPENBLAS_NUM_THREADS", ""))
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1
