"""Settings: constants, user choices, options and memory configurations. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

FORMAT_VERSION = 1  # of memory records; memories of other versions are refused
REFERENCE_TOKENS = 128  # longest reference (section 3.1 of the paper)
CHUNK_TOKENS = 64  # tokens of prompt or answer between two retrievals
MEMORIES = 5  # memories read by one chunk
MEMORY_TEMPERATURE = 0.1  # a memory scored this much below the best one counts e times less
# Score from which on a reference fits a question, by encoder and retrieval (docs/evaluation.md).
FLOORS = {"all-minilm-l6-v2": {"hybrid": 0.45, "dense": 0.3, "text": 0.12}}
FEW_REFERENCES = 4  # of a store of fewer words say nothing: half of all is no rare word
NOTHING_FITS = "Nothing in memory fits this question well."
DEBOUNCE = 2.0  # seconds without a change before a watched file is read
GRACE = 60.0  # seconds that a watched file may be missing before it is forgotten
RESCAN = 600.0  # seconds between two scans of all that is watched
MEMORY_FILE = "memory.json"  # beside the weights of a model that was trained with memories

Progress = Callable[[str, int, int], None]  # task, done, total; total 0 if unknown

# Choices of the user, here so that the command line need not import more.
MEMORY_MODES = ("explicit", "text", "off")  # read memories, paste the same references, neither
SELECTIONS = ("reconstruction", "attention")  # scores that rank tokens
BUDGETS = ("calibrated", "uniform")  # as each head needs, or the same for all
RETRIEVALS = ("hybrid", "dense", "text")  # by vectors and words, vectors, words
CODECS = {f"k{k}v{v}": (k, v) for k in (16, 8, 4) for v in (16, 8, 4)}  # bits of keys and values


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def cache_folder() -> Path:
    """Return the folder of what can be made again: converted models, calibrations, hashes."""
    home = os.environ.get("M3MLX_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("m3mlx"))


def data_folder() -> Path:
    """Return the folder of what cannot be made again: the default store, the user's choices."""
    home = os.environ.get("M3MLX_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("m3mlx"))


def default_store() -> Path:
    """Return the folder of the store that is used if none is named."""
    store = os.environ.get("M3MLX_STORE")
    return Path(store) if store else data_folder() / "store"


@dataclass(frozen=True)
class Options:
    """Settings of an assistant.

    Attributes:
        model: folder, hub id or built-in name of the decoder; None for the default.
        store: folder of the memories; None for the default one.
        encoder: folder or built-in name of the sentence encoder.
        adapter_path: LoRA adapter of mlx-lm; None for the one that comes with the model, if any,
            "none" for the plain model.
        selection, budget, tokens_per_head, codec: how memories are written; None for the store's
            setting, or the default. ``tokens_per_head`` 0 means auto.
        memories: memories read by each chunk of 64 tokens; None for as many as the model was
            trained with, or five.
        kv_bits: 8 or 4 to quantize the context.
        retrieval: "hybrid", "dense" or "text".
        also: folders of attached stores, which are searched and read too, but never changed.
        encrypt: encrypt a new store.
    """

    model: str | None = None
    store: Path | None = None
    encoder: str | None = None
    adapter_path: str | Path | None = None
    selection: str | None = None
    budget: str | None = None
    tokens_per_head: int | None = None
    codec: str | None = None
    memories: int | None = None
    kv_bits: int | None = None
    retrieval: str = "hybrid"
    also: Sequence[Path] = ()  # kept as a tuple of paths
    encrypt: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "also", tuple(map(Path, self.also)))

    @property
    def writing(self) -> dict[str, Any]:
        """The fields of ``MemoryConfig`` that were asked for."""
        names = ("selection", "budget", "tokens_per_head")
        asked = {name: value for name in names if (value := getattr(self, name))}
        if self.codec:
            asked["key_bits"], asked["value_bits"] = CODECS[self.codec]
        return asked


@dataclass(frozen=True)
class Generation:
    """Settings of generating an answer.

    Attributes:
        max_tokens: maximum length of the answer.
        temp, top_p, top_k, min_p, xtc_probability, xtc_threshold: of mlx-lm's sampler; temp 0 takes
            the likeliest token.
        logits: arguments of mlx-lm's ``make_logits_processors``, such as ``repetition_penalty``.
        schema: JSON schema that the answer keeps to; needs the extra ``schema``.
        seed: makes a sampled answer repeatable.
        query: what the chunks of a prompt retrieve with: "chunk" for their own words, as in the
            paper, "message" for the whole message.
        memories: read at a time; None for the assistant's number.
        raw: continue the message itself, without the chat template.
        prefill: how the answer begins; it is not said again.
        opening: the same as the chat template would write it, before the prefill.
        ends: token ids before which the answer ends, beside the model's own.
        think: ask a thinking model to think before it answers.
    """

    max_tokens: int = 256
    temp: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logits: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    seed: int | None = None
    query: str = "message"
    memories: int | None = None
    raw: bool = False
    prefill: str = ""
    opening: str = ""
    ends: tuple[int, ...] = ()
    think: bool = False


