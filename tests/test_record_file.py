"""memories.kv: exact bytes, and no wrong memory ever."""

import hashlib
import os
import struct
import sys
import time
import zlib
from contextlib import suppress
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torture.apart import apart

from m3mlx.errors import StoreError
from m3mlx.store.record_file import PAGE, DamagedRecord, Identity, RecordFile, stride

ID = bytes(range(16))
MADE = bytes(range(100, 132))
TEXTS = {slot: hashlib.sha256(str(slot).encode()).digest() for slot in range(5000)}  # digests


def identity(record_bytes=10, **changes):
    about = {"store": ID, "edition": 1, "fingerprint": MADE, "origin": 0, **changes}
    return Identity(record_bytes=record_bytes, **about)


def new_file(path, record_bytes=10, **changes):
    RecordFile.create(path, identity(record_bytes, **changes))
    return RecordFile(path, identity(record_bytes, **changes), write=True)


def test_the_bytes_of_the_file_are_those_of_the_format(tmp_path):
    file = new_file(tmp_path / "b", record_bytes=5, edition=3, origin=7)
    file.write({8: b"hello"}, TEXTS)
    file.close()
    head = b"m3mlx.kv" + bytes.fromhex("03000000 04030201 00400000 03000000")
    head += bytes.fromhex("0500000000000000 0040000000000000") + ID
    head += bytes.fromhex("0700000000000000") + MADE
    head = head.ljust(16380, b"\0")
    seal = zlib.crc32(ID + b"\3\0\0\0" + MADE + b"\x08\0\0\0\0\0\0\0" + TEXTS[8] + b"hello")
    record = b"hello" + struct.pack("<I", seal)
    wanted = head + struct.pack("<I", zlib.crc32(head)) + bytes(16384) + record.ljust(16384, b"\0")
    assert (tmp_path / "b").read_bytes() == wanted


def test_files_of_the_first_release_are_read_and_written_in_their_own_format(tmp_path):
    head = b"m3mlx.kv" + bytes.fromhex("01000000 04030201 00400000 00000000")
    head += bytes.fromhex("0500000000000000 0040000000000000") + ID
    head = head.ljust(16380, b"\0")
    record = bytes.fromhex("68656c6c6ff59cbee9")  # of slot 1
    whole = head + struct.pack("<I", zlib.crc32(head)) + bytes(16384) + record.ljust(16384, b"\0")
    (tmp_path / "b").write_bytes(whole)
    file = RecordFile(tmp_path / "b", identity(5, unbound=2), write=True)
    assert file.tied and bytes(file.read([1], TEXTS)[0]) == b"hello"
    file.write({2: b"newer"}, TEXTS)
    assert bytes(file.read([2], TEXTS)[0]) == b"newer"
    file.close()
    assert (tmp_path / "b").read_bytes()[: len(whole)] == whole
    for unbound, ties in ((1, [bytes(16)]), (2, [b"t" * 16])):  # neither says of which text it is
        file = RecordFile(tmp_path / "b", identity(5, unbound=unbound, ties=ties))
        with pytest.raises(DamagedRecord):
            file.read([1], TEXTS)
        file.close()
    for changes in ({"edition": 2}, {"origin": 5}):  # which that release did not have
        with pytest.raises(StoreError, match="another edition"):
            RecordFile(tmp_path / "b", identity(5, **changes))


@pytest.mark.parametrize(
    ("record_bytes", "distance"),
    [(1, PAGE), (PAGE - 4, PAGE), (PAGE - 3, 2 * PAGE), (129_600, 8 * PAGE)],
)
def test_records_start_at_pages(record_bytes, distance):
    assert stride(record_bytes) == distance


