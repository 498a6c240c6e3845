"""Documents read in a process of its own: no file hangs, kills or fills the one that asks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m3mlx.documents import Worker, formats, parse, read, worker
from m3mlx.errors import DocumentError
from tests.samples import write, write_docx, write_pdf

HOSTILE = """
import os, signal, time
import m3mlx.documents.formats as formats

def hang(path, data, note):
    while True:
        pass

def sleep(path, data, note):
    time.sleep(1000)

def eat(path, data, note):
    kept = []
    while True:
        kept.append(bytes(10_000_000))

def crash(path, data, note):
    os.kill(os.getpid(), signal.SIGSEGV)

def leave(path, data, note):
    os._exit(3)

def talk(path, data, note):
    print("a library prints this")
    os.write(1, b"and this")
    return data.decode()

for reader in (hang, sleep, eat, crash, leave, talk):
    formats.FORMATS[f".{reader.__name__}"] = formats.Format(reader, plain=False)
"""
PARAGRAPH = "<w:p><w:r><w:t>The ferry leaves at noon.</w:t></w:r></w:p>"


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Formats whose readers do harm, known to the processes that are started from now on."""
    write(tmp_path / "places/sitecustomize.py", HOSTILE)
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "places"), root)))
    for name in "hang sleep eat crash leave talk".split():
        monkeypatch.setitem(formats.FORMATS, f".{name}", formats.Format(None, plain=False))
    return tmp_path


def is_running(process):
    return process.poll() is None


def test_what_a_worker_reads_is_what_is_read_here(tmp_path):
    files = [
        write(tmp_path / "a.md", "# Title\n\nText"),
        write_pdf(tmp_path / "b.pdf", [["One"], ["Two"]]),
        write_docx(tmp_path / "c.docx", PARAGRAPH),
        write(tmp_path / "d.csv", "name,port\nAda,Kiel\n"),
        write(tmp_path / "näme é.html", "<p>中文 &#x1F600; é"),
        write(tmp_path / "f.json", '{"a": "\\ud83d\\ude00"}'),
    ]
    with Worker() as mine:
        for file in files:
            assert mine.read(file) == read(file)
            name = Path("/none/there") / file.name
            assert mine.parse(name, file.read_bytes()) == parse(name, file.read_bytes())


def test_errors_are_those_of_reading_here(tmp_path):
    for file in (
        tmp_path / "missing.pdf",
        write(tmp_path / "empty.pdf", b""),
        write(tmp_path / "broken.docx", b"PK nothing"),
        write(tmp_path / "broken.md", b"\0\0\0"),
        tmp_path,
    ):
        with pytest.raises(DocumentError) as here:
            read(file)
        with Worker() as mine, pytest.raises(DocumentError) as there:
            mine.read(file)
        assert (there.value.path, there.value.reason) == (here.value.path, here.value.reason)


def test_plain_text_starts_no_process_and_others_share_one(tmp_path):
    with Worker() as mine:
        mine.read(write(tmp_path / "a.md"))
        mine.read(write(tmp_path / "a.py"))
        assert mine._process is None
        mine.read(write_docx(tmp_path / "a.docx", PARAGRAPH))
        first = mine._process
        with pytest.raises(DocumentError):
            mine.read(write(tmp_path / "b.docx", b"PK"))
        mine.read(write_docx(tmp_path / "c.docx", PARAGRAPH))
        assert mine._process is first and is_running(first)
    assert not is_running(first)


@pytest.mark.parametrize("name", ["hang", "sleep"])
def test_a_reader_that_hangs_is_ended_and_the_next_file_is_read(hostile, monkeypatch, name):
    monkeypatch.setattr(worker, "SECONDS", 1.0)
    monkeypatch.setattr(worker, "PATIENCE", 1.5)
    with Worker() as mine:
        start = time.monotonic()
        with pytest.raises(DocumentError, match=rf"a\.{name}: takes longer than 1 seconds"):
            mine.read(write(hostile / f"a.{name}"))
        assert time.monotonic() - start < 10
        monkeypatch.setattr(worker, "SECONDS", 60.0)
        assert mine.read(write_docx(hostile / "a.docx", PARAGRAPH)).text.startswith("The ferry")


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit it elsewhere")
def test_a_reader_that_eats_memory_is_refused(hostile, monkeypatch):
    monkeypatch.setattr(worker, "MEMORY", 300_000_000)
    with Worker() as mine:
        with pytest.raises(DocumentError, match=r"a\.eat: needs more than 0\.3 GB of memory"):
            mine.read(write(hostile / "a.eat"))
        assert mine.read(write_docx(hostile / "a.docx", PARAGRAPH)).text.startswith("The ferry")


def test_a_reader_that_eats_memory_is_seen_from_outside(hostile, monkeypatch):
    monkeypatch.setattr(worker, "MEMORY", 100_000_000)
    monkeypatch.setattr(worker, "LIMITS_DATA", False)
    monkeypatch.setattr(worker, "LOOK", 0.0)
    monkeypatch.setattr(worker, "_resident", lambda pid: 10**9)
    with Worker() as mine, pytest.raises(DocumentError, match=r"needs more than 0\.1 GB of memory"):
        mine.read(write(hostile / "a.sleep"))


def test_the_memory_of_a_process_is_known():
    assert 10**6 < worker._resident(os.getpid()) < 10**11
    assert worker._resident(2**30) == 0


@pytest.mark.parametrize(("name", "how"), [("crash", "SIGSEGV"), ("leave", "code 3")])
def test_a_reader_that_crashes_refuses_its_file_alone(hostile, name, how):
    with Worker() as mine:
        with pytest.raises(DocumentError, match=rf"a\.{name}: made the program crash .*{how}"):
            mine.read(write(hostile / f"a.{name}"))
        assert mine.read(write_docx(hostile / "a.docx", PARAGRAPH)).text.startswith("The ferry")


def test_what_a_library_prints_is_no_answer(hostile):
    with Worker() as mine:
        assert mine.parse(hostile / "a.talk", b"heard").text == "heard"
        assert mine.parse(hostile / "a.talk", b"again").text == "again"


def test_who_stops_waiting_ends_the_reading(hostile):
    class Left(BaseException):
        pass

    processes = []

    def leave():
        processes.append(mine._process)
        if len(processes) == 3:
            raise Left

    with Worker(leave) as mine:
        with pytest.raises(Left):
            mine.read(write(hostile / "a.hang"))
        assert mine._process is None and not is_running(processes[0])


def test_a_worker_ends_with_the_process_that_started_it(hostile):
    code = (
        "import sys; from m3mlx.documents import Worker, formats\n"
        "formats.FORMATS['.leave'] = formats.Format(None, plain=False)\n"
        "mine = Worker(); mine.parse('/a.talk.csv', b'a,b')\n"
        "print(mine._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())
    assert _exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while _exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _exists(pid)


def _exists(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def test_modules_of_the_present_folder_are_not_taken(tmp_path, monkeypatch):
    write(tmp_path / "csv.py", "raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Worker() as mine:
        assert mine.parse("/a.csv", b"name,port\nAda,Kiel\n").text.endswith("port: Kiel")
