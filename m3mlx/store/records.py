"""The record files of all editions: opened when needed, erased, copied, kept within a bound."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import files
from ..errors import StoreError
from .catalog import Catalog
from .record_file import PAGE, TIE, DamagedRecord, Identity, RecordFile, stride
from .rows import Edition
from .usage import Usage

FIRST = "memories.kv"  # of the first edition; the name of the first release
_OURS = re.compile(  # files of editions, and what is left of something that was cut off
    r"memories(-\d+){0,2}(\.kv|\.used)(\.new)?|.*\.(sqlite|usearch)\.new.*|salvaged\.sqlite.*|"
    r"etilqs_\w+"  # of SQLite, which names temporary files so
)
_SLACK = 0.05  # of the bound: so much is dropped at once beyond what must be
_PART = 64  # records that are copied at a time


class ColdReference(StoreError):
    """A reference has no memory in an edition: not yet, or not any more.

    Attributes:
        slot: of the reference.
    """

    def __init__(self, store: Path, slot: int):
        super().__init__(
            f"{store}: reference {slot} is cold, its memory has not been written yet. "
            f"Write it first."
        )
        self.slot = slot


class Records:
    """The record files of a store, as the catalog describes them."""

    def __init__(self, folder: Path, catalog: Catalog, store: bytes, *, write: bool):
        """``store`` is its id, 16 bytes."""
        self._folder, self._catalog, self._store, self._write = folder, catalog, store, write
        self._open_files: dict[int, RecordFile] = {}
        self._tied: set[Path] = set()  # files that have a tie of this writer's own

    def file(self, edition: int | None) -> RecordFile:
        """The record file of an edition, wherever it is now; of the first for None.

        Raises:
            StoreError: it is missing, damaged, cut short or another, or there is no such edition.
        """
        for last in (False, True):
            with self._catalog.snapshot():
                known = self._catalog.memories.edition(edition)
                file = self._open_files.get(known.id)
                if file and (known.file, known.origin) == (file.path.name, file.identity.origin):
                    return file
                wanted = self._catalog.memories.end(known.id) - known.origin
            try:
                opened = self._open(known)
                self.check_length(opened, wanted)
            except StoreError:
                if last:
                    raise
                continue  # a writer may have moved or shortened it between the two looks
            self._open_files[known.id] = opened  # who still reads from the one before may finish
            return opened
        raise AssertionError  # the second turn returned or raised

    def writable(self, edition: int) -> RecordFile:
        """The record file of an edition, whose tie no copy made before has.

        Call it outside of transactions; the one in which memories change calls ``settle_tie``.
        """
        file = self.file(edition)
        if file.path not in self._tied:
            tie = secrets.token_bytes(TIE)
            with self._catalog.transaction():
                self._catalog.memories.announce_tie(edition, file.present_tie(), tie)
                if not file.tied:
                    self._catalog.memories.unbind(edition)
            with files.os_errors_as_store_errors(file.path):
                file.set_tie(tie)
            self._tied.add(file.path)
        return file

    def _open(self, edition: Edition) -> RecordFile:
        return RecordFile(
            self._folder / edition.file,
            Identity.of(self._store, edition),
            write=self._write,
            cipher=self._catalog.cipher,
        )

    def check_length(self, file: RecordFile, wanted: int) -> None:
        """Close a file that has fewer records than it must have, and raise StoreError."""
        if (have := file.records) < wanted:
            file.close()
            raise StoreError(
                f"{file.path}: it is cut short, {have} memories of {wanted} are left. Restore the "
                f"file from a backup, or remove the store's folder and memorize the documents "
                f"again."
            )

    # reading and writing

    def read(self, slots: Sequence[int], edition: int | None, *, note: bool) -> np.ndarray:
        """See ``MemoryStore.read``; ``note`` that they were used."""
        file = self.file(edition)
        id = file.identity.edition
        digests = self._require_warm(slots, id)
        try:
            with files.os_errors_as_store_errors(file.path):
                memories = file.read(slots, digests)
        except DamagedRecord as error:
            self._require_warm(slots, id)  # it may have been forgotten or dropped just now
            with self._catalog.snapshot():
                reference = self._catalog.references.read([error.slot], id)[error.slot]
            raise StoreError(
                f"{file.path}: a memory of {reference.path} (document {reference.document}) "
                f"is damaged. Forget that document and memorize it again."
            ) from error
        if note:
            Usage(file.path, file.identity.origin).note(slots)
        return memories

    def _require_warm(self, slots: Sequence[int], edition: int) -> dict[int, bytes]:
        """Digests of references, all of which must have a memory."""
        with self._catalog.snapshot():
            digests = self._catalog.references.digests(slots, edition)
        if len(digests) < len(set(slots)):
            with self._catalog.snapshot():
                warmth = self._catalog.memories.warmth(edition, slots)
            for slot in slots:
                if slot not in warmth:
                    raise self.gone(slot)
                if slot not in digests:
                    raise ColdReference(self._folder, slot)
        return digests

    def gone(self, slot: int) -> StoreError:
        """What to raise for a slot without a reference."""
        return StoreError(
            f"{self._folder}: there is no reference {slot}, its document has been forgotten or "
            f"replaced. Search again."
        )

    def settle(self, slots: Collection[int], edition: int) -> None:
        """Finish the commit of new memories of an edition."""
        with files.os_errors_as_store_errors(self._folder):
            self.erase()
            with self._catalog.snapshot():
                known = self._catalog.memories.edition(edition)
            self.usage(known).note(slots)
            self.keep_bound(edition, slots)

    # editions

    def usage(self, edition: Edition) -> Usage:
        return Usage(self._folder / edition.file, edition.origin)

    def add(self, edition: Edition) -> None:
        """Make the empty record file of a new edition; the catalog does not know it yet."""
        RecordFile.create(self._folder / edition.file, Identity.of(self._store, edition))

    def erase(self) -> None:
        """Overwrite the records of memories that are gone; cut off what is behind the last."""
        memories = self._catalog.memories
        with self._catalog.db.lock:  # nothing is added meanwhile
            with self._catalog.snapshot():
                found = [
                    (e, memories.leftovers(e.id), memories.end(e.id)) for e in memories.editions()
                ]
            for edition, leftovers, end in found:
                path, end = self._folder / edition.file, max(end, edition.origin)
                if not path.exists():
                    continue  # of another model, and lost: there is nothing to erase
                length = PAGE + (end - edition.origin) * stride(edition.stored_bytes)
                if leftovers or path.stat().st_size > length:
                    file = self.writable(edition.id)
                    with self._catalog.transaction():
                        file.erase(leftovers)
                        file.trim(end)
                        self.usage(edition).forget(leftovers)
                        memories.clear_leftovers(edition.id)
                        memories.settle_tie(edition.id)

    def remove(self, id: int) -> None:
        """Erase all memories of an edition and its file."""
        memories = self._catalog.memories
        with self._catalog.transaction():
            name = memories.edition(id).file
            memories.drop(id, memories.warm_slots(id).tolist())
        self.erase()
        with self._catalog.transaction():
            memories.remove_edition(id)
        files.at_step(f"{name} removed")
        self._open_files.pop(id, None)
        self.sweep()

    def sweep(self) -> None:
        """Remove files of ours that nothing refers to: what a crash has left behind."""
        with self._catalog.snapshot():
            known = {edition.file for edition in self._catalog.memories.editions()}
        for file in self._folder.iterdir():
            if _OURS.fullmatch(file.name) and file.with_suffix(".kv").name not in known:
                file.unlink(missing_ok=True)

    # the bound

    def keep_bound(self, edition: int | None = None, fresh: Collection[int] = ()) -> int:
        """Drop memories, if the store has grown beyond its bound; return how many.

        A memory counts with all its pages, whether or not the file system makes holes. The least
        used go first, of any edition; what else there is stays, however large it is.

        Args:
            edition: whose memories go last among those used alike; the first for None.
            fresh: slots whose memories of this edition stay.
        """
        with self._catalog.snapshot():
            limit = self._catalog.settings()["max_bytes"]
        if limit is None or self._size() <= limit:
            return 0
        self._catalog.db.empty_log()
        if (excess := self._size() - limit) <= 0:
            return 0
        dropped = self._drop(excess + int(_SLACK * limit), edition, fresh)
        self.erase()
        self._catalog.db.empty_log()
        return dropped

    def _size(self) -> int:
        """Bytes of the whole store, if files can have holes."""
        memories = self._catalog.memories
        with self._catalog.snapshot():
            editions = memories.editions()
            size = sum(
                PAGE + memories.warm(edition.id) * stride(edition.stored_bytes)
                for edition in editions
            )
        others = {edition.file for edition in editions} | {"catalog.sqlite-shm"}  # is no content
        return size + sum(
            file.stat().st_size for file in self._folder.iterdir() if file.name not in others
        )

    def _drop(self, excess: int, favoured: int | None, fresh: Collection[int]) -> int:
        """Take the least used memories away that have so many bytes together."""
        memories = self._catalog.memories
        with self._catalog.transaction():
            columns: list[np.ndarray] = []
            favoured = memories.edition(favoured).id
            for edition in memories.editions():
                slots = memories.warm_slots(edition.id)
                if edition.id == favoured:
                    slots = slots[~np.isin(slots, np.array(sorted(fresh), dtype=np.int64))]
                used = self.usage(edition).minutes(slots)
                about = (edition.id, edition.id == favoured, stride(edition.stored_bytes))
                columns.append(np.stack([used, slots, *(np.full_like(slots, v) for v in about)]))
            used, slots, ids, preferred, lengths = np.concatenate(columns, axis=1)
            order = np.lexsort((slots, preferred, used))  # the last key counts most
            freed = np.cumsum(lengths[order])
            dropped = order[: np.searchsorted(freed, excess) + 1]
            for id in np.unique(ids[dropped]):
                memories.drop(int(id), slots[dropped[ids[dropped] == id]].tolist())
        files.at_step("memories dropped")
        return len(dropped)

    # compacting

    def compact(self) -> int:
        """Give references new slots without gaps, and copy their records to new files.

        Slots are never used again, not even here: the new ones start behind all that ever were.
        So a reader that holds an old slot gets an error, never the memory of another reference.

        Returns:
            How many memories were damaged; they are left out, and their references are cold.
        """
        catalog = self._catalog
        with catalog.db.lock:  # other threads wait; other processes read on
            with catalog.snapshot():
                slots, editions = catalog.slots_after(-1, -1), catalog.memories.editions()
                origin = catalog.settings()["next_slot"]
            if all(slots == [*range(e.origin, e.origin + len(slots))] for e in editions):
                return 0
            moved = dict(zip(slots, range(origin, origin + len(slots)), strict=True))
            damaged, after = {}, []
            try:
                for edition in editions:
                    name, tie = f"memories-{edition.id}-{origin}.kv", secrets.token_hex(TIE)
                    about = {"file": name, "origin": origin, "tie": tie}
                    to = replace(edition, **about, next_tie="", unbound=0)
                    damaged[edition.id] = self.copy(edition, to, moved)
                    after.append(to)
                    files.at_step("records copied")
                with catalog.transaction():
                    for id, left_out in damaged.items():
                        catalog.memories.mark(id, left_out, warm=False)
                    catalog.renumber(moved, origin, after)
            finally:
                self.sweep()  # of the old files, or of the new ones where it failed
        return sum(map(len, damaged.values()))

    def copy(self, edition: Edition, to: Edition, moved: Mapping[int, int]) -> list[int]:
        """Copy an edition's memories into a new file, under new slots.

        Args:
            moved: new slots by old ones.

        Returns:
            Old slots of memories that are damaged and were left out.
        """
        self.add(to)
        damaged = []
        with self._catalog.snapshot():
            slots = self._catalog.memories.warm_slots(edition.id).tolist()
        warm = [slot for slot in slots if slot in moved]
        with closing(self._open(edition)) as old, closing(self._open(to)) as new:
            for start in range(0, len(warm), _PART):
                part, records = warm[start : start + _PART], {}
                with self._catalog.snapshot():
                    digests = self._catalog.references.digests(part)
                for slot in part:
                    try:
                        records[moved[slot]] = old.read([slot], digests)[0].tobytes()
                    except StoreError:
                        damaged.append(slot)
                new.write(records, {moved[slot]: digest for slot, digest in digests.items()})
            self.usage(to).fill(self.usage(edition).minutes(np.array(list(moved), dtype=np.int64)))
        return damaged

    def close(self) -> None:
        for file in self._open_files.values():
            file.close()
        self._open_files.clear()
