"""The budget of each head: its arithmetic, its choice, and that it is found once."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_model

from m3mlx import calibrate as module
from m3mlx.calibrate import AUTO_SHARE, calibrate, head_budget
from m3mlx.config import REFERENCE_TOKENS, cache_folder
from m3mlx.errors import M3Error
from m3mlx.models.decoder import load_decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load_decoder(str(save_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path))
    monkeypatch.setattr(module, "cache_folder", cache_folder)  # none of another test


def scores(seed, references, layers, heads):
    """Random scores of references of different lengths, some heads much larger than others."""
    rng = np.random.default_rng(seed)
    size = rng.exponential(1, (layers, heads, 1)) ** 3
    made = []
    for _ in range(references):
        score = (rng.random((layers, heads, REFERENCE_TOKENS)) * size).astype(np.float32)
        score[..., int(rng.integers(1, REFERENCE_TOKENS + 1)) :] = -1
        made.append(score)
    return made


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    references=st.integers(1, 5),
    layers=st.integers(1, 6),
    heads=st.integers(1, 4),
    average=st.sampled_from([1, 4, 8, 64, 128]),
)
def test_budgets_add_up_and_no_head_exceeds_a_reference(seed, references, layers, heads, average):
    counts = np.array(head_budget(scores(seed, references, layers, heads), average))
    assert counts.shape == (layers, heads)
    assert counts.sum() == average * layers * heads
    assert counts.min() >= 0 and counts.max() <= REFERENCE_TOKENS


def test_heads_get_what_they_hold_of_the_best_tokens():
    score = np.full((1, 2, REFERENCE_TOKENS), 0.1, np.float32)
    score[0, 1, :6] = 0.9
    assert head_budget([score], 3) == [[0, 6]]


def test_one_head_that_holds_nothing_keeps_nothing_but_the_total_stays():
    score = scores(0, 1, 3, 2)[0]
    score[1, 1, :] = np.where(score[1, 1] >= 0, 0.0, -1)
    assert head_budget([score], 8)[1][1] == 0


@pytest.mark.parametrize("budget", ["calibrated", "uniform"])
def test_a_given_average_is_kept_and_found_again_without_measuring(decoder, budget, monkeypatch):
    config = calibrate(decoder, budget=budget, tokens_per_head=8, key_bits=4)
    assert config.tokens_per_head == 8 and config.key_bits == 4
    assert (budget == "uniform") == (len({c for layer in config.counts for c in layer}) == 1)
    monkeypatch.setattr(module, "_Measure", None)  # measuring again would fail
    assert calibrate(decoder, budget=budget, tokens_per_head=8, key_bits=4) == config


def test_an_adapter_brings_its_calibration_along(tmp_path, decoder, monkeypatch):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    monkeypatch.setattr(module._Measure, "loss", lambda self, counts, *_, **__: 2 - bool(counts))
    adapted = replace(decoder, adapter="a", adapter_path=adapter)
    assert module.save_with_adapter(adapted) == adapter / "calibration.json"
    found = calibrate(adapted)
    shutil.rmtree(cache_folder())
    monkeypatch.setattr(module, "_Measure", None)  # measuring again would fail
    assert calibrate(adapted) == found
    for other in (
        {"decoder": replace(adapted, adapter="b")},
        {"decoder": replace(adapted, weights="b")},
        {"decoder": adapted, "selection": "attention"},
        {"decoder": adapted, "tokens_per_head": 5},
    ):
        with pytest.raises(TypeError, match="not callable"):
            calibrate(**other)


def test_a_cached_calibration_of_version_0_1_is_used(decoder, monkeypatch):
    gains = {1.0: 2.0, 1.1: 1.5, 1.2: 1.4, 1.3: 1.39}
    monkeypatch.setattr(module._Measure, "loss", lambda self, counts, scale, **_: gains[scale])
    config = calibrate(decoder, tokens_per_head=4)
    assert config.key_scale == 1.2
    (file,) = (cache_folder() / "calibrations").iterdir()
    old = json.loads(file.read_text())
    old["sharpness"] = old.pop("key_scale")
    file.write_text(json.dumps(old))
    monkeypatch.setattr(module, "_Measure", None)  # measuring again would fail
    assert calibrate(decoder, tokens_per_head=4) == config


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'"text"', b"\xff\xfe"])
def test_a_damaged_calibration_is_made_again(decoder, damage, monkeypatch):
    monkeypatch.setattr(module._Measure, "loss", lambda self, counts, scale, **_: scale)
    config = calibrate(decoder, tokens_per_head=4)
    (file,) = (cache_folder() / "calibrations").iterdir()
    file.write_bytes(damage)
    assert calibrate(decoder, tokens_per_head=4) == config
    assert json.loads(file.read_text())["tokens_per_head"] == 4


def test_auto_takes_the_smallest_average_that_is_enough(decoder, monkeypatch):
    worth = {4: 0.5, 8: AUTO_SHARE - 0.01, 16: AUTO_SHARE, 32: 1.0}

    def loss(self, counts, key_scale=1.0, among=1):
        if counts is None:
            return 6.0
        average = np.mean(counts)
        return 2.0 if average == REFERENCE_TOKENS else 6.0 - 4.0 * worth[average]

    monkeypatch.setattr(module._Measure, "loss", loss)
    config = calibrate(decoder)
    assert config.tokens_per_head == 16
    assert config.key_scale == 1  # because a larger one gains nothing


@pytest.mark.parametrize(
    "losses, best",
    [
        ({1.0: 2.0, 1.1: 2.1}, 1.0),
        ({1.0: 2.0, 1.1: 1.8, 1.2: 1.79}, 1.1),
        ({1.0: 2.0, 1.1: 1.8, 1.2: 1.7, 1.3: 1.6, 1.4: 1.5}, 1.4),
    ],
)
def test_keys_are_enlarged_while_that_gains_more_than_a_hundredth(
    decoder, monkeypatch, losses, best
):
    measured = []

    def loss(self, counts, key_scale=1.0, among=1):
        measured.append(key_scale)
        return losses[key_scale]

    monkeypatch.setattr(module._Measure, "loss", loss)
    assert calibrate(decoder, tokens_per_head=4).key_scale == best
    assert measured == list(losses)


def test_other_budgets_differ_in_counts_alone(decoder):
    found = calibrate(decoder, tokens_per_head=4, key_bits=4)
    same, more, even = module.budgets(
        decoder, found, [("calibrated", 4), ("calibrated", 9), ("uniform", 3)]
    )
    assert same is found
    assert more == calibrate(decoder, tokens_per_head=9, key_bits=4)
    assert even.counts == ((3, 3),) * 4
    assert even == replace(found, budget="uniform", counts=even.counts)


def test_a_model_that_gains_nothing_from_memories_says_so(decoder):
    # A random model answers no better with the text than without.
    with pytest.raises(M3Error, match="--tokens-per-head"):
        calibrate(decoder)


def test_progress_is_reported(decoder):
    calls = []
    calibrate(decoder, tokens_per_head=4, progress=lambda *step: calls.append(step))
    assert calls[0] == ("scoring sample texts", 0, 24)
    assert ("scoring sample texts", 24, 24) in calls
    assert calls[-1] == ("measuring memories", 2, 2)


def test_no_more_is_measured_than_progress_says(decoder, monkeypatch):
    """Where no average suffices and every key scale helps: what tools/LOG.md counts with."""
    falling = iter([10.0, 1.0, *[9.0] * 5, *[8.0 - n for n in range(5)]])
    monkeypatch.setattr(module._Measure, "_mean_loss", lambda self, conversation: next(falling))
    calls = []
    assert calibrate(decoder, progress=lambda *step: calls.append(step)).key_scale == 1.4
    measured = [step for step in calls if step[0] == "measuring memories"]
    assert measured == [("measuring memories", n, 12) for n in range(13)]
    assert list(falling) == []
