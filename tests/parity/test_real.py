"""A whole model beside the reference; ``m3mlx parity --model NAME`` does it for any other."""

import json
from types import SimpleNamespace

import pytest

from m3mlx.errors import ModelError

pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")

from real import real_case, real_result


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model_computes_what_the_reference_computes(device, agree):
    agree(real_result(None, device=device))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma3_text"},
        {"rope_scaling": {"factor": 2.0}},
        {"use_sliding_window": True},
        {"quantization": {"bits": 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_the_reference_does_not_know_is_refused(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **change}))
    with pytest.raises(ModelError, match="some-model cannot be compared with PyTorch here"):
        real_case(SimpleNamespace(path=tmp_path, name="some-model"))
