"""Calibrate a model, once: find how many tokens each attention head needs.

The need is very uneven: of all (layer, KV head) pairs a few hold nearly everything (section 3.3
of the paper proposes to look for such heads). The tokens of sample texts that come with the
package are scored and ranked over all heads together. A head's budget is how many of the best
tokens it holds on average. An average of ``auto`` is the smallest whose memories, each read alone,
keep 94 % of what whole ones give for answering questions about the samples. Read among others
small memories do as well as whole ones, which distract more, and yet lose answers
(docs/evaluation.md). The factor on the keys is found among others, as memories are read in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import mean

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

AUTO_TOKENS = (4, 8, 16, 32, 64)  # tokens per head that "auto" chooses from
AUTO_SHARE = 0.94  # of the gain of whole memories that "auto" must keep; answers show no loss there
KEY_SCALES = (1.1, 1.2, 1.3, 1.4)
CALIBRATION = "calibration.json"  # in an adapter's folder
BATCH = 8
_LOSSES = 3 + len(AUTO_TOKENS) + len(KEY_SCALES)  # that are measured at most


def calibrate(
    decoder: Decoder,
    *,
    selection: str | None = None,
    budget: str | None = None,
    tokens_per_head: int | None = None,
    key_bits: int = 8,
    value_bits: int = 8,
    progress: Progress = no_progress,
) -> MemoryConfig:
    """Return the memory configuration of a model, measuring it if necessary.

    A calibration is looked for in the adapter's folder, then in the cache folder. It is valid for
    the same weights, adapter, tokenizer, samples and arguments only. A model that was trained with
    memories keeps as many tokens in every head of its memory layers; it is measured only for a
    calibrated budget.

    Args:
        selection: "reconstruction" or "attention"; None for what the model was trained with, or
            reconstruction.
        budget: "calibrated" or "uniform"; None for uniform if it was trained, else calibrated.
        tokens_per_head: average over all layers and KV heads, or over the memory layers of a
            trained model; None to find it.

    Raises:
        M3Error: the model gains nothing from memories, so that no budget can be found.
    """
    trained = decoder.trained
    if trained and budget != "calibrated":
        selection = selection or trained.selection
        trained = replace(trained, tokens_per_head=tokens_per_head or trained.tokens_per_head)
        budget, counts = "uniform", trained.counts(decoder.kv_heads)
        key_scale = 1.0
    else:
        selection = selection or (trained.selection if trained else "reconstruction")
        found = _find(decoder, selection, budget or "calibrated", tokens_per_head, progress)
        budget, counts = found["budget"], tuple(map(tuple, found["counts"]))
        key_scale = found["key_scale"]
    return MemoryConfig(
        selection=selection,
        budget=budget,
        counts=counts,
        **MemoryConfig.lengths(decoder.dims),
        prefix=decoder.template.prefix,
        key_bits=key_bits,
        value_bits=value_bits,
        key_scale=key_scale,
    )


def save_with_adapter(decoder: Decoder, progress: Progress = no_progress) -> Path:
    """Write the default calibration to the folder of the decoder's adapter, and return its path."""
    if decoder.adapter_path is None:
        raise M3Error(
            "a calibration is saved in the folder of an adapter; name one with --adapter-path"
        )
    path = decoder.adapter_path / CALIBRATION
    found = _find(decoder, "reconstruction", "calibrated", None, progress)
    files.write_text(path, json.dumps(found))
    return path


def _find(
    decoder: Decoder,
    selection: str,
    budget: str,
    tokens_per_head: int | None,
    progress: Progress,
) -> dict:
    """Find a budget, in the cache or by measuring; return it with its conditions."""
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
    with_adapter = decoder.adapter_path and _load(decoder.adapter_path / CALIBRATION, wanted)
    if known := with_adapter or _load(path, wanted):
        return known
    measure = _Measure(decoder, texts, selection, progress)
    if tokens_per_head is None:
        counts, kept = measure.smallest_counts(budget)
    else:
        counts, kept = measure.counts(budget, tokens_per_head), {}
    key_scale = measure.best_key_scale(counts)
    found = {"prefix": template.prefix, "counts": counts, "kept": kept, "key_scale": key_scale}
    files.write_text(path, json.dumps(wanted | found))
    return wanted | found


def budgets(
    decoder: Decoder, config: MemoryConfig, wanted: Sequence[tuple[str, float]]
) -> list[MemoryConfig]:
    """Return a configuration with other budgets.

    Args:
        wanted: kind and average tokens per head of each. Kinds are "calibrated", "uniform" and
            "half": uniform in the first half of the layers only (section 3.3 of the paper).
    """
    heads = list(map(len, config.counts))
    measure = None
    made = []
    for budget, average in wanted:
        if (budget, average) == (config.budget, config.tokens_per_head):
            made.append(config)
            continue
        counts = _uniform(heads, int(average))
        if budget == "calibrated":
            measure = measure or _Measure(decoder, _samples(), config.selection, no_progress)
            counts = measure.counts(budget, int(average))
        elif budget == "half":
            half = len(heads) // 2
            counts[half:] = _uniform(heads[half:], 0)
        kind = "uniform" if budget == "half" else budget
        made.append(replace(config, budget=kind, counts=tuple(map(tuple, counts))))
    return made


def _uniform(kv_heads: Sequence[int], count: int) -> list[list[int]]:
    return [[count] * heads for heads in kv_heads]


