"""Encrypted stores do what others do, and their files say nothing of the documents."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
from small_store import (
    LARGE,
    A,
    B,
    everything,
    expected,
    memorize,
    memory,
    new_store,
    references,
    search,
    vector,
)

from m3mlx.errors import StoreError
from m3mlx.export.portable import Export
from m3mlx.export.transfer import read_export, write_export
from m3mlx.store import LockedError, MemoryStore, cipher, index, record_file
from m3mlx.store import words as words_module
from m3mlx.store.catalog_references import checksum_of

PATH = "/home/quix/zeppelin.md"
HASH = "f00d" * 16


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(cipher, "_COST", 16)


def words():
    return "nine brass buttons"


def new(path, **changes):
    return new_store(path, encrypt=True, passphrase=words, **changes)


def reopened(path, **options):
    return MemoryStore.open(path, passphrase=words, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with new(path) as store:
        memorize(store, PATH, A, hash=HASH)
        yield store


def traces_of(texts):
    """What would tell of documents with these texts: names, words, tokens, vectors, memories."""
    found = [PATH.encode(), b"zeppelin", HASH.encode()]
    for new in references(0, texts):
        found += [word.encode() for word in new.text.split() if len(word) > 4]
        found.append(np.array(new.tokens, dtype="<u4").tobytes()[:16])
        found += [new.vector.tobytes()[:16], index.quantize(new.vector).tobytes()[:12]]
        found.append(new.record[:16])
    return found


def in_files(path, needles):
    return [
        (file.name, needle)
        for file in sorted(path.iterdir())
        for needle in needles
        if needle in file.read_bytes() or needle in file.read_bytes().lower()
    ]


def test_what_is_committed_is_there_bit_for_bit(path):
    with new(path) as store:
        memorize(store, PATH, A, hash=HASH)
        memorize(store, "/b", B)
        assert everything(store) == expected({PATH: A, "/b": B})
        assert store.missing([(PATH, HASH), ("/b", "other")]) == {"/b"}
    with reopened(path) as store:
        assert everything(store) == expected({PATH: A, "/b": B})
        assert store.status()["encrypted"]
        (document, _) = store.documents()
        assert (document.path, document.hash) == (PATH, HASH)
        assert store.find_documents(["/home/quix"]) == [document]


@pytest.mark.parametrize("settled", [False, True])
def test_the_files_say_nothing(path, settled):
    with new(path, **LARGE) as store:
        memorize(store, PATH, [*A, *B], hash=HASH)
        store.add_edition(fingerprint={"weights": "v"}, memory={}, record_bytes=1000)
        store.write({store.slots()[0]: memory(A[0])})
        search(store, A[0])
        if settled:
            store.maintain()
        assert {file.name for file in path.iterdir()} >= {"catalog.sqlite", "memories-2.kv"}
        assert in_files(path, traces_of([*A, *B])) == []
        assert not (path / "vectors.usearch").exists()
    assert in_files(path, traces_of([*A, *B])) == []


def test_the_search_for_traces_would_find_them(tmp_path):
    with new_store(tmp_path / "plain", **LARGE) as store:
        memorize(store, PATH, [*A, *B], hash=HASH)
        store.maintain()
    found = {needle for _, needle in in_files(tmp_path / "plain", traces_of([*A, *B]))}
    assert found == set(traces_of([*A, *B]))


@pytest.mark.parametrize("mode", ["dense", "text", "hybrid"])
def test_every_search_finds_what_it_finds_in_a_plain_store(path, tmp_path, mode):
    with new(path) as store, new_store(tmp_path / "plain") as plain:
        for each in (store, plain):
            memorize(each, "/a", A)
        for query in (*A, "pears", "Blue plum", "nothing of it"):
            assert search(store, query, mode=mode) == search(plain, query, mode=mode)
        for each in (store, plain):  # what came later is found too, what is half there is not
            memorize(each, "/b", B)
            half, _ = each.begin("/half", "h", 3, size=1)
            each.add(references(half, ["purple plums"]))
        for query in (*A, *B, "plums"):
            assert search(store, query, mode=mode) == search(plain, query, mode=mode)


def test_a_large_store_is_searched_by_meaning_alone(path, monkeypatch):
    monkeypatch.setattr(words_module, "MOST_IN_MEMORY", 2)
    with new(path) as store:
        memorize(store, "/a", A)
        assert search(store, A[1], mode="hybrid")[0] == A[1]
        with pytest.raises(StoreError, match="by meaning"):
            search(store, A[1], mode="text")


def test_readers_search_too(store, path):
    with reopened(path) as reader:
        assert search(reader, A[2])[0] == A[2]
        memorize(store, "/b", B)
        assert search(reader, B[0])[0] == B[0]


def test_replacing_forgetting_and_compacting(store, path):
    memorize(store, "/b", B)
    memorize(store, PATH, ["quite other words"], hash="2")
    assert everything(store) == expected({PATH: ["quite other words"], "/b": B})
    store.compact()
    assert everything(store) == expected({PATH: ["quite other words"], "/b": B})
    ids = [document.id for document in store.find_documents([PATH])]
    samples = store.traces(ids)
    store.forget(ids)
    assert store.verify(samples).remnants == []
    assert everything(store) == expected({"/b": B})
    assert search(store, B[0], mode="text") == [B[0], B[1]]


def test_only_the_passphrase_opens(store, path):
    store.close()
    for wrong in ("", "nine brass button"):
        with pytest.raises(LockedError, match=f"{path}.*not the passphrase"):
            MemoryStore.open(path, passphrase=lambda wrong=wrong: wrong)
    with pytest.raises(LockedError, match="M3MLX_PASSPHRASE"):
        MemoryStore.open(path)
    with reopened(path, write=True) as store:  # nothing is locked by those who failed
        assert everything(store) == expected({PATH: A})


def test_a_passphrase_is_asked_for_only_where_it_is_needed(tmp_path):
    def never():
        raise AssertionError

    new_store(tmp_path / "plain").close()
    MemoryStore.open(tmp_path / "plain", passphrase=never).close()


def test_records_and_rows_cannot_change_places(store, path):
    """Somebody who can write, and mends every checksum, still cannot serve another's memory."""
    store.close()
    with sqlite3.connect(path / "catalog.sqlite") as db:
        first, second = db.execute(
            "SELECT slot, text, tokens, vector FROM reference ORDER BY slot LIMIT 2"
        ).fetchall()
        (stored,) = db.execute("SELECT path FROM document").fetchone()
        *place, tokens, vector = db.execute(
            'SELECT ordinal, "start", "end", page, line, ?, tokens, vector FROM reference '
            "WHERE slot = ?",
            [second[1], first[0]],
        ).fetchone()
        db.execute(
            "UPDATE reference SET text = ?, checksum = ? WHERE slot = ?",
            [second[1], checksum_of(first[0], stored, [*place, tokens, vector]), first[0]],
        )
    db.close()
    with reopened(path) as store, pytest.raises(StoreError, match="not what was encrypted"):
        search(store, A[0], mode="dense")
    with reopened(path, write=True) as store:
        file = store._records.file(1)
        moved = file.raw(1)[: file.record_bytes]
        digests = store._catalog.references.digests([2])
        owner = file.identity.owners(2, digests[2])[0]
        file._put(2, moved + record_file._checksum(owner, moved))
        with pytest.raises(StoreError, match="zeppelin"):
            store.read([2])
        assert bytes(store.read([1])[0]) == memory(A[1])


