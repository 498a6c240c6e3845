"""The command line with tiny random models: what it prints, writes, refuses, and its exit codes."""

import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import samples
import tiny
from click.testing import CliRunner, Result

from m3mlx import assistant, evaluate
from m3mlx.cli import main, render
from m3mlx.cli.render import human_bytes, human_seconds
from m3mlx.text import scrub, scrub_line

COMMANDS = [
    *("ask", "chat", "recall", "sessions", "demo"),
    *("memorize", "remember", "facts", "watch", "list", "status", "forget", "inspect"),
    *("serve", "mcp"),
    *("models", "eval", "bench", "convert", "parity", "train", "fuse"),
    *("doctor", "check", "compact", "backup", "export", "import", "keygen", "completion"),
]
SOURCE_KEYS = {"path", "start", "end", "page", "line", "text", "distance", "span"}
SOURCE_KEYS |= {"document", "store"}
TIMING_KEYS = {
    *("retrieve_seconds", "read_seconds", "prefill_seconds", "first_token_seconds"),
    *("decode_tokens_per_second", "prompt_tokens", "generated_tokens", "retrievals"),
}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with two decoders, an encoder, documents, and a store of them."""
    world = tmp_path_factory.mktemp("world")
    tiny.save_model(world / "decoder")
    tiny.save_model(world / "other", seed=1)
    tiny.save_encoder(world / "encoder")
    samples.write_good_folder(world / "documents")
    result = run(world, "memorize", world / "documents", *made(world), store=world / "store")
    assert result.exit_code == 0, result.stderr
    return world


@pytest.fixture
def m3(world, tmp_path) -> Callable[..., Result]:
    """Run a command against an empty store of the test's own."""
    return lambda *args, **kwargs: run(world, *args, **{"store": tmp_path / "store", **kwargs})


@pytest.fixture
def copied(world, m3, tmp_path) -> Callable[..., Result]:
    """Run a command against a copy of the store of all documents."""
    shutil.copytree(world / "store", tmp_path / "store")
    return m3


def made(world: Path) -> list:
    """How a tiny model's memories are written."""
    return ["--encoder", world / "encoder", "--tokens-per-head", "4"]


def environment(world: Path, store: Path) -> dict[str, str]:
    return {
        "M3MLX_HOME": str(world / "home"),
        "M3MLX_MODEL": str(world / "decoder"),
        "M3MLX_STORE": str(store),
    }


def run(world: Path, *args: object, store: Path, input: str | bytes | None = None) -> Result:
    runner = CliRunner()
    return runner.invoke(main, [*map(str, args)], input=input, env=environment(world, store))


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def refused(result: Result, code: int, words: str = "") -> None:
    """One clear line on stderr, nothing on stdout."""
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout, len(lines)) == (code, "", 1), result.output
    assert lines[0].startswith("Error: ") and "bug" not in lines[0]
    assert re.search(words, lines[0]), lines[0]


def shell(world: Path, command: str, store: Path, **settings) -> subprocess.CompletedProcess:
    """The same in a process of its own, started by a shell; ``m3mlx`` stands for the program."""
    program = f"{sys.executable} -m m3mlx"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("m3mlx", program)],
        env={**os.environ, **environment(world, store), **settings},
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )


# --- what is wrong with the command line: exit code 2

BAD_FLAGS = f"""
    frob | --frob | --model
    memorize | memorize x --frob | memorize x --codec k3v3 | memorize x --selection random
    memorize x --budget none | memorize x --memories 5 | memorize --include
    memorize x --tokens-per-head 0 | memorize x --tokens-per-head 129
    memorize x --tokens-per-head many | list x | list --frob | status x | status --frob
    memorize --max-bytes many | memorize --max-bytes 0 | memorize --max-bytes -1
    memorize --rebuild --dry-run | memorize x --max-bytes 1GB --dry-run | compact x | backup x
    remember | remember x --frob | facts --edit 1 | facts x | facts --edit x y | facts --by x
    forget x --certificate /nowhere/at/all | forget | forget x --frob
    recall | recall x y | recall x -k 0 | recall x -k many
    recall x --retrieval web | recall x --kv-bits 8
    ask | ask x y | ask x --memory sometimes | ask x --max-tokens 0 | ask x --max-tokens -1
    ask x --max-tokens many | ask x --temp -1 | ask x --temp nan | ask x --temp inf
    ask x --temp hot | ask x --top-p 2 | ask x --top-p -0.1 | ask x --top-p nan
    ask x --seed -1 | ask x --seed x | ask x --seed {2**64} | ask x --query all
    ask x --memories 0 | ask x --kv-bits 5 | ask x --codec k8
    chat x | chat --json | chat --memory sometimes | chat --max-tokens 0 | chat --temp nan
    eval | eval x y | eval x --memories 0 | eval x --frob | demo x | demo --frob
    eval x --budget many | eval x --budget half | eval x --budget half:0 | eval x --task dance
    eval x --task choice --keep x | eval x --task update --instruction x
    eval x --plot x.png | eval x --task update --plot x.svg | eval x --others x | eval x --limit 0
    eval x --task recite --mode off | eval x --mode on | eval x --answer-tokens -1
    convert | convert x | convert x y --frob | convert x y --dtype int8
    convert x.gguf y --q-bits 7 | parity x | parity --frob | bench x | bench --rounds 0
    watch | watch x --frob | watch x --debounce -1 | watch x --rescan 0 | watch x --grace no
    memorize --watch | memorize x --watch --json | memorize x --watch --dry-run
    chat --session a/b | sessions frob | sessions show | sessions delete | sessions search
    recall x --since soon | ask x --since 2026-13-01 | recall x --type | chat --path
    inspect | inspect x y | ask x --inspect o.html --memory text | ask x --inspect
    doctor x | doctor --frob | models --frob | models frob | models remove
    models use | models use a b | models use x --reset | models use --frob
    export | export x --frob | import | import x y | import x --frob | keygen | keygen x y
"""


@pytest.mark.parametrize(
    "args", [args.strip() for line in BAD_FLAGS.strip().splitlines() for args in line.split("|")]
)
def test_a_bad_flag_is_one_line_and_exit_code_2(m3, args, tmp_path):
    result = m3(*args.split())
    refused(result, 2, r"See m3mlx.* --help\.$")
    assert not (tmp_path / "store").exists()


