"""Doctor and models: broken things of every kind are named, with what to do; whole ones pass."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from m3mlx import Assistant, doctor
from m3mlx.cli import main
from m3mlx.errors import ModelError
from m3mlx.models import decoder as models
from m3mlx.models import inventory as cached

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with two cached models, and a store that was made with them."""
    world = tmp_path_factory.mktemp("made")
    names = world / "home" / "cache" / "models"
    tiny.save_model(names / "smollm2-135m-instruct")
    tiny.save_encoder(names / "all-minilm-l6-v2")
    note = world / "note.md"
    note.write_text("The boat is blue.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(world / "home"))
        patch.setattr(models, "ADAPTERS", world / "no adapters")  # they fit the real model
        with Assistant(store=world / "store", tokens_per_head=4, budget="uniform") as assistant:
            assistant.memorize([note])
    return world


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "made" / "home"))
    monkeypatch.setattr(models, "ADAPTERS", tmp_path / "no adapters")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "made"


def examine(world, **options):
    with Assistant(store=world / "store", **options) as assistant:
        return doctor.examine(assistant)


def broken(world, **options) -> dict[str, str]:
    found = [finding for finding in examine(world, **options) if finding.state == "broken"]
    assert all(finding.advice for finding in found)
    return {finding.part: f"{finding.value} | {finding.advice}" for finding in found}


def test_a_sound_machine_and_store_pass(world):
    found = {finding.part: finding for finding in examine(world)}
    assert broken(world) == {}
    assert found["fingerprint"].value == "memories 1 are of this model and encoder"
    assert "1 documents, 1 references" in found["store"].value
    assert "mlx-lm" in found["versions"].value and "GB" in found["memory"].value


def test_an_empty_home_is_no_fault(world, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "new"))
    found = {finding.part: finding for finding in examine(tmp_path / "new")}
    assert {f.state for f in found.values()} <= {"ok", "note"}
    assert "memorize" in found["store"].advice and found["model"].value == "none cached"
    assert not (tmp_path / "new").exists()  # looking makes nothing


def store_file(name, change):
    return lambda world: change(world / "store" / name)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage, part, words",
    [
        (store_file("catalog.sqlite", cut), "store", "check --repair"),
        (store_file("catalog.sqlite", lambda p: p.write_bytes(b"x" * 5000)), "store", "repair"),
        (store_file("memories.kv", cut), "store", "check --repair"),
        (store_file("memories.kv", lambda p: p.unlink()), "store", "check --repair"),
        (lambda world: (world / "store").chmod(0o755), "privacy", "chmod 700"),
    ],
)
def test_a_broken_store_is_named(world, damage, part, words):
    damage(world)
    found = broken(world)
    assert words in found[part], found


def test_broken_sessions_are_named(world):
    before = {path.name for path in (world / "store").iterdir()}
    assert broken(world) == {}
    assert "sessions.sqlite" not in {path.name for path in (world / "store").iterdir()} | before
    (world / "store" / "sessions.sqlite").write_bytes(b"x" * 4096)
    assert "conversations cannot be read" in broken(world)["sessions"]


def test_what_a_store_opens_with_all_the_same_is_found(world):
    import sqlite3

    with sqlite3.connect(world / "store" / "catalog.sqlite") as db:
        db.execute("UPDATE document SET count = 7")
    assert "1 of 7 references" in broken(world)["document"]


def test_a_broken_model_is_named_and_can_be_removed(world):
    weights = world / "home/cache/models/smollm2-135m-instruct/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = broken(world)
    assert "model.safetensors is cut short" in found["model"]
    assert "m3mlx models remove smollm2-135m-instruct" in found["model"]
    assert "fingerprint" not in found  # it is not loaded
    gone = cached.remove("SmolLM2-135M-Instruct")
    assert gone.bytes > 0 and not weights.parent.exists()
    assert [model.name for model in cached.cached()] == ["all-minilm-l6-v2"]
    assert list(weights.parent.parent.iterdir()) == [weights.parent.parent / "all-minilm-l6-v2"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights are missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cut short"),
    ],
)
def test_every_kind_of_broken_model_is_seen(world, change, words):
    change(world / "home/cache/models/smollm2-135m-instruct")
    assert words in broken(world)["model"]


def test_memories_of_another_model_are_named(world):
    tiny.save_model(world / "other", seed=1)
    found = broken(world, model=str(world / "other"))
    assert "weights" in found["fingerprint"] and "--rebuild" in found["fingerprint"]


