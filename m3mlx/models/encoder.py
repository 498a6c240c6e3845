"""Text to unit vectors: BERT-family sentence encoders in MLX.

A directory has the layout of sentence-transformers: ``config.json`` and safetensors for BERT,
``1_Pooling/config.json`` for the pooling, ``sentence_bert_config.json`` for the length,
``config_sentence_transformers.json`` for prompts, ``tokenizer.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from tokenizers import Tokenizer

from ..errors import ModelError
from .arrays import load_arrays
from .linux_cpu import ops

# From the model cards; the models' own files do not have it.
BGE_QUERY = "Represent this sentence for searching relevant passages: "
BGE = re.compile(r"bge-(small|base|large)-en", re.IGNORECASE)

ACTIVATIONS = {"gelu": ops.gelu, "gelu_new": nn.gelu_approx, "relu": nn.relu}
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
# From names in the file to names in this module.
EMBEDDINGS = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
}
LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
IGNORED = re.compile(r"embeddings\.position_ids|pooler\..*|cls\..*")
HASHED = (
    *("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "tokenizer.json"),
)


class _Layer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {width}")
        self.activation = ACTIVATIONS[config["hidden_act"]]
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.attention_norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:  # (batch, tokens, width)
        def split(y: mx.array) -> mx.array:
            return mx.unflatten(y, -1, (self.heads, -1)).swapaxes(1, 2)

        queries, keys, values = split(self.query(x)), split(self.key(x)), split(self.value(x))
        seen = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask
        )
        x = self.attention_norm(x + self.output(seen.swapaxes(1, 2).flatten(-2)))
        return self.norm(x + self.down(self.activation(self.up(x))))


class _Bert(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.layers = [_Layer(config) for _ in range(config["num_hidden_layers"])]

    def __call__(self, ids: mx.array, real: mx.array) -> mx.array:  # both (batch, tokens)
        places = self.positions(mx.arange(ids.shape[1]))
        x = self.norm(self.words(ids) + places + self.types(mx.zeros_like(ids)))
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        return x


class Encoder:
    """A loaded sentence encoder; made by ``load``.

    Attributes:
        dimensions: length of a vector.
        max_tokens: longest input, with special tokens; longer ones are cut.
        identity: SHA-256 over all files that decide a vector.
        name: of its folder, or its hub id.
    """

    def __init__(
        self,
        bert: _Bert,
        tokenizer: Tokenizer,
        *,
        pooling: str,
        max_tokens: int,
        query_prefix: str,
        document_prefix: str,
        identity: str,
        name: str = "",
    ):
        self._bert, self._tokenizer, self._pooling = bert, tokenizer, pooling
        self._prefixes = {True: query_prefix, False: document_prefix}
        self.dimensions: int = bert.words.weight.shape[1]
        self.max_tokens = max_tokens
        self.identity = identity
        self.name = name

    def encode(
        self, texts: Sequence[str], *, query: bool = False, batch_size: int = 32
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: cut to ``max_tokens``; may be empty.
            query: put the model's query prefix before each text.
            batch_size: texts in one forward pass; the result does not depend on it.

        Returns:
            float32 (texts, dimensions), rows of length 1, in the order of the texts.
        """
        prefix = self._prefixes[query]
        tokens = [e.ids for e in self._tokenizer.encode_batch([prefix + t for t in texts])]
        vectors = np.empty((len(tokens), self.dimensions), np.float32)
        # Texts of similar length go together, so that little padding is computed.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts = ops.split_over_cores(self._forward, [tokens[i] for i in rows])
            vectors[rows] = np.concatenate(parts)
        return vectors

    def count(self, texts: Sequence[str]) -> int:
        """Return the number of tokens read from texts, with special tokens."""
        return sum(len(encoded.ids) for encoded in self._tokenizer.encode_batch(list(texts)))

    def _forward(self, batch: Sequence[list[int]]) -> np.ndarray:
        width = max(map(len, batch))
        ids = mx.array([row + [0] * (width - len(row)) for row in batch])
        real = mx.arange(width) < mx.array([[len(row)] for row in batch])
        x = self._bert(ids, real)  # (batch, tokens, width)
        if self._pooling == "cls":
            pooled = x[:, 0]
        elif self._pooling == "max":
            pooled = mx.where(real[..., None], x, -mx.inf).max(1)
        else:  # the sum has the direction of the mean
            pooled = mx.where(real[..., None], x, 0).sum(1)
        return np.array(pooled / mx.linalg.norm(pooled, axis=-1, keepdims=True))


