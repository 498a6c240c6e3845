"""A store of any released format opens, says the same, and can be written to."""

import fcntl
import shutil
import sqlite3
from pathlib import Path

import pytest
from small_store import LARGE, A, B, everything, expected, in_bytes, memorize, memory, references

from m3mlx.errors import StoreError
from m3mlx.store import BusyStore, MemoryStore
from m3mlx.store.migrations import migrations

FIRST = Path(__file__).parent / "data" / "store-1"  # made by 0.1.0: never to be made again
COLD = ["coal is cold", "until it burns"]
HALF = ["half of a text", "is not found"]


@pytest.fixture
def path(tmp_path):
    shutil.copytree(FIRST, tmp_path / "store")
    return tmp_path / "store"


def all_of_it():
    cold = [(*row[:3], None) for row in expected({"/cold": COLD})["/cold"]]
    return {**expected({"/a": A, "/b": B}), "/cold": cold}


@pytest.mark.parametrize("write", [False, True])
def test_a_store_of_the_first_release_opens_and_says_the_same(path, write):
    with MemoryStore.open(path, write=write, **LARGE) as store:
        assert everything(store) == all_of_it()
        assert store.edition.fingerprint["model"] == "made up"
        assert store.edition.memory == {"selection": "reconstruction", "counts": [[1, 2]]}
        assert (store.encoder, store.dimensions, store.edition.record_bytes) == (
            "made up",
            16,
            1000,
        )
        rows = [(d.path, d.references, d.warm, d.complete) for d in store.documents()]
        half = ("/half", 2, 2, False)
        assert rows == [("/a", 3, 3, True), ("/b", 2, 2, True), ("/cold", 2, 0, True), half]
        assert store.status()["max_bytes"] is None


def test_a_store_of_the_first_release_can_be_worked_on(path):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        half, done = store.begin("/half", "h", 3, size=9)
        assert done == 2
        store.add(references(half, ["now it is whole"], first=2))
        cold = store.references(store.cold())
        store.write({reference.slot: memory(reference.text) for reference in cold})
        memorize(store, "/new", ["something new"])
        store.forget([store.find_documents(["/b"])[0].id])
        assert in_bytes(path, B[0].encode(), memory(B[0])[:40]) == []
    whole = {"/a": A, "/cold": COLD, "/half": [*HALF, "now it is whole"], "/new": ["something new"]}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        assert everything(store) == expected(whole)
        store.compact()
        assert everything(store) == expected(whole)
        assert not (path / "memories.kv").exists()  # it is of the second format now
    with MemoryStore.open(path, **LARGE) as store:
        assert everything(store) == expected(whole)


def test_each_step_happens_wholly_or_not_at_all(path, monkeypatch):
    before = (path / "catalog.sqlite").read_bytes()
    last = next(step for step in migrations._migrations if step.name == "m003_collections")
    monkeypatch.setattr(last, "fn", lambda db, fn=last.fn: (fn(db), db.execute("SELECT nothing")))
    with pytest.raises(StoreError):
        MemoryStore.open(path, write=True)
    monkeypatch.undo()
    with sqlite3.connect(path / "catalog.sqlite") as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    db.close()
    assert "collection" not in names
    assert len(before) <= (path / "catalog.sqlite").stat().st_size
    with MemoryStore.open(path, **LARGE) as store:
        assert everything(store) == all_of_it()


def test_a_reader_changes_nothing_unless_the_store_is_its_own(path):
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for wait in (0, 0):
        with MemoryStore.open(path, wait=wait, **LARGE) as store:
            assert everything(store) == all_of_it()
            assert MemoryStore.fingerprints(path) == [store.edition.fingerprint]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    (path / "lock").touch()
    with open(path / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyStore):
            MemoryStore.open(path, wait=0, own=True)
    with MemoryStore.open(path, wait=0, own=True) as store:
        assert everything(store) == all_of_it()
    assert (path / "memories.used").read_bytes() != before.get("memories.used")
    with MemoryStore.open(path) as store:
        assert not store._catalog.outdated


def test_an_index_that_was_behind_is_made_again(path):
    with sqlite3.connect(path / "catalog.sqlite") as db:
        db.execute("UPDATE setting SET value = '99' WHERE name = 'commit'")
    db.close()
    with MemoryStore.open(path, **LARGE) as store:
        assert store._catalog.settings()["seal"] is None
        assert everything(store) == all_of_it()
