"""Export, import and encryption from end to end, with tiny models."""

import json
import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from m3mlx import Assistant
from m3mlx.cli import main
from m3mlx.errors import FingerprintError, StoreError
from m3mlx.export.container import Container, write
from m3mlx.export.transfer import export_documents, import_documents
from m3mlx.memory.cache import Layout, make_cache
from m3mlx.store import LockedError, MemoryStore, cipher

QUESTION = "Who serviced the boiler, and where is the boat?"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(cipher, "_COST", 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    tiny.save_model(world / "decoder")
    tiny.save_model(world / "other", seed=1)
    tiny.save_encoder(world / "encoder")
    notes = world / "notes"
    notes.mkdir()
    (notes / "boiler.md").write_text("# Boiler\n\nThe boiler was serviced by Ada Quill in May.\n")
    (notes / "boat.txt").write_text("The blue boat lies at pier nine.\n\n" * 12)
    with Assistant(
        str(world / "decoder"), world / "store", encoder=str(world / "encoder"), tokens_per_head=4
    ) as assistant:
        assistant.memorize([notes])
    return world


@pytest.fixture
def make(world, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))

    def make(model="decoder", store="store", **options):
        options = {"encoder": str(world / "encoder"), "tokens_per_head": 4, **options}
        return Assistant(str(world / model), tmp_path / store, **options)

    return make


@pytest.fixture
def file(make, world, tmp_path):
    shutil.copytree(world / "store", tmp_path / "store")
    with make() as assistant:
        export_documents(assistant, tmp_path / "notes.m3")
    return tmp_path / "notes.m3"


def logits(assistant):
    """Of a prompt behind the memories that the question finds, in the order of their texts."""
    assistant.check()
    (hits,) = assistant.search([QUESTION], 5)
    memory = assistant.read(sorted(hits, key=lambda hit: hit.start))
    caches = make_cache(assistant.decoder.model, assistant.format.prefix)
    Layout(assistant.format.config).attach(caches, memory)
    tokens = assistant.decoder.template.turn(QUESTION).tokens
    return np.array(assistant.decoder.model(mx.array([list(tokens)]), cache=caches))


def answer(assistant):
    steps = list(assistant.chat().send(QUESTION, max_tokens=70))
    return [(step.token, [(h.path, h.start, h.distance) for h in step.sources]) for step in steps]


def test_the_same_model_computes_the_same_bits_after_an_import(make, file):
    with make() as first, make(store="copy") as copy:
        done = import_documents(copy, file)
        assert len(done.added) == 2 and done.references == done.memories > 0
        assert copy.status()["cold"] == 0
        assert np.array_equal(logits(first), logits(copy))
        assert answer(first) == answer(copy)
        assert not (first.store_path / "memories.kv").samefile(copy.store_path / "memories.kv")


def test_an_import_into_a_new_store_loads_no_model(make, file):
    with make("nowhere", "copy", encoder="/nowhere") as copy:
        assert import_documents(copy, file).memories > 0


def test_another_model_writes_the_memories_itself(make, file, world, tmp_path):
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("A kite hangs in the pear tree.")
    with make("other", "copy") as other, make("other", "fresh") as fresh:
        other.memorize([elsewhere])
        done = import_documents(other, file)
        assert done.memories == 0 and done.references == other.status()["cold"] > 0
        fresh.memorize([elsewhere])
        fresh.memorize([world / "notes"])
        assert answer(other) == answer(fresh)  # written at their first use, of the stored tokens
        assert other.status()["cold"] < done.references


def test_another_model_on_an_imported_store_is_told_what_to_do(make, file):
    with make("other", "copy") as other:
        import_documents(other, file)
        with pytest.raises(FingerprintError, match="--rebuild"):
            other.ask(QUESTION, max_tokens=2)
        other.rebuild(cold=True)
    with make("other", "copy") as other:
        assert other.ask(QUESTION, max_tokens=2).sources


