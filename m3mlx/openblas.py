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
from glob import glob


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
