"""Trying another model and going back: memories side by side, made without the files."""

import json
import shutil

import mlx.core as mx
import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m3mlx import Assistant, MemoryStore
from m3mlx.errors import FingerprintError, StoreError
from m3mlx.memorize.editions import LONGEST

QUESTION = "Who serviced the boiler, and where is the boat?"
NOTES = {
    "boiler.md": "# Boiler\n\nThe boiler was serviced by Ada Quill in May.\n",
    "boat.txt": "The blue boat lies at pier nine.\n\n" * 20,
}


def merging_tokenizer(folder, words):
    """The byte tokenizer, with merges that make one token of each of these words."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in tiny.SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    tiny.save_model(world / "bytes")
    tiny.save_model(world / "twin", seed=1)
    tiny.save_model(world / "pairs", vocab_size=400)  # whose tokens are a bit longer
    merging_tokenizer(world / "pairs", ["The", "Ġth", "Ġb"])
    tiny.save_model(world / "words", vocab_size=400)  # whose tokens are a lot longer
    merging_tokenizer(world / "words", ["The", "Ġblue", "Ġboat", "Ġlies", "Ġat", "Ġpier", "Ġnine"])
    tiny.save_encoder(world / "encoder")
    return world


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def make(world, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(world / "home"))  # one calibration serves all

    def make(model, store="store", **options):
        options = {"encoder": str(world / "encoder"), "tokens_per_head": 4, **options}
        options.setdefault("budget", "uniform")  # needs no calibration
        return Assistant(str(world / model), tmp_path / store, **options)

    return make


def answer(assistant):
    given = assistant.ask(QUESTION, max_tokens=8)
    return given.text, [(source.path, source.start, source.text) for source in given.sources]


@pytest.mark.parametrize("other", [pytest.param("twin", marks=pytest.mark.slow), "pairs"])
def test_another_model_and_back_again(make, notes, other):
    with make("bytes") as first:
        first.memorize([notes])
        before = answer(first)
        records = (first.store_path / "memories.kv").read_bytes()
    shutil.rmtree(notes)
    with make(other) as second:
        with pytest.raises(FingerprintError, match=r"weights.*memorize --rebuild"):
            answer(second)
        made = second.rebuild()
        assert (made.references, made.shortened) == (second.status()["references"], 0)
        theirs = answer(second)
        assert sorted(theirs[1]) == sorted(before[1])  # the most used come first
    with make("bytes") as first:
        assert answer(first) == before
        assert (first.store_path / "memories.kv").read_bytes() == records
    with make(other) as second:
        assert answer(second) == theirs
        assert second.rebuild().references == 0


def test_rebuilt_memories_are_those_that_the_files_would_give(make, notes):
    with make("twin", store="direct") as direct:
        direct.memorize([notes])
        wanted = answer(direct)
        records = direct.store().read(direct.store().slots())
    with make("bytes") as first:
        first.memorize([notes])
    with make("twin") as second:
        second.rebuild()
        assert answer(second) == wanted
        store, edition = second.store(), second.edition().id
        assert (store.read(store.slots(), edition=edition) == records).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "k4v4"},
        pytest.param({"selection": "attention"}, marks=pytest.mark.slow),
        pytest.param({"tokens_per_head": 3}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_get_memories_of_their_own_too(make, notes, changes):
    with make("bytes") as first:
        first.memorize([notes])
        before = answer(first)
    with make("bytes", **changes) as second:
        with pytest.raises(FingerprintError, match="memorize --rebuild"):
            second.memorize([notes])
        second.rebuild()
        assert second.memorize([notes]).unchanged
        answer(second)
        assert len(second.status()["editions"]) == 2
    with make("bytes") as first:
        assert answer(first) == before


@pytest.mark.slow
def test_references_longer_than_128_tokens_get_more_positions(make, notes):
    with make("pairs") as first:
        first.memorize([notes])
        before = answer(first)
    with make("bytes") as second:
        assert second.rebuild().shortened == 0
        longest = max(len(r.text) for r in second.store().references(second.store().slots()))
        assert 128 < longest == second.format.config.reference_tokens < LONGEST
        assert second.status()["editions"][1]["fingerprint"]["reference"] == str(longest)
        assert answer(second)[1] == before[1]
    with make("pairs") as first:
        assert first.format.config.reference_tokens == 128
        assert answer(first) == before


@pytest.mark.slow
def test_what_no_memory_can_hold_is_shortened_and_counted(make, notes):
    with make("words") as first:
        first.memorize([notes])
    with make("bytes") as second:
        made = second.rebuild()
        long = [
            r for r in second.store().references(second.store().slots()) if len(r.text) > LONGEST
        ]
        assert made.shortened == len(long) > 0
        assert second.format.config.reference_tokens == LONGEST
        answer(second)


@pytest.mark.slow
def test_documents_that_either_model_adds_are_found_by_both(make, notes):
    with make("bytes") as first:
        first.memorize([notes])
    kite = notes / "kite.txt"
    kite.write_text("A kite hangs in the pear tree.")
    with make("pairs") as second:
        second.rebuild(cold=True)
        assert second.memorize([kite]).references == 1
        assert kite.name in {path.rpartition("/")[2] for path, *_ in answer(second)[1]}
    with make("bytes") as first:
        cold = first.status()["cold"]
        assert cold == 1
        sources = answer(first)[1]
        assert str(kite) in {path for path, *_ in sources}
        assert first.status()["cold"] == 0
        assert first.memorize([notes]).changed == []


@pytest.mark.slow
def test_an_interrupted_rebuild_continues(make, notes, monkeypatch):
    (notes / "book.txt").write_text("".join(f"Line {i} tells of {i * 7}.\n\n" for i in range(300)))
    with make("bytes") as first:
        first.memorize([notes], cold=True)
        total = first.status()["references"]

    class Stop(Exception):
        pass

    def stop(what, done, all_of_them):
        if what.startswith("writing memories:") and done >= 16:
            written.append(done)
            raise Stop

    written = []

    with make("twin", progress=stop) as second, pytest.raises(Stop):
        second.rebuild()
    with make("twin") as second:
        assert second.rebuild().references == total - written[0]
        assert [edition["warm"] for edition in second.status()["editions"]] == [0, total]


def test_hits_are_read_from_the_edition_of_the_present_model_without_a_check(make, notes):
    with make("bytes") as first:
        first.memorize([notes])
    with make("twin") as second:
        second.rebuild()
    with make("twin") as second:
        (hits,) = second.search([QUESTION], 3)
        assert second._editions == {}  # nobody has called check
        memory, store = second.read(hits), second.store()
        slots = [hit.slot for hit in hits]
        of_first, of_second = (
            second.format.read(store.read(slots, edition=edition.id)).keys
            for edition in store.editions()
        )
        assert mx.array_equal(memory.keys, of_second)
        assert not mx.array_equal(memory.keys, of_first)


def test_a_memory_that_was_dropped_since_the_search_is_written_again(make, notes):
    with make("bytes") as assistant:
        assistant.memorize([notes])
        before = answer(assistant)
        hits = assistant.search([QUESTION], 5)[0]
        assert all(hit.warm for hit in hits)
        with MemoryStore.open(assistant.store_path, write=True) as store:
            store.set_bound(1)
            store.set_bound(None)
        assert len(assistant.read(hits)) == len(hits)
        assert answer(assistant) == before


def test_answers_do_not_wait_for_a_writer(make, notes):
    with make("bytes") as assistant:
        assistant.memorize([notes], cold=True)
        with MemoryStore.open(assistant.store_path, write=True):
            cold = answer(assistant)
            assert assistant.status()["cold"] == assistant.status()["references"]
        assert answer(assistant) == cold
        assert assistant.status()["cold"] < assistant.status()["references"]


def test_the_fingerprint_of_the_record_file_is_that_of_the_catalog(make, notes):
    with make("bytes") as assistant:
        assistant.memorize([notes])
        edition = assistant.store().edition
    changed = json.dumps({**edition.fingerprint, "weights": "others"}, sort_keys=True)
    store = MemoryStore.open(assistant.store_path, write=True)
    store._catalog.db.execute("UPDATE edition SET fingerprint = ?", [changed])
    store.close()
    with pytest.raises(StoreError, match="another fingerprint"):
        MemoryStore.open(assistant.store_path)
