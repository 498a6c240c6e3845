"""The harnesses of tools/torture.py in short form, and that they notice a store that is broken."""

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from torture import crashes, damages, denials, power, readers, strangers
from torture.apart import apart

from m3mlx.store.record_file import RecordFile
from m3mlx.store.records import Records

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def hits(counts):
    return sum(count for label, count in counts.items() if not label.endswith("missed"))


def test_writers_that_are_killed_or_fail_lose_nothing(tmp_path):
    report = crashes.torture(tmp_path, {"step": 12, "python": 6}, seed=1)
    assert hits(report["counts"]) == 18
    assert len([step for step, count in report["killed at"].items() if count]) >= 3


def test_no_damage_gives_a_wrong_answer(tmp_path):
    report = damages.torture(tmp_path, 40, seed=1)
    assert report["failures"] == []
    assert {label.split(",")[0] for label in report["outcomes"]} >= {"right", "error"}


@pytest.fixture
def reachable():
    """A folder to which also those find a way who have no rights to pytest's."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def test_no_strange_store_gives_a_wrong_answer(reachable):
    report = strangers.torture(reachable, 30, seed=1)
    assert report["failures"] == []
    kinds = {label.split(":")[0] for label in report["outcomes"]}
    assert kinds == set(strangers.KINDS)


def test_a_call_that_fails_is_told_in_a_sentence(tmp_path):
    report = denials.torture(tmp_path, 6, seed=1)
    assert report["failures"] == []
    assert report["outcomes"]["denied call: told as an error"] > 20


@pytest.mark.slow
def test_no_strange_store_of_many_gives_a_wrong_answer(reachable):
    assert strangers.torture(reachable, 300, seed=2)["failures"] == []
    assert denials.torture(reachable, denials.PAIRS, seed=2)["failures"] == []


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    return power.build(tmp_path_factory.mktemp("recorder")) or pytest.skip("needs Linux and cc")


def test_a_power_cut_at_any_moment_loses_nothing(tmp_path, recorder):
    report = power.torture(tmp_path, 20, recorder, seed=1)
    assert report["failures"] == []
    assert sum(report["outcomes"].values()) == 20
    assert report["calls"].keys() >= set("CWTSDRUM")


def test_a_file_that_gets_the_inode_of_a_removed_one_is_another_file():
    def entry(kind, inode, name=b"", data=b""):
        return power.ENTRY.pack(kind, inode, 0, len(name), len(data)) + name + data

    log = [
        entry(b"C", 7, b"/store/old"),
        entry(b"W", 7, data=b"old text"),
        entry(b"U", 0, b"/store/old"),
        entry(b"C", 7, b"/store/new"),
        entry(b"W", 7, data=b"new"),
        entry(b"S", 7),
        entry(b"D", 1),
    ]
    calls = power.read_log(b"".join(log))
    assert power.replay(calls, len(calls), random.Random(0)) == {"new": b"new"}


@pytest.mark.slow
def test_no_power_cut_of_many_loses_anything(tmp_path, recorder):
    assert power.torture(tmp_path, 100, recorder, seed=2)["failures"] == []


@pytest.mark.slow
def test_many_writers_that_are_killed_or_fail_lose_nothing(tmp_path):
    report = crashes.torture(tmp_path, {"step": 60, "moment": 15, "python": 30}, seed=2)
    assert hits(report["counts"]) == 105
    assert len([step for step, count in report["killed at"].items() if count]) >= 8


@pytest.mark.slow
def test_no_damage_of_many_gives_a_wrong_answer(tmp_path):
    report = damages.torture(tmp_path, 250, seed=2)
    assert report["failures"] == []
    assert any("repair done" in label for label in report["outcomes"])


@pytest.mark.slow
def test_four_readers_see_whole_versions_while_one_writes(tmp_path):
    report = readers.torture(tmp_path, 15)
    assert report["writer"]["compacted"] > 0
    assert len(report["readers"]) == 4


@pytest.mark.slow
def test_a_store_with_an_index_finds_what_an_exact_search_finds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import scale

    built = scale.build(tmp_path / "store", 21_000)
    assert np.shape(built["nearest"]) == (scale.QUERIES, scale.K)
    figures = scale.measure(tmp_path / "store", built["nearest"])
    assert figures["recall"] >= 0.99
    assert figures["bytes"]["index"] > 0


# a harness that notices nothing proves nothing


def test_a_process_that_dies_hangs_or_fails_is_told_apart():
    assert apart(lambda: [1, "a"]).returned() == [1, "a"]
    assert apart(signal.raise_signal, signal.SIGKILL).kind == "killed"
    assert apart(lambda: 1 / 0).kind == "raised"
    assert apart(lambda: [None for _ in iter(int, 1)], seconds=0.2).kind == "hung"


def test_a_store_that_checks_no_record_is_found_out(tmp_path, monkeypatch):
    def trusting(file, slots, digests):
        raw = [file.raw(slot)[: file.record_bytes] for slot in slots]
        padded = [record.ljust(file.record_bytes, b"\0") for record in raw]
        return np.stack([np.frombuffer(record, dtype=np.uint8) for record in padded])

    monkeypatch.setattr(RecordFile, "read", trusting)
    failures = damages.torture(tmp_path, 40, seed=3)["failures"]
    assert any("WRONG" in failure for failure in failures)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["files.sync", "files.sync_folder", "sqlite"])
def test_a_store_that_does_not_wait_for_the_disk_is_found_out(tmp_path, recorder, way):
    if way == "sqlite":
        first = (
            "from m3mlx.store import database; old = database.Connection._prepare\n"
            "def new(self, write): old(self, write); self.execute('PRAGMA synchronous=OFF')\n"
            "database.Connection._prepare = new"
        )
    else:
        first = f"from m3mlx import files; {way} = lambda where: None"
    assert power.torture(tmp_path, 60, recorder, seed=3, first=first)["failures"]


def test_a_store_that_erases_nothing_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(RecordFile, "erase", lambda file, slots: None)
    monkeypatch.setattr(RecordFile, "trim", lambda file, end: None)
    with pytest.raises(AssertionError, match=r"\.kv has k|of no memory"):
        crashes.torture(tmp_path, {"step": 15}, seed=1)


def test_a_store_that_commits_before_it_writes_is_found_out(tmp_path, monkeypatch):
    kept = {}
    write = RecordFile.write

    def late(file, memories, digests):
        """What one call was given is only written by the next."""
        write(file, *kept.pop(file.path, ({}, {})))
        kept[file.path] = dict(memories), digests

    monkeypatch.setattr(RecordFile, "write", late)
    monkeypatch.setattr(Records, "check_length", lambda *_: None)
    with pytest.raises(AssertionError):
        crashes.torture(tmp_path, {"step": 15}, seed=1)
