"""Finding and loading: tiny random models of every verified family, names, hashes, refusals."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import generate
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, quantize_model
from mlx_lm.utils import save_model as save_weights
from tiny import FAMILIES, byte_tokenizer, save_adapter, save_model, tiny_model

from m3mlx.errors import ModelError
from m3mlx.models import decoder as models
from m3mlx.models.decoder import MemoryLayer, load_decoder, load_encoder

IDS = mx.array([[5, 80, 200, 33, 7, 120]])


@pytest.fixture(autouse=True)
def own_home(request, tmp_path, monkeypatch):
    """Keep the user's cache out of all tests but those of the real models."""
    if "model" not in request.keywords:
        monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))


def same_logits(decoder, model, **tolerance):
    np.testing.assert_allclose(np.array(decoder.model(IDS)), np.array(model(IDS)), **tolerance)


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_verified_families_load_with_their_geometry(family, tmp_path):
    folder = save_model(tmp_path / "tiny", family)
    decoder = load_decoder(str(folder))
    assert decoder.geometry == (MemoryLayer(4, 2, 16, 16),) * 4
    assert type(decoder.model).__module__.startswith("mlx_lm.models.")
    original = tiny_model(family)
    original.load_weights(str(folder / "model.safetensors"))
    loaded = dict(tree_flatten(decoder.model.parameters()))
    for name, weight in tree_flatten(original.parameters()):
        assert mx.array_equal(loaded[name], weight)
    # Some processors' BLAS adds the products of column-major weights in another order. Float32
    # rounds to 6e-8, in some 30 matrix products one after the other: 2e-6 of the largest logit.
    largest = float(mx.abs(original(IDS)).max())
    same_logits(decoder, original, atol=4e-6 * largest, rtol=0)
    assert decoder.adapter == "" and decoder.path == tmp_path / "tiny"
    assert decoder.tokenizer.eos_token_ids == {259}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_becomes_float32_where_there_is_no_gpu(dtype, tmp_path):
    folder = save_model(tmp_path / "tiny", "qwen2")
    weights = mx.load(str(folder / "model.safetensors"))
    half = {name: array.astype(dtype) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), half)
    loaded = dict(tree_flatten(load_decoder(str(folder)).model.parameters()))
    expected = mx.float32 if mx.default_device() == mx.cpu else dtype
    assert loaded.keys() == half.keys()
    for name, array in loaded.items():
        assert array.dtype == expected and mx.array_equal(array, half[name].astype(expected))