def test_without_a_command_there_is_help(m3):
    result = m3()
    assert result.exit_code == 2
    assert "memorize" in result.stderr and "Error" not in result.stderr


# --- what is wrong with the data: exit code 1


@pytest.mark.parametrize(
    "args", ["list", "status", "forget 1", "compact", "memorize --rebuild", "recall x", "ask x"]
)
@pytest.mark.parametrize("state", ["missing", "file", "damaged", "foreign"])
def test_a_store_that_cannot_be_read_is_one_line(m3, world, tmp_path, args, state):
    store = tmp_path / "store"
    if state == "file":
        store.write_text("x")
    elif state == "damaged":
        store.mkdir()
        (store / "catalog.sqlite").write_bytes(b"no database" * 100)
    elif state == "foreign":
        store.mkdir()
        (store / "diary.txt").write_text("x")
    flags = ["--encoder", world / "encoder"] if args in ("recall x", "ask x") else []
    refused(m3(*args.split(), *flags), 1, re.escape(str(store)))


@pytest.mark.parametrize("state", ["file", "damaged", "foreign"])
def test_nothing_is_memorized_into_what_is_no_store(m3, world, tmp_path, state):
    store = tmp_path / "store"
    if state == "file":
        store.write_text("x")
    else:
        store.mkdir()
        name = {"damaged": "catalog.sqlite", "foreign": "diary.txt"}[state]
        (store / name).write_bytes(b"no database" * 100)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(m3("memorize", world / "documents" / "notes.md", *made(world)), 1, "store")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "/nowhere/decoder"],
        ["--model", "no such name"],
        ["--model", "all-minilm-l6-v2"],
        ["--model", "{world}/documents"],
        ["--model", "{world}/encoder"],
        ["--model", "{world}/documents/notes.md"],
        ["--encoder", "/nowhere/encoder"],
        ["--encoder", "{world}/documents"],
        ["--adapter-path", "/nowhere/adapter"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["ask", "memorize", "eval", "chat"])
def test_a_model_that_cannot_be_loaded_is_one_line(world, tmp_path, command, flags):
    question = tmp_path / "one.jsonl"
    question.write_text('{"document": "a b", "question": "c", "answer": "a"}')
    argument = {"ask": ["x"], "memorize": [world / "documents"], "eval": [question], "chat": []}
    flags = [flag.format(world=world) for flag in flags]
    encoder = [] if "--encoder" in flags else ["--encoder", world / "encoder"]
    result = run(world, command, *argument[command], *flags, *encoder, store=world / "store")
    refused(result, 1)


