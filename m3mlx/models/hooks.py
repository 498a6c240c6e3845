"""Everything that changes a class or a function of MLX or mlx-lm, and how it is undone.

Models stay instances of mlx-lm's own classes. A hook runs around a module's ``__call__``: the
module gets a subclass of its class while it has hooks, and its class back after the last one.
Parameters and their names do not change. ``tests/test_hooks.py`` checks what the hooks rely on
against the installed mlx-lm.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from threading import RLock, get_ident
from types import ModuleType
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from .linux_cpu import ops

# Called as hook(call, module, *args, **kwargs); call(*args, **kwargs) is the module without it.
Hook = Callable[..., Any]
# Called with queries and keys after RoPE, the layer's cache, the scale and the mask.
AttentionObserver = Callable[[mx.array, Any, Any, float, Any], None]

ATTENTION = "scaled_dot_product_attention"  # its name in the modules of mlx-lm's models

# Names of the number of query heads in attention modules; the first is set where there is none.
QUERY_HEADS = ("_query_heads", "n_heads", "num_attention_heads", "num_heads")

_lock = RLock()


@cache
def _parameters(kind: Any) -> tuple[str, ...]:
    """Names of what a module's class is called with."""
    kind = getattr(kind, "_plain_class", kind)
    call = next((vars(k)["__call__"] for k in kind.mro() if "__call__" in vars(k)), None)
    return tuple(inspect.signature(call).parameters)[1:] if call else ()


def _is_attention(module: Any) -> bool:
    return {"mask", "cache"} <= set(_parameters(cast(Any, type(module))))


def attention_of(layer: nn.Module) -> list[nn.Module]:
    """Return the innermost modules of a layer that get a mask and a cache.

    There is one in most models; recurrent layers may have one that keeps a state.
    """
    attention = getattr(layer, "self_attn", None)
    if attention is not None and _is_attention(attention):
        return [attention]
    found = {name: m for name, m in layer.named_modules() if name and _is_attention(m)}
    return [m for name, m in found.items() if not any(f.startswith(f"{name}.") for f in found)]


def body_of(model: nn.Module) -> nn.Module:
    """Return the module that holds the layers: its output is what the output layer gets."""
    first, level = model.layers[0], [model]
    while level:
        below: list[nn.Module] = []
        for module in level:
            for child in module.children().values():
                if isinstance(child, list):
                    if any(part is first for part in child):
                        return module
                elif isinstance(child, nn.Module):
                    below.append(child)
        level = below
    return model


