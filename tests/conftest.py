"""Fixtures, and the environment of the tests and of the processes that they start."""

import contextlib
import os
import sys
from pathlib import Path

# Before any library loads: the threads of a product of tiny matrices cost more than they save, and
# pytest-xdist uses every core already.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
# Child processes import the packages of this tree, and no PyTorch.
os.environ["PYTHONPATH"] = os.pathsep.join(
    map(str, [Path(__file__).parents[1], Path(__file__).parent / "child"])
)

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
