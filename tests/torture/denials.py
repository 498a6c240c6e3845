"""Every call that opens, lists, makes, renames or removes something of a store fails once.

Whatever a user asks for then works all the same, or ends with one sentence of ours; and once the
calls work again, the store has what it had.
"""

from __future__ import annotations

import builtins
import errno
import io
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from small_store import LARGE, A, B, everything, memorize, new_store, unit

from m3mlx.errors import M3Error
from m3mlx.export.portable import Export
from m3mlx.export.transfer import read_export, write_export
from m3mlx.store import MemoryStore

from .apart import PATIENCE, apart

ERRORS = (errno.EACCES, errno.EMFILE, errno.EROFS, errno.ENOSPC, errno.EIO)
CALLS = ("open", "scandir", "listdir", "unlink", "replace", "mkdir")  # of Python's os
_MOST = 100  # calls of one operation


class Denials:
    """Lets one call about a folder fail.

    Attributes:
        at: which, counted from 0; None for none.
        seen: how many there have been.
    """

    def __init__(self, folder: Path, error: int):
        self._folder, self._error = str(folder), error
        self.at: int | None = None
        self.seen = 0
        for name in CALLS:
            setattr(os, name, self._failing(getattr(os, name)))
        io.open = builtins.open = self._failing(io.open)

    def _failing(self, real: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            path = args[0] if args else None
            if isinstance(path, str | os.PathLike) and str(path).startswith(self._folder):
                self.seen += 1
                if self.seen - 1 == self.at:
                    raise OSError(self._error, os.strerror(self._error), str(path))
            return real(*args, **kwargs)

        return call


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """What users do, by name; each leaves two documents as they are."""
    path = folder / "store"

    def opened(task: Callable, **how: object) -> Callable[[], object]:
        def run() -> object:
            with MemoryStore.open(path, **LARGE, **how) as store:
                return task(store)

        return run

    def found(store: MemoryStore, name: str) -> list[int]:
        return [document.id for document in store.documents() if document.path == name]

    def export(store: MemoryStore) -> object:
        return write_export(store, folder / "out.m3", store.documents(), program="x")

    def receive(store: MemoryStore) -> object:
        with Export(folder / "in.m3") as file:
            return read_export(store, file)

    def compact(store: MemoryStore) -> None:
        memorize(store, "/d", ["to be forgotten"])
        store.forget(found(store, "/d"))
        store.compact()

    def edition(store: MemoryStore) -> None:
        new = store.add_edition(fingerprint={"weights": "2"}, memory={}, record_bytes=100)
        store.remove_edition(new.id)

    return {
        "search": opened(lambda store: store.search(unit(0, 1), ["apples"], 3)),
        "read": opened(lambda store: store.read(store.slots()[:2])),
        "read, own": opened(lambda store: store.read(store.slots()[:2]), own=True),
        "read, attached": opened(lambda store: store.read(store.slots()[:2]), attached=True),
        "status": opened(lambda store: store.status()),
        "sessions": opened(lambda store: store.sessions().close()),
        "fingerprints": lambda: MemoryStore.fingerprints(path),
        "check": lambda: MemoryStore.check(path),
        "quick check": lambda: MemoryStore.quick_check(path),
        "repair": lambda: MemoryStore.repair(path),
        "backup": lambda: MemoryStore.backup(path, folder / "backup"),
        "add": opened(lambda store: memorize(store, "/c", ["new words"]), write=True),
        "forget": opened(lambda store: store.forget_proved(found(store, "/c")), write=True),
        "compact": opened(compact, write=True),
        "edition": opened(edition, write=True),
        "bound": opened(lambda store: store.set_bound(10**9), write=True),
        "export": opened(export),
        "import": opened(receive, write=True),
        "create": lambda: new_store(folder / "new").close(),
    }


def deny(folder: str, name: str, error: int) -> dict[str, int]:
    """Let each call of an operation fail; return how often it worked and was told as an error."""
    base = Path(folder)
    denials, told = Denials(base, error), Counter[str]()
    for at in range(_MOST):
        shutil.rmtree(base / "new", ignore_errors=True)
        (base / "out.m3").unlink(missing_ok=True)
        denials.at, denials.seen = at, 0
        try:
            operations(base)[name]()
            how = "worked all the same"
        except M3Error as raised:
            assert "\n" not in str(raised) and str(base) in str(raised), str(raised)
            how = "told as an error"
        denials.at, hit = None, denials.seen > at
        with MemoryStore.open(base / "store", **LARGE) as store:
            shown = everything(store)
        assert {path: len(shown[path]) for path in ("/a", "/b")} == {"/a": len(A), "/b": len(B)}
        if not hit:
            return dict(told)
        told[how] += 1
    raise AssertionError(f"{name} makes {_MOST} calls")


def _plan(times: int, seed: int) -> list[tuple[str, int]]:
    pairs = [(name, error) for name in operations(Path()) for error in ERRORS]
    random.Random(seed).shuffle(pairs)
    return pairs[:times]


PAIRS = len(_plan(999, 0))  # of an operation and an error


def torture(
    folder: Path,
    times: int,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda kind, count: None,
    until: float = math.inf,
) -> dict:
    """Try so many pairs of an operation and an error; see ``damages.torture``."""
    outcomes, failures, done = Counter[str](), [], 0
    for name, error in _plan(times, seed):
        if time.time() > until:
            break
        place = folder / "denied"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        apart(_prepare, str(place)).returned()
        outcome = apart(deny, str(place), name, error, seconds=PATIENCE)
        if outcome.kind == "returned":
            for how, count in outcome.value.items():
                outcomes[f"denied call: {how}"] += count
                done += count
        else:
            outcomes["FAILED: denied call"] += 1
            failures.append(f"{name}, {os.strerror(error)}: {outcome.kind} {outcome.value}")
        progress("denied calls", done)
    return {"outcomes": dict(outcomes), "failures": failures}


def _prepare(folder: str) -> None:
    base = Path(folder)
    with new_store(base / "store", **LARGE) as store:
        memorize(store, "/a", A)
        memorize(store, "/b", B)
        store.sessions().close()
        write_export(store, base / "in.m3", store.documents(), program="x")