@settings(max_examples=40, deadline=None)
@given(
    record_bytes=st.integers(1, 40_000),
    slots=st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**32),
)
def test_what_is_written_is_read_in_any_order(tmp_path_factory, record_bytes, slots, seed):
    file = new_file(tmp_path_factory.mktemp("file") / "b", record_bytes)
    random = np.random.default_rng(seed)
    memories = {slot: random.bytes(record_bytes) for slot in slots}
    for slot in slots[: len(slots) // 2]:
        file.write({slot: random.bytes(record_bytes)}, TEXTS)  # is written over
    file.write(memories, TEXTS)
    wanted = [*reversed(slots), slots[0]]
    read = file.read(wanted, TEXTS)
    assert read.dtype == np.uint8
    assert [bytes(row) for row in read] == [memories[slot] for slot in wanted]
    file.close()


def test_every_changed_byte_of_a_record_is_noticed(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({0: b"0123456789", 1: b"abcdefghij"}, TEXTS)
    good = (tmp_path / "b").read_bytes()
    for offset in range(PAGE, PAGE + 14):
        for bit in range(8):
            bad = bytearray(good)
            bad[offset] ^= 1 << bit
            (tmp_path / "b").write_bytes(bad)
            with pytest.raises(DamagedRecord) as caught:
                file.read([1, 0], TEXTS)
            assert caught.value.slot == 0
            assert bytes(file.read([1], TEXTS)[0]) == b"abcdefghij"
    file.close()


def test_a_record_in_the_place_of_another_is_refused(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({0: b"0123456789", 1: b"abcdefghij"}, TEXTS)
    data = (tmp_path / "b").read_bytes()
    swapped = data[:PAGE] + data[2 * PAGE :] + data[PAGE : 2 * PAGE]
    (tmp_path / "b").write_bytes(swapped)
    with pytest.raises(DamagedRecord):
        file.read([0], TEXTS)
    file.close()


@pytest.mark.parametrize(
    "changes", [{"store": bytes(16)}, {"edition": 2}, {"fingerprint": bytes(32)}]
)
def test_a_record_of_another_store_or_edition_is_refused(tmp_path, changes):
    mine, other = new_file(tmp_path / "a"), new_file(tmp_path / "b", **changes)
    mine.write({0: b"0123456789"}, TEXTS)
    other.write({0: b"0123456789"}, TEXTS)
    header = (tmp_path / "a").read_bytes()[:PAGE]
    (tmp_path / "a").write_bytes(header + (tmp_path / "b").read_bytes()[PAGE:])
    with pytest.raises(DamagedRecord):
        mine.read([0], TEXTS)
    mine.close()
    other.close()


@pytest.mark.parametrize("slot", [0, 1, 2, 1000])
def test_a_slot_without_a_memory_is_refused(tmp_path, slot):
    file = new_file(tmp_path / "b")
    file.write({3: b"0123456789", 1: b"abcdefghij"}, TEXTS)
    file.erase([1])
    with pytest.raises(DamagedRecord):
        file.read([slot], TEXTS)
    file.close()


def test_erasing_leaves_zeros_and_no_byte_of_the_memory(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({0: b"0123456789", 1: b"abcdefghij", 2: b"ABCDEFGHIJ"}, TEXTS)
    file.erase([1, 7])
    data = (tmp_path / "b").read_bytes()
    assert not any(data[2 * PAGE : 3 * PAGE])
    assert len(data) == 4 * PAGE
    assert [bytes(row) for row in file.read([0, 2], TEXTS)] == [b"0123456789", b"ABCDEFGHIJ"]
    file.close()


def test_erasing_holes_takes_no_disk(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({4000: b"0123456789"}, TEXTS)
    before = (tmp_path / "b").stat().st_blocks
    file.erase(range(4000))
    assert (tmp_path / "b").stat().st_blocks <= before
    file.close()


def test_trimming_cuts_behind_the_last_record_only(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({0: b"0123456789", 1: b"abcdefghij"}, TEXTS)
    file.trim(5)
    assert file.records == 2
    file.trim(1)
    assert file.records == 1
    assert bytes(file.read([0], TEXTS)[0]) == b"0123456789"
    with pytest.raises(DamagedRecord):
        file.read([1], TEXTS)
    file.close()


def changed(offset, data):
    def change(good):
        return good[:offset] + data + good[offset + len(data) :]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda good: b"", "cut short"),
        (lambda good: good[: PAGE - 1], "cut short"),
        (changed(0, b"GGUF"), "wrong magic"),
        (changed(8, b"\4"), "format version is 4"),
        (changed(12, b"\1\2\3\4"), "byte order"),
        (changed(16, b"\0\x10"), "pages"),
        (changed(24, b"\x0b"), "memories have 11 bytes where the catalog says 10"),
        (changed(40, b"x"), "another store"),
        (changed(64, b"x"), "checksum"),
        (changed(5000, b"x"), "checksum"),
        (changed(PAGE - 1, b"x"), "checksum"),
    ],
)
def test_a_wrong_header_is_named(tmp_path, change, words):
    path = tmp_path / "b"
    file = new_file(path)
    file.write({0: b"0123456789"}, TEXTS)
    file.close()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=words) as caught:
        RecordFile(path, identity())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store": bytes(16)}, "another store"),
        ({"edition": 2}, r"another edition of memories \(1 instead of 2\)"),
        ({"fingerprint": bytes(32)}, "another fingerprint"),
        ({"origin": 9}, "first slot is 0 where the catalog says 9"),
    ],
)
def test_a_file_of_other_memories_is_refused_by_name(tmp_path, changes, words):
    new_file(tmp_path / "b").close()
    with pytest.raises(StoreError, match=words):
        RecordFile(tmp_path / "b", identity(**changes))


