"""The model of a new store: by the machine's memory, the kept choice, or the built-in one."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from m3mlx.assistant import Assistant
from m3mlx.chat.step import Timings
from m3mlx.cli import hints, main, options
from m3mlx.errors import ModelError
from m3mlx.models import builtin, decoder, default, inventory, rates

SMALL = "mlx-community/Qwen3-1.7B-4bit"
GIB = 2**30


class Hub:
    """A hub that gives a tiny model under every name, unless it is down."""

    def __init__(self, folder):
        self.folder, self.fetched, self.down = folder, [], False

    def __call__(self, name, **given):
        self.fetched.append(name)
        if self.down:
            raise OSError("no route to the hub\nand more")
        place = self.folder / f"models--{name.replace('/', '--')}" / "snapshots" / "1"
        if not place.exists():
            tiny.save_model(place)
        return str(place)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("mlx_lm.utils.snapshot_download", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.folder))
    monkeypatch.setattr(decoder, "ADAPTERS", tmp_path / "no adapters")  # they fit the real model
    return hub


@pytest.fixture
def mac(monkeypatch):
    """Make this machine one with Apple silicon and so many GiB."""

    def mac(gib):
        monkeypatch.setattr(inventory, "is_apple_silicon", lambda: True)
        monkeypatch.setattr(inventory, "machine_memory", lambda: (gib * GIB, None))

    return mac


@pytest.fixture
def terminal(monkeypatch):
    """Let a person sit at the terminal."""

    class Person:
        def __init__(self, stream):
            self.stream = stream

        def isatty(self):
            return True

        def __getattr__(self, name):
            return getattr(self.stream, name)

    class System:
        stdin = property(lambda self: Person(sys.stdin))
        stderr = property(lambda self: Person(sys.stderr))

    monkeypatch.setattr(options, "sys", System())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with tiny models under the names of the built-in ones, and no model named."""
    models = tmp_path / "home" / "cache" / "models"
    tiny.save_model(models / builtin.DEFAULT_DECODER, seed=1)
    tiny.save_encoder(models / builtin.DEFAULT_ENCODER)
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    for name in ("M3MLX_MODEL", "M3MLX_STORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "note.md").write_text("The boat is blue.")
    return tmp_path


@pytest.fixture
def m3(home):
    def run(*args, code=0, input=None):
        done = CliRunner().invoke(main, [*map(str, args)], input=input)
        assert done.exit_code == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def memorize(m3, home, *more, **given):
    flags = ("--budget", "uniform", "--tokens-per-head", 4, *more)
    return m3("memorize", home / "note.md", *flags, **given)


def model_of_store(home, store="home/store"):
    with Assistant(store=home / store) as assistant:
        return assistant.model[0]


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (4, None),
        (8, SMALL),
        (15, SMALL),
        (16, "mlx-community/Qwen3-4B-Instruct-2507-4bit"),
        (24, "mlx-community/Qwen3-4B-Instruct-2507-4bit"),
        (32, "mlx-community/Qwen3-30B-A3B-4bit"),
        (512, "mlx-community/Qwen3-30B-A3B-4bit"),
    ],
)
def test_the_machines_memory_chooses(mac, monkeypatch, gib, name):
    mac(gib)
    model = default.fitting()
    assert (model and model.name) == name
    if model:
        monkeypatch.setattr(inventory.mx, "default_device", lambda: inventory.mx.gpu)
        assert inventory.fits(model, gib * GIB)


@pytest.mark.parametrize(
    ("system", "metal"),
    [
        (("Linux", "x86_64"), False),
        (("Linux", "arm64"), False),
        (("Darwin", "x86_64"), True),
        (("Darwin", "arm64"), False),
    ],
)
def test_elsewhere_the_built_in_model_is_the_default(monkeypatch, system, metal):
    monkeypatch.setattr(inventory, "machine_memory", lambda: (64 * GIB, None))
    monkeypatch.setattr(inventory.platform, "system", lambda: system[0])
    monkeypatch.setattr(inventory.platform, "machine", lambda: system[1])
    monkeypatch.setattr(inventory.mx.metal, "is_available", lambda: metal)
    assert default.fitting() is None and default.chosen() == (builtin.DEFAULT_DECODER, "built in")


