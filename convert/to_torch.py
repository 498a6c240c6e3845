"""Model directories of mlx-lm back to Hugging Face's layout, so that PyTorch can load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from m3mlx.config import MEMORY_FILE

from . import architectures, command
from .check import Proof
from .checkpoint import TorchCheckpoint
from .tokenizer_files import carry_tokenizer
from .writer import (
    Progress,
    Step,
    Storage,
    Tensor,
    match,
    new_folder,
    verify,
    write_json,
    write_weights,
)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    dequantize: bool = False,
    progress: Progress | None = None,
) -> Proof:
    """Convert a model directory to a folder in Hugging Face layout.

    Args:
        source: model directory of mlx-lm.
        out: folder to make. It appears only when everything in it is written.
        dtype: of the weights: "float16", "bfloat16" or "float32"; None keeps each as it is.
        dequantize: whether quantized weights are turned back into ordinary ones. They are not what
            they were before they were quantized.
        progress: called with bytes of the source converted so far and in all.

    Returns:
        How the conversion was checked: by the checksum of every tensor.

    Raises:
        ConvertError: the source is broken, not supported, or quantized without ``dequantize``.
    """
    storage = Storage.asked(dtype, False, 4, 64)
    with new_folder(Path(out)) as folder:
        checkpoint = TorchCheckpoint(Path(source))
        config = dict(checkpoint.config)
        if quantization := config.pop("quantization", None):
            config.pop("quantization_config", None)
            if not dequantize:
                raise checkpoint.error(
                    "its weights are quantized, and PyTorch does not know MLX's groups; "
                    "--dequantize writes what they stand for"
                )
            checkpoint = Dequantized(checkpoint, quantization)
        config = architectures.explicit(config, checkpoint.error)
        steps = [Step(n, shape, {n: shape}) for n, shape in architectures.tensors(config).items()]
        match(checkpoint, steps, (), storage)
        sums = write_weights(checkpoint, steps, folder, storage, framework="pt", progress=progress)
        verify(folder, sums)
        carry_tokenizer(checkpoint.folder, folder)
        if memory := checkpoint.json(MEMORY_FILE):
            write_json(folder / MEMORY_FILE, memory)
        kept = storage.dtype or checkpoint.tensors[steps[0].source].dtype
        write_json(folder / "config.json", config | {"dtype": kept, "torch_dtype": kept})
    return Proof(len(sums), None)


class Dequantized:
    """A checkpoint whose quantized matrices read as ordinary ones."""

    def __init__(self, packed: TorchCheckpoint, quantization: dict[str, Any]):
        self.packed, self.folder = packed, packed.folder
        self.json, self.error = packed.json, packed.error
        if quantization.get("mode", "affine") != "affine" or any(
            isinstance(value, dict) for value in quantization.values()
        ):
            raise packed.error("its quantization differs by layer, or is not affine")
        self.group_size, self.bits = quantization["group_size"], quantization["bits"]
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in packed.tensors.items():
            stem, _, kind = name.rpartition(".")
            scales = packed.tensors.get(f"{stem}.scales")
            if scales is None:
                self.tensors[name] = tensor
            elif kind == "weight":
                *rows, groups = scales.shape
                shape = (*rows, groups * self.group_size)
                self.tensors[name] = Tensor(shape, scales.dtype, tensor.nbytes)
            elif kind not in ("scales", "biases"):
                self.tensors[name] = tensor

    def read(self, name: str) -> mx.array:
        stem = name.rpartition(".")[0]
        if not name.endswith(".weight") or f"{stem}.scales" not in self.packed.tensors:
            return self.packed.read(name)
        parts = (self.packed.read(f"{stem}.{kind}") for kind in ("weight", "scales", "biases"))
        return mx.dequantize(*parts, group_size=self.group_size, bits=self.bits)


@command.converter(
    click.option("--dequantize", is_flag=True, help="Write what quantized weights stand for."),
    command.dtype_option(None),
)
def main(source: Path, out: Path, **options: Any) -> Proof:
    """Convert the model directory SOURCE to the folder OUT in Hugging Face layout."""
    return convert(source, out, **options)


if __name__ == "__main__":
    main()
