"""Model directories of mlx-lm back to Hugging Face's layout, so that PyTorch can load them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from m3mlx.config import MEMORY_FILE, Progress, no_progress

from . import architectures, command
from .check import Proof, prove
from .checkpoint import TorchCheckpoint, copy_tokenizer
from .safetensors_file import Tensor
from .settings import Settings
from .writer import Storage, new_folder, some, unchanged, write_json, write_weights


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    dequantize: bool = False,
    progress: Progress = no_progress,
) -> Proof:
    """Convert a model directory to a folder in Hugging Face layout.

    Args:
        source: model directory of mlx-lm.
        out, dtype, progress: as for ``from_torch.convert``.
        dequantize: whether quantized weights become ordinary ones, rounded as they are.

    Raises:
        ConvertError: the source is broken, not supported, or quantized without ``dequantize``.
    """
    storage = Storage.of(dtype)
    with new_folder(Path(out)) as folder:
        checkpoint = TorchCheckpoint(Path(source))
        config = dict(checkpoint.config)
        if quantization := config.pop("quantization", None):
            config.pop("quantization_config", None)
            if not dequantize:
                raise checkpoint.error(
                    "its weights are quantized, and PyTorch does not know MLX's groups; "
                    "--dequantize writes ordinary weights with their values"
                )
            checkpoint.tensors = _dequantized(checkpoint, quantization)
        config = architectures.explicit(config, checkpoint.error)
        steps = unchanged(architectures.tensors(config))
        sums = write_weights(checkpoint, steps, folder, storage, framework="pt", progress=progress)
        copy_tokenizer(checkpoint.folder, folder)
        if memory := checkpoint.json(MEMORY_FILE):
            write_json(folder / MEMORY_FILE, memory)
        kept = storage.dtype or checkpoint.tensors[steps[0].source].dtype
        write_json(folder / "config.json", config | {"dtype": kept, "torch_dtype": kept})
        return prove(folder, sums)


def _dequantized(checkpoint: TorchCheckpoint, quantization: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, in which quantized matrices read as ordinary ones."""
    if quantization.get("mode", "affine") != "affine" or any(
        isinstance(value, dict) for value in quantization.values()
    ):
        raise checkpoint.error("its quantization differs by layer, or is not affine")
    settings = Settings(quantization, "its quantization", checkpoint.error)
    group_size, bits = settings.count("group_size"), settings.count("bits")

    def read(packed: Tensor, scales: Tensor, biases: Tensor) -> mx.array:
        return mx.dequantize(packed.read(), scales.read(), biases.read(), group_size, bits)

    tensors = dict(checkpoint.tensors)
    for stem in [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]:
        names = [f"{stem}.{kind}" for kind in ("weight", "scales", "biases")]
        if missing := set(names) - tensors.keys():
            raise checkpoint.error(f"its weights are quantized, but it lacks {some(missing)}")
        packed, scales, biases = (tensors.pop(name) for name in names)
        *rows, groups = scales.shape
        shape = (*rows, groups * group_size)
        values = partial(read, packed, scales, biases)
        tensors[names[0]] = Tensor(shape, scales.dtype, packed.nbytes, values)
    return tensors


@command.converter(
    click.option("--dequantize", is_flag=True, help="Write quantized weights as ordinary ones."),
    command.dtype_option(None),
)
def main(source: Path, out: Path, **options: Any) -> Proof:
    """Convert the model directory SOURCE to the folder OUT in Hugging Face layout."""
    return convert(source, out, **options)


if __name__ == "__main__":
    main()
