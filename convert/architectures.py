"""The decoder families: settings made explicit, and every tensor with its shape.

mlx-lm names tensors as Hugging Face does. It assumes other defaults and ignores settings that it
does not know, so everything that changes the arithmetic is written out or refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .settings import Error, Settings


class Family(NamedTuple):
    """What Hugging Face assumes where config.json says nothing, and what a layer has."""

    architecture: str
    theta: float = 10000.0
    tied: bool = False
    activation: str = "silu"
    qkv_bias: bool = False
    optional_bias: bool = False  # attention_bias and mlp_bias
    head_norms: bool = False
    four_norms: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM", optional_bias=True),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", head_norms=True),
    "smollm3": Family("SmolLM3ForCausalLM", theta=2e6, tied=True, optional_bias=True),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        theta=1e6,
        tied=True,
        activation="gelu_pytorch_tanh",
        head_norms=True,
        four_norms=True,
    ),
}
ROPE_TYPES = {  # and the settings that each needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

# Between "model.layers.N." and ".weight" or ".bias"; shapes in the letters of `tensors`.
_MATRICES = {
    "self_attn.q_proj": "qd",
    "self_attn.k_proj": "kd",
    "self_attn.v_proj": "kd",
    "self_attn.o_proj": "dq",
    "mlp.gate_proj": "fd",
    "mlp.up_proj": "fd",
    "mlp.down_proj": "df",
}
_NORMS = {"input_layernorm": "d", "post_attention_layernorm": "d"}
_FOUR_NORMS = {"pre_feedforward_layernorm": "d", "post_feedforward_layernorm": "d"}
_HEAD_NORMS = {"self_attn.q_norm": "h", "self_attn.k_norm": "h"}


def explicit(config: Mapping[str, Any], error: Error) -> dict[str, Any]:
    """Return config.json with every setting that the arithmetic depends on, as mlx-lm reads it.

    Any version of transformers may have written it. Raise an error where a setting is missing,
    makes no sense, or asks for arithmetic that mlx-lm does not do.
    """
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise error(f"architecture {kind} is not supported, only {', '.join(FAMILIES)}")
    family, settings = FAMILIES[kind], Settings(config, "config.json", error)
    if method := config.get("quantization_config") or config.get("quantization"):
        name = method.get("quant_method", "MLX's") if isinstance(method, Mapping) else method
        raise error(
            f"the quantization {name} of its weights is not supported; take the original "
            f"weights and quantize them with -q"
        )
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    made = {
        **config,
        "architectures": [family.architecture],
        "vocab_size": settings.count("vocab_size"),
        "num_hidden_layers": settings.count("num_hidden_layers"),
        "intermediate_size": settings.count("intermediate_size"),
        "num_key_value_heads": settings.count("num_key_value_heads", heads),
        "head_dim": settings.count("head_dim", max(hidden // heads, 1)),
        "max_position_embeddings": settings.count("max_position_embeddings", 2048),
        "rms_norm_eps": settings.real("rms_norm_eps", 1e-6),
        "tie_word_embeddings": bool(settings.get("tie_word_embeddings", default=family.tied)),
    }
    if family.optional_bias:
        made |= {key: bool(config.get(key)) for key in ("attention_bias", "mlp_bias")}
    _refuse(made, family, error)
    return made | _rotation(settings, family, error) | _windows(made, settings, error)


def _refuse(config: Mapping[str, Any], family: Family, error: Error) -> None:
    """Raise an error for what fits no model, or is not computed by mlx-lm."""
    kind, length, hidden = config["model_type"], config["head_dim"], config["hidden_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if length % 2:
        raise error(f"heads of {length} have no two halves to rotate")
    if heads % groups:
        raise error(f"{heads} query heads do not divide into {groups} groups")
    if kind == "qwen2" and length * heads != hidden:
        raise error(f"{heads} heads of {length} do not make up {hidden}, as qwen2 needs")
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key) not in (None, family.activation):
            raise error(f"{key} {config[key]} is not {family.activation}, which {kind} needs")
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise error(f"{key} {config[key]} is not supported")
    if config.get("attention_bias") and not (family.optional_bias or family.qkv_bias):
        raise error(f"attention_bias is not supported for {kind}")


def tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a model with its shape, in the order of the forward pass."""
    family = FAMILIES[config["model_type"]]
    sizes = {
        "v": config["vocab_size"],
        "d": config["hidden_size"],
        "f": config["intermediate_size"],
        "h": config["head_dim"],
        "q": config["num_attention_heads"] * config["head_dim"],
        "k": config["num_key_value_heads"] * config["head_dim"],
    }
    layer = {**_NORMS, **(_FOUR_NORMS if family.four_norms else {})}
    layer |= _HEAD_NORMS if family.head_norms else {}
    shapes = {f"{name}.weight": letters for name, letters in (layer | _MATRICES).items()}
    biased = ["self_attn.q", "self_attn.k", "self_attn.v"] if family.qkv_bias else []
    if family.optional_bias:
        flags = {"attention_bias": "self_attn", "mlp_bias": "mlp"}
        biased += [start for flag, start in flags.items() if config.get(flag)]
    for name, letters in _MATRICES.items():
        if name.startswith(tuple(biased)):
            shapes[f"{name}.bias"] = letters[0]
    table = {"model.embed_tokens.weight": "vd"}
    for n in range(config["num_hidden_layers"]):
        table |= {f"model.layers.{n}.{name}": letters for name, letters in shapes.items()}
    table["model.norm.weight"] = "d"
    if not config["tie_word_embeddings"]:
        table["lm_head.weight"] = "vd"
    return {name: tuple(sizes[letter] for letter in letters) for name, letters in table.items()}


