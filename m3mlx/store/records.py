"""The record files of all editions: opened when needed, erased, kept within a bound."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from .. import files
from ..errors import StoreError
from .bank import PAGE, Bank, Identity, stride
from .catalog import Catalog
from .rows import Edition
from .usage import Usage

FIRST = "memories.kv"  # of the first edition; the name of the first release
_OURS = re.compile(r"memories(-\d+){0,2}(\.kv|\.used|\.kv\.new)|.*\.(sqlite|usearch)\.new")
_SLACK = 0.05  # of the bound: so much is dropped at once beyond what must be


class Records:
    """What is done to the records of a store, under the catalog's word.

    Attributes:
        edition: the one in use.
    """

    def __init__(self, folder: Path, catalog: Catalog, store: bytes, *, write: bool):
        """``store`` is its id, 16 bytes. The first edition is in use."""
        self._folder, self._catalog, self._store, self._write = folder, catalog, store, write
        self._banks: dict[int, Bank] = {}
        with catalog.snapshot():
            editions = catalog.editions()
        if not editions:
            raise catalog.damaged("it knows no edition of memories")
        self.edition = editions[0]

    def use(self, edition: int) -> None:
        """Take another edition into use."""
        self.edition = self._find(edition)

    def _find(self, edition: int) -> Edition:
        with self._catalog.snapshot():
            found = [known for known in self._catalog.editions() if known.id == edition]
        if not found:
            raise StoreError(
                f"{self._folder}: there is no edition {edition} of its memories (any more). "
                f"`m3mlx status` shows what there is."
            )
        return found[0]

    def bank(self, edition: int | None = None) -> Bank:
        """The record file of an edition, by default of the one in use, wherever it is now.

        Raises:
            StoreError: it is missing, damaged or another, or there is no such edition.
        """
        id = self.edition.id if edition is None else edition
        for last in (False, True):
            with self._catalog.snapshot():
                place = self._catalog.place(id)
            bank = self._banks.get(id)
            if bank and place == (bank.path.name, bank.identity.origin):
                return bank
            known = self._find(id)
            try:
                identity = Identity.of(self._store, known)
                opened = Bank(
                    self._folder / known.file,
                    identity,
                    write=self._write,
                    cipher=self._catalog.cipher,
                )
            except StoreError:
                if last:
                    raise
                continue  # it may have been moved just now
            self._banks[id] = opened  # who still reads from the one before may finish
            if id == self.edition.id:
                self.edition = known
            return opened
        raise AssertionError  # the second turn returned or raised

    def usage(self, edition: Edition) -> Usage:
        return Usage(self._folder / edition.file, edition.origin)

    def check_length(self) -> None:
        """Raise StoreError if the record file in use is shorter than the catalog says."""
        bank = self.bank()
        for last in (False, True):  # twice, because a writer may shorten it between two looks
            with self._catalog.snapshot():
                place = self._catalog.place(self.edition.id)
                wanted = self._catalog.end(self.edition.id) - self.edition.origin
            if bank.records >= wanted or place != (bank.path.name, bank.identity.origin):
                return
            if last:
                raise StoreError(
                    f"{bank.path}: it is cut short, {bank.records} memories of {wanted} are left. "
                    f"Restore the file from a backup, or remove the store's folder and memorize "
                    f"the documents again."
                )

    def add(self, edition: Edition) -> None:
        """Make the empty record file of a new edition; the catalog does not know it yet."""
        Bank.create(self._folder / edition.file, Identity.of(self._store, edition))

    def erase(self) -> None:
        """Overwrite the records of memories that are gone; cut off what is behind the last."""
        with self._catalog.transaction():  # nothing is added meanwhile
            for edition in self._catalog.editions():
                file = self._folder / edition.file
                if not file.exists():
                    continue  # of another model, and lost: there is nothing to erase
                leftovers = self._catalog.leftovers(edition.id)
                end = max(self._catalog.end(edition.id), edition.origin)
                length = PAGE + (end - edition.origin) * stride(edition.stored_bytes)
                if leftovers or file.stat().st_size > length:
                    bank = self.bank(edition.id)
                    bank.erase(leftovers)
                    bank.trim(end)
                    self.usage(edition).forget(leftovers)
                    self._catalog.clear_leftovers(edition.id)

    def remove(self, edition: int) -> None:
        """Erase all memories of an edition and its file."""
        file = self._find(edition).file
        with self._catalog.transaction():
            self._catalog.drop(edition, self._catalog.warm_slots(edition).tolist())
        self.erase()
        with self._catalog.transaction():
            self._catalog.remove_edition(edition)
        files.step(f"{file} removed")
        self._banks.pop(edition, None)
        self.sweep()

    def sweep(self) -> None:
        """Remove files of ours that nothing refers to: what a crash has left behind."""
        with self._catalog.snapshot():
            known = {edition.file for edition in self._catalog.editions()}
        for file in self._folder.iterdir():
            if _OURS.fullmatch(file.name) and file.with_suffix(".kv").name not in known:
                file.unlink(missing_ok=True)

    def keep_bound(self, fresh: Collection[int] = ()) -> int:
        """Drop memories, if the store has grown beyond its bound; return how many.

        A memory counts with all its pages, whether or not the file system makes holes. The least
        used go first, of any edition; what else there is stays, however large it is.

        Args:
            fresh: slots whose memories of the edition in use stay.
        """
        with self._catalog.snapshot():
            limit = self._catalog.settings()["max_bytes"]
        if limit is None or self._size() <= limit:
            return 0
        self._catalog.empty_log()
        if (excess := self._size() - limit) <= 0:
            return 0
        dropped = self._drop(excess + int(_SLACK * limit), fresh)
        self.erase()
        self._catalog.empty_log()
        return dropped

    def _size(self) -> int:
        """Bytes of the whole store, if files can have holes."""
        with self._catalog.snapshot():
            editions = self._catalog.editions()
            size = sum(
                PAGE + self._catalog.warm(edition.id) * stride(edition.stored_bytes)
                for edition in editions
            )
        others = {edition.file for edition in editions} | {"catalog.sqlite-shm"}  # is no content
        return size + sum(
            file.stat().st_size for file in self._folder.iterdir() if file.name not in others
        )

    def _drop(self, excess: int, fresh: Collection[int]) -> int:
        """Take the least used memories away that have so many bytes together."""
        with self._catalog.transaction():
            columns: list[np.ndarray] = []
            for edition in self._catalog.editions():
                slots = self._catalog.warm_slots(edition.id)
                used = self.usage(edition).minutes(slots)
                present = edition.id == self.edition.id
                if present:
                    kept = ~np.isin(slots, np.array(sorted(fresh), dtype=np.int64))
                    slots, used = slots[kept], used[kept]
                same = np.ones_like(slots)
                about = (edition.id, present, stride(edition.stored_bytes))
                columns.append(np.stack([used, slots, *(same * value for value in about)]))
            used, slots, ids, present, lengths = np.concatenate(columns, axis=1)
            order = np.lexsort((slots, present, used))  # the last key counts most
            given = np.cumsum(lengths[order])
            dropped = order[: np.searchsorted(given, excess) + 1]
            for id in np.unique(ids[dropped]):
                self._catalog.drop(int(id), slots[dropped[ids[dropped] == id]].tolist())
        files.step("memories dropped")
        return len(dropped)

    def copy(self, edition: Edition, to: Edition, moved: Mapping[int, int]) -> list[int]:
        """Copy an edition's memories into a new file, under new slots.

        Args:
            moved: new slots by old ones.

        Returns:
            Old slots of memories that are damaged and were left out.
        """
        self.add(to)
        old, new = (
            self.bank(edition.id),
            Bank(
                self._folder / to.file,
                Identity.of(self._store, to),
                write=True,
                cipher=self._catalog.cipher,
            ),
        )
        damaged = []
        try:
            with self._catalog.snapshot():
                warm = self._catalog.warm_slots(edition.id)
            for part in _parts(warm[np.isin(warm, np.array(list(moved), dtype=np.int64))], 64):
                records = {}
                for slot in part:
                    try:
                        records[moved[slot]] = old.read([slot])[0].tobytes()
                    except StoreError:
                        damaged.append(slot)
                new.write(records)
            before = np.array(list(moved), dtype=np.int64)
            self.usage(to).fill(self.usage(edition).minutes(before))
        finally:
            new.close()
        return damaged

    def close(self) -> None:
        for bank in self._banks.values():
            bank.close()
        self._banks.clear()


def _parts(slots: np.ndarray, length: int) -> Iterator[list[int]]:
    for start in range(0, len(slots), length):
        yield slots[start : start + length].tolist()
