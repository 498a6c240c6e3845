"""Whoever has no key changes no row of an encrypted catalog unnoticed."""

import json
import shutil
import sqlite3
import zlib
from contextlib import closing, suppress

import pytest
from small_store import LARGE, A, B, everything, expected, memorize, new_store

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore, cipher
from m3mlx.store.root import SETTING, SMALL, TABLES

TRUTH = expected({"/a": A, "/b": B})


def words():
    return "nine brass buttons"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(cipher, "_COST", 16)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cipher, "_COST", 16)
        path = tmp_path_factory.mktemp("root") / "store"
        with new_store(path, encrypt=True, passphrase=words) as store:
            memorize(store, "/a", A)
            memorize(store, "/b", B)
            memorize(store, "/c", [*A, *B])
            store.collect([1], "one")
            store.collect([2], "two")
            store.describe_fact(1, "one")
            store.describe_fact(2, "two")
            store.forget([3])
            store.add_edition(fingerprint={"weights": "v"}, memory={}, record_bytes=1000)
        assert MemoryStore.check(path, passphrase=words).damages == []
    return path


@pytest.fixture
def path(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


def columns():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cipher, "_COST", 16)
        from sqlite_utils import Database

        from m3mlx.store.migrations import migrations

        db = Database(memory=True)
        migrations.apply(db)
    return [(table, column.name) for table in TABLES for column in db[table].columns]


def mend_checksums(db):
    """What anybody can do who knows the format."""
    rows = db.execute(
        'SELECT slot, path, ordinal, "start", "end", page, line, text, tokens, vector '
        "FROM reference JOIN document ON document = id"
    ).fetchall()
    for slot, path, *place, tokens, vector in rows:
        head = json.dumps([slot, path, *place]).encode()
        value = zlib.crc32(vector, zlib.crc32(tokens, zlib.crc32(head)))
        db.execute("UPDATE reference SET checksum = ? WHERE slot = ?", [value, slot])


def assert_told_the_truth(path):
    """A reader gets what was written, less of it, or an error; never something else."""
    try:
        with MemoryStore.open(path, passphrase=words, **LARGE) as store:
            seen = everything(store)
            collections = {d.path: d.collection for d in store.documents()}
    except StoreError:
        return
    for name, rows in seen.items():
        assert collections[name] in ("", {"/a": "one", "/b": "two"}[name])
        for row in rows:
            assert row in TRUTH[name] or (*row[:3], row[3]) in [(*r[:3], None) for r in TRUTH[name]]


@pytest.mark.parametrize(("table", "column"), columns(), ids=lambda name: name)
def test_values_that_change_places_or_change_are_found(path, table, column):
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        rows = (
            db.execute(f'SELECT rowid, "{column}" FROM "{table}"').fetchall()
            if table not in ("memory", "leftover", "setting")
            else []
        )
        if len(rows) > 1 and rows[0][1] != rows[-1][1]:
            (one, first), (other, last) = rows[0], rows[-1]
            unique = 99 if isinstance(first, int) else "x"
            for value, row in ((unique, one), (first, other), (last, one)):
                with suppress(sqlite3.IntegrityError):  # then it is changed alone
                    db.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', [value, row])
        elif table == "memory":
            db.execute("DELETE FROM memory WHERE slot = (SELECT max(slot) FROM memory)")
        elif table == "leftover":
            db.execute("INSERT INTO leftover VALUES (1, 1)")
        elif table == "setting":
            db.execute("UPDATE setting SET value = '4096' WHERE name = 'max_bytes'")
        else:
            values = {"INTEGER": 7, "TEXT": "7", "BLOB": b"7"}
            kinds = {row[1]: row[2] for row in db.execute(f"PRAGMA table_info({table})")}
            with_id = rows[0][0]
            db.execute(
                f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?',
                [values[kinds[column]], with_id],
            )
        if table in ("document", "reference") and column != "checksum":
            mend_checksums(db)
    found = MemoryStore.check(path, passphrase=words)
    assert not found.sound
    if table in SMALL:
        with pytest.raises(StoreError):
            MemoryStore.open(path, passphrase=words, **LARGE)
    assert_told_the_truth(path)


@pytest.mark.parametrize("table", [table for table in TABLES if table != "leftover"])
def test_rows_that_are_dropped_are_found(path, table):
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        one = f"SELECT {'name' if table == 'setting' else '*'} FROM {table} LIMIT 1"
        first = db.execute(one).fetchone()[0]
        key = db.execute(f"PRAGMA table_info({table})").fetchone()[1]
        db.execute(f"DELETE FROM {table} WHERE {key} = ?", [first])
    assert not MemoryStore.check(path, passphrase=words).sound
    assert_told_the_truth(path)


def test_what_was_forgotten_is_not_brought_back_unnoticed(path, tmp_path):
    shutil.copytree(path, tmp_path / "before")
    with MemoryStore.open(path, write=True, passphrase=words) as store:
        store.forget([1])
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        db.execute("ATTACH ? AS old", [str(tmp_path / "before" / "catalog.sqlite")])
        for table, which in (("document", "id = 1"), ("reference", "document = 1")):
            db.execute(f"INSERT INTO main.{table} SELECT * FROM old.{table} WHERE {which}")
        db.execute("INSERT INTO main.memory SELECT 1, slot FROM old.reference WHERE document = 1")
    assert "rows" in {damage.part for damage in MemoryStore.check(path, passphrase=words).damages}


@pytest.mark.parametrize("value", ["null", '"AAAA"', "7", "{}", "not JSON"])
def test_a_root_of_somebody_else_proves_nothing(path, value):
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE setting SET value = ? WHERE name = ?", [value, SETTING])
    for write in (False, True):
        with pytest.raises(StoreError):
            MemoryStore.open(path, write=write, passphrase=words)
    assert not MemoryStore.check(path, passphrase=words).sound


def test_repair_keeps_what_proves_itself_and_then_all_is_proved(path):
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE reference SET page = 99, line = 99 WHERE slot = 0")
        mend_checksums(db)
    repaired = MemoryStore.repair(path, passphrase=words)
    assert repaired.left.damages == [] and repaired.left.quarantined == {"/a": 1}
    with MemoryStore.open(path, passphrase=words, **LARGE) as store:
        assert everything(store) == {**TRUTH, "/a": TRUTH["/a"][1:]}
