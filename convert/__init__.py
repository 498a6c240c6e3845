"""Converters of foreign checkpoints to model directories that mlx-lm loads."""

import m3mlx.errors  # noqa: F401  its package loads OpenBLAS, which must precede MLX
