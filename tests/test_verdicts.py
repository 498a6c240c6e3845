"""What verification found is kept and shown: how exact, why refused, or not verified yet."""

import json
import os
import shutil

import pytest
import tiny
from click.testing import CliRunner

from m3mlx import Assistant, verify
from m3mlx.cli import main
from m3mlx.config import cache_folder
from m3mlx.errors import ModelError
from m3mlx.memory.cache import Layout
from m3mlx.models import builtin, decoder, inventory
from m3mlx.models.verdicts import verdict_of

NAME = builtin.DEFAULT_DECODER
LONG = "mlx-community/Qwen3-4B-Instruct-2507-4bit"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home with an encoder and two decoders, one of them of the hub."""
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verify, "cache_folder", cache_folder)  # not the one that tests share
    monkeypatch.setattr(decoder, "ADAPTERS", tmp_path / "no adapters")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny.save_model(tmp_path / "home/cache/models" / NAME)
    tiny.save_encoder(tmp_path / "home/cache/models" / builtin.DEFAULT_ENCODER)
    tiny.save_model(tmp_path / "hub" / f"models--{LONG.replace('/', '--')}" / "snapshots" / "1")
    return tmp_path


@pytest.fixture
def assistant(home):
    with Assistant(store=home / "store") as assistant:
        yield assistant


def shown(name=NAME):
    """The row of a model in the table."""
    lines = CliRunner().invoke(main, ["models"]).stdout.splitlines()
    return next(line for line in lines if line.strip().startswith(name)).split()


def wrong(monkeypatch):
    """Let memories be attached with a fault."""
    attach = Layout.attach

    def scaled(self, caches, memory, weights=None):
        if memory:
            memory.keys = memory.keys * 1.5
        attach(self, caches, memory, weights)

    monkeypatch.setattr(Layout, "attach", scaled)


def test_a_model_is_shown_as_not_verified_then_with_its_figure(assistant):
    assert shown()[-2:] == ["not", "yet"] and shown(builtin.DEFAULT_ENCODER)[-1] == "encoder"
    assistant._verify()
    difference = verify.verify(assistant.decoder)
    assert shown()[-2:] == ["to", f"{difference:.0e}"]
    data = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    found = {model["name"]: model["verdict"] for model in data["cached"]}
    assert found[NAME] == {"difference": difference, "refused": ""} and found[LONG] is None


def test_a_refused_model_is_shown_with_its_reason_until_it_passes(assistant, monkeypatch):
    with monkeypatch.context() as patch:
        wrong(patch)
        with pytest.raises(ModelError) as refused:
            assistant._verify()
    assert shown()[-1] == "refused"
    text = CliRunner().invoke(main, ["models"]).stdout
    assert " ".join(str(refused.value).split()) in " ".join(text.split())
    assistant._verify()  # as after an update of a library
    assert shown()[-2] == "to"


def test_what_is_refused_while_it_is_loaded_is_shown_too(home):
    file = home / "home/cache/models" / NAME / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_encoder_decoder": True}))
    with Assistant(store=home / "store") as assistant, pytest.raises(ModelError):
        assistant.decoder  # noqa: B018
    assert verdict_of(NAME).refused.endswith(
        "cannot carry explicit memory: it is an encoder-decoder."
    )
    assert verdict_of(NAME.upper()) == verdict_of(NAME) and verdict_of("other") is None


def test_what_was_found_of_other_files_devices_and_versions_is_not_shown(assistant, home):
    assistant._verify()
    (file,) = (home / "home/cache/verified").iterdir()
    kept = json.loads(file.read_text())
    for change in ({"device": "Device(tpu, 0)"}, {"versions": ["0", "0", "0"]}, {"format": 99}):
        file.write_text(json.dumps(kept | change))
        assert verdict_of(NAME) is None
    file.write_text(json.dumps(kept))
    assert shown()[-2] == "to"
    weights = home / "home/cache/models" / NAME / "model.safetensors"
    os.utime(weights, (file.stat().st_mtime + 10,) * 2)  # fetched again
    assert shown()[-2:] == ["not", "yet"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"model": 7}', '{"difference": "x"}', "\udc80"], ids=repr
)
def test_a_damaged_verdict_is_none(assistant, home, text):
    assistant._verify()
    (file,) = (home / "home/cache/verified").iterdir()
    if text.startswith('{"'):
        text = json.dumps(json.loads(file.read_text()) | json.loads(text))
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert verdict_of(NAME) is None and shown()[-2:] == ["not", "yet"]


def test_a_refusal_that_cannot_be_kept_is_raised_all_the_same(assistant, home, monkeypatch):
    wrong(monkeypatch)
    (home / "home/cache/verified").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match="cannot carry explicit memory"):
        assistant._verify()
    assert shown()[-2:] == ["not", "yet"]


def test_the_tables_fit_80_columns_with_the_longest_names(assistant, home, monkeypatch):
    assistant._verify()
    shutil.rmtree(home / "home/cache/models" / builtin.DEFAULT_ENCODER)
    monkeypatch.setattr(inventory, "machine_memory", lambda: (999 * 10**9, 10**9))
    monkeypatch.setattr("m3mlx.cli.render._columns", lambda: 80)
    lines = CliRunner().invoke(main, ["models"]).stdout.splitlines()
    assert any(LONG in line for line in lines)
    assert max(map(len, lines)) <= 80
