"""The root of an encrypted catalog: a keyed sum over all of its rows.

Encryption alone says that a value is one of ours, not that it is all of them, in their places, and
the latest. So a setting keeps, for each table, the sum of keyed digests of its rows, encrypted.
Triggers that live in the connection alone keep the sums with every change, in the same transaction;
whoever has no key can change, move, drop or bring back rows, and not the sums.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from .cipher import Cipher, Tampered
from .database import Connection

SETTING = "root"
TABLES = (
    *("setting", "edition", "document", "reference", "memory", "leftover", "collection"),
    "fact",  # of later releases, so a root may lack it
)
SMALL = ("setting", "edition")  # which can be proved whenever the store is opened
_MODULUS = 2**256


class Root:
    """The sums of one open catalog. Call it inside ``transaction`` or ``snapshot``."""

    def __init__(self, db: Connection, cipher: Cipher):
        self._db, self._cipher = db, cipher
        self._changes: Counter[str] = Counter()
        self._columns = {
            table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in TABLES
        }

    def follow(self) -> None:
        """Keep the sums with every transaction from now on."""
        self._db.conn.create_function("m3mlx_row_changed", -1, self._changed)
        for table, columns in self._columns.items():
            for event, sides in (
                ("INSERT", ("new",)),
                ("DELETE", ("old",)),
                ("UPDATE", ("old", "new")),
            ):
                calls = "".join(
                    f"SELECT m3mlx_row_changed('{table}', {1 if side == 'new' else -1}, "
                    + ", ".join(f'{side}."{column}"' for column in columns)
                    + ");"
                    for side in sides
                )
                skipped = f"WHEN {sides[0]}.name != '{SETTING}'" if table == "setting" else ""
                self._db.execute(
                    f"CREATE TEMP TRIGGER root_{table}_{event} AFTER {event} ON main.{table} "
                    f"{skipped} BEGIN {calls} END"
                )
        self._db.begins, self._db.ends = self._changes.clear, self._settle

    def _changed(self, table: str, sign: int, *row: object) -> None:
        self._changes[table] += sign * self._digest(table, row)

    def _digest(self, table: str, row: Iterable) -> int:
        return int.from_bytes(self._cipher.digest(repr((table, *row)).encode()), "little")

    def _settle(self) -> None:
        if self._changes:
            sums = self._stored()
            self._store({t: (sums.get(t, 0) + self._changes[t]) % _MODULUS for t in TABLES})
            self._changes.clear()

    def reset(self) -> None:
        """Take the rows as they are."""
        self._store({table: self._sum(table) for table in TABLES})
        self._changes.clear()

    def _sum(self, table: str) -> int:
        columns = ", ".join(f'"{column}"' for column in self._columns[table])
        rows = self._db.execute(f"SELECT {columns} FROM {table}")
        found = sum(self._digest(table, row) for row in rows if row[0] != SETTING)
        return found % _MODULUS

    def _store(self, sums: dict[str, int]) -> None:
        text = json.dumps({table: f"{value:x}" for table, value in sums.items()})
        stored = json.dumps(self._cipher.encrypt(text, SETTING))
        self._db.execute("UPDATE setting SET value = ? WHERE name = ?", [stored, SETTING])

    def _stored(self) -> dict[str, int]:
        stored = self._db.value("SELECT value FROM setting WHERE name = ?", [SETTING])
        try:
            text = self._cipher.decrypt(str(json.loads(stored or '""')), SETTING)
            return {table: int(value, 16) for table, value in json.loads(text).items()}
        except (Tampered, ValueError):  # then nothing can be proved
            return {}

    def changed(self, tables: Iterable[str] = TABLES) -> list[str]:
        """The tables whose rows are not all those, or not only those, that were written."""
        sums = self._stored()
        return [table for table in tables if sums.get(table, 0) != self._sum(table)]
