"""Text to unit vectors: BERT-family sentence encoders in MLX.

A directory has the layout of sentence-transformers: ``config.json`` and safetensors for BERT or
XLM-RoBERTa, whose positions begin behind that of the padding,
``1_Pooling/config.json`` for the pooling, ``sentence_bert_config.json`` for the length,
``config_sentence_transformers.json`` for prompts, ``tokenizer.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from tokenizers import Tokenizer

from ..errors import ModelError
from ..text import has_foreign
from .arrays import load_arrays
from .hashes import file_sha256
from .linux_cpu import ops
from .weights import map_array

# Prefixes of queries and documents from the model cards; the models' own files do not have them.
PREFIXES = (
    (r"bge-(small|base|large)-en", "Represent this sentence for searching relevant passages: ", ""),
    (r"\be5-(small|base|large)(?!.*instruct)", "query: ", "passage: "),
)
TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
FOREIGN = 0.2  # share of words in other letters than Latin of who knows several scripts

ACTIVATIONS = {"gelu": ops.gelu, "gelu_new": nn.gelu_approx, "relu": nn.relu}
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
BEFORE = re.compile(r"^(bert|roberta)\.")
WORDS = "embeddings.word_embeddings.weight"
IGNORED = re.compile(r"embeddings\.position_ids|pooler\..*|cls\..*|lm_head\..*")
HASHED = (
    *("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "tokenizer.json"),
)


class _Bert:
    """BERT's forward pass over weights by their names in the file.

    The vectors of words stay in the file: a text needs few of them.
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, mx.array], words: np.ndarray):
        self.weights, self.words = weights, words
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.activation, self.eps = ACTIVATIONS[config["hidden_act"]], config["layer_norm_eps"]
        self.first = _first_position(config)

    def __call__(self, ids: mx.array, real: mx.array) -> mx.array:  # both (batch, tokens)
        places, types = (
            self.weights[f"embeddings.{kind}_embeddings.weight"]
            for kind in ("position", "token_type")
        )
        words = mx.array(self.words[np.array(ids)]).astype(mx.float32)
        places = places[self.first : self.first + ids.shape[1]]
        x = self._norm("embeddings", words + places + types[0])
        for n in range(self.layers):
            at = f"encoder.layer.{n}"
            x = self._norm(f"{at}.attention.output", x + self._attend(f"{at}.attention", x, real))
            inner = self.activation(self._dense(f"{at}.intermediate.dense", x))
            x = self._norm(f"{at}.output", x + self._dense(f"{at}.output.dense", inner))
        return x  # (batch, tokens, width)

    def _attend(self, name: str, x: mx.array, real: mx.array) -> mx.array:
        queries, keys, values = (
            mx.unflatten(self._dense(f"{name}.self.{part}", x), -1, (self.heads, -1)).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=real[:, None, None, :]
        )
        return self._dense(f"{name}.output.dense", mixed.swapaxes(1, 2).flatten(-2))

    def _dense(self, name: str, x: mx.array) -> mx.array:
        return mx.addmm(self.weights[f"{name}.bias"], x, self.weights[f"{name}.weight"].T)

    def _norm(self, name: str, x: mx.array) -> mx.array:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return mx.fast.layer_norm(x, weight, bias, self.eps)


def _first_position(config: dict[str, Any]) -> int:
    """Return the place of a text's first token in the table of positions."""
    return 0 if config["model_type"] == "bert" else config.get("pad_token_id", 1) + 1


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the weights of a BERT and their shapes."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    if width % config["num_attention_heads"]:
        raise ValueError(f"{config['num_attention_heads']} heads do not divide {width}")
    parts: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (width,)}
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{n}"
        square = ("self.query", "self.key", "self.value", "output.dense")
        parts |= {f"{at}.attention.{part}": (width, width) for part in square}
        parts |= {f"{at}.{part}output.LayerNorm": (width,) for part in ("attention.", "")}
        parts[f"{at}.intermediate.dense"] = (inner, width)
        parts[f"{at}.output.dense"] = (width, inner)
    return {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **{f"{name}.weight": shape for name, shape in parts.items()},
        **{f"{name}.bias": shape[:1] for name, shape in parts.items()},
    }


