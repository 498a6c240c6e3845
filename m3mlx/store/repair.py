"""Mend a store: what can be derived is derived again, what cannot is put in quarantine.

index, full text    made again from the catalog
memory, records     taken away; its reference is cold, and the model writes it again from the
                    stored tokens
reference           hidden from searches and named; forgetting or memorizing its document
                    again ends that
catalog             its readable rows are copied into a new one
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import Progress, no_progress
from ..errors import StoreError
from ..files import sync_folder
from . import index
from .catalog import MOST_SLOTS, MOST_VECTORS, NEW_STORE, Catalog
from .check import CheckReport, Damage, examine, exclusive
from .cipher import Passphrase
from .database import errors_translated
from .folder import CATALOG
from .record_file import DamagedRecord, Identity, RecordFile, restore
from .rows import EDITION, Edition

_TABLES = {  # that are copied
    "setting": ("name", "value"),
    "edition": EDITION,
    "document": (
        *("id", "path", "hash", "size", "count", "complete", "added", "tokenizer", "since"),
        "sealed",
    ),
    "reference": (
        *("slot", "document", "ordinal", "start", "end", "page", "line", "text"),
        *("tokens", "vector", "checksum", "quarantined"),
    ),
    "leftover": ("edition", "slot"),
    "collection": ("document", "name"),
    "fact": ("document", "details"),
}
_SETTINGS = {*NEW_STORE, "id", "encoder", "dimensions", "cipher"}  # that are copied
_KEYED = ("document", "reference")  # by a number: rows can be asked for one by one
_TURNS = 4  # of looking and mending; one thing can hide another
_GAP = 1_000_000  # keys that are tried one by one where rows cannot be listed, in seconds
_NEW = "salvaged.sqlite"


@dataclass(frozen=True)
class RepairReport:
    """Result of a repair.

    Attributes:
        found: before it.
        left: after it.
        cold: (edition, slot) of memories that were damaged, to be written again.
        lost: paths of documents of which references could not be read any more at all; a document
            of which nothing at all could be read is missing without a name.
    """

    found: CheckReport
    left: CheckReport
    cold: list[tuple[int, int]]
    lost: list[str]


def repair(
    path: Path,
    progress: Progress = no_progress,
    *,
    wait: float = 10.0,
    passphrase: Passphrase | None = None,
) -> RepairReport:
    """Mend what ``check`` finds.

    Raises:
        LockedError: the store is encrypted, and the passphrase is missing or wrong.
        StoreError: there is no store, another process writes to it, or its catalog is damaged so
            far that not even the settings can be read.
    """
    path = Path(path)
    cold: list[tuple[int, int]] = []
    lost: list[str] = []
    with exclusive(path, wait):
        first = left = examine(path, progress, passphrase)
        for _ in range(_TURNS):
            if not left.damages:
                break
            if any(damage.part == "catalog" for damage in left.damages):
                lost += salvage(path, passphrase)
            else:
                cold += _mend(path, left.damages, passphrase)
            left = examine(path, progress, passphrase)
    return RepairReport(first, left, cold, sorted(set(lost)))


def _mend(
    path: Path, damages: list[Damage], passphrase: Passphrase | None
) -> list[tuple[int, int]]:
    """Mend all that is not of the catalog's pages; return the memories that were taken away."""
    parts = {damage.part for damage in damages}
    cold: list[tuple[int, int]] = []
    bad: list[int] = []
    with closing(Catalog(path / CATALOG, write=True)) as catalog, catalog.transaction():
        catalog.unlock(passphrase)
        editions = {edition.id: edition for edition in catalog.memories.editions()}
        store = bytes.fromhex(catalog.settings()["id"])
        for damage in damages:
            if damage.edition is not None and damage.slot is not None:
                cold.append((damage.edition, damage.slot))
            elif damage.edition is not None:
                _restore_file(catalog, path, store, editions[damage.edition])
            elif damage.part == "fact" and damage.document is not None:
                catalog.facts.put(damage.document, "", ())
            elif damage.document is not None:
                _reopen(catalog, damage.document)
            elif damage.slot is not None:
                bad.append(damage.slot)
        for id in editions:
            catalog.memories.drop(id, [slot for edition, slot in cold if edition == id])
        for slot in bad:
            _quarantine(catalog, slot)
        if bad or parts & {"index", "document"}:
            catalog.quarantine(bad, True)
            (path / index.FILE).unlink(missing_ok=True)
        if bad or "words" in parts:
            catalog.full_text.make()
        if catalog.root:
            catalog.root.reset()
    return cold


