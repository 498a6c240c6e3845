"""Find, once per model, how many tokens each attention head needs.

The need is very uneven: of all (layer, KV head) pairs of a model a few hold nearly everything
(section 3.3 of the paper proposes to look for such heads). Sample texts that come with the
package are scored; the tokens of all heads are ranked together, and a head's budget is how many
of the best it holds on average. With the average set to ``auto`` the smallest one is taken that
keeps 95 % of what whole memories give for answering questions on the samples, read as they are
in use: alone, and among the memories of other texts. The same questions tell by how much keys are
best enlarged when they are read. An adapter may bring its calibration along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from . import files
from .chat.conversation import Conversation
from .config import (
    FORMAT_VERSION,
    MEMORIES,
    REFERENCE_TOKENS,
    MemoryConfig,
    Progress,
    cache_folder,
    digest,
    no_progress,
)
from .errors import M3Error
from .memory.cache import Layout, PrefixStates, read_prefix
from .memory.codec import Memory
from .memory.write import Writer, keep
from .models.decoder import Decoder

AVERAGES = (4, 8, 16, 32, 64)
KEY_SCALES = (1.1, 1.2, 1.3, 1.4)
ENOUGH = 0.95  # of what whole memories give
CALIBRATION = "calibration.json"  # in an adapter's folder
BATCH = 8


def calibrate(
    decoder: Decoder,
    *,
    selection: str | None = None,
    budget: str | None = None,
    tokens_per_head: int | None = None,
    key_bits: int = 8,
    value_bits: int = 8,
    progress: Progress | None = None,
) -> MemoryConfig:
    """The memory configuration of a model: its own, or one that was found before, or by measuring.

    A calibration is looked for beside the decoder's adapter, then in the cache folder; both hold
    only for the same weights, adapter, tokenizer, samples and arguments.

    A model that was trained with memories keeps as many tokens in every head of its memory
    layers and needs no measuring, unless a calibrated budget is asked for.

    Args:
        selection: "reconstruction" or "attention"; None for what the model was trained with, or
            the former.
        budget: "calibrated" or "uniform"; None for uniform if it was trained, else calibrated.
        tokens_per_head: average over all layers and KV heads, or over those of the memory layers
            of a trained model; None to find it.

    Raises:
        M3Error: the model gains nothing from memories, so that no budget can be found.
    """
    trained = decoder.trained
    if trained and budget != "calibrated":
        trained = replace(
            trained,
            selection=selection or trained.selection,
            tokens_per_head=tokens_per_head or trained.tokens_per_head,
        )
        return MemoryConfig(
            selection=trained.selection,
            budget="uniform",
            counts=trained.counts(decoder.layers, decoder.kv_heads),
            head_dim=decoder.head_dim,
            prefix=decoder.template.prefix,
            key_bits=key_bits,
            value_bits=value_bits,
        )
    selection = selection or (trained.selection if trained else "reconstruction")
    found = _find(decoder, selection, budget or "calibrated", tokens_per_head, progress)
    return MemoryConfig(
        selection=selection,
        budget=found["budget"],
        counts=tuple(map(tuple, found["counts"])),
        head_dim=decoder.head_dim,
        prefix=tuple(found["prefix"]),
        key_bits=key_bits,
        value_bits=value_bits,
        key_scale=found["key_scale"],
    )


def save_with_adapter(decoder: Decoder, progress: Progress | None = None) -> Path:
    """Write the default calibration beside the decoder's adapter, for all who get the adapter."""
    if decoder.adapter_path is None:
        raise M3Error("a calibration is saved beside an adapter; name one with --adapter-path")
    path = decoder.adapter_path / CALIBRATION
    found = _find(decoder, "reconstruction", "calibrated", None, progress)
    files.write_text(path, json.dumps(found))
    return path


