"""Tiny random models of every architecture that the installed mlx-lm has.

A configuration is made from the fields of the architecture's own ``ModelArgs``: ``SIZES`` by the
name of the field, a value of its type where the name is unknown, and ``SPECIAL`` where that is
not enough. Windows are shorter than what is read, and soft caps, sinks, partial rotary positions,
biases and shared or differing layers are switched on, since a walk proves only what is there.
"""

import ast
import dataclasses
import importlib
import json
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_flatten
from tiny import VOCABULARY, byte_tokenizer

WINDOW = 20  # tokens; a verified context is longer, and a reference twice as long
LAYERS = 4

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MIXED = [SLIDING, FULL, SLIDING, FULL]
HYBRID = [LINEAR, FULL, LINEAR, FULL]
YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LONG = {
    "rope_type": "longrope",
    "type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 1.1, 1.3, 2.0],
    "original_max_position_embeddings": 512,
}
ROPE_BY_KIND = {
    FULL: {"rope_theta": 50000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_theta": 10000.0},
}


def _named(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES = {
    **_named(64, "hidden_size dim d_model n_embd model_dim hidden_dim block_dim dim_model_base"),
    **_named(
        LAYERS,
        "num_hidden_layers n_layers n_layer num_layers num_transformer_layers moe_num_layers",
    ),
    **_named(
        64,
        "intermediate_size mlp_hidden_size ffn_hidden_size ff_intermediate_size d_ff n_inner "
        "block_ff_dim intermediate_size_mlp shared_intermediate_size dense_intermediate_size",
    ),
    **_named(
        32,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size share_expert_dim moe_hidden_size",
    ),
    **_named(4, "num_attention_heads n_heads n_head num_heads index_n_heads linear_num_heads"),
    **_named(2, "num_key_value_heads n_kv_heads num_kv_heads num_query_groups"),
    **_named(2, "num_attention_groups n_shared_head swa_num_key_value_heads"),
    **_named(16, "head_dim kv_channels hidden_size_per_head index_head_dim swa_head_dim"),
    **_named(16, "q_lora_rank kv_lora_rank qk_nope_head_dim v_head_dim o_lora_rank swa_v_head_dim"),
    **_named(8, "qk_rope_head_dim rotary_dim"),
    **_named(VOCABULARY, "vocab_size num_vocab"),
    **_named(
        2048,
        "max_position_embeddings n_ctx n_positions max_seq_len max_sequence_length block_size "
        "model_max_length original_max_position_embeddings",
    ),
    **_named(
        1e-5,
        "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon layernorm_epsilon",
    ),
    **_named(10000.0, "rope_theta rope_local_base_freq swa_rope_theta"),
    **_named(0.5, "partial_rotary_factor rotary_pct"),
    **_named(True, "tie_word_embeddings attention_bias qkv_bias use_qkv_bias use_qk_norm"),
    **_named(True, "qk_norm qk_layernorm use_sliding_window mla_scale_q_lora mla_scale_kv_lora"),
    **_named(
        4, "num_experts num_local_experts n_routed_experts moe_num_experts attn_temperature_tuning"
    ),
    **_named(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts"),
    **_named(
        1,
        "n_shared_experts num_shared_experts num_shared_expert first_k_dense_replace "
        "moe_layer_freq decoder_sparse_step interleave_moe_layer_step n_group topk_group "
        "num_expert_group n_groups mamba_n_groups num_dense_layers",
    ),
    **_named(True, "norm_topk_prob"),
    **_named(1.0, "routed_scaling_factor"),
    **_named("sigmoid", "scoring_func"),
    **_named("noaux_tc", "topk_method"),
    **_named(
        WINDOW, "sliding_window sliding_window_size window_size attention_window_size chunk_size"
    ),
    **_named(WINDOW, "attention_chunk_size loop_window_size"),
    **_named(2, "sliding_window_pattern full_attention_interval layer_group_size"),
    **_named(5.0, "attn_logit_softcapping final_logit_softcapping logits_soft_cap"),
    **_named(16, "state_size ssm_state_size d_state mamba_d_state mamba_head_dim mamba_d_head"),
    **_named(4, "conv_kernel d_conv mamba_d_conv conv1d_width mamba_num_heads mamba_n_heads"),
    **_named(4, "linear_conv_kernel_dim linear_num_value_heads linear_num_key_heads"),
    **_named(16, "linear_key_head_dim linear_value_head_dim"),
    **_named(3, "conv_L_cache short_conv_kernel_size"),
    **_named(False, "mamba_proj_bias"),
    **_named(True, "mamba_conv_bias"),
    **_named("silu", "hidden_act hidden_activation"),
    **_named([], "mlp_only_layers"),
    **_named(None, "rope_scaling"),
    **_named({"rope_theta": 10000.0}, "rope_parameters"),
}

_LINEAR_ATTENTION = {
    "num_heads": 4,
    "head_dim": 16,
    "kda_layers": [1, 3],
    "full_attn_layers": [2, 4],
    "short_conv_kernel_size": 4,
}
_GEMMA3N = {
    "layer_types": MIXED,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
_GEMMA4 = {
    "layer_types": MIXED,
    "num_hidden_layers": LAYERS,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "rope_parameters": ROPE_BY_KIND,
}
_LFM2 = {
    "layer_types": ["conv", FULL, "conv", FULL],
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
_DYNAMIC = {"type": "dynamic", "alpha": 100.0, "factor": 1.0}
_BLOCK = {
    "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
    "ffn": {"ffn_mult": 1.0, "no_op": False, "replace_with_linear": False},
}
# Changes by architecture; those of a wrapper are of its text_config.
SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": MIXED},
    "baichuan_m1": {
        "sliding_window_layers": [0, 2],
        "conv_window": 2,
        "num_swa_attention_heads": 2,
        "num_swa_key_value_heads": 1,
        "tie_word_embeddings": False,
    },
    "bailing_moe_v3": {"kda_safe_gate": True, "n_group": 1, "topk_group": 1},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": YARN},
    "deepseek_v3": {"rope_scaling": YARN},
    "deepseek_v41": {
        "qk_rope_head_dim": 8,
        "o_groups": 2,
        "hc_mult": 2,
        "compress_ratios": [0, 4, 0, 4],
        "kv_source_layer_ids": [1],
        "index_source_layer_ids": [1],
    },
    "exaone4": {"sliding_window_pattern": "LG", "layer_types": MIXED},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gear": {"layer_types": ["conv_mixer", FULL, SLIDING, FULL], "query_pre_attn_scalar": 16},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gemma3n": _GEMMA3N,
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "glm_moe_dsa": {"index_topk": 512},
    "gpt_oss": {"layer_types": MIXED, "rope_scaling": YARN},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "attention_multiplier": 0.25,
        "mamba_n_heads": 8,
        "mamba_expand": 2,
    },
    "hunyuan": {"rope_scaling": _DYNAMIC, "use_cla": True, "cla_share_factor": 2},
    "hunyuan_v1_dense": {"rope_scaling": _DYNAMIC},
    "internlm3": {"bias": True},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_expand": 2,
    },
    "kimi_k3": {
        "linear_attn_config": _LINEAR_ATTENTION,
        "hidden_act": "situ",
        "activation_situ_beta": 1.0,
        "activation_situ_linear_beta": 4.0,
    },
    "kimi_linear": {"linear_attn_config": _LINEAR_ATTENTION},
    "laguna": {
        "layer_types": [FULL, SLIDING, FULL, SLIDING],
        "num_attention_heads_per_layer": [4, 2, 4, 2],
    },
    "lfm2": _LFM2,
    "lfm2-vl": _LFM2,
    "lfm2_moe": _LFM2,
    "llama": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "layer_types": MIXED,
    },
    "llama4": {"num_experts_per_tok": 1, "attn_temperature_tuning": True},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": {"attention_method": "MLA", "zero_expert_type": "identity"},
    "longcat_flash_ngram": {"ngram_vocab_size_ratio": 2, "hidden_size": 96},
    "mamba": {"use_conv_bias": True, "time_step_rank": 4},
    "mamba2": {"time_step_limit": [0.0, 100.0], "num_heads": 8, "intermediate_size": 128},
    "mellum": {"layer_types": MIXED, "rope_parameters": ROPE_BY_KIND},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 1,
        "v_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "minicpm": {"tie_word_embeddings": False},
    "minicpm3": {"rope_scaling": LONG},
    "minimax_m3_vl": {"moe_layer_freq": [0, 1, 1, 1]},
    "ministral3": {
        "layer_types": MIXED,
        "rope_parameters": {**YARN, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1},
    },
    "mistral4": {"rope_parameters": {**YARN, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1}},
    "muse_glimmer": {"layer_types": MIXED, "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0]},
    "muse_spark": {
        "layer_types": MIXED,
        "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0],
        "num_shared_experts": 0,
    },
    "nanbeige": {"num_loops": 1},
    "nemotron-nas": {"block_configs": [_BLOCK] * LAYERS},
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "-", "*", "E"]},
    "olmo3": {"layer_types": MIXED},
    "olmo_hybrid": {"layer_types": HYBRID},
    "openelm": {
        "num_query_heads": [4, 4, 4, 8],
        "num_kv_heads": [2, 2, 2, 4],
        "ffn_multipliers": [1.0] * LAYERS,
        "ffn_dim_divisor": 16,
    },
    "phi3": {"partial_rotary_factor": 0.5, "rope_scaling": LONG},
    # it writes logits of tokens up to 100351, beyond a smaller array
    "phi3small": {"dense_attention_every_n_layers": 2, "vocab_size": 100352},
    "phimoe": {
        "rope_scaling": {
            **LONG,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.6, 2.0, 3.0],
            "short_mscale": 1.0,
            "long_mscale": 1.0,
        },
    },
    "plamo2": {"full_attention_idx": [3], "mamba_step": 2, "mamba_chunk_size": 16},
    "prism_hadamard_qwen35": {
        "hidden_size": 128,
        "num_experts": 0,
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": f"model.layers.{layer}.mlp.gate_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 0,
            }
            for layer in range(LAYERS)
        ],
    },
    "qwen2": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen3": {"rope_scaling": YARN},
    "qwen3_5": {"num_experts": 0},
    "qwen3_vl_moe": {"tie_word_embeddings": False},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "spark2_5": {"layer_types": MIXED, "rope_parameters": ROPE_BY_KIND, "hidden_act": "gelu"},
    "step3p5": {
        "layer_types": MIXED,
        "partial_rotary_factors": [1.0, 0.5, 1.0, 0.5],
        "attention_other_setting": {"num_attention_heads": 8, "num_attention_groups": 4},
        "moe_layers_enum": "1,2,3",
    },
}