def test_another_encoder_makes_its_own_vectors(make, file, world, tmp_path):
    encoder = tmp_path / "encoder"
    shutil.copytree(world / "encoder", encoder)
    weights = mx.load(str(encoder / "model.safetensors"))
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name] * -1 + 0.1
    mx.save_safetensors(str(encoder / "model.safetensors"), weights)
    (tmp_path / "mine.txt").write_text("A kite hangs in the pear tree.")
    with make(store="copy", encoder=str(encoder)) as copy:
        copy.memorize([tmp_path / "mine.txt"])
        done = import_documents(copy, file)
        assert done.embedded and done.memories == done.references
        (hit,) = copy.recall("The blue boat lies at pier nine.", 1)
        assert "boat" in hit.text
    with make(store="copy") as wrong, pytest.raises(FingerprintError, match="encoder"):
        wrong.recall("boat")


def test_a_forged_description_of_memories_makes_no_store(make, file, tmp_path):
    with Container(file) as opened:
        about, sections = opened.about, [(n, [opened.open(n).read()]) for n in opened.sections]
    for change in (
        {"memory": {}},
        {"memory": {**about["editions"][0]["memory"], "counts": [[200] * 2] * 4}},
        {"memory": {**about["editions"][0]["memory"], "prefix": [2**40]}},
        {"memory": {**about["editions"][0]["memory"], "more": 1}},
        {"memory": {**about["editions"][0]["memory"], "counts": "many"}},
        {"memory": {**about["editions"][0]["memory"], "counts": []}},
        {"memory": {**about["editions"][0]["memory"], "head_dim": 0}},
        {"fingerprint": {}},
    ):
        forged = {**about, "editions": [{**about["editions"][0], **change}]}
        write(tmp_path / "forged", forged, sections)
        with make(store="copy") as copy, pytest.raises(StoreError, match="forged"):
            import_documents(copy, tmp_path / "forged")
        assert not copy.store_path.exists()
    write(tmp_path / "forged", {**about, "editions": []}, sections[:3])
    with make(store="copy") as copy, pytest.raises(StoreError, match="no model"):
        import_documents(copy, tmp_path / "forged")


def test_forged_tokens_are_not_what_a_memory_is_written_from(make, file, tmp_path):
    with Container(file) as opened:
        about, sections = opened.about, {n: opened.open(n).read() for n in opened.sections}
    lines = [json.loads(line) for line in sections["references"].splitlines()]
    for line in lines:
        line["tokens"] = [2**32 - 1] * 5
    sections["references"] = b"".join(
        json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        for line in lines
    )
    write(tmp_path / "forged", about, [(name, [data]) for name, data in sections.items()])
    with make(store="copy") as copy:
        import_documents(copy, tmp_path / "forged", cold=True)
        copy.ask(QUESTION, max_tokens=2)
        with copy.open_store() as store:
            warm = [r for r in store.references(store.slots()) if r.warm]
            assert warm
            for reference in warm:
                ids = copy.decoder.tokenize(reference.text)[0]
                assert (
                    store.read([reference.slot])[0].tobytes() == copy.format.write([ids]).tobytes()
                )


# the command line


def environment(world, tmp_path, **more):
    return {
        "M3MLX_HOME": str(tmp_path / "home"),
        "M3MLX_MODEL": str(world / "decoder"),
        "M3MLX_STORE": str(tmp_path / "store"),
        **more,
    }


@pytest.fixture
def m3(world, tmp_path, monkeypatch):
    def m3(*args, code=0, **more):
        result = CliRunner().invoke(
            main, [*map(str, args)], env=environment(world, tmp_path, **more)
        )
        assert result.exit_code == code, result.output
        return result

    return m3


@pytest.fixture
def made(world):
    """What was memorized, and how."""
    return [world / "notes", "--encoder", world / "encoder", "--tokens-per-head", "4"]


