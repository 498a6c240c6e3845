"""Memories to record bytes and back: the only bridge between MLX and NumPy.

A record of N kept tokens and head dimension D is, without gaps:

    positions       N bytes: place of each kept token in its reference, 255 for padding
    keys, values    each one of
                      16 bits: N·D bfloat16 values
                      8, 4 bits: the codes, then a float16 scale and a float16 bias for each group

All numbers are little-endian. The N tokens are ordered by layer, then by KV head, as
``MemoryConfig.counts`` gives them. Quantization is affine, ``value = code · scale + bias``, over
groups of consecutive values; groups run over the flattened (N, D) array, so that head dimensions
that no group size divides (80, 96) work too. 4-bit codes lie two in a byte, the low half first.
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
        keys, values: (batch, kept, head_dim), keys after RoPE, ordered as the counts are.
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
        self.kept, self.head_dim = config.kept, config.head_dim
        self.group = 64 if config.head_dim % 64 == 0 else 32
        self.bits = (config.key_bits, config.value_bits)
        self.record_bytes = self.kept + sum(map(self._array_bytes, self.bits))

    def pack(self, memory: Memory) -> np.ndarray:
        """Encode a batch.

        Returns:
            uint8 (batch, record_bytes).

        Raises:
            M3Error: a key or value is NaN or infinite, or too large for its format.
        """
        pairs = zip((memory.keys, memory.values), self.bits, strict=True)
        arrays = [self._encode(array, bits) for array, bits in pairs]
        return np.concatenate([memory.positions, *arrays], axis=1)

    def unpack(self, records: np.ndarray, dtype: mx.Dtype = mx.float32) -> Memory:
        """Decode records.

        Args:
            records: uint8 (batch, record_bytes).
            dtype: of the keys and values returned.
        """
        batch = len(records)
        split = self.kept + self._array_bytes(self.bits[0])
        keys = self._decode(records[:, self.kept : split], self.bits[0], batch)
        values = self._decode(records[:, split:], self.bits[1], batch)
        return Memory(keys.astype(dtype), values.astype(dtype), records[:, : self.kept].copy())

    def rounded(self, memory: Memory) -> Memory:
        """Return what ``unpack`` gives after ``pack``, with straight-through gradients.

        MLX's own gradient of quantization is meaningless.
        """
        keys, values = (
            x + mx.stop_gradient(self._rounded(mx.stop_gradient(x), bits) - x)
            for x, bits in zip((memory.keys, memory.values), self.bits, strict=True)
        )
        return Memory(keys, values, memory.positions)

    def _rounded(self, array: mx.array, bits: int) -> mx.array:
        if bits == 16:
            return array.astype(mx.bfloat16).astype(array.dtype)
        codes, scales, biases = self._quantize(array, bits)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        flat = mx.dequantize(codes, scales, biases, group_size=self.group, bits=bits)
        return flat[:, : self.kept * self.head_dim].reshape(array.shape).astype(array.dtype)

    def _quantize(self, array: mx.array, bits: int) -> tuple[mx.array, mx.array, mx.array]:
        """Return codes, float16 scales and float16 biases of each row's groups."""
        flat = array.reshape(len(array), -1).astype(mx.float32)
        flat = mx.pad(flat, [(0, 0), (0, self._groups() * self.group - flat.shape[1])])
        codes, scales, biases = mx.quantize(flat, group_size=self.group, bits=bits)
        return codes, scales.astype(mx.float16), biases.astype(mx.float16)

    def _groups(self) -> int:
        return -(-self.kept * self.head_dim // self.group)

    def _array_bytes(self, bits: int) -> int:
        if bits == 16:
            return 2 * self.kept * self.head_dim
        return self._groups() * (self.group * bits // 8 + 4)

    def _encode(self, array: mx.array, bits: int) -> np.ndarray:
        if not mx.all(mx.isfinite(array)).item():
            raise M3Error(
                "a memory holds NaN or infinite values; the model overflows on this text, "
                "try it with another dtype"
            )
        if bits == 16:
            return np.array(array.reshape(len(array), -1).astype(mx.bfloat16).view(mx.uint8))
        codes, scales, biases = self._quantize(array, bits)
        if not (mx.all(mx.isfinite(scales)).item() and mx.all(mx.isfinite(biases)).item()):
            raise M3Error("a memory holds values too large for 8 or 4 bits; use --codec k16v16")
        parts = [part.view(mx.uint8) for part in (codes, scales, biases)]
        return np.concatenate([np.array(part) for part in parts], axis=1)

    def _decode(self, data: np.ndarray, bits: int, batch: int) -> mx.array:
        shape = (batch, self.kept, self.head_dim)
        if bits == 16:
            return mx.array(np.ascontiguousarray(data)).view(mx.bfloat16).reshape(shape)
        groups = self._groups()
        end = groups * self.group * bits // 8
        codes = mx.array(data[:, :end])
        if bits == 4:
            codes = mx.stack([codes & 15, codes >> 4], axis=-1)
        numbers = np.ascontiguousarray(data[:, end:]).view("<f2").astype(np.float32)
        scales, biases = mx.array(numbers.reshape(batch, 2, groups, 1).swapaxes(0, 1))
        # Not mx.dequantize, which takes four times as long on the CPU.
        values = codes.reshape(batch, groups, self.group).astype(mx.float32) * scales + biases
        return values.reshape(batch, -1)[:, : self.kept * self.head_dim].reshape(shape)
