"""Stores that nobody's writer has left so: files of several moments, copies and stores together;
crafted catalogs; links, pipes, folders and sockets in place of files; missing rights.

Every answer must be one that the store of the catalog could give, or an error of ours; nothing
outside the folder may change, and nothing may wait for ever.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import socket
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from small_store import LARGE, memorize, new_store

from m3mlx.errors import StoreError
from m3mlx.store import MemoryStore

from .apart import PATIENCE, apart
from .crashes import text, wanted
from .damages import Files, probe, shown

KINDS = ("mixed", "crafted", "special", "rights")
CATALOG = "catalog.sqlite"
_NOBODY = 65534
ODD = (  # values that no column of ours has
    *(None, -1, 0, 1, 2**31, 2**63 - 1, 1e308, float("inf"), "", "nan", "null", "[]", "{}", "-1"),
    *("../../victim", "/etc/passwd", "memories.kv\0", "[" * 3000, "x" * 100_000, "\ud7ff\n\x1b[2J"),
    *(b"", b"\x00\xff", bytes(16384), '{"a": 1}', '"' + "f" * 32 + '"', "999999999999", "0x10"),
)
STATEMENTS = (  # of a schema that is not ours
    "CREATE TRIGGER t AFTER UPDATE ON setting BEGIN DELETE FROM document; END",
    "CREATE TRIGGER t AFTER INSERT ON _sqlite_migrations BEGIN DELETE FROM document; END",
    "CREATE VIEW v AS SELECT * FROM reference",
    "ALTER TABLE document RENAME TO d; CREATE VIEW document AS SELECT * FROM d",
    "ALTER TABLE reference ADD COLUMN more AS (zeroblob(100000000))",
    "ALTER TABLE setting ADD COLUMN more DEFAULT 7",
    "DROP TABLE memory",
    "DROP TABLE leftover; CREATE TABLE leftover (edition, slot)",
    "DROP TABLE words",
    "DROP INDEX document_since",
    "CREATE VIRTUAL TABLE other USING fts5 (x)",
    "DELETE FROM _sqlite_migrations WHERE rowid > 2",
    "UPDATE _sqlite_migrations SET name = 'm999_newer' WHERE rowid = 1",
    "INSERT INTO _sqlite_migrations SELECT migration_set, 'm000_odd', applied_at "
    "FROM _sqlite_migrations LIMIT 1",
    "PRAGMA user_version=7; PRAGMA application_id=9",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql = sql || ' ' WHERE name = 'edition'",
    "PRAGMA writable_schema=ON; DELETE FROM sqlite_master WHERE name = 'reference_removed'",
    "PRAGMA writable_schema=ON; UPDATE sqlite_master SET rootpage = 3 WHERE name = 'collection'",
)


def versions(folder: Path) -> dict[str, Files]:
    """Files of a store at two moments, of a copy that lived on by itself, and of another store."""
    path, copy = folder / "store", folder / "copy"
    found = {}
    with new_store(path, **LARGE) as store:
        for document in range(4):
            memorize(store, f"/{document}", [text(10 * document + n) for n in range(1 + document)])
    found["older"] = _files(path)
    shutil.copytree(path, copy)
    for which, base in ((path, 100), (copy, 200)):
        with MemoryStore.open(which, write=True, **LARGE) as store:
            store.forget([2])
            memorize(store, "/1", [text(base), text(base + 1)])
            memorize(store, f"/{base}", [text(base + 2)], cold=True)
            memorize(store, "/3", [text(base + n) for n in range(10, 13)])
    found["now"], found["apart"] = _files(path), _files(copy)
    with new_store(folder / "other", **LARGE) as store:
        memorize(store, "/0", [text(300 + n) for n in range(6)])
    found["other"] = _files(folder / "other")
    return found


def _files(path: Path) -> Files:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


def _put(path: Path, files: Files) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def _mix(path: Path, stores: dict[str, Files], chance: random.Random) -> str:
    """Put files of several versions together; return whose catalog it is."""
    whose = chance.choice(list(stores))
    _put(path, {CATALOG: stores[whose][CATALOG]})
    for name in sorted({name for files in stores.values() for name in files} - {CATALOG}):
        files = stores[chance.choice(list(stores))]
        if name in files and chance.random() < 0.9:
            (path / name).write_bytes(files[name])
    return whose


def _craft(path: Path, chance: random.Random) -> str:
    """Change what the catalog says; return how."""
    with closing(sqlite3.connect(path / CATALOG, isolation_level=None)) as db:
        if chance.random() < 0.4:
            statement = chance.choice(STATEMENTS)
            with suppress(sqlite3.Error):
                db.executescript(statement)
            return statement
        tables = ("setting", "edition", "document", "reference", "memory", "leftover", "collection")
        table, value = chance.choice(tables), chance.choice(ODD)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        # one tokenizer is as good as another: then nobody has the tokens
        column, key = chance.choice([c for c in columns if c != "tokenizer"]), columns[0]
        keys = [row[0] for row in db.execute(f"SELECT {key} FROM {table}")] or [0]
        with suppress(sqlite3.Error, OverflowError):
            changed = f'UPDATE {table} SET "{column}" = ? WHERE {key} = ?'
            db.execute(changed, [value, chance.choice(keys)])
        return f"{table}.{column} = {value!r:.40}"


def _replace(path: Path, victim: Path, chance: random.Random) -> str:
    """Put something in place of a file, or beside the files; return what."""
    extra = ["typed", "watching", "sessions.sqlite", f"{CATALOG}-wal", "memories.kv.new", "lock"]
    file = path / chance.choice([*(file.name for file in path.iterdir()), *extra])
    before = file.read_bytes() if file.exists() else b"precious"
    file.unlink(missing_ok=True)
    kind = chance.choice(("link", "dangling", "link to itself", "pipe", "socket", "folder", "hard"))
    if kind == "link":
        victim.write_bytes(before)
        file.symlink_to(victim)
    elif kind == "hard":
        victim.write_bytes(before)
        os.link(victim, file)
    elif kind in ("dangling", "link to itself"):
        file.symlink_to(victim.with_name("nowhere") if kind == "dangling" else file)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path)  # such names may not be long
        with closing(socket.socket(socket.AF_UNIX)) as end:
            end.bind(file.name)
        os.chdir(here)
    else:
        file.mkdir()
        (file / "inside").write_bytes(before)
    return f"{kind} as {file.name}"


def _take_rights(path: Path, chance: random.Random) -> str:
    """Take rights away from files or the folder; return which."""
    file = path / chance.choice([".", *(file.name for file in path.iterdir())])
    rights = chance.choice((0, stat.S_IRUSR, stat.S_IWUSR, stat.S_IRUSR | stat.S_IXUSR))
    if os.getuid() == 0:  # to whom rights mean nothing
        for each in (path, *path.iterdir()):
            os.chown(each, _NOBODY, _NOBODY)
        path.parent.chmod(0o777)
        os.setegid(_NOBODY)
        os.seteuid(_NOBODY)
    file.chmod(rights)
    return f"{stat.filemode(rights)} {file.name}"


# in the process apart


def ordeal(folder: str, kind: str, stores: dict[str, Files], truths: dict, seed: float) -> str:
    """Make a strange store and use it in every way; return what a reader got before and after."""
    base, chance = Path(folder), random.Random(seed)
    path, victim, whose = base / "strange", base / "victim", "now"
    _put(path, stores[whose])
    victim.unlink(missing_ok=True)
    if kind == "mixed":
        whose = _mix(path, stores, chance)
    elif kind == "crafted":
        what = _craft(path, chance)
    elif kind == "special":
        what = _replace(path, victim, chance)
    else:
        what = _take_rights(path, chance)
    precious = victim.read_bytes() if victim.exists() else None
    what = whose if kind == "mixed" else what
    try:
        before, after = use(path, truths[whose], lenient=kind == "crafted")
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    assert precious is None or victim.read_bytes() == precious, f"{what}: the victim was changed"
    assert not (base / "nowhere").exists(), f"{what}: a file outside was made"
    return f"{before}, then {after}"


def use(path: Path, truth: dict, *, lenient: bool) -> tuple[str, str]:
    """Read, attach, check, repair and write; what a reader got before and after.

    Args:
        lenient: whether ``check`` may leave open what a reader cannot see, as settings that are
            as good as others.
    """
    before, known = _probed(path, truth), truth
    with suppress(StoreError), MemoryStore.open(path, attached=True, **LARGE) as store:
        found = shown(store)
        rows = [row for name, rows in found.items() if name != "words" for row in rows]
        right = [row[:-1] for rows in truth.values() for row in rows]
        assert all(row[:-1] in right for row in rows), f"WRONG where attached: {found}"
    for task in (MemoryStore.quick_check, MemoryStore.check, MemoryStore.repair):
        try:
            report = task(path)
        except StoreError as error:
            assert str(path) in str(error) and "\n" not in str(error), str(error)
            continue
        if task is MemoryStore.check and not lenient and before in ("error", "fewer"):
            assert report.damages, f"a reader got {before}, and check finds nothing"
    with suppress(StoreError), MemoryStore.open(path, write=True, wait=0, **LARGE) as store:
        new = memorize(store, "/new", [text(999)])
        truth = truth | wanted({"/new": ((text(999),), True)})
        truth["words"] = sorted([*truth["words"], ("/new", text(999))])
        store.forget([new])
        truth = known
    return before, _probed(path, truth)


def _probed(path: Path, truth: dict) -> str:
    try:
        return probe(path, truth)[0] if MemoryStore.exists(path) else "error"
    except StoreError:
        return "error"


def torture(
    folder: Path,
    times: int,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda kind, count: None,
    until: float = math.inf,
) -> dict:
    """Try so many strange stores, or fewer if the time ``until`` comes first.

    Returns:
        Outcomes with their numbers, and failures in words.
    """
    apart(_prepare, str(folder)).returned()
    stores = {file.name: _files(file) for file in (folder / "versions").iterdir()}
    truths = {name: _truth(folder / "whole", files) for name, files in stores.items()}
    outcomes, failures = Counter[str](), []
    for number in range(times):
        if time.time() > until:
            break
        chance = random.Random(seed * 1_000_003 + number)
        kind = chance.choice(KINDS)
        arguments = (str(folder), kind, stores, truths, chance.random())
        outcome = apart(ordeal, *arguments, seconds=PATIENCE)
        if outcome.kind == "returned":
            outcomes[f"{kind}: {outcome.value}"] += 1
        else:
            outcomes[f"FAILED: {kind}"] += 1
            failures.append(f"number {number}: {outcome.kind} {outcome.value}")
        progress("strange stores", number + 1)
    return {"outcomes": dict(outcomes), "failures": failures}


def _prepare(folder: str) -> None:
    base = Path(folder) / "versions"
    made = Path(folder) / "made"
    made.mkdir()
    base.mkdir()
    for name, files in versions(made).items():
        _put(base / name, files)


def _truth(path: Path, files: Files) -> dict:
    """What a whole store shows."""
    _put(path, files)
    with MemoryStore.open(path, **LARGE) as store:
        return shown(store)