def head_budget(scores: Sequence[np.ndarray], average: int) -> list[list[int]]:
    """Distribute an average of tokens per head over all heads, by their share of the best tokens.

    Args:
        scores: (layers, KV heads, tokens) of each reference, negative for padding and for heads
            that a layer does not have.

    Returns:
        counts[layer][head], with the sum average · layers · KV heads.
    """
    there = np.any([(score >= 0).any(axis=-1) for score in scores], axis=0)  # (layers, heads)
    total = average * int(there.sum())
    share = np.zeros(there.shape)
    for score in scores:
        flat = score.reshape(-1)
        best = np.argsort(-flat, kind="stable")[: min(total, int((flat >= 0).sum()))]
        layer, head, _ = np.unravel_index(best, score.shape)
        np.add.at(share, (layer, head), 1 / len(scores))
    # Scaling spreads what short references could not fill; then round by largest remainders.
    share = np.minimum(share * total / share.sum(), REFERENCE_TOKENS)
    counts = np.floor(share).astype(int)
    room = np.where(there & (counts < REFERENCE_TOKENS), share - counts, -1.0)
    for index in np.argsort(-room.reshape(-1), kind="stable")[: total - counts.sum()]:
        counts.reshape(-1)[index] += 1
    return [row[some].tolist() for row, some in zip(counts, there, strict=True)]


class _Measure:
    """Sample texts, scored once, to measure budgets on."""

    def __init__(self, decoder: Decoder, texts: list[dict], selection: str, progress: Progress):
        self.decoder, template = decoder, decoder.template
        self.selection = selection
        self.progress, self.measured = progress, 0
        self.prefix: PrefixStates = read_prefix(decoder.model, template.prefix)
        writer = Writer(decoder.model, self.prefix, template.recite)
        references = [template.encode(t["document"])[:REFERENCE_TOKENS] for t in texts]
        self.asked = [
            (row, template.turn(asked["question"]), template.encode(asked["answer"]))
            for row, text in enumerate(texts)
            for asked in text["questions"]
        ]
        self.parts = []
        for start in range(0, len(references), BATCH):
            self.progress("scoring sample texts", start, len(references))
            self.parts.append(writer.score(references[start : start + BATCH], selection))
        self.progress("scoring sample texts", len(references), len(references))
        self.scores = [score for part in self.parts for score in part[0]]

    def counts(self, budget: str, average: int) -> list[list[int]]:
        if budget == "uniform":
            return _uniform(self.decoder.kv_heads, average)
        return head_budget(self.scores, average)

    def smallest_counts(self, budget: str) -> tuple[list[list[int]], dict[str, float]]:
        """Find the smallest sufficient average; also return the share that each tried one keeps."""
        none = self.loss(None)
        whole = self.loss(self.counts("uniform", REFERENCE_TOKENS))
        if none - whole < 0.1:
            raise M3Error(
                f"{self.decoder.name} answers questions no better with whole memories than "
                f"without; it needs training with memories, or name --tokens-per-head yourself"
            )
        kept = {}
        for average in AUTO_TOKENS:
            counts = self.counts(budget, average)
            kept[str(average)] = (none - self.loss(counts)) / (none - whole)
            if kept[str(average)] >= AUTO_SHARE:
                break
        return counts, kept

    def best_key_scale(self, counts: list[list[int]]) -> float:
        """Find the factor on the keys, as dropped tokens leave attention too flat.

        It grows while that lowers the loss by more than 1 %. It is 1 for latent attention, where
        the same numbers make the values.
        """
        best, loss = 1.0, np.inf
        for key_scale in () if self.decoder.latent else (1.0, *KEY_SCALES):
            scaled_loss = self.loss(counts, key_scale, among=MEMORIES)
            if scaled_loss > 0.99 * loss:
                break
            best, loss = key_scale, scaled_loss
        self.progress("measuring memories", self.measured, self.measured)
        return best

    def loss(self, counts: list[list[int]] | None, key_scale: float = 1.0, among: int = 1) -> float:
        """Return the mean negative log-likelihood of the answers, in nats per token.

        Args:
            counts: of the memories; None to read none.
            among: memories read for each question, that of its text and others.
        """
        self.progress("measuring memories", self.measured, _LOSSES)
        self.measured += 1
        conversation = partial(Conversation, self.decoder, self.prefix)
        if counts is None:
            return self._mean_loss(lambda row: conversation())
        config = MemoryConfig(
            selection=self.selection,
            budget="calibrated",
            counts=tuple(map(tuple, counts)),
            **MemoryConfig.lengths(self.decoder.dims),
            prefix=self.decoder.template.prefix,
            key_scale=key_scale,
        )
        memory = Memory.join([keep(*part, counts) for part in self.parts])
        layout = Layout(config)

        def reading(row: int) -> Conversation:
            rows = [(row + n) % len(memory) for n in range(among)]
            return conversation(
                layout, search=lambda texts, k: [rows] * len(texts), read=memory.take
            )

        return self._mean_loss(reading)

    def _mean_loss(self, conversation: Callable[[int], Conversation]) -> float:
        """Return the mean loss of all answers, in a conversation for the text of each."""
        return mean(conversation(row).loss(turn, answer) for row, turn, answer in self.asked)


def _samples() -> list[dict]:
    text = resources.files("m3mlx").joinpath("data/calibration.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _load(path: Path, wanted: dict) -> dict | None:
    """Read a calibration made under these conditions; None if there is no intact one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or not wanted.items() <= found.items():
        return None
    found.setdefault("key_scale", found.get("sharpness"))  # its name in version 0.1
    return found
