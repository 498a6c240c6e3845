"""Find and load models: decoders, encoders, adapters.

A name is a built-in short name, a local directory, or a hub id.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import _download as hub_folder
from mlx_lm.utils import (
    dequantize_model,
    load_adapters,
    load_model,
    load_tokenizer,
    save_config,
    save_model,
)

from .. import config
from ..config import Progress, no_progress
from ..errors import ModelError, RefusedError
from . import caches, encoder, hooks
from .arrays import named_arrays
from .builtin import BUILT_IN, DEFAULT_DECODER, DEFAULT_ENCODER, fetch
from .hashes import file_sha256
from .inventory import memory_told, suggestion
from .linux_cpu.ops import make_column_major
from .template import Template

ADAPTERS = Path(__file__).parents[1] / "data" / "adapters"  # folders named after built-in models
NO_ADAPTER = "none"


@dataclass(frozen=True)
class MemoryLayer:
    """A layer's keys and values, as its cache gets them.

    Attributes:
        query_heads, kv_heads, key_dim, value_dim: their shape.
        latent: they are what keys and values are made of, a latent vector and a rotary part, as in
            multi-head latent attention.
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    latent: bool = False


@dataclass
class Decoder:
    """A loaded language model and what a memory needs to know of it.

    Attributes:
        model: mlx-lm's own class, unmodified; an adapter is merged into its weights, but stands
            beside those that are quantized.
        name: as it was given to ``load_decoder``.
        path: the directory it was loaded from.
        weights, tokenizer_hash, adapter: SHA-256 of their files; adapter is "" without one.
        adapter_path: the adapter's folder, None without one.
        rope: the settings of rotary positions in config.json, as canonical JSON.
        geometry: the layers that keep keys and values of their own, in the order of their caches.
        trained: memory settings of a model that was trained with memories, else None.
        context_tokens: positions that the model knows; None where its settings do not say.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    name: str
    path: Path
    weights: str
    tokenizer_hash: str
    adapter: str
    rope: str
    geometry: tuple[MemoryLayer, ...]
    trained: config.MemorySettings | None = None
    adapter_path: Path | None = None
    context_tokens: int | None = None

    @cached_property
    def template(self) -> Template:
        """The chat template, cut where a reference would stand."""
        return Template(self.tokenizer, self.trained.prefix if self.trained else None)

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of text, none of which is a control token, and their character offsets."""
        return self.template.tokenize(text)

    @property
    def memory_temperature(self) -> float | None:
        """See ``Conversation``; None for a model that was trained with memories.

        Also None where masks have no room for weights.
        """
        return None if self.trained or self.latent else config.MEMORY_TEMPERATURE

    @property
    def latent(self) -> bool:
        """A layer's attention is latent: its memories have no weights, its keys no factor."""
        return any(layer.latent for layer in self.geometry)

    @property
    def layers(self) -> int:
        """Number of layers that keep keys and values of their own."""
        return len(self.geometry)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """KV heads of each of these layers."""
        return tuple(layer.kv_heads for layer in self.geometry)

    @property
    def dims(self) -> tuple[tuple[int, int], ...]:
        """Lengths of a key and of a value in each of these layers."""
        return tuple((layer.key_dim, layer.value_dim) for layer in self.geometry)


def adapter_folder(model: str | None, asked: str | Path | None) -> Path | None:
    """Return the adapter to use: the given one, or the one that comes with a built-in model.

    Args:
        model: as for ``load_decoder``.
        asked: a folder, "none" for no adapter, or None for what comes with the model.
    """
    if asked is None:
        name = str(model or DEFAULT_DECODER).lower()
        folder = ADAPTERS / name
        return folder if name in BUILT_IN and folder.is_dir() else None
    return None if str(asked) == NO_ADAPTER else Path(asked)


