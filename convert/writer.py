"""From a checkpoint's tensors to a folder of safetensors, a tensor at a time.

Each tensor of the checkpoint is used once, each tensor of the model is filled once, or nothing
is written and both left-overs are named.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from m3mlx.errors import ConvertError

from . import safetensors_file
from .safetensors_file import bits_of, item_bytes

SHARD_BYTES = 2 * 10**9
DTYPES = ("float16", "bfloat16", "float32")
QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
MANTISSA = {"float16": 0x3FF, "bfloat16": 0x7F, "float32": 0x7FFFFF}
BLOCK = 1 << 22  # values looked at together

Progress = Callable[[int, int], None]  # bytes of the source converted so far, and in all


class Tensor(NamedTuple):
    """What is known of a checkpoint's tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Checkpoint(Protocol):
    """Where tensors come from."""

    path: Path
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> mx.array: ...

    def error(self, reason: str) -> ConvertError: ...


class Step(NamedTuple):
    """One tensor of the checkpoint and the tensors of the model that it becomes.

    Attributes:
        source: its name, and ``shape`` the shape that it must have.
        targets: name and shape of each tensor that ``split`` makes, in order.
        split: None for a tensor that stays as it is.
    """

    source: str
    shape: tuple[int, ...]
    targets: Mapping[str, tuple[int, ...]]
    split: Callable[[mx.array], Sequence[mx.array]] | None = None


