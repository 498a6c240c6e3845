"""Converters of foreign checkpoints to model directories that mlx-lm loads."""

import m3mlx  # noqa: F401  loads OpenBLAS, which must precede MLX
