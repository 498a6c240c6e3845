"""Searches of some documents only: right for every size of store and index, plain or encrypted."""

import json
import os
import sqlite3

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import LARGE, A, B, in_bytes, memorize, new_store, unit, vector

from m3mlx.cli import main
from m3mlx.errors import StoreError
from m3mlx.store import Filter, MemoryStore

MADE = {"encrypt": True, "passphrase": lambda: "nine buttons"}


@pytest.fixture(params=["plain", "encrypted"])
def store(request, tmp_path):
    with new_store(tmp_path / "store", **(MADE if request.param == "encrypted" else {})) as store:
        memorize(store, "/home/notes/a.md", A)
        memorize(store, "/home/notes/deep/b.PDF", B)
        memorize(store, "/home/mail/a.txt", ["apples arrived by mail"])
        yield store


def found(store, text, k=5, mode="hybrid", **wish):
    (hits,) = store.search(vector(text)[None], [text], k, mode, Filter(**wish))
    return {hit.path.removeprefix("/home/") for hit in hits}


CASES = [
    ({}, {"notes/a.md", "notes/deep/b.PDF", "mail/a.txt"}),
    ({"paths": ("/home/notes",)}, {"notes/a.md", "notes/deep/b.PDF"}),
    ({"paths": ("/home/notes/",)}, {"notes/a.md", "notes/deep/b.PDF"}),
    ({"paths": ("/home/not",)}, set()),
    ({"paths": ("/home/notes/*",)}, {"notes/a.md", "notes/deep/b.PDF"}),
    ({"paths": ("a.*",)}, {"notes/a.md", "mail/a.txt"}),
    ({"paths": ("/home/mail", "*.PDF")}, {"mail/a.txt", "notes/deep/b.PDF"}),
    ({"paths": ("/home/notes/deep/[ab].PDF",)}, {"notes/deep/b.PDF"}),
    ({"types": ("pdf",)}, {"notes/deep/b.PDF"}),
    ({"types": (".md", "txt")}, {"notes/a.md", "mail/a.txt"}),
    ({"since": "2000-01-01"}, {"notes/a.md", "notes/deep/b.PDF", "mail/a.txt"}),
    ({"since": "2999-01-01"}, set()),
    ({"paths": ("/home/notes",), "types": ("txt",)}, set()),
    ({"collection": "garden"}, set()),
]


def test_signs_of_patterns_in_names_and_accents_in_two_spellings_match():
    path = "/home/notes [2026]/Caf\u00e9.md"
    for wish in ("/home/notes [2026]", path, "/home/notes [2026]/Cafe\u0301.md", "Caf?.md"):
        assert Filter(paths=(wish,)).matches(path, "", ""), wish
        assert Filter(paths=(wish,)).matches(path.replace("\u00e9", "e\u0301"), "", ""), wish


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_only_what_the_filter_lets_through_is_found(store, mode):
    for wish, paths in CASES:
        assert found(store, "apples grow on trees", k=9, mode=mode, **wish) == paths, wish


def test_words_are_searched_inside_the_filter_too(store):
    wish = {"mode": "text", "k": 1}
    assert found(store, "apples", paths=("/home/mail",), **wish) == {"mail/a.txt"}
    assert found(store, "apples", paths=("/home/notes",), **wish) == {"notes/a.md"}
    assert found(store, "boats", paths=("/home/mail",), **wish) == set()


def test_collections(store):
    ids = {document.path: document.id for document in store.documents()}
    store.collect([ids["/home/notes/a.md"], ids["/home/mail/a.txt"]], "garden tools")
    assert found(store, "apples", collection="garden tools") == {"notes/a.md", "mail/a.txt"}
    assert found(store, "apples", collection="") == {"notes/deep/b.PDF"}
    store.collect([ids["/home/mail/a.txt"]], "post")
    assert found(store, "apples", collection="garden tools") == {"notes/a.md"}
    memorize(store, "/home/mail/a.txt", ["apples arrived again"])  # what replaces it stays in it
    assert found(store, "apples", collection="post") == {"mail/a.txt"}
    assert {d.path: d.collection for d in store.documents()}["/home/notes/a.md"] == "garden tools"
    assert bool(in_bytes(store.path, b"garden tools")) is not store.encrypted
    store.rename({ids["/home/notes/a.md"]: "/home/x.md"})
    assert found(store, "apples", collection="garden tools") == {"x.md"}
    store.collect([ids["/home/notes/a.md"]], "")
    assert found(store, "apples", collection="garden tools") == set()
    store.forget([d.id for d in store.documents()])
    assert found(store, "apples", collection="post") == set()
    for name in ("x" * 101, "a\nb", "\x1b[0m"):
        with pytest.raises(StoreError, match="cannot name a collection"):
            store.collect([], name)