def test_records_start_at_the_origin(tmp_path):
    file = new_file(tmp_path / "b", origin=1000)
    file.write({1001: b"0123456789"}, TEXTS)
    assert (tmp_path / "b").stat().st_size == 3 * PAGE
    assert file.records == 2
    assert file.slot_at(2 * PAGE) == 1001
    for slot in (1000, 1002, 1, 0):
        with pytest.raises(DamagedRecord):
            file.read([slot], TEXTS)
    file.erase([1, 1001])
    file.trim(1000)
    assert (tmp_path / "b").stat().st_size == PAGE
    file.close()


def test_erasing_gives_blocks_back_where_the_system_can(tmp_path):
    file = new_file(tmp_path / "b", record_bytes=100_000)
    file.write({slot: bytes([slot + 1]) * 100_000 for slot in range(20)}, TEXTS)
    before = (tmp_path / "b").stat().st_blocks
    file.erase(range(1, 19))
    if sys.platform in ("linux", "darwin"):
        assert (tmp_path / "b").stat().st_blocks < before / 4
    assert [row[0] for row in file.read([0, 19], TEXTS)] == [1, 20]
    file.close()


def test_a_file_that_is_cut_short_while_it_is_open_is_no_crash(tmp_path):
    file = new_file(tmp_path / "b")
    file.write({0: b"0123456789", 1: b"abcdefghij"}, TEXTS)
    file.read([0, 1], TEXTS)
    os.truncate(tmp_path / "b", 2 * PAGE + 3)
    with pytest.raises(DamagedRecord):
        file.read([0, 1], TEXTS)
    assert bytes(file.read([0], TEXTS)[0]) == b"0123456789"
    unread = RecordFile(tmp_path / "b", identity())
    os.truncate(tmp_path / "b", 0)
    for each in (file, unread):
        with pytest.raises(DamagedRecord):
            each.read([0], TEXTS)
        each.close()


def test_a_missing_file_is_named_and_not_made(tmp_path):
    with pytest.raises(StoreError, match="missing"):
        RecordFile(tmp_path / "b", identity(), write=True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("memory", [b"", b"123456789", b"12345678901"])
def test_a_memory_of_another_length_is_refused(tmp_path, memory):
    file = new_file(tmp_path / "b")
    with pytest.raises(StoreError, match="bytes"):
        file.check([b"0123456789", memory])
    file.close()


def read_while_cut(path):
    """Read a record for a second, while a thread cuts the file before it and makes it whole."""
    file, memory = RecordFile(path, identity(60_000)), bytes(60_000)
    until, read = time.monotonic() + 1, 0

    def cut():
        whole = path.read_bytes()
        with path.open("r+b", buffering=0) as other:
            while time.monotonic() < until:
                other.truncate(PAGE)
                os.pwrite(other.fileno(), whole[PAGE:], PAGE)

    writer = Thread(target=cut)
    writer.start()
    while time.monotonic() < until:
        with suppress(DamagedRecord):
            assert bytes(file.read([0], TEXTS)[0]) == memory
            read += 1
    writer.join()
    return read


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_file_that_is_cut_while_a_record_is_copied_kills_no_reader(tmp_path):
    file = new_file(tmp_path / "b", 60_000)
    file.write({0: bytes(60_000)}, TEXTS)
    file.close()
    assert apart(read_while_cut, tmp_path / "b").returned() > 0


def test_an_open_file_that_is_cut_short_and_grows_again_is_never_read_behind_its_end(tmp_path):
    writer = new_file(tmp_path / "b", record_bytes=40_000)
    memories = {slot: bytes([slot]) * 40_000 for slot in range(5)}
    writer.write(memories, TEXTS)
    reader = RecordFile(tmp_path / "b", identity(40_000))
    assert reader.read([4], TEXTS)[0].tobytes() == memories[4]
    for length in (PAGE + 4 * stride(40_000) + 40_003, PAGE + stride(40_000), PAGE, 100, 0):
        os.truncate(tmp_path / "b", length)  # a map of what is gone would kill the process
        with pytest.raises(DamagedRecord, match="record 4 is damaged"):
            reader.read([4], TEXTS)
        assert reader.raw(4) == b""
    writer.write({**memories, 9: b"9" * 40_000}, TEXTS)
    for slot, memory in memories.items():
        assert reader.read([slot], TEXTS)[0].tobytes() == memory
    assert reader.read([9, 0], TEXTS)[0].tobytes() == b"9" * 40_000