def test_memories_of_another_model_or_way_of_writing_are_refused_by_name(world):
    store = world / "store"
    other = ["--model", world / "other", "--encoder", world / "encoder"]
    for command in (["ask", "x"], ["memorize", world / "documents"]):
        refused(run(world, *command, *other, store=store), 1, "weights")
    mine = ["--encoder", world / "encoder"]
    for flag, value, name in (
        ("--codec", "k4v4", "key_bits"),
        ("--tokens-per-head", "5", "tokens_per_head"),
        ("--selection", "attention", "selection"),
        ("--budget", "uniform", "budget"),
    ):
        refused(run(world, "ask", "x", *mine, flag, value, store=store), 1, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "no questions"),
        ("{", "line 1"),
        ("[]", "no questions"),
        ("[[]]", "item 1"),
        ('{"document": "a", "question": "b", "answer": "c"}\n{"question": "b"}', "line 2"),
        ('{"document": "a", "question": "b", "answer": 3}', "line 1"),
        ('{"document": "a", "question": "", "answer": "c"}', "line 1"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_questions_that_cannot_be_read_are_one_line(m3, tmp_path, text, words):
    file = tmp_path / "questions.jsonl"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(m3("eval", file), 1, words)


def test_eval_of_a_folder_is_one_line(m3, tmp_path):
    refused(m3("eval", tmp_path), 1, re.escape(str(tmp_path)))


def test_an_empty_question_or_query_is_refused(world):
    flags = ["--encoder", world / "encoder"]
    for question in ("", "  ", "-"):
        refused(run(world, "ask", question, *flags, store=world / "store", input=""), 1, "empty")
    refused(run(world, "recall", " ", *flags, store=world / "store"), 2, "empty")


def test_forgetting_what_is_not_there_erases_nothing(world):
    store = world / "store"
    before = run(world, "list", "--json", store=store).stdout
    for name in ("99", "/nowhere", "", "notes"):
        refused(run(world, "forget", "1", name, store=store), 1, "m3mlx list")
    assert run(world, "list", "--json", store=store).stdout == before


def test_a_missing_path_is_named_and_the_rest_goes_on(m3, world):
    result = m3("memorize", "/nowhere/x", world / "documents" / "notes.md", *made(world))
    assert result.exit_code == 1
    assert re.fullmatch(r"Failed: /nowhere/x: .+\n", result.stderr)
    assert "1 added" in result.stdout and "1 failed" in result.stdout


def test_unexpected_errors_are_one_line_and_a_traceback_only_on_demand(m3, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("surprise")

    monkeypatch.setattr(assistant.Assistant, "status", broken)
    result = m3("status")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "report" in result.stderr
    for args in (("-v", "status"), ("status", "-v")):
        result = m3(*args)
        assert result.exit_code == 1 and "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: unexpected KeyError")


# --- help, versions, options


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_command_has_help(m3, command):
    result = good(m3(*([command] if command else []), "--help"))
    assert "--model" in result.stdout and "--store" in result.stdout
    plain = (None, "chat", "serve", "mcp", "completion")
    assert ("--json" in result.stdout) == (command not in plain)


def test_the_list_of_commands_is_complete(m3):
    shown = good(m3("--help")).stdout
    listed = shown[shown.index("Ask:") : shown.index("Environment:")]
    assert re.findall(r"^  (\w+)  +\S.*", listed, re.M) == COMMANDS
    assert "..." not in listed and max(map(len, shown.splitlines())) <= 80  # none is cut
    for title in ("Ask", "Manage documents", "Serve", "Models", "Maintain"):
        assert f"\n{title}:\n" in shown


def test_the_help_fits_a_narrow_terminal(m3, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for args in (["--help"], ["ask", "--help"]):
        lines = good(m3(*args)).stdout.splitlines()
        assert sum(len(line) > 42 for line in lines) <= 3  # the longest option, and examples
        assert sum(len(line) < 12 for line in lines) < len(lines) / 3  # no column of syllables


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_what_completes_in_a_shell_asks_the_program(m3, shell_name):
    assert "_M3MLX_COMPLETE" in good(m3("completion", shell_name)).stdout
    refused(m3("completion", "csh"), 2)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("mem", ["memorize"]),
        ("ask --memory ex", ["explicit"]),
        ("models us", ["use"]),
        ("recall x --retr", ["--retrieval"]),
    ],
)
def test_words_are_completed(words, found):
    typed = f"m3mlx {words}".split(" ")
    for shell_name, lead in (("bash", "plain,"), ("zsh", "plain\n"), ("fish", "plain,")):
        asked = {"COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(typed) - 1)}
        if shell_name == "fish":
            asked["COMP_CWORD"] = typed[-1]
        asked["_M3MLX_COMPLETE"] = f"{shell_name}_complete"
        done = CliRunner().invoke(main, [], env=asked, prog_name="m3mlx")
        assert all(lead + word in done.stdout for word in found), (shell_name, done.stdout)
        assert done.stdout.count("plain") == len(found)


@pytest.mark.parametrize("words", ["memorize no", "watch no", "forget no", "list --store no"])
def test_paths_are_left_to_the_shell(words):
    typed = f"m3mlx {words}".split()
    asked = {"COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    asked["_M3MLX_COMPLETE"] = "bash_complete"
    done = CliRunner().invoke(main, [], env=asked, prog_name="m3mlx")
    assert done.stdout == "file,no\n"


def test_bash_completes_commands(tmp_path):
    program = tmp_path / "m3mlx"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m m3mlx "$@"\n')
    program.chmod(0o755)
    typed = 'COMP_WORDS=(m3mlx comp) COMP_CWORD=1; _m3mlx_completion m3mlx; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f'eval "$(m3mlx completion bash)"; complete -p m3mlx; {typed}'],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    registered, shown = done.stdout.splitlines()
    assert "_m3mlx_completion m3mlx" in registered and shown.split() == ["compact", "completion"]


def test_a_question_about_the_program_is_known():
    from m3mlx.cli.hints import task_of

    assert task_of("how does one forget a document?") == "forget"
    assert task_of("How can I add files to m3mlx") == "memorize"
    assert task_of("How do I save this conversation?") == "save"
    for other in ("Who forgot the boiler?", "How do I build Node.js with ninja?", "how to forget"):
        assert task_of(other) is None


def test_help_and_wrong_flags_import_nothing_heavy():
    code = (
        "import sys\nfrom m3mlx.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([m for m in ('mlx', 'mlx_lm', 'numpy', 'rich', 'transformers', 'usearch',"
        " 'sqlite_utils') if m in sys.modules])"
    )
    for args in (["--help"], ["ask", "--help"], ["ask"], ["train", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "[]", (args, done.stdout)


@pytest.mark.slow
def test_bench_compares_the_modes_and_touches_no_store(m3, world, tmp_path):
    report = json.loads(good(m3("bench", "--rounds", "1", "--json", *made(world))).stdout)
    assert report["plan"]["rounds"] == 1 and report["machine"]["mlx"]
    assert report["ratios"]["ask 64, first token: explicit warm / text"]["seconds"] > 0
    assert not (tmp_path / "store").exists()


def test_looking_at_a_store_imports_no_mlx(world):
    code = (
        "import sys\nfrom m3mlx.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers') if m in sys.modules])"
    )
    for command in ("list", "status"):
        args = [sys.executable, "-c", code, command, "--store", str(world / "store")]
        done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", (command, done.stdout, done.stderr)


def test_version_and_module(world, tmp_path):
    done = shell(world, "m3mlx --version", tmp_path)
    assert re.fullmatch(rb"m3mlx \d+\.\d+\.\d+\n", done.stdout)


def test_model_and_store_come_from_flags_before_or_behind_or_the_environment(world, tmp_path):
    path = world / "store"

    def documents(*args):
        result = run(world, *args, "--json", store=tmp_path / "none")
        return result.exit_code, result.exit_code or len(json.loads(result.stdout)["documents"])

    count = len(list((world / "documents").iterdir()))
    assert documents("list") == (1, 1)
    assert documents("list", "--store", path) == (0, count)
    assert documents("--store", path, "list") == (0, count)
    assert documents("--store", tmp_path / "no", "list", "--store", path) == (0, count)
    found = CliRunner().invoke(main, ["list"], env={"M3MLX_STORE": str(path)})
    assert found.exit_code == 0
    home = {"M3MLX_HOME": str(tmp_path / "home"), "M3MLX_STORE": None}
    found = CliRunner().invoke(main, ["list"], env=home)
    assert str(tmp_path / "home" / "store") in found.stderr
    wrong = run(world, "--model", "/nowhere/m", "ask", "x", store=path)
    refused(wrong, 1, "/nowhere/m")
    wrong = run(world, "ask", "x", "--model", "/nowhere/m", store=path)
    refused(wrong, 1, "/nowhere/m")


# --- memorize, list, status, forget, recall


def test_good_files_are_memorized_bad_ones_named_and_twice_changes_nothing(m3, world, tmp_path):
    folder = tmp_path / "mixed"
    known = samples.write_good_folder(folder)
    bad = samples.write_bad_files(folder / "bad")
    result = m3("memorize", folder, *made(world))
    assert result.exit_code == 1
    failed = dict(re.findall(r"^Failed: (.+?): (.+)$", result.stderr, re.M))
    assert {Path(path).name for path in failed} == set(bad)
    for path, reason in failed.items():
        assert bad[Path(path).name].lower() in reason.lower()
    assert f"{len(known)} added" in result.stdout and f"{len(bad)} failed" in result.stdout

    listed = m3("list", "--json").stdout
    stored = json.loads(listed)["documents"]
    assert {Path(document["path"]).name for document in stored} == set(known)
    assert all(document["state"] == "warm" for document in stored)
    again = json.loads(m3("memorize", folder, *made(world), "--json").stdout)
    assert (again["added"], again["changed"], again["references"]) == ([], [], 0)
    assert len(again["unchanged"]) == len(known) and len(again["failed"]) == len(bad)
    assert m3("list", "--json").stdout == listed


def test_changed_vanished_and_pruned_files_are_told(m3, world, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"The note {name} is about the weather.")
    good(m3("memorize", folder, *made(world)))
    (folder / "a.txt").write_text("It is about the sea now.")
    (folder / "b.txt").unlink()
    result = good(m3("memorize", folder, *made(world)))
    assert "0 added, 1 changed, 1 unchanged, 1 vanished, 0 failed" in result.stdout
    assert f"vanished {folder / 'b.txt'}" in result.stdout and "--prune" in result.stderr
    data = json.loads(good(m3("memorize", folder, *made(world), "--prune", "--json")).stdout)
    assert data["vanished"] == [str(folder / "b.txt")] and data["pruned"]
    assert [d["id"] for d in json.loads(m3("list", "--json").stdout)["documents"]] == [3, 4]


def test_json_of_memorize(m3, world):
    flags = ["--include", "*.md", "--include", "*.txt", "--exclude", "old.*", "--json"]
    data = json.loads(good(m3("memorize", world / "documents", *made(world), *flags)).stdout)
    assert set(data) == {
        *("added", "changed", "unchanged", "vanished", "failed", "pruned", "dry_run"),
        *("references", "memories", "bytes", "seconds", "stored_seconds", "estimated"),
        *("left_out", "notes", "foreign", "tokens", "pace"),
    }
    assert {Path(path).name for path in data["added"]} == {"notes.md", "plain.txt"}
    assert data["references"] == data["memories"] >= 2 and data["bytes"] > 0
    assert data["seconds"] > data["stored_seconds"] > 0


@pytest.mark.parametrize("known", [False, True])
def test_a_dry_run_writes_nothing_and_tells_what_it_would_write(m3, world, tmp_path, known):
    note = tmp_path / "note.txt"
    note.write_text("Nothing of this is written.")
    if known:
        good(m3("memorize", world / "documents" / "notes.md", *made(world)))
    store = tmp_path / "store"
    before = {path: path.read_bytes() for path in store.rglob("*")}
    result = good(m3("memorize", note, *made(world), "--dry-run"))
    assert "1 references would be stored" in result.stdout
    assert "all can be asked after about" in result.stdout
    data = json.loads(good(m3("memorize", note, *made(world), "--dry-run", "--json")).stdout)
    assert data["dry_run"] and data["references"] == 1 and data["bytes"] > 0
    assert {path: path.read_bytes() for path in store.rglob("*")} == before


def test_a_list_has_a_line_for_each_document_that_no_pipe_cuts(m3, world, tmp_path):
    long = tmp_path / ("long-" * 40 + "[bold]name.txt")
    long.write_text("A long name.")
    good(m3("memorize", long, *made(world), "--cold"))
    listed = good(m3("list")).stdout
    assert str(long) in listed and "cold" in listed


def test_status_tells_what_the_store_holds(world):
    text = good(run(world, "status", store=world / "store")).stdout
    assert not re.search(r"[0-9a-f]{20}", text) and "decoder" in text
    text += good(run(world, "status", "-v", store=world / "store")).stdout
    for word in ("documents", "references", "bytes of memories", "fingerprint weights", "codec"):
        assert re.search(rf"^{word} +\S", text, re.M), word
    data = json.loads(good(run(world, "status", "--json", store=world / "store")).stdout)
    assert data["documents"] == len(list((world / "documents").iterdir()))
    assert data["references"] >= data["documents"] and data["cold"] == 0
    assert set(data["bytes"]) == {"catalog", "memories", "index"}
    assert data["memory"]["key_bits"] == 8 and data["fingerprint"]["codec"] == "k8v8"


def test_what_is_forgotten_is_proved_to_be_gone(copied, world, tmp_path):
    result = good(copied("forget", world / "documents" / "paper.pdf", "--verify"))
    assert "paper.pdf" in result.stdout and "nothing was found" in result.stdout
    every = b"".join(p.read_bytes() for p in (tmp_path / "store").iterdir())
    assert b"comet" not in every and b"quince" in every
    number = json.loads(copied("list", "--json").stdout)["documents"][0]["id"]
    written = tmp_path / "certificate.json"
    data = json.loads(good(copied("forget", number, "--certificate", written, "--json")).stdout)
    assert json.loads(written.read_text()) == data["certificate"]
    assert {file["name"] for file in data["certificate"]["files"]} >= {"catalog.sqlite", "lock"}
    assert data["certificate"]["findings"] == [] and "documents" not in written.read_text()
    assert data["forgotten"][0]["id"] == number and data["found"] == []
    data = json.loads(good(copied("forget", world / "documents", "--json")).stdout)
    assert len(data["forgotten"]) > 10 and data["found"] is None
    assert json.loads(copied("list", "--json").stdout) == {"documents": []}
    assert good(copied("list")).stdout.count("\n") >= 1
    flags = ["--encoder", world / "encoder"]
    assert json.loads(good(copied("recall", "comet", *flags, "--json")).stdout) == {
        "references": []
    }


def test_what_is_found_after_forgetting_is_named_and_exit_code_1(m3, world, tmp_path):
    path = world / "documents" / "notes.md"
    good(m3("memorize", path, *made(world)))
    (tmp_path / "store" / "copy").write_bytes(path.read_bytes())
    result = m3("forget", path, "--verify")
    assert result.exit_code == 1
    assert re.search(r"^Found: text of .*notes\.md in copy at byte \d+$", result.stderr, re.M)


def test_another_model_gets_memories_without_the_files_and_the_first_keeps_its_own(copied, world):
    flags = ["--encoder", world / "encoder", "--max-tokens", "20", "--json"]
    other = ["--model", world / "other", *flags]
    first = json.loads(good(copied("ask", "bees?", *flags)).stdout)
    refused(copied("ask", "bees?", *other), 1, r"another weights .*m3mlx memorize --rebuild")
    rebuild = ("memorize", "--rebuild", *made(world), "--model", world / "other")
    made_now = json.loads(good(copied(*rebuild, "--json")).stdout)["rebuilt"]
    state = json.loads(copied("status", "--json").stdout)
    assert made_now["references"] == state["references"] and made_now["shortened"] == 0
    assert [edition["warm"] for edition in state["editions"]] == [state["references"]] * 2
    assert json.loads(good(copied("ask", "bees?", *other)).stdout)["answer"] != first["answer"]
    again = json.loads(good(copied("ask", "bees?", *flags)).stdout)
    assert (again["answer"], again["sources"]) == (first["answer"], first["sources"])
    assert "0 memories written" in good(copied(*rebuild)).stdout


def test_a_bound_drops_memories_and_keeps_the_text(copied, world):
    before = json.loads(copied("status", "--json").stdout)
    assert before["cold"] == 0 and before["max_bytes"] is None
    bound = before["bytes"]["catalog"] + before["bytes"]["memories"] // 2
    result = good(copied("memorize", "--max-bytes", str(bound)))
    assert re.search(r"^[1-9]\d* memories dropped; the store is kept within ", result.stdout)
    after = json.loads(copied("status", "--json").stdout)
    assert after["references"] == before["references"]
    assert 0 < after["cold"] < after["references"]
    assert sum(after["bytes"].values()) <= after["max_bytes"] == bound
    assert re.search(r"^size +kept within", copied("status").stdout, re.M)
    flags = ["--encoder", world / "encoder", "--max-tokens", "20", "--json"]
    answer = json.loads(good(copied("ask", "When does the ferry leave?", *flags)).stdout)
    warm = run(world, "ask", "When does the ferry leave?", *flags, store=world / "store")
    assert answer["answer"] == json.loads(warm.stdout)["answer"]
    good(copied("memorize", "--max-bytes", "none"))
    assert json.loads(copied("status", "--json").stdout)["max_bytes"] is None


def test_compacting_gives_room_back_and_changes_no_answer(copied, world, tmp_path):
    good(copied("forget", "1"))
    flags = ["--encoder", world / "encoder", "--max-tokens", "20", "--json"]
    before = json.loads(good(copied("ask", "bees?", *flags)).stdout)
    size = (tmp_path / "store" / "memories.kv").stat().st_size
    data = json.loads(good(copied("compact", "--json")).stdout)
    assert data["damaged"] == 0 and data["after"] > 0 < data["before"]
    (file,) = (tmp_path / "store").glob("*.kv")
    assert file.stat().st_size < size
    after = json.loads(good(copied("ask", "bees?", *flags)).stdout)
    assert (after["answer"], after["sources"]) == (before["answer"], before["sources"])
    refused(copied("compact", store=tmp_path / "none"), 1, "m3mlx memorize")


def test_check_finds_damage_and_repair_makes_the_memory_again(copied, world, tmp_path):
    assert good(copied("check")).stdout.endswith("memories: sound\n")
    file = tmp_path / "store" / "memories.kv"
    before = file.read_bytes()
    file.write_bytes(before[:16390] + bytes([before[16390] ^ 1]) + before[16391:])
    result = copied("check")
    assert result.exit_code == 1
    (path,) = re.findall(r"^Damaged memory: (\S+): ", result.stdout, re.M)
    assert "m3mlx check --repair" in result.stderr
    data = json.loads(copied("check", "--json").stdout)
    assert (data["sound"], data["documents"]) == (False, [path])
    data = json.loads(good(copied("check", "--repair", "--json")).stdout)
    assert (data["sound"], data["repaired"]["documents"]) == (True, [path])
    # Written again from the stored tokens, bit for bit; the head counts commits.
    assert file.read_bytes()[16384:] == before[16384:]
    assert json.loads(copied("status", "--json").stdout)["cold"] == 0
    refused(copied("check", store=tmp_path / "none"), 1, "there is no store")


def test_recall_shows_places_and_snippets(world):
    flags = ["--encoder", world / "encoder", "--retrieval", "text"]
    result = good(run(world, "recall", "comet returns", *flags, "-k", "2", store=world / "store"))
    assert re.search(r"^\d\.\d{3}  .*paper\.pdf, page 1$", result.stdout, re.M)
    assert "The comet returns in 2061." in result.stdout
    result = run(world, "recall", "quince tree", *flags, "--json", store=world / "store")
    first = json.loads(result.stdout)["references"][0]
    assert set(first) == SOURCE_KEYS - {"span"}
    assert first["path"].endswith("notes.md") and first["line"] and "quince" in first["text"]


# --- ask


def test_json_of_ask_has_the_documented_shape(world):
    flags = ["--encoder", world / "encoder", "--max-tokens", "6", "--json"]
    for mode in ("explicit", "text", "off"):
        result = good(run(world, "ask", "quince?", *flags, "--memory", mode, store=world / "store"))
        data = json.loads(result.stdout)
        assert list(data) == ["answer", "memory", "sources", "note", "timings"]
        assert data["memory"] == mode and set(data["timings"]) == TIMING_KEYS
        assert data["timings"]["generated_tokens"] <= 6
        assert bool(data["sources"]) == (mode != "off")
        assert all(set(source) == SOURCE_KEYS | {"share", "used"} for source in data["sources"])
        assert result.stderr == ""


def test_the_streamed_answer_is_that_of_json_and_sources_follow_it(world):
    flags = ["--encoder", world / "encoder", "--max-tokens", "80"]
    store = world / "store"
    data = json.loads(run(world, "ask", "quince?", *flags, "--json", store=store).stdout)
    alone = good(run(world, "ask", "quince?", *flags, "--no-sources", store=store)).stdout
    assert alone == scrub(data["answer"]) + "\n"
    text = good(run(world, "ask", "quince?", *flags, store=store)).stdout
    assert text.startswith(alone)
    for source in data["sources"]:
        assert source["path"] in text[len(alone) :]
    read = run(world, "ask", "-", *flags, "--no-sources", store=store, input="quince?")
    assert read.stdout == alone


def test_sampling_flags_reach_the_sampler(world):
    flags = ["--encoder", world / "encoder", "--max-tokens", "20", "--temp", "1.5", "--json"]

    def answer(*more):
        result = run(world, "ask", "bees?", *flags, *more, store=world / "store")
        return json.loads(good(result).stdout)["answer"]

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    assert answer("--top-p", "0.000001") == answer("--top-p", "0.000001", "--seed", "3")


def test_cold_memories_give_the_same_answer_as_warm_ones(m3, world):
    good(m3("memorize", world / "documents", *made(world), "--cold"))
    assert json.loads(m3("status", "--json").stdout)["cold"] > 0
    flags = ["--encoder", world / "encoder", "--max-tokens", "70", "--json"]
    question = "When does the ferry leave?"
    cold = json.loads(good(m3("ask", question, *flags)).stdout)
    warm = json.loads(good(run(world, "ask", question, *flags, store=world / "store")).stdout)
    assert cold["answer"] == warm["answer"] and cold["sources"] == warm["sources"]
    state = json.loads(m3("status", "--json").stdout)
    assert 0 < state["cold"] < state["references"]


def test_a_new_process_finds_what_another_memorized(world, tmp_path):
    note = tmp_path / "ünïcode [x].txt"
    note.write_text("The lighthouse keeper is called Ansgar.")
    encoder = f"--encoder {world / 'encoder'}"
    store = tmp_path / "store"
    good(run(world, "memorize", note, *made(world), store=store))
    ask = f"m3mlx ask {encoder} --json --max-tokens 3 'lighthouse?'"
    done = shell(world, ask, store)
    assert json.loads(done.stdout)["sources"][0]["path"] == str(note)


@pytest.mark.slow
def test_readers_that_know_few_letters_or_leave_are_survived(world, tmp_path):
    note, store = tmp_path / "ünïcode [x].txt", tmp_path / "store"
    note.write_text("The lighthouse keeper is called Ansgar.")
    good(run(world, "memorize", note, *made(world), store=store))
    encoder = f"--encoder {world / 'encoder'}"
    ask = f"m3mlx ask {encoder} --json --max-tokens 3 'lighthouse?'"
    # a Russian terminal that knows no ü, a reader that has enough, and nobody at all
    done = shell(world, ask.replace("--json ", ""), store, PYTHONIOENCODING="koi8-r")
    assert done.returncode == 0 and b"?n?code [x].txt" in done.stdout, done.stderr
    done = shell(world, f"{ask} | head -c 1 | wc -c", store)
    assert done.stdout.strip() == b"1" and done.stderr == b""
    done = shell(world, f"{ask} >&-", store)
    assert done.returncode in (0, 1) and b"Traceback" not in done.stderr
    for closed in (f"m3mlx ask - {encoder} <&-", f"m3mlx chat {encoder} <&-"):
        done = shell(world, closed, store)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr


# --- eval and demo


def test_eval_reports_every_mode(m3, world, tmp_path):
    file = tmp_path / "questions.jsonl"
    lines = [
        {"document": f"The {a} is {b}.", "question": f"What is the {a}?", "answers": [b], "kind": b}
        for a, b in (("boat", "green"), ("cat", "old"), ("door", "blue"))
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--encoder", world / "encoder", "--budget", "uniform:4", "--memories", "2"]
    flags += ["--limit", "2", "--plot", tmp_path / "plot.svg", "--keep", tmp_path / "kept"]
    few = ["--answer-tokens", "4"]
    data = json.loads(good(m3("eval", file, *flags, *few, "--json")).stdout)
    assert [row["mode"] for row in data["rows"]] == list(evaluate.CONDITIONS)
    assert (data["questions"], data["documents"]) == (2, 3)
    assert 0 <= data["rows"][3]["f1"]["value"] <= 1 and data["recall"]["20"]["value"] == 1
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    kept = tmp_path / "kept" / "results.jsonl"
    before = kept.read_bytes()
    shown = good(m3("eval", file, *flags, *few))
    assert kept.read_bytes() == before  # nothing is asked twice
    assert "100.0% (34–100) among the first 20" in shown.stdout
    assert re.search(r"^F1, explicit 2: green [\d.]+% of 1, old", shown.stdout, re.M)
    data = json.loads(good(m3("eval", file, *flags, "--answer-tokens", "0", "--json")).stdout)
    assert data["rows"][0]["recovered"] == 0
    assert data["rows"][1]["recovered"] == pytest.approx(1)
    shown = good(m3("eval", file, *flags, "--answer-tokens", "0"))
    for mode in evaluate.CONDITIONS:
        assert re.search(rf"^ *{mode} ", shown.stdout, re.M)
        assert re.search(rf"^{mode} ", shown.stderr, re.M)
    assert not (tmp_path / "store").exists()
    refused(m3("eval", file, "--keep", file), 2, "is a file")


@pytest.mark.slow
def test_eval_has_other_tasks(m3, world, tmp_path):
    flags = ["--encoder", world / "encoder", "--budget", "uniform:4", "--answer-tokens", "4"]
    question = {"document": "The boat is green.", "question": "Is it?", "answer": "green"}
    line = {**question, "changed": "red", "choices": ["green", "red"]}
    texts = [{"document": "The harbour light was lit in March. " * 3 + str(i)} for i in range(2)]
    for task, lines, words in (
        ("recite", texts, "never memorized"),
        ("update", [line], "changed"),
        ("choice", [line], "chance"),
    ):
        file = tmp_path / f"{task}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        assert words in good(m3("eval", file, "--task", task, *flags)).stdout
        rows = json.loads(good(m3("eval", file, "--task", task, *flags, "--json")).stdout)["rows"]
        assert any(words in row.values() for row in rows)
        refused(m3("eval", file, "--task", task, "--memories", 1, "--memories", 2), 2, "one value")
        refused(m3("eval", file, "--task", task, "--others", tmp_path / "none"), 1, "none")


@pytest.mark.slow
def test_the_demo_shows_three_questions_in_three_modes(m3, world, tmp_path, monkeypatch):
    from m3mlx import demo

    kept, run = [], demo.run
    monkeypatch.setattr(
        demo, "run", lambda *args, **given: kept.append(run(*args, **given)) or kept[0]
    )
    data = json.loads(good(m3("demo", *made(world), "--json")).stdout)
    assert len(data["exchanges"]) == 3 and "history.pdf" in data["documents"]
    for exchange in data["exchanges"]:
        assert list(exchange["replies"]) == ["explicit", "text", "off"]
        assert exchange["replies"]["explicit"]["sources"]
        assert exchange["replies"]["off"]["sources"] == []
    text = good(m3("demo", *made(world))).stdout
    for exchange in data["exchanges"]:
        assert exchange["question"] in text
    assert "m3mlx memorize PATH" in text and "m3mlx chat" in text
    assert not (tmp_path / "store").exists()


# --- chat


@pytest.fixture
def chat(m3, world) -> Callable[..., Result]:
    """Type lines into a chat; greedy, with short answers."""
    flags = [*made(world), "--max-tokens", "4", "--retrieval", "text"]
    return lambda *lines, **settings: m3("chat", *flags, input="\n".join(lines), **settings)


def test_a_chat_answers_and_names_its_documents(world, chat):
    result = good(chat("the quince tree", "", "/sources", "/quit", "x", store=world / "store"))
    assert re.search(r"^\[From .*notes\.md:1.*\]$", result.stdout, re.M)
    assert re.search(r"^\S*notes\.md:1  .*quince", result.stdout, re.M)
    assert "documents in memory" in result.stderr
    assert len(re.findall(r"\[From", result.stdout)) == 1


def test_a_chat_names_choices_the_model_and_says_where_there_are_no_sources(world, chat):
    result = good(
        chat("/sources", "/memory banana", "/model", "/memory off", "hm", "/sources", "/help")
    )
    assert "Error: memory is one of explicit, text, off, not banana" in result.stderr
    assert "No answer yet." in result.stderr and "drew on no document" in result.stderr
    assert re.search(r"^model +.*decoder$", result.stdout, re.M)
    assert re.search(r"^memory +explicit, 5 for each 64 tokens$", result.stdout, re.M)
    assert re.search(r"^/save FILE +write", result.stdout, re.M)


def test_wrong_lines_in_a_chat_are_one_line_each_and_not_the_end(chat, tmp_path):
    lines = ["/frob", "/memory maybe", "/memorize", "/forget", "/save", "/reset now", "/help x"]
    lines += ["/forget /nowhere", "the quince tree", "it's", "/forget it's", "/quit now"]
    result = good(chat(*lines, "/help"))
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == len(lines) and "Traceback" not in result.stderr
    assert "/memorize PATH" in result.stdout


def test_what_is_memorized_or_forgotten_in_a_chat_counts_in_the_next_answer(chat, world, tmp_path):
    note = tmp_path / "my note.txt"
    note.write_text("The heron lives behind the mill.")
    result = chat(
        *("/memory off", "where is the heron?", f"/memorize '{note}'", "/memory explicit"),
        *("where is the heron?", "/sources", f"/memorize {world / 'documents'}"),
        *("when does the ferry leave?", f"/forget '{note}'", "where is the heron?", "/sources"),
    )
    good(result)
    first, second, third = re.findall(r"^\[From (.*)\]$", result.stdout, re.M)
    assert "my note.txt" in first and "plain.txt" not in first
    assert "plain.txt" in second and "my note.txt" not in third
    after = result.stdout.split("Forgot ")[1]
    assert after.count("my note.txt") == 1  # where it says that it is forgotten


def test_a_chat_that_began_without_memory_reads_what_it_memorizes(world, tmp_path):
    """Compared with a conversation that could read memories from its beginning."""
    from m3mlx import Assistant

    note = tmp_path / "note.txt"
    note.write_text("The heron lives behind the mill, and the owl in the tower of the church.")
    answers = []
    for early in (True, False):
        with Assistant(
            str(world / "decoder"),
            tmp_path / f"store-{early}",
            encoder=str(world / "encoder"),
            tokens_per_head=8,
        ) as mind:
            if early:
                mind.memorize([note])
            talk = mind.chat(memory="off")
            said = ["".join(step.text for step in talk.send("good morning", max_tokens=8))]
            if not early:
                mind.memorize([note])
            talk.memory = "explicit"
            said.append("".join(step.text for step in talk.send("the heron?", max_tokens=24)))
            talk.memory = "off"
            said.append("".join(step.text for step in talk.send("the heron?", max_tokens=24)))
            answers.append(said)
    assert answers[0] == answers[1]


def test_a_conversation_is_saved_once_and_for_its_owner_alone(chat, world, tmp_path):
    lines, markdown = tmp_path / "talk.jsonl", tmp_path / "talk.md"
    good(chat("hello", f"/save {lines}", f"/save {markdown}", store=world / "store"))
    messages = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "hello"
    assert markdown.read_text().startswith("**User:**\n\nhello\n")
    assert {file.stat().st_mode & 0o777 for file in (lines, markdown)} == {0o600}
    before = lines.read_bytes()
    result = good(chat(f"/save {lines}", f"/save {tmp_path / 'no' / 'x'}", store=world / "store"))
    assert result.stderr.count("Error: ") == 2 and lines.read_bytes() == before


def test_reset_begins_a_new_conversation(chat, world, tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    once = ["the quince tree", f"/save {files[0]}", "/reset"]
    good(chat(*once, "the quince tree", f"/save {files[1]}", store=world / "store"))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_stdin_that_is_no_text_is_survived(world, m3):
    flags = ["--encoder", world / "encoder", "--max-tokens", "2"]
    result = m3("chat", *flags, input=b"\xff\xfe what\n\x00\n", store=world / "store")
    assert good(result).stdout.count("[From") >= 1


def _in_front() -> None:
    """Let Ctrl-C reach the process, also where the tests themselves run in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, world: Path, store: Path, *args: object):
        self.master, slave = os.openpty()
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "m3mlx", *map(str, args)],
            env={**os.environ, **environment(world, store), "TERM": "xterm"},
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_in_front,
        )
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 120) -> bytes:
        """What is shown until a pattern has come up."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern.encode(), self.seen)):
            ready = select.select([self.master], [], [], end - time.monotonic())[0]
            assert ready, f"{pattern} did not come: {self.seen[-500:]}"
            self._read()
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def _read(self) -> None:
        try:
            self.seen += os.read(self.master, 4096)
        except OSError:  # the program has ended
            raise AssertionError(f"it ended: {self.seen[-500:]}") from None

    def end(self, seconds: float = 120) -> int:
        """Read until the program has ended; return its exit code."""
        end = time.monotonic() + seconds
        try:
            while ready := select.select([self.master], [], [], max(end - time.monotonic(), 0))[0]:
                self.seen += os.read(self.master, 4096)
            assert ready, f"it does not end: {self.seen[-500:]}"
        except OSError:
            pass
        finally:
            os.close(self.master)
        return self.process.wait(seconds)


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(world, tmp_path):
    flags = ["--memory", "off", "--max-tokens", "1000000", "--encoder", world / "encoder"]
    terminal = Terminal(world, tmp_path / "none", "chat", *flags)
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("hello\r\n.{20}")
    terminal.type("\x03")
    terminal.wait_for(" …\r\n.*> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    time.sleep(0.2)
    terminal.type("\x03")  # at the prompt it does no harm
    terminal.wait_for("> ")
    terminal.type("/memory\n")
    terminal.wait_for("off\r\n.*> ")
    terminal.type("\x1b[A\n")  # the last line again
    terminal.wait_for("off\r\n.*> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert not (world / "home" / "cache" / "chat-history").exists()
    assert not (tmp_path / "none").exists()  # lines are kept in a store, and there is none


@pytest.mark.slow
def test_lines_pasted_together_are_one_message_and_alt_enter_breaks_a_line(world, tmp_path):
    flags = ["--memory", "off", "--max-tokens", "2", "--encoder", world / "encoder"]
    terminal = Terminal(world, tmp_path / "none", "chat", *flags)
    terminal.wait_for("> ")
    said = tmp_path / "said.jsonl"
    for keys in ("\x1b[200~first\nsecond\n/quit\x1b[201~\r", "third\x1b\rfourth\r"):
        terminal.type(keys)
        terminal.wait_for("\r\n.*> $")
    terminal.type(f"/save {said}\r")
    terminal.wait_for("Saved")
    terminal.wait_for("> $")
    terminal.type("\x04")
    assert terminal.end() == 0
    messages = [json.loads(line)["content"] for line in said.read_text().splitlines()]
    assert messages[::2] == ["first\nsecond\n/quit", "third\nfourth"]


def test_what_goes_on_is_shown_until_the_answer_begins(world, tmp_path):
    flags = ["--encoder", world / "encoder", "--max-tokens", "40"]
    terminal = Terminal(world, world / "store", "ask", "quince?", *flags)
    assert terminal.end() == 0
    shown = terminal.seen.decode()
    for word in ("Loading", "Searching", "Reading", "Answering"):
        assert word in shown, word
    begin = shown.rindex("\x1b[2K")  # the last line that was erased
    assert "notes.md" in shown[begin:] and "Answering" not in shown[begin:]


def test_ctrl_c_keeps_what_is_committed_and_the_next_run_goes_on(world, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number:03}.txt").write_text(f"The heron number {number} eats fish. " * 3)
    store = tmp_path / "store"
    terminal = Terminal(world, store, "memorize", folder, *made(world))
    end = time.monotonic() + 300  # of a busy machine
    while (
        run(world, "status", store=store).exit_code
        or not json.loads(run(world, "status", "--json", store=store).stdout)["references"]
    ):
        assert time.monotonic() < end
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert b"Interrupted; committed documents are kept. Run it again to continue." in terminal.seen
    assert b"Traceback" not in terminal.seen
    kept = json.loads(run(world, "status", "--json", store=store).stdout)["references"]
    data = json.loads(
        good(run(world, "memorize", folder, *made(world), "--json", store=store)).stdout
    )
    whole = json.loads(run(world, "status", "--json", store=store).stdout)
    assert 0 < kept < whole["references"] == kept + data["references"]


# --- how things look


@pytest.mark.parametrize("count", [40, 80, 200])
def test_a_list_fits_the_terminal_and_paths_keep_their_ends(monkeypatch, capsys, count):
    monkeypatch.setattr(render, "_columns", lambda: count)
    path = "~/a/folder/with a long name/and another one/deep below/house-and-garden.md"
    render.echo_table(
        ("id", "references", "memories", "added", "state", "collection", "path"),
        [(n, 12, "1.2 MB", "2026-11-28 05:10", "warm", "", path) for n in (1, 20)],
        optional=("collection", "added", "memories", "state", "references"),
    )
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    lines = [line.rstrip() for line in shown.splitlines() if line.strip()]
    assert max(map(len, lines)) <= count and len(lines) == 4  # no row takes two lines
    assert all(line.endswith("garden.md") for line in lines[2:])
    assert ("state" in lines[0]) == (count >= 80) and "collection" not in lines[0]
    assert (path in lines[2]) == (count == 200)


def test_paths_are_as_one_would_type_them(tmp_path, monkeypatch):
    (tmp_path / "home" / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "here")
    for path, short in (
        (tmp_path / "home" / "here" / "a" / "b.md", "a/b.md"),
        (tmp_path / "home" / "b.md", "~/b.md"),
        (tmp_path / "home2" / "b.md", str(tmp_path / "home2" / "b.md")),
        ("text:kite", "text:kite"),
        ("/b.md", "/b.md"),
    ):
        assert render.short_path(str(path)) == short


def test_a_source_shows_the_sentence_that_is_closest(capsys):
    text = "House › Boiler\n\nThe gate is green since May. The boiler was serviced by Ada Quill."
    hit = SimpleNamespace(path="a.md", page=None, line=3, text=text, store=None)
    shown = SimpleNamespace(sources=[hit], texts={0: "Ada Quill did."}, shares=(), used=[hit])
    render.echo_sources(shown, "Who serviced the boiler?")
    assert capsys.readouterr().out == "a.md:3  The boiler was serviced by Ada Quill.\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2e9, "2.0 GB")],
)
def test_bytes_for_people(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")]
)
def test_seconds_for_people(seconds, text):
    assert human_seconds(seconds) == text


def test_documents_cannot_steer_the_terminal():
    assert (
        scrub_line("a\x1b[2Jb\nc\u202ed")
        == "a\N{REPLACEMENT CHARACTER}[2Jb c\N{REPLACEMENT CHARACTER}d"
    )
    assert scrub_line("Füße 漢字 👩‍🚀 a\u00a0b") == "Füße 漢字 👩‍🚀 a\u00a0b"
