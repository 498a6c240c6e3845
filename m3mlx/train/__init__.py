"""Teach a model to read its memories, within the memory of one machine (section 5 of the paper).

``train`` runs or resumes a training described by ``Settings``. A step makes a batch of sequences
and the references that they read (``batches``), writes the references with gradient and reads them
in one parallel pass (``loss``), beside the model as it was before training, which teaches
(``frozen``). The result is an adapter as mlx-lm makes them.
"""

from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from .loop import Trained, train

__all__ = ["Settings", "Trained", "train"]


def __getattr__(name: str) -> object:
    """``train`` brings MLX, which the help of the command does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import loop

    return getattr(loop, name)
