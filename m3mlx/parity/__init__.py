"""Does MLX compute here what PyTorch computes? The MLX side of the parity suite.

The PyTorch side is the repository's ``tests/parity/reference.py``. What it computed for tiny models
is recorded in ``data/parity`` (golden files), so that a machine without PyTorch or CUDA can prove
itself too. ``cases`` says what is computed, ``measure`` computes it with MLX, ``compare`` holds
the tolerances, ``check`` brings them together on each device.
"""
