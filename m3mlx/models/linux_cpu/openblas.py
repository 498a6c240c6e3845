"""Make MLX's CPU build on Linux fast and safe. A Mac needs none of this.

The wheel ``mlx-cpu`` carries the reference BLAS, whose matrix products are 15 to 30 times slower
than OpenBLAS. MLX finds ``cblas_sgemm`` by dynamic symbol, so an OpenBLAS that is loaded with
global symbols before ``mlx.core`` takes its place. The same build compiles fused functions with
a C++ compiler at run time, which gains nothing and can abort the process in a thread, so that
is turned off. And it asks the C library for each array's memory, which by default gives large
blocks back to the system at once, so that a fifth of a long prompt's time went into page faults.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob

# of mallopt(3): the most that the heap keeps free on top, and the largest block that comes from it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, LARGEST = 256 << 20, 32 << 20  # bytes; weights are larger, and go back at once

_library: ctypes.CDLL | None = None  # what was loaded


def _installed(name: str) -> str | None:
    """The folder that describes an installed package. ``importlib.metadata`` takes longer."""
    name = name.replace("-", "_")
    found = (glob(os.path.join(folder, f"{name}-*.dist-info")) for folder in sys.path if folder)
    return next((folders[0] for folders in found if folders), None)


def _candidates() -> list[list[str]]:
    """Libraries to try, each with those it needs before it; the package's own first."""
    found = []
    if folder := _installed("ngsolve-openblas"):
        files = os.path.join(os.path.dirname(folder), "ngsolve_openblas", "lib")
        found = [[*glob(f"{files}gfortran*"), library] for library in glob(f"{files}openblas*")]
    return [*found, ["libopenblas.so.0"], ["libopenblas.so"]]


def threads() -> int:
    """On how many cores OpenBLAS multiplies; 1 where none was loaded."""
    count = getattr(_library, "openblas_get_num_threads", None)
    return count() if count else 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each product of this process use one core, so that several can run side by side."""
    before = threads()
    if before > 1:
        _library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            _library.openblas_set_num_threads(before)


def load() -> bool:
    """Load OpenBLAS for MLX where that helps; call before ``mlx.core`` is imported.

    Returns:
        Whether an OpenBLAS was loaded. False on a Mac, with CUDA, and where none is installed.
    """
    global _library
    if sys.platform != "linux" or _installed("mlx-cuda-12") or _installed("mlx-cuda-13"):
        return False
    if importlib.util.find_spec("mlx") is None:
        return False
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc has it
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
    for libraries in _candidates():
        try:
            for library in libraries:
                _library = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False
