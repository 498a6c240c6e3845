"""Give room back: references get new slots without gaps, records go to new files.

Slots are never used again, not even here: the new ones start behind all that ever were. So a
reader who holds an old slot is told that it is gone, and can never get the memory of another
reference for it. Record files start with the slot of their first record.
"""

from __future__ import annotations

from dataclasses import replace

from .. import files
from .catalog import Catalog
from .records import Records


def renumber(catalog: Catalog, records: Records) -> int:
    """Move all references to new slots, in one commit. Returns how many memories were damaged.

    The new record files are on the disk before the commit names them; the old ones are removed
    after it. A crash leaves files that no row names, which the next writer removes.
    """
    with catalog.thread:  # other threads wait; other processes read on
        with catalog.snapshot():
            slots, editions = catalog.following(-1, -1), catalog.editions()
            origin = catalog.settings()["next_slot"]
        if all(edition.origin + i == slot for edition in editions for i, slot in enumerate(slots)):
            return 0
        moved = dict(zip(slots, range(origin, origin + len(slots)), strict=True))
        damaged = {}
        try:
            for edition in editions:
                file = f"memories-{edition.id}-{origin}.kv"
                to = replace(edition, file=file, origin=origin)
                damaged[edition.id] = records.copy(edition, to, moved)
                files.step("records copied")
            with catalog.transaction():
                for edition in editions:
                    catalog.mark(edition.id, damaged[edition.id], warm=False)
                catalog.renumber(moved, origin)
        finally:
            records.sweep()  # of the old files, or of the new ones where it failed
    return sum(map(len, damaged.values()))
