"""Names and fused matrices of Megatron's language models with rotary positions.

The three matrices of attention are one, ordered by KV group: the group's query heads, its key head,
its value head. The gate and up matrices of the MLP are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from . import architectures
from .writer import Split, Step

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
# Hugging Face's names, and Megatron's; those of a layer follow the layer's number.
OUTER = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm": "encoder.final_layernorm",
    "lm_head": "output_layer",
}
LAYER = {
    "self_attn.q_proj": "self_attention.query_key_value",
    "self_attn.k_proj": "self_attention.query_key_value",
    "self_attn.v_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_proj": "mlp.dense_h_to_4h",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
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
    """Return the steps from Megatron's tensors to those of a model, which have these shapes."""
    groups, head = config["num_key_value_heads"], config["head_dim"]
    queries = config["num_attention_heads"] // groups

    def attention(fused: mx.array) -> Sequence[mx.array]:
        by_group = fused.reshape(groups, queries + 2, head, *fused.shape[1:])
        parts = mx.split(by_group, [queries, queries + 1], axis=1)
        return [part.reshape(-1, *fused.shape[1:]) for part in parts]

    splits: dict[str, Split] = {
        "query_key_value": attention,
        "dense_h_to_4h": lambda stacked: list(mx.split(stacked, 2)),
    }
    targets: dict[str, dict[str, tuple[int, ...]]] = {}  # what each source becomes
    for target, shape in shapes.items():
        source = architectures.renamed(target, OUTER, "encoder.layers", LAYER)
        targets.setdefault(source, {})[target] = shape
    made = []
    for source, parts in targets.items():
        columns = next(iter(parts.values()))[1:]
        whole = (sum(shape[0] for shape in parts.values()), *columns)
        made.append(Step(source, whole, parts, splits.get(source.split(".")[-2])))
    return made