def names() -> list[str]:
    """Names of mlx-lm's modules that define an architecture, imported or not."""
    found = []
    for module in pkgutil.iter_modules(mlx_lm.models.__path__):
        spec = find_spec(f"{mlx_lm.models.__name__}.{module.name}")
        tree = ast.parse(Path(str(spec and spec.origin)).read_text("utf-8"))
        defined = {getattr(node, "name", "") for node in tree.body}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        if {"Model", "ModelArgs"} <= defined:
            found.append(module.name)
    return sorted(found)


def config_of(name: str) -> dict[str, Any]:
    """Return a configuration of a tiny model, as its config.json would have it."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    special = SPECIAL.get(name, {})
    fields = {field.name for field in dataclasses.fields(module.ModelArgs)}
    config = {
        "model_type": name,
        "vocab_size": special.get("vocab_size", VOCABULARY),
        "eos_token_id": VOCABULARY - 1,
    }
    if "text_config" in fields:
        inner = {key: value for key, value in special.items() if key not in fields}
        text = _fill(_text_arguments(module), inner)
        text["model_type"] = text["model_type"] or name
        return {**config, **{k: special[k] for k in fields & {*special}}, "text_config": text}
    return {**_fill(module.ModelArgs, special), **config}


def save(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a tiny random model in the layout that mlx-lm loads.

    Where the module cannot be imported, only its configuration is written.
    """
    byte_tokenizer(folder)
    try:
        module = importlib.import_module(f"mlx_lm.models.{name}")
    except (ImportError, SystemExit):
        (folder / "config.json").write_text(json.dumps({"model_type": name, **SIZES}))
        mx.save_safetensors(str(folder / "model.safetensors"), {"none": mx.zeros(1)})
        return folder
    config = config_of(name)
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    weights = {key: _random(key, old) for key, old in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _random(name: str, old: mx.array) -> mx.array:
    if not mx.issubdtype(old.dtype, mx.floating):
        return old
    if old.ndim == 1:
        return (old + 0.1 * mx.random.normal(old.shape)).astype(mx.float32)
    scale = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
    return scale * 0.15 * mx.random.normal(old.shape)


def _text_arguments(module: ModuleType) -> type:
    """Find the dataclass of a wrapper's text_config, its own or that of a module it imports."""
    things = [thing for name, thing in vars(module).items() if name != "ModelArgs"]
    owners = [importlib.import_module(c.__module__) for c in things if isinstance(c, type)]
    inner = [vars(module) for module in [*things, *owners] if isinstance(module, ModuleType)]
    for found in [*things, *(thing for names in inner for thing in names.values())]:
        if dataclasses.is_dataclass(found) and isinstance(found, type):
            names = {field.name for field in dataclasses.fields(found)}
            if {"hidden_size", "num_hidden_layers"} <= names:
                return found
    raise LookupError(f"{module.__name__}: its text_config is unknown")


def _fill(arguments: Any, special: dict[str, Any]) -> dict[str, Any]:
    """Return values for the fields of a dataclass."""
    filled: dict[str, Any] = {"model_type": ""}
    for field in dataclasses.fields(arguments):
        required = field.default is field.default_factory is dataclasses.MISSING
        known = special if field.name in special else SIZES
        if field.name in known:
            filled[field.name] = known[field.name]
        elif required:
            filled[field.name] = _some(str(field.type))
    return {**filled, **special}


def _some(kind: str) -> Any:
    """Return a value of a type, given by its text."""
    values = {"Optional": None, "bool": False, "int": 4, "float": 1.0, "ict": {}, "ist": []}
    return next((value for part, value in values.items() if part in kind), "")
