"""The stages of a case, computed with MLX by the code that answers questions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner.utils import linear_to_lora_layers

from ..chat.conversation import Conversation
from ..config import CHUNK_TOKENS, SELECTIONS, MemoryConfig
from ..memory.cache import Layout, PrefixStates, make_cache, read_prefix
from ..memory.codec import PADDING, Memory
from ..memory.parallel import logits_with_memories
from ..memory.write import Writer, keep, write_traced
from ..models.arrays import named_arrays
from ..models.decoder import Decoder
from ..models.hooks import layer_outputs
from ..models.template import Turn
from .cases import LORA_EPS, LORA_MODULES, LORA_RANK, LORA_RATE, LORA_SCALE, Case

ROWS = 32  # of a layer's output, the last ones

# In the order of the computation: the first that differs is where to look.
STAGES = (
    "embeddings",
    "layers",  # each layer's output, without memories
    "scores attention",
    "scores reconstruction",
    "selected",
    "keys",
    "values",
    "read",  # each layer's output beside memories
    "logits",
    "prefill",
    "tokens",
    "queries",  # what was searched for, chunk by chunk
    "decoded",  # the two largest logits that each token was taken from
    "loss",
    "gradients",
    "lora",  # the adapter's weights after one step
)
BFLOAT16_STAGES = STAGES[: STAGES.index("tokens")]
LoRA = dict[str, tuple[np.ndarray, np.ndarray]]


def measure(
    decoder: Decoder, case: Case, lora: LoRA, selected: np.ndarray, stages: Collection[str] = STAGES
) -> Iterator[tuple[str, np.ndarray]]:
    """Compute the stages of a case, each when it is asked for.

    Args:
        decoder: the case's model; the stage ``lora`` leaves adapters in it.
        lora: A and B of each adapted module.
        selected: uint8 (references, kept), the tokens that the other side kept. Later stages read
            memories of these, so that a tie is one difference and not a hundred.

    Yields:
        Names and arrays as in ``tests/parity/quantities.py``; float32 or integers.
    """
    model = decoder.model
    config = MemoryConfig(
        selection=case.selection,
        budget="calibrated",
        counts=case.counts,
        **MemoryConfig.lengths(decoder.dims),
        prefix=case.prefix,
        key_scale=case.key_scale,
    )
    layout = Layout(config)
    first = mx.array([case.chunks[0]])

    yield "embeddings", _array(model.model.embed_tokens(mx.array(case.context)))
    prefix = read_prefix(model, case.prefix)
    with layer_outputs(model) as outputs:
        model(first, cache=make_cache(model, prefix))
    yield from _layers("layers", outputs)

    writer = Writer(model, prefix, case.recite)
    for selection in (s for s in SELECTIONS[::-1] if f"scores {s}" in stages):
        scores, keys, values = writer.score(case.references, selection)
        for layer in range(len(case.counts)):
            yield f"scores {selection}/{layer}", scores[:, layer]
    yield "selected", writer.write(case.references, config).positions
    memory = keep(_scores_of(selected, case), keys, values, case.counts)
    yield from _keys_and_values(case, memory)

    caches = make_cache(model, prefix)
    layout.attach(caches, memory.take(case.reads[0]))
    with layer_outputs(model) as outputs:
        logits = model(first, cache=caches)[0]
    yield from _layers("read", outputs)
    yield "logits", _array(logits)

    yield from _answer(decoder, case, prefix, layout, memory, stages)
    if "loss" in stages:
        yield from _training(model, case, config, lora, selected, stages)


def _keys_and_values(case: Case, memory: Memory) -> Iterator[tuple[str, np.ndarray]]:
    real = mx.array(memory.positions != PADDING)[..., None]
    for stage, array in (("keys", memory.keys), ("values", memory.values)):
        start = 0
        for layer, counts in enumerate(case.counts):
            stop = start + sum(counts)
            if stop > start:
                yield f"{stage}/{layer}", _array(array[:, start:stop] * real[:, start:stop])
            start = stop


def _answer(
    decoder: Decoder,
    case: Case,
    prefix: PrefixStates,
    layout: Layout,
    memory: Memory,
    stages: Collection[str],
) -> Iterator[tuple[str, np.ndarray]]:
    queries: list[list[int]] = []
    found = iter([*case.reads, *case.refreshes])

    def search(texts: Sequence[str], k: int) -> list[list[int]]:
        queries.extend(decoder.tokenizer.encode(t, add_special_tokens=False) for t in texts)
        return [list(next(found)) for _ in texts]

    conversation = Conversation(decoder, prefix, layout, search=search, read=memory.take)
    length = len(case.context)
    logits = conversation.prefill(Turn(case.context, (0, length)), rows=length)
    yield "prefill", _array(logits)
    if "tokens" in stages:
        decoder.tokenizer.eos_token_ids = set()  # an answer of one length, whatever it says
        steps = list(conversation.decode(logits, case.generate))[:-1]
        yield "tokens", np.array([step.token for step in steps])
        if "queries" in stages:
            rows = [[*row, *[-1] * (CHUNK_TOKENS - len(row))] for row in queries]
            yield "queries", np.array(rows)
        yield "decoded", np.stack([_two_best(step.logprobs) for step in steps])


def _training(
    model: nn.Module,
    case: Case,
    config: MemoryConfig,
    lora: LoRA,
    selected: np.ndarray,
    stages: Collection[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Loss and gradients of training: write memories with gradients, read in one parallel pass."""
    scores = _scores_of(selected, case)
    target = mx.array(case.context[1:])

    def loss(added: list[mx.array]) -> mx.array:
        prefix = read_prefix(model, case.prefix)
        memory = write_traced(model, prefix, case.references, scores, case.counts)
        keys, values = memory.keys + added[0], memory.values + added[1]
        memory = Memory(keys, values, memory.positions)
        wanted = range(len(case.context) - 1)
        logits = logits_with_memories(
            model, prefix, config, [case.context], memory, [case.reads], [wanted]
        )
        return nn.losses.cross_entropy(logits, target, reduction="mean")

    shape = (len(case.references), config.kept)
    longest = [max(lengths) for lengths in zip(*config.dims, strict=True)]
    # whose gradients are those of the memories
    zeros = [mx.zeros((*shape, length)) for length in longest]
    if "gradients" not in stages:
        yield "loss", _array(loss(zeros))
        return

    model.unfreeze()
    value, (of_model, of_memories) = _gradients(model, loss, zeros)
    yield "loss", _array(value)
    for name, gradient in named_arrays(of_model).items():
        yield f"gradients/{name}", _array(gradient)
    for name, gradient in zip(("keys", "values"), of_memories, strict=True):
        yield f"gradients/memory {name}", _array(gradient)

    if "lora" in stages:
        model.freeze()
        settings = {"rank": LORA_RANK, "scale": LORA_SCALE, "dropout": 0.0}
        keys = [f"self_attn.{module}" for module in LORA_MODULES]
        linear_to_lora_layers(model, case.layers, {**settings, "keys": keys})
        adapter = [(f"{module}.lora_a", mx.array(a)) for module, (a, _) in lora.items()]
        adapter += [(f"{module}.lora_b", mx.array(b)) for module, (_, b) in lora.items()]
        model.load_weights(adapter, strict=False)
        _, (of_model, _) = _gradients(model, loss, zeros)
        optim.AdamW(learning_rate=LORA_RATE, eps=LORA_EPS).update(model, of_model)
        for name, weight in named_arrays(model.trainable_parameters()).items():
            yield f"lora/{name}", _array(weight)