def test_a_repaired_catalog_keeps_its_collections(tmp_path):
    path = tmp_path / "store"
    with new_store(path) as store:
        store.collect([memorize(store, "a", A)], "garden")
    with sqlite3.connect(path / "catalog.sqlite") as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'memory'").fetchone()
    db.close()
    content = bytearray((path / "catalog.sqlite").read_bytes())
    content[(root - 1) * 16384 : root * 16384] = os.urandom(16384)
    (path / "catalog.sqlite").write_bytes(content)
    assert MemoryStore.repair(path).left.sound
    with MemoryStore.open(path) as store:
        assert [d.collection for d in store.documents()] == ["garden"]


@settings(deadline=None, max_examples=25)
@given(
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    k=st.integers(1, 8),
)
def test_an_index_finds_what_comparing_with_all_finds(large, share, seed, k):
    """However few are wanted: the graph is asked for more until there are enough."""
    store, vectors = large
    rng = np.random.default_rng(seed)
    count = int(share * len(vectors))
    wanted = set(rng.choice(len(vectors), count, replace=False).tolist())
    paths = tuple(f"/{number}" for number in wanted) or ("/none",)
    query = unit(seed + 1000, 1)
    (hits,) = store.search(query, ["x"], k, "dense", Filter(paths=paths))
    nearest = sorted(wanted, key=lambda number: -float(vectors[number] @ query[0]))[:k]
    assert [hit.path for hit in hits] == [f"/{number}" for number in nearest]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store with an index file, and some references that this lacks."""
    path = tmp_path_factory.mktemp("large") / "store"
    vectors = []
    with new_store(path, **LARGE) as store:
        for number in range(120):
            memorize(store, f"/{number}", [f"text {number}"], cold=True)
            vectors.append(vector(f"text {number}"))
    store = MemoryStore.open(path, write=True, **{"exact": 25})
    store.maintain()
    for number in range(120, 125):
        memorize(store, f"/{number}", [f"text {number}"], cold=True)
        vectors.append(vector(f"text {number}"))
    assert (path / "vectors.usearch").exists()
    yield store, vectors
    store.close()


def test_the_options_of_the_commands(tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "decoder")
    tiny.save_encoder(tmp_path / "encoder")
    for name in ("garden/pears.md", "garden/old.txt", "mail/pears.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"The pears of {name} are ripe.")
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M3MLX_MODEL", str(tmp_path / "decoder"))
    monkeypatch.setenv("M3MLX_STORE", str(tmp_path / "store"))

    def run(*words, input=None):
        words = [*map(str, words), "--encoder", str(tmp_path / "encoder")]
        result = CliRunner().invoke(main, words, input=input)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    made = ["--tokens-per-head", 4, "--budget", "uniform"]
    run("memorize", tmp_path / "garden", tmp_path / "mail", *made)
    run("memorize", tmp_path / "garden", "--collection", "garden")  # what is known moves too

    def recalled(*words):
        hits = json.loads(run("recall", "pears", "--json", *words))["references"]
        return {os.path.relpath(hit["path"], tmp_path) for hit in hits}

    everything = {"garden/pears.md", "garden/old.txt", "mail/pears.txt"}
    assert recalled() == everything
    assert recalled("--collection", "garden") == {"garden/pears.md", "garden/old.txt"}
    assert recalled("--collection", "garden", "--type", "md") == {"garden/pears.md"}
    assert recalled("--path", tmp_path / "mail") == {"mail/pears.txt"}
    assert recalled("--path", "pears.*", "--type", "txt") == {"mail/pears.txt"}
    assert recalled("--since", "2020-01-01") == everything
    assert recalled("--since", "2999-01-01") == set()
    asked = json.loads(run("ask", "pears?", "--max-tokens", 2, "--type", "md", "--json"))
    assert {source["path"] for source in asked["sources"]} == {str(tmp_path / "garden/pears.md")}
    said = run("chat", "--max-tokens", 2, "--collection", "garden", input="pears?\n/sources\n")
    assert "garden/old.txt" in said and "mail/pears.txt" not in said
    nothing = json.loads(run("ask", "pears?", "--max-tokens", 2, "--collection", "x", "--json"))
    assert nothing["sources"] == []
    with MemoryStore.open(tmp_path / "store") as store:
        assert sorted(d.collection for d in store.documents()) == ["", "garden", "garden"]