def test_the_same_document_looks_different_in_two_stores(tmp_path):
    for name in ("one", "two"):
        with new(tmp_path / name) as store:
            memorize(store, PATH, A)
    rows = []
    for name in ("one", "two"):
        with sqlite3.connect(tmp_path / name / "catalog.sqlite") as db:
            rows.append(
                db.execute("SELECT path, text, tokens, vector FROM document, reference").fetchone()
            )
        db.close()
    for one, two in zip(*rows, strict=True):
        assert one != two


def test_the_key_in_the_settings_is_wrapped(store, path):
    with sqlite3.connect(path / "catalog.sqlite") as db:
        (value,) = db.execute("SELECT value FROM setting WHERE name = 'cipher'").fetchone()
    db.close()
    assert set(json.loads(value)) == {"cost", "key", "keyring", "salt"}
    assert "brass" not in value


def test_an_encrypted_store_travels_into_any_other(store, tmp_path):
    whole = [document for document in store.documents() if document.complete]
    write_export(store, tmp_path / "file", whole, program="test")
    with new_store(tmp_path / "plain") as plain, Export(tmp_path / "file") as export:
        read_export(plain, export)
        assert everything(plain) == expected({PATH: A})
    with new(tmp_path / "other") as other, Export(tmp_path / "file") as export:
        read_export(other, export)
        assert everything(other) == expected({PATH: A})
    assert in_files(tmp_path / "other", traces_of(A)) == []