def test_quantized_weights_are_dequantized_where_there_is_no_gpu(tmp_path):
    how = {"group_size": 32, "bits": 4}
    folder = save_model(tmp_path / "tiny")
    quantized = tiny_model("llama")
    quantized.load_weights(str(folder / "model.safetensors"))
    quantized.set_dtype(mx.float16)
    nn.quantize(quantized, **how)
    weights = dict(tree_flatten(quantized.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    rewrite_config(folder, quantization=how)
    decoder = load_decoder(str(folder))
    bits = [module for _, module in decoder.model.named_modules() if hasattr(module, "bits")]
    assert bool(bits) == (mx.default_device() != mx.cpu)
    quantized.set_dtype(mx.float32)
    decoder.model.set_dtype(mx.float32)
    same_logits(decoder, quantized, atol=1e-4)
    assert decoder.dims == ((16, 16),) * 4


STATE_SPACE = {
    "model_type": "mamba",
    **{"vocab_size": 260, "hidden_size": 32, "intermediate_size": 32, "state_size": 4},
    **{"num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True},
    **{"time_step_rank": 4},
}
REFUSED = {
    "state space": (STATE_SPACE, r"\(mamba\).*keep a state instead of keys and values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_carry_memory_are_refused_with_the_reason(case, tmp_path):
    config, message = REFUSED[case]
    folder = byte_tokenizer(tmp_path / "model")
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_decoder(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "t5"}, "Model type t5 not supported"),
        ({"hidden_size": 32}, "cannot be loaded by mlx-lm"),
        ({"model_file": "evil.py"}, "cannot be loaded by mlx-lm.*custom"),
    ],
)
def test_configs_that_mlx_lm_cannot_load_are_refused(changes, message, tmp_path):
    folder = save_model(tmp_path / "tiny")
    rewrite_config(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_decoder(str(folder))
    assert "\n" not in str(caught.value)


def test_broken_folders_are_refused(tmp_path):
    folder = save_model(tmp_path / "tiny")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-5000])
    with pytest.raises(ModelError, match="tiny"):
        load_decoder(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="No safetensors"):
        load_decoder(str(folder))
    for content in ("{", "[]"):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"no model directory: config\.json"):
            load_decoder(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no model directory: config\.json"):
        load_decoder(str(folder))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    folder = save_model(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded by mlx-lm"):
        load_decoder(str(folder))


def test_a_typo_names_what_is_built_in():
    message = "no such directory.*smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct"
    for name in ("smollm-135m", "./nowhere", "/no/such/folder", ""):
        if name:
            with pytest.raises(ModelError, match=message):
                load_decoder(name)
    with pytest.raises(ModelError, match=r"all-minilm-l6-v2"):
        load_encoder("minilm")


def test_a_built_in_name_of_the_other_kind_is_refused():
    with pytest.raises(ModelError, match="All-MiniLM-L6-v2 is an encoder, not a decoder"):
        load_decoder("All-MiniLM-L6-v2")
    with pytest.raises(ModelError, match="is a decoder, not an encoder"):
        load_encoder("smollm2-135m-instruct")


def test_a_gguf_file_is_answered_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"python -m convert\.from_gguf"):
        load_decoder(str(tmp_path / "m.gguf"))


def test_a_hub_id_without_network_is_a_clear_error(tmp_path):
    script = (
        "from m3mlx.models.decoder import load_decoder\nfrom m3mlx.errors import ModelError\n"
        "try: load_decoder('nobody/no-such-model')\nexcept ModelError as e: print(e)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert "nobody/no-such-model: no such directory, and the hub does not give it" in ran.stdout


def test_relative_folders_and_home_folders_are_found(tmp_path, monkeypatch):
    save_model(tmp_path / "user" / "tiny")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("tiny", "./tiny", "~/tiny"):
        assert load_decoder(name).path == tmp_path / "user" / "tiny"


def test_hashes_follow_contents_and_not_places(tmp_path):
    one = load_decoder(str(save_model(tmp_path / "one")))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = load_decoder(str(tmp_path / "two"))
    assert (two.weights, two.tokenizer_hash) == (one.weights, one.tokenizer_hash)
    assert len(one.weights) == len(one.tokenizer_hash) == 64
    other = load_decoder(str(save_model(tmp_path / "other", seed=1)))
    assert other.weights != one.weights and other.tokenizer_hash == one.tokenizer_hash
    rewrite_config(tmp_path / "two", rope_theta=500.0)
    changed = load_decoder(str(tmp_path / "two"))
    assert changed.weights != one.weights and changed.rope != one.rope
    assert json.loads(changed.rope) == {"rope_theta": 500.0}
    tokenizer = json.loads((tmp_path / "two" / "tokenizer_config.json").read_text())
    settings = json.dumps(tokenizer | {"chat_template": "{{ messages }}"})
    (tmp_path / "two" / "tokenizer_config.json").write_text(settings)
    assert load_decoder(str(tmp_path / "two")).tokenizer_hash != one.tokenizer_hash


def test_weights_are_hashed_once_until_they_change(tmp_path):
    folder = save_model(tmp_path / "tiny")
    first = load_decoder(str(folder)).weights
    memo = tmp_path / "home" / "cache" / "hashes.json"
    known = json.loads(memo.read_text())
    key = next(key for key in known if "model.safetensors" in key)
    memo.write_text(json.dumps(known | {key: "0" * 64}))
    assert load_decoder(str(folder)).weights != first  # it trusted the memo
    memo.write_text("broken")
    assert load_decoder(str(folder)).weights == first
    save_model(folder, seed=1)
    assert load_decoder(str(folder)).weights != first


def test_an_adapter_changes_the_model_and_is_hashed(tmp_path):
    folder = save_model(tmp_path / "tiny")
    plain = load_decoder(str(folder))
    one = load_decoder(str(folder), adapter_path=save_adapter(tmp_path / "one"))
    two = load_decoder(str(folder), adapter_path=save_adapter(tmp_path / "two", seed=1))
    assert np.abs(np.array(one.model(IDS) - plain.model(IDS))).max() > 1e-3
    assert one.model(IDS).dtype == plain.model(IDS).dtype
    assert one.weights == plain.weights
    assert len({plain.adapter, one.adapter, two.adapter}) == 3


def adapted(folder, adapter, dtype):
    """The model as mlx-lm adapts it, with layers beside its own."""
    model, _ = load_model(folder)
    model.set_dtype(dtype)
    return load_adapters(model, str(adapter))


def lora_layers(model):
    return [name for name, part in model.named_modules() if "lora_a" in part]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_merged_and_changes_logits_by_rounding_only(family, tmp_path):
    folder, adapter = save_model(tmp_path / "tiny", family), save_adapter(tmp_path / "adapter")
    decoder = load_decoder(str(folder), adapter_path=adapter)
    plain = adapted(folder, adapter, mx.float32)
    assert lora_layers(plain) and not lora_layers(decoder.model)
    largest = float(mx.abs(plain(IDS)).max())
    same_logits(decoder, plain, atol=5e-5 * largest, rtol=0)
    assert not np.allclose(np.array(plain(IDS)), np.array(load_decoder(str(folder)).model(IDS)))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_merged_half_precision_is_no_further_from_the_truth(dtype, tmp_path, monkeypatch):
    folder, adapter = save_model(tmp_path / "tiny"), save_adapter(tmp_path / "adapter")
    weights = mx.load(str(folder / "model.safetensors"))
    half = {name: array.astype(dtype) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), half)
    truth = adapted(folder, adapter, mx.float32)(IDS)
    beside = adapted(folder, adapter, dtype)(IDS).astype(mx.float32)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)  # so that types stay
    merged = load_decoder(str(folder), adapter_path=adapter).model
    assert not lora_layers(merged) and merged.layers[0].self_attn.q_proj.weight.dtype == dtype
    errors = [float(mx.abs(x - truth).mean()) for x in (merged(IDS).astype(mx.float32), beside)]
    assert 0 < errors[0] <= 1.5 * errors[1]


