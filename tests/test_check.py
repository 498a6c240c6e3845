"""Damage is found and named by its document; what can be mended is, and the rest is hidden."""

import os
import sqlite3

import pytest
from small_store import LARGE, A, B, everything, expected, memorize, memory, new_store, search, unit

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore
from m3mlx.store.lock import WriterLock


@pytest.fixture
def path(tmp_path):
    """A store of two documents, with an index."""
    path = tmp_path / "store"
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
    return path


def flip(path, *needle):
    """Change the last byte of the first place where bytes stand in a file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"".join(needle)) + len(b"".join(needle)) - 1
    data[at] ^= 1
    path.write_bytes(data)


def sql(path, *statements):
    with sqlite3.connect(path / "catalog.sqlite", isolation_level=None) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def parts(findings):
    return [damage.part for damage in findings.damages]


def found(path):
    with MemoryStore.open(path, **LARGE) as store:
        return everything(store)


WHOLE = expected({"/a": A, "/b": B})


def test_a_sound_store_is_sound_and_everything_was_read(path):
    findings = MemoryStore.check(path)
    assert findings.sound
    assert (findings.damages, findings.references, findings.memories) == ([], 5, 5)
    done = MemoryStore.repair(path)
    assert (done.found.damages, done.left.damages, done.cold, done.lost) == ([], [], [], [])
    assert found(path) == WHOLE


@pytest.mark.parametrize("name", ["id", "dimensions", "encoder"])
def test_a_setting_whose_name_is_damaged_is_told_and_no_exception(path, name):
    sql(path, f"UPDATE setting SET name = 'x' WHERE name = '{name}'")
    if name == "encoder":
        MemoryStore.check(path)
    else:
        assert "catalog" in parts(MemoryStore.check(path))
    with pytest.raises(StoreError):
        MemoryStore.open(path, **LARGE)


def test_a_damaged_memory_is_named_and_made_cold(path):
    flip(path / "memories.kv", memory(B[0])[:40])
    findings = MemoryStore.check(path)
    assert (parts(findings), findings.documents, findings.sound) == (["memory"], ["/b"], False)
    done = MemoryStore.repair(path)
    assert done.left.sound
    assert [edition for edition, _ in done.cold] == [1]
    rest = found(path)
    assert rest["/a"] == WHOLE["/a"]
    assert [row[-1] is None for row in rest["/b"]] == [True, False]
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store.write({done.cold[0][1]: memory(B[0])})
    assert found(path) == WHOLE


def test_a_damaged_text_is_named_hidden_and_healed_by_memorizing_again(path):
    sql(path, "UPDATE reference SET text = 'apples grow on treez' WHERE slot = 0")
    findings = MemoryStore.check(path)
    assert set(parts(findings)) == {"reference", "words"}
    assert findings.documents == ["/a"]
    done = MemoryStore.repair(path)
    assert done.left.sound
    assert done.left.quarantined == {"/a": 1}
    rest = found(path)
    assert rest == {"/a": WHOLE["/a"][1:], "/b": WHOLE["/b"]}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        assert search(store, "treez", 9, "text") == []
        assert store.missing([("/a", str(A)), ("/b", str(B))]) == {"/a"}
        memorize(store, "/a", A)
    assert MemoryStore.check(path).quarantined == {}
    assert found(path) == WHOLE


def test_what_is_in_quarantine_can_be_forgotten(path):
    sql(path, "UPDATE reference SET text = 'apples grow on treez' WHERE slot = 0")
    MemoryStore.repair(path)
    with MemoryStore.open(path, write=True, **LARGE) as store:
        ids = [document.id for document in store.find_documents(["/a"])]
        samples = store.traces(ids)
        assert any(sample.needle == A[1].encode() for sample in samples)
        store.forget(ids)
        assert store.verify(samples).remnants == []
    assert not any(b"treez" in file.read_bytes() for file in path.iterdir())
    assert found(path) == {"/b": WHOLE["/b"]}


def test_a_text_that_is_no_text_can_still_be_hidden(path):
    sql(path, "UPDATE reference SET text = CAST(x'ff00fe' AS TEXT), vector = 5 WHERE slot = 3")
    findings = MemoryStore.check(path)
    assert "/b" in findings.documents
    done = MemoryStore.repair(path)
    assert done.left.sound
    assert found(path) == {"/a": WHOLE["/a"], "/b": WHOLE["/b"][1:]}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store.forget([document.id for document in store.find_documents(["/a"])])
        store.compact()
    assert MemoryStore.check(path).quarantined == {"/b": 1}


def test_a_damaged_index_does_no_harm_and_is_made_again(path):
    (path / "vectors.usearch").write_bytes(os.urandom(500))
    findings = MemoryStore.check(path)
    assert (parts(findings), findings.sound) == (["index"], True)
    assert found(path) == WHOLE
    assert MemoryStore.repair(path).left.damages == []
    MemoryStore.open(path, write=True, **LARGE).close()
    assert MemoryStore.check(path).damages == []
    assert (path / "vectors.usearch").exists()


def test_full_text_is_made_again(path):
    sql(path, f"INSERT INTO words (words, rowid, text) VALUES ('delete', 3, '{B[0]}')")
    with MemoryStore.open(path) as store:
        assert search(store, "float", mode="text") == []
    assert parts(MemoryStore.check(path)) == ["words"]
    assert MemoryStore.repair(path).left.sound
    with MemoryStore.open(path) as store:
        assert search(store, "float", mode="text") == [B[0]]


@pytest.mark.parametrize("length", [0, 100, 16384, 5 * 16384 + 17, 6 * 16384 - 1])
def test_a_record_file_gets_its_header_and_length_again(path, length):
    file = path / "memories.kv"
    file.write_bytes(b"x" * min(length, 50) + file.read_bytes()[50:length])
    findings = MemoryStore.check(path)
    assert "records" in parts(findings)
    done = MemoryStore.repair(path)
    assert done.left.sound
    whole = max(0, length - 16384) // 16384 + (length == 6 * 16384 - 1)
    assert len(done.cold) == 5 - whole
    left = found(path)
    assert left.keys() == WHOLE.keys()
    for name, rows in left.items():
        assert [row[:-1] for row in rows] == [row[:-1] for row in WHOLE[name]]
    assert sum(row[-1] is not None for rows in left.values() for row in rows) == whole


def test_a_missing_record_file_costs_no_text(path):
    (path / "memories.kv").unlink()
    assert parts(MemoryStore.check(path)) == ["records"]
    assert len(MemoryStore.repair(path).cold) == 5
    assert {name: len(rows) for name, rows in found(path).items()} == {"/a": 3, "/b": 2}


def test_the_record_file_of_another_store_is_left_as_it_is(path, tmp_path):
    with new_store(tmp_path / "other", **LARGE) as store:
        memorize(store, "/c", A)
    foreign = (tmp_path / "other" / "memories.kv").read_bytes()
    (path / "memories.kv").write_bytes(foreign)
    done = MemoryStore.repair(path)
    assert parts(done.left) == ["records"]
    assert "another store" in done.left.damages[0].detail
    assert (path / "memories.kv").read_bytes() == foreign


def test_other_conditions_of_reading_are_no_longer_the_same_memories(path):
    sql(path, "UPDATE edition SET memory = replace(memory, 'reconstruction', 'attention')")
    with pytest.raises(StoreError, match="another fingerprint"):
        MemoryStore.open(path)
    assert parts(MemoryStore.check(path)) == ["records"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE document SET complete = 0 WHERE path = '/a'",
        "UPDATE document SET count = 77 WHERE path = '/a'",
        "UPDATE document SET since = 99 WHERE path = '/a'",
        "UPDATE setting SET value = 2 WHERE name = 'next_slot'",
        "DELETE FROM setting WHERE name = 'commit'",
        "INSERT INTO memory VALUES (1, 4711)",
    ],
)
def test_a_document_and_its_counts_fit_again(path, statement):
    sql(path, statement)
    assert not MemoryStore.check(path).sound
    done = MemoryStore.repair(path)
    assert done.left.sound
    assert found(path) == WHOLE
    with MemoryStore.open(path, write=True, **LARGE) as store:
        memorize(store, "/c", ["one", "two", "three"])
    assert found(path) == {**WHOLE, **expected({"/c": ["one", "two", "three"]})}


def test_a_document_of_which_rows_are_gone_is_served_as_far_as_it_goes(path):
    sql(path, "DELETE FROM reference WHERE slot = 1")
    findings = MemoryStore.check(path)
    assert (set(parts(findings)), findings.documents) == ({"catalog", "document"}, ["/a"])
    assert MemoryStore.repair(path).left.sound
    assert found(path) == {"/a": [WHOLE["/a"][0], WHOLE["/a"][2]], "/b": WHOLE["/b"]}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        assert store.missing([("/a", str(A))]) == {"/a"}


def test_readable_rows_of_a_damaged_catalog_are_kept(path):
    with sqlite3.connect(path / "catalog.sqlite") as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'memory'").fetchone()
    db.close()
    data = bytearray((path / "catalog.sqlite").read_bytes())
    data[(root - 1) * 16384 : root * 16384] = os.urandom(16384)
    (path / "catalog.sqlite").write_bytes(data)
    assert "catalog" in parts(MemoryStore.check(path))
    done = MemoryStore.repair(path)
    assert (done.left.damages, done.lost) == ([], [])
    assert found(path) == WHOLE  # records prove themselves, so which there are is known again


def test_a_catalog_beyond_repair_is_an_error_that_says_so(path):
    (path / "catalog.sqlite").write_bytes(os.urandom(50_000))
    assert parts(MemoryStore.check(path)) == ["catalog"]
    with pytest.raises(StoreError, match=r"catalog\.sqlite.*cannot be repaired.*backup"):
        MemoryStore.repair(path)
    assert len((path / "catalog.sqlite").read_bytes()) == 50_000


def test_nobody_checks_what_is_being_written(path):
    lock = WriterLock(path / "lock", wait=0)
    try:
        for look in (MemoryStore.check, MemoryStore.repair):
            with pytest.raises(StoreError, match="is writing to this store"):
                look(path, wait=0)
    finally:
        lock.close()


def test_where_there_is_no_store_there_is_nothing_to_check(tmp_path):
    for look in (MemoryStore.check, MemoryStore.repair):
        with pytest.raises(StoreError, match="there is no store"):
            look(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_may_go_on_while_one_checks(path):
    with MemoryStore.open(path, **LARGE) as store:
        store.search(unit(0, 1), [""], 1)
        assert MemoryStore.check(path).sound
        assert everything(store) == WHOLE


@pytest.fixture(params=["plain", "encrypted"])
def with_sessions(request, path, tmp_path):
    """A store with a conversation, and its passphrase."""
    secret = None
    if request.param == "encrypted":
        path, secret = tmp_path / "secret", lambda: "nine brass buttons"
        new_store(path, encrypt=True, passphrase=secret).close()
    with MemoryStore.open(path, passphrase=secret) as store, store.sessions() as kept:
        kept.add("plans", [{"role": "user", "content": f"marmalade {n}"} for n in range(400)])
    return path, secret


def test_damaged_sessions_are_found_and_the_rest_of_the_store_is_sound(with_sessions):
    path, secret = with_sessions
    file = path / "sessions.sqlite"
    assert MemoryStore.check(path, passphrase=secret).damages == []
    with MemoryStore.open(path, passphrase=secret) as store:
        assert store.status()["session_bytes"] > 8192
    sound = file.read_bytes()
    for start, damage in (
        (4096 * 3, b"\xff" * 300),  # a page
        (0, b"no database"),
        (len(sound) // 2, None),  # cut off
    ):
        end = start + len(damage or b"")
        file.write_bytes(sound[:start] + damage + sound[end:] if damage else sound[:start])
        findings = MemoryStore.check(path, passphrase=secret)
        assert set(parts(findings)) == {"sessions"} and not findings.sound
        file.write_bytes(sound)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE session SET id = 7")  # as somebody might who has the file
    db.close()
    assert "sessions" in parts(MemoryStore.check(path, passphrase=secret))
    done = MemoryStore.repair(path, passphrase=secret)
    assert parts(done.left) == ["sessions"]  # nobody else knows what was said
    file.unlink()
    assert MemoryStore.check(path, passphrase=secret).sound
