"""Every architecture of mlx-lm is proved exact or refused in words; none fails later."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import architectures
import mlx_lm.models
import pytest
import walk

# Those that must stay verified. Add to it what is verified anew, and run make docs ARGS=--walk.
VERIFIED = """
    afmoe apertus bailing_hybrid bailing_moe bailing_moe_linear bailing_moe_v3 cohere
    cohere2 dbrx deepseek deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe exaone exaone4
    exaone_moe falcon_h1 gemma gemma2 gemma3 gemma3_text gemma3n gemma4 gemma4_text glm glm4
    glm4_moe glm4_moe_lite gpt2 gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid
    helium hunyuan hunyuan_v1_dense internlm2 internlm3 jamba kimi_k25 kimi_k3 kimi_linear
    kimi_vl Klear laguna lfm2 lfm2-vl lfm2_moe lille-130m llama llama4 llama4_text
    longcat_flash longcat_flash_ngram mellum mimo mimo_v2_flash minicpm minicpm3 minimax
    ministral3 mistral3 mistral4 mixtral muse_glimmer nanbeige nanochat nemotron
    nemotron-nas nemotron_h olmo2 olmo3 olmo_hybrid olmoe openelm phi phi3 phimoe phixtral
    pixtral plamo2 prism_hadamard_qwen35 qwen qwen2 qwen2_moe qwen2_vl qwen3 qwen3_5
    qwen3_5_moe qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe recurrent_gemma seed_oss smollm3
    solar_open spark2_5 stablelm starcoder2 step3p5 talkie telechat3 youtu_llm
""".split()

# windows, sinks and YaRN; latent vectors; shared keys; attention by itself
UNLIKE = ["gpt_oss", "deepseek_v3", "gemma3n", "gemma2"]


def at_once(name, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", "")  # undone after the test
    return walk.look(name)


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_architectures_are_verified(name, monkeypatch):
    found = at_once(name, monkeypatch)
    assert found.outcome == "verified", found.reason
    assert found.difference < 1e-4


@pytest.mark.parametrize(
    ("name", "reason"), [("mamba", "keep a state"), ("olmo", "library that is not installed")]
)
def test_others_are_refused_with_their_reason(name, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "hf_olmo", None)  # not installed
    found = at_once(name, monkeypatch)
    assert found.outcome == "refused" and reason in found.reason


@pytest.mark.slow
def test_every_architecture_is_verified_or_refused():
    found = walk.walk(architectures.names())
    assert {name: f for name, f in found.items() if f.outcome == "failed"} == {}
    assert {name: f for name in VERIFIED if (f := found[name]).outcome != "verified"} == {}
    for finding in found.values():
        assert finding.difference < 1e-4 if finding.outcome == "verified" else finding.reason
    assert len(VERIFIED) >= 55


def test_the_page_names_the_same_architectures():
    page = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+) \| .* \| ((?:exact|refused).*) \|$", page, re.MULTILINE))
    assert [name for name, outcome in rows.items() if outcome.startswith("exact to")] == VERIFIED
    if f" {version('mlx-lm')}: " in page:
        assert sorted(rows) == architectures.names()


def new_module(folder, name, text, monkeypatch):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(mlx_lm.models, "__path__", [*mlx_lm.models.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"mlx_lm.models.{name}", raising=False)


def test_an_architecture_that_is_new_in_mlx_lm_is_walked(tmp_path, monkeypatch):
    new_module(tmp_path, "fresh", "from .llama import Model, ModelArgs\n", monkeypatch)
    assert "fresh" in architectures.names()
    assert at_once("fresh", monkeypatch).outcome == "verified"


def test_an_architecture_that_needs_unknown_settings_is_refused(tmp_path, monkeypatch):
    text = (
        "from .llama import ModelArgs\nclass Model:\n    def __init__(self, args):\n        1 / 0\n"
    )
    new_module(tmp_path, "odd", text, monkeypatch)
    found = at_once("odd", monkeypatch)
    assert found.outcome == "refused" and "ZeroDivisionError" in found.reason


WORKER = """
import json, os, sys, time
for name in sys.argv[1:]:
    if name == "dies":
        os.kill(os.getpid(), 9)
    if name == "sleeps":
        time.sleep(60)
    print(json.dumps({"name": name, "outcome": "verified", "difference": 0.0}), flush=True)
"""


def test_a_process_that_ends_or_never_does_costs_one_architecture(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(walk, "WORKER", worker)
    monkeypatch.setattr(walk, "LIMIT", 3)
    found = walk.walk(["a", "dies", "b", "sleeps", "c"], 1)
    assert [f.name for f in found.values() if f.outcome == "verified"] == ["a", "b", "c"]
    assert found["dies"].reason == "the process ended (-9)"
    assert found["sleeps"].reason == "no end after 3 s"
