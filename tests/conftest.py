"""Fixtures, and the environment of the tests and of the processes that they start."""

import contextlib
import os
import sys
from pathlib import Path

# Before any library loads: the threads of a product of tiny matrices cost more than they save, and
# pytest-xdist uses every core already.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

with contextlib.suppress(ImportError):
    # Before OpenBLAS, whose cblas_sgemm_batch has the name of torch's and other arguments.
    import torch  # noqa: F401

import pytest

import m3mlx  # noqa: F401  before mlx, for OpenBLAS
from m3mlx.config import cache_folder
from m3mlx.models.linux_cpu import openblas
from m3mlx.store.catalog import NEW_STORE, Catalog

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def child_processes():
    """Let child processes import the packages of this tree, and no PyTorch.

    Not before the session: the processes of pytest-xdist are children too, and need PyTorch.
    """
    root = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests" / "child")])


@pytest.fixture(scope="module", autouse=True)
def shared_calibrations(tmp_path_factory):
    """Let one calibration of a tiny model, which takes a second, serve all tests of a run.

    What it was found under is part of its name and of its file, so no test gets a wrong one.
    Without M3MLX_HOME, as with the default models, the user's own cache is used as always.
    """
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "calibrated"

    def folder():
        return shared if os.environ.get("M3MLX_HOME") else cache_folder()

    with pytest.MonkeyPatch.context() as patch:
        if "mlx_lm" in sys.modules:  # else nothing is calibrated, and imports take seconds
            patch.setattr("m3mlx.calibrate.cache_folder", folder)
            patch.setattr("m3mlx.verify.cache_folder", folder)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a tiny decoder and a tiny encoder."""
    import tiny  # which takes seconds

    folder = tmp_path_factory.mktemp("models")
    tiny.save_model(folder / "decoder")
    tiny.save_encoder(folder / "encoder")
    return folder


@pytest.fixture
def two_blas_threads():
    """Let OpenBLAS have two threads, where m3mlx loaded one, so that batches are shared."""
    set_threads = getattr(openblas._library, "openblas_set_num_threads", lambda count: None)
    set_threads(2)
    yield
    set_threads(1)


@pytest.fixture
def catalog(tmp_path):
    """A new catalog, open for writing."""
    Catalog.create(tmp_path / "c", NEW_STORE)
    catalog = Catalog(tmp_path / "c", write=True)
    yield catalog
    catalog.close()
