"""Reading GGUF: metadata as Python values, tensors as float32.

MLX's own GGUF loader is not used: it decodes Q4_K wrongly and knows no Q5 types. The ``gguf``
package decodes every type, in NumPy.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, ReaderTensor
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

from m3mlx.errors import ConvertError

from .safetensors_file import Tensor
from .settings import Settings


class GgufFile:
    """An opened GGUF file.

    Attributes:
        metadata: its keys and values.
        tensors: by name; shapes have rows first, and all are read as float32.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            reader = GGUFReader(path)
            values = {key: field.contents() for key, field in reader.fields.items()}
            found = {tensor.name: tensor for tensor in reader.tensors}
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # the parser can fail on foreign bytes anywhere
            reason = f"is not a whole GGUF file ({error}); fetch it again"
            raise self.error(reason) from error
        self.metadata = Settings(values, "its metadata", self.error)
        if reader.byte_order != "I":
            raise self.error("has another byte order than this machine")
        if self.metadata.get("split.count", int, 1) > 1:
            raise self.error("is one part of a split file; join the parts first")
        types = {tensor.tensor_type for tensor in found.values()}
        if foreign := sorted(kind.name for kind in types if not _decodes(kind)):
            raise self.error(
                f"the quantization {', '.join(foreign)} is not supported by the gguf package"
            )
        self.tensors = {
            name: Tensor(
                tuple(map(int, reversed(t.shape))), "float32", int(t.n_bytes), partial(_read, t)
            )
            for name, t in found.items()
        }

    def error(self, reason: str) -> ConvertError:
        return ConvertError(f"{self.path}: {' '.join(reason.split())}.")

    def strings(self, key: str) -> list[str]:
        """Return a list of strings in the metadata."""
        values = self.metadata.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise self.error(f"{key} does not hold strings")
        return values


def _read(tensor: ReaderTensor) -> mx.array:
    values = dequantize(np.asarray(tensor.data), tensor.tensor_type)  # a memmap is slow
    return mx.asarray(np.array(values, np.float32, copy=None))


@cache
def _decodes(kind: Type) -> bool:
    """Return whether the gguf package can dequantize a type."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
