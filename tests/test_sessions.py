"""Kept conversations: gone on with, searched, encrypted, remembered, and erased without a trace."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_store import in_bytes, memorize, new_store

from m3mlx import Assistant, MemoryStore
from m3mlx import sessions as history
from m3mlx.cli import main
from m3mlx.errors import M3Error, StoreError
from m3mlx.store.sessions import FILE, Sessions

SAID = [
    {"role": "user", "content": "Where is the marmalade kept?"},
    {"role": "assistant", "content": "In the cellar, behind the quince jelly."},
]
MORE = [
    {"role": "user", "content": "And the Gherkins?"},
    {"role": "assistant", "content": "Nobody said. \ud800"},
]


@pytest.fixture(params=["plain", "encrypted"])
def store(request, tmp_path):
    made = {"encrypt": True, "passphrase": lambda: "nine buttons"}
    with new_store(tmp_path / "store", **(made if request.param == "encrypted" else {})) as store:
        memorize(store, "a.txt", ["apples"])
        yield store


def test_what_was_said_is_kept_found_and_erased(store):
    with store.sessions() as sessions:
        sessions.add("plans", SAID)
        sessions.add("other", SAID[:1])
        sessions.add("plans", MORE)
    with store.sessions() as sessions:
        assert [(s.name, s.messages) for s in sessions.list()] == [("plans", 4), ("other", 1)]
        said = sessions.messages("plans")
        assert [m.number for m in said] == [1, 2, 3, 4]
        assert said[1].content == SAID[1]["content"] and said[3].content == "Nobody said. ?"
        assert [m.session for m in sessions.search("MARMALADE kept")] == ["plans", "other"]
        assert [m.number for m in sessions.search("gherkins")] == [3]
        assert sessions.search("marmalade gherkins") == []
        assert sessions.delete("plans") and not sessions.delete("plans")
        assert [s.name for s in sessions.list()] == ["other"]
        assert sessions.messages("plans") == []
    assert in_bytes(store.path, b"quince") == []
    assert stat.S_IMODE((store.path / FILE).stat().st_mode) == 0o600


def test_an_encrypted_store_shows_nothing_of_a_session(store):
    with store.sessions() as sessions:
        sessions.add("marmalade", SAID)
    there = in_bytes(store.path, b"marmalade", b"quince")
    assert bool(there) is not store.encrypted


def test_what_was_changed_in_an_encrypted_file_is_refused(store):
    with store.sessions() as sessions:
        sessions.add("plans", SAID)
        if store.encrypted:
            _, two = (m[0] for m in sessions._db.execute("SELECT content FROM message"))
            sessions._db.execute("UPDATE message SET content = ? WHERE ordinal = 0", [two])
            with pytest.raises(StoreError, match="not what was encrypted"):
                sessions.messages("plans")
    with Sessions(store.path) as sessions:  # without the key there are no words
        assert store.encrypted is (sessions.search("quince") == [])


@pytest.mark.parametrize("content", [b"x" * 4096, b"SQLite format 3\0" + b"y" * 4096])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"sessions\.sqlite: the conversations cannot be read"):
        Sessions(tmp_path)


def test_a_newer_file_is_refused(tmp_path):
    with Sessions(tmp_path) as sessions:
        sessions._db.execute("PRAGMA user_version=9")
    with pytest.raises(StoreError, match="newer m3mlx"):
        Sessions(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a.md", " a", "a ", "x" * 101, "a\nb", "a:b"])
def test_what_cannot_name_a_session_is_refused(name):
    with pytest.raises(M3Error, match="cannot name a session"):
        history.check_name(name)


def test_names_in_any_script():
    for name in ("a", "Plan 2", "日記", "trip-to_Bodø", "x" * 100):
        history.check_name(name)


# --- with an assistant


@pytest.fixture
def world(models, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(models / "home"))
    monkeypatch.setenv("M3MLX_MODEL", str(models / "decoder"))
    monkeypatch.setenv("M3MLX_STORE", str(tmp_path / "store"))
    note = tmp_path / "note.md"
    note.write_text("The boat is blue.")

    def run(*words, input=None, code=0):
        result = CliRunner().invoke(main, [*map(str, words)], input=input)
        assert result.exit_code == code, result.stderr
        return result

    run.options = ["--encoder", str(models / "encoder")]
    run.store = tmp_path / "store"
    run("memorize", note, *run.options, "--tokens-per-head", 4, "--budget", "uniform")
    return run


def chat(run, *words, said):
    return run("chat", *run.options, "--max-tokens", 4, *words, input=said)


def documents(store: Path) -> list[str]:
    with MemoryStore.open(store) as opened:
        return [document.path for document in opened.documents()]


def test_a_session_continues_where_it_stopped(world, models):
    chat(world, "--session", "plans", said="Where is the boat?\n/reset\nAnd the marmalade?\n")
    shown = chat(world, "--session", "plans", said="And the kite?\n")
    assert "Continuing plans: 4 messages" in shown.stderr
    said = json.loads(world("sessions", "show", "plans", "--json").stdout)["messages"]
    assert [m["content"] for m in said[::2]] == [
        "Where is the boat?",
        "And the marmalade?",
        "And the kite?",
    ]
    # the model has really read it again: it answers as in one conversation
    with Assistant(str(models / "decoder"), world.store, encoder=world.options[1]) as assistant:
        kept = [{"role": m["role"], "content": m["content"]} for m in said]
        again = assistant.chat()
        again.messages += kept[:4]
        answer = "".join(s.text for s in again.send("And the kite?", max_tokens=4))
        assert answer == kept[5]["content"]
    found = world("sessions", "search", "MARMALADE").stdout
    assert "plans 3, user" in found
    assert "plans" in world("sessions", "list").stdout == world("sessions").stdout
    world("sessions", "delete", "plans")
    world("sessions", "delete", "plans", code=1)
    world("sessions", "show", "plans", code=1)


def test_a_remembered_conversation_is_forgotten_whole(world):
    secret = "The marmalade password is Quetzalcoatl."
    shown = chat(world, "--session", "plans", "--remember", said=f"{secret}\n")
    assert "Memorized as chat:plans" in shown.stderr
    assert "chat:plans" in documents(world.store)
    hits = json.loads(world("recall", "marmalade password", *world.options, "--json").stdout)
    assert secret in hits["references"][0]["text"]
    assert in_bytes(world.store, b"Quetzalcoatl")
    gone = world("forget", "chat:plans", "--verify")
    assert "nothing was found" in gone.stdout
    assert in_bytes(world.store, b"Quetzalcoatl", b"quetzalcoatl") == []
    assert world("sessions", "list", "--json").stdout == '{\n  "sessions": []\n}\n'
    assert len(documents(world.store)) == 1


def test_remembering_again_replaces_and_without_a_session_time_names_it(world):
    chat(world, "--session", "plans", "--remember", said="One.\n")
    chat(world, "--session", "plans", "--remember", said="Two.\n")
    assert documents(world.store).count("chat:plans") == 1
    chat(world, "--remember", said="Three.\n")
    chat(world, "--remember", said="")
    named = [path for path in documents(world.store) if path.startswith("chat:2")]
    assert len(named) == 1
    world("sessions", "delete", "plans")
    assert "chat:plans" in documents(world.store)


def test_without_a_store_there_is_nothing_to_keep_a_session_in(world, tmp_path):
    empty = ["--store", str(tmp_path / "empty")]
    result = world("chat", "--session", "a", "--memory", "off", *empty, input="Hi\n", code=1)
    assert "nothing is memorized here yet" in result.stderr
    world("sessions", "list", *empty, code=1)
    assert not (tmp_path / "empty").exists()