class Storage(NamedTuple):
    """How weights are kept: their type, or None for that of the checkpoint; quantization."""

    dtype: str | None = None
    bits: int | None = None
    group_size: int = 64

    @classmethod
    def asked(
        cls, dtype: str | None, quantize: bool | None, q_bits: int, q_group_size: int
    ) -> Storage:
        """From the arguments of a converter; ConvertError where they are impossible."""
        if dtype is not None and dtype not in DTYPES:
            raise ConvertError(f"dtype {dtype} is not one of {', '.join(DTYPES)}.")
        if quantize and (q_bits not in QUANTIZED_BITS or q_group_size not in GROUP_SIZES):
            raise ConvertError(
                f"{q_bits} bits in groups of {q_group_size} are not possible: "
                f"bits are one of {QUANTIZED_BITS}, group sizes one of {GROUP_SIZES}."
            )
        return cls(dtype, q_bits if quantize else None, q_group_size)

    def quantizes(self, shape: Sequence[int]) -> bool:
        return self.bits is not None and len(shape) > 1 and shape[-1] % self.group_size == 0

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json says of it."""
        if self.bits is None:
            return {}
        return {
            "quantization": {"group_size": self.group_size, "bits": self.bits, "mode": "affine"}
        }


def some(names: Iterable[str]) -> str:
    """A list for a message that stays on one line."""
    names = sorted(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "none") + more


def match(
    checkpoint: Checkpoint, steps: Sequence[Step], ignored: Iterable[str], storage: Storage
) -> None:
    """Check names, shapes and types before anything is read.

    Args:
        ignored: tensors that may be there and are not used.

    Raises:
        ConvertError: tensors are missing or left over, or one is not what it must be.
    """
    sources = [step.source for step in steps]
    missing = set(sources) - checkpoint.tensors.keys()
    unused = checkpoint.tensors.keys() - set(sources) - set(ignored)
    if missing or unused:
        raise checkpoint.error(
            f"its tensors are not those of this architecture: missing {some(missing)}; "
            f"left over {some(unused)}"
        )
    targets = [name for step in steps for name in step.targets]
    if len(set(sources)) != len(sources) or len(set(targets)) != len(targets):
        twice = {name for names in (sources, targets) for name in names if names.count(name) > 1}
        raise checkpoint.error(f"{some(twice)} would be used or filled twice")
    for step in steps:
        tensor = checkpoint.tensors[step.source]
        if tensor.shape != step.shape:
            raise checkpoint.error(
                f"{step.source} has the shape {tensor.shape} instead of {step.shape}"
            )
        if tensor.dtype not in DTYPES:
            raise checkpoint.error(
                f"{step.source} is of type {tensor.dtype}, not one of {', '.join(DTYPES)}"
            )
    shapes = [shape for step in steps for shape in step.targets.values()]
    if storage.bits is not None and not any(map(storage.quantizes, shapes)):
        raise checkpoint.error(f"no matrix of it divides into groups of {storage.group_size}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is written.

    Raises:
        ConvertError: it exists already, or the disk refuses.
    """
    if out.exists():
        raise ConvertError(f"{out} exists already. Remove it, or name another folder.")
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    made = [parent for parent in out.parents if not parent.exists()]
    done = False
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(out)
        done = True
    except OSError as error:
        raise ConvertError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made if not done else ():
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_weights(
    checkpoint: Checkpoint,
    steps: Sequence[Step],
    folder: Path,
    storage: Storage,
    *,
    stem: str = "model",
    framework: str = "mlx",
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write one file of safetensors, or shards with an index, with one tensor in memory at a time.

    Args:
        stem: how the names of the files begin.
        framework: what the files say of themselves, "mlx" or "pt".

    Returns:
        The CRC-32 of every tensor written.

    Raises:
        ConvertError: a tensor holds NaN, infinity, or values that the type cannot hold.
    """
    progress = progress or (lambda done, total: None)
    shards = _shards(checkpoint, steps, storage)
    names = [
        f"{stem}.safetensors"
        if len(shards) == 1
        else f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors"
        for n in range(1, len(shards) + 1)
    ]
    total = sum(checkpoint.tensors[step.source].nbytes for step in steps)
    done, sums = 0, {}
    progress(done, total)
    with ExitStack() as stack:
        coming = iter(zip(names, shards, strict=True))
        left, writer = 0, None
        for step in steps:
            for name, array in _arrays(checkpoint, step, storage):
                if not left:
                    stack.close()
                    file, shard = next(coming)
                    opened = stack.enter_context((folder / file).open("wb"))
                    writer = safetensors_file.Writer(opened, shard, {"format": framework})
                    left = len(shard)
                sums[name] = writer.write(name, array)
                left -= 1
            done += checkpoint.tensors[step.source].nbytes
            progress(done, total)
    if len(shards) > 1:
        files = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        size = sum(_nbytes(entry) for shard in shards for entry in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": files}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return sums


def verify(folder: Path, sums: Mapping[str, int]) -> None:
    """Read every tensor of a folder back; ConvertError names those that have changed."""
    found = safetensors_file.checksums(sorted(folder.glob("*.safetensors")))
    if wrong := {name for name in sums.keys() | found if sums.get(name) != found.get(name)}:
        raise ConvertError(
            f"{some(wrong)} came back changed from the disk, so nothing was kept. Convert again, "
            f"and look at the disk if that repeats."
        )


Stored = dict[str, tuple[str, tuple[int, ...]]]  # name to type and shape, in a file's order


def _shards(checkpoint: Checkpoint, steps: Sequence[Step], storage: Storage) -> list[Stored]:
    """What each file will hold; the parts of a quantized matrix stay together."""
    shards: list[Stored] = [{}]
    size = 0
    for step in steps:
        for target, shape in step.targets.items():
            dtype = storage.dtype or checkpoint.tensors[step.source].dtype
            stored: Stored = {target: (dtype, shape)}
            if storage.quantizes(shape):
                *rows, columns = shape
                weight, scales, biases = _quantized_names(target)
                groups = (dtype, (*rows, columns // storage.group_size))
                packed = ("uint32", (*rows, columns * storage.bits // 32))
                stored = {weight: packed, scales: groups, biases: groups}
            nbytes = sum(map(_nbytes, stored.values()))
            if shards[-1] and size + nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1] |= stored
            size += nbytes
    return shards


def _nbytes(entry: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = entry
    return item_bytes(dtype) * math.prod(shape)


def _quantized_names(name: str) -> tuple[str, str, str]:
    stem = name.removesuffix(".weight")
    return f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"


def _arrays(checkpoint: Checkpoint, step: Step, storage: Storage) -> Iterator[tuple[str, mx.array]]:
    """The tensors of the model that one of the checkpoint becomes, as they are stored."""
    array = checkpoint.read(step.source)
    if kind := _not_finite(array):
        raise checkpoint.error(f"{step.source} holds {kind}. Fetch it again")
    parts = step.split(array) if step.split else (array,)
    del array
    for (name, shape), part in zip(step.targets.items(), parts, strict=True):
        if part.shape != shape:
            raise ValueError(f"{name} became {part.shape} instead of {shape}")
        dtype = storage.dtype or checkpoint.tensors[step.source].dtype
        part = _cast(part, dtype)
        if _not_finite(part):
            raise checkpoint.error(
                f"{step.source} holds values that {dtype} cannot hold. Try --dtype float32"
            )
        if storage.quantizes(shape):
            made = mx.quantize(part, storage.group_size, storage.bits)
            yield from zip(_quantized_names(name), made, strict=True)
        else:
            yield name, part


def _cast(array: mx.array, dtype: str) -> mx.array:
    wanted = getattr(mx, dtype)
    if array.dtype == mx.float32 and wanted == mx.float16:
        with np.errstate(over="ignore"):  # it is looked for afterwards
            return mx.asarray(bits_of(array).astype(np.float16))  # far faster than MLX on a CPU
    return array.astype(wanted)


def _not_finite(array: mx.array) -> str | None:
    """ "NaN" or "infinity" if an array holds one; by bits, since NumPy knows no bfloat16."""
    dtype = str(array.dtype).removeprefix("mlx.core.")
    bits = bits_of(array).reshape(-1)
    bits = bits.view(f"uint{8 * bits.itemsize}")
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        special = block[(block & EXPONENT[dtype]) == EXPONENT[dtype]]
        if special.size:
            return "NaN" if (special & MANTISSA[dtype]).any() else "infinity"
    return None