@pytest.fixture
def memorized(world, tmp_path):
    shutil.copytree(world / "store", tmp_path / "store")


def test_a_signed_file_goes_from_one_store_to_another(m3, memorized, world, tmp_path):
    key, file, copy = tmp_path / "key", tmp_path / "notes.m3", tmp_path / "copy"
    public = m3("keygen", key).stdout.strip()
    assert "Exported 2 documents" in m3("export", file, "--sign", key).stdout
    result = m3("import", file, "--store", copy, "--verify-key", public)
    assert "2 added, 0 replaced, 0 unchanged, 0 kept" in result.stdout and public in result.stdout
    ask = ("ask", QUESTION, "--max-tokens", "5", "--encoder", world / "encoder", "--json")
    one, two = (json.loads(m3(*ask, *flags).stdout) for flags in ([], ["--store", copy]))
    assert (one["answer"], one["sources"]) == (two["answer"], two["sources"])
    assert "2 unchanged" in m3("import", file, "--store", copy).stdout
    done = json.loads(m3("import", file, "--store", copy, "--json").stdout)
    assert (done["added"], len(done["unchanged"]), done["signer"]) == ([], 2, public)

    other = m3("keygen", tmp_path / "other").stdout.strip()
    refused = m3("import", file, "--store", tmp_path / "no", "--verify-key", other, code=1)
    assert "signed by" in refused.stderr and not (tmp_path / "no").exists()
    m3("export", tmp_path / "unsigned.m3")
    refused = m3("import", tmp_path / "unsigned.m3", "--verify-key", public, code=1)
    assert "not signed" in refused.stderr


def test_chosen_documents_are_exported(m3, memorized, tmp_path):
    data = json.loads(m3("export", tmp_path / "one.m3", "1", "--json").stdout)
    assert (data["documents"], data["signer"]) == (1, None)
    assert data["bytes"] == (tmp_path / "one.m3").stat().st_size
    assert "no document 9" in m3("export", tmp_path / "none.m3", "9", code=1).stderr
    assert not (tmp_path / "none.m3").exists()


def test_what_cannot_be_written_or_read_is_one_line(m3, world, tmp_path):
    file = tmp_path / "notes.m3"
    assert "nothing is memorized" in m3("export", file, code=1).stderr
    shutil.copytree(world / "store", tmp_path / "store")
    file.write_text("mine")
    assert "already" in m3("export", file, code=1).stderr
    assert file.read_text() == "mine"
    for args in (
        ("export", tmp_path / "nowhere" / "x"),
        ("export", tmp_path / "x", "--sign", tmp_path / "nowhere"),
        ("export", tmp_path / "x", "--sign", file),
        ("import", file),
        ("import", tmp_path / "nowhere"),
        ("import", tmp_path),
        ("import", file, "--verify-key", "abc"),
        ("keygen", file),
        ("keygen", tmp_path / "nowhere" / "key"),
    ):
        result = m3(*args, code=1)
        assert result.stderr.count("\n") == 1 and "bug" not in result.stderr, result.stderr
    for args in (
        ("export",),
        ("import",),
        ("import", "x", "y"),
        ("keygen",),
        ("import", "x", "--x"),
    ):
        m3(*args, code=2)


def test_a_name_from_a_file_steers_no_terminal(m3, memorized, tmp_path):
    m3("export", tmp_path / "notes.m3")
    with Container(tmp_path / "notes.m3") as opened:
        about, sections = opened.about, {n: opened.open(n).read() for n in opened.sections}
    sections["documents"] = sections["documents"].replace(
        b"boat.txt", "\\u001b]0;gone\\u0007\u202eboat".encode()
    )
    write(tmp_path / "evil.m3", about, [(name, [data]) for name, data in sections.items()])
    copy = ("--store", tmp_path / "copy")
    shown = m3("import", tmp_path / "evil.m3", "-v", *copy).output
    for args in (
        ("list",),
        ("list", "--json"),
        ("export", tmp_path / "again"),
        ("forget", "1", "2"),
    ):
        shown += m3(*args, *copy).output
    assert "boat" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
    with MemoryStore.open(tmp_path / "copy") as store:
        assert store.documents() == []
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("home", "store", "copy", "notes.m3", "evil.m3", "again")
    }


