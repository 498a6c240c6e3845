"""The memory settings of a decoder that was trained with memories, kept beside its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from m3mlx.config import MEMORY_FILE, MemorySettings
from m3mlx.errors import ConvertError

from .writer import write_json

MODEL_TYPE = "memory3"  # of a config.json whose decoder is a llama with memories


def memory_settings(
    config: Mapping[str, Any], flags: Mapping[str, Any], error: Callable[[str], ConvertError]
) -> MemorySettings | None:
    """How a model writes and reads memories, or None for a model that was trained without.

    A flag goes before the checkpoint's configuration, and that before the paper's defaults: the
    first half of the layers, 8 tokens per head, and so on.

    Args:
        config: config.json; memory settings are under "memory", or beside the others.
        flags: names and values of those settings that a user gave, the rest None.
    """
    names = MemorySettings.names()
    own = config.get("memory") or {}
    if not isinstance(own, Mapping):
        raise error('"memory" in config.json is no JSON object')
    found = {key: config[key] for key in names if config.get(key) is not None} | own
    given = {key: value for key, value in flags.items() if value is not None}
    if not found and not given and config.get("model_type") != MODEL_TYPE:
        return None
    layers = int(config["num_hidden_layers"])
    try:
        return MemorySettings.from_json(
            {"memory_layers": list(range(layers // 2)), **found, **given}, layers
        )
    except ValueError as reason:
        raise error(str(reason)) from reason


def write_memory(folder: Path, settings: MemorySettings) -> None:
    write_json(folder / MEMORY_FILE, settings.to_json())


class _Layers(click.ParamType):
    """Layers as "0-21", "0,2,4" or a mixture."""

    name = "LAYERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        layers: list[int] = []
        try:
            for part in value.split(","):
                first, _, last = part.partition("-")
                layers += range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f'{value!r} is not of the form "0-21" or "0,2,4".', param, ctx)
        return layers


def memory_options(command: Callable) -> Callable:
    """The settings as flags, each None where it is not given."""
    count = click.IntRange(min=1)
    for option in (
        click.option("--memory-layers", type=_Layers(), help="Layers that hold memories: 0-21."),
        click.option("--tokens-per-head", type=count, help="Tokens that each KV head keeps."),
        click.option("--prefix", help="Constant text before everything: <s>Reference:."),
        click.option("--reference-tokens", type=count, help="Longest reference."),
        click.option("--chunk-tokens", type=count, help="Tokens between two retrievals."),
        click.option("--memories", type=count, help="Memories read by a chunk."),
    ):
        command = option(command)
    return command
