"""The check of a conversion: checksums, and MLX's logits compared with PyTorch's.

The forward pass here is plain PyTorch on the source's own tensors: fused matrices are split after
they are applied, as in Megatron, and interleaved heads are rotated as in llama.cpp. So it shares
no permutation with the conversion. Both sides hold a layer at a time, and compute in float32 from
the weights as they are stored.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from m3mlx.errors import ConvertError

from .safetensors_file import bits_of, checksums
from .writer import Checkpoint, Storage, some

LENGTH = 64  # tokens of the prompt
TOLERANCE = 1e-4  # largest difference of a logit, in units of the largest logit
BLOCK = 8192  # rows of the head multiplied at once


def compares_logits(check: bool | None) -> bool:
    """Return whether logits are compared; ConvertError if that is asked for without torch."""
    installed = importlib.util.find_spec("torch") is not None
    if check and not installed:
        raise ConvertError(
            "--check needs PyTorch. Install it with: pip install 'm3mlx[parity]', or leave the "
            "option out to compare checksums."
        )
    return installed if check is None else check


class Proof(NamedTuple):
    """How a conversion was checked.

    Attributes:
        tensors: number of tensors that were read back bit for bit as they were written.
        difference: largest difference of a logit between MLX and PyTorch, in units of the
            largest logit; None where logits were not compared.
    """

    tensors: int
    difference: float | None

    def __str__(self) -> str:
        logits = "logits were not compared"
        if self.difference is not None:
            logits = f"MLX's logits differ from PyTorch's by {self.difference:.1e} of the largest"
        return f"Checksums of all {self.tensors} tensors agree; {logits}."


def prove(folder: Path, sums: Mapping[str, int], layout: Layout | None = None) -> Proof:
    """Check what was written: the bytes of every tensor, and the logits of a fixed prompt.

    Args:
        sums: the CRC-32 of every tensor when it was written.
        layout: the source; None to check bytes only. Logits of quantized weights are not compared.
    """
    found = checksums(sorted(folder.glob("*.safetensors")))
    if wrong := {name for name in sums.keys() | found if sums.get(name) != found.get(name)}:
        raise ConvertError(
            f"{some(wrong)} came back changed from the disk, so nothing was kept. Convert again, "
            f"and check the disk if that repeats."
        )
    if layout is None or layout.storage.bits is not None:
        return Proof(len(sums), None)
    vocabulary = layout.config["vocab_size"]
    ids = [(7919 * n + 13) % vocabulary for n in range(LENGTH)]
    expected = _torch_logits(layout, ids)
    difference = float(np.abs(_mlx_logits(folder, ids) - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise ConvertError(
            f"{layout.checkpoint.path}: MLX's logits differ from PyTorch's by {difference:.1e} of "
            f"the largest, so the conversion is wrong and was not kept. Please report this model."
        )
    return Proof(len(sums), difference)


def _mlx_logits(folder: Path, ids: list[int]) -> np.ndarray:
    with mx.stream(mx.cpu):  # exact float32 on every machine
        model, _ = load_model(folder, lazy=True)
        model.set_dtype(mx.float32)
        logits = model(mx.array([ids]))[0]
        del model  # frees each layer's weights once they are used
        mx.eval(logits)
    return np.array(logits)


@dataclass
class Layout:
    """A source in Hugging Face's layout."""

    checkpoint: Checkpoint
    storage: Storage  # of the converted weights
    config: Mapping[str, Any]  # with explicit settings
    interleaved: bool = False  # whether rotary positions rotate neighbours instead of halves

    @property
    def gemma(self) -> bool:
        return self.config["model_type"] == "gemma3_text"

    def name(self, name: str) -> str:
        """The source's name of a tensor, given Hugging Face's."""
        return name

    def has(self, name: str) -> bool:
        return self.name(name) in self.checkpoint.tensors

    def source(self, name: str) -> Any:
        """A tensor of the source, given Hugging Face's name."""
        import torch

        array = self.checkpoint.tensors[self.name(name)].read()
        tensor = torch.from_numpy(np.array(bits_of(array)))
        return tensor.view(torch.bfloat16) if array.dtype == mx.bfloat16 else tensor

    def stored(self, name: str) -> Any:
        """The same, rounded as it was when it was written."""
        import torch

        tensor, dtype = self.source(name), self.storage.dtype
        return tensor.to(getattr(torch, dtype)) if dtype else tensor

    def weight(self, name: str) -> Any:
        return self.stored(name).float()

    def linear(self, name: str, x: Any) -> Any:
        from torch.nn.functional import linear

        bias = self.weight(f"{name}.bias") if self.has(f"{name}.bias") else None
        return linear(x, self.weight(f"{name}.weight"), bias)

    def attention(self, layer: str, x: Any) -> tuple[Any, ...]:
        """Queries, keys and values (tokens, heads, head_dim), before rotation."""
        shape = len(x), -1, self.config["head_dim"]
        return tuple(self.linear(f"{layer}.self_attn.{p}_proj", x).view(shape) for p in "qkv")

    def gate_and_up(self, layer: str, x: Any) -> tuple[Any, Any]:
        return self.linear(f"{layer}.mlp.gate_proj", x), self.linear(f"{layer}.mlp.up_proj", x)


