"""LoRA adapters in PEFT's layout to the layout that mlx-lm loads."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from m3mlx.config import Progress

from .check import Proof, prove
from .checkpoint import TorchCheckpoint
from .writer import Step, Storage, new_folder, some, write_json, write_weights

CONFIG = "adapter_config.json"
NAME = re.compile(
    r"(?:base_model\.model\.)?(model\.layers\.\d+\.(.+))\.lora_([AB])(?:\.default)?\.weight"
)
# Settings of PEFT that change the arithmetic, each with the values under which it does not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "layer_replication": ([], None),
    "trainable_token_indices": ([], {}, None),
}


def is_adapter(source: Path) -> bool:
    return (source / CONFIG).is_file()


def convert_adapter(source: Path, out: Path, storage: Storage, progress: Progress) -> Proof:
    """Write adapters.safetensors and adapter_config.json.

    PEFT keeps A as (rank, in) and B as (out, rank), and multiplies x by their transposes; mlx-lm
    keeps the transposes. Its ``scale`` is alpha / rank, or alpha / √rank with rank-stabilized LoRA.

    Raises:
        ConvertError: it is no plain LoRA, or its tensors are not those of its settings.
    """
    checkpoint = TorchCheckpoint(source, stem="adapter_model")
    config = checkpoint.json(CONFIG)
    if config.get("peft_type") != "LORA":
        raise checkpoint.error(f"an adapter of type {config.get('peft_type')} is not supported")
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise checkpoint.error(f"{key} {config[key]!r:.60} of an adapter is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise checkpoint.error(f"r {rank!r:.20} and lora_alpha {alpha!r:.20} make no sense")
    steps, modules, sides = [], set(), set()
    for name, tensor in checkpoint.tensors.items():
        found = NAME.fullmatch(name)
        if not found:
            raise checkpoint.error(f"it holds a tensor that is no LoRA matrix: {name}")
        path, module, side = found.groups()
        modules.add(module)
        sides.add((path, side))
        shape = (rank, *tensor.shape[-1:]) if side == "A" else (*tensor.shape[:1], rank)
        target = {f"{path}.lora_{side.lower()}": shape[::-1]}
        steps.append(Step(name, shape, target, lambda array: (array.T,)))
    if halves := {path for path, _ in sides if not {(path, "A"), (path, "B")} <= sides}:
        raise checkpoint.error(f"one of the two matrices is missing for {some(halves)}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(modules)}
    settings = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    with new_folder(out) as folder:
        sums = write_weights(checkpoint, steps, folder, storage, stem="adapters", progress=progress)
        write_json(folder / CONFIG, settings)
        return prove(folder, sums)