def _restore_file(catalog: Catalog, folder: Path, store: bytes, edition: Edition) -> None:
    path, identity = folder / edition.file, Identity.of(store, edition)
    with suppress(StoreError), closing(RecordFile(path, identity)) as file:
        if not file.tied:  # only what says of which reference it is may stay
            catalog.memories.unbind(edition.id)
    with suppress(StoreError):  # of another store: the memories in it are lost
        restore(path, identity, max(catalog.memories.end(edition.id), edition.origin))


def _reopen(catalog: Catalog, document: int) -> None:
    """Let a document be as complete as its references are; it counts as changed if some lack."""
    count, complete, since = catalog.db.execute(
        "SELECT count, complete, since FROM document WHERE id = ?", [document]
    ).fetchone()
    changed = ""  # no file has this hash
    try:
        path, hash = catalog.columns.about_of(document)[:2]
    except StoreError:
        path, hash = _name(catalog, document), changed
    have, last = catalog.db.execute(
        "SELECT count(*), max(ordinal) FROM reference WHERE document = ?", [document]
    ).fetchone()
    others = catalog.db.value(
        "SELECT count(*) FROM document WHERE path = ? AND complete AND id != ?",
        [catalog.cipher.encrypt_name(path), document],
    )
    whole = have == count and last == have - 1
    if others or not (whole or (have and complete and since > 0)):
        change = (max(count, have + 1), 0, changed)  # a half one, which is begun anew
    elif whole:
        change = (count, 1, hash)
    else:
        change = (have, 1, changed)  # what is left is served
    count, complete, hash = change
    catalog.db.execute(
        "UPDATE document SET count = ?, complete = ? WHERE id = ?", [count, complete, document]
    )
    catalog.columns.describe(document, path, hash)


def _name(catalog: Catalog, document: int) -> str:
    """The path of a document, or words that stand for it where it cannot be read."""
    return catalog.columns.path_of(document) or _substitute_name(document)


def _substitute_name(document: object) -> str:
    return f"document {document}, whose name cannot be read"


def _quarantine(catalog: Catalog, slot: int) -> None:
    """Keep what can be read of a damaged row, as values of the right types."""
    document, text = catalog.db.execute(
        "SELECT document, CAST(text AS BLOB) FROM reference WHERE slot = ?", [slot]
    ).fetchone()
    catalog.db.execute(
        "UPDATE reference SET quarantined = 1, text = ?, tokens = CAST(tokens AS BLOB), "
        "vector = CAST(vector AS BLOB), checksum = CAST(checksum AS INTEGER) WHERE slot = ?",
        [(text or b"").decode("utf-8", "replace"), slot],
    )
    # its file counts as changed, so that memorizing it again replaces the document
    catalog.columns.describe(document, _name(catalog, document), "")


# a catalog whose pages are damaged


def salvage(path: Path, passphrase: Passphrase | None) -> list[str]:
    """Copy what can be read of a catalog into a new one, which replaces it.

    Returns:
        Paths of documents that lost references.

    Raises:
        StoreError: too little can be read.
    """
    with errors_translated(path / CATALOG):
        old = sqlite3.connect(path / CATALOG, isolation_level=None)
    with closing(old):
        old.text_factory = bytes
        settings = {str(_text(n)): str(_text(value)) for n, value in _rows(old, "setting")}
        if missing := {"id", "encoder", "dimensions", "next_slot"} - settings.keys():
            raise _unrepairable(path, f"its setting {min(missing)} cannot be read")
        new = path / _NEW
        new.unlink(missing_ok=True)
        try:
            known = {name: json.loads(settings[name]) for name in _SETTINGS & settings.keys()}
            store, end = bytes.fromhex(known["id"]), int(known["next_slot"])
            for (length,) in _rows_until_damage(old, MOST_VECTORS):
                if length and not known.get("cipher"):
                    known["dimensions"] = length // 4
        except (TypeError, ValueError) as error:
            raise _unrepairable(path, f"a setting cannot be read ({error})") from error
        try:
            Catalog.create(new, {**NEW_STORE, **known})
            with closing(Catalog(new, write=True)) as catalog:
                lost = _fill(catalog, old, path, store, end, passphrase)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    for ending in ("-wal", "-shm"):  # of the old one: they would be taken for the new one's
        (path / f"{CATALOG}{ending}").unlink(missing_ok=True)
    os.replace(new, path / CATALOG)
    sync_folder(path)
    return lost


