"""The orchestrator with tiny models: the same answers cold and warm, and memories kept apart."""

import json
import shutil
import sqlite3
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_adapter, save_encoder, save_model

from m3mlx import Assistant, MemoryStore
from m3mlx.chat.chat import collect
from m3mlx.cli import main
from m3mlx.config import NOTHING_FITS, MemoryConfig, Options
from m3mlx.errors import FingerprintError, M3Error, ModelError, StoreError
from m3mlx.memorize.run import BATCH
from m3mlx.models import decoder as models
from m3mlx.store import Filter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    save_model(world / "decoder")
    save_model(world / "other", seed=1)
    save_encoder(world / "encoder")
    save_encoder(world / "another encoder", seed=5)
    notes = world / "notes"
    notes.mkdir()
    (notes / "boiler.md").write_text("# Boiler\n\nThe boiler was serviced by Ada Quill in May.\n")
    (notes / "boat.txt").write_text("The blue boat lies at pier nine.\n\n" * 12)
    return world


@pytest.fixture
def make(world, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(world / "home"))  # one calibration serves all

    def make(model="decoder", store="store", **options):
        options = {"encoder": str(world / "encoder"), "tokens_per_head": 4, **options}
        model = model and str(world / model)
        return Assistant(model, tmp_path / store, **options)

    return make


def tokens(steps):
    return [(step.token, step.span, [hit.slot for hit in step.sources]) for step in steps]


@pytest.mark.parametrize("query", ["chunk", "message"])
@pytest.mark.parametrize("memory", ["explicit", "text"])
def test_what_fits_badly_is_not_read_however_it_is_searched(
    make, world, monkeypatch, memory, query
):
    with make() as assistant:
        assistant.memorize([world / "notes"], cold=True)
        asked = {"memory": memory, "query": query, "max_tokens": 2}
        assert assistant.ask("Where is the boat?", **asked).sources
        monkeypatch.setattr(Assistant, "floor", 9.0)
        answer = assistant.ask("Where is the boat?", **asked)
        assert (answer.sources, answer.note) == ([], NOTHING_FITS)


def test_cold_and_warm_memories_give_the_same_tokens(make, world):
    with make(store="warm") as warm, make(store="cold") as cold:
        warm.memorize([world / "notes"])
        cold.memorize([world / "notes"], cold=True)
        assert cold.status()["cold"] == cold.status()["references"] > 0
        for assistant in (warm, cold):  # an answer that no end of turn cuts short
            assistant.decoder.tokenizer._eos_token_ids = set()
        question = "Who serviced the boiler, and where is the boat?"
        answers = [
            tokens(assistant.chat().send(question, max_tokens=140)) for assistant in (warm, cold)
        ]
        assert answers[0] == answers[1]
        assert {span for _, span, _ in answers[0]} == {0, 1, 2}
        assert cold.status()["cold"] < cold.status()["references"]
        assert tokens(cold.chat().send(question, max_tokens=140)) == answers[0]


def test_a_chunk_reads_what_recall_shows(make, world):
    with make() as assistant:
        assistant.memorize([world / "notes"])
        answer = assistant.ask("Where is the boat?", max_tokens=5)
        hits = assistant.recall("Where is the boat?")
        assert [source.start for source in answer.sources] == [hit.start for hit in hits]
        assert answer.timings.retrievals == 1


def test_text_mode_pastes_what_explicit_mode_reads(make, world):
    with make() as assistant:
        assistant.memorize([world / "notes"])
        explicit = assistant.ask("Where is the boat?", max_tokens=3)
        text = assistant.ask("Where is the boat?", memory="text", max_tokens=3)
        off = assistant.ask("Where is the boat?", memory="off", max_tokens=3)
        assert [s.text for s in text.sources] == [s.text for s in explicit.sources]
        pasted = sum(len(assistant.decoder.template.encode(s.text)) for s in text.sources)
        assert text.timings.prompt_tokens > pasted > 0
        assert off.timings.prompt_tokens == explicit.timings.prompt_tokens
        assert off.sources == [] and off.timings.retrievals == 0
        assert text.timings.retrieve_seconds > 0


def test_without_memory_neither_store_nor_calibration_is_needed(make):
    with make(tokens_per_head=None) as assistant:
        assert assistant.ask("Hello?", memory="off", max_tokens=3).sources == []
        with pytest.raises(StoreError, match="m3mlx memorize"):
            assistant.ask("Hello?", max_tokens=3)