class MegatronLayout(Layout):
    """A source with Megatron's plain names and fused matrices."""

    NAMES = (
        ("model.embed_tokens", "embedding.word_embeddings"),
        ("model.norm", "encoder.final_layernorm"),
        ("lm_head", "output_layer"),
        ("model.layers", "encoder.layers"),
        ("self_attn.o_proj", "self_attention.dense"),
        ("self_attn.", "self_attention."),
        ("down_proj", "dense_4h_to_h"),
    )

    def name(self, name: str) -> str:
        for old, new in self.NAMES:
            name = name.replace(old, new)
        return name

    def attention(self, layer: str, x: Any) -> tuple[Any, ...]:
        groups, length = self.config["num_key_value_heads"], self.config["head_dim"]
        queries = self.config["num_attention_heads"] // groups
        mixed = self.linear(f"{layer}.self_attn.query_key_value", x).view(len(x), groups, -1)
        parts = mixed.split([queries * length, length, length], dim=-1)
        return tuple(part.reshape(len(x), -1, length) for part in parts)

    def gate_and_up(self, layer: str, x: Any) -> tuple[Any, Any]:
        return self.linear(f"{layer}.mlp.dense_h_to_4h", x).chunk(2, dim=-1)


def _torch_logits(layout: Layout, ids: list[int]) -> np.ndarray:
    import torch

    config = layout.config
    with torch.inference_mode():
        h = layout.stored("model.embed_tokens.weight")[torch.tensor(ids)].float()
        if layout.gemma:
            h = h * torch.tensor(config["hidden_size"] ** 0.5).bfloat16().float()
        for n in range(config["num_hidden_layers"]):
            h = _layer(layout, n, h)
        h = _norm(layout, "model.norm", h)
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        blocks = layout.stored(f"{head}.weight").split(BLOCK)
        return torch.cat([h @ rows.float().T for rows in blocks], dim=-1).numpy()


def _layer(layout: Layout, n: int, h: Any) -> Any:
    from torch.nn.functional import gelu, silu

    name, gemma = f"model.layers.{n}", layout.gemma
    x = _attention(layout, n, _norm(layout, f"{name}.input_layernorm", h))
    if gemma:
        x = _norm(layout, f"{name}.post_attention_layernorm", x)
    h = h + x
    before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    gate, up = layout.gate_and_up(name, _norm(layout, f"{name}.{before}", h))
    gate = gelu(gate, approximate="tanh") if gemma else silu(gate)
    x = layout.linear(f"{name}.mlp.down_proj", gate * up)
    return h + (_norm(layout, f"{name}.post_feedforward_layernorm", x) if gemma else x)


def _attention(layout: Layout, n: int, x: Any) -> Any:
    import torch

    config = layout.config
    name, tokens, length = f"model.layers.{n}", len(x), config["head_dim"]
    queries, keys, values = layout.attention(name, x)
    if layout.has(f"{name}.self_attn.q_norm.weight"):
        queries = _norm(layout, f"{name}.self_attn.q_norm", queries)
        keys = _norm(layout, f"{name}.self_attn.k_norm", keys)
    if (config.get("no_rope_layers") or {n: 1})[n]:
        angles = _angles(config, n, tokens)[:, None]
        queries, keys = (_rotate(part, angles, layout.interleaved) for part in (queries, keys))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    window = config["sliding_window"] if _is_sliding(config, n) else tokens
    hidden = (distance < 0) | (distance >= window)
    scale = math.sqrt(config.get("query_pre_attn_scalar") or length)
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    mixed = []
    # A head at a time: torch's batched product calls a function of the name that OpenBLAS, loaded
    # for MLX, has for one with other arguments.
    for head in range(config["num_attention_heads"]):
        scores = queries[:, head] @ keys[:, head // group].T / scale
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        mixed.append(weights @ values[:, head // group])
    return layout.linear(f"{name}.self_attn.o_proj", torch.cat(mixed, dim=-1))


def _is_sliding(config: Mapping[str, Any], n: int) -> bool:
    if config["model_type"] == "gemma3_text":
        return (n + 1) % config["sliding_window_pattern"] != 0
    types = config.get("layer_types")
    return types is not None and types[n] == "sliding_attention"


def _angles(config: Mapping[str, Any], n: int, tokens: int) -> Any:
    """Angles of rotary positions (tokens, head_dim / 2)."""
    import torch

    local = config["model_type"] == "gemma3_text" and _is_sliding(config, n)
    theta = config["rope_local_base_freq"] if local else config["rope_theta"]
    length = config["head_dim"]
    speed = theta ** -(torch.arange(0, length, 2, dtype=torch.float64) / length)
    scaling = None if local else config["rope_scaling"]
    if scaling and scaling["rope_type"] == "linear":
        speed = speed / scaling["factor"]
    elif scaling and scaling["rope_type"] == "llama3":
        turns = scaling["original_max_position_embeddings"] * speed / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
        speed = speed * (share + (1 - share) / scaling["factor"])
    return (torch.arange(tokens, dtype=torch.float64)[:, None] * speed).float()


def _rotate(x: Any, angles: Any, interleaved: bool) -> Any:
    import torch

    one, other = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    turned = one * cos - other * sin, other * cos + one * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def _norm(layout: Layout, name: str, x: Any) -> Any:
    weight = layout.weight(f"{name}.weight")
    if layout.gemma:
        weight = weight + 1
    return x * (x.pow(2).mean(-1, keepdim=True) + layout.config["rms_norm_eps"]).rsqrt() * weight
