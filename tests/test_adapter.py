"""LoRA adapters in PEFT's layout, loaded by mlx-lm and compared with the matrices themselves."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from safetensors.numpy import save_file
from tiny import save_model
from tiny_torch import logits

from convert.from_torch import convert
from m3mlx.errors import ConvertError

RANK, ALPHA = 4, 6


def peft(folder, rank=RANK, layers=(1, 3), **settings):
    """An adapter of the query and down matrices of some layers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for n in layers:
        for module, (out, into) in {
            "self_attn.q_proj": (64, 64),
            "mlp.down_proj": (64, 48),
        }.items():
            name = f"base_model.model.model.layers.{n}.{module}"
            a, b = rng.normal(0, 0.3, (rank, into)), rng.normal(0, 0.3, (out, rank))
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": ALPHA,
        "bias": "none",
        "target_modules": ["q_proj", "down_proj"],
        "use_dora": False,
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize("stabilized", [False, True])
def test_an_adapter_adds_what_its_matrices_multiply_to(stabilized, tmp_path):
    model_folder = save_model(tmp_path / "model", intermediate_size=48)
    tensors = peft(tmp_path / "in", use_rslora=stabilized)
    convert(tmp_path / "in", tmp_path / "out")
    adapted = load_adapters(load_model(model_folder)[0], str(tmp_path / "out"))

    merged, _ = load_model(model_folder)
    weights = dict(tree_flatten(merged.parameters()))
    scale = ALPHA / (RANK**0.5 if stabilized else RANK)
    for name in [n for n in tensors if "lora_A" in n]:
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        delta = scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        weights[target] = weights[target] + mx.array(delta)
    before = logits(merged)
    merged.load_weights(list(weights.items()))
    assert np.abs(logits(merged) - before).max() > 0.1
    np.testing.assert_allclose(logits(adapted), logits(merged), atol=2e-4)


REFUSED = {
    "dora": ({"use_dora": True}, {}, "use_dora True of an adapter is not supported"),
    "another kind": ({"peft_type": "IA3"}, {}, "adapter of type IA3"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 8}}, {}, "rank_pattern"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "no rank": ({"r": None}, {}, "r None and lora_alpha 6 make no sense"),
    "wrong rank": ({"r": 3}, {}, r"has the shape \(4, \d+\) instead of \(3, \d+\)"),
    "half": (
        {},
        {"base_model.model.model.layers.1.mlp.down_proj.lora_B.weight": None},
        r"one of the two matrices is missing for model\.layers\.1\.mlp\.down_proj",
    ),
    "embedding": (
        {},
        {"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 9), np.float32)},
        "no LoRA matrix: base_model.model.model.embed_tokens",
    ),
    "nothing": (
        {},
        {
            f"base_model.model.model.layers.{n}.{module}.lora_{side}.weight": None
            for n in (1, 3)
            for module in ("self_attn.q_proj", "mlp.down_proj")
            for side in "AB"
        },
        "no LoRA matrix: none",
    ),
    "NaN": (
        {},
        {
            "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight": np.full(
                (64, 4), np.nan, np.float32
            )
        },
        "holds NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_lora_is_refused(case, tmp_path):
    settings, changes, message = REFUSED[case]
    tensors = peft(tmp_path / "in", **settings)
    for name, values in changes.items():
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values
    save_file(tensors, tmp_path / "in" / "adapter_model.safetensors")
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
