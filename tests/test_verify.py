"""A model is proved before its first use, and refused where memories change what it computes."""

import json

import mlx.core as mx
import pytest
from tiny import FAMILIES, KINDS, OTHERS, save_encoder, save_model

from m3mlx import Assistant, verify
from m3mlx.errors import ModelError
from m3mlx.memory.cache import Layout
from m3mlx.models.decoder import geometry_of, load_decoder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "verified"


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS, *KINDS])
def test_every_family_is_exact(family, tmp_path):
    decoder = load_decoder(str(save_model(tmp_path / "model", family)))
    for what, (difference, tolerance) in verify.differences(decoder).items():
        assert 0 <= difference < 1e-5 < tolerance, what


@pytest.fixture
def decoder(tmp_path):
    return load_decoder(str(save_model(tmp_path / "model")))


def test_what_was_found_is_kept_and_not_computed_again(decoder, home, monkeypatch):
    found = verify.verify(decoder)
    (file,) = home.iterdir()
    kept = json.loads(file.read_text())
    assert kept["difference"] == found < 1e-5 and kept["seconds"] >= 0
    monkeypatch.setattr(verify, "differences", lambda decoder: pytest.fail("computed again"))
    assert verify.verify(decoder) == found


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"difference": "x"}', "\udc80"])
def test_a_damaged_result_is_computed_again(decoder, home, damage):
    found = verify.verify(decoder)
    (file,) = home.iterdir()
    file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert verify.verify(decoder) == found
    assert json.loads(file.read_text())["difference"] == found


def faulty(monkeypatch, change):
    """Let memories be attached with a fault."""
    attach = Layout.attach

    def wrong(self, caches, memory, weights=None):
        attach(self, caches, memory and change(memory), weights)

    monkeypatch.setattr(Layout, "attach", wrong)


def scaled(memory):
    memory.keys = memory.keys * 1.5
    return memory


def not_a_number(memory):
    memory.values = memory.values * mx.nan
    return memory


@pytest.mark.parametrize("change", [scaled, not_a_number])
def test_a_model_that_reads_memories_otherwise_is_refused(decoder, home, monkeypatch, change):
    faulty(monkeypatch, change)
    with pytest.raises(ModelError, match=r"cannot carry explicit memory: .*memory changes its"):
        verify.verify(decoder)
    assert not home.exists()


def test_a_model_that_fails_is_refused_in_one_line(decoder, monkeypatch):
    def fail(self, tokens, cache=None):
        raise IndexError("list index out of range\nand more")

    monkeypatch.setattr(type(decoder.model), "__call__", fail)
    with pytest.raises(ModelError, match=r"reading one fails \(list index out of range\)\.$"):
        verify.verify(decoder)


def test_an_assistant_verifies_before_it_calibrates_or_writes(tmp_path, monkeypatch):
    faulty(monkeypatch, scaled)
    model, encoder = str(save_model(tmp_path / "model")), str(save_encoder(tmp_path / "encoder"))
    with Assistant(model, tmp_path / "store", encoder=encoder, tokens_per_head=4) as assistant:
        with pytest.raises(ModelError, match="cannot carry explicit memory"):
            assistant.memorize(contents={"text:kite": b"A kite."})
        assert not assistant.has_store()
        assert assistant.ask("Hello?", memory="off", max_tokens=2).text is not None


def test_an_attention_that_cannot_be_run_is_refused_in_words(decoder):
    class Attention:
        rope = None

    for layer in decoder.model.layers:
        layer.self_attn = Attention()
    with pytest.raises(ValueError, match=r"a first pass fails \(.*not callable\)"):
        geometry_of(decoder.model)
