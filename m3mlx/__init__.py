"""m3mlx: a language model that remembers your documents as explicit memory.

Public names are imported at first use, so that importing m3mlx is quick.
"""

from importlib import import_module

from .models.linux_cpu import openblas

openblas.load()

__version__ = "0.1.0"

_PLACES = {
    "Answer": "chat.chat",
    "Assistant": "assistant",
    "Chat": "chat.chat",
    "M3Error": "errors",
    "MemoryConfig": "config",
    "MemoryStore": "store",
    "Source": "chat.chat",
    "load_decoder": "models.decoder",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
