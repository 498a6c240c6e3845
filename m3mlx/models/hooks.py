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
from contextlib import contextmanager
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
# Called with queries, keys and values after RoPE, the layer's cache, the scale and the mask.
AttentionObserver = Callable[[mx.array, Any, Any, Any, float, Any], None]

ATTENTION = "scaled_dot_product_attention"  # its name in the modules of mlx-lm's models

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


def _attentions(model: nn.Module) -> list[nn.Module]:
    found = (attention for layer in model.layers for attention in attention_of(layer))
    return list({id(attention): attention for attention in found}.values())


def _arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return what a module is called with, by name."""
    names = _parameters(cast(Any, type(module)))
    return {**dict(zip(names, args, strict=False)), **kwargs}


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
def fixed_parameters(model: nn.Module) -> Iterator[None]:
    """Run a pass; parameters that it replaces stay from then on as it leaves them.

    gemma3n clips weights anew in each pass. What one thread leaves there uncomputed ends the
    process when another computes with it.
    """
    modules = list(model.modules())
    before = [dict(module) for module in modules]
    yield
    for module, items in zip(modules, before, strict=True):
        if any(
            isinstance(old, mx.array) and module[name] is not old for name, old in items.items()
        ):
            module.__class__ = _fixed_class(cast(Any, type(module)))


@cache
def _fixed_class(plain: type) -> type:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        if not isinstance(value, mx.array):  # update() sets items, not attributes
            cast(Any, plain).__setattr__(self, name, value)

    names = {"__setattr__": __setattr__, "__module__": plain.__module__}
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


@dataclass
class AttentionFacts:
    """What the mask of an attention module depends on; ``geometry_of`` finds it.

    Attributes:
        query_heads: their number.
        bool_mask: it takes bool masks only, since it adds a mask of its own to the logits.
        groups: KV heads of an attention that computes by itself, on logits (batch, KV heads,
            queries of each, …), as gemma2's; else 0.
        source: the module whose keys and values it attends to, where it has none of its own.
        masks: of a source, the widened mask of its last call in each thread; else None.
    """

    query_heads: int
    bool_mask: bool = False
    groups: int = 0
    source: nn.Module | None = None
    masks: dict[int, Any] | None = None


def set_facts(attention: nn.Module, facts: AttentionFacts) -> None:
    """Keep what is known of an attention module with it, not as a parameter."""
    vars(attention)["_facts"] = facts
    if facts.source is not None:
        vars(facts.source)["_facts"].masks = {}


def widen_masks(model: nn.Module) -> None:
    """Let the cache of each layer widen its attention mask by the layer's memories.

    mlx-lm makes one mask for all layers; a cache with a method ``widen`` makes its own of it.
    """
    for attention in _attentions(model):
        with _lock:
            if (_widen_mask, None) not in vars(attention).get("_hooks", ()):
                add_hook(attention, _widen_mask)


def restore_masks(model: nn.Module) -> None:
    """Undo ``widen_masks``."""
    for attention in _attentions(model):
        remove_hook(attention, _widen_mask)


def _widen_mask(call: Hook, attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
    facts: AttentionFacts | None = vars(attention).get("_facts")
    if facts is None:  # it keeps a state
        return call(*args, **kwargs)
    given = _arguments(attention, args, kwargs)
    if facts.source is not None:
        widened = vars(facts.source)["_facts"].masks
        given["mask"] = widened.get(get_ident(), given.get("mask"))
        return call(**given)
    cache: Any = given.get("cache")
    if not hasattr(cache, "widen"):
        if facts.masks is not None:
            facts.masks.pop(get_ident(), None)
        return call(**{**given, "mask": _grouped(given.get("mask"), facts.groups)})
    x = next(iter(given.values()))
    mask = cache.widen(given.get("mask"), x.shape[1], facts.query_heads)
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        # attention refuses a mask of another dtype
        mask = mx.isfinite(mask) if facts.bool_mask else mask.astype(x.dtype)
    if facts.masks is not None:
        facts.masks[get_ident()] = mask
    return call(**{**given, "mask": _grouped(mask, facts.groups)})


def _grouped(mask: Any, groups: int) -> Any:
    """Give a mask of batch, heads, queries and keys an axis for the query heads of a KV head."""
    if not groups or not isinstance(mask, mx.array) or mask.ndim != 4:
        return mask
    return mx.unflatten(mask, 1, (min(groups, mask.shape[1]), -1))


@dataclass
class Tap:
    """What one call of an attention module computes with.

    Attributes:
        attention, cache: the module, and the cache that it was given.
        width: length of its input's vectors.
        rotated: arrays before and after rotary embedding, in the order of the calls.
        queries, keys, values, scale, mask: as the attention function gets them; none but the
            scale where a module computes attention by itself, as gemma2's.
    """

    attention: nn.Module
    cache: Any
    width: int
    scale: float | None
    rotated: list[tuple[mx.array, mx.array]] = field(default_factory=list)
    queries: mx.array | None = None
    keys: Any = None
    values: Any = None
    mask: Any = None

    @property
    def query_heads(self) -> int:
        """Number of query heads, 0 if it does not show."""
        if self.queries is not None:
            return self.queries.shape[1]
        return self.rotated[0][0].shape[1] if self.rotated else 0

    @property
    def own_mask(self) -> mx.array | None:
        """What the module adds to the logits by itself, as latent attention does."""
        mask = self.mask
        own = isinstance(mask, mx.array) and mx.issubdtype(mask.dtype, mx.floating)
        return mask if own else None

    @property
    def grouped(self) -> bool:
        """The module takes no mask of (batch, query heads, queries, keys), as gemma2's."""
        if self.queries is not None:
            return False
        mask = mx.zeros((2, self.query_heads, 3, 3))
        try:  # nothing is computed
            self.attention(mx.zeros((2, 3, self.width)), mask=mask, cache=None)
        except ValueError:
            return True
        return False


