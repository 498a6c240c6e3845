"""Results of the reference for a case, under the names of ``m3mlx/parity``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from reference import Kept, Reference, adamw_step, next_token_loss, pick, reference_of
from torch import Tensor

from m3mlx.parity.cases import LORA_EPS, LORA_RATE, LORA_SCALE, Case
from m3mlx.parity.measure import ROWS


def quantities(
    case: Case,
    weights: Mapping[str, np.ndarray | Tensor],
    lora: Mapping[str, tuple[np.ndarray, np.ndarray]],
    stages: Collection[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    selected: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Run the reference over a case.

    Args:
        weights: by Hugging Face's names.
        lora: A and B of each module adapted.
        stages: which of ``m3mlx.parity.measure.STAGES`` are wanted.
        selected: the tokens that memories shall keep, in place of those of the best scores.

    Returns:
        Arrays by stage, or by stage and part with a slash between.
    """
    tensors = {name: torch.as_tensor(w).to(device, dtype) for name, w in weights.items()}
    model = reference_of(case.config, tensors, case.key_scale)
    found: dict[str, Tensor | np.ndarray] = {}

    def watched(stage: str) -> None:
        def watch(layer: int, output: Tensor) -> None:
            found[f"{stage}/{layer}"] = output[-ROWS:]

        model.watch = watch if stage in stages else lambda layer, output: None

    with torch.no_grad():
        found["embeddings"] = model.embed(case.context)
        prefix = model.prefix(case.prefix)
        watched("layers")
        model.forward(case.chunks[0], len(case.prefix), prefix)
        watched("")

        selections = [x for x in ("attention", "reconstruction") if f"scores {x}" in stages]
        kept: list[Kept] = []
        scores = {selection: [] for selection in selections}
        for text in case.references:
            for selection in selections:
                score, states = model.score(prefix, text, selection, case.recite)
                scores[selection].append(score)
                if selection == case.selection:
                    kept.append(model.keep(score, states, case.counts))
                    last = states
            if selected is not None:
                places = _places(case, selected[len(kept) - 1])
                kept[-1] = Kept(places, pick(last, lambda layer, h, at=places: at[layer][h]))
        for selection in selections:
            for layer in range(len(case.counts)):
                rows = [score[layer] for score in scores[selection]]
                found[f"scores {selection}/{layer}"] = _padded(rows, -1.0)
        found["selected"] = _selected(case, kept)
        for part, stage in enumerate(("keys", "values")):
            for layer, counts in enumerate(case.counts):
                if any(counts):
                    found[f"{stage}/{layer}"] = _kept(case, kept, layer, part)

        watched("read")
        context = model.begin(prefix)
        context.memories = [kept[slot].states for slot in case.reads[0]]
        found["logits"] = model.read(context, case.chunks[0])
        watched("")

        context = model.begin(prefix)
        reads = [[kept[slot] for slot in slots] for slots in case.reads]
        found["prefill"] = model.prefill(context, case.context, reads)
        if "tokens" in stages:
            refresh = [[kept[slot] for slot in slots] for slots in case.refreshes]
            tokens, logits = model.decode(context, found["prefill"], case.generate, refresh)
            two = (logits - logits.mean(-1, keepdim=True)).topk(2, dim=-1).values
            found |= {"tokens": np.array(tokens), "decoded": two}
            found["queries"] = _queries(case, tokens)

    if "loss" in stages:
        found |= _training(model, case, kept, lora, stages)
    return {key: _array(x) for key, x in found.items() if key.split("/")[0] in stages}