def _gradients(
    model: nn.Module, loss: Callable[[list[mx.array]], mx.array], added: list[mx.array]
) -> tuple[mx.array, tuple[dict, list[mx.array]]]:
    """Return the loss and its gradients by the parameters and by what is added to memories."""

    def of(parameters: dict, added: list[mx.array]) -> mx.array:
        model.update(parameters)
        return loss(added)

    parameters = model.trainable_parameters()
    found = mx.value_and_grad(of, argnums=(0, 1))(parameters, added)
    model.update(parameters)  # in place of what was traced
    mx.eval(found)
    return found


def _scores_of(selected: np.ndarray, case: Case) -> np.ndarray:
    """Return scores by which ``keep`` keeps exactly these tokens."""
    longest = max(map(len, case.references))
    shape = (len(selected), len(case.counts), len(case.counts[0]), longest)
    scores = np.full(shape, -1.0, np.float32)
    start = 0
    for layer, counts in enumerate(case.counts):
        for head, count in enumerate(counts):
            for row, places in enumerate(selected[:, start : start + count]):
                scores[row, layer, head, places[places != PADDING]] = 1
            start += count
    return scores


def _two_best(logprobs: mx.array | None) -> np.ndarray:
    """Return the two largest logits, relative to the mean of all."""
    centred = np.array(logprobs, np.float64)
    centred -= centred.mean()
    return np.sort(centred)[:-3:-1]


def _layers(stage: str, outputs: list[mx.array]) -> Iterator[tuple[str, np.ndarray]]:
    for layer, output in enumerate(outputs):
        yield f"{stage}/{layer}", _array(output[0, -ROWS:])


def _array(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))
