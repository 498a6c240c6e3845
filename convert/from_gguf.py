"""GGUF files to model directories that mlx-lm loads: weights, settings, tokenizer.

Names are exact: each tensor of the file is used once, each tensor of the model is filled once,
or nothing is written and both left-overs are named.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlx.core as mx
import numpy as np

from m3mlx.errors import ConvertError

from .gguf_file import GgufFile
from .gguf_tokenizer import read_tokenizer

SHARD_BYTES = 2 * 10**9
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)

# Tensors outside the layers, and their shapes in the letters of `_sizes`.
OUTER = {
    "token_embd.weight": ("model.embed_tokens.weight", "vd"),
    "output_norm.weight": ("model.norm.weight", "d"),
}
HEAD = {"output.weight": ("lm_head.weight", "vd")}
# Tensors of layer N, between "blk.N." and "model.layers.N.".
LAYER = {
    "attn_norm.weight": ("input_layernorm.weight", "d"),
    "attn_q.weight": ("self_attn.q_proj.weight", "qd"),
    "attn_k.weight": ("self_attn.k_proj.weight", "kd"),
    "attn_v.weight": ("self_attn.v_proj.weight", "kd"),
    "attn_output.weight": ("self_attn.o_proj.weight", "dq"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "d"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "fd"),
    "ffn_up.weight": ("mlp.up_proj.weight", "fd"),
    "ffn_down.weight": ("mlp.down_proj.weight", "df"),
}
QKV_BIAS = {
    "attn_q.bias": ("self_attn.q_proj.bias", "q"),
    "attn_k.bias": ("self_attn.k_proj.bias", "k"),
    "attn_v.bias": ("self_attn.v_proj.bias", "k"),
}
OUTPUT_BIAS = {"attn_output.bias": ("self_attn.o_proj.bias", "d")}
MLP_BIAS = {
    "ffn_gate.bias": ("mlp.gate_proj.bias", "f"),
    "ffn_up.bias": ("mlp.up_proj.bias", "f"),
    "ffn_down.bias": ("mlp.down_proj.bias", "d"),
}
ROPE_FACTORS = "rope_freqs.weight"  # becomes a setting, not a weight

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Settings behind "ARCHITECTURE." that are used, or that change nothing. Any other may mean
# arithmetic that is not done here, so it is refused.
SETTINGS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
}

Progress = Callable[[int, int], None]


class Target(NamedTuple):
    """One tensor of the model to be written."""

    source: str  # name in the GGUF file
    name: str  # name in mlx-lm's model
    shape: tuple[int, ...]
    heads: int  # heads whose rotary halves llama.cpp interleaved, or 0


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "float16",
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    progress: Progress | None = None,
) -> None:
    """Convert a GGUF file to a model directory.

    Args:
        source: the GGUF file; architecture llama or qwen2.
        out: folder to make. It appears only when everything in it is written.
        dtype: of the weights: "float16", "bfloat16" or "float32".
        quantize: whether matrices are quantized again, with MLX's affine groups.
        q_bits, q_group_size: bits per weight and weights per group, when quantizing.
        progress: called with bytes of the source converted so far and in all.

    Raises:
        ConvertError: the file is broken, or of a kind that is not supported, or OUT exists.
    """
    source, out = Path(source), Path(out)
    if dtype not in DTYPES:
        raise ConvertError(f"dtype {dtype} is not one of {', '.join(DTYPES)}.")
    if quantize and (q_bits not in QUANTIZED_BITS or q_group_size not in GROUP_SIZES):
        raise ConvertError(
            f"{q_bits} bits in groups of {q_group_size} are not possible: "
            f"bits are one of {QUANTIZED_BITS}, group sizes one of {GROUP_SIZES}."
        )
    if out.exists():
        raise ConvertError(f"{out} exists already. Remove it, or name another folder.")

    gguf = GgufFile(source)
    config = _config(gguf) | {"dtype": dtype}
    targets = _targets(gguf, config)
    tokenizer = read_tokenizer(gguf, config["vocab_size"])
    config |= tokenizer.generation
    if quantize:
        if all(len(t.shape) < 2 or t.shape[-1] % q_group_size for t in targets):
            raise gguf.error(f"no matrix of it divides into groups of {q_group_size}")
        config["quantization"] = {"group_size": q_group_size, "bits": q_bits, "mode": "affine"}

    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        _write_weights(gguf, targets, unfinished, config, progress or (lambda done, total: None))
        tokenizer.fast.save(str(unfinished / "tokenizer.json"))
        _write_json(unfinished / "tokenizer_config.json", tokenizer.config)
        _write_json(unfinished / "generation_config.json", tokenizer.generation)
        _write_json(unfinished / "config.json", config)
        unfinished.rename(out)
    except (OSError, RuntimeError) as error:  # MLX knows RuntimeError only
        raise ConvertError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _config(gguf: GgufFile) -> dict[str, Any]:
    """config.json as Hugging Face writes it, without token ids."""
    architecture = gguf.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise gguf.error(f"architecture {architecture} is not supported, only {known}")
    arch = f"{architecture}."
    settings = {key.removeprefix(arch) for key in gguf.metadata if key.startswith(arch)}
    if unknown := sorted(settings - SETTINGS):
        raise gguf.error(f"the settings {_some(unknown)} are not supported")

    hidden = gguf.count(arch + "embedding_length")
    heads = gguf.count(arch + "attention.head_count")
    head_dim = gguf.count(arch + "attention.key_length", hidden // heads)
    if head_dim % 2:
        raise gguf.error(f"heads of {head_dim} have no two halves to rotate")
    for key in (arch + "attention.value_length", arch + "rope.dimension_count"):
        if gguf.count(key, head_dim) != head_dim:
            raise gguf.error(f"{key} is not the length of a head, {head_dim}")
    config = {
        "model_type": architecture,
        "architectures": [ARCHITECTURES[architecture]],
        "hidden_act": "silu",
        "vocab_size": gguf.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "num_hidden_layers": gguf.count(arch + "block_count"),
        "intermediate_size": gguf.count(arch + "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count(arch + "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": gguf.real(arch + "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": gguf.count(arch + "context_length"),
        "rope_theta": gguf.real(arch + "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in gguf.tensors
    elif head_dim * heads != hidden:
        raise gguf.error(f"{heads} heads of {head_dim} do not make up {hidden}, as qwen2 needs")
    scaling = gguf.get(arch + "rope.scaling.type", str, "none")
    if scaling == "linear":
        factor = gguf.real(arch + "rope.scaling.factor")
        config["rope_scaling"] = {"type": "linear", "rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise gguf.error(f"rope scaling {scaling} is not supported, only linear and Llama 3's")
    elif ROPE_FACTORS in gguf.tensors:
        config["rope_scaling"] = _llama3_scaling(gguf, config["rope_theta"], head_dim)
    return config


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


def _targets(gguf: GgufFile, config: Mapping[str, Any]) -> list[Target]:
    """What is to be written, in order, after names, shapes and types have been checked."""
    llama = config["model_type"] == "llama"
    layer = dict(LAYER)
    if not llama or config["attention_bias"]:
        layer |= QKV_BIAS
    if llama and config["attention_bias"]:
        layer |= OUTPUT_BIAS
    if llama and config["mlp_bias"]:
        layer |= MLP_BIAS
    outer = OUTER if config["tie_word_embeddings"] else OUTER | HEAD
    # A broken count of layers must not become a list of billions of names.
    count = min(config["num_hidden_layers"], len(gguf.tensors) + 1)
    table = dict(outer)
    for n in range(count):
        for source, (name, shape) in layer.items():
            table[f"blk.{n}.{source}"] = (f"model.layers.{n}.{name}", shape)

    missing = sorted(table.keys() - gguf.tensors.keys())
    unused = sorted(gguf.tensors.keys() - table.keys() - {ROPE_FACTORS})
    if missing or unused:
        raise gguf.error(
            f"its tensors are not those of this architecture: missing {_some(missing)}; "
            f"left over {_some(unused)}"
        )
    q_heads, k_heads = config["num_attention_heads"], config["num_key_value_heads"]
    sizes = {
        "v": config["vocab_size"],
        "d": config["hidden_size"],
        "f": config["intermediate_size"],
        "q": q_heads * config["head_dim"],
        "k": k_heads * config["head_dim"],
    }
    interleaved = {"attn_q": q_heads, "attn_k": k_heads} if llama else {}
    targets = []
    for source, (name, letters) in table.items():
        shape = tuple(sizes[letter] for letter in letters)
        if gguf.shape(source) != shape:
            raise gguf.error(f"{source} has the shape {gguf.shape(source)} instead of {shape}")
        heads = interleaved.get(source.split(".")[-2], 0)
        targets.append(Target(source, name, shape, heads))
    return targets


def _some(names: list[str]) -> str:
    """A list for a message that stays on one line."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "none") + more


