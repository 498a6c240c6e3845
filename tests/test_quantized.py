"""Quantized models: what they take, what they compute, and adapters beside their weights."""

import importlib
import json
import re
import struct

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, quantize_model, save_config
from mlx_lm.utils import save_model as save_weights
from tiny import COMMON, byte_tokenizer, save_adapter, save_encoder, save_model

from m3mlx import Assistant
from m3mlx.errors import ModelError
from m3mlx.models import inventory
from m3mlx.models.decoder import load_decoder
from m3mlx.models.inventory import RECOMMENDED
from m3mlx.models.weights import read_weights
from m3mlx.verify import differences

IDS = mx.array([[5, 80, 200, 33, 7, 120]])
WAYS = {
    "affine 4": {"group_size": 64, "bits": 4},
    "affine 3": {"group_size": 32, "bits": 3},
    "affine 8": {"group_size": 32, "bits": 8},
    "mxfp4": {"group_size": None, "bits": None, "mode": "mxfp4"},
    "mxfp8": {"group_size": None, "bits": None, "mode": "mxfp8"},
    "nvfp4": {"group_size": None, "bits": None, "mode": "nvfp4"},
    "mixed": {
        "group_size": 64,
        "bits": 4,
        "quant_predicate": lambda path, module: (
            {"group_size": 32, "bits": 8} if "down_proj" in path else "v_proj" not in path
        ),
    },
}
on_cpu = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="weights stay quantized")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))


@pytest.fixture(params=WAYS)
def quantized(request, tmp_path):
    """A tiny model, quantized and saved as mlx-lm does it, in half precision."""
    return quantize(save_model(tmp_path / "tiny", "qwen3"), WAYS[request.param])


def quantize(folder, how):
    model, config = load_model(folder)
    model.set_dtype(mx.float16)
    model, config = quantize_model(model, config, **how)
    save_weights(folder, model)
    save_config(config, folder / "config.json")
    return folder


def logits(model):
    return np.array(model(IDS).astype(mx.float32))


def packed(model):
    return [name for name, part in model.named_modules() if hasattr(part, "bits")]


@on_cpu
def test_on_a_cpu_each_kind_becomes_float32_and_computes_the_same(quantized):
    plain, _ = load_model(quantized)
    assert packed(plain)
    plain.set_dtype(mx.float32)
    decoder = load_decoder(str(quantized))
    weights = [array for _, array in tree_flatten(decoder.model.parameters())]
    assert not packed(decoder.model) and {array.dtype for array in weights} == {mx.float32}
    largest = np.abs(logits(plain)).max()
    np.testing.assert_allclose(logits(decoder.model), logits(plain), atol=1e-5 * largest, rtol=0)
    assert all(difference < 1e-5 for difference, _ in differences(decoder).values())


@on_cpu
def test_what_it_takes_is_told_exactly_without_loading_it(quantized):
    loaded = load_decoder(str(quantized)).model.parameters()
    bytes_loaded = sum(array.nbytes for _, array in tree_flatten(loaded))
    found = read_weights(quantized)
    assert found.loaded_bytes == bytes_loaded == 4 * found.count
    stored = (quantized / "model.safetensors").stat().st_size
    assert 0 < stored - found.stored_bytes < 20_000  # the header


