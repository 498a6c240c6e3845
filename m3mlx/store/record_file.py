"""A record file: the memories of one edition, each found by its slot and proved by its checksum.

All numbers are unsigned and little-endian. The file starts with a header of one page:

    ======  ======  =====================================================
    offset  length  content
    ======  ======  =====================================================
    0       8       the ASCII bytes ``m3mlx.kv``
    8       4       version of this format, 3
    12      4       0x01020304, so that a reader of the other byte order stops
    16      4       length of a page, 16384
    20      4       id of the edition
    24      8       length of one memory
    32      8       distance from one record to the next
    40      16      id of the store, also in its catalog
    56      8       slot of the first record, the origin
    64      32      SHA-256 of the edition's fingerprint
    96      16      the tie, random and also in the catalog
    112     16268   zeros
    16380   4       CRC-32 of the bytes 0 to 16379, those of the tie as zeros
    ======  ======  =====================================================

The record of slot ``i`` starts at ``16384 + (i - origin) * distance``:

    ======  ======  =====================================================
    0       n       the memory
    n       4       CRC-32 of store id, edition (4 bytes), SHA-256 of the
                    fingerprint, slot (8 bytes), SHA-256 of the reference's
                    tokens and text as the catalog has them, and memory
    n + 4           zeros up to the next page
    ======  ======  =====================================================

Version 2 had no tie, and checksums without the reference. Version 1, of the first release, has
zeros from 56 on and at 20, and its checksums were of store id, slot and memory. Such files are read
and written as they are, with a tie, and records below the slot ``unbound`` may have the older
checksums; ``compact`` makes version 3 of them.

Because the checksum covers store, edition, slot and reference, a record in a wrong place is
refused like a changed one, and so is that of another reference which had this slot in a copy of
the store. The tie changes with every writer that changes memories, so a file of another moment or
copy is known as such; what proves itself in it is read all the same, records with older checksums
are not. It lies in one sector, which a disk writes wholly or not at all.

CRC-32 costs about as much as reading the bytes from the system's cache and finds every change of
up to 32 adjacent bits; it protects from accidents, not from forgers. A slot without a memory is a
hole or zeros, whose checksum is wrong.

Before memories are read, a map of the file tells the system which, so that it fetches all of them
at once. They are then copied by ordinary reads, never out of the map: a writer may cut off at any
moment what a reader has just found in the catalog, and whoever touches a map behind the end of its
file is killed. Each copy is checked: what another process writes meanwhile cannot pass.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import files
from ..errors import StoreError
from .cipher import PLAIN, Cipher, Plain, Tampered
from .rows import Edition

MAGIC = b"m3mlx.kv"
VERSION = 3
BYTE_ORDER = 0x01020304
_FARTHEST = 2**62  # bytes
PAGE = 16384  # of Apple silicon; Metal adopts host memory that is aligned to it
CHECKSUM = 4
TIE = 16  # bytes
_TIE_AT = 96
_ANY_TIE = slice(_TIE_AT, _TIE_AT + TIE)
_HEADER = struct.Struct("<8s4I2Q16sQ32s")


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


@dataclass(frozen=True)
class Identity:
    """Contents of the header of a record file.

    Attributes:
        store: id of the store, 16 bytes.
        edition: id of the edition.
        fingerprint: SHA-256 of the edition's fingerprint and memory configuration.
        record_bytes: length of one memory, as it is stored.
        origin: slot of the first record.
        ties: that the file may have.
        unbound: slots below may have records with the checksums of older versions.
    """

    store: bytes
    edition: int
    fingerprint: bytes
    record_bytes: int
    origin: int = 0
    ties: tuple[bytes, ...] = (bytes(TIE),)
    unbound: int = 0

    @classmethod
    def of(cls, store: bytes, edition: Edition) -> Identity:
        # what says how memories are read is as good as part of them
        text = json.dumps([edition.fingerprint, edition.memory], sort_keys=True)
        sha256 = hashlib.sha256(text.encode()).digest()
        ties = [edition.tie] + [edition.next_tie] * bool(edition.next_tie)
        return cls(
            *(store, edition.id, sha256, edition.stored_bytes, edition.origin),
            ties=tuple(bytes.fromhex(tie) or bytes(TIE) for tie in ties),
            unbound=edition.unbound,
        )

    def header(self, version: int = VERSION) -> bytes:
        """The first page of the file, without its tie."""
        edition, origin, fingerprint = self.edition, self.origin, self.fingerprint
        if version == 1:
            edition, origin, fingerprint = 0, 0, bytes(32)
        lengths = self.record_bytes, stride(self.record_bytes)
        fields = (MAGIC, version, BYTE_ORDER, PAGE, edition, *lengths, self.store)
        head = _HEADER.pack(*fields, origin, fingerprint).ljust(PAGE - CHECKSUM, b"\0")
        return head + zlib.crc32(head).to_bytes(CHECKSUM, "little")

    def owners(self, slot: int, digest: bytes) -> list[bytes]:
        """All that may stand for the owner of a record, the present form first.

        Args:
            digest: of its reference.
        """
        place = slot.to_bytes(8, "little")
        edition = self.store + self.edition.to_bytes(4, "little") + self.fingerprint
        older = [edition + place, self.store + place] if slot < self.unbound else []
        return [edition + place + digest, *older]


class RecordFile:
    """An open record file.

    Attributes:
        tie: that it had when it was opened, or was given since.
        tied: whether it is of the same moment as the catalog, and of the same copy of the store.
    """

    tie: bytes
    tied: bool

    @staticmethod
    def create(path: Path, identity: Identity) -> None:
        """Make a file without records, in place of any that is there."""
        with files.replacing(path) as new:
            header = bytearray(identity.header())
            header[_ANY_TIE] = identity.ties[0]
            new.write_bytes(header)

    def __init__(
        self,
        path: Path,
        identity: Identity,
        *,
        write: bool = False,
        cipher: Cipher | Plain = PLAIN,
    ):
        """Open a file and check its header. Raises StoreError that names what is wrong."""
        self.path = path
        self._cipher = cipher
        self.identity = identity
        self.record_bytes = identity.record_bytes
        self.memory_bytes = identity.record_bytes - cipher.overhead
        self._map: mmap.mmap | None = None
        self._origin = identity.origin
        self._stride = stride(identity.record_bytes)
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
        """Raise StoreError if the header is not the right one."""
        found, tie = _header(self._file.fileno())
        # the first release had one edition, and could not compact
        oldest = [1] if (self.identity.edition, self._origin) == (1, 0) else []
        if found not in map(self.identity.header, [VERSION, 2, *oldest]):
            raise StoreError(
                f"{self.path}: {_difference(found, self.identity)}. Restore the file from a "
                f"backup, or remove the store's folder and memorize the documents again."
            )
        self.tie, self.tied = tie, tie in self.identity.ties
        if not self.tied:  # then only a record that says of which reference it is will do
            self.identity = replace(self.identity, unbound=0)

    def present_tie(self) -> bytes:
        """The tie in the header, also after a ``set_tie`` that failed half-way."""
        return _header(self._file.fileno())[1]

    def set_tie(self, tie: bytes) -> None:
        """Write another tie into the header, and wait for the disk."""
        files.write_at(self._file.fileno(), tie, _TIE_AT)
        files.sync(self._file.fileno())
        self.tie = tie
        files.at_step("tie written")

    @property
    def records(self) -> int:
        """Number of records that the file is long enough for."""
        return (os.fstat(self._file.fileno()).st_size - PAGE) // self._stride

    def _offset(self, slot: int) -> int:
        offset = PAGE + (slot - self._origin) * self._stride
        if offset >= _FARTHEST:  # of a catalog that says so
            raise StoreError(
                f"{self.path}: no file has room for reference {slot}. Run `m3mlx check --repair`."
            )
        return offset

    def slot_at(self, offset: int) -> int:
        """Slot to which a byte of the file belongs; one before the origin for the header."""
        return self._origin + (offset - PAGE) // self._stride

    def raw(self, slot: int) -> bytes:
        """The bytes of a slot with its checksum, whatever they are; none behind the file's end."""
        record, checksum = bytearray(self.record_bytes), bytearray(CHECKSUM)
        return bytes(record + checksum) if self._copy(slot, record, checksum) else b""

    def _copy(self, slot: int, record: bytearray | memoryview, checksum: bytearray) -> bool:
        """Copy the bytes of a slot; return whether the file has all of them."""
        if slot < self._origin:
            return False
        found = os.preadv(self._file.fileno(), [record, checksum], self._offset(slot))
        return found == self.record_bytes + CHECKSUM

    def _prefetch(self, slots: Sequence[int]) -> None:
        """Ask the system to fetch all of these at once, which is many times faster."""
        size, mapped = os.fstat(self._file.fileno()).st_size, self._map
        if not size or not hasattr(mmap, "MADV_WILLNEED"):
            return
        if mapped is None or size > len(mapped):  # the file has grown; other threads keep theirs
            mapped = self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        for slot in slots:
            start, length = self._offset(slot), self.record_bytes + CHECKSUM
            if slot >= self._origin and start + length <= len(mapped):
                mapped.madvise(mmap.MADV_WILLNEED, start, length)

    def read(self, slots: Sequence[int], digests: Mapping[int, bytes]) -> np.ndarray:
        """Read memories as uint8 ``(len(slots), memory_bytes)``, decrypted.

        Args:
            digests: of the references of these slots.

        Raises:
            DamagedRecord: the bytes of a slot are not those that were written there for that
                reference.
        """
        stored = np.empty((len(slots), self.record_bytes), dtype=np.uint8)
        checksum = bytearray(CHECKSUM)
        self._prefetch(slots)
        for row, slot in zip(stored, slots, strict=True):
            if slot not in digests or not self._copy(slot, row.data, checksum):
                raise DamagedRecord(self.path, slot)
            owners = self.identity.owners(slot, digests[slot])
            if all(checksum != _checksum(o, row.data) for o in owners):
                raise DamagedRecord(self.path, slot)
        if not self._cipher.encrypts:
            return stored
        memories = np.empty((len(slots), self.memory_bytes), dtype=np.uint8)
        for row, encrypted, slot in zip(memories, stored, slots, strict=True):
            for owner in self.identity.owners(slot, digests[slot]):
                with suppress(Tampered):
                    memory = self._cipher.decrypt_record(encrypted.tobytes(), owner)
                    row[:] = np.frombuffer(memory, dtype=np.uint8)
                    break
            else:
                raise DamagedRecord(self.path, slot)
        return memories

    def check(self, memories: Iterable[bytes]) -> None:
        """Raise StoreError if a memory has another length than all in this file."""
        for memory in memories:
            if len(memory) != self.memory_bytes:
                raise StoreError(
                    f"{self.path}: a memory has {len(memory)} bytes where this store's have "
                    f"{self.memory_bytes}. Write it with the store's own memory settings."
                )

    def write(self, memories: Mapping[int, bytes], digests: Mapping[int, bytes]) -> None:
        """Put memories into their slots, over whatever is there, and wait for the disk."""
        for slot, memory in sorted(memories.items()):
            owner = self.identity.owners(slot, digests[slot])[0]
            memory = self._cipher.encrypt_record(memory, owner)
            record = bytes(memory) + _checksum(owner, memory)
            self._put(slot, record.ljust(self._stride, b"\0"))
            files.at_step("record written")
        if memories:
            files.sync(self._file.fileno())
            files.at_step("records on disk")

    def erase(self, slots: Iterable[int]) -> None:
        """Overwrite slots with zeros, wait for the disk, and give their blocks back."""
        used = [slot for slot in slots if slot >= self._origin and self._used(slot)]
        for slot in used:
            self._put(slot, bytes(self._stride))
            files.at_step("record erased")
        if used:
            files.sync(self._file.fileno())
            files.at_step("erased on disk")
        for slot in used:  # last: a hole does not prove that its old bytes are gone
            files.punch(self._file.fileno(), self._offset(slot), self._stride)

    def strays(self, known: Collection[int], end: int) -> list[int]:
        """Slots before ``end`` that hold bytes and are not among the known ones."""
        return [
            slot
            for slot in range(self._origin, min(end, self._origin + self.records))
            if slot not in known and self._used(slot)
        ]

    def _used(self, slot: int) -> bool:
        """Return whether any byte of a slot is not zero; a hole is all zeros."""
        return bool(os.pread(self._file.fileno(), self._stride, self._offset(slot)).strip(b"\0"))

    def trim(self, end: int) -> None:
        """Cut off everything from slot ``end`` on."""
        length = max(PAGE, self._offset(end))
        if os.fstat(self._file.fileno()).st_size > length:
            os.ftruncate(self._file.fileno(), length)
            files.sync(self._file.fileno())
            files.at_step("records cut off")

    def _put(self, slot: int, record: bytes) -> None:
        files.write_at(self._file.fileno(), record, self._offset(slot))

    def close(self) -> None:
        self._file.close()
        self._map = None  # not closed: another thread may be copying from it


