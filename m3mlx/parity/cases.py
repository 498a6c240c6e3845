"""The cases that are compared: tiny random models, and what they read.

Both sides take their inputs from here and share nothing else. NumPy's frozen ``RandomState`` makes
a case the same on every machine and in every version; weights of bfloat16 values make it the same
in every precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ..config import CHUNK_TOKENS, REFERENCE_TOKENS

LORA_RANK, LORA_SCALE, LORA_RATE = 4, 2.0, 1e-3
# AdamW's first step is little more than the sign of a gradient, which is chance near zero; this eps
# makes the step smooth there.
LORA_EPS = 1e-5
LORA_MODULES = ("q_proj", "v_proj")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"  # one for each token
VOCABULARY = len(LETTERS)


@dataclass(frozen=True)
class Case:
    """A model and a conversation with it.

    Attributes:
        config: the contents of ``config.json``.
        counts: tokens that a memory keeps, by layer with keys and values and by KV head.
        selection, key_scale, prefix, recite: as in ``MemoryConfig`` and ``Writer``.
        references: token ids of each.
        context: token ids of the prompt.
        reads: references that each chunk of the prompt reads.
        refreshes: references that each further 64 tokens of the answer read.
        generate: length of the answer.
    """

    name: str
    config: dict = field(repr=False)
    counts: tuple[tuple[int, ...], ...]
    selection: str
    key_scale: float
    prefix: tuple[int, ...]
    recite: tuple[int, ...]
    references: tuple[tuple[int, ...], ...] = field(repr=False)
    context: tuple[int, ...] = field(repr=False)
    reads: tuple[tuple[int, ...], ...]
    refreshes: tuple[tuple[int, ...], ...]
    generate: int

    @property
    def layers(self) -> int:
        return self.config["num_hidden_layers"]

    @property
    def head_dim(self) -> int:
        c = self.config
        return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]

    @property
    def chunks(self) -> list[tuple[int, ...]]:
        """The prompt, cut where memories change."""
        starts = range(0, len(self.context), CHUNK_TOKENS)
        return [self.context[i : i + CHUNK_TOKENS] for i in starts]


def tiny_case(
    name: str,
    family: str,
    counts: Sequence[Sequence[int]],
    selection: str,
    key_scale: float = 1.0,
    **config: Any,
) -> Case:
    """Make a case whose texts are random, seeded by its name."""
    config = {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": len(counts),
        "intermediate_size": 48,
        "num_attention_heads": 2 * len(counts[0]),
        "num_key_value_heads": len(counts[0]),
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "vocab_size": VOCABULARY,
        "eos_token_id": VOCABULARY - 1,
        "tie_word_embeddings": True,
        **({} if family == "qwen2" else {"attention_bias": False}),
        **({"mlp_bias": False} if family == "llama" else {}),
        **config,
    }
    random = np.random.RandomState(crc32(f"{name} texts".encode()))

    def text(length: int) -> tuple[int, ...]:
        return tuple(random.randint(0, VOCABULARY, length).tolist())

    return Case(
        name=name,
        config=config,
        counts=tuple(map(tuple, counts)),
        selection=selection,
        key_scale=key_scale,
        prefix=text(5),
        recite=text(3),
        references=tuple(map(text, (REFERENCE_TOKENS, 128, 90, 41, 128, 4))),
        context=text(150),
        reads=((0, 1), (2, 3, 5), (5, 0)),
        refreshes=((4, 1), (3, 5, 2)),
        generate=136,
    )


_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
_CASES: tuple[Case, ...] = (
    tiny_case("llama", "llama", [[5, 2], [0, 7], [9, 1]], "reconstruction", key_scale=1.2),
    tiny_case("qwen2-untied", "qwen2", [[6, 6]] * 3, "attention", head_dim=8, **_UNTIED),
    tiny_case(
        "qwen3-qk-norm", "qwen3", [[8, 0], [0, 0], [3, 10]], "reconstruction", rope_theta=1e6
    ),
    # As in the paper: memory layers first, head dimension 80, its own selection.
    tiny_case("paper", "llama", [[8], [8], [0]], "attention", head_dim=80, **_UNTIED),
)
# Beside attention, lfm2 has convolutions, which keep a state. It names things in its own way.
_HYBRID: dict[str, Any] = {
    **{"num_hidden_layers": 4, "full_attn_idxs": [1, 3], "norm_eps": 1e-5, "hidden_size": 64},
    **{"conv_bias": False, "conv_L_cache": 3, "block_dim": 64, "block_ff_dim": 48},
    **{"block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0},
    "block_auto_adjust_ff_dim": False,
}
# Latent attention; its keys are latent vectors of 24, its values the rotary parts of 8.
_LATENT: dict[str, Any] = {
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, **_UNTIED},
    **{"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12},
    **{"n_routed_experts": 4, "first_k_dense_replace": 2},
}
_CASES += (
    tiny_case("hybrid", "lfm2", [[5, 2], [3, 8]], "reconstruction", key_scale=1.2, **_HYBRID),
    tiny_case("latent", "deepseek_v3", [[6], [9]], "reconstruction", **_LATENT),
)
TINY = {case.name: case for case in _CASES}


def weights(case: Case) -> dict[str, np.ndarray]:
    """Return the tensors in Hugging Face's names and order, float32 holding bfloat16 values.

    They are large enough for attention that is far from uniform, and for distinct logits.
    """
    c = case.config
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, c["hidden_size"])
    }
    layer_shapes = {"lfm2": _lfm2_shapes, "deepseek_v3": _latent_shapes}
    for layer in range(case.layers):
        found = layer_shapes.get(c["model_type"], _llama_shapes)(case, layer)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    last = "embedding_norm" if c["model_type"] == "lfm2" else "norm"
    shapes[f"model.{last}.weight"] = (c["hidden_size"],)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, c["hidden_size"])

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = _random(case, name, shape)
        if len(shape) == 1:
            return 0.2 * drawn + (1 if name.endswith("norm.weight") else 0)
        return drawn * shape[-1] ** -0.5 * (1.4 if "q_proj" in name or "k_proj" in name else 1.0)

    return {name: _bfloat16(tensor(name, shape)) for name, shape in shapes.items()}


def _llama_shapes(case: Case, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's tensors; also those of qwen2 and qwen3."""
    c, length = case.config, case.head_dim
    width, inner, family = c["hidden_size"], c["intermediate_size"], c["model_type"]
    queries, keys = c["num_attention_heads"] * length, c["num_key_value_heads"] * length
    shapes: dict[str, tuple[int, ...]] = {
        f"{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")
    }
    for part, size in (("q", queries), ("k", keys), ("v", keys)):
        shapes[f"self_attn.{part}_proj.weight"] = (size, width)
        if family == "qwen2":
            shapes[f"self_attn.{part}_proj.bias"] = (size,)
    if family == "qwen3":
        shapes |= {f"self_attn.{part}_norm.weight": (length,) for part in "qk"}
    shapes["self_attn.o_proj.weight"] = (width, queries)
    return shapes | _mlp_shapes("mlp.gate_proj mlp.up_proj mlp.down_proj", width, inner)


