"""A process that dies, a disk that is full, files that are damaged: no loss, no wrong answer."""

import multiprocessing
import os
import resource
import shutil

import numpy as np
import pytest
from small_store import (
    FILES,
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
    vector,
)

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


STEPS = [
    ("m3mlx.store.record_file", "RecordFile", "write", "before"),
    ("m3mlx.store.record_file", "RecordFile", "write", "after"),
    ("m3mlx.store.catalog", "Catalog", "insert", "after"),
    ("m3mlx.store.record_file", "RecordFile", "erase", "before"),
    ("m3mlx.store.record_file", "RecordFile", "erase", "after"),
    ("m3mlx.store.catalog", "Catalog", "purge", "after"),
    ("m3mlx.store.index", None, "save", "before"),
    ("m3mlx.store.index", None, "save", "after"),
    ("m3mlx.store.search", "Search", "refresh_index", "after"),
]


def change(path):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store._records.erase()  # else the first of an opened store would be the place to die
        memorize(store, "/a", B)


@pytest.mark.parametrize(("module", "owner", "function", "moment"), STEPS)
def test_a_crash_at_any_step_leaves_the_old_or_the_new(path, module, owner, function, moment):
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", A)
        memorize(store, "/c", ["constant"] * 3)
    pristine = path.with_name("pristine")
    shutil.copytree(path, pristine)
    die_in(module, owner, function, moment, change, path)
    rest = ["constant"] * 3
    old, new = expected({"/a": A, "/c": rest}), expected({"/a": B, "/c": rest})
    with MemoryStore.open(path, **LARGE) as store:
        seen = everything(store)
        assert seen in (old, new)
    with MemoryStore.open(path, write=True, wait=0, **LARGE) as store:
        assert everything(store) == seen
        memorize(store, "/a", B)
        assert everything(store) == new
        memorize(store, "/d", A)
        assert everything(store) == {**new, **expected({"/d": A})}
        store.forget([store.find_documents(["/d"])[0].id])
    assert in_bytes(path, A[0].encode(), b"plum", memory(A[0])[:40], vector(A[0]).tobytes()) == []
    assert {file.name for file in path.iterdir()} == set(FILES)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("module", "owner", "function"),
    [
        ("m3mlx.store.record_file", "RecordFile", "create"),
        ("m3mlx.store.catalog", "Catalog", "create"),
    ],
)
def test_a_creation_that_was_cut_off_can_be_repeated(path, module, owner, function, moment):
    die_in(module, owner, function, moment, new_store, path)
    if not MemoryStore.exists(path):
        new_store(path).close()
    with MemoryStore.open(path, write=True) as store:
        memorize(store, "/a", A)
        assert everything(store) == expected({"/a": A})