@dataclass(eq=False)
class Encoder:
    """A loaded sentence encoder; made by ``load``.

    Attributes:
        max_tokens: longest input, with special tokens; longer ones are cut.
        identity: SHA-256 over all files that decide a vector.
        name: of its folder, or its hub id.
    """

    bert: _Bert
    tokenizer: Tokenizer
    pooling: str
    max_tokens: int
    query_prefix: str
    document_prefix: str
    identity: str
    name: str

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.bert.words.shape[1]

    @property
    def advice(self) -> str:
        """What to do where most of the text is not in Latin letters; "" for nothing."""
        return _advice(self.name, self.tokenizer)

    def encode(
        self,
        texts: Sequence[str | list[int]],
        *,
        query: bool = False,
        batch_size: int = 32,
        whole: bool = False,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: cut to ``max_tokens``; may be empty. Token ids stand for themselves.
            query: put the model's query prefix before each text.
            batch_size: texts in one forward pass; the result does not depend on it.
            whole: read longer texts in pieces too, and give the mean of their vectors, weighted
                by their lengths.

        Returns:
            float32 (texts, dimensions), rows of length 1, in the order of the texts.
        """
        prefix = self.query_prefix if query else self.document_prefix
        read = self._pieces([prefix + t if isinstance(t, str) else t for t in texts], whole)
        tokens = [ids for pieces in read for ids in pieces]
        vectors = np.empty((len(tokens), self.dimensions), np.float32)
        # Texts of similar length go together, so that little padding is computed.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts = ops.split_over_cores(self._forward, [tokens[i] for i in rows])
            vectors[rows] = np.concatenate(parts)
        if len(tokens) == len(texts):
            return vectors
        starts = np.cumsum([0, *map(len, read[:-1])])
        lengths = np.array([len(ids) for ids in tokens], np.float32)
        sums = np.add.reduceat(vectors * lengths[:, None], starts, axis=0)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def count(self, texts: Sequence[str | list[int]], *, whole: bool = False) -> int:
        """Return the number of tokens read from texts, with special tokens; see ``encode``."""
        return sum(len(ids) for pieces in self._pieces(texts, whole) for ids in pieces)

    def _pieces(self, texts: Sequence[str | list[int]], whole: bool) -> list[list[list[int]]]:
        """Return the token ids of each text: of its beginning, or of all its pieces."""
        encoded = iter(self.tokenizer.encode_batch([t for t in texts if isinstance(t, str)]))
        pieces = []
        for text in texts:
            if isinstance(text, str):
                each = next(encoded)
                pieces.append([each.ids, *(more.ids for more in each.overflowing if whole)])
            else:
                pieces.append(self._enclosed(text, whole))
        return pieces

    def _enclosed(self, tokens: list[int], whole: bool) -> list[list[int]]:
        """Return token ids in pieces, each between the special tokens of a text."""
        around = self.tokenizer.encode("").ids
        before, after = around[: len(around) // 2], around[len(around) // 2 :]
        room = self.max_tokens - len(around)
        starts = range(0, len(tokens) if whole else 1, room)
        return [[*before, *tokens[start : start + room], *after] for start in starts]

    def _forward(self, batch: Sequence[list[int]]) -> np.ndarray:
        width = max(map(len, batch))
        ids = mx.array([row + [0] * (width - len(row)) for row in batch])
        real = mx.arange(width) < mx.array([[len(row)] for row in batch])
        x = self.bert(ids, real)  # (batch, tokens, width)
        if self.pooling == "cls":
            pooled = x[:, 0]
        elif self.pooling == "max":
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
    max_tokens = config["max_position_embeddings"] - _first_position(config)
    limit = (_json(directory, "sentence_bert_config.json") or {}).get("max_seq_length")
    max_tokens = min(limit or max_tokens, max_tokens)
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    if not tokenizer.encode("").ids:
        raise ModelError(f"{directory}/tokenizer.json adds no [CLS] and [SEP] around a text.")
    prompts = (_json(directory, "config_sentence_transformers.json") or {}).get("prompts") or {}
    for_query, for_document = _prefixes(directory, config)
    return Encoder(
        bert,
        tokenizer,
        pooling=_pooling(directory),
        max_tokens=max_tokens,
        query_prefix=prompts.get("query") or for_query,
        document_prefix=prompts.get("document") or prompts.get("passage") or for_document,
        identity=identity(directory),
        name=_name(directory),
    )


def advice(directory: Path) -> str:
    """Return what ``Encoder.advice`` is, of an encoder that is not loaded."""
    return _advice(_name(directory), Tokenizer.from_file(str(directory / "tokenizer.json")))


def _advice(name: str, tokenizer: Tokenizer) -> str:
    known = tokenizer.get_vocab()
    if sum(map(has_foreign, known)) >= FOREIGN * len(known):
        return ""
    return (
        f"Most of the text is in letters that {name} hardly knows. A multilingual encoder finds "
        f"more: memorize into another store, with --store and --encoder "
        f"(docs/models-and-converting.md)."
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
        advice = "use a sentence encoder of the BERT or XLM-RoBERTa kind"
        raise ModelError(f"{directory}: {what} is not supported; {advice}.")

    if config.get("model_type") not in TYPES:
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


def _prefixes(directory: Path, config: dict) -> tuple[str, str]:
    """Return the prefixes of queries and documents that a model is known to want."""
    names = f"{_name(directory)} {config.get('_name_or_path', '')}"
    for pattern, *prefixes in PREFIXES:
        if re.search(pattern, names, re.IGNORECASE):
            return prefixes[0], prefixes[1]
    return "", ""


def _bert(directory: Path, config: dict) -> _Bert:
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{directory}: no model.safetensors there.")
    try:
        shapes = _shapes(config)
        places = {
            BEFORE.sub("", name): (file, name, array.astype(mx.float32))
            for file in files
            for name, array in load_arrays(file).items()
        }
        found = {
            name: array for name, (_, _, array) in places.items() if not IGNORED.fullmatch(name)
        }
        mx.eval([array for name, array in found.items() if name != WORDS])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{directory}: its model cannot be read ({error}).") from error
    if missing := sorted(shapes.keys() - found.keys()):
        raise ModelError(f"{directory}: its weights lack {', '.join(missing)}.")
    if unused := sorted(found.keys() - shapes.keys()):
        raise ModelError(f"{directory}: its weights hold unknown {', '.join(unused)}.")
    for name, shape in shapes.items():
        if found[name].shape != shape:
            wrong = f"{name} is {found[name].shape} and not {shape}"
            raise ModelError(f"{directory}: its weights do not fit config.json ({wrong}).")
    file, name, array = places[WORDS]
    words = map_array(file, name)
    del found[WORDS]
    return _Bert(config, found, np.array(array) if words is None else words)


def identity(directory: Path) -> str:
    """Return the SHA-256 over all that decides a vector of a document; nothing is loaded."""
    files = [directory / name for name in HASHED if (directory / name).is_file()]
    whole = hashlib.sha256(_prefixes(directory, _json(directory, "config.json") or {})[1].encode())
    for file in [*files, *sorted(directory.glob("model*.safetensors"))]:
        whole.update(f"{file.relative_to(directory)} {file_sha256(file)}\n".encode())
    return whole.hexdigest()
