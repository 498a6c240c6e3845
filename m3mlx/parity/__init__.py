"""Does MLX compute here what PyTorch computes? The MLX side of the parity suite.

The PyTorch side is the repository's ``tests/parity/reference.py``. What it computed is recorded in
``data/parity`` (golden files), so that a machine without PyTorch or CUDA can prove itself too.
"""
