"""Make MLX's CPU build on Linux fast and safe. A Mac needs none of this.

The wheel ``mlx-cpu`` carries the reference BLAS, whose matrix products are 15 to 30 times slower
than OpenBLAS. MLX finds ``cblas_sgemm`` by dynamic symbol, so an OpenBLAS that is loaded with
global symbols before ``mlx.core`` takes its place. The same build compiles fused functions with
a C++ compiler at run time, which gains nothing and can abort the process in a thread, so that
is turned off.
"""

import ctypes
import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _candidates() -> list[list[str]]:
    """Libraries to try, each with those it needs before it; the package's own first."""
    found = []
    if _installed("ngsolve-openblas"):
        files = [str(f.locate()) for f in distribution("ngsolve-openblas").files or []]
        needed = [f for f in files if "/libgfortran" in f]
        found = [[*needed, f] for f in files if "/libopenblas" in f]
    return [*found, ["libopenblas.so.0"], ["libopenblas.so"]]


def load() -> bool:
    """Load OpenBLAS for MLX where that helps; call before ``mlx.core`` is imported.

    Returns:
        Whether an OpenBLAS was loaded. False on a Mac, with CUDA, and where none is installed.
    """
    if sys.platform != "linux" or _installed("mlx-cuda-12") or _installed("mlx-cuda-13"):
        return False
    if importlib.util.find_spec("mlx") is None:
        return False
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    for libraries in _candidates():
        try:
            for library in libraries:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False