def _training(
    model: Reference,
    case: Case,
    kept: list[Kept],
    lora: Mapping[str, tuple[np.ndarray, np.ndarray]],
    stages: Collection[str],
) -> dict[str, Tensor]:
    """Loss and gradients through reading and writing, the choice of tokens being fixed."""

    def loss() -> tuple[Tensor, list[Kept]]:
        prefix = model.prefix(case.prefix)
        memories = []
        for text, chosen in zip(case.references, kept, strict=True):
            _, states = model.forward(text, len(case.prefix), prefix)
            at = chosen.positions
            memories.append(Kept(at, pick(states, lambda layer, h, at=at: at[layer][h])))
        reads = [[memories[slot] for slot in slots] for slots in case.reads]
        logits = model.prefill(model.begin(prefix), case.context, reads)
        return next_token_loss(logits, case.context), memories

    found: dict[str, Tensor] = {}
    if "gradients" not in stages:
        with torch.no_grad():
            return {"loss": loss()[0]}
    names = list(model.weights)
    for weight in model.weights.values():
        weight.requires_grad_()
    value, memories = loss()
    found["loss"] = value.detach()
    flat = [x for memory in memories for heads in memory.states for pair in heads for x in pair]
    gradients = torch.autograd.grad(
        value, [*model.weights.values(), *flat], allow_unused=True, materialize_grads=True
    )
    found |= {f"gradients/{n}": g for n, g in zip(names, gradients, strict=False)}
    of_memories = iter(gradients[len(names) :])
    grads = [
        Kept(m.positions, [[(next(of_memories), next(of_memories)) for _ in h] for h in m.states])
        for m in memories
    ]
    for part, stage in enumerate(("keys", "values")):
        layers = [x for x, counts in enumerate(case.counts) if any(counts)]
        parts = [_kept(case, grads, layer, part) for layer in layers]
        found[f"gradients/memory {stage}"] = torch.cat(parts, dim=1)

    if "lora" in stages:
        like = next(iter(model.weights.values()))
        for weight in model.weights.values():
            weight.requires_grad_(False)
        for module, (a, b) in lora.items():
            pair = [torch.as_tensor(x).to(like).requires_grad_() for x in (a, b)]
            model.lora[module] = (*pair, LORA_SCALE)
        trained = [x for a, b, _ in model.lora.values() for x in (a, b)]
        gradients = torch.autograd.grad(loss()[0], trained)
        stepped = [
            adamw_step(x, g, LORA_RATE, LORA_EPS) for x, g in zip(trained, gradients, strict=True)
        ]
        keys = [f"lora/{module}.lora_{x}" for module in lora for x in "ab"]
        found |= {key: x.detach() for key, x in zip(keys, stepped, strict=True)}
    return found


def _selected(case: Case, kept: list[Kept]) -> np.ndarray:
    """uint8 (references, tokens kept), by layer and head, 255 where a reference is too short."""
    rows = []
    for memory in kept:
        row = []
        for layer, counts in enumerate(case.counts):
            for head, count in enumerate(counts):
                places = memory.positions[layer][head]
                row += [*places, *[255] * (count - len(places))]
        rows.append(row)
    return np.array(rows, np.uint8)


def _places(case: Case, row: np.ndarray) -> list[list[list[int]]]:
    """The inverse of ``_selected``, for one row."""
    parts = iter(np.split(row, np.cumsum([n for counts in case.counts for n in counts])))
    return [[[p for p in next(parts).tolist() if p != 255] for _ in c] for c in case.counts]


def _kept(case: Case, kept: list[Kept], layer: int, part: int) -> Tensor:
    """Keys or values that a layer keeps, (references, tokens, head_dim), zero where too short."""
    rows = []
    for memory in kept:
        for pair, count in zip(memory.states[layer], case.counts[layer], strict=True):
            rows.append(_lengthened(pair[part], count, 0.0))
    width = sum(case.counts[layer])
    return torch.cat(rows).reshape(len(kept), width, -1)


def _queries(case: Case, tokens: list[int]) -> np.ndarray:
    """Search queries: each chunk of the prompt, and each 64 tokens of the answer."""
    spans = [tokens[i * 64 : (i + 1) * 64] for i in range(len(case.refreshes))]
    rows = [torch.tensor(list(row)) for row in (*case.chunks, *spans)]
    return np.stack([_lengthened(row, 64, -1).numpy() for row in rows])


def _padded(rows: list[Tensor], fill: float) -> Tensor:
    """(…, tokens) of several lengths to (references, …, longest)."""
    longest = max(row.shape[-1] for row in rows)
    wide = [torch.nn.functional.pad(r, (0, longest - r.shape[-1]), value=fill) for r in rows]
    return torch.stack(wide)


def _lengthened(x: Tensor, length: int, fill: float) -> Tensor:
    return torch.cat([x, x.new_full((length - len(x), *x.shape[1:]), fill)])


def _array(x: Tensor | np.ndarray) -> np.ndarray:
    """NumPy has no bfloat16, which float32 holds exactly."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return x