def restore(path: Path, identity: Identity, end: int) -> None:
    """Give a record file its header, tie and length again, where they are not what they must be.

    What its records are, each of them says for itself.

    Args:
        end: the slot behind the last memory that should be there.

    Raises:
        StoreError: the header is whole, but of another file.
    """
    if not path.exists():
        RecordFile.create(path, identity)
    with path.open("r+b", buffering=0) as file:
        found, _ = _header(file.fileno())
        if not _is_whole(found):
            files.write_at(file.fileno(), identity.header(), 0)
        RecordFile(path, identity).close()
        files.write_at(file.fileno(), identity.ties[0], _TIE_AT)
        length = PAGE + (end - identity.origin) * stride(identity.record_bytes)
        if os.fstat(file.fileno()).st_size < length:
            os.ftruncate(file.fileno(), length)
        files.sync(file.fileno())


def _header(descriptor: int) -> tuple[bytes, bytes]:
    """The first page of a file, its tie as zeros, and the tie."""
    page = bytearray(os.pread(descriptor, PAGE, 0))
    tie = bytes(page[_ANY_TIE])
    page[_ANY_TIE] = bytes(len(tie))
    return bytes(page), tie


def _is_whole(header: bytes) -> bool:
    return len(header) == PAGE and zlib.crc32(header[:-CHECKSUM]) == int.from_bytes(
        header[-CHECKSUM:], "little"
    )


