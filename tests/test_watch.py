"""Folders that are followed: when, by plain functions of time; what, with real files and events."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny

from m3mlx import Assistant, MemoryStore
from m3mlx.errors import FingerprintError, M3Error, StoreError
from m3mlx.store import watched
from m3mlx.watch import FILES, LONGEST, Event, Pending, Watcher, slept

QUICK = {"debounce": 0.2, "grace": 0.6, "rescan": 3600.0}


# --- decisions


def test_a_path_is_taken_when_it_rests():
    pending = Pending(debounce=2, grace=60)
    pending.note("a", 10)
    pending.note("b", 11)
    assert pending.take(11.9) == []
    assert pending.take(12) == ["a"]
    pending.note("b", 12.5)
    assert pending.take(13.1) == []
    assert pending.take(14.5) == ["b"]
    assert pending.take(99) == []


def test_a_path_that_never_rests_is_taken_all_the_same():
    pending = Pending(debounce=2, grace=60)
    taken = []
    for second in range(100):
        pending.note("log", second)
        taken += [second for _ in pending.take(second)]
    assert taken == [30, 61, 92] and LONGEST * 2 == 30


def test_what_is_gone_is_forgotten_after_its_grace_and_only_then():
    pending = Pending(debounce=2, grace=60)
    assert pending.missed("a", 5) and pending.missed("b", 6)
    assert not pending.missed("a", 50)  # told already, and its grace does not begin anew
    assert pending.overdue(64) == []
    assert pending.overdue(65) == ["a"]
    pending.found("a")
    assert pending.overdue(65) == [] and pending.overdue(66) == ["b"]
    assert pending.missed("a", 66)


@pytest.mark.parametrize(
    "wall, own, jumped", [(0.3, 0.3, False), (12, 12.5, False), (3600, 0.4, True), (-60, 1, True)]
)
def test_sleep_shows_in_the_difference_of_two_clocks(wall, own, jumped):
    assert slept(wall, own) is jumped


# --- a real watcher on real files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.save_model(folder / "decoder")
    tiny.save_model(folder / "other", seed=1)
    tiny.save_encoder(folder / "encoder")
    return folder


class World:
    """A folder, a store, and somebody who watches in another thread."""

    def __init__(self, models: Path, folder: Path):
        self.models, self.folder = models, folder
        self.notes, self.store = folder / "notes", folder / "store"
        self.notes.mkdir()
        self.events: queue.Queue[Event] = queue.Queue()
        self.told: list[Event] = []

    def assistant(self, model="decoder"):
        return Assistant(
            str(self.models / model),
            self.store,
            encoder=str(self.models / "encoder"),
            tokens_per_head=4,
            budget="uniform",
        )

    def write(self, name: str, text: str) -> Path:
        path = self.notes / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    @contextmanager
    def watching(self, *paths: Path, **settings):
        stop, errors = threading.Event(), []
        tell = self.events.put

        def run():
            try:
                with self.assistant() as assistant:  # MLX's arrays belong to their thread
                    options = {**QUICK, "cold": True, "stop": stop, "tell": tell, **settings}
                    Watcher(assistant, paths or [self.notes], **options).run()
            except BaseException as error:
                errors.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        try:
            deadline = time.monotonic() + 120
            while "pending" not in (watched.seen(self.store) or {}):
                assert not errors and time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            stop.set()
            thread.join(120)
        assert not errors and not thread.is_alive()
        assert watched.seen(self.store) is None

    def wait(self, *wanted: tuple, seconds: float = 120) -> None:
        """Until all of these were told: (what, file's name)."""
        missing = list(wanted)
        deadline = time.monotonic() + seconds
        while missing:
            left = deadline - time.monotonic()
            try:
                event = self.events.get(timeout=max(left, 0.01))
            except queue.Empty:
                raise AssertionError(f"{missing} was not told, but {self.told}") from None
            self.told.append(event)
            key = (event.what, Path(event.path).name)
            if key in missing:
                missing.remove(key)

    def quiet(self, seconds: float = 1.5) -> list[Event]:
        time.sleep(seconds)
        found = []
        while not self.events.empty():
            found.append(self.events.get())
        return found

    def stored(self) -> dict[str, str]:
        """Hash of each document by the name of its file."""
        with MemoryStore.open(self.store) as store:
            return {Path(d.path).name: d.hash for d in store.documents() if d.complete}

    def ids(self) -> dict[str, int]:
        with MemoryStore.open(self.store) as store:
            return {Path(d.path).name: d.id for d in store.documents()}


@pytest.fixture
def world(models, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(models / "home"))  # one calibration serves all
    return World(models, tmp_path)


def test_added_changed_renamed_and_forgotten(world):
    world.write("boat.md", "The boat is blue.")
    world.write("boiler.md", "The boiler is old.")
    with world.watching():
        world.wait(("added", "boat.md"), ("added", "boiler.md"))
        before = world.stored()
        world.write("kite.md", "The kite is in the tree.")
        world.write("boat.md", "The boat is green.")
        world.wait(("added", "kite.md"), ("changed", "boat.md"))
        assert world.stored()["boat.md"] != before["boat.md"]

        id = world.ids()["boiler.md"]
        (world.notes / "boiler.md").rename(world.notes / "heating.md")
        world.wait(("renamed", "heating.md"))
        assert world.ids()["heating.md"] == id and "boiler.md" not in world.ids()

        (world.notes / "kite.md").unlink()
        world.wait(("vanished", "kite.md"))
        assert "kite.md" in world.stored()
        world.wait(("forgotten", "kite.md"))
        assert set(world.stored()) == {"boat.md", "heating.md"}
    assert not {event.what for event in world.told} & {"failed", "waiting", "away", "polling"}
    with MemoryStore.open(world.store) as store:  # renaming left every checksum right
        assert len(store.references(store.slots())) == store.status()["references"]


@pytest.mark.slow
def test_editors_that_save_by_renaming_change_a_file(world):
    world.write("a.md", "One.")
    with world.watching():
        world.wait(("added", "a.md"))
        for text in ("Two.", "Three."):
            world.write("a.md.tmp", text).replace(world.notes / "a.md")
            world.wait(("changed", "a.md"))
        (world.notes / "a.md").rename(world.notes / "a.md~")  # and write it anew, as vim may
        world.write("a.md", "Four.")
        world.wait(("changed", "a.md"))
        (world.notes / "a.md~").unlink()
        assert world.quiet() == []
    assert set(world.stored()) == {"a.md"}


@pytest.mark.slow
def test_a_file_that_returns_within_its_grace_is_kept(world):
    path = world.write("a.md", "One.")
    world.write("b.md", "Another.")  # a folder without any file is taken for one that is away
    with world.watching(grace=3.0):
        world.wait(("added", "a.md"))
        id = world.ids()["a.md"]
        path.unlink()
        world.wait(("vanished", "a.md"))
        world.write("a.md", "One.")
        assert world.quiet(3.5) == [] and world.ids()["a.md"] == id


def test_a_folder_that_vanishes_or_is_emptied_takes_nothing_with_it(world):
    world.write("deep/a.md", "One.")
    with world.watching():
        world.wait(("added", "a.md"))
        away = world.folder / "elsewhere"
        world.notes.rename(away)
        world.wait(("away", "notes"))
        assert world.quiet() == [] and set(world.stored()) == {"a.md"}
        assert watched.seen(world.store)["away"] == 1
        (away / "deep" / "b.md").write_text("Two.")
        away.rename(world.notes)
        world.wait(("back", "notes"), ("added", "b.md"))
        world.write("c.md", "Three.")  # it is really watched again
        world.wait(("added", "c.md"))
        shutil.rmtree(world.notes)
        world.notes.mkdir()
        world.wait(("away", "notes"))
        assert world.quiet() == [] and set(world.stored()) == {"a.md", "b.md", "c.md"}


@pytest.mark.slow
def test_a_renamed_folder_moves_its_documents(world):
    for number in range(5):
        world.write(f"old/{number}.md", f"Number {number}.")
    with world.watching():
        world.wait(*(("added", f"{number}.md") for number in range(5)))
        ids = world.ids()
        (world.notes / "old").rename(world.notes / "new")
        world.wait(*(("renamed", f"{number}.md") for number in range(5)))
        assert world.ids() == ids
        with MemoryStore.open(world.store) as store:
            assert {Path(d.path).parent.name for d in store.documents()} == {"new"}


@pytest.mark.slow
def test_the_rules_of_memorize_hold(world):
    world.write(".gitignore", "secret.md\n")
    with world.watching(include=["*.md", "*.txt"], exclude=["draft*"]):
        for name in ("secret.md", ".hidden.md", "draft.md", "data.csv", "sub/.x/y.md", "good.md"):
            world.write(name, f"This is {name}.")
        world.wait(("added", "good.md"))
        assert world.quiet() == [] and set(world.stored()) == {"good.md"}
        world.write(".gitignore", "nothing\n")
        world.wait(("added", "secret.md"))


@pytest.mark.slow
def test_a_single_file_is_followed(world):
    path = world.write("a.md", "One.")
    world.write("b.md", "Not this one.")
    with world.watching(path):
        world.wait(("added", "a.md"))
        world.write("new.md", "Two.").replace(path)
        world.wait(("changed", "a.md"))
        path.unlink()
        world.wait(("vanished", "a.md"), ("forgotten", "a.md"))
    assert world.ids() == {}


@pytest.mark.slow
def test_many_files_at_once_and_others_may_write_between(world):
    count = 8 * FILES
    with world.watching():
        for number in range(count):
            world.write(f"{number:03}.md", f"Number {number}.")
        world.wait(*(("added", f"{number:03}.md") for number in range(FILES)))
        with MemoryStore.open(world.store, write=True, wait=20) as store:
            done = len(store.documents())
            assert FILES <= done < count
            time.sleep(0.5)  # the watcher waits meanwhile
        world.wait(*(("added", f"{number:03}.md") for number in range(FILES, count)), seconds=120)
        assert len(world.stored()) == count


@pytest.mark.slow
def test_a_bad_file_is_told_once_and_again_when_it_has_changed(world):
    bad = world.notes / "bad.docx"
    bad.write_bytes(b"no archive")
    with world.watching(rescan=1.0):
        world.wait(("failed", "bad.docx"))
        assert world.quiet(3) == []
        bad.write_bytes(b"no archive either")
        world.wait(("failed", "bad.docx"))
        world.write("bad.docx", "").unlink()
        world.write("good.md", "Good.")
        world.wait(("added", "good.md"))


@pytest.mark.slow
def test_a_store_inside_the_folder_is_not_followed(world):
    world.store = world.notes / "store"
    world.write("a.md", "One.")
    with world.watching():
        world.wait(("added", "a.md"))
        assert world.quiet(2) == []
        assert watched.seen(world.store)["pending"] == 0


def test_what_is_wrong_shows_at_once(world):
    world.write("a.md", "One.")
    with world.assistant() as assistant:
        assistant.memorize([world.notes], cold=True)
        with pytest.raises(M3Error, match=r"gone.md: does not exist"):
            Watcher(assistant, [world.notes / "gone.md"])
        watch = watched.Watch(world.store)
        assert watched.seen(world.store)["pid"] == os.getpid()
        with pytest.raises(StoreError, match="another process watches"):
            Watcher(assistant, [world.notes]).run()
        watch.close()
        assert watched.seen(world.store) is None
    with world.assistant("other") as assistant, pytest.raises(FingerprintError, match="weights"):
        Watcher(assistant, [world.notes]).run()


def test_a_store_cannot_rename_to_a_path_that_it_has(world):
    world.write("a.md", "One.")
    world.write("b.md", "Two.")
    with world.assistant() as assistant:
        assistant.memorize([world.notes], cold=True)
        ids = world.ids()
        with assistant.open_store(write=True) as store:
            with pytest.raises(StoreError, match="path of another"):
                store.rename(
                    {ids["a.md"]: str(world.notes / "c.md"), ids["b.md"]: "b.md"}
                    | {ids["b.md"]: str(world.notes / "b.md")}
                )
            with pytest.raises(StoreError, match="no document 99"):
                store.rename({99: "x"})
    assert world.ids() == ids  # all or none


# --- the command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly_and_status_shows_it(world, number):
    world.write("a.md", "One.")
    environment = {
        **os.environ,
        "M3MLX_MODEL": str(world.models / "decoder"),
        "M3MLX_STORE": str(world.store),
    }
    words = [sys.executable, "-m", "m3mlx"]
    if number == signal.SIGTERM:
        command = ["memorize", str(world.notes), "--watch"]
    else:
        command = ["watch", str(world.notes), "--debounce", "0.2", "--json"]
    made = ["--cold", "--encoder", str(world.models / "encoder"), "--tokens-per-head", "4"]
    made += ["--budget", "uniform"]
    process = subprocess.Popen(
        [*words, *command, *made],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while (watched.seen(world.store) or {}).get("pending") != 0 or not world.ids():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        shown = subprocess.run(
            [*words, "status"], env=environment, capture_output=True, text=True, check=True
        )
        assert f"1 paths by process {process.pid}; 0 changes pending" in shown.stdout
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err
    assert err.endswith("Stopped watching.\n")
    if number == signal.SIGINT:
        assert '"what": "added"' in out
    else:
        assert out.startswith("1 added")
