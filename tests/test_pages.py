"""Deleted rows leave nothing behind in the file of a database, and no lock is lost on the way."""

import os
import random
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from small_store import LARGE, A, B, in_bytes, memorize, memory, new_store, vector
from torture.apart import apart

from m3mlx.store import MemoryStore, pages


def rows(seed, count):
    chance = random.Random(seed)
    return {
        n: f"row {n} " + chance.randbytes(chance.randrange(20, 200)).hex() for n in range(count)
    }


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_gaps_are_cleared_and_rows_stay(tmp_path, size):
    path, kept = tmp_path / "a.sqlite", rows(size, 300)
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in (f"page_size={size}", "journal_mode=WAL", "secure_delete=ON"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT)")
    db.execute("CREATE INDEX i ON t (v)")
    order = list(kept)
    random.Random(1).shuffle(order)
    for n in order:
        db.execute("INSERT INTO t VALUES (?, ?)", [n, kept[n]])
    gone = [kept.pop(n) for n in order[::3]]
    db.executemany("DELETE FROM t WHERE v = ?", [[text] for text in gone])
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages.clear_gaps(path)
    db.execute("PRAGMA shrink_memory")
    data = path.read_bytes()
    assert not any(text.encode() in data or text[:24].encode() in data for text in gone)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.executemany("INSERT INTO t VALUES (?, ?)", [(n + 10_000, v) for n, v in kept.items()])
    assert dict(db.execute("SELECT n, v FROM t WHERE n < 10000")) == kept
    db.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_forgotten_in_any_order_is_gone_from_every_byte(tmp_path, seed):
    path, chance = tmp_path / "store", random.Random(seed)
    texts, kept = {}, {}
    with new_store(path, **LARGE) as store:
        for n in range(30):
            texts = [
                f"{n} {k} " + chance.randbytes(chance.randrange(8, 900)).hex()
                for k in range(chance.randrange(1, 6))
            ]
            kept[memorize(store, f"/documents/{n}.txt", texts, cold=n % 3 > 0)] = texts
    with MemoryStore.open(path, write=True, **LARGE) as store:
        for _ in range(6):
            wanted = chance.sample(sorted(kept), 3)
            report = store.forget_proved(wanted)
            assert report.remnants == []
            gone = [text for id in wanted for text in kept.pop(id)]
            needles = [text.encode() for text in gone] + [memory(t)[:40] for t in gone]
            assert in_bytes(path, *needles, *(vector(t).tobytes() for t in gone)) == []
            for text in [text for part in kept.values() for text in part][:5]:
                (hits,) = store.search(vector(text)[None], [text], 1, "dense")
                assert hits[0].text == text
    assert MemoryStore.check(path).damages == []


def reader(path):
    MemoryStore.open(path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_search_of_all_bytes_gives_no_lock_away(tmp_path):
    """Else the next reader takes itself for the last one, and removes the log under the writer."""
    path = tmp_path / "store"
    store = new_store(path)
    first = memorize(store, "/a", A)
    store.forget_proved([first])
    memorize(store, "/b", B)
    log = (path / "catalog.sqlite-wal").stat()
    apart(reader, str(path)).returned()
    assert (path / "catalog.sqlite-wal").stat().st_ino == log.st_ino
    store.close()
    with MemoryStore.open(path) as store:
        assert [document.path for document in store.documents()] == ["/b"]
    file = (path / "catalog.sqlite").stat()
    assert (file.st_dev, file.st_ino) not in {*pages._uses, *pages._descriptors}


def test_an_index_is_erased_in_place_until_a_quarter_of_it_is_gone(tmp_path):
    path = tmp_path / "store"
    with new_store(path, **LARGE) as store:
        documents = [memorize(store, f"/{n}", [f"note {n}", f"more {n}"]) for n in range(12)]
    file = path / "vectors.usearch"
    before, inodes = file.stat(), set()
    with MemoryStore.open(path, write=True, **LARGE) as store:
        for document in documents[:8]:
            store.forget([document])
            inodes.add(file.stat().st_ino)
            hits = [store.search(vector(f"note {n}")[None], [""], 1, "dense")[0] for n in range(12)]
            wanted = documents.index(document) + 1
            assert [hit[0].text for hit in hits[wanted:]] == [
                f"note {n}" for n in range(wanted, 12)
            ]
    assert before.st_ino in inodes and len(inodes) > 1
    assert MemoryStore.check(path).damages == []
    assert np.frombuffer(file.read_bytes()[:4], "<u4")[0] < 24


@pytest.mark.parametrize("cut", [0, 1, 30, 9000, 40_000])
def test_a_database_and_its_log_are_read_as_sqlite_reads_them(tmp_path, cut):
    chance, path = random.Random(cut), tmp_path / "a.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(30):
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (?, ?)", (number, chance.randbytes(2000)))
        db.execute("DELETE FROM t WHERE x = ?", (chance.randrange(30),))
        db.execute("COMMIT")
    database, log = path.read_bytes(), (tmp_path / "a.sqlite-wal").read_bytes()
    log = log[: len(log) - cut]
    (tmp_path / "b.sqlite").write_bytes(database)
    (tmp_path / "b.sqlite-wal").write_bytes(log)
    memory = sqlite3.connect(":memory:")
    memory.deserialize(bytes(pages.with_log(database, log)))
    with closing(sqlite3.connect(tmp_path / "b.sqlite")) as whole:
        wanted = whole.execute("SELECT * FROM t").fetchall()
    assert memory.execute("SELECT * FROM t").fetchall() == wanted != []
    assert memory.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