def test_changes_to_the_store_are_seen_by_an_open_conversation(make, world, tmp_path):
    note = tmp_path / "new.txt"
    note.write_text("A kite hangs in the pear tree.")
    with make() as assistant:
        assistant.memorize([world / "notes"])
        chat = assistant.chat()
        list(chat.send("Where is the kite?", max_tokens=2))
        assistant.memorize([note])
        steps = list(chat.send("Where is the kite?", max_tokens=2))
        assert str(note) in {hit.path for hit in steps[-1].sources}
        assistant.forget([str(note)])
        steps = list(chat.send("Where is the kite?", max_tokens=2))
        assert str(note) not in {hit.path for hit in steps[-1].sources}


def test_messages_grow_as_the_answer_does(make):
    with make() as assistant:
        chat = assistant.chat(memory="off")
        stream = chat.send("Hello?", max_tokens=50)
        text = next(stream).text + next(stream).text
        stream.close()
        assert chat.messages == [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": text},
        ]
        answer = collect(chat.send("Go on.", max_tokens=4), "off")
        assert chat.messages[-1]["content"] == answer.text
        chat.reset()
        assert chat.messages == []


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model": "other"}, "weights"),
        ({"selection": "attention"}, "selection"),
        ({"budget": "uniform"}, "budget"),
        ({"codec": "k4v4"}, "key_bits"),
        ({"tokens_per_head": 8}, "tokens_per_head"),
    ],
)
def test_memories_of_other_models_or_settings_are_refused(make, world, changes, field):
    with make() as assistant:
        assistant.memorize([world / "notes"])
    with make(**changes) as assistant:
        for use in (
            lambda: assistant.ask("Where?", max_tokens=1),
            lambda: assistant.memorize([world / "notes"]),
        ):
            with pytest.raises(FingerprintError, match=field):
                use()


def test_settings_not_given_are_those_of_the_store(make, world):
    with make(selection="attention", budget="uniform", codec="k4v16") as assistant:
        assistant.memorize([world / "notes"])
        config = assistant.format.config
    with make(tokens_per_head=None) as assistant:
        assistant.ask("Where?", max_tokens=1)
        assert assistant.format.config == config


def test_an_interrupted_run_continues_where_it_stopped(make, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {i} tells of thing number {i * 7}.\n\n" for i in range(200)))
    with make() as assistant:
        whole = assistant.memorize([book], cold=True)
    assert whole.references > 3 * BATCH

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what.startswith("memorizing") and done > total / 2:
            raise Stop

    with make(store="part", progress=stop) as assistant, pytest.raises(Stop):
        assistant.memorize([book], cold=True)
    with make(store="part") as assistant:
        assert not assistant.documents()[0].complete
        rest = assistant.memorize([book], cold=True)
        assert 0 < rest.references < whole.references / 2 + BATCH
        (document,) = assistant.documents()
        assert document.complete and document.references == whole.references
        assert assistant.memorize([book], cold=True).unchanged == [str(book)]


def test_wrong_arguments_are_named(make):
    with make() as assistant:
        with pytest.raises(M3Error, match="explicit, text, off"):
            assistant.chat(memory="on")
        with pytest.raises(M3Error, match="empty"):
            assistant.ask("  \n")


def test_sampled_answers_repeat_with_their_seed(make):
    with make() as assistant:
        options = {"memory": "off", "max_tokens": 12, "temp": 1.5}
        first = assistant.ask("Hello?", seed=3, **options).text
        assert assistant.ask("Hello?", seed=3, **options).text == first
        assert assistant.ask("Hello?", seed=4, **options).text != first


def test_a_store_can_be_read_without_any_model(make, world, tmp_path):
    with make() as assistant:
        assistant.memorize([world / "notes"])
    with MemoryStore.open(tmp_path / "store") as store:
        assert len(store.documents()) == 2
        hits = store.search(np.eye(1, store.dimensions), ["boiler"], 1, "text")[0]
        assert "Ada Quill" in hits[0].text


def test_the_adapter_that_comes_along_is_part_of_what_a_memory_depends_on(
    world, tmp_path, monkeypatch
):
    """A store of the plain model is refused by name, and opens with "none"."""
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))
    model = tmp_path / "home" / "cache" / "models" / models.DEFAULT_DECODER
    shutil.copytree(world / "decoder", model)  # stands in for the default model
    adapter = tmp_path / "adapters" / models.DEFAULT_DECODER
    save_adapter(adapter)

    def default(store, adapter_path=None):
        return Assistant(
            store=tmp_path / store,
            encoder=str(world / "encoder"),
            adapter_path=adapter_path,
            budget="uniform",
            tokens_per_head=4,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "ADAPTERS", adapter.parent)
        with default("plain", "none") as plain, default("adapted") as adapted:
            assert not plain.decoder.adapter and adapted.decoder.adapter
            assert plain.decoder.weights == adapted.decoder.weights
            plain.memorize([world / "notes"])
            adapted.memorize([world / "notes"])
        with default("plain", str(adapter)) as other, pytest.raises(FingerprintError) as refused:
            other.check()
        for words in ("another adapter (none instead", "--adapter-path none", "--rebuild"):
            assert words in str(refused.value)
        for asked in ("none", None):  # a store knows what it was made with
            with default("plain", asked) as plain:
                plain.check()
                assert not plain.decoder.adapter
        with default("adapted", "none") as other, pytest.raises(FingerprintError) as refused:
            other.check()
        assert "another adapter" in str(refused.value)
        assert "--adapter-path none" not in str(refused.value)
        with default("adapted") as adapted, default("adapted", str(adapter)) as named:
            adapted.check()
            named.check()


