"""How large a model is, read from the headers of its files without loading it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import ModelError

_NUMPY = {"F32": np.float32, "F16": np.float16}
_LONGEST_HEADER = 100_000_000  # bytes
_GROUPS = {"affine": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}  # weights that share a scale


@dataclass(frozen=True)
class Weights:
    """Size of a model.

    Attributes:
        count: number of weights, those that are packed counted one by one.
        stored_bytes: on the disk.
    """

    count: int
    stored_bytes: int

    @property
    def loaded_bytes(self) -> int:
        """Memory that the weights take: on a CPU all become float32, packed ones too."""
        return loaded_bytes(self.count, self.stored_bytes)


def loaded_bytes(count: int, stored_bytes: int) -> int:
    """Return the memory that weights take on this machine; see ``Weights``."""
    return 4 * count if mx.default_device() == mx.cpu else stored_bytes


def read_weights(folder: Path) -> Weights:
    """Read the size of the model in a directory.

    Raises:
        ModelError: its files are missing, cut short or damaged; says which.
    """
    try:
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        packing = settings.get("quantization") or settings.get("quantization_config") or {}
        packing = packing if isinstance(packing, dict) else {}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError("config.json is missing or no JSON") from error
    tensors: dict[str, dict[str, Any]] = {}
    for file in _files(folder):
        tensors |= read_header(file)
    count = 0
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        scales = tensors.get(f"{layer}.scales") if layer else None
        if scales is None or kind not in ("weight", "scales", "biases"):
            packed = 2 if tensor["dtype"] == "U8" else 1  # two of four bits in a byte
            count += packed * prod(tensor["shape"])
        elif kind == "weight":
            count += prod(scales["shape"]) * _group(packing, layer)
    return Weights(
        count, sum(t["data_offsets"][1] - t["data_offsets"][0] for t in tensors.values())
    )


def _group(packing: Mapping[str, Any], layer: str) -> int:
    """Number of weights in a layer that share a scale."""
    own = packing.get(layer)
    how = own if isinstance(own, dict) else packing
    size = how.get("group_size")
    return size if isinstance(size, int) else _GROUPS.get(how.get("mode", "affine"), 64)


def _files(folder: Path) -> list[Path]:
    """Return the files of the weights; all that an index names must be there."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not found:
        raise ModelError("its weights are missing")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index.name} is damaged") from error
        if missing := sorted(named - {file.name for file in found}):
            raise ModelError(f"{missing[0]} is missing")
    return found


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Return name, type, shape and place of the tensors in a file that is as long as they need.

    Raises:
        ModelError: it is cut short or damaged.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        last = max(about["data_offsets"][1] for about in tensors.values())
        for about in tensors.values():
            if prod(about["shape"]) < 0 or not isinstance(about["dtype"], str):
                raise ValueError
        whole = file.stat().st_size == 8 + length + last
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        whole = False
    if not whole:
        raise ModelError(f"{file.name} is cut short or damaged")
    return tensors


def map_array(file: Path, name: str) -> np.ndarray | None:
    """Return an array of a safetensors file that is read where it is used.

    None for a type that NumPy does not have.
    """
    about = read_header(file)[name]
    if (dtype := _NUMPY.get(about["dtype"])) is None:
        return None
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
    start = 8 + length + about["data_offsets"][0]
    return np.memmap(file, dtype, "r", start, tuple(about["shape"]))
