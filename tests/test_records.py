"""Editions side by side, the bound, and compacting: what is kept, what is dropped, what is told."""

import errno
import os
import shutil
from functools import partial

import numpy as np
import pytest
from small_store import (
    ABOUT,
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
    references,
    search,
    unit,
    vector,
)

from m3mlx import files
from m3mlx.errors import StoreError
from m3mlx.store import BusyStore, ColdReference, MemoryStore
from m3mlx.store.record_file import PAGE
from m3mlx.store.usage import Usage

OTHER = {
    "fingerprint": {"weights": "x", "tokenizer": "other"},
    "memory": {"selection": "attention"},
    "record_bytes": 20_000,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with new_store(path) as store:
        yield store


def other_memory(text):
    return (memory(text) * 20)[:20_000]


def fill_other(store):
    """Write all memories of the edition 2, which is the other one."""
    written = store.references(store.cold(count=1000, edition=2))
    store.write({reference.slot: other_memory(reference.text) for reference in written}, edition=2)


# editions


def test_editions_share_documents_and_keep_their_own_memories(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        added = store.add_edition(**OTHER)
        assert (added.id, added.fingerprint, store.edition.id) == (2, OTHER["fingerprint"], 1)
        assert store.editions() == [store.edition, added]
        (hits,) = store.search(unit(0, 1), [""], 9, "dense", edition=2)
        assert {hit.warm for hit in hits} == {False}
        assert {hit.tokens for hit in hits} == {None}  # of another tokenizer
        with pytest.raises(ColdReference):
            store.read([hits[0].slot], edition=2)
        fill_other(store)
        memorize(store, "/b", B, cold=True, tokenizer=added.tokenizer)
        assert everything(store)["/a"] == expected({"/a": A})["/a"]
        assert [(d.path, d.warm) for d in store.documents()] == [("/a", 3), ("/b", 0)]
        (hits,) = store.search(unit(0, 1), [""], 9, "dense")
        assert {hit.path: hit.tokens is None for hit in hits} == {"/a": False, "/b": True}
    with MemoryStore.open(path) as store:
        for hit in store.search(unit(0, 1), [""], 9, "dense")[0]:
            if hit.path == "/a":
                assert bytes(store.read([hit.slot], edition=2)[0]) == other_memory(hit.text)
        warm = {edition["id"]: edition["warm"] for edition in store.status()["editions"]}
        assert warm == {1: 3, 2: 3}


def test_a_reader_reads_an_edition_that_was_added_after_it_opened(path, store):
    memorize(store, "/a", A)
    with MemoryStore.open(path) as reader:
        store.add_edition(**OTHER)
        fill_other(store)
        assert bytes(reader.read([0], edition=2)[0]) == other_memory(A[0])
        assert bytes(reader.read([0])[0]) == memory(A[0])


def test_wrong_editions_are_named(path, store):
    with pytest.raises(StoreError, match="already"):
        store.add_edition(**{**OTHER, "fingerprint": ABOUT["fingerprint"]})
    for use in (store.remove_edition, store.documents, store.status, partial(store.read, [])):
        with pytest.raises(StoreError, match="no edition 7"):
            use(7)
    with pytest.raises(StoreError, match="is the only one"):
        store.remove_edition(1)


def test_what_is_forgotten_is_erased_in_all_editions(path):
    with new_store(path) as store:
        document = memorize(store, "/secret", A)
        memorize(store, "/b", B)
        store.add_edition(**OTHER)
        fill_other(store)
        samples = store.traces([document])
        memories = [sample.needle for sample in samples if sample.kind == "memory"]
        assert {name for name, _ in in_bytes(path, *memories)} == {"memories.kv", "memories-2.kv"}
        store.forget([document])
        assert store.verify(samples).remnants == []
        assert in_bytes(path, *memories) == []
        (hit,) = store.search(vector(B[0])[None], [B[0]], 1)[0]
        assert bytes(store.read([hit.slot], edition=2)[0]) == other_memory(B[0])


def test_an_edition_can_be_removed_and_its_number_does_not_come_back(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        store.add_edition(**OTHER)
        fill_other(store)
        store.remove_edition(2)
        assert not (path / "memories-2.kv").exists()
        assert store.add_edition(**OTHER).id == 3
        assert store.status(edition=3)["cold"] == 3
        assert everything(store) == expected({"/a": A})
        store.remove_edition(1)
        assert store.edition.id == 3


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "function"), [("RecordFile", "create"), ("Memories", "add_edition")], ids=str
)
def test_a_crash_while_an_edition_is_added_leaves_none(path, owner, function, moment):
    with new_store(path) as store:
        memorize(store, "/a", A)
    module = "m3mlx.store.record_file" if owner == "RecordFile" else "m3mlx.store.catalog_memories"
    die_in(module, owner, function, moment, add_other, path)
    with MemoryStore.open(path, write=True) as store:
        assert [edition.id for edition in store.editions()] == [1]
        assert {file.name for file in path.glob("*.kv")} == {"memories.kv"}
        assert everything(store) == expected({"/a": A})
        store.add_edition(**OTHER)
        fill_other(store)
        assert store.status(edition=2)["cold"] == 0


def add_other(path):
    with MemoryStore.open(path, write=True) as store:
        store.add_edition(**OTHER)


def test_files_of_two_editions_cannot_stand_for_each_other(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        store.add_edition(**{**OTHER, "record_bytes": ABOUT["record_bytes"]})
        store.write({slot: memory(f"other {slot}") for slot in range(3)}, edition=2)
    first, second = path / "memories.kv", path / "memories-2.kv"
    good = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(StoreError, match=r"another edition of memories \(1 instead of 2\)"):
        read_other(path)
    second.write_bytes(good[:PAGE] + first.read_bytes()[PAGE:])  # its records only
    with pytest.raises(StoreError, match="damaged"):
        read_other(path)
    second.write_bytes(good[:PAGE])
    with pytest.raises(StoreError, match=r"memories-2\.kv: it is cut short"):
        read_other(path)
    second.unlink()
    with pytest.raises(StoreError, match=r"memories-2\.kv is missing"):
        read_other(path)
    with MemoryStore.open(path, write=True) as store:  # the other one is untouched by all that
        assert everything(store) == expected({"/a": A})
        memorize(store, "/b", B)
    second.write_bytes(good)
    first.unlink()
    with MemoryStore.open(path, write=True) as store:
        assert bytes(store.read([0], edition=2)[0]) == memory("other 0")
        memorize(store, "/c", ["something else"], cold=True)
    with pytest.raises(StoreError, match=r"memories\.kv is missing"):
        MemoryStore.open(path).read([0])


def read_other(path):
    with MemoryStore.open(path) as store:
        return store.read([0], edition=2)


def test_a_writer_in_the_way_has_an_error_of_its_own(path, store):
    with pytest.raises(BusyStore):
        MemoryStore.open(path, write=True, wait=0)


def test_a_document_that_another_tokenizer_began_to_cut_starts_anew(store):
    begun, _ = store.begin("/a", "h", 3, size=1)
    store.add(references(begun, A[:2]))
    other = store.add_edition(**OTHER)
    again, done = store.begin("/a", "h", 3, size=1, tokenizer=other.tokenizer)
    assert (again != begun, done) == (True, 0)
    store.add(references(again, A, cold=True))
    assert store.begin("/a", "h", 3, size=1) == (again, 3)  # whole documents are shared


# the bound


def size_on_disk(store):
    return sum(store.status()["bytes"].values())


def test_the_least_used_memories_are_dropped_first(path, monkeypatch):
    texts = [f"text {number}" for number in range(30)]
    minute = [1000]
    monkeypatch.setattr("time.time", lambda: 60.0 * minute[0])
    with new_store(path) as store:
        memorize(store, "/a", texts)
        minute[0] = 2000
        store.read([3, 7])
        minute[0] = 3000
        assert store._catalog.db.empty_log()
        text = sum(file.stat().st_size for file in path.iterdir() if file.suffix != ".kv")
        text -= (path / "catalog.sqlite-shm").stat().st_size
        dropped = store.set_bound(int((text + PAGE + 10 * PAGE) / 0.9))
        warm = [slot for slot in range(30) if slot not in store.cold()]
        assert dropped == 30 - len(warm) > 10
        assert {3, 7} < set(warm)
        for slot in warm:
            assert bytes(store.read([slot])[0]) == memory(texts[slot])
        with pytest.raises(ColdReference):
            store.read([0])
        assert search(store, texts[0], 1) == [texts[0]]
        assert in_bytes(path, memory(texts[0])[:40]) == []
        store.write({0: memory(texts[0])})
        assert bytes(store.read([0])[0]) == memory(texts[0])
    with MemoryStore.open(path, write=True) as store:
        assert store.set_bound(None) == 0
        store.write({slot: memory(texts[slot]) for slot in store.cold()})
        assert everything(store) == expected({"/a": texts})


def test_a_store_stays_within_its_bound_whatever_is_added(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        store.maintain()
        bound = size_on_disk(store) + 40 * PAGE
        store.set_bound(bound)
        for number in range(30):
            memorize(store, f"/{number}", [f"{number} {part}" for part in range(3)])
            assert size_on_disk(store) <= bound + PAGE
        status = store.status()
        assert status["references"] == 93
        assert 30 < status["cold"] < 93
        assert status["max_bytes"] == bound
        newest = store.slots(after=89)
        assert bytes(store.read(newest)[0]) == memory("29 0")


def test_a_bound_counts_the_index_too(path):
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", [f"text {number}" for number in range(200)])
        assert store._catalog.db.empty_log()
        total = sum(file.stat().st_size for file in path.iterdir() if not file.match("*-shm"))
        assert store.set_bound(total + 2000) == 0  # which leaves no room for an index
        store.maintain()
        assert (path / "vectors.usearch").stat().st_size > 2000
        assert store.status()["cold"] > 0


def test_a_bound_below_the_text_drops_all_memories_and_no_text(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        assert store.set_bound(1) == 3
        memorize(store, "/b", B)
        assert store.status()["cold"] == 3
        assert len(store.read(store.slots(after=2))) == 2  # what has just been written stays
        assert search(store, A[0], 1) == [A[0]]
        with pytest.raises(StoreError, match="no bound"):
            store.set_bound(0)


def test_memories_of_other_editions_go_first_among_those_used_alike(path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 60_000.0)
    with new_store(path) as store:
        memorize(store, "/a", A)
        store.add_edition(**OTHER)
        fill_other(store)
        assert store._catalog.db.empty_log()
        total = sum(file.stat().st_size for file in path.iterdir() if not file.match("*-shm"))
        assert store.set_bound(total - 1, edition=2) > 0
        warm = {edition["id"]: edition["warm"] for edition in store.status()["editions"]}
        assert warm[1] < 3
        assert warm[2] == 3 or warm[1] == 0


def test_a_memory_that_is_dropped_and_written_again_is_not_erased_later(path, monkeypatch):
    with new_store(path) as store:
        memorize(store, "/a", A)
        with monkeypatch.context() as patch:
            patch.setattr(store._records, "erase", lambda: None)  # as if it had failed
            assert store.set_bound(1) == 3
            store.set_bound(None)
            store.write({0: memory(A[0])})
        store.maintain()
        assert bytes(store.read([0])[0]) == memory(A[0])
        assert in_bytes(path, memory(A[1])[:40]) == []


def test_readers_note_what_they_use_without_the_right_to_write(path, monkeypatch):
    with new_store(path) as store:
        memorize(store, "/a", A)
        monkeypatch.setattr("time.time", lambda: 60.0 * 123_456_789)
        with MemoryStore.open(path, own=True) as reader:  # while another one writes
            reader.read([1])
        used = Usage(path / "memories.kv", 0).minutes(np.arange(5))
        assert used[1] == 123_456_789 and (used[[0, 2]] < used[1]).all() and not used[3:].any()
        os.unlink(path / "memories.used")
        os.mkdir(path / "memories.used")  # cannot be written: nothing depends on it
        assert bytes(store.read([1])[0]) == memory(A[1])
        os.rmdir(path / "memories.used")


# compacting


def full(path):
    """A store with gaps: what is left of it, and how large its files are."""
    with new_store(path, **LARGE) as store:
        for number in range(12):
            memorize(store, f"/{number}", [f"text {number} {part}" for part in range(3)])
        memorize(store, "/cold", ["coal is cold"], cold=True)
        store.add_edition(**OTHER)
        fill_other(store)
        store.forget([1, 2, 3, 4, 5, 6, 8])
    return {
        f"/{number}": [f"text {number} {part}" for part in range(3)] for number in (6, 8, 9, 10, 11)
    }


def seen(store):
    """Everything of the first edition but the cold document."""
    found = everything(store)
    cold = found.pop("/cold", None)
    assert cold is None or [row[0] for row in cold] == ["coal is cold"]
    return found


def test_compacting_changes_nothing_but_slots_and_gives_room_back(path):
    kept = full(path)
    before = {file.name: file.stat().st_size for file in path.iterdir()}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        old = store.slots()
        assert store.compact() == 0
        assert seen(store) == expected(kept)
        assert min(store.slots()) > max(old)
        assert store.slots() == list(range(min(store.slots()), max(store.slots()) + 1))
        for slot in store.slots():
            (reference,) = store.references([slot])
            assert bytes(store.read([slot], edition=2)[0]) == other_memory(reference.text)
        assert search(store, "text 9 1", 1) == ["text 9 1"]
        assert store.compact() == 0  # there is nothing more to do
        after = {file.name: file.stat().st_size for file in path.glob("*.kv")}
    assert sum(after.values()) < (before["memories.kv"] + before["memories-2.kv"]) / 2
    with MemoryStore.open(path, write=True, **LARGE) as store:
        assert seen(store) == expected(kept)
        memorize(store, "/new", A)
        assert everything(store)["/new"] == expected({"/new": A})["/new"]
        store.forget([store.find_documents(["/9"])[0].id])
        assert in_bytes(path, b"text 9 1", memory("text 9 1")[:40]) == []


def test_readers_go_on_while_a_store_is_compacted(path):
    kept = full(path)
    with MemoryStore.open(path, **LARGE) as reader, MemoryStore.open(path, **LARGE) as idle:
        (before,) = reader.search(vector("text 9 1")[None], [""], 1, "dense")
        with MemoryStore.open(path, write=True, **LARGE) as store:
            store.compact()
        with pytest.raises(StoreError, match="Search again"):
            reader.read([before[0].slot])
        assert seen(reader) == seen(idle) == expected(kept)


def test_a_compacting_that_fails_leaves_the_old_and_no_copies(path, monkeypatch):
    kept = full(path)
    before = {file.name for file in path.glob("memories*")}
    with MemoryStore.open(path, write=True, **LARGE) as store:
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="Make room"):
            patch.setattr(files, "at_step", fail_at("records copied"))
            store.compact()
        assert {file.name for file in path.glob("memories*")} == before
        assert seen(store) == expected(kept)
        store.compact()
        assert seen(store) == expected(kept)


def fail_at(wanted):
    def step(name):
        if name == wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return step


def test_a_damaged_memory_is_left_out_and_its_reference_is_cold(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        store.forget([1])
        data = bytearray((path / "memories.kv").read_bytes())
        data[data.index(memory(B[0])[:40])] ^= 1
        (path / "memories.kv").write_bytes(data)
        assert store.compact() == 1
        assert len(store.cold()) == 1
        assert bytes(store.read(store.slots()[1:])[0]) == memory(B[1])


def test_a_damaged_reference_is_not_made_right_by_compacting(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        store.forget([1])
        store._catalog.db.execute("UPDATE reference SET line = 99 WHERE slot = 4")
        store.compact()
        with pytest.raises(StoreError, match="is damaged"):
            store.references(store.slots()[1:])
        assert [reference.text for reference in store.references(store.slots()[:1])] == [B[0]]


STEPS = [
    ("m3mlx.store.records", "Records", "copy", "before"),
    ("m3mlx.store.records", "Records", "copy", "after"),
    ("m3mlx.store.catalog", "Catalog", "renumber", "after"),
    ("m3mlx.store.catalog", "Catalog", "purge", "before"),
    ("m3mlx.store.catalog", "Catalog", "purge", "after"),
]


def compact(path):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store.compact()


@pytest.mark.parametrize(("module", "owner", "function", "moment"), STEPS)
def test_a_crash_while_compacting_leaves_the_old_or_the_new(path, module, owner, function, moment):
    kept = full(path)
    die_in(module, owner, function, moment, compact, path)
    with MemoryStore.open(path, **LARGE) as store:
        assert seen(store) == expected(kept)
    with MemoryStore.open(path, write=True, **LARGE) as store:
        assert seen(store) == expected(kept)
        files = {edition.file for edition in store.editions()}
        assert {file.name for file in path.glob("*.kv")} == files
        store.compact()
        assert seen(store) == expected(kept)
        for slot in store.slots():
            (reference,) = store.references([slot])
            assert bytes(store.read([slot], edition=2)[0]) == other_memory(reference.text)


def test_files_of_the_user_in_the_folder_are_left_alone(path):
    new_store(path).close()
    for name in ("memories.kv.bak", "memories-old.kv", "notes.txt", "catalog.sqlite.backup"):
        (path / name).write_text("mine")
    with MemoryStore.open(path, write=True) as store:
        store.compact()
    assert {file.name for file in path.iterdir() if file.read_bytes() == b"mine"} == {
        *("memories.kv.bak", "memories-old.kv", "notes.txt", "catalog.sqlite.backup")
    }


def test_every_step_of_writing_has_a_name(path, monkeypatch):
    steps = []
    monkeypatch.setattr(files, "at_step", steps.append)
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", A)
    order = ["record written", "records on disk", "committing", "committed"]
    places = [steps.index(name, steps.index("record written")) for name in order]
    assert places == sorted(places)
    assert steps.index("vectors.usearch written") > places[-1]
