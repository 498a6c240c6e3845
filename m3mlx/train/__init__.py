"""Teach a model to read its memories, within the memory of one machine (section 5 of the paper).

``train`` runs or resumes a training described by ``Settings``. A step makes a batch of
sequences and the references that they read (``batches``), writes the references with gradient and
reads them in one parallel pass (``loss``), beside the model as it was before training, which
teaches (``frozen``). The result is an adapter as mlx-lm makes them.
"""

from .loop import Trained, train
from .settings import Settings

__all__ = ["Settings", "Trained", "train"]
