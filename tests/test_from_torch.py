"""PyTorch checkpoints converted: against transformers' own models, bit by bit, and refused."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from click.testing import CliRunner
from mlx_lm.utils import load_model, load_tokenizer
from safetensors.numpy import save_file
from tiny import COMMON, FAMILIES, VOCABULARY, save_model
from tiny_torch import edit_config, logits, megatron, numpy_weights, raw, shards, tokens

from convert import architectures, check, from_torch, safetensors_file, writer
from convert.from_torch import convert
from m3mlx.cli import main as cli
from m3mlx.errors import ConvertError

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
ROOT = Path(__file__).parents[1]


# --- right


def transformers_model(family: str, **changes):
    """A random model of transformers in which every number matters."""
    import torch
    import transformers

    name = {"gemma3_text": "Gemma3"}.get(family, architectures.FAMILIES[family].architecture[:-11])
    config_name = {"gemma3_text": "Gemma3TextConfig"}.get(family, f"{name}Config")
    settings = {**COMMON, **changes, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings.pop("rope_theta")
    settings["rope_parameters"] = changes.get(
        "rope_parameters", {"rope_type": "default", "rope_theta": 20000.0}
    )
    if family == "mistral":
        settings["sliding_window"] = None
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, config_name)(**settings)
    )
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            scale = 0.5 if parameter.ndim > 1 and "_proj" in parameter_name else 0.2
            mean = 1.0 if "norm" in parameter_name and family != "gemma3_text" else 0.0
            parameter.normal_(mean, scale)
    return model.eval()


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 30000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
}
VARIANTS = {
    "llama": ("llama", {}),
    "llama untied with biases": (
        "llama",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3}),
    "llama with head dim 80": ("llama", {"head_dim": 80}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "smollm3": ("smollm3", {}),
    "gemma3": ("gemma3_text", {"sliding_window": 16, "num_hidden_layers": 6}),
    "gemma3 with scaling": (
        "gemma3_text",
        {"rope_parameters": GEMMA_ROPE, "num_hidden_layers": 7, "query_pre_attn_scalar": 24},
    ),
}


@needs_torch
@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_model_has_the_logits_of_transformers(variant, tmp_path):
    import torch

    family, changes = VARIANTS[variant]
    model = transformers_model(family, **changes)
    with torch.no_grad():
        expected = model(torch.tensor([tokens()])).logits[0].numpy()
    model.save_pretrained(tmp_path / "in")
    proof = convert(tmp_path / "in", tmp_path / "out")
    assert proof.difference is not None and proof.difference < 1e-4
    converted, _ = load_model(tmp_path / "out")
    np.testing.assert_allclose(logits(converted), expected, atol=2e-4 * np.abs(expected).max())
    assert raw(tmp_path / "out") == raw(tmp_path / "in")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_written_bit_for_bit(family, tmp_path):
    save_model(tmp_path / "in", family)
    edit_config(tmp_path / "in", eos_token_id=[2, 3], torch_dtype="float32")
    convert(tmp_path / "in", tmp_path / "out", check=False)
    assert raw(tmp_path / "in") == raw(tmp_path / "out")
    original, converted = (load_model(tmp_path / name)[0] for name in ("in", "out"))
    np.testing.assert_array_equal(logits(original), logits(converted))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "in" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("core", [False, True], ids=["legacy", "core"])
def test_megatron_gives_the_bits_of_hugging_face(core, tmp_path):
    original, source = megatron(tmp_path, core, num_attention_heads=6, head_dim=16)
    proof = convert(source, tmp_path / "out")
    assert raw(tmp_path / "out") == raw(original)
    assert (proof.difference is not None) == HAS_TORCH
    edit_config(source, model_type="qwen3")  # whose head norms Megatron's names lack
    with pytest.raises(ConvertError, match=r"missing encoder\.layers\.0\.self_attn\.k_norm"):
        convert(source, tmp_path / "out2", check=False)


@needs_torch
@pytest.mark.parametrize("rank", ["", "mp_rank_00"])
def test_megatron_in_its_own_file_needs_no_config(rank, tmp_path):
    import argparse

    import torch
    from safetensors.torch import load_file

    original, source = megatron(tmp_path)
    nested: dict = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".encoder." in name:
            _, _, inner = name.partition(".encoder.")
            nested.setdefault("encoder", {})[inner] = tensor
        elif "embedding" in name:
            nested["embedding"] = {"word_embeddings": {"weight": tensor}}
        else:
            nested["output_layer"] = {"weight": tensor}
    args = argparse.Namespace(
        num_layers=COMMON["num_hidden_layers"],
        hidden_size=COMMON["hidden_size"],
        ffn_hidden_size=COMMON["intermediate_size"],
        num_attention_heads=COMMON["num_attention_heads"],
        num_query_groups=COMMON["num_key_value_heads"],
        group_query_attention=True,
        kv_channels=COMMON["head_dim"],
        padded_vocab_size=VOCABULARY,
        rotary_base=10000,
        norm_epsilon=1e-5,
        untie_embeddings_and_output_weights=True,
    )
    saved = {"args": args, "iteration": 9, "model": {"language_model": nested}}
    folder = tmp_path / "pt" / rank
    folder.mkdir(parents=True)
    torch.save(saved, folder / "model_optim_rng.pt")
    convert(tmp_path / "pt", tmp_path / "out")
    assert raw(tmp_path / "out") == raw(original)
    (tmp_path / "pt" / "mp_rank_01").mkdir()
    torch.save(saved, tmp_path / "pt" / "mp_rank_01" / "model_optim_rng.pt")
    if rank:
        with pytest.raises(ConvertError, match="split over 2 model-parallel ranks; merge them"):
            convert(tmp_path / "pt", tmp_path / "out2")


@needs_torch
@pytest.mark.parametrize("layout", ["pytorch_model.bin", "old format", "model.pt", "sharded"])
def test_pytorch_files_give_the_same_bits(layout, tmp_path):
    import torch
    from safetensors.torch import load_file

    source = save_model(tmp_path / "in")
    expected = raw(source)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    path = source
    if layout == "sharded":
        names = sorted(state)
        index = {}
        for n in (0, 1):
            file = f"pytorch_model-{n + 1:05d}-of-00002.bin"
            torch.save({name: state[name] for name in names[n::2]}, source / file)
            index |= dict.fromkeys(names[n::2], file)
        text = json.dumps({"weight_map": index})
        (source / "pytorch_model.bin.index.json").write_text(text)
    elif layout == "model.pt":
        path = source / "model.pt"
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        old = {"_use_new_zipfile_serialization": layout != "old format"}
        torch.save(state, source / "pytorch_model.bin", **old)
    convert(path, tmp_path / "out")
    assert raw(tmp_path / "out") == expected


def test_one_file_is_taken_with_the_config_beside_it(tmp_path):
    source = save_model(tmp_path / "in")
    (source / "model.safetensors").rename(source / "best.safetensors")
    convert(source / "best.safetensors", tmp_path / "out", check=False)
    assert raw(tmp_path / "out") == raw(source)


def test_shards_are_joined_and_large_models_split(tmp_path, monkeypatch):
    source = save_model(tmp_path / "in", tie_word_embeddings=False)
    expected = raw(source)
    shards(source)
    monkeypatch.setattr(writer, "SHARD_BYTES", 60_000)
    convert(source, tmp_path / "out")
    assert raw(tmp_path / "out") == expected
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = {p.name for p in (tmp_path / "out").glob("*.safetensors")}
    assert len(files) > 2 and set(index["weight_map"].values()) == files
    for name, file in index["weight_map"].items():
        assert name in safetensors_file.read_safetensors(tmp_path / "out" / file)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_rounds_as_mlx_does(dtype, tmp_path):
    source = save_model(tmp_path / "in", "qwen2")
    proof = convert(source, tmp_path / "out", dtype=dtype)
    assert (proof.difference is not None) == HAS_TORCH
    before = mx.load(str(source / "model.safetensors"))
    after = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for name, array in before.items():
        assert after[name].dtype == getattr(mx, dtype)
        assert mx.array_equal(after[name], array.astype(getattr(mx, dtype))), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_quantizing_gives_what_mlx_gives(tmp_path):
    source = save_model(tmp_path / "in", "qwen3")
    proof = convert(source, tmp_path / "out", quantize=True, q_bits=5, q_group_size=32)
    assert proof.difference is None
    before = mx.load(str(source / "model.safetensors"))
    after = mx.load(str(tmp_path / "out" / "model.safetensors"))
    name = "model.layers.1.mlp.up_proj"
    expected = mx.quantize(before[f"{name}.weight"], 32, 5)
    for kind, array in zip(("weight", "scales", "biases"), expected, strict=True):
        assert mx.array_equal(after[f"{name}.{kind}"], array)
    assert np.isfinite(logits(load_model(tmp_path / "out")[0])).all()


def test_names_can_be_mapped(tmp_path):
    original, source = megatron(tmp_path)
    weights = numpy_weights(source)
    strange = {
        name.replace("language_model.encoder.layers", "h").replace("language_model.", "lm/"): w
        for name, w in weights.items()
    }
    save_file(strange | {"step": np.ones(1, np.float32)}, source / "model.safetensors")
    lines = {
        "h.{n}." + rest: "encoder.layers.{n}." + rest
        for rest in {name.split(".", 2)[2] for name in strange if name.startswith("h.")}
    }
    lines |= {
        "lm/embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
        "lm/encoder.final_layernorm.weight": "encoder.final_layernorm.weight",
        "lm/output_layer.weight": "output_layer.weight",
        "step": None,
    }
    (tmp_path / "names.json").write_text(json.dumps(lines))
    convert(source, tmp_path / "out", names=tmp_path / "names.json")
    assert raw(tmp_path / "out") == raw(original)
    bad = {
        '{"nothing": "x"}': "nothing fits no tensor",
        '{"h.{n}.input_layernorm.weight": "a", "h.0.input_layernorm.weight": "b"}': "several lines",
        '{"h.0.input_layernorm.weight": "step"}': "several of its tensors would be named step",
        "[1]": "no JSON object",
        "{": "cannot be read as JSON",
    }
    for text, message in bad.items():
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(ConvertError, match=message):
            convert(source, tmp_path / "bad", names=tmp_path / "names.json")


def test_an_equal_head_of_a_tied_model_and_old_constants_are_left_out(tmp_path):
    source = save_model(tmp_path / "in")
    weights = numpy_weights(source)
    expected = raw(source)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(weights, source / "model.safetensors")
    convert(source, tmp_path / "out")
    assert raw(tmp_path / "out") == expected
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    save_file(weights, source / "model.safetensors")
    with pytest.raises(ConvertError, match=r"ties lm_head\.weight to .* but they differ"):
        convert(source, tmp_path / "out2")


def test_defaults_of_hugging_face_are_written_out(tmp_path):
    """mlx-lm would tie a llama and turn a qwen2 a hundred times slower where nothing is said."""
    source = save_model(tmp_path / "a", tie_word_embeddings=False)
    edit_config(source, tie_word_embeddings=..., rope_theta=...)
    convert(source, tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["rope_theta"] == 10000.0
    source = save_model(tmp_path / "b", "qwen2", tie_word_embeddings=False)
    edit_config(source, rope_theta=..., rope_parameters={"rope_theta": 50.0})
    convert(source, tmp_path / "qwen2")
    config = json.loads((tmp_path / "qwen2" / "config.json").read_text())
    assert config["rope_theta"] == 50.0


@pytest.mark.parametrize("vocabulary", ["good", "bad"])
def test_a_tokenizer_is_built_from_sentencepieces_model(vocabulary, tmp_path):
    source = save_model(tmp_path / "in")
    (source / "tokenizer.json").unlink()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 4),
        model_writer=written,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = written.getvalue() if vocabulary == "good" else b"nonsense"
    (source / "tokenizer.model").write_bytes(model)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    if vocabulary == "bad":
        with pytest.raises(ConvertError, match="no tokenizer can be built from its files"):
            convert(source, tmp_path / "out", check=False)
        return
    convert(source, tmp_path / "out", check=False)
    ours = load_tokenizer(tmp_path / "out")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = "the lazy fox, über"
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)


# --- the check can fail


@needs_torch
@pytest.mark.parametrize("broken", ["groups", "gate", "theta", "epsilon", "scaling"])
def test_the_check_finds_what_is_wrong(broken, tmp_path, monkeypatch):
    changes = {"rope_scaling": LLAMA3} if broken == "scaling" else {}
    _, source = megatron(tmp_path, **changes)
    true_steps = from_torch.megatron.steps
    if broken in ("groups", "gate"):

        def steps(config, shapes):
            name = {"groups": "query_key_value", "gate": "dense_h_to_4h"}[broken]
            made = true_steps(config, shapes)
            for n, step in enumerate(made):
                if name in step.source and broken == "gate":
                    made[n] = step._replace(split=lambda a, s=step: s.split(a)[::-1])
                elif name in step.source:
                    rows = [shape[0] for shape in step.targets.values()]
                    ends = np.cumsum(rows)[:-1].tolist()
                    made[n] = step._replace(split=lambda a, ends=ends: mx.split(a, ends))
            return made

        monkeypatch.setattr(from_torch.megatron, "steps", steps)
    else:
        wrong = {
            "theta": {"rope_theta": 11000.0},
            "epsilon": {"rms_norm_eps": 1e-3},
            "scaling": {"rope_scaling": None},
        }[broken]
        written = from_torch.write_json

        def write_json(path, value):
            written(path, value | (wrong if path.name == "config.json" else {}))

        monkeypatch.setattr(from_torch, "write_json", write_json)
    with pytest.raises(ConvertError, match="MLX's logits differ from PyTorch's"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_torch_checksums_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    source = save_model(tmp_path / "in")
    assert convert(source, tmp_path / "out").difference is None
    with pytest.raises(ConvertError, match="--check needs PyTorch"):
        convert(source, tmp_path / "out2", check=True)


def test_bytes_that_change_on_the_disk_are_noticed(tmp_path, monkeypatch):
    source = save_model(tmp_path / "in")
    copy = from_torch.copy_tokenizer

    def spoil(where, folder):
        copy(where, folder)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    monkeypatch.setattr(from_torch, "copy_tokenizer", spoil)
    with pytest.raises(ConvertError, match="came back changed"):
        convert(source, tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


# --- the command line


@pytest.mark.parametrize("program", ["convert.from_torch", "m3mlx convert"])
def test_command_lines_convert(program, tmp_path):
    source, out = save_model(tmp_path / "in"), tmp_path / "out"
    flags = [str(source), str(out), "--json", "--no-check"]
    if program == "m3mlx convert":
        told = CliRunner().invoke(cli, ["convert", *flags]).stdout
    else:
        command = [sys.executable, "-m", program, *flags]
        told = subprocess.run(command, capture_output=True, cwd=ROOT, text=True).stdout
    expected = {"output": str(out), "tensors": len(raw(source)), "difference": None}
    assert json.loads(told) == expected
    assert raw(out) == raw(source)


def test_command_line_fails_in_one_line(tmp_path):
    source, out = str(tmp_path / "nothing"), str(tmp_path / "out")
    ran = CliRunner().invoke(from_torch.main, [source, out])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: {source}: there is no such file or folder.\n"
    for flags in (["--q-bits", "7"], ["--dtype", "int8"], ["--memory-layers", "x"], ["--what"]):
        assert CliRunner().invoke(from_torch.main, [source, out, *flags]).exit_code == 2
