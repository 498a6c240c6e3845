"""``m3mlx parity``: its table, its line, and its exit code when something differs."""

import importlib.util
import json
from functools import partial

import pytest
from click.testing import CliRunner

from m3mlx.cli import main
from m3mlx.memory.cache import MemoryCache
from m3mlx.parity import check
from m3mlx.parity.cases import TINY
from m3mlx.parity.golden import FOLDER, read_golden
from m3mlx.parity.measure import STAGES


@pytest.fixture
def m3(monkeypatch):
    """Run the command with one case in one precision, which is quick."""
    monkeypatch.setattr(check, "TINY", {"llama": TINY["llama"]})
    monkeypatch.setattr(check, "DTYPES", {"float32": STAGES})
    return lambda *args: CliRunner().invoke(main, ["parity", *args])


def test_a_table_of_stages_and_a_line_to_paste(m3):
    done = m3("--quick")
    assert done.exit_code == 0, done.stderr
    for stage in STAGES:
        assert f"\n {stage} " in done.stdout or f"\n{stage} " in done.stdout
    line = done.stdout.splitlines()[-1]
    count = sum(why is None for why in check.devices().values())
    assert line.startswith(f"m3mlx parity: {count} of {count} comparisons agree; float32 logits")
    assert "a whole model left out: left out by --quick" in done.stderr
    assert "DIFFERS" not in done.stdout


def test_what_differs_is_named_and_the_exit_code_is_1(m3, monkeypatch):
    shifted = property(lambda self: self.base.offset + self.gap + 1)
    monkeypatch.setattr(MemoryCache, "offset", shifted)
    done = m3("--quick")
    assert done.exit_code == 1
    assert "DIFFERS from layer 0" in done.stdout
    assert "mlx cpu float32 llama differs from golden cpu at layers" in done.stdout.splitlines()[-1]


def test_json(m3, monkeypatch):
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "torch" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    data = json.loads(m3("--json").stdout)
    assert data["sound"] is True and "PyTorch is not installed" in data["skipped"]["a whole model"]
    (result, *_) = data["results"]
    assert [d["stage"] for d in result["differences"]] == list(STAGES)


def test_a_damaged_golden_file_is_one_line(m3, monkeypatch, tmp_path):
    (tmp_path / "llama.npz").write_bytes((FOLDER / "llama.npz").read_bytes()[:5000])
    monkeypatch.setattr(check, "read_golden", partial(read_golden, folder=tmp_path))
    done = m3("--quick")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and "llama.npz is no golden file" in done.stderr


def test_without_the_repository_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(check, "REFERENCE", tmp_path)
    module, why = check.reference_side()
    assert module is None and "install m3mlx from its repository" in why
