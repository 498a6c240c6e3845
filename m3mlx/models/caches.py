"""The caches that mlx-lm's models make: a tree, whose leaves keep keys and values or a state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
)

KEYS_AND_VALUES = (KVCache, RotatingKVCache, ChunkedKVCache)


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """Yield the caches of a model, those of a layer with several one by one."""
    for cache in caches:
        yield from leaves(cache.caches) if isinstance(cache, CacheList) else [cache]


def replaced(caches: Iterable[Any], make: Callable[[Any], Any]) -> list[Any]:
    """Return a model's caches with what ``make`` returns in place of each leaf."""
    return [
        CacheList(*replaced(cache.caches, make)) if isinstance(cache, CacheList) else make(cache)
        for cache in caches
    ]


def keeps_state(cache: Any) -> bool:
    """Tell a recurrent or convolutional layer's cache from one of keys and values."""
    return isinstance(cache, ArraysCache)


def nearness(cache: Any) -> Callable[[Any, Any], Any] | None:
    """Return which positions of keys a query at a position sees, of a layer that is not global.

    The function takes positions of queries and keys, and knows nothing of causality.
    """
    if isinstance(cache, RotatingKVCache):
        return lambda at, keys_at: at - keys_at < cache.max_size
    if isinstance(cache, ChunkedKVCache):
        return lambda at, keys_at: at // cache.chunk_size == keys_at // cache.chunk_size
    return None