def test_records_of_a_commit_that_failed_are_cut_off(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
    size = (path / "memories.kv").stat().st_size
    die_in("m3mlx.store.record_file", "RecordFile", "write", "after", add_b, path)
    assert in_bytes(path, memory(B[0])[:40]) != []
    MemoryStore.open(path, write=True).close()
    assert (path / "memories.kv").stat().st_size == size
    assert in_bytes(path, memory(B[0])[:40]) == []


def add_b(path):
    with MemoryStore.open(path, write=True) as store:
        memorize(store, "/b", B)


def test_an_error_in_the_middle_keeps_what_was_committed_and_frees_the_lock(path):
    with pytest.raises(ZeroDivisionError), new_store(path) as store:
        memorize(store, "/a", A)
        store.begin("/b", "h", 2, size=1)
        raise ZeroDivisionError
    with MemoryStore.open(path, write=True, wait=0) as store:
        assert everything(store) == expected({"/a": A})


def fill_the_disk(path):
    limit = 600_000  # bytes of any file: less than 50 records take
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with MemoryStore.open(path, write=True) as store:
        document, _ = store.begin("/b", "h", 50, size=1)
        with pytest.raises(StoreError, match="Make room"):
            store.add(references(document, [f"text {number}" for number in range(50)]))
        assert everything(store) == expected({"/a": A})
        memorize(store, "/c", B[:1])


def test_a_full_disk_is_an_error_and_loses_nothing(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=fill_the_disk, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    with MemoryStore.open(path, write=True) as store:
        assert everything(store) == expected({"/a": A, "/c": B[:1]})


# damage

HARMLESS = ("vectors.usearch", "memories.used", "lock")  # files that can be made again


@pytest.fixture
def large(path):
    """A closed store with an index, and its bytes, to be damaged."""
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", A * 10)
        memorize(store, "/b", B)
    return {name: (path / name).read_bytes() for name in FILES}


def genuine(path, write=False):
    """Open, search and read; return whether it worked. What it gives out must be true."""
    known = {
        (row[0], row[1]): row for rows in expected({"/a": A * 10, "/b": B}).values() for row in rows
    }
    try:
        with MemoryStore.open(path, write=write, **LARGE) as store:
            for mode in ("dense", "text"):
                (hits,) = store.search(vector(A[0])[None], [A[0]], 40, mode)
                records = store.read([hit.slot for hit in hits])
                for hit, record in zip(hits, records, strict=True):
                    place = (hit.start, hit.end, hit.page, hit.line)
                    assert known[hit.text, place] == (hit.text, place, hit.tokens, bytes(record))
    except StoreError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", [False, True])
def test_a_file_cut_short_anywhere_is_an_error_or_no_matter(path, large, name, write):
    for share in (0, 0.1, 0.5, 0.9, 0.999):
        for other in FILES:
            (path / other).write_bytes(large[other])
        (path / name).write_bytes(large[name][: int(share * len(large[name]))])
        right = genuine(path, write)
        if (name, share) != ("catalog.sqlite", 0.999):  # whose last page is rarely needed
            assert right == (name in HARMLESS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_garbage_is_an_error_or_no_matter(path, large, name):
    (path / name).write_bytes(os.urandom(len(large[name])))
    assert genuine(path) == (name in HARMLESS)


@pytest.mark.parametrize("name", ["vectors.usearch", "lock", "memories.kv"])
def test_a_missing_file_is_an_error_or_made_again(path, large, name):
    (path / name).unlink()
    assert genuine(path, write=True) == (name != "memories.kv")
    assert (path / name).exists() == (name != "memories.kv")


@pytest.mark.parametrize("name", ["memories.kv", "catalog.sqlite", "vectors.usearch"])
def test_no_flipped_bit_makes_a_wrong_answer(path, large, name):
    random = np.random.default_rng(1)
    data = np.frombuffer(large[name], dtype=np.uint8)
    used = np.flatnonzero(data)
    harmless = 0
    for offset in random.choice(used, 40):
        flipped = data.copy()
        flipped[offset] ^= 1 << int(random.integers(8))
        (path / name).write_bytes(flipped.tobytes())
        harmless += genuine(path)
    if name != "catalog.sqlite":
        assert harmless == (0 if name == "memories.kv" else 40)


def test_a_damaged_memory_is_named_by_its_document(path):
    with new_store(path) as store:
        memorize(store, "/a/secret plans.txt", A)
        memorize(store, "/b", B)
        data = bytearray((path / "memories.kv").read_bytes())
        data[data.index(memory(A[1])[:40]) + 5] ^= 1
        (path / "memories.kv").write_bytes(data)
        with pytest.raises(StoreError, match=r"secret plans\.txt.*damaged"):
            everything(store)
        store.forget([1])
        assert everything(store) == expected({"/b": B})


@pytest.mark.parametrize("name", ["memories.kv", "catalog.sqlite", "vectors.usearch"])
def test_files_of_another_store_are_refused_or_made_again(path, large, name):
    other = path.with_name("other")
    with new_store(other, **LARGE) as store:
        memorize(store, "/a", [f"other {number}" for number in range(32)])
    shutil.copy(other / name, path / name)
    assert genuine(path, write=True) == (name == "vectors.usearch")
