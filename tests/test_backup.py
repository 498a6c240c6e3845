"""Backups of stores in use: whole, of one moment, also when they or a writer are cut off."""

import os

import pytest
from small_store import (
    LARGE,
    A,
    B,
    die_in,
    everything,
    expected,
    in_bytes,
    memorize,
    memory,
    new_store,
)
from torture.apart import Apart

from m3mlx.errors import StoreError
from m3mlx.store import LockedError, MemoryStore


@pytest.fixture(params=["plain", "encrypted"])
def key(request):
    return {"passphrase": lambda: "words"} if request.param == "encrypted" else {}


@pytest.fixture
def path(tmp_path, key):
    with new_store(tmp_path / "store", encrypt=bool(key), **LARGE, **key) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
    return tmp_path / "store"


def shown(path, key):
    with MemoryStore.open(path, **LARGE, **key) as store:
        return everything(store)


def test_a_backup_is_a_store_and_the_next_one_copies_what_is_new(path, tmp_path, key):
    folder = tmp_path / "backup"
    store = MemoryStore.open(path, write=True, **LARGE, **key)  # somebody is at work
    done = MemoryStore.backup(path, folder, **key)
    assert (done.documents, done.references, done.copied, done.cold) == (2, 5, 5, 0)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    store.forget([1])
    memorize(store, "/c", ["a new one"])
    with store.sessions() as sessions:
        sessions.add("talk", [{"role": "user", "content": "hello"}])
    done = MemoryStore.backup(path, folder, **key)
    assert (done.copied, done.unchanged, done.cold) == (1, 2, 0)
    store.close()
    assert shown(folder, key) == expected({"/b": B, "/c": ["a new one"]})
    assert in_bytes(folder, *(text.encode() for text in A), memory(A[0])[:40]) == []
    assert MemoryStore.check(folder, **key).damages == []
    with MemoryStore.open(folder, write=True, **key) as restored:
        assert [session.name for session in restored.sessions().list()] == ["talk"]
        memorize(restored, "/d", A)
    assert MemoryStore.check(folder, **key).damages == []
    with pytest.raises(StoreError, match="changed since"):
        MemoryStore.backup(path, folder, **key)


def test_what_is_no_backup_of_this_store_is_left_alone(path, tmp_path, key):
    other = tmp_path / "other"
    new_store(other).close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for folder in (other, path, path / "in it", tmp_path / "full"):
        before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        with pytest.raises(StoreError):
            MemoryStore.backup(path, folder, **key)
        now = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        assert {f.name for f in now} - {f.name for f in before} <= {
            *("lock", "catalog.sqlite.new"),
        }
        assert all(now[file] == before[file] for file in before)
    if key:
        with pytest.raises(LockedError):
            MemoryStore.backup(path, tmp_path / "new", passphrase=lambda: "wrong")


def again(path, folder):
    MemoryStore.backup(path, folder)


@pytest.mark.parametrize(
    ("module", "owner", "function"),
    [
        ("m3mlx.store.record_file", "RecordFile", "write"),
        ("m3mlx.store.backup", "_Backup", "_copy_index"),
        ("m3mlx.store.backup", "_Backup", "finish"),
        ("m3mlx.store.record_file", "RecordFile", "erase"),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_backup_that_is_cut_off_is_the_old_or_the_new_one(
    tmp_path, module, owner, function, moment
):
    path, folder = tmp_path / "store", tmp_path / "backup"
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", A)
        MemoryStore.backup(path, folder)
        memorize(store, "/c", B)
        store.forget([1])
    die_in(module, owner, function, moment, again, path, folder)
    old, new = expected({"/a": A}), expected({"/c": B})
    assert shown(folder, {}) in (old, new)
    MemoryStore.backup(path, folder)
    assert shown(folder, {}) == new
    assert MemoryStore.check(folder).damages == []
    assert in_bytes(folder, A[0].encode(), memory(A[0])[:40]) == []


def churn(path, turns):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        for turn in range(turns):
            store.forget([document.id for document in store.documents()])
            memorize(store, "/a", [f"turn {turn} part {part}" for part in range(3)])
            if turn % 5 == 0:
                store.compact()
    return turns


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_backup_beside_a_writer_is_of_one_moment(tmp_path):
    path, folder = tmp_path / "store", tmp_path / "backup"
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", [f"turn 99 part {part}" for part in range(3)])
    writer = Apart(churn, str(path), 40)
    for _ in range(6):
        MemoryStore.backup(path, folder)
        with MemoryStore.open(folder, **LARGE) as copy:
            texts = [row[0] for row in everything(copy).get("/a", [])]
            assert len({text.split()[1] for text in texts}) <= 1 and len(texts) in (0, 3)
        assert MemoryStore.check(folder).sound
    assert writer.outcome(120).returned() == 40
