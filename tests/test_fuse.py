"""An adapter merged into its model: the same answers without it, or nothing written."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import quantize_model
from mlx_lm.utils import save_model as save_weights
from tiny import save_model, tiny_model

from m3mlx.errors import ModelError
from m3mlx.models.decoder import fuse_adapter, load_decoder
from m3mlx.train import Settings
from m3mlx.train.adapter import initial_weights, prepare, save_adapter

TOKENS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter that changes much; the model that it belongs to is beside it."""
    save_model(tmp_path / "model")
    model = tiny_model()
    config = prepare(model, Settings(data=("x",), output="y", rank=4, scale=2.0))
    assert all(float(mx.abs(x).max()) == 0 for x in leaves(initial_weights(model), "lora_b"))
    model.apply_to_modules(
        lambda name, part: (
            "lora_b" in part and part.update({"lora_b": 0.2 * mx.random.normal(part.lora_b.shape)})
        )
    )
    save_adapter(tmp_path / "adapter", model, config, str(tmp_path / "model"))
    return tmp_path


def leaves(tree, name):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from [value] if key == name else leaves(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, name)


def logits(*path, **options):
    return np.array(load_decoder(*map(str, path), **options).model(TOKENS))


def test_a_fused_model_is_the_model_with_its_adapter(adapter):
    fuse_adapter(str(adapter / "model"), adapter / "adapter", adapter / "fused")
    expected = logits(adapter / "model", adapter_path=adapter / "adapter")
    np.testing.assert_allclose(logits(adapter / "fused"), expected, atol=1e-4)
    assert np.abs(expected - logits(adapter / "model")).max() > 0.1
    fused, plain = (load_decoder(str(adapter / name)) for name in ("fused", "model"))
    assert fused.weights != plain.weights and fused.tokenizer_hash == plain.tokenizer_hash
    assert not [path for path in adapter.iterdir() if path.name.startswith(".")]


def test_a_quantized_model_is_quantized_again_or_not(adapter):
    model = tiny_model()
    config = json.loads((adapter / "model" / "config.json").read_text())
    model, config = quantize_model(model, config, group_size=64, bits=8)
    save_weights(adapter / "model", model)
    (adapter / "model" / "config.json").write_text(json.dumps(config))
    expected = logits(adapter / "model", adapter_path=adapter / "adapter")
    fuse_adapter(str(adapter / "model"), adapter / "adapter", adapter / "again")
    fuse_adapter(str(adapter / "model"), adapter / "adapter", adapter / "exact", dequantize=True)
    settings = {
        name: json.loads((adapter / name / "config.json").read_text())
        for name in ("again", "exact")
    }
    assert "quantization" in settings["again"] and "quantization" not in settings["exact"]
    np.testing.assert_allclose(logits(adapter / "exact"), expected, atol=1e-4)
    error = np.abs(logits(adapter / "again") - expected).max()
    assert 1e-4 < error < 0.5


def test_nothing_is_overwritten_or_left_behind(adapter):
    (adapter / "mine").mkdir()
    with pytest.raises(ModelError, match="mine exists"):
        fuse_adapter(str(adapter / "model"), adapter / "adapter", adapter / "mine")
    before = sorted(adapter.iterdir())
    with pytest.raises(ModelError, match="is no adapter for this model"):
        fuse_adapter(str(adapter / "model"), adapter / "mine", adapter / "fused")
    assert sorted(adapter.iterdir()) == before


def test_an_adapter_of_mlx_lms_own_making_is_fused_too(adapter):
    model = tiny_model()
    model.freeze()
    lora = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.down_proj"]}
    linear_to_lora_layers(model, 2, lora)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora}
    save_adapter(adapter / "other", model, config, "x")
    fuse_adapter(str(adapter / "model"), adapter / "other", adapter / "fused")
    np.testing.assert_allclose(logits(adapter / "fused"), logits(adapter / "model"), atol=1e-5)