def test_models_of_the_hub_are_listed(world, tmp_path):
    snapshot = tmp_path / "hub" / "models--mlx-community--Tiny" / "snapshots" / "abc"
    tiny.save_model(snapshot)
    (tmp_path / "hub" / "models--other--half" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--x--y").mkdir()
    model = next(model for model in cached.cached() if model.kind == "hub")
    assert (model.name, model.broken) == ("mlx-community/Tiny", "")
    assert model.bytes > 100_000
    with pytest.raises(ModelError, match=r"nothing-like-it: no such model is cached"):
        cached.remove("nothing-like-it")
    for name in ("../..", "", "/"):
        with pytest.raises(ModelError):
            cached.remove(name)
    cached.remove("mlx-community/Tiny")
    assert not (tmp_path / "hub" / "models--mlx-community--Tiny").exists()


def test_only_what_was_measured_is_said_to_be():
    measured = {model.name: model.answers for model in cached.RECOMMENDED if model.answers}
    assert measured == {"smollm2-135m-instruct": "37 of 100"}
    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    assert "**XQuAD**, 100 questions" in page
    assert re.search(r"8 tokens per head, the default \| 11 \| 25.6 \(\S+\) \| 37 ", page)
    sizes = [model.parameters for model in cached.RECOMMENDED]
    assert sizes == sorted(sizes)
    large = cached.RECOMMENDED[-1]
    assert cached.fits(large, 2 * large.needs_bytes) and not cached.fits(large, large.needs_bytes)


def test_the_commands(world):
    def run(*words):
        return CliRunner().invoke(main, [*words, "--store", str(world / "store")])

    assert run("doctor").exit_code == 0
    shown = run("models")
    assert "smollm2-135m-instruct" in shown.stdout and "37 %" in shown.stdout
    data = json.loads(run("models", "--json").stdout)
    assert {model["name"] for model in data["cached"]} == {
        "all-minilm-l6-v2",
        "smollm2-135m-instruct",
    }
    assert data["recommended"][0]["cached"] and not data["recommended"][-1]["cached"]
    assert "Removed" in run("models", "remove", "all-minilm-l6-v2").stdout
    assert run("models", "remove", "all-minilm-l6-v2").exit_code == 1
    cut(world / "store" / "memories.kv")
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and not report["sound"]
    assert "store" in {f["part"] for f in report["findings"] if f["state"] == "broken"}
    assert "BROKEN  store" in run("doctor").stdout


@pytest.mark.parametrize(
    ("folder", "whose"),
    [
        ("Library/Mobile Documents/com~apple~CloudDocs/notes", "iCloud"),
        ("Dropbox (Work)/store", "Dropbox"),
        ("OneDrive - Firm/store", "OneDrive"),
        ("Library/CloudStorage/GoogleDrive-me/store", "Google Drive"),
        ("notes/store", ""),
    ],
)
def test_folders_that_are_synchronised_are_known(tmp_path, folder, whose):
    (tmp_path / folder).mkdir(parents=True)
    assert doctor.synced_by(tmp_path / folder) == whose
    (tmp_path / ".stfolder").mkdir()
    assert doctor.synced_by(tmp_path / folder) == (whose or "Syncthing")


def test_network_drives_are_known_by_the_nearest_mount(tmp_path):
    mounts = [("/", "ext4"), (str(tmp_path), "nfs4"), (str(tmp_path / "disk"), "ext4")]
    assert doctor.network_drive(tmp_path / "store", mounts) == "nfs4"
    assert doctor.network_drive(tmp_path / "disk" / "store", mounts) == ""
    assert doctor.network_drive(tmp_path / "store", [("/", "smbfs")]) == "smbfs"
    assert doctor.network_drive(Path(__file__), doctor._mounts()) == ""


def test_a_store_in_another_script_is_told_of_a_multilingual_encoder(world, monkeypatch):
    runner = CliRunner()

    def run(*args):
        return runner.invoke(main, [*map(str, args), "--store", str(world / "store")])

    assert "language" not in {finding.part for finding in examine(world)}
    (world / "notes").mkdir()
    for n in range(2):
        (world / "notes" / f"{n}.md").write_text(f"Лодка {n} синяя.")
    result = run("memorize", world / "notes")
    assert result.exit_code == 0
    assert "all-minilm-l6-v2 hardly knows. A multilingual encoder" in result.stderr
    assert "multilingual" not in run("memorize", world / "notes").stderr  # nothing is new
    (told,) = [finding for finding in examine(world) if finding.part == "language"]
    assert told.state == "note" and told.value == "2 of 3 references are not in Latin letters"
    monkeypatch.setattr("m3mlx.models.encoder.FOREIGN", 0)  # as if it knew more scripts
    assert "language" not in {finding.part for finding in examine(world)}
    (world / "notes" / "3.md").write_text("Кошка старая.")
    assert "multilingual" not in run("memorize", world / "notes").stderr