def _write_weights(
    gguf: GgufFile,
    targets: list[Target],
    folder: Path,
    config: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write safetensors, holding one file's worth of weights at a time."""
    shards: list[list[Target]] = [[]]
    size = 0
    for target in targets:
        nbytes = math.prod(target.shape) * DTYPES[config["dtype"]].size  # less when quantized
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(target)
        size += nbytes

    total = sum(int(gguf.tensors[target.source].n_bytes) for target in targets)
    done, written = 0, 0
    files: dict[str, str] = {}
    progress(done, total)
    for number, shard in enumerate(shards, 1):
        arrays: dict[str, mx.array] = {}
        for target in shard:
            arrays |= _arrays(gguf, target, config)
            done += int(gguf.tensors[target.source].n_bytes)
            progress(done, total)
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        mx.save_safetensors(str(folder / file), arrays, {"format": "mlx"})
        files |= dict.fromkeys(arrays, file)
        written += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": files}
        _write_json(folder / "model.safetensors.index.json", index)


def _arrays(gguf: GgufFile, target: Target, config: Mapping[str, Any]) -> dict[str, mx.array]:
    """The one array of a target, or its three when it is quantized."""
    values = gguf.array(target.source)
    if target.heads:
        # llama.cpp rotates neighbouring rows of a head, mlx-lm its two halves.
        pairs = values.reshape(target.heads, -1, 2, *values.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    dtype = DTYPES[config["dtype"]]
    if not max(values.max(), -values.min()) <= mx.finfo(dtype).max:  # nor is NaN
        raise gguf.error(
            f"{target.source} holds NaN or values that {config['dtype']} cannot hold. "
            f"Try --dtype float32, or fetch the file again"
        )
    if dtype == mx.float16:  # much faster in NumPy than in MLX without a GPU
        values = values.astype(np.float16)
    array = mx.array(values).astype(dtype)
    mx.eval(array)  # so that the float32 values can go
    quantization = config.get("quantization")
    if not quantization or array.ndim < 2 or array.shape[-1] % quantization["group_size"]:
        return {target.name: array}
    stem = target.name.removesuffix(".weight")
    names = (f"{stem}.weight", f"{stem}.scales", f"{stem}.biases")
    return dict(zip(names, mx.quantize(array, **quantization), strict=True))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-q", "--quantize", is_flag=True, help="Quantize matrices again, for MLX.")
@click.option("--q-bits", type=click.Choice(QUANTIZED_BITS), default=4, show_default=True)
@click.option("--q-group-size", type=click.Choice(GROUP_SIZES), default=64, show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float16", show_default=True)
def main(source: Path, out: Path, **options: Any) -> None:
    """Convert the GGUF file SOURCE to the model directory OUT."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    try:
        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"Converting {source.name}", total=None)
            convert(
                source,
                out,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                **options,
            )
    except ConvertError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(out)


if __name__ == "__main__":
    main()