def test_an_encrypted_store_answers_like_any_other(m3, made, memorized, world, tmp_path):
    words = {"M3MLX_PASSPHRASE": "nine brass buttons"}
    secret = ("--store", tmp_path / "secret")
    m3("memorize", *made, "--encrypt", *secret, **words)
    ask = ("ask", QUESTION, "--max-tokens", "5", "--encoder", world / "encoder", "--json")
    plain, sealed = json.loads(m3(*ask).stdout), json.loads(m3(*ask, *secret, **words).stdout)
    assert (plain["answer"], plain["sources"]) == (sealed["answer"], sealed["sources"])
    assert json.loads(m3("status", "--json", *secret, **words).stdout)["encrypted"]

    file = tmp_path / "words"
    file.write_text("nine brass buttons\n")
    assert "boiler.md" in m3("list", *secret, "--passphrase-file", file).stdout
    assert "boiler.md" in m3("--passphrase-file", file, "list", *secret).stdout
    for flags, env, message in (
        ([], {}, "M3MLX_PASSPHRASE"),
        ([], {"M3MLX_PASSPHRASE": "wrong"}, "not the passphrase"),
        (["--passphrase-file", tmp_path / "nowhere"], {}, "cannot be read"),
    ):
        commands = (("list",), ("forget", "1"), ("export", tmp_path / "x"), ask)
        for args in (*commands, ("check",), ("check", "--repair")):
            result = m3(*args, *secret, *flags, code=1, **env)
            assert message in result.stderr and result.stderr.count("\n") == 1
    for path in (tmp_path / "secret").iterdir():
        for needle in (b"boiler", b"Quill", b"brass"):
            assert needle not in path.read_bytes(), path


def test_an_encrypted_store_is_checked_and_repaired_with_its_passphrase(m3, made, tmp_path):
    words = {"M3MLX_PASSPHRASE": "nine brass buttons"}
    secret = ("--store", tmp_path / "secret")
    m3("memorize", *made, "--encrypt", *secret, **words)
    assert m3("check", *secret, **words).stdout.endswith("memories: sound\n")
    file = tmp_path / "secret" / "memories.kv"
    before = file.read_bytes()
    file.write_bytes(before[:16390] + bytes([before[16390] ^ 1]) + before[16391:])
    assert "Damaged memory: " in m3("check", *secret, code=1, **words).stdout
    data = json.loads(m3("check", "--repair", "--json", *secret, **words).stdout)
    assert data["sound"] and len(data["repaired"]["documents"]) == 1
    status = json.loads(m3("status", "--json", *secret, **words).stdout)
    assert (status["cold"], status["encrypted"]) == (0, True)  # written again
    assert m3("check", *secret, **words).stdout.endswith("memories: sound\n")


def test_a_store_is_encrypted_when_it_is_made_or_by_export_and_import(
    m3, made, memorized, tmp_path
):
    words = {"M3MLX_PASSPHRASE": "nine brass buttons"}
    refused = m3("memorize", *made, "--encrypt", code=1, **words)
    assert "m3mlx export" in refused.stderr
    m3("export", tmp_path / "notes.m3")
    m3("import", tmp_path / "notes.m3", "--encrypt", "--store", tmp_path / "secret", **words)
    assert "boiler.md" in m3("list", "--store", tmp_path / "secret", **words).stdout
    with pytest.raises(LockedError):
        MemoryStore.open(tmp_path / "secret")


def test_nobody_is_asked_where_nothing_is_encrypted(m3, memorized, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    m3("list")
