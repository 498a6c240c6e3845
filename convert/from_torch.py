"""PyTorch checkpoints to model directories that mlx-lm loads.

Hugging Face's names, Megatron's, or the user's own through a name map; safetensors or PyTorch's
files; ordinary decoders and memory-augmented ones (arXiv 2407.01178).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import architectures, megatron
from .checkpoint import TorchCheckpoint
from .safetensors_file import bits_of
from .tokenizer_files import carry_tokenizer
from .writer import (
    Progress,
    Step,
    Storage,
    match,
    new_folder,
    verify,
    write_json,
    write_weights,
)

# Constants of the rotary positions, which follow from config.json.
DERIVED = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    quantize: bool | None = None,
    q_bits: int = 4,
    q_group_size: int = 64,
    progress: Progress | None = None,
) -> None:
    """Convert a PyTorch checkpoint to a model directory.

    Args:
        source: folder in Hugging Face layout, or one .safetensors, .bin, .pt or .pth file that
            lies beside its config.json.
        out: folder to make. It appears only when everything in it is written.
        dtype: of the weights: "float16", "bfloat16" or "float32"; None keeps each as it is.
        quantize: whether matrices are quantized, with MLX's affine groups.
        q_bits, q_group_size: bits per weight and weights per group, when quantizing.
        progress: called with bytes of the source converted so far and in all.

    Raises:
        ConvertError: the checkpoint is broken, or of a kind that is not supported, or OUT exists.
    """
    source, out = Path(source), Path(out)
    storage = Storage.asked(dtype, quantize, q_bits, q_group_size)
    with new_folder(out) as folder:
        checkpoint = TorchCheckpoint(source)
        config = architectures.explicit(checkpoint.config, checkpoint.error)
        plan = _plan(checkpoint, config)
        match(checkpoint, plan.steps, plan.ignored, storage)
        sums = write_weights(checkpoint, plan.steps, folder, storage, progress=progress)
        verify(folder, sums)
        carry_tokenizer(checkpoint.folder, folder)
        kept = storage.dtype or checkpoint.tensors[plan.steps[0].source].dtype
        write_json(folder / "config.json", config | {"dtype": kept} | storage.settings)


class Plan(NamedTuple):
    """What is to be done with each tensor of a checkpoint."""

    steps: list[Step]
    ignored: set[str]


def _plan(checkpoint: TorchCheckpoint, config: Mapping[str, Any]) -> Plan:
    """The steps, by the names that the checkpoint has."""
    shapes = architectures.tensors(config)
    if plain := megatron.recognized(checkpoint.tensors):
        checkpoint.rename(plain)
        steps = megatron.steps(config, shapes)
    else:
        steps = [Step(name, shape, {name: shape}) for name, shape in shapes.items()]
    ignored = {name for name in checkpoint.tensors if DERIVED.search(name)}
    if config["tie_word_embeddings"]:
        ignored |= _tied_head(checkpoint)
    return Plan(steps, ignored)


def _tied_head(checkpoint: TorchCheckpoint) -> set[str]:
    """The head of a model that ties it to the embeddings; it must be the same, bit for bit."""
    pairs = {HEAD: EMBEDDING, "output_layer.weight": "embedding.word_embeddings.weight"}
    for head, embedding in pairs.items():
        if head in checkpoint.tensors and embedding in checkpoint.tensors:
            one, other = checkpoint.tensors[head], checkpoint.tensors[embedding]
            if one != other or not np.array_equal(
                bits_of(checkpoint.read(head)), bits_of(checkpoint.read(embedding))
            ):
                raise checkpoint.error(
                    f"config.json ties {head} to {embedding}, but they differ; set "
                    f"tie_word_embeddings to false if both are meant"
                )
            return {head}
    return set()