def _find(
    decoder: Decoder,
    selection: str,
    budget: str,
    tokens_per_head: int | None,
    progress: Progress | None,
) -> dict:
    """The budget and what it was found under, as it is kept."""
    template = decoder.template
    texts = _samples()
    wanted = {
        "weights": decoder.weights,
        "adapter": decoder.adapter,
        "tokenizer": decoder.tokenizer_hash,
        "selection": selection,
        "budget": budget,
        "tokens_per_head": tokens_per_head,
        "samples": digest([texts, template.recite, FORMAT_VERSION]),
        "reference": REFERENCE_TOKENS,
    }
    path = cache_folder() / "calibrations" / f"{digest(wanted)[:32]}.json"
    brought = decoder.adapter_path and _load(decoder.adapter_path / CALIBRATION, wanted)
    if found := brought or _load(path, wanted):
        return found
    measure = _Measure(decoder, texts, selection, progress)
    if tokens_per_head is None:
        counts, kept = measure.smallest(budget)
    else:
        counts, kept = measure.counts(budget, tokens_per_head), {}
    found = {**wanted, "prefix": template.prefix, "counts": counts, "kept": kept}
    found["key_scale"] = measure.best_key_scale(counts)
    files.write_text(path, json.dumps(found))
    return found


def budgets(
    decoder: Decoder, config: MemoryConfig, wanted: Sequence[tuple[str, float]]
) -> list[MemoryConfig]:
    """Other budgets of the same model, in all else as a configuration that was found.

    Args:
        wanted: of each, "calibrated" or "uniform" and the average tokens per head; or "half",
            uniform in the first half of the layers alone, as in the paper (section 3.3).
    """
    layers, heads = len(config.counts), len(config.counts[0])
    measure = None
    made = []
    for budget, average in wanted:
        if (budget, average) == (config.budget, config.tokens_per_head):
            made.append(config)
            continue
        counts = [[int(average)] * heads] * layers
        if budget == "calibrated":
            measure = measure or _Measure(decoder, _samples(), config.selection, None)
            counts = measure.counts(budget, int(average))
        elif budget == "half":
            counts[layers // 2 :] = [[0] * heads] * (layers - layers // 2)
        kind = "uniform" if budget == "half" else budget
        made.append(replace(config, budget=kind, counts=tuple(map(tuple, counts))))
    return made


def head_budget(scores: Sequence[np.ndarray], average: int) -> list[list[int]]:
    """Tokens for each head, so that all heads together keep ``average`` each.

    Args:
        scores: for each reference (layers, KV heads, tokens), negative for padding.

    Returns:
        counts[layer][head], which add up to average · layers · KV heads.
    """
    layers, heads, _ = scores[0].shape
    total = average * layers * heads
    share = np.zeros((layers, heads))
    for score in scores:
        flat = score.reshape(-1)
        best = np.argsort(-flat, kind="stable")[: min(total, int((flat >= 0).sum()))]
        layer, head, _ = np.unravel_index(best, score.shape)
        np.add.at(share, (layer, head), 1 / len(scores))
    # What short references could not fill is spread as the rest is; then largest remainders.
    share = np.minimum(share * total / share.sum(), REFERENCE_TOKENS)
    counts = np.floor(share).astype(int)
    room = np.where(counts < REFERENCE_TOKENS, share - counts, -1.0)
    for index in np.argsort(-room.reshape(-1), kind="stable")[: total - counts.sum()]:
        counts.reshape(-1)[index] += 1
    return counts.tolist()


class _Measure:
    """The samples, scored once, and what a budget is worth on them."""

    def __init__(
        self,
        decoder: Decoder,
        texts: list[dict],
        selection: str,
        progress: Progress | None,
    ):
        self.decoder, template = decoder, decoder.template
        self.config = MemoryConfig(
            selection=selection,
            budget="calibrated",
            counts=((0,) * decoder.kv_heads,) * decoder.layers,
            head_dim=decoder.head_dim,
            prefix=template.prefix,
        )
        self.progress = progress or no_progress
        self.done = 0
        self.losses: dict[str, float] = {}
        self.prefix: PrefixStates = read_prefix(decoder.model, template.prefix)
        writer = Writer(decoder.model, self.prefix, template.recite)
        references = [template.encode(t["document"])[:REFERENCE_TOKENS] for t in texts]
        self.turns = [template.turn(t["question"]) for t in texts]
        self.answers = [template.encode(t["answer"]) for t in texts]
        self.parts = []
        for start in range(0, len(references), BATCH):
            self.progress("scoring sample texts", start, len(references))
            self.parts.append(writer.score(references[start : start + BATCH], selection))
        self.progress("scoring sample texts", len(references), len(references))
        self.scores = [score for part in self.parts for score in part[0]]

    def counts(self, budget: str, average: int) -> list[list[int]]:
        layers, heads, _ = self.scores[0].shape
        if budget == "uniform":
            return [[average] * heads] * layers
        return head_budget(self.scores, average)

    def smallest(self, budget: str) -> tuple[list[list[int]], dict[str, float]]:
        """The smallest average that is enough, and the share that each one tried keeps."""
        none = self.loss(None)
        whole = self.loss(self.counts("uniform", REFERENCE_TOKENS))
        if none - whole < 0.1:
            raise M3Error(
                f"{self.decoder.name} answers questions no better with whole memories than "
                f"without; it needs training with memories, or name --tokens-per-head yourself"
            )
        kept = {}
        for average in AVERAGES:
            counts = self.counts(budget, average)
            kept[str(average)] = (none - self.loss(counts)) / (none - whole)
            if kept[str(average)] >= ENOUGH:
                break
        return counts, kept

    def best_key_scale(self, counts: list[list[int]]) -> float:
        """The factor on the keys to read with: what was dropped leaves attention too flat.

        It grows while that lowers the loss by more than a hundredth.
        """
        best, loss = 1.0, self.loss(counts)
        for key_scale in KEY_SCALES:
            sharper = self.loss(counts, key_scale)
            if sharper > 0.99 * loss:
                break
            best, loss = key_scale, sharper
        self.progress("measuring memories", self.done, self.done)
        return best

    def loss(self, counts: list[list[int]] | None, key_scale: float = 1.0) -> float:
        """Mean negative log-likelihood of the answers, alone and among other memories."""
        key = json.dumps([counts, key_scale])
        if key not in self.losses:
            self.losses[key] = self._loss(counts, key_scale)
        return self.losses[key]

    def _loss(self, counts: list[list[int]] | None, key_scale: float) -> float:
        self.progress("measuring memories", self.done, 0)
        self.done += 1
        if counts is None:
            return self._without_memory()
        config = replace(self.config, counts=tuple(map(tuple, counts)), key_scale=key_scale)
        memory = Memory.join([keep(*part, counts) for part in self.parts])
        losses = [self._among(Layout(config), memory, count) for count in (1, MEMORIES)]
        return sum(losses) / len(losses)

    def _without_memory(self) -> float:
        return self._mean(lambda number: Conversation(self.decoder, self.prefix))

    def _among(self, layout: Layout, memory: Memory, count: int) -> float:
        """Loss with each text's memory read among ``count`` memories in all."""

        def conversation(number: int) -> Conversation:
            rows = [(number + n) % len(self.turns) for n in range(count)]
            return Conversation(
                self.decoder,
                self.prefix,
                layout,
                search=lambda texts, k: [rows] * len(texts),
                read=memory.take,
            )

        return self._mean(conversation)

    def _mean(self, conversation: Callable[[int], Conversation]) -> float:
        asked = enumerate(zip(self.turns, self.answers, strict=True))
        losses = [conversation(number).loss(*both) for number, both in asked]
        return sum(losses) / len(losses)


def _samples() -> list[dict]:
    text = resources.files("m3mlx").joinpath("data/calibration.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _load(path: Path, wanted: dict) -> dict | None:
    """A calibration made under the same conditions; a damaged file is as good as none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or not wanted.items() <= found.items():
        return None
    found.setdefault("key_scale", found.get("sharpness"))  # its name up to version 0.1
    return found
