"""PyTorch's own files (.bin, .pt, .pth): the tensors in them, without running what is pickled.

The only way in is ``torch.load(weights_only=True)``, which builds tensors and plain containers
and refuses everything else before it could run.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from m3mlx.errors import ConvertError

from .safetensors_file import array_of

# Where training frameworks keep the weights beside optimizer states and counters.
ROOTS = ("state_dict", "model", "module")


class TorchFile:
    """An opened file.

    Attributes:
        tensors: name to torch tensor; nested dictionaries are joined with dots. The values stay on
            disk until they are read, where the file's format allows it.
        settings: what Megatron's training keeps as ``args``, or nothing.

    Raises:
        ConvertError: torch is missing, or the file is damaged or holds more than plain data.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            import torch
        except ImportError as error:
            raise ConvertError(
                f"{path}: reading it needs PyTorch. Install it with: pip install 'm3mlx[parity]', "
                f"or save the model as safetensors."
            ) from error
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                try:
                    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except RuntimeError as error:  # a format from before torch 1.6
                    if "mmap" not in str(error):
                        raise
                    content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ConvertError(
                f"{path}: holds more than tensors and plain data, and could run code; it was not "
                f"loaded. Save its state_dict alone, or as safetensors."
            ) from error
        except Exception as error:  # torch can stumble over foreign bytes anywhere
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ConvertError(f"{path}: is not a whole PyTorch file ({first}).") from error
        if not isinstance(content, Mapping):
            raise ConvertError(f"{path}: holds no dictionary of tensors.")
        args = content.get("args")
        self.settings: dict[str, Any] = vars(args) if isinstance(args, argparse.Namespace) else {}
        root = next((r for r in ROOTS if isinstance(content.get(r), Mapping)), None)
        self.tensors: dict[str, Any] = {}
        self._flatten("", content[root] if root else content)

    def _flatten(self, prefix: str, content: Mapping[Any, Any]) -> None:
        import torch

        for key, value in content.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                self._flatten(f"{name}.", value)
            elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
                if name in self.tensors:
                    raise ConvertError(f"{self.path}: holds {name} twice.")
                self.tensors[name] = value.detach()
            elif value is not None and not name.endswith("_extra_state"):
                raise ConvertError(f"{self.path}: {name} is no tensor.")

    def read(self, name: str) -> mx.array:
        """One tensor in memory of its own."""
        import torch

        tensor = self.tensors[name].contiguous()
        dtype = dtype_of(tensor)
        bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
        return array_of(np.array(bits.numpy()), dtype)


def dtype_of(tensor: Any) -> str:
    """The name of a torch tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")