def test_a_document_need_not_be_a_file(make, world):
    with make() as assistant:
        done = assistant.memorize(contents={"text:kite": b"A kite hangs in the pear tree."})
        assert done.added == ["text:kite"] and done.references == 1
        assert (
            assistant.memorize(contents={"text:kite": b"A kite hangs in the pear tree."}).added
            == []
        )
        assert assistant.memorize(contents={"text:kite": b"It is gone."}).changed == ["text:kite"]
        assert [hit.text for hit in assistant.recall("kite")] == ["It is gone."]
        bad = assistant.memorize(contents={"x.pdf": b"%PDF-1.7 broken", "y.txt": b""})
        assert {error.path for error in bad.failed} == {"x.pdf", "y.txt"}
        assert assistant.memorize([world / "notes"], prune=True).vanished == []
        assistant.forget(["text:kite"])
        assert "text:kite" not in {document.path for document in assistant.documents()}


def test_a_conversation_resumes_from_its_messages_alone(make):
    with make(tokens_per_head=None) as assistant:
        chat = assistant.chat(memory="off", system="Be brief.")
        first = collect(chat.send("Hello?", max_tokens=6), "off")
        second = collect(chat.send("Again?", max_tokens=6), "off")
        resumed = assistant.chat(memory="off", system="Be brief.")
        resumed.messages += chat.messages[:2]
        other = collect(resumed.send("Again?", max_tokens=6), "off")
        assert other.timings.prompt_tokens > second.timings.prompt_tokens
        assert resumed.messages == [
            *chat.messages[:3],
            {"role": "assistant", "content": other.text},
        ]
        turn = assistant.decoder.template.resume(chat.messages[:2], "Again?", system="Be brief.")
        words = assistant.decoder.template.decode(turn.tokens[slice(*turn.words)])
        assert words == "Again?" and first.text


@pytest.mark.parametrize("memory", ["off", "text"])
def test_a_store_of_another_model_answers_without_memories(make, world, memory, tmp_path):
    with make() as assistant:
        assistant.memorize([world / "notes"])
    with make("other", tokens_per_head=None) as other:
        with pytest.raises(FingerprintError, match="weights"):
            other.ask("Where is the boat?", max_tokens=2)
        answer = other.ask("Where is the boat?", memory=memory, max_tokens=3)
        assert answer.text and bool(answer.sources) == (memory == "text")
        steps = list(other.chat(memory=memory).send("Where is the boat?", max_tokens=3))
        assert "".join(step.text for step in steps) == answer.text
    command = ["ask", "Where is the boat?", "--memory", memory, "--max-tokens", "3", "--json"]
    for name, folder in (("store", tmp_path), ("model", world), ("encoder", world)):
        command += [f"--{name}", str(folder / {"model": "other"}.get(name, name))]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["answer"] == answer.text
    assert [source["text"] for source in shown["sources"]] == [s.text for s in answer.sources]
    refused = CliRunner().invoke(main, [*command[:2], *command[4:]])
    assert refused.exit_code == 1 and "another weights" in refused.stderr


