"""Compare what MLX computes on this machine with PyTorch; the MLX side.

The PyTorch side is ``tests/parity/reference.py``. Its results for tiny models are recorded in
``data/parity`` (golden files), for machines without PyTorch or CUDA. ``cases`` defines what is
computed, ``measure`` computes it with MLX, ``compare`` holds the tolerances, ``check`` runs them on
each device.
"""
