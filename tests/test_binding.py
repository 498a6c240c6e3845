"""A memory is read as that of its own text only, whatever files of a store lie side by side."""

import itertools
import shutil
import sqlite3
from contextlib import closing

import pytest
from older import third_format
from small_store import (
    LARGE,
    A,
    B,
    die_in,
    everything,
    expected,
    memorize,
    memory,
    new_store,
    references,
)

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore, NewReference, cipher
from m3mlx.store.record_file import PAGE, stride

MINE, THEIRS = ["the access code is 7319"], ["the baker is Oleander Finch"]
PARTS = ("catalog.sqlite", "memories.kv", "memories.used", "vectors.usearch", "sessions.sqlite")
KINDS = ("lived apart", "forgotten since", "longer since", "older memory of the slot")


def words():
    return "nine brass buttons"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(cipher, "_COST", 16)


def opened(path, encrypted, **options):
    return MemoryStore.open(path, passphrase=words if encrypted else None, **LARGE, **options)


def alike(document, texts):
    """References that have the same tokens, whatever their text."""
    return [
        NewReference(**{**vars(new), "tokens": [1, 2, 3]}) for new in references(document, texts)
    ]


def remember(store, path, texts):
    document, _ = store.begin(path, str(texts), len(texts), size=1)
    store.add(alike(document, texts))


def pair(folder, kind, encrypted):
    """Two states of one store, each in a folder of its own."""
    one, other = folder / "one", folder / "other"
    with new_store(one, encrypt=encrypted, passphrase=words if encrypted else None) as store:
        remember(store, "/base", A)
    shutil.copytree(one, other)
    with opened(one, encrypted, write=True) as store:
        remember(store, "/mine", MINE)
        if kind == "forgotten since":
            store.forget([store.find_documents(["/base"])[0].id])
        if kind == "longer since":
            remember(store, "/more", B)
        if kind == "older memory of the slot":
            store.write({store.slots()[0]: memory(B[0])})
    with opened(other, encrypted, write=True) as store:
        if kind == "lived apart":
            remember(store, "/theirs", THEIRS)
    return one, other


def served(path, encrypted, write=False):
    """Memories that are read, by text; those refused are None. All are, of a file cut short."""
    found = {}
    try:
        store = opened(path, encrypted, write=write)
    except StoreError as error:
        assert "cut short" in str(error)
        return None
    with store:
        for reference in store.references(store.slots()):
            try:
                found[reference.text] = store.read([reference.slot])[0].tobytes()
            except StoreError:
                found[reference.text] = None
    return found


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_two_states_never_give_a_wrong_memory(tmp_path, kind, encrypted):
    states = pair(tmp_path, kind, encrypted)
    password = {"passphrase": words if encrypted else None}
    rewritten = {A[0]: memory(B[0])} if kind == "older memory of the slot" else {}
    texts = {}
    for number, state in enumerate(states):
        assert MemoryStore.check(state, **password).damages == []
        texts[number] = set(served(state, encrypted))
    for number, choice in enumerate(itertools.product((0, 1), repeat=2)):
        mixed = tmp_path / str(number)
        mixed.mkdir()
        for part, which in zip(PARTS, (*choice, *choice, choice[0]), strict=True):
            if (states[which] / part).exists():
                shutil.copy(states[which] / part, mixed / part)
        for write in (False, True):
            got = served(mixed, encrypted, write)
            assert got is None or set(got) == texts[choice[0]]
            for text, record in (got or {}).items():
                assert record in (memory(text), rewritten.get(text, memory(text)), None)
        if choice[0] == choice[1]:
            assert None not in got.values()
            continue
        for part, which in zip(PARTS[:2], choice, strict=True):  # as it was before a writer came
            shutil.copy(states[which] / part, mixed / part)
        assert not MemoryStore.check(mixed, **password).sound
        repaired = MemoryStore.repair(mixed, **password)
        assert repaired.left.damages == []
        opened(mixed, encrypted, write=True).close()
        with opened(mixed, encrypted) as store:
            assert {r.text for r in store.references(store.slots())} == texts[choice[0]]
            for reference in store.references(store.slots()):
                if reference.warm:
                    record = store.read([reference.slot])[0].tobytes()
                    assert record in (memory(reference.text), rewritten.get(reference.text))
        alive = 0 if encrypted else sum(memory(text) in data(mixed) for text in [*A, *MINE, *B])
        assert encrypted or alive <= len(texts[choice[0]])
        if not encrypted and kind == "forgotten since" and choice == (0, 1):
            assert not any(memory(text) in data(mixed) for text in A)  # it does not come back


