"""Fixtures: tiny models for arithmetic, the real default models for what only they can show."""

import contextlib
import sys
from pathlib import Path

with contextlib.suppress(ImportError):
    # Before OpenBLAS, whose cblas_sgemm_batch has the name of torch's and other arguments.
    import torch  # noqa: F401

import m3mlx  # noqa: F401  before mlx, for OpenBLAS

sys.path.insert(0, str(Path(__file__).parent))
