"""Several stores as one: ranked as if they were one, each memory from its own, none changed."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from small_store import RECORD_BYTES, A, B, memorize, memory, new_store, unit, vector
from tiny import save_encoder, save_model

from m3mlx import Assistant
from m3mlx.cli import main
from m3mlx.errors import FingerprintError, StoreError
from m3mlx.store import Filter, MemoryStore, Stores

WORDS = [f"the {thing} of {place}" for thing in ("boat", "bell", "loom") for place in "PQRSTU"]


@pytest.fixture
def three(tmp_path):
    """One store of all texts, and the same texts in two stores."""
    parts = {"all": WORDS, "left": WORDS[:11], "right": WORDS[11:]}
    stores = {}
    for name, texts in parts.items():
        stores[name] = new_store(tmp_path / name)
        for text in texts:
            memorize(stores[name], f"/{text}", [text])
    yield stores
    for store in stores.values():
        store.close()


def search(store, text, k=5, mode="hybrid", only=None):
    (hits,) = store.search(vector(text)[None], [text], k, mode, only)
    return hits


@pytest.mark.parametrize("mode", ["hybrid", "dense", "text"])
def test_several_stores_rank_as_one_store_of_all_documents_would(three, mode):
    both = Stores([(three["left"], None), (three["right"], None)])
    for text in WORDS:
        one = [hit.text for hit in search(three["all"], text, 1, mode)]
        assert [hit.text for hit in search(both, text, 1, mode)] == one == [text]
        if mode == "dense":
            wanted = [hit.text for hit in search(three["all"], text, 7, mode)]
            assert [hit.text for hit in search(both, text, 7, mode)] == wanted


def test_a_word_that_only_a_large_store_lacks_does_not_push_out_the_right_one(tmp_path):
    with new_store(tmp_path / "own") as own, new_store(tmp_path / "other") as other:
        memorize(own, "/own", [f"the common words of reference {n}" for n in range(40)])
        memorize(other, "/other", ["the common words of Brackenholt"])
        both = Stores([(own, None), (other, None)])
        (hits,) = both.search(unit(1, 1), ["the words of Brackenholt"], 1, "text")
        assert hits[0].path == "/other" and hits[0].store == str(tmp_path / "other")


def test_memories_come_from_the_store_of_their_reference(tmp_path):
    def make(hits):
        asked.extend(hit.text for hit in hits)
        return {hit: np.frombuffer(memory(hit.text), np.uint8) for hit in hits}

    asked = []
    with new_store(tmp_path / "own") as own, new_store(tmp_path / "other") as other:
        memorize(own, "/own", A)
        memorize(other, "/other", B[:1])
        memorize(other, "/cold", B[1:], cold=True)
        both = Stores([(own, None), (other, None)])
        (hits,) = both.search(unit(0, 1), [""], 9, "dense")
        assert len(set(hits)) == 5 and len({hit.slot for hit in hits}) == 3  # both begin at 0
        both.search(unit(1, 1), ["boats"], 1)  # hits stay valid after another search
        rows = both.read(hits, make)
        assert rows.shape == (5, RECORD_BYTES)
        for hit, row in zip(hits, rows, strict=True):
            assert row.tobytes() == memory(hit.text)
        assert asked == B[1:] and {hit.store for hit in hits} == {None, str(tmp_path / "other")}
        asked.clear()
        with MemoryStore.open(tmp_path / "own") as reader:  # dropped behind a search's back
            both = Stores([(reader, 1), (other, 1)])
            (hits,) = both.search(unit(0, 1), [""], 9, "dense")
            own.set_bound(1)
            rows = both.read(hits, make)
        assert sorted(asked) == sorted([*A, B[1]])
        assert [row.tobytes() for row in rows] == [memory(hit.text) for hit in hits]


def test_filters_apply_to_all(three):
    both = Stores([(three["left"], None), (three["right"], None)])
    only = Filter(paths=("/the boat of P", "/the loom of U"))
    found = {hit.path for hit in search(both, "the bell of Q", 9, only=only)}
    assert found == {"/the boat of P", "/the loom of U"}


# --- the assistant and the commands


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    save_model(world / "decoder")
    save_encoder(world / "encoder")
    save_encoder(world / "another", seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(world / "home"))
        for name, text, options in (
            ("own", "The boiler was serviced by Ada Quill in May.", {}),
            ("boats", "The blue boat lies at pier nine.", {}),
            ("cold", "The kite hangs in the pear tree.", {"cold": True}),
            ("wider", "Nine owls.", {"tokens_per_head": 8}),
            ("encoded", "Ten owls.", {"encoder": str(world / "another")}),
        ):
            cold = options.pop("cold", False)
            with make(world, name, **options) as assistant:
                assistant.memorize(contents={f"text:{name}": text.encode()}, cold=cold)
    return world


@pytest.fixture(autouse=True)
def home(world, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(world / "home"))


def make(world, store, **options):
    made = {"encoder": str(world / "encoder"), "tokens_per_head": 4, "budget": "uniform"}
    return Assistant(str(world / "decoder"), world / store, **{**made, **options})


def bytes_of(store):
    """What is in a store, but for when its memories were used."""
    files = sorted(file for file in store.iterdir() if file.name != "memories.used")
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def test_an_answer_draws_on_attached_stores_as_if_all_were_in_one(world, tmp_path):
    texts = {
        "text:own": b"The boiler was serviced by Ada Quill in May.",
        "text:boats": b"The blue boat lies at pier nine.",
        "text:cold": b"The kite hangs in the pear tree.",
    }
    before = {name: bytes_of(world / name) for name in ("boats", "cold")}
    dense = {"retrieval": "dense"}  # words count a little otherwise in stores of one document
    with make(world, tmp_path / "one", **dense) as one:
        one.memorize(contents=texts)
        wanted = one.ask("Where is the boat?", max_tokens=8)
    with make(world, "own", also=[world / "boats", world / "cold"], **dense) as assistant:
        answer = assistant.ask("Where is the boat?", max_tokens=8)
        assert answer.text == wanted.text
        stores = {source.path: source.store for source in answer.sources}
        assert stores == {
            "text:own": None,
            "text:boats": str(world / "boats"),
            "text:cold": str(world / "cold"),
        }
        text = assistant.ask("Where is the boat?", memory="text", max_tokens=4)
        assert {source.path for source in text.sources} == texts.keys()
        assert [d.path for d in assistant.documents()] == ["text:own"]
        with pytest.raises(StoreError, match="no document text:boats"):
            assistant.forget(["text:boats"])
    assert before == {name: bytes_of(world / name) for name in before}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "60000", "300"])
def test_memories_of_attached_stores_that_no_model_makes_are_written_anew(world, tmp_path, number):
    shutil.copytree(world / "boats", tmp_path / "boats")
    with MemoryStore.open(tmp_path / "boats", write=True) as store:
        (slot,) = store.slots()
        record = store.read([slot])[0]
        record[-2:] = np.frombuffer(np.array([float(number)], "<f2").tobytes(), np.uint8)
        store.write({slot: record.tobytes()})
    before = bytes_of(tmp_path / "boats")
    read = []
    for attached in (world / "boats", tmp_path / "boats"):
        with make(world, "own", also=[attached]) as assistant:
            (hits,) = assistant.search(["boat"], 2)
            assert {hit.path: hit.warm for hit in hits} == {"text:own": True, "text:boats": True}
            memory = assistant.read(sorted(hits, key=lambda hit: hit.path))
            read.append((np.array(memory.keys), np.array(memory.values)))
    for right, found in zip(*read, strict=True):
        np.testing.assert_array_equal(found, right)
    assert bytes_of(tmp_path / "boats") == before


def test_what_does_not_fit_together_is_refused_by_name(world, tmp_path):
    with make(world, "own", also=[world / "wider"]) as assistant:
        assert {hit.path for hit in assistant.recall("owls")} == {"text:own", "text:wider"}
        with pytest.raises(
            FingerprintError, match=r"wider: its memories .*budget.*--store .*wider"
        ):
            assistant.ask("Owls?", max_tokens=2)
    with (
        make(world, "own", also=[world / "encoded"]) as assistant,
        pytest.raises(FingerprintError, match="encoded: its vectors were made with another"),
    ):
        assistant.recall("owls")
    for wrong, words in ((tmp_path / "none", "none: there is no store"), (world / "own", "itself")):
        with make(world, "own", also=[wrong]) as assistant, pytest.raises(StoreError, match=words):
            assistant.recall("owls")


def test_the_commands(world):
    def run(*words, **more):
        made = ["--store", world / "own", "--also", world / "boats", "--encoder", world / "encoder"]
        words = [*words, *made, "--model", world / "decoder"]
        return CliRunner().invoke(main, [*map(str, words)], **more)

    shown = run("recall", "boat")
    assert shown.exit_code == 0 and f"text:boats:1 (in {world / 'boats'})" in shown.stdout
    found = json.loads(run("recall", "boat", "--json").stdout)["references"]
    assert {hit["path"]: hit["store"] for hit in found} == {
        "text:own": None,
        "text:boats": str(world / "boats"),
    }
    asked = json.loads(run("ask", "boat?", "--max-tokens", 2, "--json").stdout)
    assert {source["store"] for source in asked["sources"]} == {None, str(world / "boats")}
    chat = run("chat", "--max-tokens", 2, input="boat?\n/sources\n")
    assert chat.exit_code == 0 and f"(in {world / 'boats'})" in chat.stdout
    missing = run("recall", "boat", "--also", world / "nothing")
    assert missing.exit_code == 1 and "nothing: there is no store" in missing.stderr
