"""Searches find the same whether the index is there, behind, or missing, and in little memory."""

import multiprocessing
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from small_store import (
    ABOUT,
    LARGE,
    A,
    everything,
    expected,
    memorize,
    new_store,
    references,
    search,
    unit,
    vector,
)

from m3mlx.store import MemoryStore, NewReference, catalog
from m3mlx.store import index as index_module

TEXTS = [f"text {number}" for number in range(120)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def nearest(texts, query, count):
    order = np.argsort([-float(vector(text) @ query) for text in texts])
    return [texts[place] for place in order[:count]]


def dense(store, query, count):
    (hits,) = store.search(query[None], [""], count, "dense")
    return [hit.text for hit in hits]


def test_without_an_index_all_vectors_are_compared_a_part_at_a_time(path, monkeypatch):
    monkeypatch.setattr(catalog, "BLOCK", 7)
    with new_store(path, exact=10) as store:
        memorize(store, "/a", TEXTS)
        for seed in range(10):
            query = unit(seed)
            assert dense(store, query, 9) == nearest(TEXTS, query, 9)
            assert isinstance(store._search._rest[1], index_module.Scan)
        assert len(dense(store, unit(0), 500)) == len(TEXTS)


def test_an_index_that_is_behind_is_completed_by_comparing_the_rest(path):
    with new_store(path, exact=100) as store:
        memorize(store, "/a", TEXTS)
        store.maintain()
        written = (path / "vectors.usearch").stat().st_mtime_ns
        memorize(store, "/b", ["a newcomer", "another"])
        half, _ = store.begin("/half", "h", 9, size=1)
        store.add(references(half, ["hidden"]))
        store.maintain()
        assert (path / "vectors.usearch").stat().st_mtime_ns == written  # two are too few
        with MemoryStore.open(path, exact=100) as reader:
            for opened in (store, reader):
                assert dense(opened, vector("a newcomer"), 1) == ["a newcomer"]
                assert dense(opened, vector(TEXTS[5]), 1) == [TEXTS[5]]
                assert len(dense(opened, vector("hidden"), 500)) == 122
        memorize(store, "/c", [f"more {number}" for number in range(30)])
        store.maintain()
        assert (path / "vectors.usearch").stat().st_mtime_ns != written
        assert dense(store, vector("more 7"), 1) == ["more 7"]


def test_what_is_gone_is_not_found_in_an_index_that_still_has_it(path, monkeypatch):
    with new_store(path, exact=50) as store:
        memorize(store, "/a", TEXTS)
        other = memorize(store, "/b", [f"other {number}" for number in range(60)])
        store.maintain()
        with MemoryStore.open(path, exact=50) as reader, monkeypatch.context() as patch:
            assert dense(reader, vector("other 3"), 1) == ["other 3"]
            patch.setattr(store, "maintain", lambda: None)
            store.forget([other])
            for opened in (store, reader):
                found = dense(opened, vector("other 3"), 40)
                assert len(found) == 40 and not any(text.startswith("other") for text in found)
        store.maintain()
        held = vector("other 3").astype("<f2").tobytes()
        assert held not in (path / "vectors.usearch").read_bytes()


def test_an_index_without_newcomers_or_losses_is_not_written_again(path):
    with new_store(path, **LARGE) as store:
        memorize(store, "/a", TEXTS)
        store.maintain()
        before = (path / "vectors.usearch").stat().st_ino
        store.maintain()
        assert (path / "vectors.usearch").stat().st_ino == before


@pytest.mark.parametrize("options", [{}, LARGE])
def test_quarantined_references_are_not_found_until_they_are_shown_again(path, options):
    with new_store(path, **options) as store:
        memorize(store, "/a", A)
        store.maintain()
        store.quarantine([1])
        for settled in (False, True):
            assert sorted(search(store, A[1], 9)) == sorted([A[0], A[2]])
            assert A[1] not in search(store, A[1], 9, "text")
            if not settled:
                store.maintain()
        assert store.status()["quarantined"] == 1
        # also one whose row cannot be read
        store._catalog.db.execute("UPDATE reference SET text = 'damaged' WHERE slot = 1")
        assert A[0] in search(store, A[1], 9)
        store._catalog.db.execute("UPDATE reference SET text = ? WHERE slot = 1", [A[1]])
        store.quarantine([1], False)
        assert search(store, A[1], 1) == [A[1]]
        assert everything(store) == expected({"/a": A})


WIDE, COUNT = 1024, 12_000  # of the vectors: 48 MB


def fill(path):
    about = {**ABOUT, "dimensions": WIDE}
    random = np.random.default_rng(0)
    with MemoryStore.create(path, **about, exact=10**6) as store:
        document, _ = store.begin("/a", "h", COUNT, size=1)
        for first in range(0, COUNT, 2000):
            vectors = random.standard_normal((2000, WIDE)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            store.add(
                [
                    NewReference(document, first + i, i, i + 1, f"t {i}", (1,), None, 1, v, None)
                    for i, v in enumerate(vectors)
                ]
            )


def search_in_little_memory(path, room):
    with MemoryStore.open(path, exact=100) as store:
        query = np.eye(1, WIDE, dtype=np.float32)
        np.ones((9, WIDE), np.float32) @ np.ones((WIDE, 2000), np.float32)  # BLAS takes its own
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
        (hits,) = store.search(query, ["t 5"], 5, "hybrid")
        assert len(hits) == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has no such limit")
def test_a_store_larger_than_the_memory_there_is_can_be_searched(path):
    fill(path)
    context = multiprocessing.get_context("spawn")
    codes = []
    for room in (30_000_000, 1_000_000):  # less than the vectors take; and so little that it fails
        process = context.Process(target=search_in_little_memory, args=(path, room))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [0, 1]
