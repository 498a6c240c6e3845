"""A store of somebody else is a folder of plain files with our schema, or it is refused."""

import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from older import third_format
from small_store import A, B, everything, expected, memorize, new_store

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore

FILES = ("catalog.sqlite", "memories.kv", "memories.used", "lock", "sessions.sqlite", "typed")


@pytest.fixture
def path(tmp_path):
    with new_store(tmp_path / "store") as store:
        memorize(store, "/a", A)
        store.sessions().close()
    return tmp_path / "store"


def refuse(path, match):
    for use in (
        MemoryStore.open,
        MemoryStore.fingerprints,
        lambda path: MemoryStore.open(path, write=True),
        lambda path: MemoryStore.open(path, own=True),
    ):
        with pytest.raises(StoreError, match=match):
            use(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_links_and_special_files_are_refused_and_not_followed(path, tmp_path, name, kind):
    victim = tmp_path / "victim"
    if (path / name).exists():
        (path / name).replace(victim)
    else:
        victim.write_bytes(b"precious")
    before = victim.read_bytes()
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    match = "there is no store" if name == "catalog.sqlite" and kind != "link" else "link or no"
    for use in (MemoryStore.open, MemoryStore.check, MemoryStore.repair):
        with pytest.raises(StoreError, match=match if use == MemoryStore.open else "store"):
            use(path)
    assert victim.read_bytes() == before and not (tmp_path / "nowhere").exists()


def test_a_file_that_is_elsewhere_too_is_not_written(path, tmp_path):
    os.link(path / "memories.kv", tmp_path / "backup.kv")
    before = (tmp_path / "backup.kv").read_bytes()
    with MemoryStore.open(path) as store:
        assert everything(store) == expected({"/a": A})
    for use in (MemoryStore.check, lambda path: MemoryStore.open(path, write=True)):
        with pytest.raises(StoreError, match="hard link"):
            use(path)
    assert (tmp_path / "backup.kv").read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON setting BEGIN DELETE FROM document; END",
        "CREATE VIEW v AS SELECT * FROM reference",
        "CREATE TABLE t (x)",
        "CREATE INDEX i ON reference (text)",
        "CREATE VIRTUAL TABLE v USING fts5 (x)",
        "DROP TABLE document; CREATE VIEW document AS SELECT 1 AS id",
        "DROP TABLE leftover; CREATE TABLE leftover (edition, slot, x AS (zeroblob(9)))",
        "DROP TRIGGER reference_added; CREATE TRIGGER reference_added AFTER INSERT ON reference "
        "BEGIN DELETE FROM words; END",
        "DROP TABLE collection",
        "CREATE TRIGGER t AFTER INSERT ON _sqlite_migrations BEGIN DELETE FROM document; END",
        "CREATE TRIGGER t AFTER UPDATE ON setting BEGIN DELETE FROM document; END; "
        "PRAGMA writable_schema=ON; UPDATE sqlite_master SET name = 'sqlite_t' WHERE name = 't'",
        "DROP TABLE _sqlite_migrations; CREATE VIEW _sqlite_migrations AS "
        "SELECT 'm3mlx.store' AS migration_set, 'm001_first' AS name",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(path, statement):
    with closing(sqlite3.connect(path / "catalog.sqlite")) as db:
        db.executescript(statement)
    refuse(path, "no m3mlx has made|it has no|not a catalog")


@pytest.mark.parametrize("statement", ["CREATE VIEW v AS SELECT 1", "CREATE TABLE t (x)"])
def test_foreign_sessions_are_refused(path, statement):
    with closing(sqlite3.connect(path / "sessions.sqlite")) as db:
        db.executescript(statement)
    with MemoryStore.open(path) as store, pytest.raises(StoreError, match="tables"):
        store.sessions()


@pytest.mark.parametrize(
    "name", ["../../victim", "/etc/passwd", "memories.kv/../x", "x.kv", "", "memories.kv\0"]
)
def test_no_name_of_a_record_file_leads_out_of_the_store(path, tmp_path, name):
    (tmp_path / "victim").write_bytes(b"precious")
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE edition SET file = ?", [name])
    refuse(path, "an edition cannot be read")
    with pytest.raises(StoreError):
        MemoryStore.repair(path)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_what_cannot_be_written_is_read(path, tmp_path, monkeypatch):
    with new_store(tmp_path / "other") as store:
        memorize(store, "/b", B)
    monkeypatch.setattr("m3mlx.files.is_writable", lambda path: False)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    with MemoryStore.open(path, own=True) as store:
        assert everything(store) == expected({"/a": A})
        assert {file.name for file in path.iterdir()} <= set(before)  # nothing beside it
    (path / "catalog.sqlite-wal").write_bytes(b"")
    MemoryStore.open(path).close()
    shutil.rmtree(path)


def _contents(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def _with_log(path, *, shm):
    """Leave what a writer leaves that dies behind a commit."""
    store = MemoryStore.open(path, write=True)
    memorize(store, "/b", B)
    names = ["catalog.sqlite", "catalog.sqlite-wal", "memories.kv"]
    kept = {name: (path / name).read_bytes() for name in names + ["catalog.sqlite-shm"] * shm}
    store.close()
    for name, data in kept.items():
        (path / name).write_bytes(data)


@pytest.mark.parametrize("left", ["nothing", "log", "older"])
def test_an_attached_store_keeps_every_byte(tmp_path, path, left):
    if left == "log":
        _with_log(path, shm=False)
    elif left == "older":
        third_format(path)
    before = _contents(path)
    with MemoryStore.open(path, attached=True) as store:
        assert _contents(path) == before
        found = everything(store)
    assert _contents(path) == before
    assert found == expected({"/a": A, "/b": B} if left == "log" else {"/a": A})


@pytest.mark.parametrize("shm", [False, True])
def test_a_log_on_a_read_only_disk_is_read(path, shm, monkeypatch):
    _with_log(path, shm=shm)
    monkeypatch.setattr("m3mlx.files.is_writable", lambda path: False)
    with MemoryStore.open(path) as store:
        assert everything(store) == expected({"/a": A, "/b": B})


def test_an_attached_store_shows_what_its_owner_writes(path):
    with MemoryStore.open(path, attached=True) as reader:
        assert everything(reader) == expected({"/a": A})
        with MemoryStore.open(path, write=True) as store:
            memorize(store, "/b", B)
            assert everything(reader) == expected({"/a": A, "/b": B})
            store.forget([1])
        assert everything(reader) == expected({"/b": B})
