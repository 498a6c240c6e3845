"""The run: prepare, step, keep, go on.

``train`` is the one entry. It resumes by itself where its output folder holds a run of the same
settings, and the loss curve is then the one that it would have been without the interruption.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from ..calibrate import budgets, calibrate
from ..config import CODECS, MemoryConfig, Progress, cache_folder, digest, no_progress
from ..errors import M3Error
from ..memory.cache import read_prefix
from ..models.decoder import Decoder, load_decoder, load_encoder
from ..models.template import Template
from .adapter import load_weights, prepare, save_adapter, untrained, write_json
from .batches import Batches
from .checkpointing import checkpoint_layers, restore_layers
from .corpus import Corpus
from .data import Data, read_data
from .estimate import Estimate, check, estimate
from .frozen import Frozen
from .loss import answer_logprobs, batch_loss
from .plot import plot_metrics
from .settings import Settings, parse_budget
from .state import add_metrics, cut_metrics, load_checkpoint, read_metrics, save_checkpoint
from .validate import Validation

Report = Callable[[dict[str, Any]], None]
BETAS = [0.9, 0.95]


@dataclass
class Trained:
    """A finished run: where the adapter lies, and the metrics of every step."""

    output: Path
    steps: int
    metrics: list[dict[str, Any]]


def train(
    settings: Settings,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    dry_run: bool = False,
) -> Trained:
    """Train a model to read its memories.

    Args:
        progress: called while loading and preparing.
        report: called with the metrics of each step and each validation.
        on_estimate: called with what the run will take, before its first step.
        dry_run: stop there.

    Raises:
        M3Error: bad settings or data, a run that does not fit, or an output folder that
            holds a run of other settings.
    """
    progress = progress or no_progress
    output = Path(settings.output)
    _claim(output, settings)
    decoder = load_decoder(settings.model, progress=progress)
    run = _Run(settings, decoder, progress)
    found = run.estimate()
    check(found)
    if on_estimate:
        on_estimate(found)
    if dry_run:
        return Trained(output, 0, [])
    return run.go(output, report or (lambda row: None))


def _claim(output: Path, settings: Settings) -> None:
    """Begin a run in a folder, or go on with the same run."""
    if (output / "training.json").exists():
        before = Settings.load(output)
        changed = [
            name
            for name, value in settings.to_json().items()
            if before.to_json()[name] != value and name not in ("output", "save_every")
        ]
        if changed:
            raise M3Error(
                f"{output}: a run of other settings lies here ({', '.join(changed)}); "
                f"go on with the same ones, or name another folder"
            )
    elif output.exists() and any(output.iterdir()):
        raise M3Error(f"{output}: is not empty and holds no training run; name another folder")


class _Run:
    """Everything that one run needs, made once."""

    def __init__(self, settings: Settings, decoder: Decoder, progress: Progress):
        self.settings, self.model = settings, decoder.model
        self.template = Template(decoder.tokenizer)
        data = read_data(settings.data)
        held = read_data([settings.valid]) if settings.valid else None
        encoder = load_encoder(settings.encoder, progress=progress)
        folder = cache_folder() / "training"

        def corpus(data: Data) -> Corpus:
            def encode(texts: list[str]) -> np.ndarray:
                parts = []
                for start in range(0, len(texts), 64):
                    progress("embedding references", start, len(texts))
                    parts.append(encoder.encode(texts[start : start + 64]))
                progress("embedding references", len(texts), len(texts))
                return np.concatenate(parts)

            return Corpus(data.documents(), tokenizer(decoder), encode, folder, encoder.identity)

        self.budgets = _budgets(decoder, settings, progress)
        self.validation = Validation(held, corpus(held), self.template) if held else None
        folder = Path(decoder.name)
        self.name = folder.name if folder.is_dir() else decoder.name  # and not where it lies here
        self.adapter = prepare(self.model, settings)
        start = untrained(self.model)
        if settings.adapter_path:
            load_weights(self.model, Path(settings.adapter_path))
        self.model.train()
        config = self.budgets[0]
        model_key = [decoder.weights, decoder.tokenizer_hash, config.prefix, config.selection]
        self.frozen = Frozen(
            self.model,
            start,
            config,
            self.template.recite,
            folder / digest([*model_key, self.template.recite])[:32],
        )
        self.batches = Batches(
            settings, data, corpus(data), self.frozen, self.template, self.budgets
        )
        self.optimizer = optim.AdamW(
            learning_rate=settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(self.model.trainable_parameters())

    def estimate(self) -> Estimate:
        """Time one question about one reference, of the lengths that the data have."""
        batch = self.batches.small(max(self.budgets, key=lambda budget: budget.kept))
        prefix = read_prefix(self.model, batch.config.prefix)
        if self.settings.checkpoint:
            checkpoint_layers(self.model)
        found = estimate(
            self.model,
            lambda: batch_loss(self.model, prefix, batch, self.settings),
            self.settings.references,
            self.settings.steps * self.settings.accumulate,
        )
        restore_layers(self.model)
        return found

    def go(self, output: Path, report: Report) -> Trained:
        settings = self.settings
        output.mkdir(parents=True, exist_ok=True)
        write_json(
            output / "training.json",
            {
                "settings": settings.to_json(),
                "skipped_questions": self.batches.skipped,
                "memory": [config.to_json() for config in self.budgets],
            },
        )
        checkpoints = output / "checkpoints"
        done = load_checkpoint(checkpoints, self.model, self.optimizer)
        cut_metrics(output, done)
        if settings.checkpoint:
            checkpoint_layers(self.model)
        try:
            if self.validation and not any("valid" in row for row in read_metrics(output)):
                self._validate(0, output, report)
            for step in range(done, settings.steps):
                row = {"step": step + 1, **self._step(step)}
                add_metrics(output, row)
                report(row)
                last = step + 1 == settings.steps
                if self.validation and (
                    last or (settings.eval_every and (step + 1) % settings.eval_every == 0)
                ):
                    self._validate(step + 1, output, report)
                if last or (settings.save_every and (step + 1) % settings.save_every == 0):
                    save_checkpoint(checkpoints, step + 1, self.model, self.optimizer)
                    save_adapter(output, self.model, self.adapter, self.name)
                    plot_metrics(read_metrics(output), output / "metrics.svg")
        finally:
            restore_layers(self.model)
        return Trained(output, settings.steps, read_metrics(output))

    def _step(self, step: int) -> dict[str, Any]:
        """One update of the weights; what it took."""
        settings = self.settings
        start, tokens, losses = perf_counter(), 0, []
        mx.reset_peak_memory()
        mx.random.seed(settings.seed * 1_000_003 + step)
        total = None
        for part in range(settings.accumulate):
            batch = self.batches.batch(step * settings.accumulate + part)
            prefix = read_prefix(self.model, batch.config.prefix)
            if batch.objective == "dpo":
                with self.frozen.asked():
                    batch.baseline = answer_logprobs(
                        self.model, self.frozen.prefix, batch, settings
                    )
                    mx.eval(batch.baseline)

            def loss(batch=batch, prefix=prefix) -> mx.array:
                return batch_loss(self.model, prefix, batch, settings)

            value, gradients = nn.value_and_grad(self.model, loss)()
            mx.eval(value, gradients)
            if not np.isfinite(value.item()):
                raise M3Error(
                    f"the loss became {value.item()} at step {step + 1}; go on from the last "
                    f"checkpoint in another folder with a smaller --learning-rate"
                )
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            tokens += batch.tokens
            losses.append((batch.objective, value.item()))
        total = tree_map(lambda x: x / settings.accumulate, total)
        total, length = optim.clip_grad_norm(total, settings.clip or float("inf"))
        rate = settings.rate(step)
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.model, total)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, length)
        seconds = perf_counter() - start
        by_objective: dict[str, list[float]] = {}
        for name, value in losses:
            by_objective.setdefault(name, []).append(value)
        return {
            "loss": {name: float(np.mean(values)) for name, values in by_objective.items()},
            "learning_rate": rate,
            "gradient": length.item(),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "peak_bytes": mx.get_peak_memory(),
        }

    def _validate(self, step: int, output: Path, report: Report) -> None:
        self.model.eval()
        row = {"step": step, "valid": self.validation.measure(self.model, self.budgets[0])}
        self.model.train()
        add_metrics(output, row)
        report(row)


def _budgets(decoder: Decoder, settings: Settings, progress: Progress) -> list[MemoryConfig]:
    """The configurations that batches are written with; those of a run that goes on are kept."""
    known = Path(settings.output) / "training.json"
    if known.exists():
        stored = json.loads(known.read_text("utf-8"))["memory"]
        return [MemoryConfig.from_json(config) for config in stored]
    key_bits, value_bits = CODECS[settings.codec or "k8v8"]
    wanted = [parse_budget(text) for text in settings.budgets]
    numbers = [tokens for _, tokens in wanted]
    found = calibrate(
        decoder,
        selection=settings.selection,
        tokens_per_head=None if None in numbers else numbers[0],
        key_bits=key_bits,
        value_bits=value_bits,
        progress=progress,
    )
    return budgets(decoder, found, [(kind, n or found.tokens_per_head) for kind, n in wanted])


def tokenizer(decoder: Decoder) -> Callable[[str], tuple[list[int], list[tuple[int, int]]]]:
    """Text to token ids and the characters that each came from."""

    def tokenize(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = decoder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    return tokenize
