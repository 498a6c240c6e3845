"""Files of a store are damaged at random: every answer must be right, or an error that says so.

Each damage is tried in a process of its own, on a copy of a small store in memory. The process
opens the store as a reader, searches, reads every memory, checks it, repairs it and looks again.
What comes out must have been put in. A damage that changes an answer must be found by ``check``;
after ``repair`` nothing is damaged, and only documents that were named may have lost anything.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from small_store import ABOUT, LARGE, memorize, new_store, unit

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore

from .apart import PATIENCE, apart
from .crashes import every, text

Files = dict[str, bytes]
KINDS = ("bits", "cut", "longer", "swap", "zeros", "noise", "foreign", "older", "missing")
DOCUMENTS = 6
REPAIRED = 0.4  # share of the damages that are repaired if ``check`` finds them
_PAGES = (512, 4096, 16384)
_OLDER = ("memories.kv", "vectors.usearch")  # an older catalog is a whole store, only older


def pristine(folder: Path, number: int) -> tuple[Files, Files]:
    """A store as files, and the same at an earlier time."""
    path = folder / f"pristine {number}"
    with new_store(path, **LARGE) as store:
        for document in range(DOCUMENTS):
            if document == DOCUMENTS - 1:
                store.maintain()
                earlier = _files(path)
            base = 100 * number + 10 * document
            texts = [text(base + n) for n in range(1 + document % 4)]
            memorize(store, f"/{number}/{document}", texts, cold=document == 2)
        store.forget([1])
    return _files(path), earlier


def with_log(folder: Path) -> Files:
    """A store whose last commits are only in the log of its database, as after a crash."""
    path = folder / "writing"
    with new_store(path, **LARGE) as store:
        memorize(store, "/logged/0", [text(900), text(901), text(902)])
    store = MemoryStore.open(path, write=True, **LARGE)
    memorize(store, "/logged/1", [text(910), text(911)])
    files = _files(path)
    store.close()
    return files


def _files(path: Path) -> Files:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


def damage(files: Files, kind: str, name: str, foreign: Files, older: Files, seed: int) -> Files:
    """The files with one of them damaged."""
    chance = random.Random(seed)
    data = bytearray(files[name])
    size = len(data)
    start = chance.randrange(size + 1)
    length = min(size - start, int(2 ** chance.uniform(0, 15)))
    if kind == "bits":
        for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
            used = chance.randrange(size)
            while not data[used] and chance.random() < 0.95:  # most zeros are of no matter
                used = (used + chance.randrange(1, 999)) % size
            data[used] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "longer":
        data += chance.randbytes(chance.choice((1, 100, 16384, 50_000)))
    elif kind == "swap":
        page = chance.choice(_PAGES)
        one, other = (page * chance.randrange(max(1, size // page)) for _ in range(2))
        data[one : one + page], data[other : other + page] = (
            data[other : other + page],
            data[one : one + page],
        )
    elif kind == "zeros":
        data[start : start + length] = bytes(length)
    elif kind == "noise":
        data[start : start + length] = chance.randbytes(length)
    elif kind == "foreign":
        data = foreign.get(name, b"")
    elif kind == "older":
        data = older.get(name, b"")
    damaged = {**files, name: bytes(data)}
    if kind == "missing":
        del damaged[name]
    return damaged


# in the process apart


def probe(path: Path, truth: dict) -> tuple[str, dict]:
    """What a reader gets, and what it saw by document.

    Returns:
        "right", "cold" (memories that are written again when they are used), "fewer", "error", or
        "foreign" (it names another encoder: nobody can tell whether it always did).
    """
    try:
        with MemoryStore.open(path, **LARGE) as store:
            if store.encoder != ABOUT["encoder"]:
                return "foreign", {}  # an assistant refuses it
            about = vars(store.edition)  # a search tells of other dimensions
            wrong = [name for name in about if about[name] != ABOUT.get(name, about[name])]
            assert not wrong, about
            seen = shown(store)
            (hits,) = store.search(unit(7, 1), [text(10) + " " + text(30)], 9, "hybrid")
            for hit in hits:
                assert hit.text in [row[0] for row in truth[hit.path]], hit
    except StoreError as error:
        assert str(path) in str(error), f"an error that names no file: {error}"
        return "error", {}
    for document, rows in seen.items():
        known = truth.get(document, [])
        if document != "words":
            known = known + [(*row[:-1], None) for row in known]  # cold is not wrong
        wrong = [row for row in rows if row not in known]
        assert not wrong, f"WRONG in {document}: {wrong}"
    if seen == truth:
        return "right", seen
    return ("cold" if _texts(seen) == _texts(truth) else "fewer"), seen


def _texts(shown: dict) -> dict:
    """The same without memories."""
    return {
        path: rows if path == "words" else [row[:-1] for row in rows]
        for path, rows in shown.items()
    }


def shown(store: MemoryStore) -> dict:
    """All that a reader can find, by document; and what it finds by a word that all have."""
    found: dict[str, list] = {d.path: [] for d in store.documents() if d.complete}
    for hit in sorted(every(store), key=lambda hit: hit.start):
        record = store.read([hit.slot])[0].tobytes() if hit.warm else None
        row = (hit.text, hit.start, hit.end, hit.page, hit.line, hit.tokens, record)
        found.setdefault(hit.path, []).append(row)
    (hits,) = store.search(unit(1, 1), ["remark"], 99, "text")
    found["words"] = sorted((hit.path, hit.text) for hit in hits)
    return found


def ordeal(folder: str, files: Files, truth: dict, log: bool, mend: bool) -> dict:
    """Put the files down, look, check, repair and look again; return what happened.

    Args:
        log: whether the log is damaged. SQLite ends it at the first damaged frame, and so goes
            back to an earlier commit, which nobody can tell from the last.
        mend: whether to repair.
    """
    path = Path(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    if not MemoryStore.exists(path):
        return {"before": "error", "repair": "impossible", "after": "error"}
    before, _ = probe(path, truth)
    found = MemoryStore.check(path)
    parts = sorted({damage.part for damage in found.damages})
    if before not in ("right", "cold", "foreign") and not (log and before == "fewer"):
        assert parts, f"a reader got {before}, and check finds nothing"
    if not parts or not mend:
        return {"before": before, "repair": "not tried" if parts else "none", "after": before}
    try:
        done = MemoryStore.repair(path)
    except StoreError as error:
        assert str(path) in str(error)
        return {"before": before, "repair": "refused", "after": "error"}
    if done.left.damages:
        return {
            "before": before,
            "repair": "left " + done.left.damages[0].part,
            "after": probe(path, truth)[0],
        }
    MemoryStore.open(path, write=True, **LARGE).close()  # the next writer makes the index again
    after, seen = probe(path, truth)
    assert after != "error", f"after its repair a reader gets an error; found {done.found}"
    if after == "foreign":
        return {"before": before, "repair": "done", "after": after}
    there = sorted((path, row[0]) for path, rows in seen.items() if path != "words" for row in rows)
    assert seen["words"] == there, "after its repair full text differs"
    named = {*done.found.documents, *done.lost, *done.left.quarantined}
    for document, rows in truth.items():
        if document in named or document == "words" or log:
            continue
        if document not in seen and any(damage.part == "catalog" for damage in found.damages):
            continue  # where the row with its name cannot be read, nobody can name it
        have = [row[:-1] for row in seen.get(document, [])]  # memories may be cold
        if have != [row[:-1] for row in rows]:
            raise AssertionError(f"{document} lost something and is not named: {found}")
    return {"before": before, "repair": "done", "after": after}


def torture(
    folder: Path,
    times: int,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda kind, count: None,
    until: float = math.inf,
) -> dict:
    """Try so many damages, or fewer if the time ``until`` comes first.

    Returns:
        Outcomes with their numbers, and failures in words: a wrong answer, a crash, a hang, an
        unnamed error or a damage not found.
    """
    apart(_prepare, str(folder)).returned()
    stores = {name: _load(folder / name) for name in ("plain", "foreign", "older", "logged")}
    truths = {name: _truth(folder, name, stores[name]) for name in ("plain", "logged")}
    outcomes: Counter[str] = Counter()
    failures = []
    for number in range(times):
        if time.time() > until:
            break
        chance = random.Random(seed * 1_000_003 + number)
        which = "logged" if chance.random() < 0.15 else "plain"
        files = stores[which]
        kind = chance.choice(KINDS)
        names = [name for name in files if files[name] and not name.endswith((".used", "-shm"))]
        name = chance.choice(names)
        if (kind == "older" and (name not in _OLDER or which == "logged")) or (
            name.endswith("-wal") and kind in ("foreign", "missing", "cut", "longer")
        ):
            kind = "bits"
        broken = damage(files, kind, name, stores["foreign"], stores["older"], chance.random())
        log, mend = name.endswith("-wal"), chance.random() < REPAIRED
        arguments = (str(folder / "broken"), broken, truths[which], log, mend)
        outcome = apart(ordeal, *arguments, seconds=PATIENCE)
        label = f"{kind} in {name}"
        if outcome.kind != "returned":
            failures.append(f"{label} ({which}, number {number}): {outcome.kind} {outcome.value}")
            outcomes[f"FAILED: {label}"] += 1
        else:
            what = outcome.value
            before = f"{what['before']} (log)" if log else what["before"]
            outcomes[f"{before}, repair {what['repair']}, then {what['after']}"] += 1
        progress("damages", number + 1)
    return {"seed": seed, "outcomes": dict(outcomes), "failures": failures}


def _prepare(folder: str) -> None:
    base = Path(folder)
    plain, older = pristine(base, 0)
    foreign, _ = pristine(base, 1)
    logged = with_log(base)
    for name, files in {
        "plain": plain,
        "older": older,
        "foreign": foreign,
        "logged": logged,
    }.items():
        (base / name).mkdir()
        for file, data in files.items():
            (base / name / file).write_bytes(data)


def _load(path: Path) -> Files:
    return _files(path)


def _truth(folder: Path, name: str, files: Files) -> dict:
    """What a whole store shows, by way of a process apart."""
    path = folder / "whole"
    path.mkdir()
    for file, data in files.items():
        (path / file).write_bytes(data)
    with MemoryStore.open(path, **LARGE) as store:
        truth = shown(store)
    shutil.rmtree(path)
    return truth
