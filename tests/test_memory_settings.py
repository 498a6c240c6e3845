"""Models that were trained with memories: their settings converted, written, and used."""

import json

import pytest
from click.testing import CliRunner
from tiny import save_model
from tiny_torch import edit_config

from convert import from_torch
from convert.from_torch import convert
from m3mlx.assistant import Assistant
from m3mlx.calibrate import calibrate
from m3mlx.config import MemoryConfig, MemorySettings
from m3mlx.errors import ConvertError, ModelError
from m3mlx.models.decoder import load_decoder
from m3mlx.models.template import Template

PAPER = {
    "memory_layers": [0, 1],
    "tokens_per_head": 8,
    "selection": "attention",
    "prefix": "<s>Reference:",
    "reference_tokens": 128,
    "chunk_tokens": 64,
    "memories": 5,
}


def told(folder):
    return json.loads((folder / "memory.json").read_text())


def test_an_ordinary_decoder_has_no_memory_settings(tmp_path):
    convert(save_model(tmp_path / "in"), tmp_path / "out", check=False)
    assert not (tmp_path / "out" / "memory.json").exists()
    assert load_decoder(tmp_path / "out").trained is None


def test_flags_go_before_the_configuration_and_that_before_the_paper(tmp_path):
    source = save_model(tmp_path / "in")
    edit_config(source, model_type="memory3")
    convert(source, tmp_path / "a", check=False)
    assert told(tmp_path / "a") == PAPER
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "llama"
    edit_config(source, memory_layers=[1, 2, 3], memories=3)
    convert(source, tmp_path / "b", check=False)
    assert told(tmp_path / "b") == PAPER | {"memory_layers": [1, 2, 3], "memories": 3}
    flags = [
        "--memory-layers",
        "0-1,3",
        "--tokens-per-head",
        "16",
        "--prefix",
        "Ref:",
        "--no-check",
    ]
    ran = CliRunner().invoke(from_torch.main, [str(source), str(tmp_path / "c"), *flags])
    assert ran.exit_code == 0, ran.output
    expected = {"memory_layers": [0, 1, 3], "tokens_per_head": 16, "prefix": "Ref:", "memories": 3}
    assert told(tmp_path / "c") == PAPER | expected


def test_a_flag_makes_any_decoder_one_with_memories(tmp_path):
    source = save_model(tmp_path / "in", "qwen3")
    convert(source, tmp_path / "out", memory={"tokens_per_head": 4}, check=False)
    assert told(tmp_path / "out") == PAPER | {"tokens_per_head": 4}


REFUSED = {
    "memory_layers": ([], [4], [-1], [1, 1], ["a"], 2, [True]),
    "tokens_per_head": (0, 129, "8", 1.5),
    "selection": ("random",),
    "prefix": ("", 5),
    "reference_tokens": (64, 256),
    "chunk_tokens": (32,),
    "memories": (0, -1, "5"),
    "frobs": (1,),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_make_no_sense_are_refused(name, tmp_path):
    source = save_model(tmp_path / "in")
    for value in REFUSED[name]:
        with pytest.raises(ValueError, match=name):
            MemorySettings.from_json(PAPER | {name: value}, layers=4)
    edit_config(source, memory={name: REFUSED[name][0]})
    with pytest.raises(ConvertError, match=name):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (source / "memory.json").write_text(json.dumps(PAPER | {name: REFUSED[name][0]}))
    with pytest.raises(ModelError, match=rf"memory\.json: .*{name}"):
        load_decoder(source)


def test_a_damaged_file_is_an_error(tmp_path):
    source = save_model(tmp_path / "in")
    for text in ("{", "[1]"):
        (source / "memory.json").write_text(text)
        with pytest.raises(ModelError, match=r"memory\.json"):
            load_decoder(source)


@pytest.fixture
def trained(tmp_path):
    source = save_model(tmp_path / "in")
    convert(source, tmp_path / "out", memory={"prefix": "<|s|>Reference:"}, check=False)
    return load_decoder(tmp_path / "out")


def test_a_trained_model_is_written_as_it_was_trained_without_measuring(trained):
    config = calibrate(trained, key_bits=16, value_bits=16)
    assert config.counts == ((8, 8), (8, 8), (0, 0), (0, 0))
    assert (config.selection, config.budget, config.key_scale) == ("attention", "uniform", 1.0)
    encoded = trained.tokenizer.encode("<|s|>Reference:", add_special_tokens=False)
    assert list(config.prefix) == encoded and len(encoded) == 11
    asked = calibrate(trained, selection="reconstruction", tokens_per_head=3)
    assert asked.counts[:2] == ((3, 3), (3, 3)) and asked.selection == "reconstruction"


def test_the_context_of_a_trained_model_begins_with_the_whole_template(trained):
    template = Template(trained.tokenizer, trained.trained.prefix)
    plain = Template(trained.tokenizer)
    first = trained.tokenizer.decode(list(template.turn("Hello").tokens))
    assert first.startswith(plain.prefix_text + "Hello")
    turn = template.turn("Hello")
    words = turn.tokens[turn.words[0] : turn.words[1]]
    assert trained.tokenizer.decode(list(words)) == "Hello"
    later = template.turn("Hello", first=False)
    assert later == plain.turn("Hello", first=False)


def test_a_chunk_reads_as_many_memories_as_the_model_was_trained_with(tmp_path):
    source = save_model(tmp_path / "in")
    convert(source, tmp_path / "out", memory={"memories": 3}, check=False)
    options = {"store": tmp_path / "store"}
    assert Assistant(str(tmp_path / "out"), **options).memories == 3
    assert Assistant(str(tmp_path / "out"), memories=2, **options).memories == 2
    assert Assistant(str(source), **options).memories == 5


def test_a_memory_configuration_survives_json_and_the_names_of_version_0_1():
    config = MemoryConfig("attention", "uniform", ((8, 8), (0, 0)), 16, (1, 2), key_scale=1.2)
    data = json.loads(json.dumps(config.to_json()))
    assert MemoryConfig.from_json(data) == config
    old = {("sharpness" if name == "key_scale" else name): data[name] for name in data}
    assert MemoryConfig.from_json(old) == config and config.tokens_per_head == 4
