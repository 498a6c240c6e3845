"""Bytes of a database file that belong to no row, and how to reach them beside SQLite.

With ``secure_delete`` SQLite overwrites rows that are deleted and pages that become free. It does
not overwrite what is left where a row was before it was moved to another page: that lies in the
gap between the pointers of a page and its rows, until the page is used up or packed anew. Such
gaps are cleared here, in the file itself; no row is touched, so a crash leaves a whole file.

POSIX ends all locks of a process on a file when the process closes any descriptor of it, also
those of SQLite. So a descriptor that is used beside SQLite stays open until the last connection
of the process to that file is closed.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import files

Database = tuple[int, int]  # device and inode

_LEAVES, _INTERIORS = (10, 13), (2, 5)  # first byte of a page with rows
_PAGE_SIZE = struct.Struct(">16xH")
_HEADER = struct.Struct(">BHHH")  # kind, first free block, number of rows, start of the rows
_BLOCK = struct.Struct(">HH")  # next free block, length
_PAIR = struct.Struct(">II")
_FILE_HEADER = 100  # bytes, on the first page
_MOST_PAGES = 2**24  # beyond, the first byte of a page without rows may be one of the above
_PART = 64  # pages that are read at a time

_guard = threading.Lock()
_uses: Counter[Database] = Counter()  # connections of this process
_descriptors: dict[Database, dict[str, int]] = {}  # of databases and their logs, by name


def hold(path: Path) -> Database:
    """Note that this process connects to a database; ``release`` ends that."""
    state = path.stat()
    database = state.st_dev, state.st_ino
    with _guard:
        _uses[database] += 1
    return database


def release(database: Database) -> None:
    """Note that a connection was closed."""
    with _guard:
        _uses[database] -= 1
        if not _uses[database]:
            del _uses[database]
            for descriptor in _descriptors.pop(database, {}).values():
                os.close(descriptor)


@contextmanager
def descriptor(path: Path) -> Iterator[int]:
    """Yield a descriptor of a database or of a file beside it; it is not to be closed."""
    main = path.with_name(path.name.removesuffix("-wal").removesuffix("-shm"))
    database = hold(main if main.exists() else path)
    try:
        with _guard:
            opened = _descriptors.setdefault(database, {})
            if path.name not in opened:
                way = os.O_RDWR if files.is_writable(path) else os.O_RDONLY
                opened[path.name] = os.open(path, way)
        yield opened[path.name]
    finally:
        release(database)


def clear_gaps(path: Path) -> None:
    """Overwrite what is between the rows of a database, whose log is empty and stays so."""
    with descriptor(path) as file:
        (size,) = _PAGE_SIZE.unpack(os.pread(file, _PAGE_SIZE.size, 0))
        size = size if size > 1 else 65536
        count = os.fstat(file).st_size // size
        assert count < _MOST_PAGES, count
        cleared = False
        for first in range(0, count, _PART):
            data = os.pread(file, _PART * size, first * size)
            for at in range(0, len(data), size):
                header = at if first or at else _FILE_HEADER
                for start, end in _gaps(data, at, header, size):
                    if data.count(0, start, end) < end - start:
                        files.write_at(file, bytes(end - start), first * size + start)
                        cleared = True
        if cleared:
            files.sync(file)
            files.at_step("gaps cleared")


def _gaps(data: bytes, page: int, header: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of one page that belong to no row."""
    kind, block, rows, start = _HEADER.unpack_from(data, header)
    if kind not in _LEAVES and kind not in _INTERIORS:
        return
    pointers = header + (8 if kind in _LEAVES else 12) + 2 * rows
    yield pointers, page + (start or 65536)
    last = 0
    while last < block <= size - _BLOCK.size:  # in order, so that it ends
        last = block
        block, length = _BLOCK.unpack_from(data, page + last)
        yield page + last + _BLOCK.size, min(page + last + length, page + size)


def with_log(database: bytes, log: bytes) -> bytearray:
    """Return a database with the commits in its log, ready to be read from memory.

    The log has SQLite's format; what follows its last whole commit does not count.
    """
    data = bytearray(database)
    order = "<" if log[:4] == b"\x37\x7f\x06\x82" else ">"
    (size,), salts = struct.unpack_from(">I", log, 8), log[16:24]
    sums = _sums(log[:24], order, (0, 0))
    frames: dict[int, bytes] = {}  # since the last commit
    for at in range(32, len(log) - 24 - size + 1, 24 + size):
        number, pages = _PAIR.unpack_from(log, at)
        page = log[at + 24 : at + 24 + size]
        sums = _sums(log[at : at + 8] + page, order, sums)
        if log[at + 8 : at + 24] != salts + _PAIR.pack(*sums):
            break
        frames[number] = page
        if pages:  # the number of them after this commit
            data[pages * size :] = bytes(max(0, pages * size - len(data)))
            for n, content in frames.items():
                data[(n - 1) * size : n * size] = content
            frames.clear()
    data[18:20] = b"\1\1"  # no log belongs to it any more
    return data


def _sums(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Continue the checksum of a log."""
    a, b = sums
    for x, y in struct.iter_unpack(f"{order}II", data):
        a = (a + x + b) & 0xFFFFFFFF
        b = (b + y + a) & 0xFFFFFFFF
    return a, b
