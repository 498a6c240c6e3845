"""memories.kv: the records of all memories, each found by its slot and proved by its checksum.

All numbers are unsigned and little-endian. The file starts with a header of one page:

    ======  ======  =====================================================
    offset  length  content
    ======  ======  =====================================================
    0       8       the ASCII bytes ``m3mlx.kv``
    8       4       version of this format, 1
    12      4       0x01020304, so that a reader of the other byte order stops
    16      4       length of a page, 16384
    20      4       0
    24      8       length of one memory
    32      8       distance from one record to the next
    40      16      id of the store, also in its catalog
    56      16324   zeros
    16380   4       CRC-32 of the bytes 0 to 16379
    ======  ======  =====================================================

The record of slot ``i`` starts at ``16384 + i * distance``:

    ======  ======  =====================================================
    0       n       the memory
    n       4       CRC-32 of store id, slot (8 bytes) and memory, in this order
    n + 4           zeros up to the next page
    ======  ======  =====================================================

Because the checksum covers store and slot, a record in a wrong place is refused like a changed
one. CRC-32 costs about as much as reading the bytes from the system's cache and finds every
change of up to 32 adjacent bits; it protects from accidents, not from forgers. Memories are
read through a map of the file. Touching a map behind the end of a file that was cut short kills
the process, so the file's length is looked at before every read. A slot without a memory is a
hole or zeros, whose checksum is wrong.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import StoreError
from .files import replacing, sync

MAGIC = b"m3mlx.kv"
VERSION = 1
BYTE_ORDER = 0x01020304
PAGE = 16384  # of Apple silicon; Metal adopts host memory that is aligned to it
CHECKSUM = 4
_HEADER = struct.Struct("<8s4I2Q16s")


class DamagedRecord(StoreError):
    """The bytes of a slot are not those that were written there.

    Attributes:
        slot: whose memory it is.
    """

    def __init__(self, path: Path, slot: int):
        super().__init__(f"{path}: record {slot} is damaged")
        self.slot = slot


def stride(record_bytes: int) -> int:
    """Distance in bytes from one record to the next."""
    return -(-(record_bytes + CHECKSUM) // PAGE) * PAGE


def _header(store_id: bytes, record_bytes: int) -> bytes:
    fields = (MAGIC, VERSION, BYTE_ORDER, PAGE, 0, record_bytes, stride(record_bytes), store_id)
    head = _HEADER.pack(*fields).ljust(PAGE - CHECKSUM, b"\0")
    return head + zlib.crc32(head).to_bytes(CHECKSUM, "little")


class Bank:
    """An open record file."""

    @staticmethod
    def create(path: Path, store_id: bytes, record_bytes: int) -> None:
        """Make a bank without records. ``store_id`` has 16 bytes."""
        with replacing(path) as new:
            new.write_bytes(_header(store_id, record_bytes))

    def __init__(self, path: Path, store_id: bytes, record_bytes: int, *, write: bool = False):
        """Open a bank and check its header. Raises StoreError that names what is wrong."""
        self.path = path
        self.record_bytes = record_bytes
        self._store_id = store_id
        self._stride = stride(record_bytes)
        self._map: mmap.mmap | None = None
        try:
            self._file = path.open("r+b" if write else "rb", buffering=0)
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing. Restore it from a backup, or remove the store's folder and "
                f"memorize the documents again."
            ) from None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        found = os.pread(self._file.fileno(), PAGE, 0)
        wanted = _header(self._store_id, self.record_bytes)
        if found == wanted:
            return
        raise StoreError(
            f"{self.path}: {_difference(found, wanted)}. Restore the file from a backup, or remove "
            f"the store's folder and memorize the documents again."
        )

    @property
    def records(self) -> int:
        """Number of slots that the file is long enough for."""
        return (os.fstat(self._file.fileno()).st_size - PAGE) // self._stride

    def _offset(self, slot: int) -> int:
        return PAGE + slot * self._stride

    def slot_at(self, offset: int) -> int:
        """Slot to which a byte of the file belongs; negative in the header."""
        return (offset - PAGE) // self._stride

    def _checksum(self, slot: int, memory: bytes) -> bytes:
        place = zlib.crc32(self._store_id + slot.to_bytes(8, "little"))
        return zlib.crc32(memory, place).to_bytes(CHECKSUM, "little")

    def raw(self, slot: int) -> bytes:
        """The bytes of a slot, up to its checksum, whatever they are."""
        length = self.record_bytes + CHECKSUM
        return os.pread(self._file.fileno(), length, self._offset(slot))

    def read(self, slots: Sequence[int]) -> np.ndarray:
        """Read memories as uint8 ``(len(slots), record_bytes)``.

        Raises:
            DamagedRecord: the bytes of a slot are not those that were written there.
        """
        memories = np.empty((len(slots), self.record_bytes), dtype=np.uint8)
        with memoryview(self._mapped()) as file:
            for row, slot in zip(memories, slots, strict=True):
                start = self._offset(slot)
                end = start + self.record_bytes
                with file[start:end] as memory, file[end : end + CHECKSUM] as checksum:
                    if checksum != self._checksum(slot, memory):
                        raise DamagedRecord(self.path, slot)
                    row[:] = np.frombuffer(memory, dtype=np.uint8)
        return memories

    def _mapped(self) -> mmap.mmap:
        """A map of the whole file as long as it is now."""
        size = os.fstat(self._file.fileno()).st_size
        if self._map is None or len(self._map) != size:
            # the old map goes when the last thread that reads from it is done
            self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        return self._map

    def check(self, memories: Iterable[bytes]) -> None:
        """Raise StoreError if a memory has another length than all in this file."""
        for memory in memories:
            if len(memory) != self.record_bytes:
                raise StoreError(
                    f"{self.path}: a memory has {len(memory)} bytes where this store's have "
                    f"{self.record_bytes}. Write it with the store's own memory settings."
                )

    def write(self, memories: Mapping[int, bytes]) -> None:
        """Put memories into their slots, over whatever is there, and wait for the disk."""
        for slot, memory in sorted(memories.items()):
            record = bytes(memory) + self._checksum(slot, memory)
            self._put(slot, record.ljust(self._stride, b"\0"))
        if memories:
            sync(self._file.fileno())

    def erase(self, slots: Iterable[int]) -> None:
        """Overwrite slots with zeros and wait for the disk; holes stay holes."""
        used = [
            slot
            for slot in slots
            if os.pread(self._file.fileno(), self._stride, self._offset(slot)).strip(b"\0")
        ]
        for slot in used:
            self._put(slot, bytes(self._stride))
        if used:
            sync(self._file.fileno())

    def trim(self, records: int) -> None:
        """Cut off everything behind the first ``records`` slots."""
        if os.fstat(self._file.fileno()).st_size > self._offset(records):
            os.ftruncate(self._file.fileno(), self._offset(records))
            sync(self._file.fileno())

    def _put(self, slot: int, record: bytes) -> None:
        done = 0
        while done < len(record):
            done += os.pwrite(self._file.fileno(), record[done:], self._offset(slot) + done)

    def close(self) -> None:
        self._map = None
        self._file.close()


def _difference(found: bytes, wanted: bytes) -> str:
    """Say in one clause why a header is not the wanted one."""
    if len(found) < PAGE:
        return f"it is cut short, {len(found)} bytes where its header alone has {PAGE}"
    magic, version, order, page, _, record_bytes, distance, store_id = _HEADER.unpack_from(found)
    expected = _HEADER.unpack_from(wanted)
    if magic != MAGIC:
        return "it is not a file of memories (wrong magic)"
    if version != VERSION:
        return f"its format version is {version}, this program reads {VERSION}"
    if order != BYTE_ORDER:
        return "it was written in the other byte order"
    if page != PAGE:
        return f"its pages have {page} bytes instead of {PAGE}"
    if (record_bytes, distance) != expected[5:7]:
        return f"its memories have {record_bytes} bytes where the catalog says {expected[5]}"
    if store_id != expected[7]:
        return "it belongs to another store"
    return "its header is damaged (wrong checksum)"
