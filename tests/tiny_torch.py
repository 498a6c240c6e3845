"""Tiny checkpoints in the layouts of PyTorch's world, made without the converter's code."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import deserialize
from safetensors.numpy import load_file, save_file
from tiny import VOCABULARY, save_model

PAPER = {  # full width, one or few layers
    "2.4B": {"hidden_size": 3200, "num_attention_heads": 40, "head_dim": 80},
    "0.92B": {"hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64},
}


def numpy_weights(folder: Path) -> dict[str, np.ndarray]:
    """Weights of a folder in float32 or float16."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def fused(
    weights: dict[str, np.ndarray], config: dict, core: bool = False
) -> dict[str, np.ndarray]:
    """Megatron's tensors of a llama: rows of Q, K and V taken one by one into their places."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    d = config["head_dim"]
    names = {
        "model.embed_tokens.weight": "language_model.embedding.word_embeddings.weight",
        "model.norm.weight": "language_model.encoder.final_layernorm.weight",
        "lm_head.weight": "language_model.output_layer.weight",
    }
    layer = {
        "input_layernorm.weight": "input_layernorm.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
        "self_attn.o_proj.weight": "self_attention.dense.weight",
        "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
    }
    qkv, gate = "self_attention.query_key_value.weight", "mlp.dense_h_to_4h.weight"
    start = "language_model.encoder.layers"
    if core:
        names = {
            "model.embed_tokens.weight": "embedding.word_embeddings.weight",
            "model.norm.weight": "decoder.final_layernorm.weight",
            "lm_head.weight": "output_layer.weight",
        }
        layer = {
            "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
            "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
            "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
            "mlp.down_proj.weight": "mlp.linear_fc2.weight",
        }
        qkv, gate = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
        start = "decoder.layers"
    made = {new: weights[old] for old, new in names.items() if old in weights}
    for n in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{n}.", f"{start}.{n}."
        made |= {theirs + new: weights[ours + old] for old, new in layer.items()}
        q, k, v = (weights[f"{ours}self_attn.{p}_proj.weight"] for p in "qkv")
        rows = []
        for group in range(groups):
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                rows += list(q[head * d : (head + 1) * d])
            rows += list(k[group * d : (group + 1) * d])
            rows += list(v[group * d : (group + 1) * d])
        made[theirs + qkv] = np.stack(rows)
        parts = [weights[f"{ours}mlp.{p}_proj.weight"] for p in ("gate", "up")]
        made[theirs + gate] = np.concatenate(parts)
    return made


def megatron(folder: Path, core: bool = False, **changes) -> tuple[Path, Path]:
    """The same llama as a Hugging Face folder and as a folder with Megatron's names."""
    original = save_model(folder / "hf", tie_word_embeddings=False, **changes)
    config = json.loads((original / "config.json").read_text())
    out = folder / "megatron"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(fused(numpy_weights(original), config, core), out / "model.safetensors")
    return original, out


def shards(folder: Path, parts: int = 3) -> None:
    """Split the one file of a folder into shards with an index."""
    weights = numpy_weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for n in range(parts):
        file = f"model-{n + 1:05d}-of-{parts:05d}.safetensors"
        part = {name: weights[name] for name in names[n::parts]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def tokens(length: int = 40) -> list[int]:
    return [(7 * n + 3) % VOCABULARY for n in range(length)]


def logits(model, length: int = 40) -> np.ndarray:
    return np.array(model(mx.array([tokens(length)]))[0].astype(mx.float32))


def raw(folder: Path) -> dict[str, tuple]:
    """Type, shape and bytes of every tensor of a folder."""
    return {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in deserialize(file.read_bytes())
    }