def data(path):
    return b"".join(file.read_bytes() for file in path.iterdir())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_record_that_the_catalog_does_not_know_is_found_and_erased(tmp_path, encrypted):
    path, password = tmp_path / "store", {"passphrase": words if encrypted else None}
    with new_store(path, encrypt=encrypted, **password) as store:
        remember(store, "/a", A)
        remember(store, "/b", B)
        before = (path / "memories.kv").read_bytes()
        store.forget([store.find_documents(["/a"])[0].id])
        start, length = PAGE, stride(store.edition.stored_bytes)
    with (path / "memories.kv").open("r+b") as file:  # a tool restores a part of the file
        file.seek(start)
        file.write(before[start : start + length])
    (damage,) = MemoryStore.check(path, **password).damages
    assert (damage.part, damage.slot) == ("memory", 0)
    assert MemoryStore.repair(path, **password).left.damages == []
    opened(path, encrypted, write=True).close()
    assert not any((path / "memories.kv").read_bytes()[start : start + length])


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_a_store_from_before_keeps_its_memories(tmp_path, encrypted, write):
    path, password = tmp_path / "store", {"passphrase": words if encrypted else None}
    with new_store(path, encrypt=encrypted, **password) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        store.forget([store.find_documents(["/b"])[0].id])
        store.collect([1], "fruit")
    third_format(path, **password)
    other = tmp_path / "other"
    shutil.copytree(path, other)
    with opened(path, encrypted, write=write) as store:
        assert everything(store) == expected({"/a": A})
        assert [document.collection for document in store.documents()] == ["fruit"]
    with opened(path, encrypted, write=True) as store:
        memorize(store, "/b", B)
        assert everything(store) == expected({"/a": A, "/b": B})
    assert MemoryStore.check(path, **password).damages == []
    with opened(other, encrypted, write=True) as store:  # its copy lives apart
        memorize(store, "/mine", [*MINE, *B])
    shutil.copy(other / "memories.kv", path / "memories.kv")
    got = served(path, encrypted)
    assert all(record in (memory(text), None) for text, record in got.items())
    assert not MemoryStore.check(path, **password).sound
    with opened(other, encrypted, write=True) as store:
        store.compact()
        assert store.edition.unbound == 0
        assert everything(store) == expected({"/a": A, "/mine": [*MINE, *B]})


def test_an_older_program_refuses_the_store(tmp_path):
    from sqlite_utils import Database, Migrations

    from m3mlx.store.migrations import migrations

    new_store(tmp_path / "store").close()
    with closing(sqlite3.connect(tmp_path / "store" / "catalog.sqlite")) as db:
        applied = {name for (name,) in db.execute("SELECT name FROM _sqlite_migrations")}
        assert isinstance(migrations, Migrations)
        older = {step.name for step in migrations.pending(Database(memory=True))} - {
            "m004_ties",
            "m005_root",
        }
    assert applied - older  # at which every version says: made by a newer m3mlx


def change(path):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store.forget([store.find_documents(["/a"])[0].id])
        memorize(store, "/b", B)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "function"),
    [
        ("RecordFile", "set_tie"),
        ("Memories", "announce_tie"),
        ("Memories", "settle_tie"),
        ("RecordFile", "erase"),
    ],
)
def test_a_writer_that_dies_while_it_ties_leaves_a_whole_store(tmp_path, owner, function, moment):
    path = tmp_path / "store"
    with new_store(path) as store:
        memorize(store, "/a", A)
    module = "record_file" if owner == "RecordFile" else "catalog_memories"
    for _ in range(2):  # the second dies where the first left off
        die_in(f"m3mlx.store.{module}", owner, function, moment, change, path)
        assert MemoryStore.check(path).damages == []
        with MemoryStore.open(path, **LARGE) as store:
            assert store._records.file(1).tied
            if not everything(store):
                break
    with MemoryStore.open(path, write=True, **LARGE) as store:
        memorize(store, "/c", A)
        assert everything(store)["/c"] == expected({"/c": A})["/c"]
    assert MemoryStore.check(path).damages == []
