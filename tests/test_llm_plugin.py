"""The plugin of llm: in llm's own command line, and found by its entry point."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner
from serving import tiny_assistant, tiny_world

llm = pytest.importorskip("llm", reason="pip install 'm3mlx[test]'")

from llm import plugins  # noqa: E402
from llm.cli import cli  # noqa: E402

from m3mlx.serve import llm_plugin  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    (world / "boat.txt").write_text("The blue boat lies at pier nine.")
    with tiny_assistant(world, world / "store") as assistant:
        assistant.memorize([world / "boat.txt"])
    return world


def environment(world, tmp_path):
    return {
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "M3MLX_HOME": str(world / "home"),
        "M3MLX_MODEL": str(world / "decoder"),
        "M3MLX_STORE": str(world / "store"),
    }


def options(world, **more):
    given = {"encoder": world / "encoder", "max_tokens": 3, **more}
    return [word for name, value in given.items() for word in ("-o", name, str(value))]


@pytest.fixture
def ask(world, tmp_path, monkeypatch):
    """Run llm in this process."""
    for name, value in environment(world, tmp_path).items():
        monkeypatch.setenv(name, value)
    plugins.load_plugins()
    if llm_plugin not in plugins.pm.get_plugins():
        plugins.pm.register(llm_plugin)
    return lambda *words: CliRunner().invoke(cli, [*words])


def logged(ask):
    return json.loads(ask("logs", "--json", "-n", "0").stdout)


def modes(ask):
    """How documents took part, in each response."""
    told = [each["response_json"] for each in sorted(logged(ask), key=lambda each: each["id"])]
    return [(json.loads(each) if isinstance(each, str) else each)["memory"] for each in told]


def test_an_answer_and_its_sources_are_logged(ask, world):
    done = ask("-m", "m3mlx", "Where is the boat?", "-s", "Be brief.", *options(world))
    assert done.exit_code == 0, done.output
    (entry,) = logged(ask)
    assert entry["model"] == "m3mlx" and entry["response"].strip() == done.stdout.strip()
    logged_json = entry["response_json"]
    logged_json = json.loads(logged_json) if isinstance(logged_json, str) else logged_json
    assert logged_json["sources"][0]["path"] == str(world / "boat.txt")
    assert (
        entry["input_tokens"] > len("Be brief.Where is the boat?") and entry["output_tokens"] == 3
    )


def test_a_conversation_goes_on_with_what_was_said(ask, world):
    ask("-m", "m3mlx", "Where is the boat?", "-s", "Be brief.", *options(world))
    ask("-m", "m3mlx", "Where is the boat?", *options(world))
    assert ask("-c", "And when?", *options(world)).exit_code == 0
    plain, goes_on = sorted(logged(ask), key=lambda entry: entry["id"])[1:]
    assert goes_on["conversation_id"] == plain["conversation_id"]
    assert goes_on["input_tokens"] > plain["input_tokens"] + len("And when?")


def test_a_conversation_goes_on_with_the_store_it_began_with(ask, world, monkeypatch, tmp_path):
    given = options(world, store=world / "store", model=world / "decoder", memory="text")
    assert ask("-m", "m3mlx", "Where is the boat?", *given).exit_code == 0
    monkeypatch.setenv("M3MLX_STORE", str(tmp_path / "none"))
    monkeypatch.delenv("M3MLX_MODEL")
    done = ask("-c", "And when?", "-o", "max_tokens", "3")
    assert done.exit_code == 0, done.output
    last = max(logged(ask), key=lambda entry: entry["id"])["response_json"]
    last = json.loads(last) if isinstance(last, str) else last
    assert last["sources"][0]["path"] == str(world / "boat.txt") and last["memory"] == "text"
    third = ask("-c", "And where?", "-o", "memory", "off", "-o", "max_tokens", "2")
    assert third.exit_code == 0, third.output
    assert modes(ask) == ["text", "text", "off"]
    assert ask("-c", "And why?", "-o", "max_tokens", "2").exit_code == 0
    assert modes(ask)[-1] == "off"
    other = ask("-c", "Why?", *options(world, store=tmp_path / "none", memory="explicit"))
    assert other.exit_code == 1 and "m3mlx memorize" in other.output


def test_each_prompt_chooses_memory_and_store(ask, world, tmp_path):
    off = ask("-m", "m3mlx", "Hello?", *options(world, memory="off", store=tmp_path / "none"))
    assert off.exit_code == 0, off.output
    missing = ask("-m", "m3mlx", "Hello?", *options(world, store=tmp_path / "none"))
    assert missing.exit_code == 1 and "m3mlx memorize" in missing.output
    assert "Traceback" not in missing.output
    for bad in ({"memory": "some"}, {"max_tokens": 0}, {"temperature": 3}, {"frob": 1}):
        assert ask("-m", "m3mlx", "Hello?", *options(world, **bad)).exit_code != 0


def entry_points():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["entry-points"]["llm"]


def test_the_entry_point_names_the_plugin():
    (point,) = entry_points().items()
    assert EntryPoint(*point, "llm").load() is llm_plugin


@pytest.mark.slow
def test_llm_finds_the_plugin_by_its_entry_point(world, tmp_path):
    points = "\n".join(f"{k} = {v}" for k, v in entry_points().items())
    info = tmp_path / "site" / "as_installed-1.dist-info"  # what pip makes of pyproject.toml
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: as-installed\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[llm]\n{points}\n")
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "m3mlx", "Where is the boat?", *options(world)],
        env={
            **os.environ,
            **environment(world, tmp_path),
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(info.parent)]),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
