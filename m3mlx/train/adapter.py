"""LoRA layers in a model, and adapters on disk as mlx-lm loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.tuner.utils import linear_to_lora_layers

from ..errors import M3Error
from .settings import Settings

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def prepare(model: nn.Module, settings: Settings) -> dict:
    """Decide what learns: LoRA layers, or with rank 0 the layers' own weights.

    Returns:
        What mlx-lm needs to know to load the result, as in adapter_config.json.

    Raises:
        M3Error: all weights are to learn, and they are quantized.
    """
    model.freeze()
    mx.random.seed(settings.seed)  # LoRA layers begin at random
    if settings.rank:
        names = [name for name, part in model.layers[0].named_modules() if _learns(name, settings)]
        lora = {"rank": settings.rank, "scale": settings.scale, "dropout": 0.0, "keys": names}
        linear_to_lora_layers(model, len(model.layers), lora)
        return {
            "fine_tune_type": "lora",
            "num_layers": len(model.layers),
            "lora_parameters": lora,
        }
    if any(isinstance(part, nn.QuantizedLinear) for part in model.modules()):
        raise M3Error("the weights of a quantized model cannot be trained; use a --rank above 0")
    for layer in model.layers:
        for name, part in layer.named_modules():
            if _learns(name, settings):
                part.unfreeze(recurse=False)
    return {"fine_tune_type": "full", "num_layers": len(model.layers)}


def _learns(name: str, settings: Settings) -> bool:
    part = name.split(".")[-1]
    if settings.targets == "attention":
        return part in ATTENTION
    return part.endswith("_proj")


def untrained(model: nn.Module) -> dict:
    """The trainable weights of the model before any training: LoRA that adds nothing."""
    return tree_map_with_path(
        lambda name, x: mx.zeros_like(x) if name.endswith("lora_b") else x,
        model.trainable_parameters(),
    )


def load_weights(model: nn.Module, folder: Path) -> None:
    """Begin with an adapter that was trained before.

    Raises:
        M3Error: it cannot be read, or other weights learn in it.
    """
    try:
        weights = mx.load(str(folder / "adapters.safetensors"))
        mx.eval(weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise M3Error(f"{folder}: there is no adapter that can be read ({error})") from error
    expected = dict(tree_flatten(model.trainable_parameters()))
    if {n: x.shape for n, x in weights.items()} != {n: x.shape for n, x in expected.items()}:
        raise M3Error(
            f"{folder}: its weights are not those that learn here; give the --rank and "
            f"--targets that it was trained with, and its model"
        )
    model.load_weights(list(weights.items()), strict=False)


def save_adapter(folder: Path, model: nn.Module, config: Mapping, model_name: str) -> None:
    """Write adapters.safetensors and adapter_config.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.trainable_parameters()))
    unfinished = folder / ".adapters.safetensors"
    mx.save_safetensors(str(unfinished), weights, metadata={"format": "mlx"})
    unfinished.replace(folder / "adapters.safetensors")
    write_json(folder / "adapter_config.json", {"model": model_name, **config})


def write_json(path: Path, value: object) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    unfinished.replace(path)
