"""Checkpoints and metrics of a run: enough to resume it exactly."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from ..errors import M3Error
from ..files import sync_folder, write_text
from ..models.arrays import load_arrays, named_arrays
from .adapter import check_shapes, write_json

KEPT = 2  # checkpoints that stay
METRICS = "metrics.jsonl"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Save the state after a number of steps, whole or not at all.

    This is weights, optimizer and the number: nothing random is carried from step to step.
    """
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    arrays = {"weights": model.trainable_parameters(), "optimizer": optimizer.state}
    for name, tree in arrays.items():
        mx.save_safetensors(str(unfinished / f"{name}.safetensors"), named_arrays(tree))
        sync_folder(unfinished / f"{name}.safetensors")
    write_json(unfinished / "state.json", {"step": step})
    final = folder / f"step-{step:06}"
    shutil.rmtree(final, ignore_errors=True)
    unfinished.replace(final)
    sync_folder(folder)
    for old in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Load the last checkpoint; return the number of finished steps, 0 without one.

    Raises:
        M3Error: a checkpoint is damaged or belongs to another model.
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    last = found[-1]
    try:
        step = json.loads((last / "state.json").read_text("utf-8"))["step"]
        weights = load_arrays(last / "weights.safetensors")
        moments = load_arrays(last / "optimizer.safetensors")
        mx.eval(weights, moments)
        if not check_shapes(model, weights):
            raise ValueError("its weights are not those of this model and these settings")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise M3Error(
            f"{last}: cannot go on from this checkpoint ({error}); remove it to go on from the "
            f"one before, or train into another folder"
        ) from error
    model.update(tree_unflatten(list(weights.items())))
    optimizer.state = tree_unflatten(list(moments.items()))
    return step


def cut_metrics(folder: Path, step: int) -> None:
    """Remove the metrics of steps that will be repeated, and an unfinished line."""
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def add_metrics(folder: Path, row: dict[str, Any]) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