def test_elsewhere_weights_take_what_they_take_on_the_disk(quantized, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    found = read_weights(quantized)
    model = load_decoder(str(quantized)).model
    assert packed(model)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    assert found.loaded_bytes == found.stored_bytes == sum(array.nbytes for array in arrays)


@on_cpu
def test_an_adapter_is_exact_beside_and_merged_into_each_kind(quantized, tmp_path, monkeypatch):
    adapter = save_adapter(tmp_path / "adapter")
    plain, _ = load_model(quantized)
    load_adapters(plain, str(adapter))
    plain.set_dtype(mx.float32)
    expected = logits(plain)
    merged = load_decoder(str(quantized), adapter_path=adapter).model
    largest = np.abs(expected).max()
    np.testing.assert_allclose(logits(merged), expected, atol=5e-5 * largest, rtol=0)
    assert np.abs(logits(load_decoder(str(quantized)).model) - expected).max() > 0.01 * largest
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)  # so that weights stay quantized
    beside = load_decoder(str(quantized), adapter_path=adapter).model
    assert packed(beside)
    beside.set_dtype(mx.float32)
    np.testing.assert_allclose(logits(beside), expected, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("quantized", ["mxfp4"], indirect=True)
def test_an_assistant_answers_with_a_quantized_model_from_its_memory(quantized, tmp_path):
    encoder = str(save_encoder(tmp_path / "encoder"))
    made = {"encoder": encoder, "tokens_per_head": 4, "budget": "uniform"}
    with Assistant(str(quantized), tmp_path / "store", **made) as assistant:
        assistant.memorize(contents={"text:kite": b"A kite is in the old tree."})
        answer = assistant.ask("Where is the kite?", max_tokens=3)
        assert answer.sources and assistant.decoder.name == str(quantized)


@pytest.fixture
def experts(tmp_path):
    """A mixture of experts as Qwen3-30B-A3B, the default of the largest machines."""
    folder = byte_tokenizer(tmp_path / "experts")
    config = {**COMMON, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
    config |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64}
    config |= {"norm_topk_prob": True, "head_dim": 16}
    module = importlib.import_module("mlx_lm.models.qwen3_moe")
    mx.random.seed(0)
    save_weights(folder, module.Model(module.ModelArgs.from_dict(config)))
    save_config(config, folder / "config.json")
    return folder


@on_cpu
@pytest.mark.parametrize("how", ["affine 4", "mxfp4"])
def test_experts_are_counted_and_dequantized_too(how, experts):
    decoder = load_decoder(str(quantize(experts, WAYS[how])))
    arrays = [array for _, array in tree_flatten(decoder.model.parameters())]
    assert {array.dtype for array in arrays} == {mx.float32} and not packed(decoder.model)
    assert read_weights(experts).loaded_bytes == sum(array.nbytes for array in arrays)
    assert all(difference < 1e-5 for difference, _ in differences(decoder).values())


@on_cpu
def test_scales_that_only_a_gpu_reads_are_refused_on_a_cpu(experts):
    quantize(experts, {**WAYS["nvfp4"], "global_scale": True})
    with pytest.raises(ModelError, match="needs a GPU: its nvfp4 experts"):
        load_decoder(str(experts))


def huge(folder, **changes):
    """A 4-bit model directory whose header names 40 GB of weights; the file itself is sparse."""
    folder.mkdir()
    rows, width = 400_000, 200_000
    shapes = {"weight": ("U32", [rows, width // 8]), "scales": ("F16", [rows, width // 64])}
    header, place = {}, 0
    for kind, (dtype, shape) in shapes.items():
        size = shape[0] * shape[1] * (4 if dtype == "U32" else 2)
        header[f"model.layer.{kind}"] = {
            **{"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        }
        place += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    settings = {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}, **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@on_cpu
def test_what_cannot_fit_is_refused_before_it_is_loaded_and_names_what_would(tmp_path, monkeypatch):
    folder = huge(tmp_path / "huge")
    assert read_weights(folder).count == 80_000_000_000
    monkeypatch.setattr(inventory, "machine_memory", lambda: (16 * 2**30, None))
    monkeypatch.setattr("m3mlx.models.decoder._load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError) as refused:
        load_decoder(str(folder))
    message = str(refused.value)
    assert "takes 320.0 GB of memory" in message and "has 17.2 GB" in message
    name = re.search(r"; (\S+) would fit\.$", message).group(1)
    (model,) = [model for model in RECOMMENDED if model.name == name]
    assert inventory.fits(model) and "\n" not in message and message.count(". ") == 0


@on_cpu
def test_a_large_model_is_told_of_while_it_loads(tmp_path, monkeypatch):
    folder, seen = save_model(tmp_path / "tiny"), []
    load_decoder(str(folder), progress=lambda *step: seen.append(step))
    assert seen == []  # a small one is not
    monkeypatch.setattr(inventory, "_LARGE", 1000)
    load_decoder(str(folder), progress=lambda *step: seen.append(step))
    assert seen == [("loading 0.0 GB of memory (float32)", n, 1) for n in (0, 1)]


@pytest.mark.parametrize(
    "settings",
    [{"quantization": []}, {"quantization": {"model.layer": 7}}, {"quantization": {"bits": 4}}],
)
def test_odd_settings_do_not_keep_a_size_from_being_told(tmp_path, settings):
    assert read_weights(huge(tmp_path / "huge", **settings)).count == 80_000_000_000


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F16", "shape": [2, -1], "data_offsets": [0, 4]}},
        {"a": {"dtype": 7, "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": "ab", "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 9]}},
        {"a": []},
        {},
        [],
        "a",
    ],
)
def test_a_hostile_header_is_damaged_weights(tmp_path, header):
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cut short or damaged"):
        read_weights(tmp_path)
