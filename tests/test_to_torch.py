"""Model directories converted back: bit for bit, and loaded by transformers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from tiny import FAMILIES, save_model
from tiny_torch import PAPER, edit_config, fused, logits, raw, tokens

from convert import from_torch, safetensors_file, to_torch, writer
from m3mlx.errors import ConvertError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_changes_no_bit(family, dtype, tmp_path):
    source = save_model(tmp_path / "in", family)
    from_torch.convert(source, tmp_path / "mlx", dtype=dtype, check=False)
    to_torch.convert(tmp_path / "mlx", tmp_path / "back")
    from_torch.convert(tmp_path / "back", tmp_path / "again", check=False)
    assert raw(tmp_path / "back") == raw(tmp_path / "mlx") == raw(tmp_path / "again")
    if dtype == "float32":
        assert raw(tmp_path / "back") == raw(source)
    one, other = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("mlx", "again"))
    assert one == other


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3"])
def test_transformers_computes_the_same_from_it(family, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    source = save_model(tmp_path / "in", family, rope_theta=30000.0)
    edit_config(source, pad_token_id=0, bos_token_id=0)  # transformers' own may be out of range
    to_torch.convert(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = model(torch.tensor([tokens()])).logits[0].numpy()
    expected = logits(load_model(source)[0])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_quantized_weights_need_a_flag(tmp_path):
    source = save_model(tmp_path / "in")
    from_torch.convert(source, tmp_path / "q", quantize=True, q_group_size=32, q_bits=8)
    with pytest.raises(ConvertError, match=r"are quantized, .* --dequantize writes"):
        to_torch.convert(tmp_path / "q", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    to_torch.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    np.testing.assert_allclose(
        logits(load_model(tmp_path / "out")[0]), logits(load_model(tmp_path / "q")[0]), atol=1e-3
    )
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())
    weights = mx.load(str(tmp_path / "q" / "model.safetensors"))
    del weights["model.layers.0.mlp.up_proj.biases"]
    mx.save_safetensors(str(tmp_path / "q" / "model.safetensors"), weights)
    with pytest.raises(ConvertError, match=r"it lacks model\.layers\.0\.mlp\.up_proj\.biases"):
        to_torch.convert(tmp_path / "q", tmp_path / "out2", dequantize=True)


def test_memory_settings_come_back(tmp_path):
    source = save_model(tmp_path / "in")
    from_torch.convert(source, tmp_path / "mlx", memory={"memories": 3}, check=False)
    to_torch.convert(tmp_path / "mlx", tmp_path / "out")
    from_torch.convert(tmp_path / "out", tmp_path / "again", check=False)
    told = [(tmp_path / n / "memory.json").read_text() for n in ("mlx", "out", "again")]
    assert told[0] == told[1] == told[2] and json.loads(told[0])["memories"] == 3


def paper_model(folder: Path, size: str, layers: int, names: tuple[str, ...]) -> list[Path]:
    """A model of the paper's width in bfloat16, in Hugging Face's or in Megatron's names."""
    shape = PAPER[size]
    width = shape["hidden_size"]
    config = {
        **{"model_type": "memory3", "num_hidden_layers": layers, "vocab_size": 60416, **shape},
        **{"intermediate_size": width, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
        **{"tie_word_embeddings": False, "dtype": "bfloat16"},
    }
    shapes = from_torch.architectures.tensors(config | {"model_type": "llama"})
    rng = np.random.default_rng(0)
    # Bits of bfloat16 between -0.25 and 0.25, drawn as whole numbers.
    weights = {
        name: rng.integers(0x3C00, 0x3E80, s, np.uint16) | rng.integers(0, 2, s, np.uint16) << 15
        for name, s in shapes.items()
    }
    for name in names:
        tensors = fused(weights, config) if name == "megatron" else weights
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        arrays = {n: mx.asarray(w).view(mx.bfloat16) for n, w in tensors.items()}
        mx.save_safetensors(str(folder / name / "model.safetensors"), arrays)
    return [folder / name for name in names]


def sums(folder: Path) -> dict[str, int]:
    return safetensors_file.checksums(sorted(folder.glob("*.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "layers"), [("2.4B", 3), ("0.92B", 4)])
def test_the_papers_shapes_from_both_layouts_and_back(size, layers, tmp_path):
    hugging_face, megatron = paper_model(tmp_path, size, layers, ("hf", "megatron"))
    expected = sums(hugging_face)
    assert len(expected) == 3 + 9 * layers
    for name, source in {"a": hugging_face, "b": megatron}.items():
        proof = from_torch.convert(source, tmp_path / name)
        assert proof.difference is None or proof.difference < 1e-4
        assert sums(tmp_path / name) == expected
        told = json.loads((tmp_path / name / "memory.json").read_text())
        assert told["memory_layers"] == list(range(layers // 2)) and told["tokens_per_head"] == 8
    to_torch.convert(tmp_path / "b", tmp_path / "back")
    assert sums(tmp_path / "back") == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the largest memory")
def test_a_conversion_holds_a_tensor_at_a_time(tmp_path):
    """In processes of their own, of which the operating system tells the largest memory."""
    (source,) = paper_model(tmp_path, "2.4B", 6, ("hf",))
    nbytes = (source / "model.safetensors").stat().st_size
    largest = 60416 * 3200 * 2
    assert nbytes > 10**9

    def peak(*arguments: str) -> int:
        code = (
            "import re, sys\nfrom pathlib import Path\nfrom convert.from_torch import main\n"
            "main(sys.argv[1:], standalone_mode=False)\n"
            "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
        )
        command = [sys.executable, "-c", code, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout.splitlines()[-1]) * 1024

    idle = peak("--help")
    for n, flags in enumerate((["--no-check", "-q"], [])):
        used = peak(str(source), str(tmp_path / str(n)), *flags) - idle
        print(f"{nbytes / 1e9:.2f} GB: {used / 1e9:.2f} GB over {idle / 1e9:.2f} GB, {flags}")
        # Less than the largest shard and one tensor.
        assert used < min(nbytes, writer.SHARD_BYTES) + largest
