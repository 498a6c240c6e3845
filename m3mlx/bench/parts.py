"""The parts of the benchmark: asking, decoding and memorizing."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ..config import CHUNK_TOKENS, CODECS, REFERENCE_TOKENS, SELECTIONS, MemoryConfig, Progress
from ..memory.codec import Codec
from ..memory.write import Writer
from .rounds import Figure, Watch, take_turns
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
            # no other than text before the first refresh; writing is the same for any question
            if mode != "text refreshed" and (mode != "explicit cold" or prompt == CHUNK_TOKENS)
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
    model, config = assistant.decoder.model, assistant.format.config
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
        writer = Writer(model, assistant.format.prefix, assistant.decoder.template.recite)
        with watch.part("write"):
            memory = writer.write(references, _with(config, selection))
        with watch.part("pack"):
            assistant.format.codec.pack(memory)
        watch.lap("batch")
        return watch

    ways = {"plain prefill": plain}
    ways |= {name: (lambda name=name: write(name)) for name in SELECTIONS}
    return take_turns("memorize", count, ways, rounds, progress)


def _with(config: MemoryConfig, selection: str) -> MemoryConfig:
    return MemoryConfig.from_json({**config.to_json(), "selection": selection})


def record_bytes(workload: Workload) -> dict[str, int]:
    """Bytes of one memory, by codec; and of the keys and values of its whole text in bfloat16."""
    config = workload.assistant.format.config
    sizes = {
        name: Codec(
            MemoryConfig.from_json({**config.to_json(), "key_bits": k, "value_bits": v})
        ).record_bytes
        for name, (k, v) in CODECS.items()
    }
    heads = sum(map(len, config.counts))
    return {**sizes, "whole keys and values": heads * REFERENCE_TOKENS * config.head_dim * 2 * 2}
