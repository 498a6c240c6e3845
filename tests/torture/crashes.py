"""A writer that is killed or whose disk fails, again and again on the same store.

The harness keeps its own books: which changes the writer had acknowledged when it died, and so
which one or two states the store may be in. After each death a process of its own looks:
everything that was acknowledged is there bit for bit, nothing half-done is visible, ``check``
finds nothing, the next writer goes on, and no byte of what is gone is left in any file.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import math
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from small_store import LARGE, memory, new_store, references, unit, vector

from m3mlx import files
from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore

from .apart import PATIENCE, Apart, apart

State = dict[str, tuple[tuple[str, ...], bool]]  # path -> its texts, whether they are warm
Change = tuple[str, str, tuple[str, ...]]  # what is done, to which path, with which texts
PATHS = ("/a", "/b", "/c")
CALLS = ("pwrite", "fsync", "ftruncate", "replace", "open")  # of Python's os, which may fail
ERRORS = (errno.ENOSPC, errno.EIO)


def text(number: int) -> str:
    """A text with a word that no other text has."""
    return f"{word(number)} is remark {number}"


def word(number: int) -> str:
    return "k" + hashlib.sha256(str(number).encode()).hexdigest()[:14]


@dataclass
class Books:
    """What must be in the store, kept apart from it.

    Attributes:
        state: of the last acknowledged change.
        used: number of texts that were ever made.
        limbo: texts of each path that a dead writer may have left half-added.
    """

    state: State = field(default_factory=dict)
    used: int = 0
    limbo: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def plan(self, chance: random.Random, length: int) -> list[Change]:
        """Some changes, one after the other."""
        state, changes = dict(self.state), []
        while len(changes) < length:
            kind = chance.choice(("memorize", "memorize", "cold", "write", "forget", "compact"))
            path, texts = chance.choice(PATHS), ()
            if kind in ("memorize", "cold"):
                texts = tuple(text(self.used + n) for n in range(chance.randint(2, 4)))
                self.used += len(texts)
            elif (kind == "forget" and path not in state) or (
                kind == "write" and state.get(path, ((), True))[1]
            ):
                continue
            changes.append((kind, path, texts))
            state = after(state, changes[-1])
        return changes

    def settle(self, changes: list[Change], done: int, begun: bool, state: State) -> None:
        """Note what became of the changes: ``done`` were acknowledged, one may have been begun."""
        for kind, path, _ in changes[:done]:
            if kind in ("memorize", "cold", "forget"):
                self.limbo.pop(path, None)
        if begun and changes[done][0] in ("memorize", "cold"):
            _, path, texts = changes[done]
            self.limbo[path] = self.limbo.get(path, ()) + texts
        self.state = state

    def gone(self) -> list[str]:
        """The latest texts that must not be anywhere."""
        alive = {text for texts, _ in self.state.values() for text in texts}
        alive |= {text for texts in self.limbo.values() for text in texts}
        return [t for t in map(text, range(max(0, self.used - 60), self.used)) if t not in alive]


def after(state: State, change: Change) -> State:
    """The state that a change leads to."""
    kind, path, texts = change
    rest = {known: value for known, value in state.items() if known != path}
    if kind in ("memorize", "cold"):
        return {**rest, path: (texts, kind == "memorize")}
    if kind == "write":
        return {**rest, path: (state[path][0], True)}
    return rest if kind == "forget" else state


def make(store: MemoryStore, change: Change) -> None:
    """Do it."""
    kind, path, texts = change
    if kind in ("memorize", "cold"):
        document, _ = store.begin(path, str(texts), len(texts), size=1)
        new = references(document, texts, cold=kind == "cold")
        store.add(new[:1])
        store.add(new[1:])
    elif kind == "write":
        hits = [hit for hit in every(store) if hit.path == path]
        store.write({hit.slot: memory(hit.text) for hit in hits if not hit.warm})
    elif kind == "forget":
        store.forget([document.id for document in store.find_documents([path])])
    else:
        store.compact()


def every(store: MemoryStore) -> list:
    count = store.status()["references"] or 1
    return store.search(unit(0, 1), [""], count, "dense")[0]


def shown(store: MemoryStore) -> dict:
    """What a reader sees, to be compared with ``wanted``."""
    found: dict[str, list] = {d.path: [] for d in store.documents() if d.complete}
    for hit in sorted(every(store), key=lambda hit: hit.start):
        record = store.read([hit.slot])[0].tobytes() if hit.warm else None
        found[hit.path].append(
            (hit.text, hit.start, hit.end, hit.page, hit.line, hit.tokens, record)
        )
    for path, rows in found.items():
        for row in rows:
            (hits,) = store.search(unit(1, 1), [row[0]], 1, "text")
            assert [(hit.path, hit.text) for hit in hits] == [(path, row[0])]
    return found


def wanted(state: State) -> dict:
    return {
        path: [
            (new.text, new.start, new.end, new.page, new.line, tuple(new.tokens), new.record)
            for new in references(0, texts, cold=not warm)
        ]
        for path, (texts, warm) in state.items()
    }


# the writer, and what happens to it


@dataclass(frozen=True)
class Blow:
    """What happens to a writer.

    Attributes:
        kind: "kill" or "moment" (SIGKILL), or "fault".
        at: the step or call, counted from 0; milliseconds for a moment.
        name: of the steps that count; all if empty.
        how: a call's error number, or 0 for a short write.
        system: whether calls of the system are meant (with faults.c), not Python's or our steps.
    """

    kind: str
    at: int
    name: str = ""
    how: int = 0
    system: bool = False


def write(folder: str, changes: list[Change], blow: Blow | None, journal: int) -> dict:
    """The writer: makes the changes, and writes into the journal what it begins and has done."""
    steps: list[str] = []

    def say(line: str) -> None:
        os.write(journal, f"{line}\n".encode())

    def step(name: str) -> None:
        name = re.sub(r"memories(-\d+)+", "memories-N", name)
        steps.append(name)
        if blow and blow.kind == "kill" and not blow.system and blow.name in ("", name):
            passed = steps.count(name) if blow.name else len(steps)
            if passed == blow.at + 1:
                say(f"step {name}")
                os.kill(os.getpid(), signal.SIGKILL)

    files.at_step = step
    struck = Faults(blow) if blow and blow.kind == "fault" and not blow.system else None
    library = system_faults()
    if library:
        armed = blow is not None and blow.system
        how = 2 if armed and blow.kind == "kill" else int(armed and not blow.how)
        at, error = (blow.at, blow.how or errno.ENOSPC) if armed else (-1, 0)
        library.faults_arm(folder.encode(), ctypes.c_long(at), how, error)
    failed = ""
    try:
        with MemoryStore.open(folder, write=True, **LARGE) as store:
            for number, change in enumerate(changes):
                say(f"begin {number}")
                make(store, change)
                say(f"done {number}")
    except StoreError as error:
        assert blow and blow.kind == "fault", f"without any fault: {error}"
        failed = str(error)
    calls = library.faults_calls() if library else 0
    return {
        "steps": sorted(set(steps)),
        "step": len(steps),
        "system": calls,
        "python": struck.seen if struck else 0,
        "failed": failed,
    }


class Faults:
    """Lets one of the calls of Python's ``os`` fail, or write half and then fail."""

    def __init__(self, blow: Blow):
        self._blow, self.seen = blow, 0
        for name in CALLS:
            setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, real: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            if name == "open" and not (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR)):
                return real(*args, **kwargs)
            self.seen += 1
            if self.seen != self._blow.at + 1:
                return real(*args, **kwargs)
            if name == "pwrite" and not self._blow.how:
                descriptor, data, at = args
                return real(descriptor, data[: len(data) // 2], at)
            number = self._blow.how or errno.ENOSPC
            raise OSError(number, os.strerror(number))

        return call


def system_faults() -> ctypes.CDLL | None:
    """faults.c, if this process was started with it."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "faults_calls"):
        return None
    library.faults_calls.restype = ctypes.c_long
    return library


# the look afterwards


def look(folder: str, states: list[State], gone: list[str]) -> int:
    """Which of the states a store is in. AssertionError if in none, or if anything is wrong."""
    path = Path(folder)
    with MemoryStore.open(path, **LARGE) as store:
        seen = shown(store)
        assert MemoryStore.check(path).sound, MemoryStore.check(path)
    found = [number for number, state in enumerate(states) if seen == wanted(state)]
    assert found, f"{seen}\nis none of\n{[wanted(state) for state in states]}"
    with MemoryStore.open(path, write=True, wait=0, **LARGE) as store:
        assert shown(store) == seen
    with MemoryStore.open(path, **LARGE) as store:
        assert shown(store) == seen
        assert MemoryStore.check(path).sound, MemoryStore.check(path)
    for file in path.iterdir():
        data = file.read_bytes()
        for lost in gone:
            needles = (lost.split()[0][4:].encode(), memory(lost)[:40], vector(lost).tobytes())
            assert not any(needle in data for needle in needles), f"{file.name} has {lost}"
    left = {file.name for file in path.iterdir()}
    assert not any(name.endswith((".new", "-wal", "-shm", "-journal")) for name in left), left
    return found[-1]


def torture(
    folder: Path,
    kinds: dict[str, int],
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda kind, count: None,
    until: float = math.inf,
) -> dict:
    """Hit a writer so many times in each way; return what happened. Misses do not count.

    Args:
        folder: where to put the store.
        kinds: blows by name: "step" and "moment" kill; "python" fails Python's calls; "system"
            and "system kill" need faults.c.
        until: time at which no more is begun.

    Raises:
        AssertionError: something was lost, wrong or half-done.
    """
    chance, books, path = random.Random(seed), Books(), folder / "store"
    apart(_create, str(path)).returned()
    counts: Counter[str] = Counter()
    named: Counter[str] = Counter()
    sizes = {"step": 60, "python": 40, "system": 200}  # of a usual run, until one is counted
    for kind, times in kinds.items():
        hit = 0
        while hit < times and time.time() < until:
            changes = books.plan(chance, 3)
            blow = _blow(kind, chance, sizes, named)
            journal_read, journal = os.pipe()
            writer = Apart(write, str(path), changes, blow, journal)
            os.close(journal)
            moment = blow.at / 1000 if kind == "moment" else None
            outcome = writer.outcome(PATIENCE, kill_after=moment)
            with os.fdopen(journal_read, "rb") as file:
                lines = file.read().decode().split("\n")
            if outcome.kind == "returned":
                report = outcome.value
                named.update(dict.fromkeys(report["steps"], 0))
                for way in ("step", "python", "system"):
                    sizes[way] = max(sizes[way], report[way])
                struck = blow.kind == "fault" and blow.at < report[kind]
                how = "told as an error" if report["failed"] else "no matter"
            else:
                assert outcome.kind == "killed", f"{blow}: {outcome.kind} {outcome.value}"
                assert outcome.value == signal.SIGKILL, f"{blow}: signal {outcome.value}"
                struck, how = True, "killed"
            hit += struck
            counts[f"{kind}: {how if struck else 'missed'}"] += 1
            named.update(line[5:] for line in lines if line.startswith("step "))
            done = sum(line.startswith("done ") for line in lines)
            begun = sum(line.startswith("begin ") for line in lines) > done
            states = [books.state]
            for change in changes[: done + begun]:
                states.append(after(states[-1], change))
            possible = states[done:]
            books.settle(changes, done, begun, books.state)
            # until it is known which, both are alive
            spared = {t for state in possible for texts, _ in state.values() for t in texts}
            gone = [t for t in books.gone() if t not in spared]
            result = apart(look, str(path), possible, gone, seconds=PATIENCE)
            assert result.kind == "returned", f"{blow} in {changes}\n{lines}\n{result.value}"
            books.settle(changes, done, begun, possible[result.value])
            progress(kind, hit if struck else 0)
    return {"seed": seed, "counts": dict(counts), "killed at": dict(named)}


def _create(path: str) -> None:
    new_store(path, **LARGE).close()


def _blow(kind: str, chance: random.Random, sizes: dict[str, int], named: Counter[str]) -> Blow:
    how = chance.choice((*ERRORS, 0))
    if kind == "step" and named and chance.random() < 0.5:
        rare = sorted(named, key=lambda name: (named[name], chance.random()))[:3]
        return Blow("kill", chance.choice((0, 0, 1)), name=chance.choice(rare))
    if kind == "step":
        return Blow("kill", chance.randrange(sizes["step"]))
    if kind == "moment":
        return Blow("moment", chance.randrange(5, 250))
    if kind == "python":
        return Blow("fault", chance.randrange(sizes["python"]), how=how)
    if kind == "system":
        return Blow("fault", chance.randrange(sizes["system"]), how=how, system=True)
    return Blow("kill", chance.randrange(sizes["system"]), system=True)
