"""All that touches the classes of MLX and mlx-lm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.nn as nn

_ATTENTION = "scaled_dot_product_attention"  # in the files of mlx-lm's models


@contextmanager
def observe_attention(model: nn.Module, observer: Callable[..., None]) -> Iterator[None]:
    """Let ``observer(queries, keys, cache, scale, mask)`` see every attention of a model."""

    def observed(plain: Callable[..., Any]) -> Callable[..., Any]:
        def attention(queries, keys, values, cache, scale, mask, **more):
            observer(queries, keys, cache, scale, mask)
            return plain(queries, keys, values, cache, scale=scale, mask=mask, **more)

        return attention

    classes = {kind for layer in model.layers for kind in type(layer.self_attn).mro()}
    with ExitStack() as undo:
        for module in {sys.modules[kind.__module__] for kind in classes}:
            if plain := getattr(module, _ATTENTION, None):
                setattr(module, _ATTENTION, observed(plain))
                undo.callback(setattr, module, _ATTENTION, plain)
        yield
