"""Fixtures: tiny models for arithmetic, the real default models for what only they can show."""

import contextlib
import sys
from pathlib import Path

with contextlib.suppress(ImportError):
    # Before OpenBLAS, whose cblas_sgemm_batch has the name of torch's and other arguments.
    import torch  # noqa: F401

import pytest

import m3mlx  # noqa: F401  before mlx, for OpenBLAS
from m3mlx.store.catalog import NEW_STORE, Catalog

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def catalog(tmp_path):
    """A new catalog, open for writing."""
    Catalog.create(tmp_path / "c", NEW_STORE)
    catalog = Catalog(tmp_path / "c", write=True)
    yield catalog
    catalog.close()
