"""Tiny random models of every verified family, and a byte tokenizer with a chat template."""

import importlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from m3mlx.models.decoder import geometry_of

TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|s|>You help.<|e|>"
    "{% endif %}<|{{ m.role[0] }}|>{{ m.content }}<|e|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
TOOLS = (  # mlx-lm chooses its parser by the name and the mark
    "{% if tools %}<|s|>Tools: {{ tools | tojson }}, called by <tool_call>, as {{ '' }}"
    "tool_call.name is.<|e|>{% endif %}"
)
SPECIAL = ["<|s|>", "<|u|>", "<|a|>", "<|e|>"]
VOCABULARY = 256 + len(SPECIAL)
THINKING = (  # as Qwen3's: without thoughts, the template writes an empty one
    "{% if add_generation_prompt %}<|a|>{% if not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)

COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "smollm3": {"no_rope_layer_interval": 4},
    # every layer but the second and fourth has a sliding window
    "gemma3_text": {
        "sliding_window": 512,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000.0,
    },
}


# Attention by other names, fused, without positions, or around experts.
OTHERS = {
    "gpt2": {
        **{"n_ctx": 2048, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 2048},
        "layer_norm_epsilon": 1e-5,
    },
    "gpt_neox": {"rotary_pct": 0.5, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000},
    "exaone": {"num_layers": 4, "layer_norm_epsilon": 1e-5},
    "cohere2": {"sliding_window": 512, "sliding_window_pattern": 2},
}
# Some layers keep a recurrent or convolutional state.
HYBRIDS = {
    "lfm2": {
        **{"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 64},
        **{"block_ff_dim": 64, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0},
        **{"block_auto_adjust_ff_dim": False, "full_attn_idxs": [1, 3]},
    },
    "qwen3_next": {
        **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "num_experts": 4},
        **{"num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": []},
        **{"shared_expert_intermediate_size": 32, "moe_intermediate_size": 32},
        **{"partial_rotary_factor": 0.5, "full_attention_interval": 2},
    },
    "granitemoehybrid": {
        **{"layer_types": ["mamba", "attention"] * 2, "embedding_multiplier": 1.0},
        **{"attention_multiplier": 0.25, "logits_scaling": 1.0, "residual_multiplier": 1.0},
        **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_conv": 4},
        **{"mamba_n_groups": 1, "mamba_proj_bias": False, "mamba_conv_bias": True},
        **{"mamba_expand": 2, "attention_bias": False, "position_embedding_type": "rope"},
        **{"shared_intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    },
    "nemotron_h": {
        **{"hybrid_override_pattern": "M*-*", "mamba_num_heads": 4, "mamba_head_dim": 16},
        **{"ssm_state_size": 16, "conv_kernel": 4, "n_groups": 2, "time_step_limit": [0.0, 100.0]},
        **{"attention_bias": False, "mamba_proj_bias": False, "mlp_bias": False},
        **{"use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5},
        "mlp_hidden_act": "relu2",
    },
}
_EXPERTS = {
    **{"moe_intermediate_size": 32, "n_shared_experts": 1, "n_routed_experts": 4},
    **{"num_experts_per_tok": 2, "routed_scaling_factor": 1.0, "topk_method": "noaux_tc"},
    **{"scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 1, "topk_group": 1},
}
_LATENT = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16}
# Layers that differ, and keys that differ from values: windows, shared keys, chunks, two caches in
# a layer, latent attention.
DIFFERING = {
    "gemma4_text": {
        **{"global_head_dim": 32, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
        **{"vocab_size_per_layer_input": VOCABULARY, "sliding_window": 20},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_theta": 50000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_theta": 10000.0},
        },
    },
    "mimo_v2_flash": {
        **{"hybrid_layer_pattern": [0, 1, 0, 1], "moe_layer_freq": [0, 0, 0, 1], **_EXPERTS},
        **{"add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False},
        **{"sliding_window_size": 20, "swa_rope_theta": 10000.0, "swa_num_attention_heads": 4},
        **{"swa_num_key_value_heads": 1, "v_head_dim": 8, "swa_head_dim": 16, "swa_v_head_dim": 8},
        **{"layernorm_epsilon": 1e-5, "partial_rotary_factor": 0.5},
    },
    "llama4": {
        **{"attention_bias": False, "attention_chunk_size": 20, "interleave_moe_layer_step": 4},
        **{"intermediate_size_mlp": 64, "num_experts_per_tok": 1, "num_local_experts": 2},
        **{"rope_scaling": None, "use_qk_norm": True, "attn_temperature_tuning": True},
    },
    "falcon_h1": {
        **{"mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_n_heads": 4},
        **{"mamba_d_conv": 4, "mamba_n_groups": 1, "rope_scaling": None},
    },
    "deepseek_v3": {**_EXPERTS, **_LATENT, "q_lora_rank": 16, "first_k_dense_replace": 3},
    "kimi_linear": {
        **{**_EXPERTS, "num_experts": 4, "num_experts_per_token": 2, "num_shared_experts": 1},
        **{**_LATENT, "first_k_dense_replace": 4, "model_max_length": 2048, "rope_scaling": None},
        "linear_attn_config": {
            **{"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4},
            **{"kda_layers": [1, 3], "full_attn_layers": [2, 4]},
        },
    },
}
WRAPPED = ("llama4",)  # whose settings are in a text_config
# One of each kind of layers; with windows, shared keys, states and latent attention in the first.
KINDS = ["gemma4_text", "kimi_linear"]
KINDS += [
    pytest.param(family, marks=pytest.mark.slow)
    for family in [*HYBRIDS, *DIFFERING]
    if family not in KINDS
]


def tiny_config(family: str, **changes) -> dict:
    special = {**FAMILIES, **OTHERS, **HYBRIDS, **DIFFERING}[family]
    config = {"model_type": family, **COMMON, **special, **changes}
    if family in WRAPPED:
        return {"model_type": family, "text_config": {**config, "model_type": f"{family}_text"}}
    return config


def tiny_model(family: str = "llama", seed: int = 0, **changes):
    """A random float32 model of mlx-lm whose attention is far from uniform."""
    config = tiny_config(family, **changes)
    name = {"mistral": "llama"}.get(family, family)
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    if hasattr(model, "sanitize"):
        given = dict(tree_flatten(model.parameters()))
        if config.get("tie_word_embeddings"):
            given.pop("lm_head.weight", None)  # gemma3 drops its output layer then
        model.sanitize(given)
    scale = {"q_proj": 1.5, "k_proj": 1.5}
    weights = [
        (name, mx.random.normal(w.shape) * 0.15 * scale.get(name.split(".")[-2], 1.0))
        if w.ndim > 1
        else (name, w + 0.1 * mx.random.normal(w.shape))
        for name, w in tree_flatten(model.parameters())
    ]
    model.load_weights(weights, strict=False)
    model.update(tree_map(lambda x: x.astype(mx.float32), model.parameters()))
    mx.eval(model.parameters())
    geometry_of(model)
    return model


def byte_tokenizer(folder: Path) -> Path:
    """Write tokenizer files: one token for each byte, and the special tokens of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|e|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def add_thinking(folder: Path, prompt: str = THINKING, *marks: str) -> Path:
    """Make the model of a folder a thinking one.

    Args:
        prompt: end of the template.
        marks: tokens to add, <think> and </think> if none are named; a token of the vocabulary
            more for each.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark) for mark in marks or ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE[: TEMPLATE.rindex("{% if add")] + prompt
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def add_tools(folder: Path) -> Path:
    """Give the model of a folder a chat template that shows tools and their calls, as Qwen's."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = TOOLS + TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_model(folder: Path, family: str = "llama", seed: int = 0, **changes) -> Path:
    """Write a tiny model directory in the layout that mlx-lm loads."""
    byte_tokenizer(folder)
    model = tiny_model(family, seed, **changes)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        metadata={"format": "mlx"},
    )
    config = tiny_config(family, eos_token_id=VOCABULARY - 1, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_adapter(folder: Path, seed: int = 0) -> Path:
    """Random LoRA layers for the queries of a tiny llama."""
    model = tiny_model("llama")
    settings = {"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    model.freeze()
    linear_to_lora_layers(model, 4, settings)
    rng = np.random.default_rng(seed)
    weights = {
        name: mx.array(rng.normal(size=array.shape).astype(np.float16))
        for name, array in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """A random BERT that knows single letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789.,?"]
    words += [f"##{word}" for word in words[4:]]
    width = 32
    config = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
    }
    layer = "encoder.layer.0"
    dense = ["attention.self.query", "attention.self.key", "attention.self.value"]
    dense += ["attention.output.dense", "intermediate.dense", "output.dense"]
    norms = ["embeddings.LayerNorm"]
    norms += [f"{layer}.{part}.LayerNorm" for part in ("attention.output", "output")]
    shapes = {
        "embeddings.word_embeddings.weight": (len(words), width),
        "embeddings.position_embeddings.weight": (64, width),
        "embeddings.token_type_embeddings.weight": (1, width),
        **{f"{layer}.{part}.weight": (width, width) for part in dense},
        **{f"{layer}.{part}.bias": (width,) for part in dense},
        **{f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")},
    }
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {k: mx.array(rng.normal(0, 0.4, s).astype(np.float32)) for k, s in shapes.items()},
    )
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
