"""Power cuts: what a writer did to its files is written down, and replayed up to any moment.

recorder.c notes each write, truncation, creation, renaming, removal and wait for the disk, of our
own code, SQLite and USearch alike. A replay ends at some call. What a file got before its last
wait for the disk is there; of what it got later every part, by sectors, may be there or not, in
any combination. Names follow in their order, up to some point behind the last wait for the folder.
The store that comes of it must open, be sound, and have everything that was acknowledged.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from small_store import LARGE, new_store

from m3mlx.store import MemoryStore

from .apart import PATIENCE, apart
from .crashes import Books, Change, State, after, look, make

SECTOR = 512  # which a disk writes wholly or not at all
CHANGES = 12  # of one recording
ENTRY = struct.Struct("<c4Q")
_ENDS = ("-shm", "lock")  # files that say nothing after a restart


@dataclass(frozen=True)
class Call:
    """One entry of a recording."""

    kind: str
    inode: int  # the folder is 1
    at: int
    name: str
    data: bytes


def build(folder: Path) -> Path | None:
    """Compile the recorder; None where that cannot be done."""
    if sys.platform != "linux" or not shutil.which("cc"):
        return None
    built = folder / "recorder.so"
    source = Path(__file__).with_name("recorder.c")
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"]
    return None if subprocess.run(command).returncode else built


def record(recorder: Path, folder: Path, changes: list[Change], first: str = "") -> list[Call]:
    """Let a process of its own make a store and change it; return what it did to the files.

    Args:
        first: Python that the process runs before.
    """
    store, log = folder / "recorded", folder / "log"
    shutil.rmtree(store, ignore_errors=True)
    task = f"{first}\nfrom torture.power import write; write({str(store)!r}, {str(log)!r})"
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "LD_PRELOAD": str(recorder), "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-c", task],
        input=json.dumps(changes).encode(),
        env=environment,
        check=True,
        timeout=300,
    )
    return read_log(log.read_bytes())


def read_log(data: bytes) -> list[Call]:
    """What the recorder noted; an inode that the disk gives to a second file is a new number."""
    calls: list[Call] = []
    numbers: dict[int, int] = {}
    at = 0
    while at < len(data):
        kind, inode, offset, name, length = ENTRY.unpack_from(data, at)
        at += ENTRY.size
        text, content = data[at : at + name].decode(), data[at + name : at + name + length]
        at += name + length
        if kind == b"C":
            numbers[inode] = len(calls) + 2  # 1 is the folder
        number = numbers.get(inode, inode)
        calls.append(Call(kind.decode(), number, offset, Path(text).name, content))
    return calls


def write(store: str, log: str) -> None:
    """The writer, with the recorder loaded; marks count what is acknowledged."""
    library = ctypes.CDLL(None)
    changes = json.load(sys.stdin)
    library.recorder_start(store.encode(), log.encode())
    new_store(store, **LARGE).close()
    library.recorder_mark(ctypes.c_long(0))
    for start in range(0, len(changes), 4):
        with MemoryStore.open(store, write=True, **LARGE) as opened:
            for number, change in enumerate(changes[start : start + 4], start + 1):
                make(opened, tuple(change))
                library.recorder_mark(ctypes.c_long(number))


def replay(calls: list[Call], end: int, chance: random.Random) -> dict[str, bytes]:
    """The files that there may be after the power went before the call ``end``."""
    calls = calls[:end]
    synced: dict[int, int] = {}  # inode -> its last wait for the disk
    for number, call in enumerate(calls):
        if call.kind in "SD":
            synced[call.inode] = number
    kept = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))  # share of what was not waited for
    tearing = chance.random() < 0.5
    contents: dict[int, bytearray] = {}
    for number, call in enumerate(calls):
        if call.kind not in "CWT":
            continue
        content = contents.setdefault(call.inode, bytearray())
        sure = number < synced.get(call.inode, -1)
        if call.kind == "T" and (sure or chance.random() < kept):
            del content[call.at :]
            content.extend(bytes(call.at - len(content)))
        elif call.kind == "W":
            for start, part in _parts(call, tearing and not sure):
                if sure or chance.random() < kept:
                    content.extend(bytes(max(0, start + len(part) - len(content))))
                    content[start : start + len(part)] = part
    return {
        name: bytes(contents[inode])
        for name, inode in _names(calls, synced.get(1, -1), chance).items()
        if not name.endswith(_ENDS)
    }


def _parts(call: Call, torn: bool) -> list[tuple[int, bytes]]:
    if not torn:
        return [(call.at, call.data)]
    end = call.at + len(call.data)
    cuts = [call.at, *range((call.at // SECTOR + 1) * SECTOR, end, SECTOR), end]
    return [(a, call.data[a - call.at : b - call.at]) for a, b in pairwise(cuts)]


def _names(calls: list[Call], sure: int, chance: random.Random) -> dict[str, int]:
    """Names and inodes; what came after the last wait for the folder is there up to some point."""
    changes = [(number, call) for number, call in enumerate(calls) if call.kind in "CRU"]
    certain = sum(number < sure for number, _ in changes)
    until = chance.choice((certain, len(changes), chance.randint(certain, len(changes))))
    names: dict[str, int] = {}
    for _, call in changes[:until]:
        if call.kind == "C":
            names[call.name] = call.inode
        elif call.kind == "U":
            names.pop(call.name, None)
        else:
            names[Path(call.data.decode()).name] = names.pop(call.name)
    return names


def begin_again(folder: str) -> None:
    """What is there before a store was acknowledged: none, which can be made, or an empty one."""
    path = Path(folder)
    if MemoryStore.exists(path):
        with MemoryStore.open(path, write=True, **LARGE) as store:
            assert store.documents() == []
    else:
        new_store(path, **LARGE).close()


def torture(
    folder: Path,
    times: int,
    recorder: Path,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda kind, count: None,
    until: float = math.inf,
    first: str = "",
) -> dict:
    """Cut the power so many times, or fewer if the time ``until`` comes first.

    Args:
        first: Python that the writer runs before.

    Returns:
        Outcomes with their numbers, how many calls were recorded, and failures in words.
    """
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    done = 0
    while done < times and time.time() < until:
        books = Books()
        changes = books.plan(chance, CHANGES)
        states: list[State] = [{}]
        for change in changes:
            states.append(after(states[-1], change))
        calls = record(recorder, folder, changes, first)
        kinds.update(call.kind for call in calls)
        moments = list(range(1, len(calls) + 1))
        chance.shuffle(moments)
        for end in moments[: max(1, min(times - done, len(moments)))]:
            if time.time() > until:
                break
            files = replay(calls, end, chance)
            path = folder / "after"
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            for name, data in files.items():
                (path / name).write_bytes(data)
            marks = sum(call.kind == "M" for call in calls[:end])
            if marks:
                possible = states[marks - 1 : marks + 1]
                alive = {
                    text for state in possible for texts, _ in state.values() for text in texts
                }
                gone = [t for _, _, texts in changes[: marks - 1] for t in texts if t not in alive]
                outcome = apart(look, str(path), possible, gone, seconds=PATIENCE)
            else:
                outcome = apart(begin_again, str(path), seconds=PATIENCE)
            done += 1
            if outcome.kind == "returned":
                after_all = ("before", "the last", "the next")[(outcome.value or 0) + bool(marks)]
                outcomes[f"power cut: {after_all} change is there"] += 1
            else:
                outcomes["FAILED: power cut"] += 1
                text = f"seed {seed}, call {end} of {changes}: {outcome.kind} {outcome.value}"
                failures.append(text)
            progress("power cuts", done)
    return {"outcomes": dict(outcomes), "calls": dict(kinds), "failures": failures}
