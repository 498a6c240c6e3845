"""The record files of all editions: opened when needed, erased, kept within a bound."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
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
    """The record files of a store, as the catalog describes them."""

    def __init__(self, folder: Path, catalog: Catalog, store: bytes, *, write: bool):
        """``store`` is its id, 16 bytes."""
        self._folder, self._catalog, self._store, self._write = folder, catalog, store, write
        self._banks: dict[int, Bank] = {}

    def edition(self, id: int | None = None) -> Edition:
        """An edition by id; the first for None. Raises StoreError if there is none."""
        with self._catalog.snapshot():
            return self._catalog.edition(id)

    def bank(self, edition: int) -> Bank:
        """The record file of an edition, wherever it is now.

        Raises:
            StoreError: it is missing, damaged, cut short or another, or there is no such edition.
        """
        for last in (False, True):
            with self._catalog.snapshot():
                known, end = self._catalog.edition(edition), self._catalog.end(edition)
            bank = self._banks.get(edition)
            if bank and (known.file, known.origin) == (bank.path.name, bank.identity.origin):
                return bank
            try:
                opened = self._open(known)
                have, wanted = opened.records, end - known.origin
                if have < wanted:
                    opened.close()
                    raise StoreError(
                        f"{opened.path}: it is cut short, {have} memories of {wanted} are left. "
                        f"Restore the file from a backup, or remove the store's folder and "
                        f"memorize the documents again."
                    )
            except StoreError:
                if last:
                    raise
                continue  # a writer may have moved or shortened it between the two looks
            self._banks[edition] = opened  # who still reads from the one before may finish
            return opened
        raise AssertionError  # the second turn returned or raised

    def _open(self, edition: Edition) -> Bank:
        return Bank(
            self._folder / edition.file,
            Identity.of(self._store, edition),
            write=self._write,
            cipher=self._catalog.cipher,
        )

    def usage(self, edition: Edition) -> Usage:
        return Usage(self._folder / edition.file, edition.origin)

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
                    with closing(self._open(edition)) as bank:
                        bank.erase(leftovers)
                        bank.trim(end)
                    self.usage(edition).forget(leftovers)
                    self._catalog.clear_leftovers(edition.id)

    def remove(self, edition: int) -> None:
        """Erase all memories of an edition and its file."""
        file = self.edition(edition).file
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
        self._catalog.empty_log()
        if (excess := self._size() - limit) <= 0:
            return 0
        dropped = self._drop(excess + int(_SLACK * limit), edition, fresh)
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

    def _drop(self, excess: int, favoured: int | None, fresh: Collection[int]) -> int:
        """Take the least used memories away that have so many bytes together."""
        with self._catalog.transaction():
            columns: list[np.ndarray] = []
            favoured = self._catalog.edition(favoured).id
            for edition in self._catalog.editions():
                slots = self._catalog.warm_slots(edition.id)
                used = self.usage(edition).minutes(slots)
                present = edition.id == favoured
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
        old, new = self.bank(edition.id), self._open(to)
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
