"""Catalogs with a value that nobody writes, in each column in turn: one sentence, no traceback."""

import shutil
import sqlite3
from contextlib import closing, suppress

import pytest
from small_store import A, B, memorize, memory, new_store, references, unit

from m3mlx.errors import M3Error
from m3mlx.store import Filter, MemoryStore

TABLES = (
    *("setting", "edition", "document", "reference", "memory", "leftover", "collection"),
    *("_sqlite_migrations", "sqlite_sequence"),
)
SETTINGS = (
    *("next_slot", "commit", "scrub", "seal", "max_bytes", "id", "encoder", "dimensions"),
    *("cipher", "root"),
)
FEW = (None, "x")
MANY = (*FEW, "", b"\xff\x00", -1, 0, 1, 1.5, 2**62, 1e308, "9" * 5000, b"x" * 200_000, "[]", "{}")
SECRET = {"passphrase": lambda *_: "correct horse"}


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def whole(request, tmp_path_factory):
    """A store that has a row in every table, and how it is opened."""
    path = tmp_path_factory.mktemp(request.param) / "store"
    how = SECRET if request.param == "encrypted" else {}
    with new_store(path, **how, encrypt=bool(how)) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B[:1])
        memorize(store, "/c", B[1:], cold=True)
        store.collect([1], "things")
        store.quarantine([store.slots()[-1]])
        half, _ = store.begin("/half", "h", 3, size=1)
        store.add(references(half, ["half done"]))
        store.set_bound(10**9)
    return path, how


def columns(path):
    """Every column of every table, and which row is meant: of settings each in turn."""
    with closing(sqlite3.connect(path / "catalog.sqlite")) as db:
        for table in TABLES:
            names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            keys = [f"name = '{name}'" for name in SETTINGS] if table == "setting" else ["1"]
            yield from ((table, name, key) for name in names for key in keys)


def spoil(path, table, column, key, value):
    """Put a value where it may not be by the schema, which stays; return whether it could be."""
    file = path / "catalog.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", [table]).fetchone()
        _put_schema(db, table, sql.replace("NOT NULL", ""))
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        with suppress(sqlite3.Error, OverflowError):
            first = f"(SELECT rowid FROM {table} WHERE {key} LIMIT 1)"
            if table in ("setting", "memory", "leftover"):  # which have no rowid
                first = None
            where = key if first is None else f"rowid = {first}"
            db.execute(f'UPDATE OR IGNORE {table} SET "{column}" = ? WHERE {where}', [value])
        changed = db.total_changes > 0
        _put_schema(db, table, sql)
    return changed


def _put_schema(db, table, sql):
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", [sql, table])


def tasks(path, how):
    """What users do with a store: first what changes nothing."""

    def opened(task, **more):
        with MemoryStore.open(path, **how, **more) as store:
            return task(store)

    def read(store):
        for slot in store.slots():
            store.references([slot])
            with suppress(M3Error):
                store.read([slot])
        store.read([0, 1])

    def look(store):
        store.moment(), store.quarantined(), store.cold(), store.missing([("/a", "h")])
        store.status(), store.documents(), store.find_documents(["/a"])

    def change(store):
        new = memorize(store, "/new", ["new words"])
        store.write({slot: memory("x") for slot in store.cold()})
        store.rename({new: "/newer"})
        store.forget_proved([new])

    for mode in ("hybrid", "dense", "text"):
        yield lambda mode=mode: opened(lambda s: s.search(unit(0, 1), ["apples"], 5, mode))
    only = Filter(collection="things")
    yield lambda: opened(lambda store: store.search(unit(0, 1), ["apples"], 5, only=only))
    yield lambda: opened(read)
    yield lambda: opened(look)
    yield lambda: MemoryStore.fingerprints(path)
    yield lambda: MemoryStore.check(path, **how)
    yield lambda: opened(change, write=True)
    yield lambda: opened(lambda s: s.forget_proved([d.id for d in s.documents()[:1]]), write=True)
    yield lambda: opened(lambda store: store.compact(), write=True)
    yield lambda: MemoryStore.repair(path, **how)
    yield lambda: MemoryStore.check(path, **how)


def walk(whole, folder, values, count=None, every=1):
    """Spoil each column with values, and do so many of the tasks; return what is wrong.

    Args:
        every: a column gets one of so many values, the next column those that follow them.
    """
    path, how = whole
    found, spoiled = [], 0
    for place, (table, column, key) in enumerate(columns(path)):
        for value in values[place % every :: every]:
            store = folder / "store"
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(path, store)
            if not spoil(store, table, column, key, value):
                continue
            spoiled += 1
            for number, task in enumerate(list(tasks(store, how))[:count]):
                where = f"task {number}, {table}.{column} = {value!r:.20} where {key}"
                try:
                    task()
                except M3Error as error:
                    if "\n" in str(error) or not 20 < len(str(error)) < 10_000:
                        found.append(f"{where}: {error!s:.300}")
                except Exception as error:
                    found.append(f"{where}: {error!r:.300}")
    return spoiled, found


def test_a_value_that_nobody_writes_is_told_in_a_sentence(whole, tmp_path):
    spoiled, found = walk(whole, tmp_path, FEW[:1] if whole[1] else FEW, 8)
    assert found == [] and spoiled > 40


@pytest.mark.slow
def test_whatever_is_in_a_column_is_told_in_a_sentence(whole, tmp_path):
    spoiled, found = walk(whole, tmp_path, MANY, every=3)
    assert found == [] and spoiled > 200


def test_other_dimensions_are_found_and_mended_without_loss(tmp_path):
    with new_store(tmp_path) as store:
        memorize(store, "/a", A)
    assert spoil(tmp_path, "setting", "value", "name = 'dimensions'", "14")
    with MemoryStore.open(tmp_path) as store, pytest.raises(M3Error, match="14 finite numbers"):
        store.search(unit(0, 1), ["apples"], 5)
    assert "64 bytes" in MemoryStore.check(tmp_path).damages[0].detail
    assert MemoryStore.repair(tmp_path).left.sound
    with MemoryStore.open(tmp_path) as store:
        (hits,) = store.search(unit(0, 1), ["apples"], 5)
        assert {hit.text for hit in hits} == set(A) and all(hit.warm for hit in hits)


def test_a_reference_without_text_or_tokens_is_named_and_not_read(tmp_path):
    with new_store(tmp_path / "store") as store:
        memorize(store, "/a", A)
    for column in ("text", "tokens"):
        path = tmp_path / column
        shutil.copytree(tmp_path / "store", path)
        assert spoil(path, "reference", column, "slot = 1", None)
        with MemoryStore.open(path) as store:
            with pytest.raises(M3Error, match=r"a memory of|a reference of /a \(document 1\)"):
                store.read([1])
            assert store.read([0]).tobytes() == memory(A[0])
        damages = MemoryStore.check(path).damages
        assert {damage.path for damage in damages if damage.part == "reference"} == {"/a"}
