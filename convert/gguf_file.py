"""Reading GGUF: metadata as Python values, tensors as float32.

MLX's own GGUF loader is not used: it decodes Q4_K wrongly and knows no Q5 types. The ``gguf``
package decodes every type, in NumPy.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from m3mlx.errors import ConvertError

from .writer import Tensor

LARGEST = 2**40  # of a count that is not nonsense


class GgufFile:
    """An opened GGUF file.

    Attributes:
        path: the file.
        metadata: every key and its value; prefer `get`, which checks.
        tensors: name to shape, rows first, and bytes; all are read as float32.

    Raises:
        ConvertError: from every method, with the path and the reason.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            reader = GGUFReader(path)
            self.metadata = {key: field.contents() for key, field in reader.fields.items()}
            self._found = {tensor.name: tensor for tensor in reader.tensors}
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # the parser can stumble over foreign bytes anywhere
            reason = f"is not a whole GGUF file ({error}); fetch it again"
            raise self.error(reason) from error
        if reader.byte_order != "I":
            raise self.error("has another byte order than this machine")
        if self.get("split.count", int, 1) > 1:
            raise self.error("is one part of a split file; join the parts first")
        types = {tensor.tensor_type for tensor in self._found.values()}
        if foreign := sorted(kind.name for kind in types if not _decodes(kind)):
            raise self.error(
                f"the quantization {', '.join(foreign)} is not supported by the gguf package"
            )
        self.tensors = {
            name: Tensor(tuple(map(int, reversed(t.shape))), "float32", int(t.n_bytes))
            for name, t in self._found.items()
        }

    def error(self, reason: str) -> ConvertError:
        return ConvertError(f"{self.path}: {' '.join(reason.split())}.")

    def get(self, key: str, kind: Any, default: Any = None) -> Any:
        """A value of the metadata, of one type; without a default it must be there."""
        value = self.metadata.get(key, default)
        if value is None:
            raise self.error(f"its metadata lacks {key}")
        if not isinstance(value, kind):
            raise self.error(f"{key} is {value!r:.40}, which is not of the right kind")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0 out of the metadata."""
        value = self.get(key, int, default)
        if not 0 < value < LARGEST:
            raise self.error(f"{key} is {value}, which makes no sense")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number above 0 out of the metadata."""
        value = float(self.get(key, float | int, default))
        if not 0 < value < LARGEST:
            raise self.error(f"{key} is {value}, which makes no sense")
        return value

    def strings(self, key: str) -> list[str]:
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise self.error(f"{key} does not hold strings")
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first."""
        if name not in self.tensors:
            raise self.error(f"it has no tensor {name}")
        return self.tensors[name].shape

    def array(self, name: str) -> np.ndarray:
        """A tensor as float32, in its shape."""
        tensor = self._found[name]
        return dequantize(np.asarray(tensor.data), tensor.tensor_type)  # a memmap is slow

    def read(self, name: str) -> mx.array:
        """A tensor as float32, for MLX."""
        return mx.asarray(np.array(self.array(name), np.float32, copy=None))


@cache
def _decodes(kind: Type) -> bool:
    """Whether the gguf package can dequantize a type."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
