"""Prove on a model's own weights, once, that explicit memory is exact for it.

A model may look like those that are known to work and still compute something else with what is
laid before its context. So before its first use four things are computed twice: a reference
whose memory was kept whole against the same tokens in the context, the same memory beside an
empty one against it alone, a context without memories against the model as mlx-lm runs it, and a
context read at once against one read in steps. What differs is refused. The result is kept beside
the calibrations.

Recurrent layers do not read the reference of a memory. So a hybrid's whole memory is compared with
the model after it has read the reference, the states of its recurrent layers set back to what they
were after the prefix.
"""

from __future__ import annotations

import json
from time import perf_counter

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from . import files
from .chat.conversation import Conversation
from .config import MemoryConfig, Progress, cache_folder, digest, no_progress
from .errors import RefusedError
from .memory.cache import Layout, arrange, read_prefix
from .memory.codec import PADDING
from .memory.write import Writer, keep
from .models.caches import keeps_state, leaves
from .models.decoder import Decoder
from .models.template import Turn
from .models.verdicts import conditions

REFERENCE, CONTEXT = 48, 24  # tokens
# Largest difference of two logits, as a share of the largest logit.
TOLERANCES = {mx.float32: 1e-3, mx.float16: 0.05, mx.bfloat16: 0.2}


def verify(decoder: Decoder, progress: Progress = no_progress) -> float:
    """Return how far memories are from exact: a share of the largest logit.

    Raises:
        RefusedError: the model computes something else with memories; names what differs.
    """
    asked = {
        "model": decoder.name,
        "weights": decoder.weights,
        "adapter": decoder.adapter,
        "tokenizer": decoder.tokenizer_hash,
        **conditions(),
    }
    path = cache_folder() / "verified" / f"{digest(asked)[:32]}.json"
    try:
        return float(json.loads(path.read_text("utf-8"))["difference"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not verified yet, or damaged: verify anew
    progress("verifying the model", 0, 1)
    start = perf_counter()
    try:
        found = differences(decoder)
    except Exception as error:  # a foreign model can fail anywhere
        what = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise RefusedError(
            f"{decoder.name} cannot carry explicit memory: reading one fails ({what})."
        ) from error
    for what, (difference, tolerance) in found.items():
        if not difference <= tolerance:  # also where it is no number
            raise RefusedError(
                f"{decoder.name} cannot carry explicit memory: {what} changes its logits by "
                f"{difference:.1%} of the largest, where rounding explains {tolerance:.1%}."
            )
    worst = max(difference for difference, _ in found.values())
    seconds = round(perf_counter() - start, 2)
    files.write_text(path, json.dumps({**asked, "difference": worst, "seconds": seconds}))
    progress("verifying the model", 1, 1)
    return worst


def differences(decoder: Decoder) -> dict[str, tuple[float, float]]:
    """Compute each thing twice: what is compared, its difference, and what rounding explains."""
    model, prefix = decoder.model, decoder.template.prefix
    words = decoder.template.encode(" ".join(f"Number {n} is {n * n}." for n in range(9, 99)))
    words = words[: REFERENCE + CONTEXT]
    reference, context = words[:REFERENCE], words[REFERENCE:]
    config = MemoryConfig(
        selection="reconstruction",
        budget="uniform",
        counts=tuple((len(reference),) * heads for heads in decoder.kv_heads),
        **MemoryConfig.lengths(decoder.dims),
        prefix=prefix,
        reference_tokens=len(reference),
    )
    states = read_prefix(model, prefix)
    # Written beside a longer one, as the shorter rows of a batch are.
    writer = Writer(model, states, decoder.template.recite)
    memory = keep(*writer.score([words, reference], "reconstruction"), config.counts).take([1, 1])
    memory.positions[1] = PADDING
    turn = Turn(tuple(context), (0, len(context)))

    def conversation(*rows: int) -> Conversation:
        if not rows:
            return Conversation(decoder, states)
        return Conversation(
            decoder,
            states,
            Layout(config),
            search=lambda texts, k: [list(rows)] * len(texts),
            read=memory.take,
        )

    def read_once(*rows: int) -> mx.array:
        return conversation(*rows).prefill(turn, rows=len(context))

    def steps() -> mx.array:
        stepped = conversation(0)
        rows = [stepped.prefill(Turn(tuple(context[:4]), (0, 4)), rows=4)]
        rows += [stepped._feed([token]) for token in context[4:]]
        return mx.concatenate(rows)

    def plain(tokens: list[int]) -> mx.array:
        caches = make_prompt_cache(model)
        if any(map(keeps_state, leaves(caches))) and len(tokens) > len(prefix) + len(context):
            model(mx.array([tokens[: -len(context)]]), cache=caches)
            read = [cache for cache in leaves(caches) if not keeps_state(cache)]
            tokens, caches = context, arrange(read, states)
        logits = model(mx.array([tokens]), cache=caches)
        return logits[0, -len(context) :].astype(mx.float32)

    whole = read_once(0)
    pairs = {
        "a whole memory": (whole, plain([*prefix, *reference, *context])),
        # more keys at the same positions: some models take the number of keys for a position
        "an empty memory beside another": (read_once(0, 1), whole),
        "a context without memories": (read_once(), plain([*prefix, *context])),
        "reading token by token": (steps(), whole),
    }
    dtype = states[0][0].dtype
    return {what: (_difference(*pair), TOLERANCES.get(dtype, 0.2)) for what, pair in pairs.items()}


def _difference(a: mx.array, b: mx.array) -> float:
    one, other = np.array(a, np.float64), np.array(b, np.float64)
    apart = np.abs(np.subtract(one, other, where=one != other, out=np.zeros_like(one)))
    return float(apart.max() / max(np.abs(other[np.isfinite(other)]).max(initial=0), 1e-9))
