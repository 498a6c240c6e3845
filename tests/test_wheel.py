"""The built wheel: it holds every file that the programs need, nothing of the tests, and types."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import is_dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

import m3mlx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of wheel and sdist: M3MLX_DIST, as in make dist, or built here."""
    if given := os.environ.get("M3MLX_DIST"):
        return ROOT / given
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for package in ("m3mlx", "convert", "tests"):
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools.build_meta import *; build_sdist('..'); build_wheel('..')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


def wanted_files():
    return {
        str(path.relative_to(ROOT))
        for package in ("m3mlx", "convert")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_both_packages_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert "m3mlx = m3mlx.cli:main" in archive.read(names["entry_points.txt"]).decode()
        assert archive.read(names["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert f"Version: {m3mlx.__version__}\n" in archive.read(names["METADATA"]).decode()
    assert {"m3mlx/py.typed", "m3mlx/serve/page/main.js", "m3mlx/data/demo.json"} <= held
    assert held == wanted_files()


@pytest.mark.slow
def test_the_sdist_holds_what_the_wheel_is_built_of_and_nothing_else(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        }
    about = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "MANIFEST.in", "PKG-INFO"}
    assert {name for name in held if ".egg-info/" not in name} == wanted_files() | about | {
        "setup.cfg"
    }


def test_the_stub_has_the_public_names():
    stub = (ROOT / "m3mlx" / "__init__.pyi").read_text("utf-8")
    found = re.findall(r"^from \.([\w.]+) import (\w+) as \2$", stub, re.M)
    assert {name: place for place, name in found} == m3mlx._PLACES
    assert set(m3mlx.__all__) == m3mlx._PLACES.keys()


def functions_of(name):
    """A public function, or the methods that a public class has of its own; by their names."""
    public = getattr(m3mlx, name)
    if inspect.isfunction(public):
        return {name: public}
    found = {own: getattr(value, "__func__", value) for own, value in vars(public).items()}
    return {
        f"{name}.{own}": value
        for own, value in found.items()
        if inspect.isfunction(value)
        and (not own.startswith("_") or (own == "__init__" and not is_dataclass(public)))
    }


def test_nothing_that_a_user_meets_is_untyped_or_undocumented():
    bare = [name for name in m3mlx.__all__ if not getattr(m3mlx, name).__doc__]
    for name in m3mlx.__all__:
        for where, function in functions_of(name).items():
            signature = inspect.signature(function)
            given = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
            types = [p.annotation for p in given if p.kind != p.VAR_KEYWORD]
            types += [] if where.endswith("__init__") else [signature.return_annotation]
            if not function.__doc__ or {"Any", inspect.Signature.empty}.intersection(types):
                bare.append(where)
    assert bare == []


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
