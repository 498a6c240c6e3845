"""The parts of the benchmark: ask, decode and memorize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from ..chat.conversation import Conversation
from ..config import CHUNK_TOKENS, CODECS, REFERENCE_TOKENS, SELECTIONS, MemoryConfig, Progress
from ..memory.codec import Codec
from ..memory.write import Writer
from .rounds import Figure, Stopwatch, take_turns
from .workload import Workload

STEPS = 16  # of decoding, in one turn


def ask(
    workload: Workload, prompts: Sequence[int], ways: Sequence[str], rounds: int, progress: Progress
) -> list[Figure]:
    """Measure seconds to the first token.

    Args:
        prompts: tokens of the questions.
        ways: of ``WAYS``.
    """
    figures = []
    for prompt in prompts:
        turns = {
            way: partial(workload.ask, way, prompt, [1])
            for way in ways
            # before the first refresh it is "text"; writing takes the same time for any question
            if way != "text refreshed" and (way != "explicit cold" or prompt == CHUNK_TOKENS)
        }
        figures += take_turns("ask", prompt, turns, rounds, progress)
    return figures


def decode(
    workload: Workload, contexts: Sequence[int], rounds: int, progress: Progress
) -> list[Figure]:
    """Measure seconds of one decoding step with and without five memories, and of a refresh.

    "mlx-lm" is its own loop, ``generate_step``, behind the same tokens.

    Args:
        contexts: tokens before the step.
    """
    figures = []
    for context in contexts:
        off = workload.conversation(Stopwatch(), "off")
        turn = workload.prompt(max(context, 1))
        logits = off.prefill(turn)
        explicit = off.fork()
        refresh = partial(_refresh, workload, explicit)
        refresh()
        turns = {
            "off": partial(_steps, workload, off, logits),
            "explicit": partial(_steps, workload, explicit, logits),
            "refresh": refresh,
            "mlx-lm": partial(_plain_steps, workload, turn.tokens),
        }
        found = take_turns("decode", context, turns, rounds, progress)
        for figure in found:
            if figure.of == "step":
                figure.walls = [wall / STEPS for wall in figure.walls]
                figure.cpus = [cpu / STEPS for cpu in figure.cpus]
        figures += found
    return figures


def _refresh(workload: Workload, conversation: Conversation) -> Stopwatch:
    watch = Stopwatch()
    (hits,) = workload.search(watch, [workload.text_of(workload.prompt(CHUNK_TOKENS).tokens)])
    memory = workload.read(watch, hits)
    with watch.part("attach"):
        workload.assistant.format.layout.attach(conversation.caches, memory)
        mx.eval([cache.state[:2] for cache in conversation.caches])
    watch.lap("refresh")
    return watch


def _steps(workload: Workload, conversation: Conversation, logits: mx.array) -> Stopwatch:
    fork, watch = conversation.fork(), Stopwatch()
    for number, _ in enumerate(fork.decode(logits, STEPS + 1, workload.sampler)):
        if number == 0:  # its logits are given; it copies what was forked
            watch = Stopwatch()
    watch.lap("step")
    return watch


def _plain_steps(workload: Workload, tokens: Sequence[int]) -> Stopwatch:
    decoder, watch = workload.assistant.decoder, Stopwatch()
    prompt = mx.array([*workload.assistant.format.config.prefix, *tokens])
    steps = generate_step(prompt, decoder.model, max_tokens=STEPS + 1, sampler=workload.sampler)
    for number, _ in enumerate(steps):
        if number == 0:
            watch = Stopwatch()
    watch.lap("step")
    return watch


def memorize(workload: Workload, count: int, rounds: int, progress: Progress) -> list[Figure]:
    """Measure seconds to write a batch of references of 128 tokens, and of a plain prefill.

    Args:
        count: references of the batch.
    """
    assistant, memory = workload.assistant, workload.assistant.format
    model, config = assistant.decoder.model, memory.config
    references = [
        list(workload.prompt(REFERENCE_TOKENS, REFERENCE_TOKENS * n).tokens) for n in range(count)
    ]
    texts = [workload.text_of(tokens) for tokens in references]
    last = max(n for n, counts in enumerate(config.counts) if any(counts))

    def plain() -> Stopwatch:
        watch, caches = Stopwatch(), make_prompt_cache(model)
        model.model(mx.array(references), cache=caches)
        mx.eval([cache.state[:2] for cache in caches[: last + 1]])
        watch.lap("batch")
        return watch

    def write(selection: str) -> Stopwatch:
        watch = Stopwatch()
        with watch.part("embed"):
            assistant.encoder.encode(texts)
        writer = Writer(model, memory.prefix, memory.template.recite)
        with watch.part("write"):
            written = writer.write(references, replace(config, selection=selection))
        with watch.part("pack"):
            memory.codec.pack(written)
        watch.lap("batch")
        return watch

    turns: dict[str, Callable[[], Stopwatch]] = {"plain prefill": plain}
    turns |= {name: partial(write, name) for name in SELECTIONS}
    return take_turns("memorize", count, turns, rounds, progress)


def record_bytes(config: MemoryConfig) -> dict[str, int]:
    """Return the bytes of one memory by codec, and of all keys and values in bfloat16."""
    sizes = {
        name: Codec(replace(config, key_bits=keys, value_bits=values)).record_bytes
        for name, (keys, values) in CODECS.items()
    }
    heads = sum(map(len, config.counts))
    return {**sizes, "whole keys and values": heads * REFERENCE_TOKENS * config.head_dim * 2 * 2}