def _fill(
    catalog: Catalog,
    old: sqlite3.Connection,
    folder: Path,
    store: bytes,
    end: int,
    passphrase: Passphrase | None,
) -> list[str]:
    """Put everything readable into a catalog that has only settings.

    Args:
        store: its id.
        end: the next slot, as the old catalog says.

    Returns:
        Paths of documents that lost references.
    """
    lost: Counter[str] = Counter()
    with catalog.transaction():
        for row in _rows(old, "edition"):
            _insert(catalog, "edition", map(_text, row))
        editions = catalog.memories.editions()
        if not editions:
            raise _unrepairable(folder, "no edition of its memories can be read")
        catalog.unlock(passphrase)
        paths: dict[int, str] = {}
        for id, *columns in _rows(old, "document"):
            names = [str(_text(columns[at])) for at in (0, 1, 5, 6, 8)]
            numbers = [n if isinstance(n, int) else 0 for n in (*columns[2:5], columns[7])]
            document = (id, *names[:2], *numbers[:3], *names[2:4], numbers[3], names[4])
            if _insert(catalog, "document", document):
                paths[id] = _name(catalog, id)
                lost[paths[id]] += numbers[1] if numbers[2] else 0
        for slot, document, *values in _rows(old, "reference"):
            if document not in paths or not _is_slot(slot):
                lost[_substitute_name(document)] += 1
                continue
            values[:6] = map(_text, values[:6])
            if _insert(catalog, "reference", (slot, document, *values)):
                lost[paths[document]] -= 1
                end = max(end, slot + 1)
        for edition, slot in _rows(old, "leftover"):
            if _is_slot(slot):
                _insert(catalog, "leftover", (edition, slot))
        for document, name in _rows(old, "collection"):
            if document in paths:
                _insert(catalog, "collection", (document, str(_text(name))))
        for document, details in _rows(old, "fact"):
            if document in paths:
                _insert(catalog, "fact", (document, str(_text(details))))
        for edition in editions:
            _find_memories(catalog, folder / edition.file, Identity.of(store, edition))
        if catalog.root:
            catalog.root.reset()
        catalog.set(next_slot=end, seal=None, scrub=True)
        last = "(SELECT coalesce(max(since), 0) FROM document)"
        catalog.db.execute(
            f"UPDATE setting SET value = max(CAST(value AS INTEGER), {last}) + 1 "
            f"WHERE name = 'commit'"
        )
    return [path for path, count in lost.items() if count > 0]


def _find_memories(catalog: Catalog, path: Path, identity: Identity) -> None:
    """Mark every reference as warm whose record proves itself by its checksum."""
    with suppress(StoreError), closing(RecordFile(path, identity)) as file:
        for slot in catalog.slots_after(-1, -1):
            with suppress(DamagedRecord):
                file.read([slot], catalog.references.digests([slot]))
                catalog.memories.mark(identity.edition, [slot], warm=True)


def _is_slot(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MOST_SLOTS


def _insert(catalog: Catalog, table: str, row: Iterable) -> bool:
    """Add a row, unless another has its place; return whether it was added."""
    values = list(row)
    marks = ", ".join("?" * len(values))
    done = catalog.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)
    return done.rowcount == 1


def _rows(old: sqlite3.Connection, table: str) -> Iterator[tuple]:
    """All rows of a table that can be read, whatever page is damaged."""
    columns = ", ".join(f'"{name}"' for name in _TABLES[table])
    key = _TABLES[table][0]
    if table not in _KEYED:
        yield from _rows_until_damage(old, f"SELECT {columns} FROM {table}")
        return
    first = [k for (k,) in _rows_until_damage(old, f"SELECT {key} FROM {table} ORDER BY {key}")]
    back = f"SELECT {key} FROM {table} ORDER BY {key} DESC"
    last = [k for (k,) in _rows_until_damage(old, back)][::-1]
    low, high = (first[-1] if first else -1), (last[0] if last else -1)
    between = range(low + 1, high) if high - low < _GAP else ()
    for k in dict.fromkeys([*first, *between, *last]):
        yield from _rows_until_damage(old, f"SELECT {columns} FROM {table} WHERE {key} = {k:d}")


def _rows_until_damage(old: sqlite3.Connection, statement: str) -> Iterator[tuple]:
    with suppress(sqlite3.DatabaseError, OverflowError, UnicodeDecodeError):
        yield from old.execute(statement)


def _text(value: object) -> object:
    """Decode a text that was read as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _unrepairable(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path / CATALOG}: {why}, so it cannot be repaired. Restore it from a backup, or remove "
        f"the store's folder and memorize the documents again."
    )
