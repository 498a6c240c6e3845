"""The catalog's tables of editions and of their memories.

All methods are called inside ``transaction`` or ``snapshot``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import StoreError
from .database import Connection
from .rows import EDITION, Edition

INSERT_EDITION = f"INSERT INTO edition VALUES ({', '.join('?' * len(EDITION))})"
IN = "IN (SELECT value FROM json_each(?))"  # any number of integers in one parameter


def as_json(numbers: Iterable[int]) -> str:
    """Return integers as one SQL parameter, for ``IN``."""
    return json.dumps([int(number) for number in numbers])


@lru_cache(maxsize=64, typed=True)  # they are asked for at every step, and stay the same
def _edition(id: int, fingerprint: str, memory: str, *rest: Any) -> Edition:
    return Edition(id, dict(json.loads(fingerprint)), dict(json.loads(memory)), *rest)


class Memories:
    """Which editions there are, which references have memories, which records are to be erased."""

    def __init__(self, db: Connection):
        self._db = db

    def editions(self) -> list[Edition]:
        """All editions by id."""
        rows = self._db.execute(f"SELECT {', '.join(EDITION)} FROM edition ORDER BY id").fetchall()
        try:
            return [_edition(*row) for row in rows]
        except (TypeError, ValueError) as error:
            raise self._db.damaged(f"an edition cannot be read ({error})") from error

    def edition(self, id: int | None = None) -> Edition:
        """Return an edition by id; the first for None."""
        editions = self.editions()
        if not editions:
            raise self._db.damaged("it knows no edition of memories")
        for edition in editions:
            if id is None or edition.id == id:
                return edition
        raise StoreError(
            f"{self._db.path.parent}: there is no edition {id} of its memories (any more). "
            f"`m3mlx status` shows what there is."
        )

    def next_edition(self) -> int:
        """The id that the next edition gets."""
        last = self._db.value("SELECT seq FROM sqlite_sequence WHERE name = 'edition'")
        return 1 + (last or 0)

    def add_edition(self, edition: Edition) -> None:
        self._db.execute(INSERT_EDITION, edition.row)

    def announce_tie(self, edition: int, present: bytes, following: bytes) -> None:
        """Say that a record file is about to get another tie; until ``settle_tie`` both will do."""
        self._db.execute(
            "UPDATE edition SET tie = ?, next_tie = ? WHERE id = ?",
            [present.hex(), following.hex(), edition],
        )

    def settle_tie(self, edition: int) -> None:
        """Make the tie that was announced the only one."""
        self._db.execute(
            "UPDATE edition SET tie = next_tie, next_tie = '' WHERE id = ? AND next_tie != ''",
            [edition],
        )

    def unbind(self, edition: int) -> None:
        """Take no record for a memory that does not say of which reference it is."""
        self._db.execute("UPDATE edition SET unbound = 0 WHERE id = ?", [edition])

    def remove_edition(self, edition: int) -> None:
        """Remove an edition and all that is known of its memories; its file remains."""
        for table, column in (("memory", "edition"), ("leftover", "edition"), ("edition", "id")):
            self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", [edition])

    def mark(self, edition: int, slots: Iterable[int], *, warm: bool) -> None:
        """Return whether slots have a memory. One that has it is no leftover any more."""
        parameters = [edition, as_json(slots)]
        stale = "leftover" if warm else "memory"
        self._db.execute(f"DELETE FROM {stale} WHERE edition = ? AND slot {IN}", parameters)
        if warm:
            self._db.execute(
                "INSERT OR IGNORE INTO memory SELECT ?, value FROM json_each(?)", parameters
            )

    def drop(self, edition: int, slots: Iterable[int]) -> None:
        """Take memories away; ``leftovers`` then lists them until their records are erased."""
        slots = list(slots)
        self.mark(edition, slots, warm=False)
        self._db.execute(
            "INSERT OR IGNORE INTO leftover SELECT ?, value FROM json_each(?)",
            [edition, as_json(slots)],
        )

    def warmth(self, edition: int, slots: Iterable[int]) -> dict[int, bool]:
        """Return for each slot that exists whether it has a memory."""
        rows = self._db.execute(
            "SELECT slot, EXISTS (SELECT 1 FROM memory m WHERE m.edition = ? AND m.slot = r.slot) "
            f"FROM reference r WHERE slot {IN}",
            [edition, as_json(slots)],
        )
        return {slot: bool(warm) for slot, warm in rows}

    def warm(self, edition: int) -> int:
        """Number of memories that an edition has."""
        return self._db.value("SELECT count(*) FROM memory WHERE edition = ?", [edition])

    def warm_slots(self, edition: int) -> np.ndarray:
        """Slots that have a memory, int64, in order."""
        slots = self._db.column(
            "SELECT slot FROM memory WHERE edition = ? ORDER BY slot", [edition]
        )
        return np.array([self._number(slot) for slot in slots], dtype=np.int64)

    def cold(self, edition: int, after: int, count: int) -> list[int]:
        """The next slots behind one that have no memory, in order; quarantined ones are left."""
        return self._db.column(
            "SELECT slot FROM reference r WHERE slot > ? AND NOT quarantined AND NOT EXISTS "
            "(SELECT 1 FROM memory m WHERE m.edition = ? AND m.slot = r.slot) "
            "ORDER BY slot LIMIT ?",
            [after, edition, count],
        )

    def end(self, edition: int) -> int:
        """The slot behind the last that has a memory; 0 without any."""
        last = self._db.value("SELECT max(slot) FROM memory WHERE edition = ?", [edition])
        return 0 if last is None else self._number(last) + 1

    def _number(self, slot: object) -> int:
        if type(slot) is not int:
            raise self._db.damaged(f"a memory is of reference {slot!r:.40}, which is no number")
        return slot

    def leftovers(self, edition: int) -> list[int]:
        """Slots whose memories are gone and whose records must still be erased."""
        return self._db.column(
            "SELECT slot FROM leftover WHERE edition = ? ORDER BY slot", [edition]
        )

    def clear_leftovers(self, edition: int) -> None:
        self._db.execute("DELETE FROM leftover WHERE edition = ?", [edition])
