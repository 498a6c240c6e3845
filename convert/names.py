"""A user's own map of tensor names, for checkpoints in a layout of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

from m3mlx.errors import ConvertError

from .checkpoint import TorchCheckpoint
from .writer import some

LAYER = "{n}"  # stands for the number of a layer


def rename(checkpoint: TorchCheckpoint, file: Path) -> set[str]:
    """Rename the tensors of a checkpoint as a JSON file says.

    The file is one object, such as ``{"h.{n}.qkv.weight":
    "encoder.layers.{n}.self_attention.query_key_value.weight", "step": null}``. On the right are
    Hugging Face's names, or Megatron's, whose fused matrices are taken apart; null leaves a tensor
    out.

    Returns:
        The names of the tensors that are left out.

    Raises:
        ConvertError: the file is broken, a line of it fits no tensor, or a tensor fits two.
    """
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(lines, dict) or not all(
        target is None or isinstance(target, str) for target in lines.values()
    ):
        raise ConvertError(f"{file}: is no JSON object from names to names or null.")
    new: dict[str, str] = {}
    left_out: set[str] = set()
    for pattern, target in lines.items():
        places = re.escape(pattern).replace(re.escape(LAYER), r"(\d+)", 1)
        fits = {name: found for name in checkpoint.tensors if (found := re.fullmatch(places, name))}
        if not fits:
            raise ConvertError(f"{file}: {pattern} fits no tensor of {checkpoint.path}.")
        if twice := fits.keys() & (new.keys() | left_out):
            raise ConvertError(f"{file}: {some(twice)} fits several lines.")
        if target is None:
            left_out |= fits.keys()
            continue
        for name, found in fits.items():
            new[name] = target.replace(LAYER, found[1]) if found.groups() else target
    checkpoint.rename(new)
    return left_out
