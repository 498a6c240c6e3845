"""Forgetting leaves no byte, and what a store says about that is true."""

import numpy as np
import pytest
from small_store import (
    LARGE,
    A,
    everything,
    expected,
    in_bytes,
    memorize,
    memory,
    new_store,
    references,
    search,
)

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore, database


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with new_store(path) as store:
        yield store


@pytest.mark.parametrize("options", [{}, LARGE])
def test_forgetting_leaves_no_byte(path, options):
    secret = ["the confidential agreement names Zanzibar", "and the quarterly embargo of 1987"]
    with new_store(path, **options) as store:
        memorize(store, "/kept", A)
        document = memorize(store, "/private/plan.txt", secret)
        for number in range(5):
            memorize(store, f"/more/{number}", [f"{word} {number}" for word in A])
        store.settle()
        needles = [b"private/plan", b"confidenti", b"zanzibar", b"embargo"]
        for new in references(document, secret):
            tokens = np.array(new.tokens, dtype="<u4").tobytes()
            needles += [new.text.encode(), new.text.encode("utf-16-le"), tokens, new.record[:30]]
            needles += [new.vector.tobytes(), new.vector.astype("<f2").tobytes()]
        there = {needle for _, needle in in_bytes(path, *needles)}
        assert len(there) == len(needles) - 2 - 2 * (not options)  # no UTF-16; no index, no halves
        (forgotten,) = store.forget([document])
        assert forgotten.path == "/private/plan.txt"
        assert in_bytes(path, *needles) == []
        assert search(store, secret[0], 20, "text") == []
        assert "/kept" in everything(store)
    assert in_bytes(path, *needles) == []


def test_forgetting_makes_the_files_smaller(store):
    for number in range(20):
        memorize(store, f"/{number}", [f"{number} {place}" for place in range(20)])
    before = store.status()["bytes"]
    store.forget(range(1, 21))
    after = store.status()["bytes"]
    assert after["memories"] < before["memories"] / 50
    assert after["catalog"] < before["catalog"] / 2
    assert store.status()["references"] == 0


def test_traces_are_found_before_and_not_after(path):
    with new_store(path, **LARGE) as store:
        memorize(store, "/kept", A)
        document = memorize(
            store, "/secret", ["incomprehensible remark about Zanzibar", "and more"]
        )
        store.settle()
        traces = store.traces([document])
        kinds = {"name", "text", "word", "tokens", "vector", "memory"}
        assert {trace.kind for trace in traces} == kinds
        kept = {file: file.read_bytes() for file in path.iterdir()}
        assert store.verify(traces).residue == []  # all of it is in a document that remains
        store.forget([document])
        assert store.verify(traces).residue == []
        for file, data in kept.items():  # an old file that comes back is noticed
            if file.suffix in (".usearch", ".sqlite-wal", ".kv"):
                (path / "backup").write_bytes(bytes(99) + data)
                found = store.verify(traces).residue
                assert {residue.file for residue in found} == {"backup"}
                assert {residue.path for residue in found} == {"/secret"}
                for residue in found:
                    needles = [trace.needle for trace in traces if trace.kind == residue.kind]
                    assert (bytes(99) + data)[residue.offset :].startswith(tuple(needles))


def test_what_was_not_erased_is_noticed(path, monkeypatch):
    with new_store(path) as store:
        memorize(store, "/kept", A)
        document = memorize(store, "/secret", ["incomprehensible remark about Zanzibar"])
        traces = store.traces([document])
        with monkeypatch.context() as patch:
            patch.setattr(store, "settle", lambda: None)
            store.forget([document])
        left = store.verify(traces).residue
        assert {residue.kind for residue in left} >= {"memory", "text"}
        store.settle()
        assert store.verify(traces).residue == []


def test_what_another_document_also_has_is_no_residue(store):
    text = "incomprehensible remark about Zanzibar"
    one = memorize(store, "/one.txt", [text])
    memorize(store, "/one.txt.bak", [text])
    traces = store.traces([one])
    store.forget([one])
    assert store.verify(traces).residue == []
    assert everything(store) == expected({"/one.txt.bak": [text]})


def test_words_of_the_store_itself_are_no_residue(store):
    document = memorize(store, "/a", ["the document checksum and its reconstruction by trigger"])
    traces = store.traces([document])
    assert {trace.original for trace in traces} >= {"document", "checksum", "reconstruct"}
    store.forget([document])
    assert store.verify(traces).residue == []


def test_forgetting_a_half_added_document_works(path, store):
    document, _ = store.begin("/a", "h", 3, size=1)
    store.add(references(document, A[:2]))
    store.forget([document])
    assert store.documents() == []
    assert in_bytes(path, A[0].encode(), memory(A[0])[:40]) == []


def test_forgetting_what_is_not_there_forgets_nothing(store):
    document = memorize(store, "/a", A)
    with pytest.raises(StoreError, match="no document 99"):
        store.forget([document, 99])
    assert everything(store) == expected({"/a": A})


def test_a_reader_in_the_way_of_erasing_is_named_and_it_is_done_later(path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with new_store(path) as store, MemoryStore.open(path) as reader:
        document = memorize(store, "/a", A)
        with reader._catalog.snapshot():
            assert len(reader._catalog.documents(1)) == 1
            with pytest.raises(StoreError, match="being read"):
                store.forget([document])
            assert everything(store) == {}
        store.settle()
        assert in_bytes(path, A[0].encode(), b"plum") == []
