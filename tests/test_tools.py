"""Every program of a maintainer starts: what it imports exists, and it says how to use it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


PROGRAMS = [file for file in sorted(TOOLS.glob("*.py")) if "__main__" in file.read_text("utf-8")]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_tool_starts(program):
    environment = None
    if program.stem == "parity":
        pytest.importorskip("torch")
        environment = {**os.environ, "PYTHONPATH": str(TOOLS.parent)}
    command = [sys.executable, program, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {program.name}")