def load_decoder(
    name: str | Path | None = None,
    *,
    adapter_path: str | Path | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Load a language model, fetching it first if needed.

    On Linux without a GPU the weights become float32, the only fast type there, and MLX's slow
    functions are replaced (``linux_cpu``). Elsewhere the weights are as stored.

    Args:
        name: built-in short name, local directory or hub id; None for the default.
        adapter_path: folder of a LoRA adapter made by mlx-lm; None for the plain model.
        progress: called while fetching and converting.

    Raises:
        ModelError: it cannot be found, fetched or loaded, cannot carry explicit memory
            (RefusedError), or needs more memory than this machine has.
    """
    name = str(name or DEFAULT_DECODER)
    path = _find(name, "decoder", progress or no_progress)
    with memory_told(name, path, progress or no_progress):
        model, settings, geometry = _load_model(name, path)
    with _mlx_lm_errors(path):
        tokenizer = load_tokenizer(path, eos_token_ids=settings.get("eos_token_id"))
    adapter_path = None if adapter_path is None else Path(adapter_path)
    adapter = ""
    if adapter_path:
        adapter = _load_adapter(model, adapter_path)
        _merge_adapter(model)
    hooks.install_fast_ops()
    with _mlx_lm_errors(path):
        _read_parameters(model)
    model.eval()
    files = identity(path)
    return Decoder(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        weights=files["weights"],
        tokenizer_hash=files["tokenizer"],
        adapter=adapter,
        rope=_rope_settings(settings),
        trained=_trained_settings(path, len(geometry)),
        adapter_path=adapter_path,
        context_tokens=settings.get("text_config", settings).get("max_position_embeddings"),
        geometry=geometry,
    )


def identity(path: Path, adapter_path: Path | None = None) -> dict[str, str]:
    """Return the hashes that memories depend on, of the files in a model directory.

    Nothing is loaded. They are those of ``config.fingerprint``.
    """
    return {
        "weights": _hash(*sorted(path.glob("model*.safetensors")), path / "config.json"),
        "tokenizer": _hash(path / "tokenizer.json", path / "tokenizer_config.json"),
        "adapter": _adapter_hash(adapter_path) if adapter_path else "",
    }


def _adapter_hash(path: Path) -> str:
    return _hash(path / "adapters.safetensors", path / "adapter_config.json")


def fuse_adapter(
    name: str | Path | None,
    adapter_path: str | Path,
    output: str | Path,
    *,
    dequantize: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Merge an adapter into its model, and write a model directory that needs no adapter.

    Args:
        name: of the model, as for ``load_decoder``.
        output: a directory that does not exist yet; it is written whole or not at all.
        dequantize: keep the exact sum; otherwise a quantized model is quantized again, which
            rounds away part of what a small adapter adds.

    Returns:
        The directory.

    Raises:
        ModelError: the model or the adapter cannot be loaded, or the directory exists.
    """
    output = Path(output)
    if output.exists():
        raise ModelError(f"{output} exists; name a directory that does not.")
    path = _find(str(name or DEFAULT_DECODER), "decoder", progress or no_progress)
    with _mlx_lm_errors(path):
        model, settings = load_model(path, lazy=True)
        _load_adapter(model, Path(adapter_path), cast=False)
    _merge_adapter(model, quantized=True, dequantize=dequantize)
    if dequantize:
        model = dequantize_model(model)
        settings = {k: v for k, v in settings.items() if not k.startswith("quantization")}
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        save_model(unfinished, model)
        save_config(settings, unfinished / "config.json")
        for file in path.iterdir():  # tokenizer and chat template, and licence
            if file.is_file() and not re.match(r"(model.*|config\.json|\..*)$", file.name):
                shutil.copy(file, unfinished)
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output


def load_encoder(
    name: str | Path | None = None, *, progress: Progress | None = None
) -> encoder.Encoder:
    """Load a sentence encoder, fetching it first if needed.

    Args:
        name: built-in short name, local directory or hub id; None for the default.
        progress: called while fetching.

    Raises:
        ModelError: it cannot be found, fetched or loaded, or is of an unsupported type.
    """
    hooks.install_fast_ops()
    return encoder.load(_find(str(name or DEFAULT_ENCODER), "encoder", progress or no_progress))


def local_folder(name: str) -> Path:
    """Return the directory of a decoder that is on this machine; ModelError if it cannot be had."""
    return _find(name, "decoder", no_progress)


def encoder_identity(name: str) -> str:
    """Return what ``Encoder.identity`` of an encoder on this machine is, without loading it."""
    return encoder.identity(_find(name, "encoder", no_progress))


def encoder_advice(name: str) -> str:
    """Return what ``Encoder.advice`` of an encoder on this machine is, without loading it."""
    return encoder.advice(_find(name, "encoder", no_progress))


def _load_model(name: str, path: Path) -> tuple[nn.Module, dict[str, Any], tuple[MemoryLayer, ...]]:
    """Load a model in the type that this machine computes fast; also its config and geometry.

    Its weights are not read yet.
    """
    settings = _read_json(path / "config.json")
    if settings.get("is_encoder_decoder"):
        raise RefusedError(f"{name} cannot carry explicit memory: it is an encoder-decoder.")
    with _mlx_lm_errors(path):
        model, settings = load_model(path, lazy=True)
    cpu = mx.default_device() == mx.cpu
    if cpu and any(getattr(part, "global_scale", None) is not None for part in model.modules()):
        raise ModelError(
            f"{name} needs a GPU: its nvfp4 experts have scales of their own, which are "
            f"lost on a CPU. Choose another model with --model."
        )
    try:
        geometry = geometry_of(model)
    except ValueError as error:
        kind = settings.get("model_type")
        raise RefusedError(f"{name} ({kind}) cannot carry explicit memory: {error}.") from error
    with _mlx_lm_errors(path):
        if cpu:
            model.set_dtype(mx.float32)
            model = dequantize_model(model)
            model.set_dtype(mx.float32)  # mxfp4 and its like become bfloat16
    return model, settings, geometry


def _read_parameters(model: nn.Module) -> None:
    """Read, cast and turn the weights, the largest first and each by itself.

    So what is needed on the way to one is freed before the next, and while there is room.
    """
    make_column_major(model)
    for parameter in sorted(named_arrays(model.parameters()).values(), key=lambda x: -x.nbytes):
        mx.eval(parameter)


@contextmanager
def _mlx_lm_errors(path: Path) -> Iterator[None]:
    """Turn any error into a ModelError; a foreign directory can fail anywhere in mlx-lm.

    Its module of OLMo ends the program where a library is missing.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by mlx-lm: {_first_line(error)}.") from error
    except SystemExit as error:
        raise ModelError(
            f"{path} cannot be loaded by mlx-lm: it needs a library that is not installed, which "
            f"mlx-lm names in the line before."
        ) from error


def _first_line(error: Exception) -> str:
    """Return what an error says in its first line, and in the next where that only leads to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")


def _read_json(path: Path) -> dict[str, Any]:
    """Read one of the JSON files that make a folder a model directory."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"{path.name}: {_first_line(error)}"
        raise ModelError(f"{path.parent} is no model directory: {reason}.") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path.parent} is no model directory: {path.name} is no JSON object.")
    return settings


def _rope_settings(settings: dict[str, Any]) -> str:
    text = settings.get("text_config", settings)
    rope = {key: value for key, value in text.items() if "rope" in key or "rotary" in key}
    return json.dumps(rope, sort_keys=True)


def _trained_settings(path: Path, layers: int) -> config.MemorySettings | None:
    """Read the memory settings beside the weights, if there are any."""
    file = path / config.MEMORY_FILE
    if not file.exists():
        return None
    try:
        return config.MemorySettings.from_json(_read_json(file), layers)
    except ValueError as error:
        raise ModelError(f"{file}: {error}. Convert the model again.") from error


class _Probe:
    """A cache that notes the keys and values that a layer gives to it."""

    def __init__(self, base: Any):
        self.base = base
        self.given: list[tuple[mx.array, mx.array]] = []
        self.fetched: Any = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        self.given.append((keys, values))
        self.fetched = self.base.update_and_fetch(keys, values)
        return self.fetched

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


def geometry_of(model: nn.Module) -> tuple[MemoryLayer, ...]:
    """Return the layers that keep keys and values; a ValueError says why memory is impossible.

    They are what caches are given in a pass over three tokens, of which nothing is computed. What
    this pass shows of each attention module is kept with it (``hooks.AttentionFacts``).
    """
    probes: list[_Probe] = []

    def probe(cache: Any) -> Any:
        if caches.keeps_state(cache):
            return cache
        if type(cache) not in caches.KEYS_AND_VALUES:
            raise ValueError(
                f"it keeps something else than keys and values ({type(cache).__name__})"
            )
        probes.append(_Probe(cache))
        return probes[-1]

    made = caches.replaced(make_prompt_cache(model), probe)
    if not probes:
        raise ValueError("its layers keep a state instead of keys and values")
    try:
        with hooks.fixed_parameters(model), hooks.tap_attention(model) as taps:
            model(mx.array([[0, 1, 2]]), cache=made)
    except Exception as error:  # a foreign model can fail anywhere
        if "No Metal back-end" in str(error):
            raise ValueError(
                "it computes on Metal only, which this machine does not have"
            ) from error
        raise ValueError(f"a first pass fails ({_first_line(error)})") from error
    owners = {id(tap.cache): tap for tap in reversed(taps)}
    layers = []
    for found in probes:
        tap = owners.get(id(found))
        if len(found.given) != 1 or tap is None:
            raise ValueError("it has a cache that its layers do not use for keys and values alone")
        keys, values = found.given[0]
        if keys.ndim != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[2] != 3:
            raise ValueError("its caches do not get the keys and values of each token")
        if not tap.query_heads or tap.query_heads % keys.shape[1]:
            raise ValueError("its attention does not show its heads")
        shape = tap.query_heads, keys.shape[1], keys.shape[-1], values.shape[-1]
        layers.append(MemoryLayer(*shape, latent=tap.own_mask is not None))
    for tap in taps:
        if caches.keeps_state(tap.cache):
            continue
        shown = [f for f in probes if tap.cache is f or (f.fetched[0] is tap.keys)]
        if not shown:
            raise ValueError("it has an attention without a cache")
        source = owners[id(shown[0])].attention
        heads = shown[0].given[0][0].shape[1]
        facts = hooks.AttentionFacts(
            tap.query_heads,
            bool_mask=tap.own_mask is not None,
            groups=heads if tap.grouped else 0,
            source=None if source is tap.attention else source,
        )
        hooks.set_facts(tap.attention, facts)
    return tuple(layers)


def _load_adapter(model: nn.Module, path: Path, cast: bool = True) -> str:
    """Put an adapter's layers into a model; return the hash of its files."""
    try:
        load_adapters(model, str(path))
        if cast and mx.default_device() == mx.cpu:
            model.set_dtype(mx.float32)
        mx.eval([x for name, x in named_arrays(model.parameters()).items() if _is_adapter(name)])
    except Exception as error:  # a foreign folder can fail anywhere in mlx-lm
        raise ModelError(f"{path} is no adapter for this model: {_first_line(error)}.") from error
    return _adapter_hash(path)


def _is_adapter(parameter: str) -> bool:
    return parameter.rpartition(".")[2] in ("lora_a", "lora_b", "m")


def _merge_adapter(model: nn.Module, *, quantized: bool = False, dequantize: bool = False) -> None:
    """Replace each adapted layer by the sum of both, so that the adapter costs nothing.

    Logits change by rounding only: by 5e-5 of the largest in float32, and in half precision by no
    more than they are off anyway.

    Args:
        quantized: merge into quantized weights too, which rounds away part of a small adapter.
        dequantize: dequantize those weights.
    """
    merged = [
        (name, part.fuse(dequantize=dequantize))
        for name, part in model.named_modules()
        if hasattr(part, "fuse")
        and (quantized or not any("scales" in inner for inner in part.children().values()))
    ]
    model.update_modules(tree_unflatten(merged))


def _hash(*paths: Path) -> str:
    """SHA-256 over the names and contents of those files that exist."""
    whole = hashlib.sha256()
    for path in filter(Path.is_file, paths):
        whole.update(f"{path.name} {file_sha256(path)}\n".encode())
    return whole.hexdigest()


def _find(name: str, kind: str, progress: Progress) -> Path:
    """Return the local directory of a model, fetching it if needed."""
    short = name.lower()
    if short in BUILT_IN:
        if BUILT_IN[short].kind != kind:
            articles = {"decoder": "a decoder", "encoder": "an encoder"}
            other = articles[BUILT_IN[short].kind]
            raise ModelError(f"{name} is {other}, not {articles[kind]}.")
        return fetch(short, progress)
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    known = ", ".join(n for n, package in BUILT_IN.items() if package.kind == kind)
    if path.suffix == ".gguf" and path.is_file():
        raise ModelError(f"{name}: convert it first: python -m convert.from_gguf {name} DIRECTORY")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ModelError(
            f"{name}: no such directory, and no built-in {kind} (there is {known}). "
            f"{suggestion(name)}"
        )
    try:
        return hub_folder(name)
    except Exception as error:  # its library passes on errors of its HTTP client
        raise ModelError(
            f"{name}: no such directory, and the hub does not give it ({_first_line(error)}). "
            f"Check the name and the network; built in is {known}. {suggestion(name)}"
        ) from error
