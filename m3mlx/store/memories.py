"""Which memories there are: the catalog's word on editions, warm references and leftovers.

All methods are called inside ``transaction`` or ``snapshot``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from ..errors import StoreError
from .database import edition_row
from .rows import Edition
from .sealed import Sealed


class Memories(Sealed):
    """The part of the catalog that speaks of memories."""

    def editions(self) -> list[Edition]:
        """All editions by id."""
        rows = self.db.execute(
            "SELECT id, fingerprint, memory, record_bytes, file, origin, added, overhead "
            "FROM edition ORDER BY id"
        ).fetchall()
        try:
            return [
                Edition(id, dict(json.loads(fingerprint)), dict(json.loads(memory)), *rest)
                for id, fingerprint, memory, *rest in rows
            ]
        except (TypeError, ValueError) as error:
            raise self.damaged(f"an edition cannot be read ({error})") from error

    def edition(self, id: int | None) -> Edition:
        """An edition by id; the first for None."""
        editions = self.editions()
        if not editions:
            raise self.damaged("it knows no edition of memories")
        for edition in editions:
            if id is None or edition.id == id:
                return edition
        raise StoreError(
            f"{self.path.parent}: there is no edition {id} of its memories (any more). "
            f"`m3mlx status` shows what there is."
        )

    def next_edition(self) -> int:
        """The id that the next edition gets."""
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'edition'").fetchone()
        return 1 + (row[0] if row else 0)

    def add_edition(self, edition: Edition) -> None:
        self.db["edition"].insert({"id": edition.id, **edition_row(edition)})

    def remove_edition(self, edition: int) -> None:
        """Remove an edition and all that is known of its memories; its file remains."""
        for table, column in (("memory", "edition"), ("leftover", "edition"), ("edition", "id")):
            self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", [edition])

    def mark(self, edition: int, slots: Iterable[int], *, warm: bool) -> None:
        """Say whether slots have a memory. One that has it is no leftover any more."""
        chosen = "edition = ?1 AND slot IN (SELECT value FROM json_each(?2))"
        parameters = [edition, listed(slots)]
        if warm:
            self.db.execute(f"DELETE FROM leftover WHERE {chosen}", parameters)
            self.db.execute(
                "INSERT OR IGNORE INTO memory SELECT ?1, value FROM json_each(?2)", parameters
            )
        else:
            self.db.execute(f"DELETE FROM memory WHERE {chosen}", parameters)

    def drop(self, edition: int, slots: Iterable[int]) -> None:
        """Take memories away; ``leftovers`` then lists them until their records are erased."""
        slots = list(slots)
        self.mark(edition, slots, warm=False)
        self.db.execute(
            "INSERT OR IGNORE INTO leftover SELECT ?, value FROM json_each(?)",
            [edition, listed(slots)],
        )

    def warmth(self, edition: int, slots: Iterable[int]) -> dict[int, bool]:
        """Whether each slot that exists has a memory."""
        rows = self.db.execute(
            "SELECT slot, EXISTS (SELECT 1 FROM memory m WHERE m.edition = ? AND m.slot = r.slot) "
            "FROM reference r WHERE slot IN (SELECT value FROM json_each(?))",
            [edition, listed(slots)],
        )
        return {slot: bool(warm) for slot, warm in rows}

    def warm(self, edition: int) -> int:
        """Number of memories that an edition has."""
        return self.db.execute(
            "SELECT count(*) FROM memory WHERE edition = ?", [edition]
        ).fetchone()[0]

    def warm_slots(self, edition: int) -> np.ndarray:
        """Slots that have a memory, int64, in order."""
        rows = self.db.execute("SELECT slot FROM memory WHERE edition = ? ORDER BY slot", [edition])
        slots = [slot for (slot,) in rows]
        if wrong := [slot for slot in slots if type(slot) is not int]:
            raise self.damaged(f"a memory is of reference {wrong[0]!r:.40}, which is no number")
        return np.array(slots, dtype=np.int64)

    def cold(self, edition: int, after: int, count: int) -> list[int]:
        """The next slots behind one that have no memory, in order; quarantined ones are left."""
        rows = self.db.execute(
            "SELECT slot FROM reference r WHERE slot > ? AND NOT quarantined AND NOT EXISTS "
            "(SELECT 1 FROM memory m WHERE m.edition = ? AND m.slot = r.slot) "
            "ORDER BY slot LIMIT ?",
            [after, edition, count],
        )
        return [slot for (slot,) in rows]

    def end(self, edition: int) -> int:
        """The slot behind the last that has a memory; 0 without any."""
        (last,) = self.db.execute(
            "SELECT max(slot) FROM memory WHERE edition = ?", [edition]
        ).fetchone()
        if last is not None and type(last) is not int:
            raise self.damaged(f"a memory is of reference {last!r:.40}, which is no number")
        return 0 if last is None else last + 1

    def leftovers(self, edition: int) -> list[int]:
        """Slots whose memories are gone and whose records must still be erased."""
        rows = self.db.execute(
            "SELECT slot FROM leftover WHERE edition = ? ORDER BY slot", [edition]
        )
        return [slot for (slot,) in rows]

    def clear_leftovers(self, edition: int) -> None:
        self.db.execute("DELETE FROM leftover WHERE edition = ?", [edition])


def listed(numbers: Iterable[int]) -> str:
    """Any number of integers as one SQL parameter, for ``json_each``."""
    return json.dumps([int(number) for number in numbers])
