"""A short day of tools/day.py, with the default models."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(
    "m3mlx" not in entry_points(group="llm").names, reason="needs m3mlx installed, for llm to find"
)
def test_a_day_with_few_files(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "day.py", tmp_path / "day", "--files", "27"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ways = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ok ")}
    assert {"watch", "cli", "server", "mcp", "llm", "forget", "check"} <= ways
