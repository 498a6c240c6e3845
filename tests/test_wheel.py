"""The built wheel: it holds every file that the programs need, and nothing of the tests."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_both_packages_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    for package in ("m3mlx", "convert"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    done = subprocess.run(
        [*command, tmp_path / "wheels", source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "m3mlx = m3mlx.cli:main" in archive.read(entry_points).decode()
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("m3mlx", "convert")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"m3mlx/py.typed", "m3mlx/serve/page/page.js", "m3mlx/data/demo.json"} <= wanted
    assert held == wanted
