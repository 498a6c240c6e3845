"""Nobody else reads the files, and nothing of a document is anywhere but in the store."""

import ast
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from small_store import memorize, new_store, references

from m3mlx.cli import main
from m3mlx.store import MemoryStore

ROOT = Path(__file__).parents[1]
SECRET = "xylograph"  # a word of the documents, and of nothing else
TEXT = f"The {SECRET} of Zebulon Quix hangs behind the door.\n\n"

# A life under umask 000. At every audit event of Python that changes files, all below HOME are
# looked at, but for the cache: it has calibrations and hashes of models.
LIFE = """
import os, sys
os.umask(0)
home, temporary, commands = sys.argv[1], sys.argv[2], sys.argv[3:]
seen, wrong, inside = set(), set(), False

def look(event, args):
    global inside
    if inside:
        return
    inside = True
    for top in (home, temporary):
        for folder, folders, names in os.walk(top):
            if "cache" in folders:
                folders.remove("cache")  # of what belongs to models
            for name in names:
                path = os.path.join(folder, name)
                try:
                    mode = os.stat(path).st_mode & 0o777
                except FileNotFoundError:
                    continue
                seen.add(path)
                if mode != 0o600 or top == temporary:
                    wrong.add(f"{path} {mode:o} at {event}")
            try:
                if os.stat(folder).st_mode & 0o777 != 0o700:
                    wrong.add(f"{folder} at {event}")
            except FileNotFoundError:
                continue
    inside = False

from m3mlx.cli import main
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OTHERS = {
    *("os.rename", "os.remove", "os.chmod", "os.mkdir", "os.truncate", "sqlite3.connect"),
    "fcntl.flock",
}
sys.addaudithook(
    lambda event, args: look(event, args)
    if event in OTHERS or (event == "open" and (args[2] or 0) & WRITING)
    else None
)
for command in commands:
    try:
        main(command.split("|"))
    except SystemExit as end:
        if end.code:
            raise
look("end", None)
print("SEEN", *sorted({os.path.basename(path) for path in seen}), file=sys.stderr)
if wrong:
    sys.exit("WRONG " + "\\n".join(sorted(wrong)))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    tiny.save_model(world / "decoder")
    tiny.save_encoder(world / "encoder")
    (world / "notes").mkdir()
    for name in ("one.md", "two.txt"):
        (world / "notes" / name).write_text(f"{name} {TEXT}" * 30)
    return world


def environment(world, home):
    return {
        "M3MLX_HOME": str(home),
        "M3MLX_MODEL": str(world / "decoder"),
        "M3MLX_STORE": str(home / "store"),
    }


def run(world, home, *args, code=0):
    result = CliRunner().invoke(main, [*map(str, args)], env=environment(world, home))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


def test_files_are_private_from_the_first_byte_and_nothing_is_written_elsewhere(world, tmp_path):
    home, temporary, here = tmp_path / "home", tmp_path / "temporary", tmp_path / "here"
    for folder in (home, temporary, here):
        folder.mkdir(mode=0o700)
    encoder = f"--encoder|{world / 'encoder'}"
    notes, file = world / "notes", home / "notes.m3"
    result = subprocess.run(
        [
            *(sys.executable, "-c", LIFE, home, temporary),
            f"memorize|{notes}|{encoder}|--tokens-per-head|4",
            f"recall|{SECRET}|{encoder}",
            f"ask|{SECRET}|--max-tokens|2|{encoder}",
            f"keygen|{home / 'key'}",
            f"export|{file}|--sign|{home / 'key'}",
            f"import|{file}|--store|{home / 'copy'}",
            f"forget|{notes / 'one.md'}|--verify",
        ],
        env={
            **os.environ,
            **environment(world, home),
            "TMPDIR": str(temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=here,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (seen,) = [line for line in result.stderr.splitlines() if line.startswith("SEEN")]
    names = set(seen.split())
    assert {"catalog.sqlite", "catalog.sqlite-wal", "lock", "notes.m3", "key"} <= names
    assert any(name.startswith("notes.m3.") for name in names)  # while it was written
    assert any(name.startswith("memories") for name in names)
    assert not list(temporary.iterdir()) and not list(here.iterdir())
    stores = [home / "store", home / "copy"]
    for path in home.rglob("*"):
        if path.is_file() and path != file and not any(path.is_relative_to(s) for s in stores):
            data = path.read_bytes()
            assert SECRET.encode() not in data and b"Zebulon" not in data, path


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_the_database_has_its_temporary_files_in_the_store(tmp_path):
    """VACUUM writes all text to a file, which SQLite would put into /var/tmp."""
    path, files, done = tmp_path / "store", set(), threading.Event()

    def watch():
        while not done.is_set():
            for descriptor in os.listdir("/proc/self/fd"):
                try:
                    files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
                except OSError:
                    continue

    with new_store(path) as store:
        first = memorize(store, "/a", [f"{n} {TEXT}" * 200 for n in range(500)], cold=True)
        memorize(store, "/b", [f"{n} {TEXT}" * 200 for n in range(500)], cold=True)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            store.forget([first])
        finally:
            done.set()
            watcher.join()
    temporary = {Path(file) for file in files if "etilqs" in file}
    assert temporary and {file.parent for file in temporary} == {path}


# what is said


def broken_files(folder):
    folder.mkdir()
    (folder / "a.json").write_text(f'{{"{SECRET}": "{TEXT.strip()}",,}}')
    (folder / "b.json").write_text(f'["{SECRET} \\ud800 {SECRET}"]')
    (folder / "c.ipynb").write_text(f'{{"cells": [{{"source": 3, "{SECRET}": 1}}]')
    (folder / "d.csv").write_bytes(f'{SECRET},"\n\x00'.encode() + b"\xff\xfe\xfd")
    (folder / "e.docx").write_bytes(b"PK\3\4" + TEXT.encode())
    (folder / "f.pdf").write_bytes(b"%PDF-1.4\n" + TEXT.encode())
    (folder / "g.epub").write_bytes(b"PK\3\4" + TEXT.encode())
    (folder / "h.eml").write_bytes(b"Content-Type: multipart/mixed; boundary=" + TEXT.encode())
    (folder / "i.txt").write_bytes(TEXT.encode() + b"\x00\x81\x8d\xff" * 50)
    (folder / "j.md").write_bytes(TEXT.encode("utf-16") + b"\xd8")


def silent(result):
    assert SECRET not in result.output and "Zebulon" not in result.output, result.output


def test_no_message_quotes_a_document_that_cannot_be_read(world, tmp_path, home):
    broken_files(tmp_path / "broken")
    made = ["--encoder", world / "encoder", "--tokens-per-head", "4"]
    for file in sorted((tmp_path / "broken").iterdir()):
        result = CliRunner().invoke(
            main, [*map(str, ("memorize", file, *made, "-v"))], env=environment(world, home)
        )
        assert result.exit_code in (0, 1)
        silent(result)
    questions = tmp_path / "questions.jsonl"
    for line in (f'{{"document": "{SECRET}"', f'{{"document": ["{SECRET}"]}}', f'["{SECRET}"]'):
        questions.write_text(line)
        silent(run(world, home, "eval", questions, "-v", code=1))


@pytest.mark.slow
def test_no_message_quotes_a_document_of_a_damaged_store(world, home):
    made = ["--encoder", world / "encoder", "--tokens-per-head", "4"]
    run(world, home, "memorize", world / "notes", *made)
    store, file = home / "store", home / "file.m3"
    run(world, home, "export", file)
    whole = {path: path.read_bytes() for path in [*store.iterdir(), file]}
    for path, data in whole.items():
        for at in range(0, len(data), max(1, len(data) // 4)):
            path.write_bytes(data[:at] + b"\x99" * 64 + data[at + 64 :])
            for args in (("status",), ("export", home / "again"), ("list",), ("forget", "9")):
                silent(
                    CliRunner().invoke(main, [*map(str, args), "-v"], env=environment(world, home))
                )
            silent(
                CliRunner().invoke(
                    main,
                    ["import", str(file), "--store", str(home / f"{path.name}{at}"), "-v"],
                    env=environment(world, home),
                )
            )
            (home / "again").unlink(missing_ok=True)
            for name, bytes in whole.items():
                name.write_bytes(bytes)


def test_text_that_is_no_unicode_is_refused_without_being_quoted(tmp_path):
    with new_store(tmp_path / "store") as store:
        document, _ = store.begin("/a", "h", 1, size=1)
        with pytest.raises(Exception, match="Unicode") as caught:
            store.add([replace(references(document, ["x"])[0], text=f"{SECRET} \ud800")])
        assert SECRET not in str(caught.value)
        with pytest.raises(Exception, match=r"/b\\udcff") as caught:
            store.begin("/b\udcff", "h", 1, size=1)
    with MemoryStore.open(tmp_path / "store") as store:
        assert store.status()["references"] == 0


# what is in the code

FORBIDDEN = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("jsonpickle", "pickletools", "copyreg"),
}


def unpickles(node: ast.AST) -> bool:
    """Whether a node of a program uses pickle, or a loader that may."""
    if isinstance(node, ast.Import):  # pickle itself is allowed, for the error that PyTorch raises
        names = [alias for alias in node.names if (alias.name, alias.asname) != ("pickle", None)]
        return any(alias.name.split(".")[0] in FORBIDDEN for alias in names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in FORBIDDEN
    if isinstance(node, ast.Attribute):
        return ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError"
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    loads = called in ("np.load", "numpy.load")
    return (
        called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.save")
        or "pickle_module" in given
        or (("allow_pickle" in given or loads) and given.get("allow_pickle") != "False")
        or (called == "torch.load" and given.get("weights_only") != "True")
    )


def test_nothing_is_ever_unpickled():
    """Neither by pickle and its kin nor by the loaders of NumPy, PyTorch and YAML that use it."""
    paths = [path for top in ("m3mlx", "convert", "tools") for path in (ROOT / top).rglob("*.py")]
    assert len(paths) > 100
    found = [
        f"{path}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if unpickles(node)
    ]
    assert found == []


def test_what_unpickles_is_seen():
    for line in (
        "import shelve",
        "import pickle as p",
        "from pickle import load",
        "pickle.loads(x)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "f(pickle_module=x)",
        "torch.save(x, y)",
        "eval(x)",
        "yaml.load(x)",
    ):
        assert any(map(unpickles, ast.walk(ast.parse(line)))), line
    allowed = "import pickle\npickle.UnpicklingError\ntorch.load(x, weights_only=True)\n"
    assert not any(map(unpickles, ast.walk(ast.parse(allowed))))


def test_nothing_of_the_store_is_logged():
    """The store and what reads documents have no logger of their own and no temporary folder."""
    for path in [*(ROOT / "m3mlx/store").rglob("*.py"), *(ROOT / "m3mlx/documents").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not names & {"tempfile", "warnings"}, path
        assert not names & {"logging"} or path.name == "pdf.py", path  # which silences a library
