"""GGUF files to model directories that mlx-lm loads: weights, settings, tokenizer.

llama.cpp has names of its own, interleaves the rotary halves of a llama's heads, and adds one to
the norms of a gemma; all of it is undone here, and proved by logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from . import architectures, command
from .check import Layout, Proof, prove, wanted
from .gguf_file import GgufFile
from .gguf_tokenizer import read_tokenizer
from .writer import (
    Progress,
    Step,
    Storage,
    match,
    new_folder,
    some,
    write_json,
    write_weights,
)

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
# mlx-lm's names, and llama.cpp's; those of a layer stand behind "model.layers.N." and "blk.N.".
OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_LAYER = LAYER | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ROPE_FACTORS = "rope_freqs.weight"  # becomes a setting, not a weight

# Settings behind "ARCHITECTURE." that are used, or that change nothing. Any other may mean
# arithmetic that is not done here, so it is refused.
SETTINGS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
}
GEMMA_SETTINGS = {"attention.sliding_window", "rope.freq_base_swa"}
GEMMA_27B_LAYERS = 62  # the one size whose scores are scaled by another length


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "float16",
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    check: bool | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Convert a GGUF file to a model directory.

    Args:
        source: the GGUF file; architecture llama (also mistral), qwen2, qwen3 or gemma3.
        out: folder to make. It appears only when everything in it is written.
        dtype: of the weights: "float16", "bfloat16" or "float32".
        quantize: whether matrices are quantized again, with MLX's affine groups.
        q_bits, q_group_size: bits per weight and weights per group, when quantizing.
        check: whether logits are compared with PyTorch's; None does it where torch is there.
        progress: called with bytes of the source converted so far and in all.

    Returns:
        How the conversion was checked.

    Raises:
        ConvertError: the file is broken, or of a kind that is not supported, or OUT exists.
    """
    storage = Storage.asked(dtype, quantize, q_bits, q_group_size)
    wanted(check)
    with new_folder(Path(out)) as folder:
        gguf = GgufFile(Path(source))
        config = _config(gguf)
        steps = _steps(gguf, config)
        match(gguf, steps, {ROPE_FACTORS}, storage)
        tokenizer = read_tokenizer(gguf, config["vocab_size"])
        sums = write_weights(gguf, steps, folder, storage, progress=progress)
        tokenizer.fast.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer.config)
        write_json(folder / "generation_config.json", tokenizer.generation)
        config |= {"dtype": dtype, **tokenizer.generation, **storage.settings}
        write_json(folder / "config.json", config)
        return prove(folder, sums, GgufLayout(gguf, storage, config), check)


