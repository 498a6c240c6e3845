"""LoRA adapters in PEFT's layout to the layout that mlx-lm loads."""

from __future__ import annotations

import math
import re
from pathlib import Path

from m3mlx.config import Progress

from .check import Proof, prove
from .checkpoint import TorchCheckpoint
from .writer import Step, Storage, new_folder, some, write_json, write_weights

CONFIG = "adapter_config.json"  # beside an adapter, not beside a model
NAME = re.compile(
    r"(?:base_model\.model\.)?(model\.layers\.\d+\.(.+))\.lora_([AB])(?:\.default)?\.weight"
)
UNSUPPORTED = (  # settings of PEFT that change the arithmetic, unless they are empty or "none"
    *("use_dora", "bias", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"),
    *("lora_bias", "layer_replication", "trainable_token_indices"),
)


def convert_adapter(source: Path, out: Path, storage: Storage, progress: Progress) -> Proof:
    """Write adapters.safetensors and adapter_config.json.

    PEFT keeps A as (rank, in) and B as (out, rank), and multiplies x by their transposes; mlx-lm
    keeps the transposes. Its ``scale`` is alpha / rank, or alpha / √rank with rank-stabilized LoRA.
    """
    checkpoint = TorchCheckpoint(source, stem="adapter_model")
    config = checkpoint.json(CONFIG)
    if config.get("peft_type") != "LORA":
        raise checkpoint.error(f"an adapter of type {config.get('peft_type')} is not supported")
    for key in UNSUPPORTED:
        if config.get(key) and config[key] != "none":
            raise checkpoint.error(f"{key} {config[key]!r:.60} of an adapter is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise checkpoint.error(f"r {rank!r:.20} and lora_alpha {alpha!r:.20} make no sense")
    found = {name: NAME.fullmatch(name) for name in checkpoint.tensors}
    names = {name: match.groups() for name, match in found.items() if match}
    if not names or found.keys() - names:
        unknown = some(found.keys() - names)
        raise checkpoint.error(f"it holds tensors that are no LoRA matrix: {unknown}")
    steps, modules, sides = [], set(), set()
    for name, (path, module, side) in names.items():
        modules.add(module)
        sides.add((path, side))
        shape = checkpoint.tensors[name].shape
        shape = (rank, *shape[-1:]) if side == "A" else (*shape[:1], rank)
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