def test_text_mode_checks_the_encoder_and_off_checks_nothing(make, world):
    with make() as assistant:
        assistant.memorize([world / "notes"])
    with make(encoder=str(world / "another encoder")) as assistant:
        with pytest.raises(FingerprintError, match="another encoder"):
            assistant.ask("Where?", memory="text", max_tokens=2)
        assert assistant.ask("Where?", memory="off", max_tokens=2).sources == []


def test_a_chat_whose_memory_mode_changes_starts_again_from_its_messages(make, world):
    questions = ("Where is the boat?", "Who serviced the boiler?", "Where was it?", "And then?")
    with make() as assistant:
        assistant.memorize([world / "notes"])
        chat = assistant.chat(memory="off")

        def ask(chat, question):
            answer = collect(chat.send(question, max_tokens=4), chat.memory)
            return answer, answer.timings.prompt_tokens

        _, first = ask(chat, questions[0])
        off = chat._conversation
        assert not chat.attached
        chat.memory = "explicit"
        answer, second = ask(chat, questions[1])
        explicit = chat._conversation
        assert explicit is not off and explicit.caches is not off.caches
        assert answer.sources and len(chat.attached) == assistant.memories
        assert second > first + len(questions[1])  # the first turn was fed again
        resumed = assistant.chat()
        resumed.messages += chat.messages[:2]
        same, tokens = ask(resumed, questions[1])
        assert (same.text, same.sources, tokens) == (answer.text, answer.sources, second)
        _, third = ask(chat, questions[2])
        assert chat._conversation is explicit and third < second  # only the new turn was fed
        chat.memory = "text"
        answer, _ = ask(chat, questions[3])
        assert answer.sources and chat.attached == [] and chat._conversation is not explicit
        assert [message["content"] for message in chat.messages[::2]] == list(questions)


def test_options_are_frozen_and_make_the_same_assistant(world, tmp_path):
    settings = {
        "encoder": "e",
        "adapter_path": "none",
        "selection": "attention",
        "budget": "uniform",
        "tokens_per_head": 8,
        "codec": "k4v16",
        "memories": 3,
        "kv_bits": 8,
        "retrieval": "dense",
        "also": [str(tmp_path / "other")],
        "encrypt": True,
    }
    assistant = Assistant("model", tmp_path / "store", **settings)
    options = assistant.options
    assert options == Options("model", tmp_path / "store", **settings)
    assert {"model", "store", *settings} == vars(options).keys()
    assert options.also == (tmp_path / "other",)
    for name in vars(options):
        with pytest.raises(FrozenInstanceError):
            setattr(options, name, None)
    again = Assistant.of(options)
    assert again.options == options and again.store_path == assistant.store_path
    assert Assistant.of(Options()).options == Assistant().options
    with pytest.raises(TypeError, match="tokens"):
        Assistant(tokens=3)


def test_a_filter_applies_to_one_call_only(make, world):
    question = "Where is the boat?"
    only, both = Filter(paths=(str(world / "notes" / "boiler.md"),)), {"boat.txt", "boiler.md"}

    def names(found):
        return {Path(hit.path).name for hit in found}

    with make() as assistant:
        assistant.memorize([world / "notes"])
        for use in (
            lambda **given: assistant.search([question], 5, **given)[0],
            lambda **given: assistant.recall(question, **given),
            lambda **given: assistant.ask(question, max_tokens=2, **given).sources,
            lambda **given: assistant.ask(question, memory="text", max_tokens=2, **given).sources,
            lambda **given: list(assistant.chat(**given).send(question, max_tokens=2))[-1].sources,
        ):
            assert names(use(only=only)) == {"boiler.md"}
            assert names(use()) == both
        chat = assistant.chat(only=only)
        assert names(list(chat.send(question, max_tokens=2))[-1].sources) == {"boiler.md"}
        assert names(assistant.recall(question)) == both
        chat.only = None
        assert names(list(chat.send(question, max_tokens=2))[-1].sources) == both


