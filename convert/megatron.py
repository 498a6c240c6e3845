"""Names and fused matrices of Megatron's language models with rotary positions.

The three matrices of attention are one, ordered by KV group: the group's query heads, its key head,
its value head. The gate and up matrices of the MLP are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from .writer import Step

# Older and newer spellings, each to the one in the tables below.
SPELLINGS = (
    (r"^(?:model\.|module\.)*(?:language_model\.)?embedding\.", "embedding."),
    (r"^(?:model\.|module\.)*(?:language_model\.)?(?:encoder|transformer|decoder)\.", "encoder."),
    (r"^(?:model\.|module\.)*(?:language_model\.)?output_layer\.", "output_layer."),
    (r"\.attention\.", ".self_attention."),
    (r"\binput_norm\.", "input_layernorm."),
    (r"\bpost_attention_norm\.|\bpre_mlp_layernorm\.", "post_attention_layernorm."),
    (r"\bfinal_norm\.", "final_layernorm."),
    # Megatron Core
    (r"\.linear_qkv\.layer_norm_weight$", ".input_layernorm.weight"),
    (r"\.linear_fc1\.layer_norm_weight$", ".post_attention_layernorm.weight"),
    (r"\.self_attention\.input_layernorm\.", ".input_layernorm."),
    (r"\.mlp\.post_attention_layernorm\.", ".post_attention_layernorm."),
    (r"\.linear_qkv\.", ".query_key_value."),
    (r"\.linear_proj\.", ".dense."),
    (r"\.linear_fc1\.", ".dense_h_to_4h."),
    (r"\.linear_fc2\.", ".dense_4h_to_h."),
)
OUTER = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "encoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "self_attention.dense.bias": "self_attn.o_proj.bias",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    "mlp.dense_4h_to_h.bias": "mlp.down_proj.bias",
}
FUSED = {
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.dense_h_to_4h": ("mlp.gate_proj", "mlp.up_proj"),
}
# Megatron's arguments, in Hugging Face's terms.
ARGUMENTS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "padded_vocab_size": "vocab_size",
    "rotary_base": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "layernorm_epsilon": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
}


def recognized(names: Iterable[str]) -> dict[str, str]:
    """Return each name in the spelling of these tables, or nothing if they are others'."""
    plain = {name: name for name in names}
    for pattern, spelling in SPELLINGS:
        plain = {name: re.sub(pattern, spelling, new) for name, new in plain.items()}
    return plain if "embedding.word_embeddings.weight" in plain.values() else {}


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Megatron's arguments to config.json's terms."""
    config = {new: settings[old] for old, new in ARGUMENTS.items() if settings.get(old) is not None}
    if not settings.get("group_query_attention", True):
        config["num_key_value_heads"] = config.get("num_attention_heads")
    if "untie_embeddings_and_output_weights" in settings:
        config["tie_word_embeddings"] = not settings["untie_embeddings_and_output_weights"]
    if settings:
        config |= {"model_type": "llama", "rope_theta": config.get("rope_theta", 10000)}
    return config


def steps(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Step]:
    """Return the steps from Megatron's tensors to those of a model.

    Args:
        config: with explicit settings.
        shapes: of every tensor of the model.
    """
    groups = config["num_key_value_heads"]
    queries = config["num_attention_heads"] // groups
    head = config["head_dim"]

    def attention(fused: mx.array) -> Sequence[mx.array]:
        by_group = fused.reshape(groups, queries + 2, head, *fused.shape[1:])
        parts = mx.split(by_group, [queries, queries + 1], axis=1)
        return [part.reshape(-1, *fused.shape[1:]) for part in parts]

    def mlp(stacked: mx.array) -> Sequence[mx.array]:
        return list(mx.split(stacked, 2))

    splits = dict(zip(FUSED, (attention, mlp), strict=True))
    made = []
    for source, target in OUTER.items():
        if target in shapes:
            made.append(Step(source, shapes[target], {target: shapes[target]}))
    for n in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{n}.", f"encoder.layers.{n}."
        for source, target in LAYER.items():
            if shape := shapes.get(ours + target):
                made.append(Step(theirs + source, shape, {ours + target: shape}))
        for source, stems in FUSED.items():
            for kind in ("weight", "bias"):
                names = [f"{ours}{stem}.{kind}" for stem in stems]
                if names[0] in shapes:
                    parts = {name: shapes[name] for name in names}
                    rows = sum(shape[0] for shape in parts.values())
                    whole = (rows, *parts[names[0]][1:])
                    made.append(Step(f"{theirs}{source}.{kind}", whole, parts, splits[source]))
    order = {name: place for place, name in enumerate(shapes)}
    return sorted(made, key=lambda step: min(order[name] for name in step.targets))