def renamed(target: str, outer: Mapping[str, str], start: str, layer: Mapping[str, str]) -> str:
    """Return a tensor's name in another layout, given its names outside and inside of layers."""
    stem, _, kind = target.rpartition(".")
    if stem in outer:
        return f"{outer[stem]}.{kind}"
    _, _, n, inner = stem.split(".", 3)
    return f"{start}.{n}.{layer.get(inner, inner)}.{kind}"


def _rotation(settings: Settings, family: Family, error: Error) -> dict[str, Any]:
    """Return rope_theta and rope_scaling, wherever config.json keeps them."""
    rope = settings.get("rope_parameters", Mapping, {})
    local = Settings(rope.get("sliding_attention", {}), "rope_parameters", error)
    whole = Settings(rope.get("full_attention", rope), "rope_parameters", error)
    theta = whole.real("rope_theta", settings.real("rope_theta", family.theta))
    values = settings.get("rope_scaling", Mapping, whole.values)
    values = {key: value for key, value in values.items() if key != "rope_theta"}
    scaling = Settings(values, "the rope scaling", error)
    kind = str(values.get("rope_type") or values.get("type") or "default")
    if kind not in ROPE_TYPES:
        raise error(f"rope scaling {kind} is not supported, only linear and llama3")
    if any(place.get("partial_rotary_factor", default=1.0) != 1.0 for place in (settings, scaling)):
        raise error("partial_rotary_factor is not supported")
    for key in ROPE_TYPES[kind]:
        scaling.real(key)
    made: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
    if kind != "default":
        made["rope_scaling"] = {**values, "rope_type": kind, "type": kind}
    if family is FAMILIES["gemma3_text"]:
        base = settings.real("rope_local_base_freq", 10000.0)
        made["rope_local_base_freq"] = local.real("rope_theta", base)
    return made


def _windows(config: Mapping[str, Any], settings: Settings, error: Error) -> dict[str, Any]:
    """Return which layers see only a window, or have no positions."""
    kind, layers = config["model_type"], config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is not None and len(types) != layers:
        raise error(f"layer_types names {len(types)} layers instead of {layers}")
    if kind == "gemma3_text":
        pattern = settings.count("sliding_window_pattern", 6)
        pattern = settings.count("_sliding_window_pattern", pattern)
        if types:
            whole = [n for n, name in enumerate(types) if name == "full_attention"]
            pattern = whole[0] + 1 if whole else layers + 1
            if whole != list(range(pattern - 1, layers, pattern)):
                raise error("layer_types is not the regular pattern that gemma3 needs")
        if pattern > layers:
            raise error(f"of {layers} layers none sees everything, which mlx-lm's gemma3 needs")
        return {
            "sliding_window_pattern": pattern,
            "sliding_window": settings.count("sliding_window", 4096),
            "query_pre_attn_scalar": settings.real("query_pre_attn_scalar", 256),
        }
    windowed = "sliding_attention" in (types or ())
    if kind in ("qwen2", "qwen3", "smollm3"):
        windowed = windowed or bool(config.get("use_sliding_window"))
    elif kind == "mistral":
        windowed = config.get("sliding_window") is not None
    if windowed and kind != "llama":
        raise error(f"the sliding window of this {kind} is not supported by mlx-lm")
    if kind != "smollm3":
        return {}
    interval = settings.count("no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers") or [int((n + 1) % interval != 0) for n in range(layers)]
    if len(rotated) != layers:
        raise error(f"no_rope_layers names {len(rotated)} layers instead of {layers}")
    return {"no_rope_layers": rotated}