def test_a_store_of_version_0_1_keeps_its_key_scale(make, world, monkeypatch):
    with make() as assistant:
        config = replace(assistant.format.config, key_scale=1.3)
    old = config.to_json()
    old["sharpness"] = old.pop("key_scale")
    with monkeypatch.context() as patch, make(config=config) as assistant:
        patch.setattr(MemoryConfig, "to_json", lambda config: old)
        assistant.memorize([world / "notes"])
    with make() as assistant:
        assert assistant.status()["memory"] == json.loads(json.dumps(old))
        assert assistant.format.config == config
        assert assistant.format.layout.key_scale == 1.3
        assert assistant.ask("Where is the boat?", max_tokens=2).sources


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model that knows 300 positions."""
    return save_model(tmp_path_factory.mktemp("short"), max_position_embeddings=300)


@pytest.mark.parametrize("memory", ["off", "text", "explicit"])
def test_a_question_longer_than_the_context_is_refused(make, world, short, memory):
    with make(model=short) as assistant:
        assistant.memorize(contents={"text:kite": b"A kite."})
        with pytest.raises(M3Error, match=r"question has \d+ tokens.*context of .* is 300"):
            assistant.ask("x" * 400, memory=memory)
        assert assistant.decoder.context_tokens == 300


def test_an_answer_ends_where_the_context_does(make, short):
    with make(model=short) as assistant:
        assistant.decoder.tokenizer._eos_token_ids = set()
        steps = list(assistant.chat(memory="off").send("x" * 200, max_tokens=256))
        position = len(assistant.decoder.template.prefix) + steps[-1].prompt_tokens
        assert position + steps[-1].timings.generated_tokens == 300
        assert steps[-1].finish_reason == "length"


def test_the_oldest_messages_are_left_out_and_counted(make, short):
    with make(model=short) as assistant:
        assistant.decoder.tokenizer._eos_token_ids = set()
        chat, read = assistant.chat(memory="off"), []
        for number in range(8):
            *_, last = chat.send(f"{number} " + "x" * 40, max_tokens=20)
            read.append(last.prompt_tokens)
        assert 0 < chat.left_out < len(chat.messages) == 16 and chat.left_out % 2 == 0
        kept = assistant.chat(memory="off")
        kept.messages += chat.messages[chat.left_out : -2]
        collect(kept.send("7 " + "x" * 40, max_tokens=20), "off")
        assert max(read) < 150 + 60  # what is read anew is at most half of the context
        chat.reset()
        assert chat.left_out == 0


def test_a_store_is_opened_with_the_model_that_it_was_made_with(make, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    with Assistant("other", tmp_path / "store", encoder="encoder", tokens_per_head=4) as first:
        first.memorize([world / "notes"])
        wanted = first.ask("Where is the boat?", max_tokens=6).text
    monkeypatch.chdir(tmp_path)  # a relative folder is found from anywhere
    with Assistant(store=tmp_path / "store", encoder=str(world / "encoder")) as again:
        assert again.ask("Where is the boat?", max_tokens=6).text == wanted
        assert again.decoder.path == world / "other"
        for memory in ("off", "text"):
            assert again.ask("Where?", memory=memory, max_tokens=1).memory == memory
        assert again.memorize([world / "notes"]).unchanged
    names = r"another weights \(.+ instead of .*decoder\)"
    with make(model="decoder") as named, pytest.raises(FingerprintError, match=names):
        named.check()


def test_where_the_model_of_a_store_is_gone_the_way_out_is_told(make, world, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(world / "other", gone)
    with make(model=str(gone)) as first:
        first.memorize([world / "notes"])
    shutil.rmtree(gone)
    with make(model=None) as again:
        assert len(again.documents()) == 2 and again.recall("boat")
        with pytest.raises(ModelError) as refused:
            again.ask("Where?")
    for words in (str(gone), "not on this machine", "--rebuild", str(tmp_path / "store")):
        assert words in str(refused.value)


def test_a_foreign_store_has_no_model_fetched_unasked(make, world, tmp_path, monkeypatch):
    with make(model="other") as first:
        first.memorize([world / "notes"])
    with sqlite3.connect(tmp_path / "store" / "catalog.sqlite") as db:
        made = json.loads(db.execute("SELECT fingerprint FROM edition").fetchone()[0])
        changed = json.dumps({**made, "model": "somebody/evil-4bit"}, sort_keys=True)
        db.execute("UPDATE edition SET fingerprint = ?", [changed])
    monkeypatch.setattr(models, "hub_folder", lambda name: pytest.fail("fetched"))
    with make(model=None) as again, pytest.raises(ModelError, match="--model somebody/evil-4bit"):
        again.ask("Where?", memory="off")


def test_the_model_of_an_encrypted_store_is_known_without_its_passphrase(make, world):
    options = {"encrypt": True, "passphrase": lambda: "nine brass buttons"}
    with make(model="other", **options) as first:
        first.memorize([world / "notes"])
    with make(model=None, passphrase=lambda: pytest.fail("asked")) as again:
        assert again.ask("Where?", memory="off", max_tokens=1).sources == []
        assert again.decoder.path == world / "other"
