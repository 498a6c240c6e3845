"""Forgetting leaves no byte, and what a store says about that is true."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
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
    vector,
)

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore, database
from m3mlx.store import traces as traces_module
from m3mlx.store.index import quantize


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
        store.maintain()
        needles = [b"private/plan", b"confidenti", b"zanzibar", b"embargo"]
        for new in references(document, secret):
            tokens = np.array(new.tokens, dtype="<u4").tobytes()
            needles += [new.text.encode(), new.text.encode("utf-16-le"), tokens, new.record[:30]]
            needles += [new.vector.tobytes(), quantize(new.vector).tobytes()]
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
        store.maintain()
        traces = store.traces([document])
        kinds = {"name", "text", "word", "tokens", "vector", "memory"}
        assert {trace.kind for trace in traces} == kinds
        kept = {file: file.read_bytes() for file in path.iterdir()}
        assert store.verify(traces).remnants == []  # all of it is in a document that remains
        store.forget([document])
        assert store.verify(traces).remnants == []
        for file, data in kept.items():  # an old file that comes back is noticed
            if file.suffix in (".usearch", ".sqlite-wal", ".kv"):
                (path / "backup").write_bytes(bytes(99) + data)
                found = store.verify(traces).remnants
                assert {remnant.file for remnant in found} == {"backup"}
                assert {remnant.path for remnant in found} == {"/secret"}
                for remnant in found:
                    needles = [trace.needle for trace in traces if trace.kind == remnant.kind]
                    assert (bytes(99) + data)[remnant.offset :].startswith(tuple(needles))


def test_what_was_not_erased_is_noticed(path, monkeypatch):
    with new_store(path) as store:
        memorize(store, "/kept", A)
        document = memorize(store, "/secret", ["incomprehensible remark about Zanzibar"])
        traces = store.traces([document])
        with monkeypatch.context() as patch:
            patch.setattr(store, "maintain", lambda: None)
            store.forget([document])
        left = store.verify(traces).remnants
        assert {remnant.kind for remnant in left} >= {"memory", "text"}
        store.maintain()
        assert store.verify(traces).remnants == []


def test_what_another_document_also_has_leaves_no_remnant(store):
    text = "incomprehensible remark about Zanzibar"
    one = memorize(store, "/one.txt", [text])
    memorize(store, "/one.txt.bak", [text])
    traces = store.traces([one])
    store.forget([one])
    assert store.verify(traces).remnants == []
    assert everything(store) == expected({"/one.txt.bak": [text]})


def test_words_of_the_store_itself_leave_no_remnant(store):
    document = memorize(
        store, "/garde", ["the document checksum and its reconstruction by trigger"]
    )
    traces = store.traces([document])
    assert {trace.original for trace in traces} >= {"document", "checksum", "reconstruct"}
    store.forget([document])
    assert store.verify(traces).remnants == []


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
        store.maintain()
        assert in_bytes(path, A[0].encode(), b"plum") == []


ENCODED = "geheimnisvolle Äußerungen über Sansibar, 1987"


@pytest.mark.parametrize("encoding", traces_module.ENCODINGS)
def test_text_is_found_in_every_encoding_wherever_it_lies(path, store, encoding):
    document = memorize(store, "/secret", [ENCODED])
    samples = store.traces([document])
    store.forget([document])
    assert store.verify(samples).remnants == []
    for before in (0, 1, 2**22 - 7, 2**22):  # also over the seam of two parts
        (path / "copy").write_bytes(bytes(before) + ENCODED.encode(encoding) + bytes(9))
        kinds = {remnant.kind: remnant for remnant in store.verify(samples).remnants}
        assert kinds["text"].file == "copy"
        assert before <= kinds["text"].offset < before + 4 * len(ENCODED)
        (path / "copy").unlink()


def test_every_reference_is_looked_for(path, store):
    texts = [f"remark number {number} about Zanzibar and {number * 7919}" for number in range(20)]
    document = memorize(store, "/secret", texts)
    memorize(store, "/kept", A)
    samples = store.traces([document])
    store.forget([document])
    for text in texts:
        for kept in (text.encode(), memory(text), quantize(vector(text)).tobytes()):
            (path / "copy").write_bytes(b"x" * 1001 + kept)
            assert {remnant.file for remnant in store.verify(samples).remnants} == {"copy"}


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=300),
    needles=st.lists(st.binary(min_size=1, max_size=20), max_size=6),
    cut=st.integers(1, 50),
)
@example(data=b"abcabcabcabcabc", needles=[b"abcabcabc", b"abc", b"abcabcabd"], cut=4)
def test_the_search_for_many_finds_what_a_search_for_each_finds(data, needles, cut):
    needles += [data[at : at + 12] for at in range(0, len(data), 30) if data[at : at + 12]]
    chunks = [data[at : at + cut] for at in range(0, len(data), cut)]
    found = sorted(traces_module._Needles(needles).within(chunks))
    assert found == sorted(
        (number, at)
        for number, needle in enumerate(needles)
        for at in range(len(data))
        if data.startswith(needle, at)
    )


def test_a_certificate_says_what_was_searched_and_names_nothing(path):
    with new_store(path, **LARGE) as store:
        memorize(store, "/kept", A)
        document = memorize(store, "/private/plan.txt", ["a remark about Zanzibar"], hash="abc")
        samples = store.traces([document])
        gone = store.forget([document])
        verification = store.verify(samples)
        certificate = traces_module.certificate(gone, samples, verification, store.id.hex())
        (erased,) = certificate["erased"]
        assert erased == {
            "path_sha256": hashlib.sha256(b"/private/plan.txt").hexdigest(),
            **{"content_sha256": "abc", "content_bytes": 23, "references": 1, "memories": 1},
        }
        files = {file["name"]: file for file in certificate["files"]}
        assert set(files) == {file.name for file in path.iterdir()}
        for name in ("memories.kv", "vectors.usearch", "lock"):
            data = (path / name).read_bytes()
            assert files[name]["bytes"] == len(data)
            assert files[name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert certificate["findings"] == []
        assert certificate["samples"]["text"] > 3
        assert certificate["store"] == store.id.hex()
        written = json.dumps(certificate)
        assert "plan" not in written and "Zanzibar" not in written
        (path / "copy").write_bytes(b"a remark about Zanzibar")
        found = traces_module.certificate(gone, samples, store.verify(samples), "id")["findings"]
        assert found == [{"file": "copy", "offset": 0, "kind": "text"}]
