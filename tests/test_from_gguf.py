"""GGUF files converted, and compared with the models that they were made from, by logits."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.utils import load
from tiny_gguf import (
    TOKENS,
    logits,
    metadata_of,
    permute,
    tensors_of,
    tiny_config,
    tiny_model,
    write,
    write_tiny,
)

from convert import from_gguf, writer
from convert.from_gguf import convert
from m3mlx.errors import ConvertError


def stored(folder):
    weights = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= mx.load(str(file))
    return weights


VARIANTS = {
    "llama": ("llama", {}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "llama with long heads": ("llama", {"head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 16}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_model_has_the_logits_of_the_original(variant, tmp_path):
    arch, changes = VARIANTS[variant]
    path, _, model = write_tiny(tmp_path, arch, **changes)
    proof = convert(path, tmp_path / "out", dtype="float32")
    assert (proof.difference is None) == (importlib.util.find_spec("torch") is None)
    converted, _ = load(str(tmp_path / "out"))
    np.testing.assert_allclose(logits(converted), logits(model), atol=1e-5)


def test_interleaved_rows_are_told_apart_from_plain_ones(tmp_path):
    """The test above would pass without the permutation if rotary positions did nothing."""
    config = tiny_config("llama")
    model = tiny_model(config)
    plain = dict(tree_flatten(model.parameters()))
    name = "model.layers.0.self_attn.q_proj.weight"
    swapped = tiny_model(config)
    swapped.load_weights([(name, mx.array(permute(np.array(plain[name]), 4)))], strict=False)
    assert np.abs(logits(swapped) - logits(model)).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_are_stored_in_the_asked_dtype(dtype, tmp_path):
    path, _, model = write_tiny(tmp_path)
    convert(path, tmp_path / "out", dtype=dtype)
    weights = stored(tmp_path / "out")
    original = dict(tree_flatten(model.parameters()))
    assert weights.keys() == original.keys()
    for name, array in weights.items():
        expected = original[name].astype(getattr(mx, dtype))
        assert array.dtype == expected.dtype and mx.array_equal(array, expected), name


def k_blocks(kind, rows, columns, rng):
    """Valid random blocks of a K quantization, which the gguf package decodes but can't make."""
    blocks = rng.integers(0, 256, (rows, columns // 256, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}[kind]
    for place in places:
        scales = rng.normal(0, 1e-3, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


OTHERS = (
    "Q2_K Q3_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0"
).split()


@pytest.mark.parametrize("name", [*OTHERS, "MXFP4", "NVFP4"])
def test_what_the_gguf_package_decodes_is_converted(name, tmp_path):
    kind = Type[name]
    config = tiny_config("llama", hidden_size=256, num_hidden_layers=1, intermediate_size=256)
    tensors = tensors_of(tiny_model(config), config)
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (256, 256 // size, nbytes), np.uint8)
    # Random bytes make some scales infinite; zeros in their places would need each format's table.
    with np.errstate(all="ignore"):
        decoded = gguf.quants.dequantize(blocks.reshape(256, -1), kind)
    good = np.isfinite(decoded).all(axis=1) & (np.abs(decoded).max(axis=1) < 1e4)
    assert good.any()
    rows = np.flatnonzero(good)[np.arange(256) % good.sum()]
    tensors["blk.0.ffn_up.weight"] = blocks[rows].reshape(256, -1)
    types = {"blk.0.ffn_up.weight": kind}
    path = write(tmp_path / "q.gguf", "llama", tensors, metadata_of(config), types)
    convert(path, tmp_path / "out", dtype="float32", check=False)
    found = np.array(stored(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"])
    np.testing.assert_array_equal(found, decoded[rows])


QUANTIZED_ERROR = {
    **{Type.F32: 0, Type.F16: 1e-3, Type.BF16: 1e-2, Type.Q8_0: 0.01},
    **{Type.Q4_0: 0.2, Type.Q4_1: 0.15, Type.Q5_0: 0.1, Type.Q5_1: 0.08},
    **{Type.Q4_K: None, Type.Q5_K: None, Type.Q6_K: None},
}


@pytest.mark.parametrize("kind", QUANTIZED_ERROR, ids=lambda kind: kind.name)
def test_every_quantization_is_decoded_exactly_as_the_gguf_package_does(kind, tmp_path):
    config = tiny_config("llama", hidden_size=256, num_hidden_layers=1, intermediate_size=256)
    model = tiny_model(config)
    tensors = tensors_of(model, config)
    rng = np.random.default_rng(1)
    types = {name: kind for name, values in tensors.items() if values.ndim == 2}
    if QUANTIZED_ERROR[kind] is None:
        for name in types:
            tensors[name] = k_blocks(kind, *tensors[name].shape, rng)
    path = write(tmp_path / "q.gguf", "llama", tensors, metadata_of(config), types)
    convert(path, tmp_path / "out", dtype="float32")

    decoded = {
        name: gguf.quants.dequantize(
            gguf.quants.quantize(v, kind) if v.dtype != np.uint8 else v, kind
        )
        for name, v in tensors.items()
        if name in types
    }
    weights = stored(tmp_path / "out")
    pairs = {"token_embd": "model.embed_tokens", "blk.0.ffn_down": "model.layers.0.mlp.down_proj"}
    for theirs, ours in pairs.items():
        np.testing.assert_array_equal(
            np.array(weights[f"{ours}.weight"]), decoded[f"{theirs}.weight"]
        )
    query = np.array(weights["model.layers.0.self_attn.q_proj.weight"])
    np.testing.assert_array_equal(permute(query, 4), decoded["blk.0.attn_q.weight"])
    if (bound := QUANTIZED_ERROR[kind]) is not None:
        converted, _ = load(str(tmp_path / "out"))
        original = dict(tree_flatten(model.parameters()))
        for name, array in tree_flatten(converted.parameters()):
            assert mx.abs(array - original[name]).max() <= bound, name
    assert np.isfinite(logits(load(str(tmp_path / "out"))[0])).all()


def test_q4_k_is_right_in_odd_sub_blocks_too():
    """Against a reading of the format bit by bit; MLX's own loader fails this one."""
    block = k_blocks(Type.Q4_K, 1, 256, np.random.default_rng(3))
    raw = block[0]
    d, dmin = (float(x) for x in raw[:4].view(np.float16))
    packed, nibbles = raw[4:16].astype(int), raw[16:].astype(int)
    expected = []
    for sub in range(8):
        if sub < 4:
            scale, low = packed[sub] & 63, packed[sub + 4] & 63
        else:
            scale = packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4
            low = packed[sub + 4] >> 4 | packed[sub] >> 6 << 4
        row = nibbles[sub // 2 * 32 : sub // 2 * 32 + 32]
        codes = row & 15 if sub % 2 == 0 else row >> 4
        expected.extend(d * scale * codes - dmin * low)
    decoded = gguf.quants.dequantize(block, Type.Q4_K)[0]
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-7)


def llama3_divisors(theta, head_dim, factor):
    """As llama.cpp's converter computes rope_freqs."""
    divisors = []
    for n in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (n / head_dim)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def test_rope_scaling_of_llama_3_is_found_from_its_divisors(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    changes = {"rope_theta": 500000.0, "rope_scaling": scaling, "head_dim": 64}
    divisors = llama3_divisors(500000.0, 64, 8.0)
    assert len(set(divisors.tolist())) > 4  # all three ranges occur
    metadata = {"llama.attention.key_length": 64}
    path, _, model = write_tiny(
        tmp_path, tensors={"rope_freqs.weight": divisors}, metadata=metadata, **changes
    )
    convert(path, tmp_path / "out", dtype="float32")
    converted, _ = load(str(tmp_path / "out"))
    np.testing.assert_allclose(logits(converted, 300), logits(model, 300), atol=1e-4)
    plain = tiny_model(tiny_config("llama", **(changes | {"rope_scaling": None})))
    assert np.abs(logits(plain, 300) - logits(model, 300)).max() > 1e-2


def test_linear_rope_scaling_is_kept(tmp_path):
    metadata = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}
    scaling = {"type": "linear", "factor": 4.0}
    path, _, model = write_tiny(tmp_path, "qwen2", metadata=metadata, rope_scaling=scaling)
    convert(path, tmp_path / "out", dtype="float32")
    converted, _ = load(str(tmp_path / "out"))
    np.testing.assert_allclose(logits(converted), logits(model), atol=1e-5)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (3, 128)])
def test_quantizing_again_gives_what_mlx_gives(bits, group, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 160}
    path, _, model = write_tiny(tmp_path, "qwen2", **sizes)
    convert(path, tmp_path / "out", dtype="float32", quantize=True, q_bits=bits, q_group_size=group)
    nn.quantize(
        model,
        group_size=group,
        bits=bits,
        class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[1] % group == 0,
    )
    converted, _ = load(str(tmp_path / "out"))
    np.testing.assert_allclose(logits(converted), logits(model), atol=1e-4)


def test_large_models_are_split_with_an_index(tmp_path, monkeypatch):
    path, _, model = write_tiny(tmp_path)
    monkeypatch.setattr(writer, "SHARD_BYTES", 30_000)
    convert(path, tmp_path / "out", dtype="float32")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    for name, file in index["weight_map"].items():
        assert name in mx.load(str(tmp_path / "out" / file))
    converted, _ = load(str(tmp_path / "out"))
    np.testing.assert_allclose(logits(converted), logits(model), atol=1e-5)


def test_config_holds_what_the_metadata_said(tmp_path):
    path, original, _ = write_tiny(tmp_path, "llama", tie_word_embeddings=False)
    convert(path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for key, value in original.items():
        assert (
            config[key] == pytest.approx(value) if key == "rms_norm_eps" else config[key] == value
        )
    assert config["head_dim"] == 8 and config["dtype"] == "float16"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == [2, 0]
    assert generation["bos_token_id"] == 0


REFUSED = {
    "missing tensor": (
        {"without": ["blk.1.ffn_up.weight"]},
        r"missing blk\.1\.ffn_up\.weight; left over none",
    ),
    "missing embedding": ({"without": ["token_embd.weight"]}, r"no tensor token_embd\.weight"),
    "unknown tensor": (
        {"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 32), np.float32)}},
        r"missing none; left over blk\.0\.ffn_gate_inp\.weight",
    ),
    "bias of one layer only": (
        {"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}},
        r"missing blk\.0\.attn_k\.bias.*",
    ),
    "wrong shape": (
        {"tensors": {"output_norm.weight": np.ones(31, np.float32)}},
        r"output_norm\.weight has the shape \(31,\) instead of \(32,\)",
    ),
    "transposed": (
        {"tensors": {"blk.0.ffn_up.weight": np.ones((32, 48), np.float32)}},
        r"blk\.0\.ffn_up\.weight has the shape \(32, 48\) instead of \(48, 32\)",
    ),
    "NaN": (
        {"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}},
        r"output_norm\.weight holds NaN",
    ),
    "infinity": (
        {"tensors": {"output_norm.weight": np.full(32, -np.inf, np.float32)}},
        r"output_norm\.weight holds infinity",
    ),
    "too large for float16": (
        {"tensors": {"output_norm.weight": np.full(32, 7e4, np.float32)}},
        r"float16 cannot hold\. Try --dtype float32",
    ),
    "foreign rope divisors": (
        {"tensors": {"rope_freqs.weight": np.array([1, 1, 3, 2], np.float32)}},
        r"rope_freqs\.weight is not the rope scaling of Llama 3",
    ),
    "too many rope divisors": (
        {"tensors": {"rope_freqs.weight": np.ones(9, np.float32)}},
        r"rope_freqs\.weight is not",
    ),
    "yarn": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, r"rope scaling yarn"),
    "scaling without a factor": (
        {"metadata": {"llama.rope.scaling.type": "linear"}},
        r"lacks llama\.rope\.scaling\.factor",
    ),
    "unknown setting": ({"metadata": {"llama.expert_count": 8}}, r"expert_count.* not supported"),
    "missing setting": (
        {"without": ["llama.attention.layer_norm_rms_epsilon"]},
        r"lacks llama\.attention\.layer_norm_rms_epsilon",
    ),
    "no layers": ({"metadata": {"llama.block_count": 0}}, r"block_count is 0"),
    "more layers than tensors": ({"metadata": {"llama.block_count": 2**31}}, r"missing blk\."),
    "heads by layer": (
        {"metadata": {"llama.attention.head_count_kv": [2, 1]}},
        r"head_count_kv is \[2, 1\]",
    ),
    "partial rotation": ({"metadata": {"llama.rope.dimension_count": 4}}, r"length of a head, 8"),
    "a string for a number": ({"metadata": {"llama.context_length": "long"}}, r"context_length"),
    "other architecture": ({"metadata": {"general.architecture": "mamba"}}, r"architecture mamba"),
    "part of a split file": ({"metadata": {"split.count": 3}}, r"one part of a split file"),
    "sentencepiece": ({"metadata": {"tokenizer.ggml.model": "t5"}}, r"tokenizer t5 is not"),
    "unknown pre-tokenizer": (
        {"metadata": {"tokenizer.ggml.pre": "tekken"}},
        r"pre-tokenizer tekken is not supported, only gpt-2, smollm, qwen2, llama-bpe",
    ),
    "sentencepiece without scores": (
        {"metadata": {"tokenizer.ggml.model": "llama"}},
        r"lacks tokenizer\.ggml\.scores",
    ),
    "too few scores": (
        {"metadata": {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0, 2.0]}},
        r"has 2 scores for \d+ tokens",
    ),
    "adapter": ({"metadata": {"general.type": "adapter"}}, r"it is an adapter or a part"),
    "no pre-tokenizer": ({"without": ["tokenizer.ggml.pre"]}, r"pre-tokenizer default"),
    "no tokens": ({"without": ["tokenizer.ggml.tokens"]}, r"lacks tokenizer\.ggml\.tokens"),
    "repeated token": (
        {"metadata": {"tokenizer.ggml.tokens": [*TOKENS[:-1], TOKENS[5]]}},
        r"tokens repeat",
    ),
    "more tokens than rows": (
        {"metadata": {"tokenizer.ggml.tokens": [*TOKENS, *"αβγδεζη"]}},
        r"tokens repeat, or do not match",
    ),
    "broken merges": (
        {"metadata": {"tokenizer.ggml.merges": ["the nowhere"]}},
        r"merges of its tokenizer are broken",
    ),
    "merge of three": (
        {"metadata": {"tokenizer.ggml.merges": ["a b c"]}},
        r"merges of its tokenizer are broken",
    ),
    "end token out of range": (
        {"metadata": {"tokenizer.ggml.eos_token_id": 9999}},
        r"eos_token_id is 9999, but there are",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_rightly_is_refused_by_name(case, tmp_path):
    changes, message = REFUSED[case]
    path, _, _ = write_tiny(tmp_path, **changes)
    with pytest.raises(ConvertError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_unsupported_quantization_is_refused_by_name(tmp_path):
    config = tiny_config("llama", hidden_size=256, intermediate_size=256)
    tensors = tensors_of(tiny_model(config), config)
    name = "blk.0.ffn_up.weight"
    block = gguf.GGML_QUANT_SIZES[Type.Q8_K][1]
    tensors[name] = np.zeros((256, block), np.uint8)
    path = write(tmp_path / "q.gguf", "llama", tensors, metadata_of(config), {name: Type.Q8_K})
    with pytest.raises(ConvertError, match=r"quantization Q8_K is not supported by the gguf pack"):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello, I am a text file\n" * 50, bytes(5000)])
def test_files_that_are_not_gguf_are_refused(content, tmp_path):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ConvertError, match=r"x\.gguf: is not a whole GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path / "out")


def test_missing_file_and_folder_are_refused(tmp_path):
    for source in (tmp_path / "nothing.gguf", tmp_path):
        with pytest.raises(ConvertError, match="cannot be read"):
            convert(source, tmp_path / "out")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path, _, _ = write_tiny(tmp_path_factory.mktemp("whole"), num_hidden_layers=1)
    return path.read_bytes()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_truncated_files_are_refused(whole_file, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    size = data.draw(st.integers(0, len(whole_file) - 1))
    (folder / "cut.gguf").write_bytes(whole_file[:size])
    with pytest.raises(ConvertError):
        convert(folder / "cut.gguf", folder / "out")
    assert [p.name for p in folder.iterdir()] == ["cut.gguf"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_give_a_model_or_a_clear_error(whole_file, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    changed = bytearray(whole_file)
    for _ in range(3):  # the header is far smaller than the weights, and far more dangerous
        place = data.draw(st.integers(0, 1500) | st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    (folder / "bad.gguf").write_bytes(changed)
    try:
        convert(folder / "bad.gguf", folder / "out")
    except ConvertError:
        assert [p.name for p in folder.iterdir()] == ["bad.gguf"]
    else:
        assert (folder / "out" / "model.safetensors").is_file()


def test_an_existing_folder_is_never_touched(tmp_path):
    path, _, _ = write_tiny(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(ConvertError, match="exists already"):
        convert(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    path, _, _ = write_tiny(tmp_path)

    def interrupt(what, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "out", progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_progress_counts_the_bytes_of_all_tensors(tmp_path):
    path, _, model = write_tiny(tmp_path)
    seen = []
    convert(path, tmp_path / "out", progress=lambda what, done, total: seen.append((done, total)))
    total = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert seen[0] == (0, total) and seen[-1] == (total, total) and seen == sorted(seen)


def test_impossible_arguments_are_refused(tmp_path):
    path, _, _ = write_tiny(tmp_path)
    with pytest.raises(ConvertError, match="dtype int8"):
        convert(path, tmp_path / "out", dtype="int8")
    with pytest.raises(ConvertError, match="7 bits"):
        convert(path, tmp_path / "out", quantize=True, q_bits=7)
    with pytest.raises(ConvertError, match="no matrix of it divides into groups of 64"):
        convert(path, tmp_path / "out", quantize=True)


def test_command_line_converts(tmp_path):
    path, _, _ = write_tiny(tmp_path)
    command = [sys.executable, "-m", "convert.from_gguf", str(path), str(tmp_path / "out")]
    root = Path(__file__).parent.parent
    ran = subprocess.run([*command, "-q", "--q-group-size", "32"], capture_output=True, cwd=root)
    assert ran.returncode == 0, ran.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}


def test_command_line_fails_in_one_line(tmp_path):
    (tmp_path / "x.gguf").write_text("no")
    source, out = str(tmp_path / "x.gguf"), str(tmp_path / "out")
    ran = CliRunner().invoke(from_gguf.main, [source, out])
    assert ran.exit_code == 1
    message = ran.stderr.replace("\n", "")
    assert message.startswith("Error: ") and "is not a whole GGUF file" in message
    for flags in (["--q-bits", "7"], ["--dtype", "int8"], ["--what"]):
        assert CliRunner().invoke(from_gguf.main, [source, out, *flags]).exit_code == 2
    assert CliRunner().invoke(from_gguf.main, [source]).exit_code == 2
