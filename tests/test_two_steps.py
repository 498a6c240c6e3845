"""Memorizing in two steps: all can be asked at once, memories follow in a good order."""

import os
import time
from types import SimpleNamespace

import pytest
from tiny import save_encoder, save_model

from m3mlx import Assistant
from m3mlx.memorize import editions
from m3mlx.memorize.run import MemorizeRun
from m3mlx.models import rates
from m3mlx.store import MemoryStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    save_model(world / "decoder")
    save_encoder(world / "encoder")
    notes = world / "notes"
    notes.mkdir()
    for age, name in enumerate(("new", "old", "older")):
        text = "".join(f"Line {n} of the {name} note tells of bees.\n\n" for n in range(24))
        (notes / f"{name}.txt").write_text(text)
        os.utime(notes / f"{name}.txt", (1e9 - age, 1e9 - age))
    return world


@pytest.fixture
def make(world, tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path / "home"))

    def make(**options):
        given = {"encoder": str(world / "encoder"), "tokens_per_head": 4, **options}
        return Assistant(str(world / "decoder"), tmp_path / "store", **given)

    return make


class Stop(Exception):
    pass


def test_all_text_is_stored_before_the_first_memory_is_written(make, world):
    seen = []

    def progress(what, done, total):
        task = what.partition(":")[0]
        if not seen or seen[-1] != task:
            seen.append(task)

    with make(progress=progress) as assistant:
        report = assistant.memorize([world / "notes"])
        assert seen.index("memorizing") < seen.index("writing memories")
        assert "memorizing" not in seen[seen.index("writing memories") :]
        assert report.memories == report.references == assistant.status()["references"]
        assert report.seconds > report.stored_seconds > 0 and assistant.status()["cold"] == 0


def test_beginnings_come_first_those_of_the_newest_file_before_others(make, world):
    with make() as assistant:
        assistant.memorize([world / "notes"], cold=True)
        store = assistant.store()
        slots = editions.order(store, 1)
        places = {r.slot: (r.ordinal, r.path) for r in store.references(slots)}
        ordinals = [places[slot][0] for slot in slots]
        assert ordinals == sorted(ordinals) and len(slots) == len(set(slots)) > 9
        names = [os.path.basename(places[slot][1]) for slot in slots[:3]]
        assert names == ["new.txt", "old.txt", "older.txt"]
        own = editions.order(store, 1, {str(world / "notes" / "old.txt")})
        assert {places[slot][1] for slot in own} == {str(world / "notes" / "old.txt")}
        next(assistant.memories_in_steps(batch=2))
        assert editions.order(store, 1) == slots[2:]


def test_writing_that_was_stopped_goes_on_and_makes_the_same_memories(make, world, tmp_path):
    count = 0

    def stop():
        nonlocal count
        count += 1
        if count > 1 and assistant.status()["cold"] < assistant.status()["references"]:
            raise Stop

    with make() as assistant, pytest.raises(Stop):
        assistant.memorize([world / "notes"], between_batches=stop)
    with make() as assistant:
        left = assistant.status()["cold"]
        assert 0 < left < assistant.status()["references"]
        assert assistant.count_unwritten() == left
        report = assistant.memorize([world / "notes"])  # nothing is new, and memories are missing
        assert (report.references, report.memories) == (0, left)
        assert assistant.status()["cold"] == 0 and assistant.write_memories().references == 0
        records = [bytes(record) for record in read_all(assistant)]
    os.rename(tmp_path / "store", tmp_path / "first")
    with make() as assistant:
        assistant.memorize([world / "notes"], wait=True)
        assert [bytes(record) for record in read_all(assistant)] == records


def read_all(assistant):
    store = assistant.store()
    return store.read(store.slots())


def test_others_can_write_between_two_batches(make, world, tmp_path):
    with make() as assistant:
        assistant.memorize([world / "notes"], cold=True)
        first = assistant.documents()[0].id
        for _ in assistant.memories_in_steps(batch=4):
            with MemoryStore.open(tmp_path / "store", write=True, wait=0) as store:
                if first is not None:
                    store.forget([first])  # its memories are not written any more
                    first = None
        assert assistant.status()["cold"] == 0 and len(assistant.documents()) == 2


def test_a_full_store_drops_nothing_for_memories_that_nobody_asked_for(make, world):
    with make() as assistant:
        assistant.memorize([world / "notes"], cold=True)
        next(assistant.memories_in_steps(batch=4))
        assistant.set_bound(10**9)  # and so all is in the files
        assistant.close()
        assistant.set_bound(sum(assistant.status()["bytes"].values()) + 100)
        warm = assistant.status()["references"] - assistant.status()["cold"]
        report = assistant.write_memories()
        assert report.full and report.references == 0
        assert assistant.status()["references"] - assistant.status()["cold"] == warm == 4