def test_without_a_person_nothing_is_downloaded_unless_allowed(m3, home, mac, hub):
    mac(8)
    done = memorize(m3, home)
    (line,) = done.stderr.splitlines()
    assert f"{SMALL} suits this machine; --yes downloads it (967.8 MB)" in line
    assert hub.fetched == [] and model_of_store(home) == builtin.DEFAULT_DECODER
    done = memorize(m3, home, "--yes", "--store", home / "other")
    assert f"Using {SMALL} (967.8 MB to download)" in done.stderr
    assert hub.fetched[0] == SMALL and model_of_store(home, "other") == SMALL
    again = memorize(m3, home, "--store", home / "other")  # the store names its model now
    asked = m3("ask", "boat?", "--max-tokens", "2", "--store", home / "other")
    assert "Using" not in again.stderr + asked.stderr


def test_what_is_named_or_made_for_an_adapter_is_not_chosen(m3, home, mac, hub, monkeypatch):
    mac(8)
    default.keep("some/model")
    done = memorize(m3, home, "--model", builtin.DEFAULT_DECODER)
    assert done.stderr == "" and hub.fetched == []
    given = options.Options(store=home / "none", adapter_path="somewhere")
    assert options.choose_model(given, True) == given
    monkeypatch.setenv("M3MLX_MODEL", builtin.DEFAULT_DECODER)  # as --model
    done = memorize(m3, home, "--store", home / "by environment")
    assert model_of_store(home, "by environment") == builtin.DEFAULT_DECODER and not done.stderr


def test_python_takes_no_choice_of_the_command_line(home, mac):
    mac(8)
    default.keep("some/model")
    with Assistant(store=home / "none") as assistant:
        assert assistant.model == (None, None) and assistant.decoder.name == builtin.DEFAULT_DECODER


@pytest.mark.parametrize(("answer", "fetched"), [("y\n", True), ("\n", True), ("n\n", False)])
def test_a_person_is_asked_before_a_download(m3, home, mac, hub, terminal, answer, fetched):
    mac(8)
    done = memorize(m3, home, input=answer)
    assert "Download 967.8 MB?" in done.stderr
    assert bool(hub.fetched) == fetched
    assert model_of_store(home) == (SMALL if fetched else builtin.DEFAULT_DECODER)


def test_a_person_who_leaves_gets_no_store(m3, home, mac, hub, terminal):
    mac(8)
    memorize(m3, home, input="", code=130)
    assert hub.fetched == [] and not (home / "home" / "store").exists()


def test_yes_and_a_model_that_is_there_need_no_answer(m3, home, mac, hub, terminal):
    mac(8)
    assert "Download" not in memorize(m3, home, "--yes").stderr
    chat = m3("chat", "--store", home / "other", "--memory", "off", input="/quit\n")
    assert "Download" not in chat.stderr and f"Using {SMALL} (967.8 MB), which" in chat.stderr


def test_a_download_that_was_cut_short_is_not_taken_for_whole(m3, home, mac, hub, terminal):
    mac(8)
    folder = Path(hub(SMALL))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not default.is_whole(SMALL)
    assert "model-00002-of-00002.safetensors is missing" in m3("models").stdout
    assert "Download" in m3("chat", "--memory", "off", input="n\n/quit\n").stderr


@pytest.mark.parametrize("command", ["memorize", "ask", "chat"])
def test_without_the_hub_the_built_in_model_is_used_and_says_why(m3, home, mac, hub, command):
    mac(16)
    hub.down = True
    if command == "memorize":
        done = memorize(m3, home, "--yes")
    else:
        arguments = {"ask": ["Hello?", "--max-tokens", "2"], "chat": []}[command]
        done = m3(command, *arguments, "--memory", "off", "--yes", input="/quit\n")
    (why,) = [line for line in done.stderr.splitlines() if "no route to the hub" in line]
    assert "small built-in model instead" in why and "and more" not in why
    if command == "memorize":
        assert model_of_store(home) == builtin.DEFAULT_DECODER


def test_a_connection_that_breaks_is_no_bug(m3, home, mac, hub, monkeypatch):
    import httpx

    def breaks(name, **given):
        raise httpx.ReadTimeout("The read operation timed out")

    mac(16)
    monkeypatch.setattr("mlx_lm.utils.snapshot_download", breaks)
    done = m3("ask", "Hello?", "--max-tokens", "2", "--memory", "off", "--yes")
    assert "(The read operation timed out). Using the small built-in model" in done.stderr
    with pytest.raises(ModelError, match="The read operation timed out"):
        decoder.load_decoder("some/model")


