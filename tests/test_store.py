"""The store: what is committed is there, what is forgotten is gone, whatever happens between."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
from small_store import (
    ABOUT,
    DIMENSIONS,
    FILES,
    LARGE,
    RECORD_BYTES,
    A,
    B,
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

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with new_store(path) as store:
        yield store


# creating and opening


def test_a_new_store_says_what_it_is_for_after_reopening(path):
    assert not MemoryStore.exists(path)
    new_store(path).close()
    assert MemoryStore.exists(path)
    with MemoryStore.open(path) as store:
        about = {**vars(store.edition), **vars(store)}
        assert {name: about[name] for name in ABOUT} == ABOUT
        assert store.documents() == []
        assert store.search(unit(0, 2), ["a", "b"], 5) == [[], []]


def test_nobody_else_can_read_the_files(path):
    old = os.umask(0)
    try:
        with new_store(path, **LARGE) as store:
            memorize(store, "/a", A)
            store.maintain()
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    finally:
        os.umask(old)
    assert {*FILES, "catalog.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert path.stat().st_mode & 0o777 == 0o700


def test_opening_nothing_is_an_error_and_makes_nothing(path):
    with pytest.raises(StoreError, match="there is no store"):
        MemoryStore.open(path, write=True)
    assert not path.exists()


def test_creating_over_anything_is_refused(path):
    new_store(path).close()
    with pytest.raises(StoreError, match="already"):
        new_store(path)
    other = path.with_name("documents")
    other.mkdir(mode=0o755)
    (other / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"not empty.*letter\.txt"):
        new_store(other)
    assert other.stat().st_mode & 0o777 == 0o755
    with pytest.raises(StoreError):
        new_store(other / "letter.txt")


# adding and replacing


def test_everything_comes_back_bit_for_bit_after_reopening(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        assert everything(store) == expected({"/a": A, "/b": B})
    with MemoryStore.open(path) as store:
        assert everything(store) == expected({"/a": A, "/b": B})
        assert [(d.path, d.references, d.warm, d.complete) for d in store.documents()] == [
            ("/a", 3, 3, True),
            ("/b", 2, 2, True),
        ]


def test_memorizing_twice_is_nothing(store):
    files = [("/a", "1"), ("/b", "2")]
    assert store.missing(files) == {"/a", "/b"}
    memorize(store, "/a", A, hash="1")
    assert store.missing(files) == {"/b"}
    assert store.missing([("/a", "other"), ("/c", "1")]) == {"/a", "/c"}
    document = store.documents()[0].id
    assert store.begin("/a", "1", 3, size=1) == (document, 3)
    assert everything(store) == expected({"/a": A})


def test_a_document_is_found_only_when_it_is_whole(path, store):
    reader = MemoryStore.open(path)
    document, done = store.begin("/a", "h", 3, size=1)
    assert done == 0
    for upto in range(3):
        assert everything(reader) == everything(store) == {}
        assert search(reader, A[0]) == []
        assert store.missing([("/a", "h")]) == {"/a"}
        store.add(references(document, A[upto : upto + 1], first=upto))
    assert everything(reader) == everything(store) == expected({"/a": A})
    reader.close()


def test_an_interrupted_document_goes_on_where_it_was(path):
    with new_store(path) as store:
        document, _ = store.begin("/a", "h", 3, size=1)
        store.add(references(document, A[:2]))
    with MemoryStore.open(path, write=True) as store:
        assert store.begin("/a", "h", 3, size=1) == (document, 2)
        store.add(references(document, A[2:], first=2))
        assert everything(store) == expected({"/a": A})


@pytest.mark.parametrize(("hash", "count"), [("other", 2), ("h", 2)])
def test_an_interrupted_document_that_changed_starts_anew(path, hash, count):
    with new_store(path) as store:
        document, _ = store.begin("/a", "h", 3, size=1)
        store.add(references(document, A[:1]))
        begun, done = store.begin("/a", hash, count, size=1)
        assert begun != document
        assert done == 0
        store.add(references(begun, B))
        assert everything(store) == expected({"/a": B})
    assert in_bytes(path, A[0].encode(), memory(A[0])[:40]) == []


def test_a_changed_file_that_changed_back_leaves_no_half_document(store):
    memorize(store, "/a", A, hash="1")
    store.begin("/a", "2", 5, size=1)
    assert store.missing([("/a", "1")]) == {"/a"}
    assert store.begin("/a", "1", 3, size=1)[1] == 3
    assert store.missing([("/a", "1")]) == set()
    assert len(store.documents()) == 1


def test_a_changed_file_replaces_its_references_at_once_and_for_good(path):
    with new_store(path) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        document, _ = store.begin("/a", "new", 2, size=1)
        store.add(references(document, ["new one"]))
        assert everything(store) == expected({"/a": A, "/b": B})
        store.add(references(document, ["new two"], first=1))
        assert everything(store) == expected({"/a": ["new one", "new two"], "/b": B})
        assert in_bytes(path, memory(A[0])[:40]) == []
    assert in_bytes(path, A[0].encode(), b"apple", memory(A[0])[:40]) == []


def test_several_documents_fit_in_one_commit(store):
    one, _ = store.begin("/a", "h", 3, size=1)
    two, _ = store.begin("/b", "h", 3, size=1)
    store.add(references(one, A) + references(two, B))
    assert everything(store) == expected({"/a": A})
    store.add(references(two, ["last"], first=2))
    assert everything(store) == expected({"/a": A, "/b": [*B, "last"]})


def test_wrong_references_are_refused_and_nothing_is_stored(path, store):
    memorize(store, "/a", A)
    document, _ = store.begin("/b", "h", 2, size=1)
    good = references(document, B)
    before = (path / "memories.kv").stat().st_size

    def with_(place, **changes):
        return [
            *good[:place],
            type(good[0])(**{**vars(good[place]), **changes}),
            *good[place + 1 :],
        ]

    wrong = {
        "length one": with_(1, vector=vector("x") * 1.1),
        "finite": with_(1, vector=np.full(DIMENSIONS, np.nan, dtype=np.float32)),
        "16 finite numbers": with_(1, vector=unit(0)[:5]),
        "bytes": with_(1, record=b"short"),
        "in order": with_(1, ordinal=5),
        "is not being added": with_(1, document=99),
        "1 of 2 is next": [good[0], good[0]],
        "2 of 2 is next": [*good, *references(document, ["x"], first=2)],
        "Unicode": with_(1, text="\ud800"),
    }
    for words, batch in wrong.items():
        with pytest.raises(StoreError, match=words):
            store.add(batch)
        assert everything(store) == expected({"/a": A})
        assert store.begin("/b", "h", 2, size=1) == (document, 0)
    with pytest.raises(StoreError, match="is not being added"):
        store.add(references(store.documents()[0].id, ["more"], first=3))
    with pytest.raises(StoreError, match="no references"):
        store.begin("/c", "h", 0, size=0)
    store.add(good)
    assert everything(store) == expected({"/a": A, "/b": B})
    assert (path / "memories.kv").stat().st_size > before


def test_slots_are_never_used_again(store):
    memorize(store, "/a", A)
    (hits,) = store.search(unit(0, 1), [""], 9, "dense")
    store.forget([store.documents()[0].id])
    memorize(store, "/b", B)
    (later,) = store.search(unit(0, 1), [""], 9, "dense")
    assert min(hit.slot for hit in later) > max(hit.slot for hit in hits)
    with pytest.raises(StoreError, match="forgotten"):
        store.read([hits[0].slot])


# cold memories


def test_a_cold_reference_is_found_and_gets_its_memory_later(path):
    with new_store(path) as store:
        memorize(store, "/a", A, cold=True)
        (hits,) = store.search(unit(0, 1), [""], 9, "dense")
        assert not any(hit.warm for hit in hits)
        with pytest.raises(StoreError, match="cold"):
            store.read([hits[0].slot])
        store.write({hit.slot: memory(hit.text) for hit in hits[1:]})
        assert store.status()["cold"] == 1
        with pytest.raises(StoreError, match="cold"):
            store.read([hits[1].slot, hits[0].slot])
    with MemoryStore.open(path, write=True) as store:
        store.write({np.int64(hits[0].slot): memory(hits[0].text)})
        assert everything(store) == expected({"/a": A})


def test_a_memory_can_be_written_again(store):
    memorize(store, "/a", A)
    (hit,) = store.search(unit(0, 1), [""], 1)[0]
    store.write({hit.slot: memory("another")})
    assert bytes(store.read([hit.slot])[0]) == memory("another")


@pytest.mark.parametrize("record", [b"", b"x" * (RECORD_BYTES + 1)])
def test_a_wrong_memory_changes_nothing(store, record):
    memorize(store, "/a", A)
    (hit,) = store.search(unit(0, 1), [""], 1)[0]
    with pytest.raises(StoreError, match="bytes"):
        store.write({hit.slot: record})
    with pytest.raises(StoreError, match="no reference 77"):
        store.write({hit.slot: memory("another"), 77: memory("x")})
    assert everything(store) == expected({"/a": A})


def test_cold_references_take_no_room_for_memories(store):
    before = store.status()["bytes"]["memories"]
    memorize(store, "/a", [f"text {number}" for number in range(50)], cold=True)
    assert store.status()["bytes"]["memories"] == before
    assert store.documents()[0].bytes == 0


# searching


def test_each_query_has_its_own_hits_in_order(store):
    texts = [f"text {number}" for number in range(40)]
    memorize(store, "/a", texts)
    asked = unit(3, 4)
    found = store.search(asked, [""] * 4, 7, "dense")
    stored = np.stack([vector(text) for text in texts])
    for query, hits in zip(asked, found, strict=True):
        order = np.argsort(-(stored @ query))[:7]
        assert [hit.text for hit in hits] == [texts[place] for place in order]
        wanted = [1 - float(stored[place] @ query) for place in order]
        assert [hit.distance for hit in hits] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "text"])
def test_distance_is_of_the_vectors_in_every_mode(store, mode):
    memorize(store, "/a", A + B)
    query = unit(5, 1)
    (hits,) = store.search(query, ["apples and pears and boats"], 4, mode)
    assert hits
    for hit in hits:
        assert hit.distance == pytest.approx(1 - float(query[0] @ vector(hit.text)), abs=1e-6)


def test_hits_are_ranked_by_their_score_which_hybrid_search_adds_up(store):
    texts = [*A, *B, *(f"remark{number} said aside" for number in range(20))]
    memorize(store, "/a", texts)
    query = unit(5, 1)

    def scores(mode):
        (hits,) = store.search(query, ["slow boats and pears"], len(texts), mode)
        found = [hit.score for hit in hits]
        assert found == sorted(found, reverse=True)
        return {hit.slot: (hit.score, hit.distance) for hit in hits}

    dense, words, hybrid = map(scores, ("dense", "text", "hybrid"))
    assert len(words) == 3
    for slot, (score, distance) in hybrid.items():
        assert score == pytest.approx(1 - distance + words.get(slot, (0, 0))[0], abs=1e-6)
        assert dense[slot][0] == pytest.approx(1 - distance, abs=1e-6)


def test_hybrid_finds_what_either_way_alone_would_miss(store):
    """Of eight questions, vectors rank four right and words the other four; both rank all."""
    texts = [f"subject{number} is described here" for number in range(8)]
    noise = [f"remark{number} said aside" for number in range(60)]
    memorize(store, "/a", texts + noise)
    stored = np.stack([vector(text) for text in texts + noise])
    far = sorted(unit(3, 500), key=lambda query: (stored @ query).max())  # in 16 dimensions
    right = {"dense": 0, "text": 0, "hybrid": 0}
    for number, text in enumerate(texts):
        near = vector(text) if number < 4 else far[number]
        words = f"remark{number}" if number < 4 else f"subject{number}"
        for mode in right:
            (hits,) = store.search(near[None], [words], 3, mode)
            right[mode] += text in [hit.text for hit in hits]
    assert right["hybrid"] == 8
    assert right["dense"] < 8
    assert right["text"] < 8


def test_what_both_ways_rank_high_comes_first(store):
    memorize(store, "/a", A + B)
    for text in A + B:
        assert search(store, text)[0] == text


@pytest.mark.parametrize("text", ["", "???", '"', "AND OR NOT", "a* (b", "\0", "\ud800"])
@pytest.mark.parametrize("mode", ["hybrid", "text"])
def test_any_text_may_be_asked(store, text, mode):
    memorize(store, "/a", A)
    (hits,) = store.search(unit(0, 1), [text], 2, mode)
    assert len(hits) == (2 if mode == "hybrid" else 0)


def test_wrong_searches_are_named(store):
    memorize(store, "/a", A)
    query = unit(0, 1)
    for words, arguments in {
        "sparse": (query, [""], 1, "sparse"),
        "k = 0": (query, [""], 0),
        "2 texts": (query, ["", ""], 1),
        "length one": (query * 2, [""], 1),
        "finite": (query * np.nan, [""], 1),
        "numbers": (query[:, :3], [""], 1),
    }.items():
        with pytest.raises(StoreError, match=words):
            store.search(*arguments)
    assert store.search(query[:0], [], 3) == []


def test_a_large_store_searches_its_index_and_finds_the_same(path):
    texts = [f"text {number}" for number in range(300)]
    with new_store(path) as store:
        memorize(store, "/a", texts)
        wanted = store.search(unit(1, 20), ["text 7"] * 20, 5)
    assert not (path / "vectors.usearch").exists()
    with MemoryStore.open(path, write=True, **LARGE) as store:
        store.maintain()
        written = (path / "vectors.usearch").stat().st_mtime_ns
        found = store.search(unit(1, 20), ["text 7"] * 20, 5)
    assert (path / "vectors.usearch").stat().st_mtime_ns == written
    shared = [len({*a} & {*b}) for a, b in zip(wanted, found, strict=True)]
    assert np.mean(shared) > 4.5  # threads build another graph each time; random is its worst case
    with MemoryStore.open(path, write=True):
        pass  # small again
    assert not (path / "vectors.usearch").exists()


def test_documents_are_found_by_id_path_and_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / name) for name in ("n/a", "n/b", "n.txt", "n/sub/c", "7")]
    ids = [memorize(store, path, [path]) for path in paths]

    def found(*names):
        return [document.path for document in store.find_documents(names)]

    assert found(ids[1]) == found(str(ids[1])) == found(paths[1]) == found("n/b") == [paths[1]]
    assert found("n") == found(f"{tmp_path}/n/") == [paths[0], paths[1], paths[3]]
    assert found("n", "n/a", "7") == [paths[0], paths[1], paths[3], paths[4]]
    for nothing in ("m", "n/aa", "99", "", "%", "n.tx"):
        with pytest.raises(StoreError, match="no document"):
            found(nothing)


# several at a time


def test_a_second_writer_is_told_who_writes(path, store):
    with pytest.raises(StoreError, match=rf"another process \({os.getpid()}\) is writing"):
        MemoryStore.open(path, write=True, wait=0.1)
    store.close()
    MemoryStore.open(path, write=True, wait=0).close()


def test_a_second_writer_waits_for_the_first(path, store):
    closing = threading.Event()

    def close():
        closing.set()
        store.close()

    threading.Timer(0.3, close).start()
    with MemoryStore.open(path, write=True, wait=60):
        assert closing.is_set()


def test_a_reader_cannot_change_anything(path, store):
    document = memorize(store, "/a", A)
    with MemoryStore.open(path) as reader:
        for change in (
            lambda: reader.begin("/b", "h", 1, size=1),
            lambda: reader.add(references(document, B)),
            lambda: reader.write({0: memory("x")}),
            lambda: reader.forget([document]),
            lambda: reader.maintain(),
        ):
            with pytest.raises(StoreError, match="reading only"):
                change()
        assert everything(reader) == expected({"/a": A})


@pytest.mark.parametrize("options", [{}, LARGE])
def test_a_reader_notices_what_is_added_replaced_and_forgotten(path, options):
    with new_store(path, **options) as store, MemoryStore.open(path, **options) as reader:
        assert everything(reader) == {}
        document = memorize(store, "/a", A)
        assert everything(reader) == expected({"/a": A})
        store.maintain()
        assert everything(reader) == expected({"/a": A})
        memorize(store, "/a", B)
        assert everything(reader) == expected({"/a": B})
        memorize(store, "/c", A)
        store.forget([store.find_documents(["/a"])[0].id])
        assert everything(reader) == expected({"/c": A})
        assert document


def write_versions(path, versions):
    with MemoryStore.open(path, write=True, **LARGE) as store:
        for version in range(versions):
            memorize(store, "/a", [f"version {version} part {part}" for part in range(4)])
            if version % 4 == 0:
                store.maintain()


def test_a_reader_sees_whole_versions_while_another_process_writes(path):
    new_store(path, **LARGE).close()
    writer = multiprocessing.get_context("spawn").Process(target=write_versions, args=(path, 25))
    writer.start()
    seen, gone = set(), 0
    with MemoryStore.open(path, **LARGE) as reader:
        while True:
            last = not writer.is_alive()
            for mode in ("dense", "text"):
                (hits,) = reader.search(unit(0, 1), ["version part"], 9, mode)
                texts = sorted(hit.text for hit in hits)
                versions = {text.split()[1] for text in texts}
                assert len(versions) <= 1
                assert texts == [f"version {v} part {p}" for v in versions for p in range(4)]
                seen |= versions
            try:
                records = reader.read([hit.slot for hit in hits])
                assert [bytes(record) for record in records] == [memory(hit.text) for hit in hits]
            except StoreError as error:
                assert "forgotten or replaced" in str(error)
                gone += 1
            if last:
                break
    writer.join()
    assert writer.exitcode == 0
    assert "24" in seen
    assert len(seen) > 2


def test_threads_may_search_while_one_adds(store):
    memorize(store, "/a", A)
    failures = []

    def ask():
        try:
            for _ in range(20):
                assert search(store, A[0], 1) == [A[0]]
                assert len(store.read([0, 1, 2])) == 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        memorize(store, f"/{number}", [f"other {number}"])
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.status()["documents"] == 21


def test_closing_twice_is_no_harm(path):
    store = new_store(path)
    store.close()
    store.close()
