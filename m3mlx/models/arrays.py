"""Named arrays of files and modules, with exact types."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def load_arrays(path: Path) -> dict[str, mx.array]:
    """Load a safetensors file; arrays are read when they are evaluated."""
    return cast(dict[str, mx.array], mx.load(str(path)))


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of a tree of parameters by dotted name."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))
