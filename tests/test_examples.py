"""The help of every command ends with an example, and every example runs."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import tiny
from click.testing import CliRunner
from home import tiny_home

from m3mlx.cli import main

SERVERS = ("watch", "serve", "mcp")  # run in processes of their own, until SIGTERM
INPUT = {"chat": "Who serviced the boiler?\n/quit\n"}
FIRST = ("keygen", "memorize")  # they make what others need


def commands(group, path=()):
    """Every command with the words that call it, in the order of the help."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(main))


def examples(command):
    lines = (command.epilog or "").splitlines()
    assert lines[:1] == ["\b"] and lines[1:2] in (["Example:"], ["Examples:"])
    return [shlex.split(line)[1:] for line in lines[2:]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_ends_with_an_example_of_it(words):
    shown = CliRunner().invoke(main, [*words, "--help"]).stdout
    lines = [f"  m3mlx {shlex.join(line)}" for line in examples(COMMANDS[words])]
    end = shown.rstrip().splitlines()[-len(lines) :]
    assert [shlex.split(line) for line in end] == [shlex.split(line) for line in lines] != []
    for line in lines:
        assert line.split()[1 : 1 + len(words)] == list(words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with everything that the examples name, and tiny models as the default ones."""
    folder = tmp_path / "work here"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "house.md").write_text("The boiler was serviced by Ada Quill in May.\n")
    (folder / "notes" / "old.md").write_text("The gate was painted green.\n")
    (folder / "notes" / "noise.log").write_text("beep\n")
    tiny.save_model(folder / "checkpoint")
    tiny.save_adapter(folder / "adapter")
    lines = [
        {"document": f"Box {n} holds {what}.", "question": f"What is in box {n}?", "answer": what}
        for n, what in enumerate(("a hat", "a cup", "a pen", "a map", "a key", "a jar"))
    ]
    for name in ("questions.jsonl", "train.jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    for name, value in tiny_home(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    work = ["memorize", "notes/house.md", "--store", "work"]
    assert CliRunner().invoke(main, work).exit_code == 0
    return folder


def run_server(words):
    """Start a server, wait until it reports that it runs, and end it."""
    port = ["--port", "0"] if words[0] == "serve" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "m3mlx", *words, *port],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    if words[0] != "mcp":  # prints nothing, and ends with its input
        assert process.stderr.readline().startswith(
            {"watch": "Watching", "serve": "Serving"}[words[0]]
        )
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def in_order():
    """Words and line of every example: first those that make things, last those that remove."""
    order = sorted(COMMANDS, key=lambda words: words[0] not in FIRST)
    removing = [words for words in order if {"delete", "remove"} & set(words)]
    for words in [*(words for words in order if words not in removing), *removing]:
        for line in examples(COMMANDS[words]):
            yield words, line


@pytest.mark.slow
def test_every_example_runs(folder):
    for words, line in in_order():
        if words[0] in SERVERS:
            run_server(line)
            continue
        done = CliRunner().invoke(main, line, input=INPUT.get(words[0]))
        assert done.exit_code == 0, (line, done.output)
        assert "Traceback" not in done.output
    made = {"answer.html", "house.html", "house.png", "notes.m3", "mine.key", "model", "merged"}
    assert made <= {path.name for path in folder.iterdir()}


# --- what they print as JSON


def documented_keys():
    """Keys of each command's JSON by the page: those it always has, and those it may have."""
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", page.split("## JSON")[1], re.M)
    found = {}
    for name, text in rows:
        always, _, sometimes = text.partition("sometimes")
        found[name] = set(re.findall(r"`(\w+)`", always)), set(re.findall(r"`(\w+)`", sometimes))
    return found


def test_the_json_of_every_command_is_documented():
    takes = {" ".join(w) for w, c in COMMANDS.items() if any("--json" in p.opts for p in c.params)}
    assert documented_keys().keys() == takes - {"sessions"}  # which is a group


def names_in(value):
    """All keys in JSON that are names; those of what is keyed by paths or hashes are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in KEYED:
                yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


KEYED = ("ratios", "skipped", "fingerprint", "recall", "kinds", "quarantined", "metrics", "machine")
KEYED += ("versions", "parts", "record_bytes", "cost")


@pytest.mark.slow
def test_every_example_prints_the_documented_json(folder):
    keys = documented_keys()
    for words, line in in_order():
        if words[0] in SERVERS:
            continue
        as_json = ["--json"] * (" ".join(words) in keys and "--json" not in line)
        done = CliRunner().invoke(main, [*line, *as_json], input=INPUT.get(words[0]))
        assert done.exit_code == 0, (line, done.output)
        if " ".join(words) not in keys:
            continue  # it makes what others need
        shown = json.loads(done.stdout)
        always, sometimes = keys[" ".join(words)]
        assert always <= shown.keys() <= always | sometimes, (line, shown.keys() ^ always)
        for name in names_in(shown):
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name), (line, name)
