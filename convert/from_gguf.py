"""GGUF files to model directories that mlx-lm loads: weights, settings, tokenizer.

llama.cpp has names of its own, interleaves the rotary halves of a llama's heads, and adds one to
the norms of a gemma; all of it is undone here, and proved by logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from m3mlx.config import Progress, no_progress

from . import architectures, command
from .check import Layout, Proof, compares_logits, prove
from .gguf_file import GgufFile
from .gguf_tokenizer import write_tokenizer
from .writer import Split, Step, Storage, new_folder, some, write_json, write_weights

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
# mlx-lm's names, and llama.cpp's; those of a layer follow "model.layers.N." and "blk.N.".
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
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
EMBEDDINGS = "token_embd.weight"
ROPE_FACTORS = "rope_freqs.weight"  # becomes a setting, not a weight

# Settings after "ARCHITECTURE." that are used, or that change nothing. Any other may ask for
# arithmetic that is not done here, so it is refused.
SETTINGS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
}
GEMMA_SETTINGS = {"attention.sliding_window", "rope.freq_base_swa"}
GEMMA_27B_LAYERS = 62  # the one size whose scores are scaled by hidden size / heads


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "float16",
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    check: bool | None = None,
    progress: Progress = no_progress,
) -> Proof:
    """Convert a GGUF file to a model directory.

    Args:
        source: the GGUF file; architecture llama (also mistral), qwen2, qwen3 or gemma3.
        out, quantize, q_bits, q_group_size, check, progress: as for ``from_torch.convert``.
        dtype: of the weights: "float16", "bfloat16" or "float32".

    Raises:
        ConvertError: the file is broken, or of a kind that is not supported, or OUT exists.
    """
    storage = Storage.of(dtype, quantize, q_bits, q_group_size)
    compare = compares_logits(check)
    with new_folder(Path(out)) as folder:
        gguf = GgufFile(Path(source))
        config = _config(gguf)
        generation = write_tokenizer(gguf, config["vocab_size"], folder)
        steps, ignored = _steps(gguf, config), {ROPE_FACTORS}
        sums = write_weights(gguf, steps, folder, storage, ignored=ignored, progress=progress)
        config |= {"dtype": dtype, **generation, **storage.settings}
        write_json(folder / "config.json", config)
        layout = GgufLayout(gguf, storage, config, interleaved=config["model_type"] == "llama")
        return prove(folder, sums, layout if compare else None)


def _config(gguf: GgufFile) -> dict[str, Any]:
    """Return config.json as Hugging Face writes it, with explicit settings, without token ids."""
    settings = gguf.metadata
    architecture = settings.get("general.architecture", str)
    if settings.get("general.type", str, "model") != "model":
        raise gguf.error(
            "it is an adapter or a part, not a whole model; convert adapters in PEFT layout with "
            "convert.from_torch"
        )
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise gguf.error(f"architecture {architecture} is not supported, only {known}")
    kind, arch = ARCHITECTURES[architecture], f"{architecture}."
    gemma = kind == "gemma3_text"
    names = {key.removeprefix(arch) for key in settings.values if key.startswith(arch)}
    if unknown := names - SETTINGS - (GEMMA_SETTINGS if gemma else set()):
        raise gguf.error(f"the settings {some(unknown)} are not supported")
    if EMBEDDINGS not in gguf.tensors:
        raise gguf.error(f"it has no tensor {EMBEDDINGS}")

    hidden = settings.count(arch + "embedding_length")
    heads = settings.count(arch + "attention.head_count")
    head_dim = settings.count(arch + "attention.key_length", hidden // heads)
    for key in (arch + "attention.value_length", arch + "rope.dimension_count"):
        if settings.count(key, head_dim) != head_dim:
            raise gguf.error(f"{key} is not the length of a head, {head_dim}")
    config: dict[str, Any] = {
        "model_type": kind,
        "hidden_act": architectures.FAMILIES[kind].activation,
        "vocab_size": gguf.tensors[EMBEDDINGS].shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": settings.count(arch + "block_count"),
        "intermediate_size": settings.count(arch + "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.count(arch + "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": settings.real(arch + "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": settings.count(arch + "context_length"),
        "rope_theta": settings.real(arch + "rope.freq_base", 1e6 if gemma else 10000.0),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if kind == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in gguf.tensors
    if gemma:
        largest = config["num_hidden_layers"] == GEMMA_27B_LAYERS
        config |= {
            "sliding_window": settings.count(arch + "attention.sliding_window"),
            "sliding_window_pattern": 6,
            "rope_local_base_freq": settings.real(arch + "rope.freq_base_swa", 10000.0),
            "query_pre_attn_scalar": hidden // heads if largest else head_dim,
        }
    if scaling := _rope_scaling(gguf, arch, config["rope_theta"], head_dim):
        config["rope_scaling"] = scaling
    return architectures.explicit(config, gguf.error)


def _rope_scaling(gguf: GgufFile, arch: str, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the scaling of rotary positions, in Hugging Face's terms.

    llama.cpp keeps the divisors of Llama 3's frequencies and drops the settings behind them. All
    models of Llama 3.1 and later share three of these; the fourth is the largest divisor.
    """
    kind = gguf.metadata.get(arch + "rope.scaling.type", str, "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": gguf.metadata.real(arch + "rope.scaling.factor")}
    if kind != "none":
        raise gguf.error(f"rope scaling {kind} is not supported, only linear and Llama 3's")
    if ROPE_FACTORS not in gguf.tensors:
        return None
    unknown = gguf.error(f"{ROPE_FACTORS} is not the rope scaling of Llama 3, the only one known")
    if gguf.tensors[ROPE_FACTORS].shape != (head_dim // 2,):
        raise unknown
    low, high, length = 1.0, 4.0, 8192
    divisors = np.array(gguf.tensors[ROPE_FACTORS].read())
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
    return architectures.renamed(target, OUTER, "blk", GEMMA_LAYER if gemma else LAYER)


class GgufLayout(Layout):
    """A GGUF file, for the check at the end."""

    def name(self, name: str) -> str:
        return _name(name, self.gemma)

    def source(self, name: str) -> Any:
        tensor = super().source(name)
        return tensor - 1 if self.gemma and "norm" in name else tensor


def _steps(gguf: GgufFile, config: Mapping[str, Any]) -> list[Step]:
    """Return where each tensor of the model comes from, in order."""
    kind = config["model_type"]
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    # A broken count of layers must not become a list of billions of names.
    count = min(config["num_hidden_layers"], len(gguf.tensors) + 1)
    steps = []
    for target, shape in architectures.tensors({**config, "num_hidden_layers": count}).items():
        source = _name(target, kind == "gemma3_text")
        name = source.split(".")[-2]
        change: Split | None = None
        if kind == "llama" and name in heads:
            change = partial(_halves, heads[name])
        elif kind == "gemma3_text" and name.endswith("norm"):
            change = lambda array: (array - 1,)  # noqa: E731  llama.cpp has added one
        steps.append(Step(source, shape, {target: shape}, change))
    return steps


def _halves(heads: int, array: mx.array) -> Sequence[mx.array]:
    """Order rows of Q or K for mlx-lm, which rotates halves of a head; llama.cpp rotates pairs."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return (pairs.swapaxes(1, 2).reshape(array.shape),)


@command.converter(command.storage_options("float16"), command.check_option)
def main(source: Path, out: Path, **options: Any) -> Proof:
    """Convert the GGUF file SOURCE to the model directory OUT."""
    return convert(source, out, **options)


if __name__ == "__main__":
    main()
