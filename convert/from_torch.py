"""PyTorch checkpoints to model directories that mlx-lm loads.

Hugging Face's names, Megatron's, or the user's own through a name map; safetensors or PyTorch's
files; ordinary decoders, memory-augmented ones (arXiv 2407.01178), and LoRA adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from m3mlx.config import MEMORY_FILE, MemorySettings

from . import architectures, command, megatron
from .adapter import convert_adapter, is_adapter
from .check import Layout, MegatronLayout, Proof, prove, wanted
from .checkpoint import TorchCheckpoint
from .memory import MODEL_TYPE, memory_options, memory_settings, write_memory
from .names import rename
from .safetensors_file import bits_of
from .tokenizer_files import carry_tokenizer
from .writer import Progress, Step, Storage, match, new_folder, write_json, write_weights

# Constants of the rotary positions, which follow from config.json.
DERIVED = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$")
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
    progress: Progress | None = None,
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
        memory: memory settings that go before the checkpoint's own, as fields of
            ``m3mlx.config.MemorySettings``; they make any decoder one trained with memories.
        check: whether logits are compared with PyTorch's; None does it where torch is there.
        progress: called with bytes of the source converted so far and in all.

    Returns:
        How the conversion was checked.

    Raises:
        ConvertError: the checkpoint is broken, or of a kind that is not supported, or OUT exists.
    """
    source, out = Path(source), Path(out)
    storage = Storage.asked(dtype, quantize, q_bits, q_group_size)
    wanted(check)
    if is_adapter(source):
        return Proof(len(convert_adapter(source, out, storage, progress=progress)), None)
    with new_folder(out) as folder:
        checkpoint = TorchCheckpoint(source)
        config = _config(checkpoint)
        settings = memory_settings(config, memory or {}, checkpoint.error)
        if config.get("model_type") == MODEL_TYPE:
            config["model_type"] = "llama"
        for old in ("memory", "torch_dtype"):  # written elsewhere, or under another name
            config.pop(old, None)
        config = architectures.explicit(config, checkpoint.error)
        left_out = rename(checkpoint, Path(names)) if names else set()
        plan = _plan(checkpoint, config)
        match(checkpoint, plan.steps, plan.ignored | left_out, storage)
        sums = write_weights(checkpoint, plan.steps, folder, storage, progress=progress)
        carry_tokenizer(checkpoint.folder, folder)
        if settings:
            write_memory(folder, settings)
        kept = storage.dtype or checkpoint.tensors[plan.steps[0].source].dtype
        write_json(folder / "config.json", config | {"dtype": kept} | storage.settings)
        return prove(folder, sums, plan.layout(checkpoint, storage, config), check)


class Plan(NamedTuple):
    """What is to be done with each tensor of a checkpoint, and how to compute with them."""

    steps: list[Step]
    ignored: set[str]
    layout: type[Layout]


def _config(checkpoint: TorchCheckpoint) -> dict[str, Any]:
    """config.json, completed from Megatron's arguments and an earlier memory.json."""
    config = dict(checkpoint.config)
    if "num_hidden_layers" not in config:
        config = {**megatron.config_of({**checkpoint.settings, **config}), **config}
    if not config:
        raise checkpoint.error("there is no config.json beside its weights")
    if memory := checkpoint.json(MEMORY_FILE):
        config["memory"] = memory
    return config


def _plan(checkpoint: TorchCheckpoint, config: Mapping[str, Any]) -> Plan:
    """The steps, by the names that the checkpoint has."""
    shapes = architectures.tensors(config)
    plain = megatron.recognized(checkpoint.tensors)
    if plain:
        checkpoint.rename(plain)
        steps = megatron.steps(config, shapes)
    else:
        steps = [Step(name, shape, {name: shape}) for name, shape in shapes.items()]
    ignored = {name for name in checkpoint.tensors if DERIVED.search(name)}
    if config["tie_word_embeddings"]:
        ignored |= _tied_head(checkpoint)
    return Plan(steps, ignored, MegatronLayout if plain else Layout)


def _tied_head(checkpoint: TorchCheckpoint) -> set[str]:
    """The head of a model that ties it to the embeddings; it must be the same, bit for bit."""
    for head, embedding in TIED.items():
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


@command.converter(
    memory_options,
    click.option("--names", metavar="FILE", help="JSON that maps names to known ones."),
    command.check_option,
    command.storage_options(None),
)
def main(source: Path, out: Path, names: str | None, **options: Any) -> Proof:
    """Convert the PyTorch checkpoint SOURCE to the model directory OUT.

    SOURCE is a folder in Hugging Face layout, a Megatron checkpoint, a LoRA adapter in PEFT layout,
    or one file beside its config.json. The memory flags make a decoder one that was trained with
    memories; they go before its configuration, and that before the paper's settings.
    """
    memory = {name: options.pop(name) for name in MemorySettings.names() if name in options}
    return convert(source, out, names=names, memory=memory, **options)


if __name__ == "__main__":
    main()