@contextmanager
def tap_attention(model: nn.Module) -> Iterator[list[Tap]]:
    """Yield a list that gets a tap for each call that this thread makes of attention modules."""
    taps: list[Tap] = []

    def begin(call: Hook, attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = _arguments(attention, args, kwargs)
        width = next(iter(given.values())).shape[-1]
        taps.append(Tap(attention, given.get("cache"), width, getattr(attention, "scale", None)))
        return call(*args, **kwargs)

    def rotate(call: Hook, rope: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        rotated = call(x, *args, **kwargs)
        taps[-1].rotated.append((x, rotated))
        return rotated

    def observe(queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any) -> None:
        tap = taps[-1]
        tap.queries, tap.keys, tap.values, tap.scale, tap.mask = queries, keys, values, scale, mask

    attentions = _attentions(model)
    found = {id(part): part for attention in attentions for part in _ropes(attention)}
    with (
        hooked(attentions, begin),
        hooked(found.values(), rotate),
        observe_attention(model, observe),
    ):
        yield taps


def _ropes(attention: nn.Module) -> list[nn.Module]:
    parts = (getattr(attention, name, None) for name in ("rope", "rotary_emb"))
    return [part for part in parts if isinstance(part, nn.Module)]


@contextmanager
def observe_attention(model: nn.Module, observer: AttentionObserver) -> Iterator[None]:
    """Call an observer at each attention that this thread computes, before it is computed.

    The function is replaced in the modules of the model's classes, so that the observer also sees
    other models of these classes.

    Args:
        observer: called with queries (batch, heads, queries, head_dim), keys and values, the
            cache, the scale and the mask.
    """

    classes = {kind for attention in _attentions(model) for kind in type(attention).mro()}
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
                observer(queries, keys, values, cache, scale, mask)
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


def _checkpoint(call: Hook, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    given = _arguments(layer, args, kwargs)
    cache: Any = given.get("cache")
    name, x = next(iter(given.items()))
    if given.keys() - {name, "mask", "cache"} or not hasattr(cache, "inputs"):
        return call(*args, **kwargs)  # it keeps a state, or shares arrays with other layers
    parameters = layer.trainable_parameters()

    def run(parameters: dict, x: mx.array, *inputs: mx.array) -> Sequence[mx.array]:
        layer.update(parameters)
        inner = copy(cache)
        inner.inputs = inputs
        y = call(**{**given, name: x, "cache": inner})
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
