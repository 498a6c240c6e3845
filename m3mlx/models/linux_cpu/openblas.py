"""Load OpenBLAS, and set MLX's CPU build on Linux up, before ``mlx.core`` is imported.

The wheel ``mlx-cpu`` carries the reference BLAS, whose matrix products are 15 to 30 times slower.
MLX finds ``cblas_sgemm`` by dynamic symbol, so an OpenBLAS loaded before it with global symbols
takes its place. The build also compiles fused functions with a C++ compiler at run time, which
gains nothing and can abort the process in a thread; it is turned off. And the C library by default
returns large freed blocks to the system at once: page faults took a fifth of a long prompt's time.
"""

import ctypes
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt(3)
KEPT_BYTES = 256 << 20  # free memory that the heap keeps
HEAP_BYTES = 32 << 20  # largest block from the heap; weights are larger, and are returned at once
_COUNT = "openblas_get_num_threads"

_library: ctypes.CDLL | None = None


def _dist_info(name: str) -> str | None:
    """Return the metadata folder of an installed package; faster than ``importlib.metadata``."""
    name = name.replace("-", "_")
    found = (glob(os.path.join(folder, f"{name}-*.dist-info")) for folder in sys.path if folder)
    return next((folders[0] for folders in found if folders), None)


def _candidates() -> list[list[str]]:
    """Libraries to try, each after those it needs; those of the Python package come first."""
    found = []
    if folder := _dist_info("ngsolve-openblas"):
        files = os.path.join(os.path.dirname(folder), "ngsolve_openblas", "lib")
        found = [[*glob(f"{files}gfortran*"), library] for library in glob(f"{files}openblas*")]
    return [*found, ["libopenblas.so.0"], ["libopenblas.so"]]


def threads() -> int:
    """Return the number of threads of OpenBLAS; 1 where none was loaded."""
    count = getattr(_library, _COUNT, None)
    return count() if count else 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute each matrix product of this process on one core, so that several run in parallel."""
    before = threads()
    if _library is None or before == 1:
        yield
        return
    _library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        _library.openblas_set_num_threads(before)


def load() -> bool:
    """Load OpenBLAS for MLX; call before ``mlx.core`` is imported, else it warns.

    Returns:
        True if one was loaded; False on a Mac, with CUDA, and where none is installed.
    """
    global _library
    if sys.platform != "linux" or _dist_info("mlx-cuda-12") or _dist_info("mlx-cuda-13"):
        return False
    if importlib.util.find_spec("mlx") is None:
        return False
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # only in glibc
        mallopt(M_MMAP_THRESHOLD, HEAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    late = "mlx.core" in sys.modules and not hasattr(ctypes.CDLL(None), _COUNT)
    for libraries in _candidates():
        try:
            for library in libraries:
                _library = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if late:
            warnings.warn(
                "mlx.core was imported before m3mlx, so its matrix products run on the reference "
                "BLAS, many times slower; import m3mlx first",
                RuntimeWarning,
                stacklevel=3,
            )
        return True
    return False