def test_vectors_come_back_bit_for_bit(store):
    stored = store.references(store.slots())
    for reference, text in zip(stored, A, strict=True):
        np.testing.assert_array_equal(reference.vector, vector(text))


# checking and repairing


def statement(path, text, *parameters):
    db = sqlite3.connect(path / "catalog.sqlite", isolation_level=None)
    db.execute(text, parameters)
    db.close()


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def whole(path):
    with new(path) as store:
        memorize(store, PATH, A, hash=HASH)
        memorize(store, "/b", B)
    return path


def test_a_sound_encrypted_store_is_sound(whole):
    found = MemoryStore.check(whole, passphrase=words)
    assert (found.damages, found.references, found.memories) == ([], 5, 5)
    assert MemoryStore.repair(whole, passphrase=words).left.damages == []
    with reopened(whole) as store:
        assert everything(store) == expected({PATH: A, "/b": B})


@pytest.mark.parametrize("passphrase", [None, lambda: "another"])
def test_nobody_checks_or_repairs_without_the_passphrase(whole, passphrase):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    flip(whole / "memories.kv", 16384 + 500)
    before["memories.kv"] = (whole / "memories.kv").read_bytes()
    for look in (MemoryStore.check, MemoryStore.repair):
        with pytest.raises(LockedError, match="passphrase"):
            look(whole, passphrase=passphrase)
    after = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert {name: after[name] for name in before} == before


def test_a_damaged_encrypted_memory_is_named_and_made_cold(whole):
    flip(whole / "memories.kv", 16384 + 500)
    found = MemoryStore.check(whole, passphrase=words)
    assert [(damage.part, damage.path) for damage in found.damages] == [("memory", PATH)]
    done = MemoryStore.repair(whole, passphrase=words)
    assert (done.left.damages, done.cold) == ([], [(1, 0)])
    with MemoryStore.open(whole, write=True, passphrase=words) as store:
        store.write({0: memory(A[0])})
    with reopened(whole) as store:
        assert everything(store) == expected({PATH: A, "/b": B})


def test_a_missing_file_of_encrypted_memories_is_made_again(whole):
    (whole / "memories.kv").unlink()
    assert len(MemoryStore.repair(whole, passphrase=words).cold) == 5
    assert MemoryStore.check(whole, passphrase=words).damages == []


@pytest.mark.parametrize("column", ["text", "tokens", "vector"])
def test_a_damaged_encrypted_reference_is_named_hidden_and_not_exported(whole, tmp_path, column):
    kind = "TEXT" if column == "text" else "BLOB"
    statement(
        whole,
        f"UPDATE reference SET {column} = CAST(substr({column}, 1, 40) AS {kind}) WHERE slot = 0",
    )
    found = MemoryStore.check(whole, passphrase=words)
    assert [(damage.part, damage.path) for damage in found.damages] == [
        ("rows", None),
        ("reference", PATH),
    ]
    done = MemoryStore.repair(whole, passphrase=words)
    assert (done.left.damages, done.left.quarantined) == ([], {PATH: 1})
    with MemoryStore.open(whole, write=True, passphrase=words) as store:
        assert everything(store) == {
            PATH: expected({PATH: A})[PATH][1:],
            "/b": expected({"/b": B})["/b"],
        }
        with pytest.raises(StoreError, match=r"zeppelin.*in quarantine.*Memorize it again"):
            write_export(store, tmp_path / "file", store.documents(), program="test")
        assert not (tmp_path / "file").exists()
        write_export(store, tmp_path / "file", store.find_documents(["/b"]), program="test")
        assert store.missing([(PATH, HASH)]) == {PATH}
        memorize(store, PATH, A, hash=HASH)
        write_export(store, tmp_path / "all", store.documents(), program="test")
    assert MemoryStore.check(whole, passphrase=words).quarantined == {}


