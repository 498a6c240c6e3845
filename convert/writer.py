"""From a checkpoint's tensors to a folder of safetensors, a tensor at a time.

Each tensor of the checkpoint is used once and each tensor of the model is filled once, or nothing
is written and both left-overs are named.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from m3mlx.config import Progress, no_progress
from m3mlx.errors import ConvertError

from .safetensors_file import Shape, Stored, Tensor, Writer, bits_of, size_of

SHARD_BYTES = 2 * 10**9
DTYPES = ("float16", "bfloat16", "float32")
QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}  # as bits
BLOCK = 1 << 22  # values examined together

Arrays = Iterator[tuple[str, mx.array]]  # with their names
Split = Callable[[mx.array], Sequence[mx.array]]


class Checkpoint(Protocol):
    """A source of tensors."""

    path: Path
    tensors: dict[str, Tensor]

    def error(self, reason: str) -> ConvertError: ...


class Step(NamedTuple):
    """One tensor of the checkpoint and the tensors of the model that it becomes."""

    source: str
    shape: Shape  # that it must have
    targets: Mapping[str, Shape]  # name and shape of what ``split`` makes, in order
    split: Split | None = None  # None leaves it as it is


def unchanged(shapes: Mapping[str, Shape]) -> list[Step]:
    """Return the steps of tensors that keep their names."""
    return [Step(name, shape, {name: shape}) for name, shape in shapes.items()]


class Storage(NamedTuple):
    """How weights are stored: their type (None keeps the checkpoint's), and quantization."""

    dtype: str | None = None
    bits: int | None = None
    group_size: int = 64

    @classmethod
    def of(
        cls, dtype: str | None, quantize: bool | None = False, bits: int = 4, group_size: int = 64
    ) -> Storage:
        """Check the arguments of a converter; ConvertError where they are impossible."""
        if dtype is not None and dtype not in DTYPES:
            raise ConvertError(f"dtype {dtype} is not one of {', '.join(DTYPES)}.")
        if quantize and (bits not in QUANTIZED_BITS or group_size not in GROUP_SIZES):
            raise ConvertError(
                f"{bits} bits in groups of {group_size} are not possible: "
                f"bits are one of {QUANTIZED_BITS}, group sizes one of {GROUP_SIZES}."
            )
        return cls(dtype, bits if quantize else None, group_size)

    def quantizes(self, shape: Sequence[int]) -> bool:
        return self.bits is not None and len(shape) > 1 and shape[-1] % self.group_size == 0

    @property
    def settings(self) -> dict[str, Any]:
        """The entry of config.json."""
        how = {"group_size": self.group_size, "bits": self.bits, "mode": "affine"}
        return {"quantization": how} if self.bits else {}

    def parts(self, name: str, shape: Shape, dtype: str) -> dict[str, tuple[str, Shape]]:
        """Return name, type and shape of what is stored for a tensor."""
        dtype = self.dtype or dtype
        if self.bits is None or not self.quantizes(shape):
            return {name: (dtype, shape)}
        stem, (*rows, columns) = name.removesuffix(".weight"), shape
        groups = (dtype, (*rows, columns // self.group_size))
        packed = ("uint32", (*rows, columns * self.bits // 32))
        return {f"{stem}.weight": packed, f"{stem}.scales": groups, f"{stem}.biases": groups}


def some(names: Iterable[str]) -> str:
    """List names on one line; of more than six, the first six and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "none") + more


def first_line(error: Exception) -> str:
    """Shorten a foreign library's message to put it into our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill; it then becomes ``out`` at once, or not at all."""
    if out.exists():
        raise ConvertError(f"{out} exists already. Remove it, or name another folder.")
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(out)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # a parent that is in use by now stays
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise ConvertError(f"{out} cannot be written: {error}.") from error
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_weights(
    checkpoint: Checkpoint,
    steps: Sequence[Step],
    folder: Path,
    storage: Storage,
    *,
    ignored: Iterable[str] = (),
    stem: str = "model",
    framework: str = "mlx",
    progress: Progress = no_progress,
) -> dict[str, int]:
    """Write one safetensors file, or shards with an index, with one tensor in memory at a time.

    Args:
        ignored: tensors that the checkpoint may hold and that are not used.
        stem: beginning of the file names.
        framework: "mlx" or "pt", stored in the files.
        progress: called with bytes of the source.

    Returns:
        The CRC-32 of every tensor written.
    """
    _check(checkpoint, steps, ignored, storage)
    contents = _shards(checkpoint, steps, storage)
    count = len(contents)
    files = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    if count == 1:
        files = [f"{stem}.safetensors"]
    arrays = _arrays(checkpoint, steps, storage, progress)
    sums = {}
    for file, content in zip(files, contents, strict=True):
        with (folder / file).open("wb") as opened:
            writer = Writer(opened, content, {"format": framework})
            for name, array in islice(arrays, len(content)):
                sums[name] = writer.write(name, array)
    next(arrays, None)  # reports the end
    if count > 1:
        places = {name: f for f, content in zip(files, contents, strict=True) for name in content}
        size = sum(size_of(*entry) for content in contents for entry in content.values())
        index = folder / f"{stem}.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": size}, "weight_map": places})
    return sums


def _check(
    checkpoint: Checkpoint, steps: Sequence[Step], ignored: Iterable[str], storage: Storage
) -> None:
    """Check names, shapes and types before anything is read."""
    sources = [step.source for step in steps]
    missing = set(sources) - checkpoint.tensors.keys()
    unused = checkpoint.tensors.keys() - set(sources) - set(ignored)
    if missing or unused:
        raise checkpoint.error(
            f"its tensors are not those of this architecture: missing {some(missing)}; "
            f"left over {some(unused)}"
        )
    targets = [name for step in steps for name in step.targets]
    counted = [*Counter(sources).items(), *Counter(targets).items()]
    if twice := {name for name, count in counted if count > 1}:
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


def _shards(checkpoint: Checkpoint, steps: Sequence[Step], storage: Storage) -> list[Stored]:
    """Return the contents of each file; the parts of a quantized matrix stay together."""
    shards: list[dict[str, tuple[str, Shape]]] = [{}]
    size = 0
    for step in steps:
        for target, shape in step.targets.items():
            parts = storage.parts(target, shape, checkpoint.tensors[step.source].dtype)
            nbytes = sum(size_of(*part) for part in parts.values())
            if shards[-1] and size + nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1] |= parts
            size += nbytes
    return list(shards)


def _arrays(
    checkpoint: Checkpoint, steps: Sequence[Step], storage: Storage, progress: Progress
) -> Arrays:
    """Yield the tensors of the model as they are stored."""
    done, total = 0, sum(checkpoint.tensors[step.source].nbytes for step in steps)
    for step in steps:
        progress(f"Converting {checkpoint.path.name}", done, total)
        yield from _converted(checkpoint, step, storage)
        done += checkpoint.tensors[step.source].nbytes
    progress(f"Converting {checkpoint.path.name}", total, total)


def _converted(checkpoint: Checkpoint, step: Step, storage: Storage) -> Arrays:
    """Yield what one tensor of the checkpoint becomes."""
    tensor = checkpoint.tensors[step.source]
    array = tensor.read()
    if kind := _not_finite(array):
        raise checkpoint.error(f"{step.source} holds {kind}. Fetch it again")
    arrays = step.split(array) if step.split else (array,)
    del array
    for (name, shape), part in zip(step.targets.items(), arrays, strict=True):
        if part.shape != shape:
            raise ValueError(f"{name} became {part.shape} instead of {shape}")
        dtype = storage.dtype or tensor.dtype
        part = _cast(part, dtype)
        if _not_finite(part):
            raise checkpoint.error(
                f"{step.source} holds values that {dtype} cannot hold. Try --dtype float32"
            )
        stored: tuple[mx.array, ...] = (part,)
        if storage.quantizes(shape):
            stored = mx.quantize(part, storage.group_size, storage.bits)
        yield from zip(storage.parts(name, shape, dtype), stored, strict=True)


def _cast(array: mx.array, dtype: str) -> mx.array:
    kind = getattr(mx, dtype)
    if array.dtype == mx.float32 and kind == mx.float16:
        with np.errstate(over="ignore"):  # infinity is looked for afterwards
            return mx.asarray(bits_of(array).astype(np.float16))  # far faster than MLX on a CPU
    return array.astype(kind)


def _not_finite(array: mx.array) -> str | None:
    """Return "NaN" or "infinity" if the array holds one; by bits, as NumPy has no bfloat16."""
    dtype = str(array.dtype).removeprefix("mlx.core.")
    bits = bits_of(array).reshape(-1)
    bits = bits.view(f"uint{8 * bits.itemsize}")
    magnitude = np.iinfo(bits.dtype).max >> 1  # all bits but the sign
    for start in range(0, len(bits), BLOCK):
        largest = (bits[start : start + BLOCK] & magnitude).max()
        if largest >= INFINITY[dtype]:
            return "NaN" if largest > INFINITY[dtype] else "infinity"
    return None