def _checksum(owner: bytes, memory: bytes | memoryview) -> bytes:
    return zlib.crc32(memory, zlib.crc32(owner)).to_bytes(CHECKSUM, "little")


def _difference(found: bytes, wanted: Identity) -> str:
    """Explain in one clause why a header is not the expected one."""
    if len(found) < PAGE:
        return f"it is cut short, {len(found)} bytes where its header alone has {PAGE}"
    fields = _HEADER.unpack_from(found)
    magic, version, order, page, edition, record_bytes, _, store, origin, fingerprint = fields
    whole = _is_whole(found)
    expected = f"this program reads 1 to {VERSION}"
    lengths = f"{record_bytes} bytes where the catalog says {wanted.record_bytes}"
    editions = f"{edition} instead of {wanted.edition}"
    differences = (
        (magic != MAGIC, "it is not a file of memories (wrong magic)"),
        (order != BYTE_ORDER, "it was written in the other byte order"),
        (not 1 <= version <= VERSION, f"its format version is {version}, {expected}"),
        (page != PAGE, f"its pages have {page} bytes instead of {PAGE}"),
        (record_bytes != wanted.record_bytes, f"its memories have {lengths}"),
        (store != wanted.store, "it belongs to another store"),
        (not whole, "its header is damaged (wrong checksum)"),
        (edition != wanted.edition, f"it holds another edition of memories ({editions})"),
        (fingerprint != wanted.fingerprint, "its memories were made under another fingerprint"),
        (True, f"its first slot is {origin} where the catalog says {wanted.origin}"),
    )
    return next(text for differs, text in differences if differs)
