"""PyTorch's own files (.bin, .pt, .pth), read without running what is pickled in them.

They are opened with ``torch.load(weights_only=True)`` alone, which builds tensors and plain
containers and refuses everything else before it could run.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from m3mlx.errors import ConvertError

from .safetensors_file import Tensor, array_of
from .writer import first_line

# Where training frameworks keep the weights beside optimizer states and counters.
ROOTS = ("state_dict", "model", "module")


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by name, with dots for nested dictionaries, and Megatron's ``args``.

    The values stay on disk until they are read, where the file's format allows it.
    """
    content = _load(path)
    args = content.get("args")
    root = next((r for r in ROOTS if isinstance(content.get(r), Mapping)), None)
    tensors: dict[str, Tensor] = {}
    for name, value in _flat(path, "", content[root] if root else content):
        if name in tensors:
            raise ConvertError(f"{path}: holds {name} twice.")
        dtype = str(value.dtype).removeprefix("torch.")
        read = partial(_read, value, dtype)
        tensors[name] = Tensor(tuple(value.shape), dtype, value.nbytes, read)
    return tensors, vars(args) if isinstance(args, argparse.Namespace) else {}


def _load(path: Path) -> Mapping[Any, Any]:
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{path}: reading it needs PyTorch. Install it with: pip install 'm3mlx[parity]', "
            f"or save the model as safetensors."
        ) from error
    mmap = zipfile.is_zipfile(path)  # or the format from before torch 1.6
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ConvertError(
            f"{path}: holds more than tensors and plain data, and could run code; it was not "
            f"loaded. Save its state_dict alone, or as safetensors."
        ) from error
    except Exception as error:  # torch can fail on foreign bytes anywhere
        raise ConvertError(f"{path}: is not a whole PyTorch file ({first_line(error)}).") from error
    if not isinstance(content, Mapping):
        raise ConvertError(f"{path}: holds no dictionary of tensors.")
    return content


def _flat(path: Path, prefix: str, content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every torch tensor with its name."""
    import torch

    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(path, f"{name}.", value)
        elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
            yield name, value.detach()
        elif value is not None and not name.endswith("_extra_state"):
            raise ConvertError(f"{path}: {name} is no tensor.")


def _read(tensor: Any, dtype: str) -> mx.array:
    import torch

    tensor = tensor.contiguous()
    bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
    return array_of(np.array(bits.numpy()), dtype)