def test_a_dry_run_takes_the_time_of_earlier_runs(make, world, monkeypatch):
    with make() as assistant:
        name = assistant.decoder.name
        first = assistant.memorize([world / "notes"], dry_run=True)  # a few references are timed
        assert first.seconds > first.stored_seconds > 0 and not first.estimated
        assert not assistant.has_store() and rates.rate(name, "storing") is None
        for task, rate in (("storing", 10.0), ("writing", 1.0)):
            rates.note(name, task, 1000 * rate, 1000)
        report = assistant.memorize([world / "notes"], dry_run=True)
        tokens = sum(path.stat().st_size for path in (world / "notes").iterdir())  # a byte each
        assert report.stored_seconds == pytest.approx(tokens / 10, rel=0.1)
        assert report.seconds == pytest.approx(tokens / 10 + tokens, rel=0.1)
        assert report.memories == report.references > 9 and report.bytes > 0
        assert report.tokens == pytest.approx(tokens, rel=0.1)
        monkeypatch.setattr("m3mlx.memorize.run._LOOKING", 0.0)  # too many files to read
        guess = assistant.memorize([world / "notes"], dry_run=True)
        assert guess.estimated and guess.references == pytest.approx(report.references, rel=0.2)
        assert guess.seconds == pytest.approx(report.seconds, rel=0.25)
        cold = assistant.memorize([world / "notes"], dry_run=True, cold=True)
        assert cold.memories == cold.bytes == 0 and cold.seconds == cold.stored_seconds


class Machine:
    """A clock that work advances: 0.1 s for a reference to store, 1 s to write, by the load."""

    now, load = 100.0, 1.0

    def __call__(self):
        return self.now

    def encode(self, texts):
        self.now += 0.1 * self.load * len(texts)
        return [None] * len(texts)

    def write(self, tokens):
        self.now += self.load * len(tokens)

    def run(self):
        decoder = SimpleNamespace(
            name="d",
            tokenizer_hash="",
            tokenize=lambda text: ([1] * len(text), [(i, i + 1) for i in range(len(text))]),
        )
        run = MemorizeRun(self.encode, decoder, None)
        run.add_contents({f"{n}.txt": b"A note on %d bees. " % n * 9 for n in range(40)})
        run.compare(None)
        return run


def test_estimates_are_right_within_a_half_whatever_the_load(tmp_path, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(tmp_path))
    machine = Machine()
    format = SimpleNamespace(record_bytes=10, write=machine.write)
    store = SimpleNamespace(begin=lambda *_, **__: (1, 0), add=lambda *_, **__: None)
    monkeypatch.setattr("m3mlx.memorize.run.perf_counter", machine)
    monkeypatch.setattr("m3mlx.memorize.run.NewReference", SimpleNamespace(of=lambda *_: None))
    for load in (1.0, 1.2, 0.9, 3.0, 2.7, 0.5, 0.5):
        guess, done = machine.run(), machine.run()
        guess.estimate(format)
        count = guess.report.references
        expected = guess.report.seconds, count * 1.1 * load
        machine.load = load
        done.write(store)
        assert done.report.references == count and done.report.tokens == guess.report.tokens
        if load < 2.7 and load != 0.5:  # what nobody could know is known after storing
            assert 1 / 1.5 < expected[0] / expected[1] < 1.5, load
        writing = rates.seconds("d", "writing", done.report.tokens) or guess.report.seconds / 1.1
        assert 1 / 1.5 < writing * done.report.pace / (count * load) < 1.5, load
        rates.note("d", "writing", done.report.tokens, count * load)


@pytest.mark.slow
def test_watch_writes_memories_when_nothing_else_is_to_be_done(make, world):
    import threading

    pytest.importorskip("watchfiles")
    from m3mlx.watch import Watcher

    for cold in (False, True):
        with make() as assistant:
            assistant.memorize([world / "notes"], cold=True)
            stop = threading.Event()
            watcher = Watcher(assistant, [world / "notes"], stop=stop, cold=cold)

            def end(stop=stop, cold=cold, path=assistant.store_path):
                until = time.monotonic() + (3 if cold else 60)
                while time.monotonic() < until:
                    with MemoryStore.open(path) as store:
                        if not store.status()["cold"]:
                            break
                    time.sleep(0.2)
                stop.set()

            thread = threading.Thread(target=end)
            thread.start()
            watcher.run()
            thread.join()
            assert bool(assistant.status()["cold"]) == cold
            assistant.forget(str(d.id) for d in assistant.documents())