def _config(gguf: GgufFile) -> dict[str, Any]:
    """config.json as Hugging Face writes it, with every setting explicit, without token ids."""
    architecture = gguf.get("general.architecture", str)
    if gguf.get("general.type", str, "model") != "model":
        raise gguf.error(
            "it is an adapter or a part, not a whole model; convert adapters in PEFT layout with "
            "convert.from_torch"
        )
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise gguf.error(f"architecture {architecture} is not supported, only {known}")
    gemma = architecture == "gemma3"
    arch = f"{architecture}."
    settings = {key.removeprefix(arch) for key in gguf.metadata if key.startswith(arch)}
    if unknown := settings - SETTINGS - (GEMMA_SETTINGS if gemma else set()):
        raise gguf.error(f"the settings {some(unknown)} are not supported")

    hidden = gguf.count(arch + "embedding_length")
    heads = gguf.count(arch + "attention.head_count")
    head_dim = gguf.count(arch + "attention.key_length", hidden // heads)
    for key in (arch + "attention.value_length", arch + "rope.dimension_count"):
        if gguf.count(key, head_dim) != head_dim:
            raise gguf.error(f"{key} is not the length of a head, {head_dim}")
    config = {
        "model_type": ARCHITECTURES[architecture],
        "hidden_act": architectures.FAMILIES[ARCHITECTURES[architecture]].activation,
        "vocab_size": gguf.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "num_hidden_layers": gguf.count(arch + "block_count"),
        "intermediate_size": gguf.count(arch + "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count(arch + "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": gguf.real(arch + "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": gguf.count(arch + "context_length"),
        "rope_theta": gguf.real(arch + "rope.freq_base", 1e6 if gemma else 10000.0),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in gguf.tensors
    if gemma:
        config |= {
            "sliding_window": gguf.count(arch + "attention.sliding_window"),
            "sliding_window_pattern": 6,
            "rope_local_base_freq": gguf.real(arch + "rope.freq_base_swa", 10000.0),
            "query_pre_attn_scalar": head_dim
            if config["num_hidden_layers"] != GEMMA_27B_LAYERS
            else hidden // heads,
        }
    scaling = gguf.get(arch + "rope.scaling.type", str, "none")
    if scaling == "linear":
        factor = gguf.real(arch + "rope.scaling.factor")
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise gguf.error(f"rope scaling {scaling} is not supported, only linear and Llama 3's")
    elif ROPE_FACTORS in gguf.tensors:
        config["rope_scaling"] = _llama3_scaling(gguf, config["rope_theta"], head_dim)
    return architectures.explicit(config, gguf.error)


def _llama3_scaling(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """The settings that lead to the divisors of the frequencies in the file.

    llama.cpp keeps the divisors and drops the settings. All released models of Llama 3.1 and
    later share three of them; the fourth is the largest divisor.
    """
    unknown = gguf.error(f"{ROPE_FACTORS} is not the rope scaling of Llama 3, the only one known")
    if gguf.shape(ROPE_FACTORS) != (head_dim // 2,):
        raise unknown
    divisors = gguf.array(ROPE_FACTORS)
    low, high, length = 1.0, 4.0, 8192
    factor = float(divisors.max())
    turns = length / (2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-3):
        raise unknown
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def _name(target: str, gemma: bool) -> str:
    """llama.cpp's name of a tensor, given mlx-lm's."""
    stem, kind = target.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    _, _, n, inner = stem.split(".", 3)
    return f"blk.{n}.{(GEMMA_LAYER if gemma else LAYER)[inner]}.{kind}"


class GgufLayout(Layout):
    """A GGUF file for the check at the end."""

    def __init__(self, gguf: GgufFile, storage: Storage, config: Mapping[str, Any]):
        super().__init__(gguf, storage, config)
        self.interleaved = config["model_type"] == "llama"
        self.gemma = config["model_type"] == "gemma3_text"

    def name(self, name: str) -> str:
        return _name(name, self.gemma)

    def source(self, name: str) -> Any:
        tensor = super().source(name)
        return tensor - 1 if self.gemma and "norm" in name else tensor


def _steps(gguf: GgufFile, config: Mapping[str, Any]) -> list[Step]:
    """Where each tensor of the model comes from, in order."""
    gemma = config["model_type"] == "gemma3_text"
    interleaved = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    # A broken count of layers must not become a list of billions of names.
    count = min(config["num_hidden_layers"], len(gguf.tensors) + 1)
    shapes = architectures.tensors({**config, "num_hidden_layers": count})
    steps = []
    for target, shape in shapes.items():
        source = _name(target, gemma)
        name = source.split(".")[-2]
        change: Callable[[mx.array], Sequence[mx.array]] | None = None
        if config["model_type"] == "llama" and name in interleaved:
            change = partial(_halves, interleaved[name])
        elif gemma and name.endswith("norm"):
            change = _without_one
        steps.append(Step(source, shape, {target: shape}, change))
    return steps


def _halves(heads: int, array: mx.array) -> Sequence[mx.array]:
    """Rows of Q or K in mlx-lm's order: it rotates a head's two halves, llama.cpp neighbours."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return (pairs.swapaxes(1, 2).reshape(array.shape),)


def _without_one(array: mx.array) -> Sequence[mx.array]:
    """The weight of a gemma's norm, which llama.cpp keeps with the one that is added to it."""
    return (array - 1,)


@command.converter(command.storage_options("float16"), command.check_option)
def main(source: Path, out: Path, **options: Any) -> Proof:
    """Convert the GGUF file SOURCE to the model directory OUT."""
    return convert(source, out, **options)


if __name__ == "__main__":
    main()
