"""m3mlx: a language model that remembers your documents as explicit memory.

Public names are imported at first use, so that importing m3mlx is quick; __init__.pyi has their
types.
"""

from importlib import import_module

from .models.linux_cpu import openblas

openblas.load()

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Assistant",
    "Chat",
    "Filter",
    "Generation",
    "Hit",
    "M3Error",
    "MemorizeReport",
    "MemoryConfig",
    "MemoryStore",
    "Options",
    "Source",
    "StoredDocument",
    "load_decoder",
]
_PLACES = {
    **dict.fromkeys(("Answer", "Chat", "Source"), "chat.chat"),
    **dict.fromkeys(("Generation", "MemoryConfig", "Options"), "config"),
    **dict.fromkeys(("Filter", "Hit", "MemoryStore", "StoredDocument"), "store"),
    "Assistant": "assistant",
    "M3Error": "errors",
    "MemorizeReport": "memorize.run",
    "load_decoder": "models.decoder",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