def test_an_adapter_stays_beside_quantized_weights(tmp_path, monkeypatch):
    folder, adapter = save_model(tmp_path / "tiny"), save_adapter(tmp_path / "adapter")
    model, config = quantize_model(*load_model(folder), group_size=32, bits=8)
    save_weights(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    decoder = load_decoder(str(folder), adapter_path=adapter)
    assert lora_layers(decoder.model) == lora_layers(adapted(folder, adapter, mx.float32))


def test_a_foreign_adapter_is_refused(tmp_path):
    folder = save_model(tmp_path / "tiny", "qwen2", hidden_size=32, head_dim=8)
    adapter = save_adapter(tmp_path / "adapter")
    for path in (adapter, tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match="no adapter for this model"):
            load_decoder(str(folder), adapter_path=path)


def test_only_a_built_in_model_brings_an_adapter_along(tmp_path):
    mine = models.ADAPTERS / models.DEFAULT_DECODER
    assert {path.name for path in mine.iterdir()} >= {
        "adapters.safetensors",
        "adapter_config.json",
        "README.md",
    }
    for name in (None, models.DEFAULT_DECODER, models.DEFAULT_DECODER.upper()):
        assert models.adapter_folder(name, None) == mine
        assert models.adapter_folder(name, "none") is None
        assert models.adapter_folder(name, "x") == Path("x")
    for name in ("all-minilm-l6-v2", "owner/model", str(tmp_path), str(mine), ".", "..", ""):
        assert models.adapter_folder(name, None) == (mine if not name else None)


def test_layers_are_described_one_by_one():
    model = tiny_model("llama")
    attention = model.layers[1].self_attn
    attention.n_kv_heads = 1
    for part in (attention.k_proj, attention.v_proj):
        part.weight = part.weight[:16]
    assert [layer.kv_heads for layer in models.geometry_of(model)] == [2, 1, 2, 2]


@pytest.mark.model
@pytest.mark.slow
def test_default_decoder_answers():
    seen = []
    decoder = load_decoder(progress=lambda what, done, total: seen.append((what, done, total)))
    assert all(done <= total for _, done, total in seen)
    assert decoder.geometry == (MemoryLayer(9, 3, 64, 64),) * 30
    tokenizer = decoder.tokenizer
    assert tokenizer.encode("Hello, world!") == [19556, 28, 905, 17]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert "Paris" in generate(decoder.model, tokenizer, prompt, max_tokens=12)


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    folder = save_model(tmp_path / "tiny")
    first = load_decoder(str(folder)).weights
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("a file where a folder should be")
    assert load_decoder(str(folder)).weights == first
