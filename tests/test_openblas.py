"""Libraries are found without importlib.metadata, which takes a tenth of a second."""

import os
import subprocess
import sys
from importlib.metadata import distribution

import pytest

from m3mlx.models.linux_cpu import openblas


def test_a_package_is_found_by_the_folder_that_describes_it():
    folder = openblas._dist_info("mlx-lm")
    assert os.path.samefile(folder, distribution("mlx-lm")._path)
    assert openblas._dist_info("mlx-l") is None and openblas._dist_info("no-such-thing") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux needs it")
def test_what_the_package_brings_comes_first_and_exists():
    if openblas._dist_info("ngsolve-openblas") is None:
        pytest.skip("ngsolve-openblas is not installed")
    first = openblas._candidates()[0]
    assert [os.path.basename(file).split(".")[0][:11] for file in first] == [
        "libgfortran",
        "libopenblas",
    ]
    assert all(map(os.path.isfile, first))
    assert openblas.load()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux needs it")
@pytest.mark.parametrize("first", ["m3mlx", "mlx.core"])
def test_mlx_that_is_imported_too_early_is_told(first):
    if openblas._dist_info("ngsolve-openblas") is None:
        pytest.skip("ngsolve-openblas is not installed")
    program = f"import {first}, m3mlx; import m3mlx.models.linux_cpu.openblas as b; b.load()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("import m3mlx first") == (first == "mlx.core")
