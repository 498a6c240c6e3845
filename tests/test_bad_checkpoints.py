"""PyTorch checkpoints that cannot be converted rightly: a clear error each, and nothing is left."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tiny import save_model
from tiny_torch import edit_config, numpy_weights, raw, shards

from convert import safetensors_file
from convert.from_torch import convert
from m3mlx.errors import ConvertError

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


def change(**tensors):
    """Replace, add or (with None) remove tensors of the one file."""

    def apply(folder: Path) -> None:
        weights = numpy_weights(folder)
        for name, values in tensors.items():
            weights.pop(name, None)
            if values is not None:
                weights[name] = values
        save_file(weights, folder / "model.safetensors")

    return apply


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def sharded_without(*names: str):
    def apply(folder: Path) -> None:
        shards(folder)
        for name in names:
            (folder / name).unlink()

    return apply


def index_says(**places):
    def apply(folder: Path) -> None:
        shards(folder)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())["weight_map"] | places
        path.write_text(json.dumps({"weight_map": index}))

    return apply


def truncated(size: int):
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return apply


def twice_in_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    start = header.index('"model.norm.weight"')
    entry = header[start : header.index("}", start) + 1]
    new = (header[:start] + entry + "," + header[start:]).encode()
    (folder / "model.safetensors").write_bytes(
        len(new).to_bytes(8, "little") + new + data[8 + length :]
    )


def duplicated(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()
    file = folder / "model-00001-of-00003.safetensors"
    other = folder / "model-00002-of-00003.safetensors"
    other.write_bytes(file.read_bytes())


NORM, DOWN = "model.norm.weight", "model.layers.2.mlp.down_proj.weight"
ones = np.ones(64, np.float32)
REFUSED = {
    "missing tensor": (change(**{DOWN: None}), r"missing model\.layers\.2\.mlp.*; left over none"),
    "unknown tensor": (change(extra=ones), r"missing none; left over extra"),
    "bias that is not asked for": (
        change(**{"model.layers.0.self_attn.q_proj.bias": ones}),
        r"left over model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "wrong shape": (change(**{NORM: ones[:63]}), r"norm\.weight has the shape \(63,\) instead"),
    "wrong type": (
        change(**{NORM: np.ones(64, np.int32)}),
        r"norm\.weight is of type int32, not one of",
    ),
    "NaN": (change(**{NORM: ones * np.nan}), r"norm\.weight holds NaN"),
    "infinity": (change(**{NORM: -ones * np.inf}), r"norm\.weight holds infinity"),
    "truncated": (truncated(100_000), r"has 100000 bytes instead of \d+; fetch it again"),
    "truncated header": (truncated(500), r"is not a whole safetensors file"),
    "empty": (truncated(0), r"is not a whole safetensors file"),
    "missing shard": (
        sharded_without("model-00002-of-00003.safetensors"),
        r"the shard model-00002-of-00003\.safetensors is missing",
    ),
    "missing shard without an index": (
        sharded_without("model.safetensors.index.json", "model-00002-of-00003.safetensors"),
        r"of its shards only model-00001-of-00003\.safetensors, model-00003-of",
    ),
    "index that lies": (
        index_says(
            **{NORM: "model-00003-of-00003.safetensors", "x": "model-00001-of-00003.safetensors"}
        ),
        r"its index and its shards disagree about .*x",
    ),
    "index with a path": (index_says(x="../../etc/passwd"), r"index\.json is damaged"),
    "twice in one file": (twice_in_header, r"holds model\.norm\.weight twice"),
    "twice in two files": (duplicated, r"is in model-00001-of.* and in model-00002-of"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds neither safet"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"no config\.json beside"),
    "broken config": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"config\.json cannot be read",
    ),
    "other architecture": (
        config(model_type="mamba"),
        r"architecture mamba is not supported, only",
    ),
    "no architecture": (config(model_type=...), r"architecture None is not supported"),
    "unknown quantization": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"the quantization gptq of its weights is not supported",
    ),
    "mlx quantization": (
        config(quantization={"bits": 4, "group_size": 64}),
        r"the quantization MLX's of its weights is not supported",
    ),
    "missing setting": (config(intermediate_size=...), r"config\.json lacks intermediate_size"),
    "zero": (config(num_hidden_layers=0), r"num_hidden_layers is 0"),
    "text for a number": (config(hidden_size="big"), r"hidden_size is 'big'"),
    "odd heads": (config(head_dim=15), r"no two halves"),
    "groups": (config(num_key_value_heads=3), r"4 query heads do not divide into 3 groups"),
    "activation": (config(hidden_act="gelu"), r"hidden_act gelu is not silu"),
    "yarn": (config(rope_scaling={"type": "yarn", "factor": 4}), r"rope scaling yarn"),
    "scaling without factor": (config(rope_scaling={"type": "linear"}), r"scaling lacks factor"),
    "partial rotation": (config(partial_rotary_factor=0.5), r"partial_rotary_factor"),
    "sliding window": (
        config(model_type="mistral", sliding_window=4096),
        r"sliding window of this",
    ),
    "soft caps": (config(final_logit_softcapping=30.0), r"final_logit_softcapping 30\.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_rightly_is_refused_by_name(case, tmp_path):
    spoil, message = REFUSED[case]
    source = save_model(tmp_path / "in")
    spoil(source)
    with pytest.raises(ConvertError, match=message) as caught:
        convert(source, tmp_path / "new" / "out")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


class Malice:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@needs_torch
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_that_calls_code_does_not_run(name, tmp_path):
    import torch

    source = save_model(tmp_path / "in")
    (source / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(64), "x": Malice(tmp_path / "ran")}, source / name)
    with pytest.raises(ConvertError, match="could run code; it was not loaded"):
        convert(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@needs_torch
@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"PK\x03\x04" + bytes(100)])
def test_files_that_are_not_pytorchs_are_refused(content, tmp_path):
    source = save_model(tmp_path / "in")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ConvertError, match=r"pytorch_model\.bin"):
        convert(source, tmp_path / "out")


def test_pytorch_files_without_pytorch_say_what_to_install(tmp_path, monkeypatch):
    source = save_model(tmp_path / "in")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConvertError, match=r"needs PyTorch\. Install it with: pip install"):
        convert(source, tmp_path / "out", check=False)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("whole") / "in", num_hidden_layers=1)
    return folder


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_give_a_model_or_a_clear_error(whole_file, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    changed = bytearray((whole_file / "model.safetensors").read_bytes())
    for _ in range(2):  # the header is far smaller than the weights, and far more dangerous
        place = data.draw(st.integers(0, 1500) | st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    (folder / "config.json").write_bytes((whole_file / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(changed)
    try:
        convert(folder, folder / "out", check=False)
    except ConvertError:
        assert not (folder / "out").exists()
    else:
        assert (folder / "out" / "model.safetensors").is_file()


def test_a_missing_source_and_an_existing_folder_are_refused(tmp_path):
    source = save_model(tmp_path / "in")
    with pytest.raises(ConvertError, match="there is no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (source / "notes.txt").write_text("x")
    with pytest.raises(ConvertError, match=r"none of \.safetensors, \.bin, \.pt, \.pth"):
        convert(source / "notes.txt", tmp_path / "out")
    with pytest.raises(ConvertError, match="exists already"):
        convert(source, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_an_interrupted_conversion_and_a_full_disk_leave_nothing(tmp_path, monkeypatch):
    source = save_model(tmp_path / "in")

    def interrupt(what, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", progress=interrupt)

    def full(self, name, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.Writer, "write", full)
    with pytest.raises(ConvertError, match=r"cannot be written.*No space left"):
        convert(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_progress_counts_the_bytes_of_all_tensors(tmp_path):
    source, seen = save_model(tmp_path / "in"), []
    convert(source, tmp_path / "out", progress=lambda what, done, total: seen.append((done, total)))
    total = sum(len(data) for _, _, data in raw(source).values())
    assert seen[0] == (0, total) and seen[-1] == (total, total) and seen == sorted(seen)