def test_a_full_disk_is_seen_before_the_download(m3, home, mac, hub, monkeypatch):
    mac(16)
    usage = default.shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(default.shutil, "disk_usage", lambda path: usage)
    assert "0.1 GB of the disk are free" in memorize(m3, home, "--yes").stderr
    assert hub.fetched == []


def test_a_choice_is_kept_shown_and_forgotten(m3, home, mac, hub):
    mac(8)
    assert f"made with {SMALL}" in m3("models").stdout
    tiny.save_model(home / "mine")
    assert str(home / "mine") in m3("models", "use", home / "mine").stdout.replace("\n", "")
    shown = json.loads(m3("models", "--json").stdout)
    assert shown["default"] == {"name": str(home / "mine"), "why": "your choice"}
    assert "your choice" in m3("models").stdout and "your choice" in m3("doctor").stdout
    assert default._file().parent == home / "home"  # not in the cache, which may be emptied
    assert default._file().stat().st_mode & 0o077 == 0
    done = memorize(m3, home)
    assert done.stderr == "" and hub.fetched == [] and model_of_store(home) == str(home / "mine")
    used = json.loads(m3("models", "use", "--reset", "--json").stdout)
    assert used["default"]["name"] == SMALL and default.kept() is None
    m3("models", "use", "--reset")  # nothing is kept: nothing to forget


@pytest.mark.parametrize("name", ["mlx-community/Qwen3-4B-4bit", "SmolLM2-135M-Instruct"])
def test_a_choice_may_be_a_hub_id_or_a_built_in_name(m3, name):
    m3("models", "use", name)
    assert default.kept() in (name, name.lower())


@pytest.mark.parametrize(
    "name",
    ["all-minilm-l6-v2", "no such", "../up/there", "../up", "a/b/c", "", ".", "x", "a/b\n", "ä/ö"],
)
def test_what_cannot_be_a_model_is_refused(m3, name):
    done = m3("models", "use", name, code=1)
    assert done.stderr.count("\n") == 1 and default.kept() is None


def test_a_folder_without_a_model_is_refused(m3, home):
    assert "no config.json" in m3("models", "use", home, code=1).stderr


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"model": ""}', b'{"model": 7}', b"[]", b"\xff\xfe", b'{"mod'], ids=repr
)
def test_a_half_written_choice_is_named_with_the_remedy(m3, home, text):
    default._file().write_bytes(text)
    for done in (m3("ask", "Hello?", code=1), m3("models", code=1)):
        assert "model.json: the kept model cannot be read" in done.stderr
        assert "m3mlx models use NAME" in done.stderr
    assert "BROKEN  default" in m3("doctor", code=1).stdout
    m3("models", "use", "--reset")
    assert default.kept() is None
    default._file().write_bytes(text)
    m3("models", "use", "a/b")
    assert default.kept() == "a/b"


def test_a_chosen_folder_that_is_gone_is_named_with_the_remedy(m3, home):
    folder = tiny.save_model(home / "mine")
    m3("models", "use", folder)
    folder.rename(home / "elsewhere")
    assert "that you chose is gone" in m3("chat", code=1).stderr


def test_a_data_folder_that_cannot_be_written_is_named(home, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(home / "note.md"))
    with pytest.raises(ModelError, match=r"model\.json cannot be written: "):
        default.keep("a/b")


def test_the_table_names_hub_models_that_m3mlx_reads():
    chosen = [model for model in inventory.RECOMMENDED if model.default_from_gib]
    assert [model.default_from_gib for model in chosen] == [8, 16, 32]
    assert all(model.name not in builtin.BUILT_IN and "/" in model.name for model in chosen)


