"""The safetensors format: a header of names, types and places, then bytes.

Read and written here rather than with a library, so that a tensor at a time is in memory, a
damaged file is told apart from a foreign one, and two tensors of one name are noticed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
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
# NumPy knows no bfloat16, so its bits travel as whole numbers.
BITS = {"bfloat16": "uint16"}


class Entry(NamedTuple):
    """Where one tensor of a file is: its type, its shape, and its bytes [start, end)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def item_bytes(dtype: str) -> int:
    return np.dtype(BITS.get(dtype, dtype)).itemsize


def bits_of(array: mx.array) -> np.ndarray:
    """The values of an MLX array for NumPy, contiguous; bfloat16 as uint16."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False))


def array_of(bits: np.ndarray, dtype: str) -> mx.array:
    """The other way round, without copying."""
    array = mx.asarray(bits)
    return array.view(mx.bfloat16) if dtype == "bfloat16" else array


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name.

    Raises:
        ConvertError: it cannot be read, is cut off, damaged, or holds a name twice.
    """

    def broken(reason: str) -> ConvertError:
        return ConvertError(f"{path}: {reason}; fetch it again.")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise broken("is not a whole safetensors file")
            text = file.read(length)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror or error}.") from error

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise broken(f"holds {name} twice")
            found[name] = value
        return found

    entries = {}
    try:
        header = json.loads(text, object_pairs_hook=once)
        header.pop("__metadata__", None)
        for name, value in header.items():
            shape = tuple(value["shape"])
            start, end = value["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
                raise ValueError(name)
            dtype = DTYPES.get(value["dtype"], value["dtype"])
            entries[name] = Entry(dtype, shape, 8 + length + start, 8 + length + end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken("has a damaged header") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].start):
        known = entry.dtype in CODES
        if entry.start != end or (
            known
            and entry.nbytes != item_bytes(entry.dtype) * int(np.prod(entry.shape, dtype=object))
        ):
            raise broken(f"its header gives {name} a wrong place or length")
        end = entry.end
    if end != size:
        raise broken(f"has {size} bytes instead of {end}")
    return entries


def read_array(path: Path, entry: Entry) -> mx.array:
    """One tensor, read from the file into memory of its own."""
    kind = np.dtype(BITS.get(entry.dtype, entry.dtype))
    bits = np.fromfile(path, kind, entry.nbytes // kind.itemsize, offset=entry.start)
    if bits.nbytes != entry.nbytes:
        raise ConvertError(f"{path}: became shorter while it was read.")
    return array_of(bits.reshape(entry.shape), entry.dtype)


class Writer:
    """One file, whose header is written before the first of its tensors.

    Args:
        file: opened for writing.
        tensors: name to type and shape, in the order in which they will be given.
        metadata: strings that the format has room for.
    """

    def __init__(
        self,
        file: BinaryIO,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ):
        self._file = file
        self._expected = iter(tensors.items())
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + item_bytes(dtype) * int(np.prod(shape, dtype=object))
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
        data = bits_of(array).reshape(-1).view(np.uint8)
        self._file.write(data)
        return zlib.crc32(data)


def checksums(paths: Iterable[Path]) -> dict[str, int]:
    """The CRC-32 of every tensor of some files, read back from them."""
    return {
        name: zlib.crc32(bits_of(read_array(path, entry)).reshape(-1).view(np.uint8))
        for path in paths
        for name, entry in read_header(path).items()
    }
