"""The built wheel: it holds every file that the programs need, nothing of the tests, and types."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import m3mlx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("m3mlx", "convert"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    done = subprocess.run(
        [*command, folder / "wheels", source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheels").iterdir()
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_both_packages_and_nothing_else(wheel):
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
    assert {"m3mlx/py.typed", "m3mlx/serve/page/main.js", "m3mlx/data/demo.json"} <= wanted
    assert held == wanted


def test_the_stub_has_the_public_names():
    stub = (ROOT / "m3mlx" / "__init__.pyi").read_text("utf-8")
    found = re.findall(r"^from \.([\w.]+) import (\w+) as \2$", stub, re.M)
    assert {name: place for place, name in found} == m3mlx._PLACES
    assert set(m3mlx.__all__) == m3mlx._PLACES.keys()


@pytest.mark.slow
def test_the_documented_programs_are_strictly_typed_against_the_wheel(wheel, tmp_path):
    venv.create(tmp_path / "user", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "user" / "lib").glob("python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # what it depends on
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(programs) == 6 and all(len(code.splitlines()) <= 20 for code in programs)
    for number, code in enumerate(programs):
        (tmp_path / f"program{number}.py").write_text(code)
    wrong = "import m3mlx\n\nm3mlx.Assistant().ask(7)\n"
    (tmp_path / "wrong.py").write_text(wrong)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--python-executable"]
    command += [tmp_path / "user" / "bin" / "python", *sorted(tmp_path.glob("*.py"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(lines) == 1 and "wrong.py:3" in lines[0], done.stdout + done.stderr
