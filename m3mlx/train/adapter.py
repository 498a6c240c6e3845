"""LoRA layers in a model, and adapters on disk as mlx-lm loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_lm.tuner.utils import linear_to_lora_layers

from ..errors import M3Error
from ..files import NEW, replacing, write_text
from ..models.arrays import load_arrays, named_arrays
from .settings import Settings

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def prepare(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Make LoRA layers trainable, with rank 0 the layers' own weights, with ``init`` all weights.

    Returns:
        What adapter_config.json says, by which mlx-lm loads the result; {} with ``init``.

    Raises:
        M3Error: full training was asked for, and the weights are quantized.
    """
    if settings.init:
        model.unfreeze()
        return {}
    model.freeze()
    mx.random.seed(settings.seed)  # LoRA layers begin at random
    if settings.rank:
        parts = (name for layer in model.layers for name, _ in layer.named_modules())
        names = list(dict.fromkeys(name for name in parts if _is_target(name, settings)))
        lora = {"rank": settings.rank, "scale": settings.scale, "dropout": 0.0, "keys": names}
        linear_to_lora_layers(model, len(model.layers), lora)
        layers = len(model.layers)
        return {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": lora}
    if any(isinstance(part, nn.QuantizedLinear) for part in model.modules()):
        raise M3Error("the weights of a quantized model cannot be trained; use a --rank above 0")
    for layer in model.layers:
        for name, part in layer.named_modules():
            if _is_target(name, settings):
                part.unfreeze(recurse=False)
    return {"fine_tune_type": "full", "num_layers": len(model.layers)}


def _is_target(name: str, settings: Settings) -> bool:
    part = name.split(".")[-1]
    return part in ATTENTION if settings.targets == "attention" else part.endswith("_proj")


def initial_weights(model: nn.Module) -> dict[str, Any]:
    """Return the trainable weights as before any training: LoRA that adds nothing."""
    return tree_map_with_path(
        lambda name, x: mx.zeros_like(x) if name.endswith("lora_b") else x,
        model.trainable_parameters(),
    )


def check_shapes(model: nn.Module, weights: Mapping[str, mx.array]) -> bool:
    """Return whether weights have the names and shapes of the trainable ones."""
    expected = named_arrays(model.trainable_parameters())
    return {n: x.shape for n, x in weights.items()} == {n: x.shape for n, x in expected.items()}


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Load the weights of an earlier adapter, to go on with.

    Raises:
        M3Error: it cannot be read, or has other weights than those trained here.
    """
    try:
        weights = load_arrays(folder / "adapters.safetensors")
        mx.eval(weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise M3Error(f"{folder}: there is no adapter that can be read ({error})") from error
    if not check_shapes(model, weights):
        raise M3Error(
            f"{folder}: its weights are not those that learn here; give the --rank and "
            f"--targets that it was trained with, and its model"
        )
    now = named_arrays(model.trainable_parameters())
    # Adam's epsilon and squares of gradients are 0 in float16, in which adapters may be stored
    weights = {name: x.astype(now[name].dtype) for name, x in weights.items()}
    model.load_weights(list(weights.items()), strict=False)


def save_adapter(folder: Path, model: nn.Module, config: Mapping, model_name: str) -> None:
    """Write adapters.safetensors and adapter_config.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = named_arrays(model.trainable_parameters())
    with replacing(folder / "adapters.safetensors", f"{NEW}.safetensors") as new:
        mx.save_safetensors(str(new), weights, metadata={"format": "mlx"})
    write_json(folder / "adapter_config.json", {"model": model_name, **config})


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