@dataclass(frozen=True)
class MemoryConfig:
    """Everything except the weights that determines the bytes of a memory.

    Attributes:
        selection: score that ranks tokens, "reconstruction" or "attention".
        budget: "calibrated" (a fixed number for each head) or "uniform".
        counts: tokens kept, as counts[layer][KV head]; zeros in layers without memories.
        head_dim: length of a key or value, of the longest where they differ.
        prefix: token ids of the constant prefix.
        key_bits, value_bits: 16 (bfloat16), 8 or 4.
        key_scale: factor on the keys when they are read, 1 for ordinary attention; it does not
            change the bytes of a memory.
        reference_tokens: maximum length of a reference, and length of the interval of positions
            that all memories share (section 3.2 of the paper).
        layer_dims: lengths of a key and of a value in each layer; empty where all are head_dim.
    """

    selection: str
    budget: str
    counts: tuple[tuple[int, ...], ...]
    head_dim: int
    prefix: tuple[int, ...]
    key_bits: int = 8
    value_bits: int = 8
    reference_tokens: int = REFERENCE_TOKENS
    key_scale: float = 1.0
    layer_dims: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def lengths(dims: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return ``head_dim`` and ``layer_dims`` for the length of a key and a value by layer."""
        longest = max(map(max, dims))
        alike = all(pair == (longest, longest) for pair in dims)
        return {"head_dim": longest, "layer_dims": () if alike else tuple(dims)}

    @property
    def dims(self) -> tuple[tuple[int, int], ...]:
        """Lengths of a key and of a value in each layer."""
        return self.layer_dims or ((self.head_dim, self.head_dim),) * len(self.counts)

    @property
    def tokens_per_head(self) -> float:
        """Average number of tokens kept, over all layers and KV heads."""
        return self.kept / sum(map(len, self.counts))

    @property
    def kept(self) -> int:
        """Number of keys (and of values) in one record."""
        return sum(map(sum, self.counts))

    def to_json(self) -> dict:
        """Return it as JSON; that of layers which are alike is as it was before others came."""
        data = asdict(self)
        return data if self.layer_dims else {k: v for k, v in data.items() if k != "layer_dims"}

    @classmethod
    def from_json(cls, data: Mapping) -> MemoryConfig:
        """Create from JSON; version 0.1 called ``key_scale`` ``sharpness``."""
        data = {"key_scale" if name == "sharpness" else name: data[name] for name in data}
        nested = {name: tuple(map(tuple, data.get(name, ()))) for name in ("counts", "layer_dims")}
        return cls(**{**data, **nested, "prefix": tuple(data["prefix"])})


@dataclass(frozen=True)
class MemorySettings:
    """Settings of a decoder that was trained with memories (memory.json).

    The defaults are the paper's (sections 3.1 to 3.3). Every head of a memory layer keeps the
    same number of tokens, and memories are read with ordinary attention.

    Attributes:
        memory_layers: layers that hold memories.
        tokens_per_head: tokens that each KV head of these layers keeps.
        selection: the score that ranks tokens.
        prefix: the constant text before everything, at every layer.
        reference_tokens: maximum length of a reference.
        chunk_tokens: tokens between two retrievals.
        memories: memories read by one chunk.
    """

    memory_layers: tuple[int, ...]
    tokens_per_head: int = 8
    selection: str = "attention"
    prefix: str = "<s>Reference:"
    reference_tokens: int = REFERENCE_TOKENS
    chunk_tokens: int = CHUNK_TOKENS
    memories: int = MEMORIES

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(each.name for each in fields(cls))

    @classmethod
    def from_json(cls, data: Mapping, layers: int) -> MemorySettings:
        """Create from memory.json of a model with this many layers; ValueError if it is invalid."""
        if unknown := sorted(data.keys() - set(cls.names())):
            raise ValueError(f"the memory settings {', '.join(unknown)} are unknown")
        chosen = data.get("memory_layers")
        valid = isinstance(chosen, list | tuple) and all(
            type(n) is int and 0 <= n < layers for n in chosen
        )
        if not valid or not chosen or len(set(chosen)) != len(chosen):
            raise ValueError(f"memory_layers is {chosen!r:.60}, not some of 0 to {layers - 1}")
        settings = cls(**{**data, "memory_layers": tuple(sorted(chosen))})
        for name, low, high in (
            ("reference_tokens", REFERENCE_TOKENS, REFERENCE_TOKENS),
            ("chunk_tokens", CHUNK_TOKENS, CHUNK_TOKENS),
            ("tokens_per_head", 1, REFERENCE_TOKENS),
            ("memories", 1, 2**16),
        ):
            value = getattr(settings, name)
            if type(value) is not int or not low <= value <= high:
                allowed = f"m3mlx knows only {low}" if low == high else f"not {low} to {high}"
                raise ValueError(f"{name} is {value!r:.40}, {allowed}")
        if settings.selection not in SELECTIONS:
            allowed = " or ".join(SELECTIONS)
            raise ValueError(f"selection is {settings.selection!r:.40}, not {allowed}")
        if not isinstance(settings.prefix, str) or not settings.prefix:
            raise ValueError("the prefix is not text")
        return settings

    def to_json(self) -> dict:
        return asdict(self)

    def counts(self, kv_heads: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Tokens kept, as counts[layer][KV head], of layers with these KV heads."""
        return tuple(
            (self.tokens_per_head * (n in self.memory_layers),) * heads
            for n, heads in enumerate(kv_heads)
        )


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON-able value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(
    config: MemoryConfig, *, weights: str, tokenizer: str, rope: str, adapter: str = ""
) -> dict[str, str]:
    """Return every condition under which memories are made, as short strings by name.

    Args:
        weights, tokenizer, adapter: hashes of the decoder's files, "" without an adapter.
        rope: the model's rotary settings, as text.
    """
    return {
        "format": str(FORMAT_VERSION),
        "weights": weights,
        "adapter": adapter,
        "tokenizer": tokenizer,
        "rope": rope,
        "prefix": digest(config.prefix),
        "selection": config.selection,
        "budget": f"{config.budget} {config.tokens_per_head:g} {digest(config.counts)[:16]}",
        "reference": str(config.reference_tokens),
        "codec": f"k{config.key_bits}v{config.value_bits}",
    }