def _mlp_shapes(names: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{name}.weight" for name in names.split())
    return {gate: (inner, width), up: (inner, width), down: (width, inner)}


def _lfm2_shapes(case: Case, layer: int) -> dict[str, tuple[int, ...]]:
    c, length = case.config, case.head_dim
    width = c["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{norm}_norm.weight": (width,) for norm in ("operator", "ffn")
    }
    if layer in c["full_attn_idxs"]:
        keys = c["num_key_value_heads"] * length
        for part, size in (("q", width), ("k", keys), ("v", keys)):
            shapes[f"self_attn.{part}_proj.weight"] = (size, width)
        shapes |= {f"self_attn.{part}_layernorm.weight": (length,) for part in "qk"}
        shapes["self_attn.out_proj.weight"] = (width, width)
    else:
        shapes["conv.in_proj.weight"] = (3 * width, width)
        shapes["conv.conv.weight"] = (width, c["conv_L_cache"], 1)
        shapes["conv.out_proj.weight"] = (width, width)
    names = "feed_forward.w1 feed_forward.w3 feed_forward.w2"
    return shapes | _mlp_shapes(names, width, c["block_ff_dim"])


def _latent_shapes(case: Case, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's tensors, by mlx-lm's names."""
    c = case.config
    width, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    return {
        **{f"{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")},
        "self_attn.q_proj.weight": (heads * (nope + rope), width),
        "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, width),
        "self_attn.kv_a_layernorm.weight": (rank,),
        "self_attn.embed_q.weight": (heads, rank, nope),
        "self_attn.unembed_out.weight": (heads, value, rank),
        "self_attn.o_proj.weight": (width, heads * value),
        **_mlp_shapes("mlp.gate_proj mlp.up_proj mlp.down_proj", width, c["intermediate_size"]),
    }


def lora(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return A (inputs, rank) and B (rank, outputs) of each adapted module."""
    found = {}
    for name, weight in weights(case).items():
        module = name.removesuffix(".weight")
        if module.endswith(LORA_MODULES):
            outputs, inputs = weight.shape
            a = _random(case, f"{module}.lora_a", (inputs, LORA_RANK)) * inputs**-0.5
            b = _random(case, f"{module}.lora_b", (LORA_RANK, outputs)) * 0.1
            found[module] = _bfloat16(a), _bfloat16(b)
    return found


def case_digest(case: Case) -> str:
    """Hash a case and its weights, so that a golden file of another one is noticed."""
    fields = {**vars(case), "sharpness": case.key_scale}  # its name in the golden files
    del fields["key_scale"]
    whole = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, weight in weights(case).items():
        whole.update(name.encode() + weight.tobytes())
    return whole.hexdigest()[:16]


def save_case(case: Case, folder: Path) -> Path:
    """Write a model directory in Hugging Face's layout, with a letter for each token."""
    import mlx.core as mx

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config), "utf-8")
    tensors = {name: mx.array(weight) for name, weight in weights(case).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def _random(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(crc32(f"{case.name} {name}".encode())).standard_normal(shape)


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16; the result is float32."""
    bits = array.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)
