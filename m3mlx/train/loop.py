"""The training loop.

``train`` resumes where its output folder holds a run of the same settings; the loss curve is then
that of an uninterrupted run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from ..memory.ranks import Ranks
from ..models.decoder import Decoder, load_decoder, load_encoder
from ..models.hooks import gradient_checkpoints
from .adapter import initial_weights, load_adapter, prepare, save_adapter, write_json
from .corpus import Corpus, Embeddings
from .data import Data, read_data
from .dataloader import DataLoader
from .estimate import Estimate, check, estimate
from .folder import begin, memory_settings, save_begun, save_weights
from .loss import answer_logprobs, batch_loss
from .plot import plot_metrics
from .settings import Settings, parse_budget
from .state import add_metrics, cut_metrics, load_checkpoint, read_metrics, save_checkpoint
from .teacher import Teacher
from .validate import Validation

OnMetrics = Callable[[dict[str, Any]], None]
BETAS = [0.9, 0.95]


@dataclass
class TrainReport:
    """A finished run: the folder of the adapter or model, and the metrics of every step."""

    output: Path
    steps: int
    metrics: list[dict[str, Any]]


def train(
    settings: Settings,
    *,
    progress: Progress | None = None,
    report: OnMetrics | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    dry_run: bool = False,
) -> TrainReport:
    """Train a model to read its memories.

    Where ``mlx.launch`` has started several processes, each computes its share of the gradients of
    every step; rank 0 reports and writes.

    Args:
        progress: called while loading and preparing.
        report: called with the metrics of each step and each validation.
        on_estimate: called before the first step with memory and time of the run.
        dry_run: stop there.

    Raises:
        M3Error: bad settings or data, a run that does not fit, or an output folder that
            holds a run of other settings.
    """
    progress = progress or no_progress
    output = Path(settings.output)
    ranks = Ranks()
    if settings.accumulate % ranks.size:
        raise M3Error(
            f"accumulate is {settings.accumulate}, which {ranks.size} processes cannot share "
            f"evenly; make it a multiple of their number"
        )
    if not ranks.rank:
        _check_output(output, settings)
    with TemporaryDirectory(prefix="m3mlx-") as begun:
        if settings.init:
            decoder = begin(settings, Path(begun), progress)
        else:
            decoder = load_decoder(settings.model, progress=progress)
        trainer = Trainer(settings, decoder, progress)
        expected = trainer.estimate()
        check(expected)
        if on_estimate:
            on_estimate(expected)
        if dry_run:
            return TrainReport(output, 0, [])
        return trainer.run(report or (lambda row: None))


def _check_output(output: Path, settings: Settings) -> None:
    """Refuse a folder that holds anything but a run of the same settings."""
    if (output / "training.json").exists():
        before = Settings.load(output).to_json()
        changed = [
            name
            for name, value in settings.to_json().items()
            if before[name] != value and name not in ("output", "save_every")
        ]
        if changed:
            raise M3Error(
                f"{output}: a run of other settings lies here ({', '.join(changed)}); "
                f"go on with the same ones, or name another folder"
            )
    elif output.exists() and any(output.iterdir()):
        raise M3Error(f"{output}: is not empty and holds no training run; name another folder")


class Trainer:
    """One run: model, data, optimizer and output."""

    def __init__(self, settings: Settings, decoder: Decoder, progress: Progress):
        self.settings, self.model, self.decoder = settings, decoder.model, decoder
        self.ranks = ranks = Ranks()
        self.output = Path(settings.output)
        self.template = decoder.template
        data = read_data(settings.data)
        held_out = read_data([settings.valid]) if settings.valid else None
        cache = cache_folder() / "training"
        load = partial(load_encoder, settings.encoder, progress=progress)
        embeddings = Embeddings(load, cache, progress)

        def corpus(data: Data) -> Corpus:
            return Corpus(data.documents(), decoder.tokenize, embeddings)

        found = [] if ranks.rank else _budgets(decoder, settings, progress)
        told = ranks.tell([config.to_json() for config in found])
        self.budgets = [MemoryConfig.from_json(config) for config in told]
        self.validation = None
        if held_out:
            self.validation = Validation(held_out, corpus(held_out), self.template)
        local = Path(decoder.name)
        self.name = local.name if local.is_dir() else decoder.name  # without this machine's path
        self.adapter = prepare(self.model, settings)
        weights = initial_weights(self.model)
        if settings.adapter_path:
            load_adapter(self.model, Path(settings.adapter_path))
        self.model.train()
        config, recite = self.budgets[0], self.template.recite
        key = [decoder.weights, decoder.tokenizer_hash, config.prefix, config.selection, recite]
        self.teacher = Teacher(
            self.model, None if settings.init else weights, config, recite, cache / digest(key)[:32]
        )
        self.loader = DataLoader(
            settings, data, corpus(data), self.teacher, self.template, self.budgets
        )
        self.optimizer = optim.AdamW(
            learning_rate=settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(self.model.trainable_parameters())

    def _checkpoints(self) -> Any:
        return gradient_checkpoints(self.model) if self.settings.checkpoint else nullcontext()

    def estimate(self) -> Estimate:
        """Time one question about one reference, of the data's mean lengths."""
        batch = self.loader.sample_batch(max(self.budgets, key=lambda budget: budget.kept))
        prefix = read_prefix(self.model, batch.config.prefix)
        with self._checkpoints():
            return estimate(
                self.model,
                lambda: batch_loss(self.model, prefix, batch, self.settings),
                self.settings.references,
                self.settings.steps * self.settings.accumulate,
            )

    def run(self, report: OnMetrics) -> TrainReport:
        """Train from the last checkpoint to the last step."""
        settings, output = self.settings, self.output
        done = self._resume()
        if self.ranks.rank:
            for step in range(done, settings.steps):
                self._step(step)
            return TrainReport(output, settings.steps, [])

        def log(row: dict[str, Any]) -> None:
            add_metrics(output, row)
            report(row)

        def due(step: int, every: int) -> bool:
            return step == settings.steps or (every > 0 and step % every == 0)

        if self.validation and not any("valid" in row for row in read_metrics(output)):
            log({"step": 0, "valid": self._validate(self.validation)})
        for step in range(done + 1, settings.steps + 1):
            log({"step": step, **self._step(step - 1)})
            if self.validation and due(step, settings.eval_every):
                log({"step": step, "valid": self._validate(self.validation)})
            if due(step, settings.save_every):
                save_checkpoint(output / "checkpoints", step, self.model, self.optimizer)
                self._save()
                plot_metrics(read_metrics(output), output / "metrics.svg")
        return TrainReport(output, settings.steps, read_metrics(output))

    def _resume(self) -> int:
        """Begin or continue in the output folder; return the number of finished steps."""
        settings, output = self.settings, self.output
        done = 0
        if not self.ranks.rank:
            output.mkdir(parents=True, exist_ok=True)
            about = {
                "settings": settings.to_json(),
                "skipped_questions": self.loader.skipped,
                "memory": [config.to_json() for config in self.budgets],
            }
            write_json(output / "training.json", about)
            if settings.init:
                save_begun(self.decoder, output)
            done = load_checkpoint(output / "checkpoints", self.model, self.optimizer)
            cut_metrics(output, done)
        done = self.ranks.tell(done)
        if done and self.ranks.size > 1:
            self.model.update(self.ranks.copy(self.model.trainable_parameters()))
            self.optimizer.state = self.ranks.copy(self.optimizer.state)
        return done

    def _save(self) -> None:
        if self.settings.init:
            save_weights(self.output, self.model)
        else:
            save_adapter(self.output, self.model, self.adapter, self.name)

    def _step(self, step: int) -> dict[str, Any]:
        """Update the weights once, and return the step's metrics."""
        settings = self.settings
        start, tokens = perf_counter(), 0
        mx.reset_peak_memory()
        mx.random.seed(settings.seed * 1_000_003 + step)
        values = np.zeros(settings.accumulate, np.float32)  # losses of the batches
        total: Any = None
        for place in self.ranks.share(range(settings.accumulate)):
            read, values[place], gradients = self._gradients(step * settings.accumulate + place)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            tokens += read
        total, summed, read = self.ranks.add((total, mx.array(values), mx.array(tokens)))
        values, tokens = np.array(summed), int(read.item())
        losses: dict[str, list[float]] = {}
        for number, loss in enumerate(values.tolist(), step * settings.accumulate):
            if not np.isfinite(loss):
                raise M3Error(
                    f"the loss became {loss} at step {step + 1}; go on from the last "
                    f"checkpoint in another folder with a smaller --learning-rate"
                )
            losses.setdefault(self.loader.objective(number), []).append(loss)
        total = tree_map(lambda x: x / settings.accumulate, total)
        total, norm = optim.clip_grad_norm(total, settings.clip or float("inf"))
        self.optimizer.learning_rate = settings.rate(step)
        self.optimizer.update(self.model, total)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, norm)
        seconds = perf_counter() - start
        return {
            "loss": {name: float(np.mean(values)) for name, values in losses.items()},
            "learning_rate": settings.rate(step),
            "gradient": float(norm),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "peak_bytes": mx.get_peak_memory(),
        }

    def _gradients(self, number: int) -> tuple[int, float, dict[str, Any]]:
        """Return tokens, loss and gradients of one batch."""
        batch = self.loader.batch(number)
        prefix = read_prefix(self.model, batch.config.prefix)
        if batch.objective == "dpo":
            with self.teacher.restored():
                batch.baseline = answer_logprobs(
                    self.model, self.teacher.prefix, batch, self.settings
                )
                mx.eval(batch.baseline)

        def loss() -> mx.array:
            return batch_loss(self.model, prefix, batch, self.settings)

        with self._checkpoints():
            value, gradients = nn.value_and_grad(self.model, loss)()
            mx.eval(value, gradients)
        return batch.tokens, float(value), gradients

    def _validate(self, validation: Validation) -> dict[str, float]:
        self.model.eval()
        losses = validation.measure(self.model, self.budgets[0])
        self.model.train()
        return losses


def _budgets(decoder: Decoder, settings: Settings, progress: Progress) -> list[MemoryConfig]:
    """Return the configurations that batches are written with; a resumed run keeps its own."""
    path = Path(settings.output) / "training.json"
    if path.exists():
        stored = json.loads(path.read_text("utf-8"))["memory"]
        return [MemoryConfig.from_json(config) for config in stored]
    key_bits, value_bits = CODECS[settings.codec or "k8v8"]
    if settings.init:
        trained = replace(decoder, trained=memory_settings(settings, decoder))
        config = calibrate(trained, key_bits=key_bits, value_bits=value_bits)
        return [replace(config, prefix=decoder.template.prefix)]
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
