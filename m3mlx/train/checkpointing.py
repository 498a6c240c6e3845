"""Gradient checkpoints that know memories: layers are run again in the backward pass.

mlx-lm's own ``grad_checkpoint`` drops the gradients of arrays that reach a layer inside a cache
without a word. Here a cache names the arrays that it brings (``inputs``) and those that a
layer leaves in it (``outputs``), and both go through the checkpoint as arguments and results.
"""

from __future__ import annotations

from copy import copy

import mlx.core as mx
import mlx.nn as nn


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only the input of each layer for the backward pass, and compute the rest again."""
    for layer in model.layers:
        if not hasattr(layer, "_unchecked_class"):
            layer.__class__ = _checkpointed(type(layer))


def restore_layers(model: nn.Module) -> None:
    """Undo ``checkpoint_layers``."""
    for layer in model.layers:
        plain = getattr(layer, "_unchecked_class", None)
        if plain is not None:
            layer.__class__ = plain


def _checkpointed(plain: type) -> type:
    def __call__(self, x, mask=None, cache=None):
        if not hasattr(cache, "inputs"):
            return plain.__call__(self, x, mask, cache)
        parameters = self.trainable_parameters()

        def run(parameters, x, *inputs):
            self.update(parameters)
            inner = copy(cache)
            inner.inputs = inputs
            y = plain.__call__(self, x, mask, inner)
            return y, *inner.outputs

        y, *outputs = mx.checkpoint(run)(parameters, x, *cache.inputs)
        self.update(parameters)  # a layer may run twice in one step: writing, then reading
        cache.outputs = tuple(outputs)
        return y

    return type(plain.__name__, (plain,), {"__call__": __call__, "_unchecked_class": plain})