def load(directory: str | Path) -> Encoder:
    """Load a BERT-family sentence encoder from a directory.

    Raises:
        ModelError: a file is missing or broken, or the model has an unsupported part.
    """
    directory = Path(directory)
    config = _json(directory, "config.json")
    if config is None or not (directory / "tokenizer.json").is_file():
        raise ModelError(f"{directory}: no encoder there; it needs config.json and tokenizer.json.")
    _refuse_unsupported(directory, config)
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{directory}/tokenizer.json is broken ({error}).") from error
    bert = _bert(directory, config)
    max_tokens = bert.positions.weight.shape[0]
    limit = (_json(directory, "sentence_bert_config.json") or {}).get("max_seq_length")
    max_tokens = min(limit or max_tokens, max_tokens)
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    if not tokenizer.encode("").ids:
        raise ModelError(f"{directory}/tokenizer.json adds no [CLS] and [SEP] around a text.")
    prompts = (_json(directory, "config_sentence_transformers.json") or {}).get("prompts") or {}
    query_prefix = prompts.get("query") or (BGE_QUERY if _is_bge(directory, config) else "")
    return Encoder(
        bert,
        tokenizer,
        pooling=_pooling(directory),
        max_tokens=max_tokens,
        query_prefix=query_prefix,
        document_prefix=prompts.get("document") or prompts.get("passage") or "",
        identity=_identity(directory),
        name=_name(directory),
    )


def _json(directory: Path, name: str) -> Any:
    """Return the contents of a JSON file; None if there is no such file."""
    try:
        return json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory / name} cannot be read ({error}).") from error


def _refuse_unsupported(directory: Path, config: dict) -> None:
    def refuse(what: str) -> None:
        raise ModelError(f"{directory}: {what} is not supported; use a BERT sentence encoder.")

    if config.get("model_type") != "bert":
        refuse(f"encoder type {config.get('model_type')}")
    if config.get("hidden_act") not in ACTIVATIONS:
        refuse(f"hidden_act {config.get('hidden_act')}")
    if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
        refuse(f"position embedding {kind}")
    for module in _json(directory, "modules.json") or []:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            refuse(f"module {kind}")


def _pooling(directory: Path) -> str:
    settings = _json(directory, "1_Pooling/config.json") or {"pooling_mode_mean_tokens": True}
    chosen = [key for key, on in settings.items() if key.startswith("pooling_mode") and on]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelError(f"{directory}: pooling {', '.join(chosen) or 'none'} is not supported.")
    return POOLINGS[chosen[0]]


def _name(directory: Path) -> str:
    if directory.parent.name == "snapshots":  # of the hub's cache: NAME/snapshots/COMMIT
        return directory.parents[1].name.removeprefix("models--").replace("--", "/")
    return directory.resolve().name


def _is_bge(directory: Path, config: dict) -> bool:
    names = [_name(directory), str(config.get("_name_or_path", ""))]
    return any(BGE.search(name) for name in names)


def _bert(directory: Path, config: dict) -> _Bert:
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{directory}: no model.safetensors there.")
    try:
        bert = _Bert(config)
        weights = {
            name.removeprefix("bert."): array.astype(mx.float32)
            for file in files
            for name, array in load_arrays(file).items()
        }
        found = {name: array for name, array in weights.items() if not IGNORED.fullmatch(name)}
        mx.eval(found)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{directory}: its model cannot be read ({error}).") from error

    table = dict(EMBEDDINGS)
    for n in range(len(bert.layers)):
        table |= {f"encoder.layer.{n}.{k}": f"layers.{n}.{v}" for k, v in LAYER.items()}
    wanted: dict[str, str] = {}
    for theirs, ours in table.items():
        parts = ("weight",) if "_embeddings" in theirs else ("weight", "bias")
        wanted |= {f"{theirs}.{part}": f"{ours}.{part}" for part in parts}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelError(f"{directory}: its weights lack {', '.join(missing)}.")
    if unused := sorted(found.keys() - wanted.keys()):
        raise ModelError(f"{directory}: its weights hold unknown {', '.join(unused)}.")
    try:
        bert.load_weights([(wanted[name], array) for name, array in found.items()])
    except ValueError as error:
        raise ModelError(f"{directory}: its weights do not fit config.json ({error}).") from error
    return bert


def _identity(directory: Path) -> str:
    files = [directory / name for name in HASHED if (directory / name).is_file()]
    whole = hashlib.sha256()
    for file in [*files, *sorted(directory.glob("model*.safetensors"))]:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{file.relative_to(directory)} {digest}\n".encode())
    return whole.hexdigest()
