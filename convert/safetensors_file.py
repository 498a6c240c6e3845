"""The safetensors format: a header of names, types and places, then bytes.

Read and written here rather than with a library, to hold one tensor at a time, to tell a damaged
file from a foreign one, and to notice two tensors of one name.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import mlx.core as mx
import numpy as np

from m3mlx.errors import ConvertError

LARGEST_HEADER = 10**8  # bytes, as in the reference implementation
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U32": "uint32",
    "U8": "uint8",
}
CODES = {name: code for code, name in DTYPES.items()}
BITS = {"bfloat16": "uint16"}  # NumPy has no bfloat16, so its bits are kept as integers

Shape = tuple[int, ...]
Stored = Mapping[str, tuple[str, Shape]]  # name to type and shape, in a file's order


class Tensor(NamedTuple):
    """A tensor in a file; ``read`` loads it into memory of its own."""

    shape: Shape
    dtype: str
    nbytes: int
    read: Callable[[], mx.array]


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes that a tensor takes."""
    return np.dtype(BITS.get(dtype, dtype)).itemsize * math.prod(shape)


def bits_of(array: mx.array) -> np.ndarray:
    """Return an MLX array as a contiguous NumPy array; bfloat16 as uint16."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False))


def array_of(bits: np.ndarray, dtype: str) -> mx.array:
    """Return what `bits_of` made as an MLX array, without copying."""
    array = mx.asarray(bits)
    return array.view(mx.bfloat16) if dtype == "bfloat16" else array


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; ConvertError if the file is damaged."""

    def broken(reason: str) -> ConvertError:
        return ConvertError(f"{path}: {reason}; fetch it again.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise broken(f"holds {name} twice")
            found[name] = value
        return found

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise broken("is not a whole safetensors file")
            text = file.read(length)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror or error}.") from error
    tensors: dict[str, Tensor] = {}
    places: list[tuple[int, int, str]] = []
    try:
        header = json.loads(text, object_pairs_hook=unique)
        header.pop("__metadata__", None)
        for name, value in header.items():
            shape = tuple(value["shape"])
            start, end = value["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
                raise ValueError(name)
            dtype = DTYPES.get(value["dtype"], value["dtype"])
            read = partial(_read, path, 8 + length + start, dtype, shape)
            tensors[name] = Tensor(shape, dtype, end - start, read)
            places.append((start, end, name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken("has a damaged header") from error
    last = 0
    for start, end, name in sorted(places):
        shape, dtype, nbytes, _ = tensors[name]
        if start != last or (dtype in CODES and nbytes != size_of(dtype, shape)):
            raise broken(f"its header gives {name} a wrong place or length")
        last = end
    if size != 8 + length + last:
        raise broken(f"has {size} bytes instead of {8 + length + last}")
    return tensors


def _read(path: Path, start: int, dtype: str, shape: Shape) -> mx.array:
    count = math.prod(shape)
    bits = np.fromfile(path, BITS.get(dtype, dtype), count, offset=start)
    if len(bits) != count:
        raise ConvertError(f"{path}: became shorter while it was read.")
    return array_of(bits.reshape(shape), dtype)


class Writer:
    """Writes one file: the header at once, then its tensors in the order of ``tensors``."""

    def __init__(self, file: BinaryIO, tensors: Stored, metadata: Mapping[str, str]):
        self._file = file
        self._expected = iter(tensors.items())
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + size_of(dtype, shape)
            header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, array: mx.array) -> int:
        """Append the next tensor, and return the CRC-32 of its bytes."""
        expected = next(self._expected)
        given = (name, (str(array.dtype).removeprefix("mlx.core."), array.shape))
        if given != expected:
            raise ValueError(f"{given} where the header says {expected}")
        data = _bytes(array)
        self._file.write(data)
        return zlib.crc32(data)


def checksums(paths: Iterable[Path]) -> dict[str, int]:
    """Return the CRC-32 of every tensor of some files, read from the disk."""
    return {
        name: zlib.crc32(_bytes(tensor.read()))
        for path in paths
        for name, tensor in read_safetensors(path).items()
    }


def _bytes(array: mx.array) -> memoryview:
    return bits_of(array).reshape(-1).view(np.uint8).data