@pytest.mark.parametrize("column", ["path", "hash"])
def test_a_document_that_is_not_under_its_name_gets_it_again(whole, column):
    statement(whole, f"UPDATE document SET {column} = 'AAAA' || substr({column}, 5) WHERE id = 1")
    assert not MemoryStore.check(whole, passphrase=words).sound
    assert MemoryStore.repair(whole, passphrase=words).left.damages == []
    with reopened(whole) as store:
        assert store.documents()[0].path == PATH
        assert everything(store)["/b"] == expected({"/b": B})["/b"]
        if column == "hash":
            assert store.documents()[0].hash == HASH
            assert everything(store) == expected({PATH: A, "/b": B})


def test_a_document_of_a_damaged_name_gets_another(whole):
    statement(whole, "UPDATE document SET sealed = 'AAAA' || substr(sealed, 5) WHERE id = 1")
    assert not MemoryStore.check(whole, passphrase=words).sound
    assert MemoryStore.repair(whole, passphrase=words).left.damages == []
    with MemoryStore.open(whole, write=True, passphrase=words) as store:
        first, second = store.documents()
        assert first.path == "document 1, whose name cannot be read"
        assert (first.hash, second.path) == ("", "/b")
        assert everything(store)["/b"] == expected({"/b": B})["/b"]
        store.forget([first.id])
    assert MemoryStore.check(whole, passphrase=words).damages == []


def test_readable_rows_of_a_damaged_encrypted_catalog_are_kept(whole):
    statement(whole, "INSERT INTO memory VALUES (1, 4711)")
    done = MemoryStore.repair(whole, passphrase=words)
    assert (done.left.damages, done.lost) == ([], [])
    with reopened(whole) as store:
        assert everything(store) == expected({PATH: A, "/b": B})
        assert search(store, A[0], mode="text")[0] == A[0]
    assert in_files(whole, traces_of([*A, *B])) == []


@pytest.mark.parametrize("change", ["DELETE FROM setting", "UPDATE setting SET value = 'null'"])
def test_without_its_wrapped_key_a_store_is_refused_by_everything(whole, change):
    statement(whole, f"{change} WHERE name = 'cipher'")
    with pytest.raises(StoreError, match="encrypted, and its key is gone"):
        reopened(whole)
    assert not MemoryStore.check(whole, passphrase=words).sound
    with pytest.raises(StoreError, match="key is gone"):
        MemoryStore.repair(whole, passphrase=words)
    assert not (whole / "salvaged.sqlite").exists()


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("name", ["catalog.sqlite", "memories.kv"])
def test_forgetting_is_proved_by_looking_for_what_was_encrypted(path, name, cold):
    with new(path) as store:
        document = memorize(store, PATH, A, hash=HASH, cold=cold)
        memorize(store, "/boats-and-barges.md", B)
    shutil.copy(path / name, path / f"before-{name}")
    with reopened(path, write=True) as store:
        report = store.forget_proved([document])
    left = {remnant.file for remnant in report.remnants}
    assert left == (set() if cold and name == "memories.kv" else {f"before-{name}"})
    (path / f"before-{name}").unlink()
    with reopened(path, write=True) as store:
        assert (
            store.forget_proved([store.find_documents(["/boats-and-barges.md"])[0].id]).remnants
            == []
        )


def test_a_passphrase_is_the_same_however_it_is_composed(path, monkeypatch):
    new_store(path, encrypt=True, passphrase=lambda: "Z\u00fcrich caf\u00e9").close()
    MemoryStore.open(path, passphrase=lambda: "Zu\u0308rich cafe\u0301").close()
    with monkeypatch.context() as earlier:  # when it was taken as it was typed
        earlier.setattr(cipher, "_normal", lambda typed: typed)
        new_store(path / "old", encrypt=True, passphrase=lambda: "cafe\u0301").close()
    MemoryStore.open(path / "old", passphrase=lambda: "cafe\u0301").close()


def test_a_store_may_not_ask_for_more_memory_than_ours_do(path):
    new(path).close()
    with sqlite3.connect(path / "catalog.sqlite") as db:
        db.execute(
            "UPDATE setting SET value = json_set(value, '$.cost', 1 << 21) WHERE name = 'cipher'"
        )
    db.close()
    with pytest.raises(StoreError, match="damaged"):
        reopened(path)
