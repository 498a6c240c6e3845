"""Fixtures: tiny models for arithmetic, the real default models for what only they can show."""

import sys
from pathlib import Path

import m3mlx  # noqa: F401  before mlx, for OpenBLAS

sys.path.insert(0, str(Path(__file__).parent))
