"""PyTorch checkpoints to model directories that mlx-lm loads.

Hugging Face's names, Megatron's, or the user's own through a name map; safetensors or PyTorch's
files; ordinary decoders, memory-augmented ones (arXiv 2407.01178), and LoRA adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from m3mlx.config import MEMORY_FILE, MemorySettings, Progress, no_progress

from . import adapter, architectures, command, megatron
from .check import Layout, MegatronLayout, Proof, compares_logits, prove
from .checkpoint import TorchCheckpoint, copy_tokenizer, rename
from .safetensors_file import bits_of
from .writer import Storage, new_folder, unchanged, write_json, write_weights

MODEL_TYPE = "memory3"  # of a config.json whose decoder is a llama with memories
DERIVED = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$")  # follows from config.json
TIED = {  # heads that may repeat the embeddings
    "lm_head.weight": "model.embed_tokens.weight",
    "output_layer.weight": "embedding.word_embeddings.weight",
}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    quantize: bool | None = None,
    q_bits: int = 4,
    q_group_size: int = 64,
    names: str | Path | None = None,
    memory: Mapping[str, Any] | None = None,
    check: bool | None = None,
    progress: Progress = no_progress,
) -> Proof:
    """Convert a PyTorch checkpoint to a model directory, or a LoRA adapter to mlx-lm's.

    Args:
        source: folder in Hugging Face layout, with an adapter in PEFT layout, or with a Megatron
            checkpoint; or one .safetensors, .bin, .pt or .pth file beside its config.json.
        out: folder to make. It appears only when everything in it is written and checked.
        dtype: of the weights: "float16", "bfloat16" or "float32"; None keeps each as it is.
        quantize: whether matrices are quantized, with MLX's affine groups.
        q_bits, q_group_size: bits per weight and weights per group, when quantizing.
        names: JSON file that maps the checkpoint's names to Hugging Face's or Megatron's.
        memory: fields of ``m3mlx.config.MemorySettings``, which take precedence over the
            checkpoint's own; they make any decoder one trained with memories.
        check: whether logits are compared with PyTorch's; None means "if torch is installed".
        progress: called with bytes of the source.

    Raises:
        ConvertError: the checkpoint is broken, or of a kind that is not supported, or OUT exists.
    """
    source, out = Path(source), Path(out)
    storage = Storage.of(dtype, quantize, q_bits, q_group_size)
    compare = compares_logits(check)
    if (source / adapter.CONFIG).is_file():
        return adapter.convert_adapter(source, out, storage, progress)
    with new_folder(out) as folder:
        checkpoint = TorchCheckpoint(source)
        config = _config(checkpoint)
        settings = _memory_settings(checkpoint, config, memory or {})
        if config.get("model_type") == MODEL_TYPE:
            config["model_type"] = "llama"
        for old in ("memory", "torch_dtype"):  # written elsewhere, or under another name
            config.pop(old, None)
        config = architectures.explicit(config, checkpoint.error)
        ignored = rename(checkpoint, Path(names)) if names else set()
        shapes, layout = architectures.tensors(config), Layout
        if plain := megatron.recognized(checkpoint.tensors):
            checkpoint.rename(plain)
            steps, layout = megatron.steps(config, shapes), MegatronLayout
        else:
            steps = unchanged(shapes)
        ignored |= _derived(checkpoint, config["tie_word_embeddings"])
        sums = write_weights(checkpoint, steps, folder, storage, ignored=ignored, progress=progress)
        copy_tokenizer(checkpoint.folder, folder)
        if settings:
            write_json(folder / MEMORY_FILE, settings.to_json())
        kept = storage.dtype or checkpoint.tensors[steps[0].source].dtype
        write_json(folder / "config.json", config | {"dtype": kept} | storage.settings)
        return prove(folder, sums, layout(checkpoint, storage, config) if compare else None)


def _config(checkpoint: TorchCheckpoint) -> dict[str, Any]:
    """Return config.json, completed from Megatron's arguments and an earlier memory.json."""
    config = dict(checkpoint.config)
    if "num_hidden_layers" not in config:
        config = {**megatron.config_of({**checkpoint.settings, **config}), **config}
    if not config:
        raise checkpoint.error("there is no config.json beside its weights")
    if memory := checkpoint.json(MEMORY_FILE):
        config["memory"] = memory
    return config


def _memory_settings(
    checkpoint: TorchCheckpoint, config: Mapping[str, Any], given: Mapping[str, Any]
) -> MemorySettings | None:
    """Return how a model writes and reads memories, or None if it was trained without.

    A setting is taken from ``given``, else from config.json (under "memory", or beside the other
    settings), else it is the paper's: the first half of the layers, 8 tokens per head, and so on.
    """
    own = config.get("memory") or {}
    if not isinstance(own, Mapping):
        raise checkpoint.error('"memory" in config.json is no JSON object')
    found = {name: config.get(name) for name in MemorySettings.names()} | dict(own)
    found |= {name: value for name, value in given.items() if value is not None}
    found = {name: value for name, value in found.items() if value is not None}
    if not found and config.get("model_type") != MODEL_TYPE:
        return None
    layers = int(config["num_hidden_layers"])
    try:
        return MemorySettings.from_json({"memory_layers": [*range(layers // 2)], **found}, layers)
    except ValueError as reason:
        raise checkpoint.error(str(reason)) from reason


def _derived(checkpoint: TorchCheckpoint, tied: bool) -> set[str]:
    """Return the tensors that repeat others, bit for bit, or follow from config.json."""
    tensors = checkpoint.tensors
    found = {name for name in tensors if DERIVED.search(name)}
    for head, embedding in TIED.items():
        if tied and head in tensors and embedding in tensors:
            one, other = tensors[head], tensors[embedding]
            if (one.shape, one.dtype) != (other.shape, other.dtype) or not np.array_equal(
                bits_of(one.read()), bits_of(other.read())
            ):
                raise checkpoint.error(
                    f"config.json ties {head} to {embedding}, but they differ; set "
                    f"tie_word_embeddings to false if both are meant"
                )
            found.add(head)
    return found


@command.converter(
    command.memory_options,
    click.option("--names", metavar="FILE", help="JSON that maps names to known ones."),
    command.check_option,
    command.storage_options(None),
)
def main(source: Path, out: Path, names: str | None, **options: Any) -> Proof:
    """Convert the PyTorch checkpoint SOURCE to the model directory OUT.

    SOURCE is a folder in Hugging Face layout, a Megatron checkpoint, a LoRA adapter in PEFT layout,
    or one file beside its config.json. A memory flag makes a decoder one that was trained with
    memories; flags take precedence over its configuration, and that over the paper's settings.
    """
    memory = {name: options.pop(name) for name in MemorySettings.names() if name in options}
    return convert(source, out, names=names, memory=memory, **options)


if __name__ == "__main__":
    main()
