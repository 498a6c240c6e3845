"""Checkpoints of a run: written whole or not at all, and enough to go on exactly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import M3Error
from .adapter import write_json

KEPT = 2  # checkpoints that stay
METRICS = "metrics.jsonl"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Keep the state behind a number of steps.

    Nothing random is carried from step to step (``batches.py``), so weights, optimizer and the
    number say all.
    """
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(unfinished / "weights.safetensors"), weights)
    moments = dict(tree_flatten(optimizer.state))
    mx.save_safetensors(str(unfinished / "optimizer.safetensors"), moments)
    write_json(unfinished / "state.json", {"step": step})
    for path in unfinished.iterdir():
        _sync(path)
    final = folder / f"step-{step:06}"
    shutil.rmtree(final, ignore_errors=True)
    unfinished.replace(final)
    _sync(folder)
    for old in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Take up the last state; the number of steps done, 0 where there is none.

    Raises:
        M3Error: a checkpoint is damaged or belongs to another model.
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    last = found[-1]
    try:
        step = json.loads((last / "state.json").read_text("utf-8"))["step"]
        weights = mx.load(str(last / "weights.safetensors"))
        moments = mx.load(str(last / "optimizer.safetensors"))
        mx.eval(weights, moments)
        expected = dict(tree_flatten(model.trainable_parameters()))
        if {n: x.shape for n, x in weights.items()} != {n: x.shape for n, x in expected.items()}:
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
    """Drop the metrics of steps that will be done again, and a line that was not finished."""
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    unfinished = path.with_name(f".{METRICS}")
    unfinished.write_text("".join(kept), "utf-8")
    unfinished.replace(path)


def add_metrics(folder: Path, row: dict) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path) -> list[dict]:
    path = folder / METRICS
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
