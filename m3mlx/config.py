"""What a memory depends on, and where m3mlx keeps its files. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

FORMAT_VERSION = 1  # of memory records; a change makes old memories foreign
REFERENCE_TOKENS = 128  # longest reference (section 3.1 of the paper)
CHUNK_TOKENS = 64  # tokens of prompt or answer between two retrievals
MEMORIES = 5  # memories read by one chunk

# The choices that users have, here so that the command line knows them without loading more.
MODES = ("explicit", "text", "off")  # read memories, paste the same references, or neither
SELECTIONS = ("reconstruction", "attention")  # scores that rank tokens
BUDGETS = ("calibrated", "uniform")  # what each head needs, or all as many
RETRIEVALS = ("hybrid", "dense", "text")  # by meaning and words, by meaning, by words
CODECS = {f"k{k}v{v}": (k, v) for k in (16, 8, 4) for v in (16, 8, 4)}  # bits of keys and values


def cache_folder() -> Path:
    """Folder of what may vanish: converted models, calibrations, hashes."""
    home = os.environ.get("M3MLX_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("m3mlx"))


def default_store() -> Path:
    """Folder of the store used when none is named."""
    if store := os.environ.get("M3MLX_STORE"):
        return Path(store)
    home = os.environ.get("M3MLX_HOME")
    return (Path(home) if home else Path(platformdirs.user_data_dir("m3mlx"))) / "store"


@dataclass(frozen=True)
class MemoryConfig:
    """Everything beside the weights that decides the bytes of a memory.

    Attributes:
        selection: "reconstruction" or "attention", the score that ranks tokens.
        budget: "calibrated" (a fixed number for each head) or "uniform".
        counts: tokens kept, as counts[layer][KV head]; zeros where a layer holds no memory.
        head_dim: length of one key or value.
        prefix: token ids of the constant prefix.
        key_bits, value_bits: 16 (bfloat16), 8 or 4.
        sharpness: factor on the keys when they are read, 1 for ordinary attention. It changes
            no byte of a memory.
        reference_tokens: longest reference, which is also the length of the interval of
            positions that all memories share (section 3.2 of the paper).
    """

    selection: str
    budget: str
    counts: tuple[tuple[int, ...], ...]
    head_dim: int
    prefix: tuple[int, ...]
    key_bits: int = 8
    value_bits: int = 8
    reference_tokens: int = REFERENCE_TOKENS
    sharpness: float = 1.0

    @property
    def tokens_per_head(self) -> float:
        """Average number of tokens kept, over all layers and KV heads."""
        heads = sum(len(layer) for layer in self.counts)
        return self.kept / heads

    @property
    def kept(self) -> int:
        """Number of keys (and of values) in one record."""
        return sum(map(sum, self.counts))

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping) -> MemoryConfig:
        counts = tuple(tuple(layer) for layer in data["counts"])
        return cls(**{**data, "counts": counts, "prefix": tuple(data["prefix"])})


def digest(value: object) -> str:
    """SHA-256 of a JSON-able value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(
    config: MemoryConfig, *, weights: str, tokenizer: str, rope: str, adapter: str = ""
) -> dict[str, str]:
    """Name every condition under which memories are made.

    Args:
        weights, tokenizer, adapter: hashes of the decoder's files, "" without an adapter.
        rope: the model's rotary settings, as text.

    Returns:
        One short string for each condition, so that a difference can be named.
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
