"""What the README says is true: its commands run, its lists are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m3mlx.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NOTE = "# Boiler\n\nThe boiler was serviced by Ada Quill on the ninth of May.\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def lines(start: str) -> list[str]:
    found = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in found if line.startswith(start)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with notes, in which the README's lines are run."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "house.md").write_text(NOTE)
    monkeypatch.setenv("M3MLX_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("M3MLX_PASSPHRASE", "nine brass buttons")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.model
def test_the_commands_work_in_their_order(place):
    commands = lines("m3mlx")
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command.replace("~/", f"{place}/"))
        if words[1] == "parity":
            words.append("--quick")  # the rest of it is what parity/test_real.py does
        done = subprocess.run(
            [sys.executable, "-m", *words],
            input="" if words[1] == "chat" else None,
            env={**os.environ, "PYTHONPATH": str(ROOT)} if words[1] == "parity" else None,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, (command, done.stderr)
        if words[1] in ("ask", "recall"):
            assert "house.md" in done.stdout


@pytest.mark.slow
@pytest.mark.model
def test_the_python_works(place, capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "house.md" in capsys.readouterr().out


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert lines("make")
    for line in lines("make"):
        assert f"\n{line.split()[1]}: " in makefile


def test_installing_without_make_names_extras_that_exist():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = re.findall(r"-e '\.\[(\w+)\]'", README)
    assert extras == ["cpu", "cuda13", "parity"]
    for extra in [*extras, "cuda12"]:
        assert f"\n{extra} = [" in project


def test_the_table_of_commands_is_complete():
    table = re.findall(r"^\| `m3mlx (\w+)", README, re.MULTILINE)
    assert table == list(main.commands)


def test_the_tree_names_every_module():
    tree = README.split("## The tree")[1].split("```")[1]
    names = set(re.findall(r"(\w+(?:\.py|/))", tree))
    package = ROOT / "m3mlx"
    wanted = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    wanted |= {path.name for path in (package / "memory").glob("*.py")} - {"__init__.py"}
    wanted |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert wanted <= names
    for name in names - {"m3mlx/", "convert/", "tools/", "tests/", "data/"}:
        assert list(package.rglob(name.rstrip("/"))), name


def test_numbers_of_the_format_are_those_of_the_code():
    from m3mlx.config import MemoryConfig
    from m3mlx.memory.codec import Codec

    smollm2 = MemoryConfig("reconstruction", "uniform", ((8,) * 3,) * 30, 64, (1,))
    assert f"{Codec(smollm2).record_bytes:,} bytes" in README
    assert f"{30 * 3 * 128 * 64 * 2 * 2:,} in bfloat16" in README
