"""Train a model to read its memories, within the memory of one machine (section 5 of the paper).

``train`` runs or resumes a training described by ``Settings``. A step makes a batch of sequences
and the references that they read (``dataloader``), writes the references with gradients and reads
them in one parallel pass (``loss``); the model as it was before training teaches (``teacher``). The
result is an adapter as mlx-lm makes them.
"""

from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from .loop import TrainReport, train

__all__ = ["Settings", "TrainReport", "train"]


def __getattr__(name: str) -> object:
    """Import MLX with ``train`` only; the command's help does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import loop

    return getattr(loop, name)
