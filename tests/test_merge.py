"""Documents between stores: nothing is lost, nothing is doubled, nothing is overwritten unasked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_store import (
    ABOUT,
    RECORD_BYTES,
    A,
    B,
    everything,
    expected,
    memorize,
    memory,
    new_store,
    references,
    unit,
)

from m3mlx.errors import StoreError
from m3mlx.export.portable import Export
from m3mlx.export.transfer import read_export, write_export
from m3mlx.store import MemoryStore

OTHER = {"fingerprint": {"weights": "other", "codec": "k8v8"}, "memory": {"counts": [[3]]}}


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path / "store") as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        yield store


@pytest.fixture
def file(store, tmp_path):
    """An export of the store."""
    write(store, tmp_path / "file")
    return tmp_path / "file"


def write(store, path, ids=None):
    documents = [d for d in store.documents() if d.complete and (ids is None or d.id in ids)]
    return write_export(store, path, documents, program="test")


def read(store, file, **options):
    with Export(file) as export:
        return read_export(store, export, **options)


def test_a_new_store_gets_everything_bit_for_bit(store, file, tmp_path):
    with new_store(tmp_path / "new") as new:
        done = read(new, file)
        assert done.added == ["/a", "/b"]
        assert (done.references, done.memories) == (5, 5)
        assert everything(new) == everything(store) == expected({"/a": A, "/b": B})
        for old, copy in zip(store.documents(), new.documents(), strict=True):
            for name in ("path", "hash", "size", "references", "warm", "complete", "added"):
                assert getattr(copy, name) == getattr(old, name)
    with MemoryStore.open(tmp_path / "new") as new:
        assert everything(new) == expected({"/a": A, "/b": B})


def test_an_export_of_an_import_is_the_same_file(store, file, tmp_path):
    with new_store(tmp_path / "new") as new:
        read(new, file)
        write(new, tmp_path / "again")

    def sections(path):
        with Export(path) as export:
            return [
                (d, [(r.text, r.tokens, r.vector.tobytes(), r.records) for r in refs])
                for d, refs in export.read()
            ]

    assert sections(file) == sections(tmp_path / "again")


def test_importing_twice_changes_nothing(store, file):
    before = everything(store)
    done = read(store, file)
    assert done.unchanged == ["/a", "/b"] and (done.references, done.memories) == (0, 0)
    assert everything(store) == before
    assert len(store.documents()) == 2


def test_another_content_under_the_same_path_is_kept_unless_it_is_to_be_replaced(file, tmp_path):
    mine = ["my own apples"]
    with new_store(tmp_path / "new") as new:
        memorize(new, "/a", mine)
        done = read(new, file)
        assert (done.added, done.kept, done.replaced) == (["/b"], ["/a"], [])
        assert everything(new) == expected({"/a": mine, "/b": B})
        done = read(new, file, replace=True)
        assert (done.unchanged, done.kept, done.replaced) == (["/b"], [], ["/a"])
        assert everything(new) == expected({"/a": A, "/b": B})


def test_chosen_documents_only(store, tmp_path):
    write(store, tmp_path / "one", [store.find_documents(["/b"])[0].id])
    with new_store(tmp_path / "new") as new:
        read(new, tmp_path / "one")
        assert everything(new) == expected({"/b": B})


def test_cold_references_stay_cold_and_missing_memories_are_filled(store, file, tmp_path):
    with new_store(tmp_path / "new") as new:
        memorize(new, "/a", A, cold=True)
        done = read(new, file)
        assert done.unchanged == ["/a"] and done.memories == 5
        assert everything(new) == expected({"/a": A, "/b": B})
    with new_store(tmp_path / "cold") as cold:
        memorize(cold, "/a", A, cold=True)
        counts = write(cold, tmp_path / "cold.m3")
        assert counts == {"documents": 1, "references": 3, "memories": 0}
    with new_store(tmp_path / "warm") as warm:
        memorize(warm, "/a", A)
        read(warm, tmp_path / "cold.m3")
        assert everything(warm) == expected({"/a": A})


def test_without_memories_on_demand(store, file, tmp_path):
    with new_store(tmp_path / "new") as new:
        assert read(new, file, cold=True).memories == 0
        assert new.status()["cold"] == 5


def test_another_model_gets_text_and_vectors_and_no_memory(store, file, tmp_path):
    with new_store(tmp_path / "new", **OTHER) as new:
        done = read(new, file)
        assert (done.references, done.memories) == (5, 0)
        assert new.status()["cold"] == 5
        found = {path: [text for text, *_ in rows] for path, rows in everything(new).items()}
        assert found == {"/a": A, "/b": B}


def test_the_name_of_the_model_decides_nothing(store, file, tmp_path):
    named = {"fingerprint": {**ABOUT["fingerprint"], "model": "what you like"}}
    with new_store(tmp_path / "new", **named) as new:
        assert read(new, file).memories == 5


def test_the_memories_of_all_editions_travel(store, tmp_path):
    about = {**OTHER, "record_bytes": 50}
    store.add_edition(**about)
    slots = store.slots_of(1)
    store.write({slots[1]: b"x" * 50}, edition=2)
    assert write(store, tmp_path / "both")["memories"] == 6
    with new_store(tmp_path / "new") as new:
        new.add_edition(**about)
        assert read(new, tmp_path / "both").memories == 6
        assert everything(new) == expected({"/a": A, "/b": B})
        warm = [r for r in new.references(new.slots(), edition=2) if r.warm]
        assert [r.text for r in warm] == [A[1]]
        assert bytes(new.read([warm[0].slot], edition=2)[0]) == b"x" * 50
    with new_store(tmp_path / "first", **about) as first:  # only the second of the file
        assert read(first, tmp_path / "both").memories == 1


def test_memories_of_another_length_are_not_taken(store, file, tmp_path):
    with new_store(tmp_path / "new", record_bytes=RECORD_BYTES + 1) as new:
        assert read(new, file).memories == 0
        assert new.status()["cold"] == 5


def test_vectors_of_another_encoder_are_made_anew(store, file, tmp_path):
    made = []

    def encode(texts):
        made.extend(texts)
        return unit(len(made), len(texts))

    with new_store(tmp_path / "new") as new:
        done = read(new, file, encode=encode)
        assert done.embedded and made == [*A, *B]
        vectors = [r.vector for r in new.references(new.slots())]
        np.testing.assert_array_equal(vectors[:3], unit(3, 3))


def test_half_a_document_is_not_exported_and_an_interrupted_import_goes_on(store, tmp_path):
    long = [f"line {number} of the long one" for number in range(40)]
    memorize(store, "/long", long, hash="h")
    half, _ = store.begin("/half", "h", 3, size=1)
    store.add(references(half, A[:2]))
    assert write(store, tmp_path / "file")["documents"] == 3
    with new_store(tmp_path / "new") as new:
        with Export(tmp_path / "file") as export:

            def encode(texts):  # the second batch of the long document fails
                if texts[0].startswith("line 16"):
                    raise KeyboardInterrupt
                return unit(1, len(texts))

            with pytest.raises(KeyboardInterrupt):
                read_export(new, export, encode=encode)
        assert [d.complete for d in new.documents()] == [True, True, False]
        done = read(new, tmp_path / "file")
        assert done.added == ["/long"] and done.references == 24
        assert set(everything(new)) == {"/a", "/b", "/long"}


def test_a_damaged_document_is_named_and_no_file_is_left(store, tmp_path):
    records = tmp_path / "store" / "memories.kv"
    with records.open("r+b") as opened:
        data = opened.read()
        opened.seek(data.index(memory(B[0])[:50]))
        opened.write(b"damage")
    with pytest.raises(StoreError, match="/b"):
        write(store, tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_a_forged_file_changes_nothing(store, file, tmp_path):
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    before = {path: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    with pytest.raises(StoreError, match="damaged or forged"):
        read(store, file)
    assert before == {path: path.read_bytes() for path in (tmp_path / "store").iterdir()}


GROW = """
import sys, time
from threading import Thread
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import numpy as np
from small_store import new_store, unit
from m3mlx.store import NewReference
from m3mlx.export.portable import Export
from m3mlx.export.transfer import read_export, write_export
folder, count, peak = Path(sys.argv[1]), int(sys.argv[2]), 0
def watch():  # pages of a mapped file are the system's to take back, and do not count
    global peak
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in lines if "RssAnon" in line)])
        time.sleep(0.02)
Thread(target=watch, daemon=True).start()
record = bytes(range(256)) * 400
with new_store(folder / "old", record_bytes=len(record)) as store:
    for start in range(0, count, 100):
        id, _ = store.begin(f"/{{start}}", "h", 100, size=1)
        vectors = unit(start, 100)
        store.add([NewReference(id, n, 0, 1, "x" * 500, [1] * 128, None, None, vectors[n], record)
                   for n in range(100)])
    write_export(store, folder / "file", store.documents(), program="test")
with new_store(folder / "new", record_bytes=len(record)) as new, Export(folder / "file") as export:
    assert read_export(new, export).memories == count
print((folder / "file").stat().st_size, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """Twenty times the store, 400 MB of memories, and the process stays as small as it was."""
    root = Path(__file__).parents[1]
    peaks = []
    for count in (200, 4000):
        (tmp_path / str(count)).mkdir()
        program = GROW.format(tests=str(root / "tests"), root=str(root))
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / str(count), str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        bytes, peak = map(int, done.stdout.split())
        peaks.append(peak / 1024)
    assert bytes > 400_000_000
    assert peaks[0] > 0 and peaks[1] - peaks[0] < 40, peaks  # megabytes
