"""Memories to record bytes and back: the only bridge between MLX and NumPy.

A record of N kept tokens, each with a key and a value of length D, is, without gaps:

    positions       N bytes: place of each kept token in its reference, 255 for padding
    keys, values    each one of
                      16 bits: N·D bfloat16 values
                      8, 4 bits: the codes, then a float16 scale and a float16 bias for each group

All numbers are little-endian. The N tokens are ordered by layer, then by KV head, as
``MemoryConfig.counts`` gives them. Quantization is affine, ``value = code · scale + bias``, over
groups of consecutive values; groups run over the flattened (N, D) array, so that head dimensions
that no group size divides (80, 96) work too. 4-bit codes lie two in a byte, the low half first.

Where lengths differ by layer, or keys from values, each array holds its own numbers only. In memory
the shorter ones end in zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..config import MemoryConfig
from ..errors import M3Error

PADDING = 255


@dataclass
class Memory:
    """The kept keys and values of a batch of references.

    Attributes:
        keys, values: (batch, kept, longest key or value), keys after RoPE, ordered as the counts
            are.
        positions: uint8 (batch, kept), place in the reference, or 255 for padding.
    """

    keys: mx.array
    values: mx.array
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, rows: Sequence[int] | np.ndarray) -> Memory:
        """Return the memories of these rows, in this order."""
        index = np.array(rows, np.int32)
        at = mx.array(index)
        return Memory(self.keys[at], self.values[at], self.positions[index])

    @staticmethod
    def join(parts: Sequence[Memory]) -> Memory:
        """Join batches into one."""
        return Memory(
            mx.concatenate([part.keys for part in parts]),
            mx.concatenate([part.values for part in parts]),
            np.concatenate([part.positions for part in parts]),
        )


class Codec:
    """Packs memories of one configuration into records of one size.

    Error of a value: at most 1.5 steps in 8 bits and one step in 4, a step being the range of its
    group over 255 or 15 (MLX keeps the largest magnitude exact, and may clip the other end), and
    float16's rounding; 16 bits round to bfloat16.
    """

    def __init__(self, config: MemoryConfig):
        self.kept = config.kept
        divisible = all(dim % 64 == 0 for pair in config.dims for dim in pair)
        group = 64 if divisible else 32
        key_dims, value_dims = zip(*config.dims, strict=True)
        kept = list(map(sum, config.counts))
        self.keys = _ArrayCodec(kept, key_dims, config.key_bits, group)
        self.values = _ArrayCodec(kept, value_dims, config.value_bits, group)
        self.record_bytes = self.kept + self.keys.bytes + self.values.bytes

    def pack(self, memory: Memory) -> np.ndarray:
        """Encode a batch.

        Returns:
            uint8 (batch, record_bytes).

        Raises:
            M3Error: a key or value is NaN or infinite, or too large for its format.
        """
        arrays = self.keys.encode(memory.keys), self.values.encode(memory.values)
        return np.concatenate([memory.positions, *arrays], axis=1)

    def unpack(self, records: np.ndarray, dtype: mx.Dtype = mx.float32) -> Memory:
        """Decode records.

        Args:
            records: uint8 (batch, record_bytes).
            dtype: of the keys and values returned.
        """
        split = self.kept + self.keys.bytes
        keys = self.keys.decode(records[:, self.kept : split])
        values = self.values.decode(records[:, split:])
        return Memory(keys.astype(dtype), values.astype(dtype), records[:, : self.kept].copy())

    def rounded(self, memory: Memory) -> Memory:
        """Return what ``unpack`` gives after ``pack``, with straight-through gradients.

        MLX's own gradient of quantization is meaningless.
        """
        keys, values = (
            x + mx.stop_gradient(codec.rounded(mx.stop_gradient(x)) - x)
            for x, codec in ((memory.keys, self.keys), (memory.values, self.values))
        )
        return Memory(keys, values, memory.positions)


class _ArrayCodec:
    """Packs the keys, or the values, of a batch.

    Args:
        kept, dims: of each layer, number and length of its keys.
        bits: of one number.
        group: numbers that share a scale.
    """

    def __init__(self, kept: Sequence[int], dims: Sequence[int], bits: int, group: int):
        self.bits, self.group = bits, group
        self.shape = sum(kept), max(dims)
        self.size = sum(n * dim for n, dim in zip(kept, dims, strict=True))
        self.groups = -(-self.size // group)
        self.bytes = 2 * self.size if bits == 16 else self.groups * (group * bits // 8 + 4)
        self._real: np.ndarray | None = None  # places of the numbers among those with zeros
        if len(set(dims)) > 1:
            lengths = np.repeat(np.array(dims), kept)
            self._real = np.flatnonzero(np.arange(self.shape[1]) < lengths[:, None])

    def encode(self, array: mx.array) -> np.ndarray:
        """Encode (batch, *shape) to uint8 (batch, bytes)."""
        if not mx.all(mx.isfinite(array)).item():
            raise M3Error(
                "a memory holds NaN or infinite values; the model overflows on this text, "
                "try it with another dtype"
            )
        flat = self._flatten(array)
        if self.bits == 16:
            return np.array(flat.astype(mx.bfloat16).view(mx.uint8))
        codes, scales, biases = self._quantize(flat)
        if not (mx.all(mx.isfinite(scales)).item() and mx.all(mx.isfinite(biases)).item()):
            raise M3Error("a memory holds values too large for 8 or 4 bits; use --codec k16v16")
        parts = [part.view(mx.uint8) for part in (codes, scales, biases)]
        return np.concatenate([np.array(part) for part in parts], axis=1)

    def decode(self, data: np.ndarray) -> mx.array:
        """Decode uint8 (batch, bytes) to (batch, *shape)."""
        if self.bits == 16:
            return self._unflatten(mx.array(np.ascontiguousarray(data)).view(mx.bfloat16))
        batch, end = len(data), self.groups * self.group * self.bits // 8
        codes = mx.array(data[:, :end])
        if self.bits == 4:
            codes = mx.stack([codes & 15, codes >> 4], axis=-1)
        numbers = np.ascontiguousarray(data[:, end:]).view("<f2").astype(np.float32)
        scales, biases = mx.array(numbers.reshape(batch, 2, self.groups, 1).swapaxes(0, 1))
        # Not mx.dequantize, which takes four times as long on the CPU.
        codes = codes.reshape(batch, self.groups, self.group).astype(mx.float32)
        return self._unflatten((codes * scales + biases).reshape(batch, -1)[:, : self.size])

    def rounded(self, array: mx.array) -> mx.array:
        """Return what ``decode`` gives after ``encode``, in the array's dtype."""
        if self.bits == 16:
            return array.astype(mx.bfloat16).astype(array.dtype)
        codes, scales, biases = self._quantize(self._flatten(array))
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        flat = mx.dequantize(codes, scales, biases, group_size=self.group, bits=self.bits)
        return self._unflatten(flat[:, : self.size]).astype(array.dtype)

    def _flatten(self, array: mx.array) -> mx.array:
        """(batch, *shape) to (batch, size): without the zeros after short ones."""
        flat = array.reshape(len(array), -1)
        return flat if self._real is None else flat[:, mx.array(self._real)]

    def _unflatten(self, flat: mx.array) -> mx.array:
        if self._real is not None:
            whole = mx.zeros((len(flat), self.shape[0] * self.shape[1]), flat.dtype)
            whole[:, mx.array(self._real)] = flat
            flat = whole
        return flat.reshape(-1, *self.shape)

    def _quantize(self, flat: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Return codes, float16 scales and float16 biases of each row's groups."""
        flat = flat.astype(mx.float32)
        flat = mx.pad(flat, [(0, 0), (0, self.groups * self.group - self.size)])
        codes, scales, biases = mx.quantize(flat, group_size=self.group, bits=self.bits)
        return codes, scales.astype(mx.float16), biases.astype(mx.float16)
