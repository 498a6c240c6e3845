"""The parts of the benchmark: asking, decoding, memorizing, and others who do the same."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from ..config import CHUNK_TOKENS, CODECS, REFERENCE_TOKENS, SELECTIONS, MemoryConfig
from ..memory.codec import Codec
from ..memory.write import Writer
from .rounds import Figure, Progress, Watch, take_turns
from .workload import Workload, ask

MODES = ("off", "text", "text refreshed", "explicit warm", "explicit cold")
STEPS = 16  # of decoding, in one turn


def asking(
    workload: Workload,
    prompts: Sequence[int],
    modes: Sequence[str],
    rounds: int,
    progress: Progress,
) -> list[Figure]:
    """Seconds to the first token.

    Args:
        prompts: tokens of the questions.
    """
    figures = []
    for prompt in prompts:
        ways = {
            mode: (lambda mode=mode, prompt=prompt: ask(workload, mode, prompt, [1]))
            for mode in modes
            if mode != "text refreshed"  # no other than text before the first refresh
        }
        figures += take_turns("ask", prompt, ways, rounds, progress)
    return figures


def answering(
    workload: Workload,
    marks: Sequence[int],
    modes: Sequence[str],
    rounds: int,
    progress: Progress,
) -> list[Figure]:
    """Seconds to whole answers to a question of 64 tokens.

    Args:
        marks: numbers of answer tokens at which the time is taken, the last of which ends it.
    """
    ways = {
        mode: (lambda mode=mode: ask(workload, mode, CHUNK_TOKENS, marks))
        for mode in modes
        if mode != "explicit cold"  # differs in the first token only
    }
    return take_turns("answer", marks[-1], ways, rounds, progress, warm=False)


def decoding(
    workload: Workload, contexts: Sequence[int], rounds: int, progress: Progress
) -> list[Figure]:
    """Seconds of one decoding step with and without five memories, and of a refresh.

    Args:
        contexts: tokens before the step.
    """
    figures = []
    for context in contexts:
        started = Watch()
        off = workload.conversation(started, "off")
        logits = off.prefill(workload.prompt(max(context, 1)))
        explicit = off.fork()
        words = workload.text_of(workload.prompt(CHUNK_TOKENS).tokens)

        def refresh(explicit=explicit, words=words) -> Watch:
            watch = Watch()
            (hits,) = workload.search(watch, [words])
            memory = workload.read(watch, [hit.slot for hit in hits])
            with watch.part("attach"):
                explicit.layout.attach(explicit.caches, memory)
                mx.eval([cache.state[:2] for cache in explicit.caches])
            watch.lap("refresh")
            return watch

        def steps(conversation, logits=logits) -> Watch:
            fork, watch = conversation.fork(), Watch()
            for number, _ in enumerate(fork.decode(logits, STEPS + 1, workload.sampler)):
                if number == 0:  # comes out of the prefill; and copies what was forked
                    watch = Watch()
            watch.lap("step")
            return watch

        refresh()
        ways = {
            "off": lambda off=off: steps(off),
            "explicit": lambda explicit=explicit: steps(explicit),
            "refresh": refresh,
        }
        found = take_turns("decode", context, ways, rounds, progress)
        for figure in found:
            if figure.of == "step":
                figure.walls = [wall / STEPS for wall in figure.walls]
                figure.cpus = [cpu / STEPS for cpu in figure.cpus]
        figures += found
    return figures


def memorizing(workload: Workload, count: int, rounds: int, progress: Progress) -> list[Figure]:
    """Seconds to write a batch of references of 128 tokens, and to read their tokens plainly.

    Args:
        count: references of the batch.
    """
    assistant = workload.assistant
    model, config = assistant.decoder.model, assistant.config
    references = [
        list(workload.prompt(REFERENCE_TOKENS, REFERENCE_TOKENS * n).tokens) for n in range(count)
    ]
    texts = [workload.text_of(tokens) for tokens in references]
    last = max(n for n, counts in enumerate(config.counts) if any(counts))

    def plain() -> Watch:
        watch, caches = Watch(), make_prompt_cache(model)
        model.model(mx.array(references), cache=caches)
        mx.eval([cache.state[:2] for cache in caches[: last + 1]])
        watch.lap("batch")
        return watch

    def write(selection: str) -> Watch:
        watch = Watch()
        with watch.part("embed"):
            assistant.encoder.encode(texts)
        writer = Writer(model, assistant.prefix, assistant.template.recite)
        with watch.part("write"):
            memory = writer.write(references, _with(config, selection))
        with watch.part("pack"):
            assistant.codec.pack(memory)
        watch.lap("batch")
        return watch

    ways = {"plain prefill": plain}
    ways |= {name: (lambda name=name: write(name)) for name in SELECTIONS}
    return take_turns("memorize", count, ways, rounds, progress)


def _with(config: MemoryConfig, selection: str) -> MemoryConfig:
    return MemoryConfig.from_json({**config.to_json(), "selection": selection})


def record_bytes(workload: Workload) -> dict[str, int]:
    """Bytes of one memory, by codec; and of the keys and values of its whole text in bfloat16."""
    config = workload.assistant.config
    sizes = {
        name: Codec(
            MemoryConfig.from_json({**config.to_json(), "key_bits": k, "value_bits": v})
        ).record_bytes
        for name, (k, v) in CODECS.items()
    }
    heads = sum(map(len, config.counts))
    return {**sizes, "whole keys and values": heads * REFERENCE_TOKENS * config.head_dim * 2 * 2}


def peers(workload: Workload, prompt: int, rounds: int, progress: Progress) -> list[Figure]:
    """Seconds to the first token of mlx-lm, with the same model and the same text.

    Ways: the references of a search pasted into its prompt; its saved prompt cache of those
    references, loaded from the disk; and ours.
    """
    model = workload.assistant.decoder.model
    question = list(workload.prompt(prompt).tokens)
    words = workload.text_of(question)
    document = [*workload.assistant.template.prefix, *workload.pasted(Watch(), question)]

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
        workload.search(watch, [words])
        first([*document, *question], make_prompt_cache(model))
        watch.lap("first token")
        return watch

    with tempfile.TemporaryDirectory(prefix="m3mlx-bench-") as folder:
        file = str(Path(folder) / "cache.safetensors")
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

        ways = {
            "mlx-lm, references in the prompt": pasted,
            "mlx-lm, saved prompt cache": saved,
            "m3mlx, explicit warm": lambda: ask(workload, "explicit warm", prompt, [1]),
        }
        return take_turns("peers", prompt, ways, rounds, progress)