@pytest.mark.slow
def test_a_person_at_a_real_terminal_is_asked(home):
    """A pseudo-terminal, on what says it is a Mac with 8 GiB, without a network."""
    script = (
        "import sys, pathlib; from m3mlx.models import decoder, inventory;"
        "decoder.ADAPTERS = pathlib.Path('none');"
        "inventory.is_apple_silicon = lambda: True;"
        "inventory.machine_memory = lambda: (8 * 2**30, None);"
        "from m3mlx.cli import main; sys.argv[0] = 'm3mlx'; main()"
    )
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-c", script, "chat", "--memory", "off"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "empty")}
    process = subprocess.Popen(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    shown, answers = b"", [(b"[Y/n]", b"y\n"), (b"lists commands", b"/quit\n")]
    stop = time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < stop:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
            if answers and answers[0][0] in shown:
                os.write(ours, answers.pop(0)[1])
        assert process.wait(10) == 0, shown
    finally:
        process.kill()
        os.close(ours)
    text = " ".join(shown.decode("utf-8", "replace").split())
    assert f"Using {SMALL} (967.8 MB to download)" in text and "Download 967.8 MB?" in text
    assert "cannot be fetched from the hub" in text and "small built-in model instead" in text


def test_a_name_with_a_typo_gets_a_suggestion(m3, home):
    ask = ("ask", "x", "--memory", "off", "--model")
    assert "every hub id" in m3("models", "use", "smolm2-135m", code=1).stderr
    assert "every hub id" in m3(*ask, "x", code=1).stderr
    said = m3(*ask, "smollm2-135m-instuct", code=1).stderr
    assert f"Did you mean {builtin.DEFAULT_DECODER}?" in said
    assert f"Did you mean {SMALL}?" in m3("models", "use", "qwen3-1.7b-4bt", code=1).stderr


def test_a_store_with_memories_of_the_kept_choice_is_used_with_it(m3, home):
    memorize(m3, home)
    own = tiny.save_model(home / "mine", seed=7)
    m3("models", "use", own)
    question = ("ask", "What is blue?", "--max-tokens", "4", "--json")
    before = json.loads(m3(*question).stdout)["answer"]  # with the model that it was made with
    assert "1 memories written" in m3("memorize", "--rebuild", "--tokens-per-head", "4").stdout
    named = json.loads(m3(*question, "--model", own).stdout)["answer"]
    assert json.loads(m3(*question).stdout)["answer"] == named != before
    m3("models", "use", "--reset")
    assert json.loads(m3(*question).stdout)["answer"] == before


def test_a_better_model_is_named_once_a_day_to_who_sees_the_smallest(
    home, mac, monkeypatch, capsys
):
    monkeypatch.setattr(hints, "_on_terminal", lambda: True)
    timings = Timings(generated_tokens=40, decode_tokens_per_second=8.0)
    hints.after_answer(builtin.DEFAULT_DECODER, timings)
    assert rates.rate(builtin.DEFAULT_DECODER, "answering") == pytest.approx(8)
    (home / "home" / "hinted").unlink(missing_ok=True)
    capsys.readouterr()
    mac(8)
    for model, told in (("other", False), (builtin.DEFAULT_DECODER, True), (None, False)):
        hints.after_answer(model or builtin.DEFAULT_DECODER, None)
        assert (f"m3mlx models use {SMALL}" in capsys.readouterr().err) == told
    os.utime(home / "home" / "hinted", (1, 1))
    hints.after_answer(builtin.DEFAULT_DECODER, None)
    assert SMALL in capsys.readouterr().err
    os.utime(home / "home" / "hinted", (1, 1))
    default.keep("a/b")  # who has chosen needs no hint
    hints.after_answer(builtin.DEFAULT_DECODER, None)
    assert capsys.readouterr().err == ""


def test_the_speed_of_other_models_follows_from_one_that_answered_here(home, m3):
    models = {model.name: model for model in inventory.RECOMMENDED}
    assert models[SMALL].expected_speed is None and " ≈1" not in m3("models").stdout
    rates.note(builtin.DEFAULT_DECODER, "answering", 1000, 100)
    small, large = models[builtin.DEFAULT_DECODER], models[SMALL]
    assert small.expected_speed == 10
    assert large.expected_speed == pytest.approx(10 * small.parameters / large.parameters, rel=0.01)
    moe = models["mlx-community/Qwen3-30B-A3B-4bit"]
    assert moe.expected_speed == pytest.approx(10 * small.parameters / moe.active, rel=0.01)
    shown = json.loads(m3("models", "--json").stdout)["recommended"]
    assert shown[0]["tokens_per_second"] == 10
    assert re.search(rf"{builtin.DEFAULT_DECODER} .* 10 ", m3("models").stdout)
    assert default.better(builtin.DEFAULT_DECODER).name == "mlx-community/Qwen3-0.6B-4bit"