def first_number(module: nn.Module, *names: str) -> int | None:
    """Return the first of some attributes of a module that is a number."""
    found = (getattr(module, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def add_hook(module: nn.Module, hook: Hook, thread: int | None = None) -> None:
    """Run a hook around a module's calls, outside of the hooks that it has.

    Args:
        thread: identifier of the only thread whose calls it sees; None for all threads.
    """
    with _lock:
        # Not by setattr, which would make the tuple a parameter of the module.
        vars(module)["_hooks"] = (*vars(module).get("_hooks", ()), (hook, thread))
        if not hasattr(type(module), "_plain_class"):
            module.__class__ = _hooked_class(type(module))


def remove_hook(module: nn.Module, hook: Hook) -> None:
    """Remove a hook; without any the module has its own class again."""
    with _lock:
        kept = tuple(item for item in vars(module).get("_hooks", ()) if item[0] is not hook)
        if kept:
            vars(module)["_hooks"] = kept
        elif vars(module).pop("_hooks", None):
            module.__class__ = getattr(type(module), "_plain_class")  # noqa: B009


@cache
def _hooked_class(plain: type) -> type:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = partial(plain.__call__, self)
        for hook, thread in vars(self).get("_hooks", ()):
            if thread is None or thread == get_ident():
                call = partial(hook, call, self)
        return call(*args, **kwargs)

    names = {"__call__": __call__, "__module__": plain.__module__, "_plain_class": plain}
    return type(plain.__name__, (plain,), names)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """Run a hook around the calls that this thread makes of some modules, until the block ends."""
    modules = list(modules)
    try:
        for module in modules:
            add_hook(module, hook, get_ident())
        yield
    finally:
        for module in modules:
            remove_hook(module, hook)


def last_rows(model: nn.Module, rows: int) -> Any:
    """Return a context in which a model computes the logits of its last tokens only.

    The logits of all tokens would take a fifth of a prompt's time.

    Args:
        rows: number of tokens; 0 for none.
    """

    def cut(call: Hook, body: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        hidden = call(*args, **kwargs)
        return hidden[:, max(hidden.shape[1] - rows, 0) :]

    return hooked([body_of(model)], cut)


def chosen_rows(model: nn.Module, index: mx.array) -> Any:
    """Return a context in which a model computes the logits of some tokens only, (1, rows, …).

    Args:
        index: places of the tokens in the flattened batch.
    """

    def cut(call: Hook, body: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        hidden = call(*args, **kwargs)
        return hidden.reshape(-1, hidden.shape[-1])[index][None]

    return hooked([body_of(model)], cut)


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[mx.array]]:
    """Yield a list that gets the output of each layer."""
    outputs: list[mx.array] = []

    def record(call: Hook, layer: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        outputs.append(call(*args, **kwargs))
        return outputs[-1]

    with hooked(model.layers, record):
        yield outputs


def widen_masks(model: nn.Module) -> None:
    """Let the cache of each layer widen its attention mask by the layer's memories.

    mlx-lm makes one mask for all layers; a cache with a method ``widen`` makes its own of it.
    """
    for layer in model.layers:
        for attention in attention_of(layer):
            with _lock:
                if (_widen_mask, None) not in vars(attention).get("_hooks", ()):
                    add_hook(attention, _widen_mask)


def restore_masks(model: nn.Module) -> None:
    """Undo ``widen_masks``."""
    for layer in model.layers:
        for attention in attention_of(layer):
            remove_hook(attention, _widen_mask)


def _widen_mask(call: Hook, attention: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
    given = {**dict(zip(_parameters(cast(Any, type(attention))), args, strict=False)), **kwargs}
    cache: Any = given.get("cache")
    if cache is not None and hasattr(cache, "widen"):
        x = next(iter(given.values()))
        heads = first_number(attention, *QUERY_HEADS)
        mask = cache.widen(given.get("mask"), x.shape[1], heads)
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = mask.astype(x.dtype)  # attention refuses a mask of another dtype
        given["mask"] = mask
    return call(**given)


@dataclass
class RopeTap:
    """Queries, then keys, of one attention module before and after rotary embedding."""

    scale: float | None
    before: list[mx.array] = field(default_factory=list)
    after: list[mx.array] = field(default_factory=list)

    def record(self, call: Hook, rope: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        self.before.append(x)
        self.after.append(call(x, *args, **kwargs))
        return self.after[-1]


@contextmanager
def tap_rope(model: nn.Module) -> Iterator[list[RopeTap]]:
    """Record what this thread's calls rotate; yield one tap per layer that rotates.

    mlx-lm rotates the queries first, then the keys.
    """
    ropes = [
        (attention, rope)
        for layer in model.layers
        for attention in attention_of(layer)
        if isinstance(rope := getattr(attention, "rope", None), nn.Module)
    ]
    taps = [RopeTap(getattr(attention, "scale", None)) for attention, _ in ropes]
    with ExitStack() as stack:
        for (_, rope), tap in zip(ropes, taps, strict=True):
            stack.enter_context(hooked([rope], tap.record))
        yield taps


@contextmanager
def observe_attention(model: nn.Module, observer: AttentionObserver) -> Iterator[None]:
    """Call an observer at each attention that this thread computes, before it is computed.

    The function is replaced in the modules of the model's classes, so that the observer also sees
    other models of these classes.

    Args:
        observer: called with queries (batch, heads, queries, head_dim), keys as the cache
            returned them, the cache, the scale and the mask.
    """

    classes = {
        kind
        for layer in model.layers
        for attention in attention_of(layer)
        for kind in type(attention).mro()
    }
    modules = [
        m for m in {sys.modules[kind.__module__] for kind in classes} if ATTENTION in vars(m)
    ]
    item = (observer, get_ident())
    with _lock:
        for module in modules:
            if module not in _observers:
                plain = getattr(module, ATTENTION)
                _observers[module] = plain, []
                setattr(module, ATTENTION, _observed(plain, _observers[module][1]))
            _observers[module][1].append(item)
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                plain, observers = _observers[module]
                observers.remove(item)
                if not observers:
                    setattr(module, ATTENTION, plain)
                    del _observers[module]


# Of each module that is observed: its own function, and the observers with their threads.
_observers: dict[ModuleType, tuple[Callable, list[tuple[AttentionObserver, int]]]] = {}


def _observed(plain: Callable, observers: list[tuple[AttentionObserver, int]]) -> Callable:
    def attention(queries, keys, values, cache, scale, mask, **others):
        for observer, thread in tuple(observers):
            if thread == get_ident():
                observer(queries, keys, cache, scale, mask)
        return plain(queries, keys, values, cache, scale=scale, mask=mask, **others)

    return attention


def gradient_checkpoints(model: nn.Module) -> Any:
    """Return a context in which the backward pass computes each layer again.

    Only the input of each layer is kept. mlx-lm's own ``grad_checkpoint`` silently drops the
    gradients of arrays that reach a layer inside a cache. Here a cache names the arrays that it
    brings (``inputs``) and those that a layer leaves in it (``outputs``); both pass through the
    checkpoint as arguments and results.
    """
    return hooked(model.layers, _checkpoint)


def _checkpoint(
    call: Hook, layer: nn.Module, x: mx.array, mask: Any = None, cache: Any = None
) -> mx.array:
    if not hasattr(cache, "inputs"):
        return call(x, mask, cache)
    parameters = layer.trainable_parameters()

    def run(parameters: dict, x: mx.array, *inputs: mx.array) -> Sequence[mx.array]:
        layer.update(parameters)
        inner = copy(cache)
        inner.inputs = inputs
        y = call(x, mask, inner)
        return y, *inner.outputs

    y, *outputs = mx.checkpoint(run)(parameters, x, *cache.inputs)
    layer.update(parameters)  # a layer may run twice in one step: writing, then reading
    cache.outputs = tuple(outputs)
    return y


def install_fast_ops() -> None:
    """Replace MLX's attention and SiLU by those of ``linux_cpu``, on Linux, for this process.

    mlx-lm's models call both by these names. With a GPU they pass everything on to MLX.
    """
    if sys.platform == "linux":
        mx.fast.scaled_dot_product_attention = ops.attention
        nn.silu = ops.silu
