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
        counts: tokens that a memory keeps, by layer and KV head.
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
    def kv_heads(self) -> int:
        return self.config["num_key_value_heads"]

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


_UNTIED = {"tie_word_embeddings": False}
_CASES = (
    tiny_case("llama", "llama", [[5, 2], [0, 7], [9, 1]], "reconstruction", key_scale=1.2),
    tiny_case("qwen2-untied", "qwen2", [[6, 6]] * 3, "attention", head_dim=8, **_UNTIED),
    tiny_case(
        "qwen3-qk-norm", "qwen3", [[8, 0], [0, 0], [3, 10]], "reconstruction", rope_theta=1e6
    ),
    # As in the paper: memory layers first, head dimension 80, its own selection.
    tiny_case("paper", "llama", [[8], [8], [0]], "attention", head_dim=80, **_UNTIED),
)
TINY = {case.name: case for case in _CASES}


def weights(case: Case) -> dict[str, np.ndarray]:
    """Return the tensors in Hugging Face's names and order, float32 holding bfloat16 values.

    They are large enough for attention that is far from uniform, and for distinct logits.
    """
    c = case.config
    width, inner, length = c["hidden_size"], c["intermediate_size"], case.head_dim
    queries, keys = c["num_attention_heads"] * length, case.kv_heads * length
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for layer in range(case.layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")
        }
        for part, size in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (size, width)
            if c["model_type"] == "qwen2":
                shapes[f"{at}.self_attn.{part}_proj.bias"] = (size,)
        if c["model_type"] == "qwen3":
            shapes |= {f"{at}.self_attn.{part}_norm.weight": (length,) for part in "qk"}
        shapes[f"{at}.self_attn.o_proj.weight"] = (width, queries)
        shapes |= {f"{at}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, inner)
    shapes["model.norm.weight"] = (width,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, width)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = _random(case, name, shape)
        if len(shape) == 1:
            return 0.2 * drawn + (1 if name.endswith("norm.weight") else 0)
        return drawn * shape[-1] ** -0.5 * (1.4 if "q_proj" in name or "k_proj" in name else 1.0)

    return {name: _bfloat16(tensor(name, shape)) for name, shape in shapes.items()}


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
