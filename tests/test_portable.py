"""Exported files: what is written is read, and nothing else is."""

import hashlib
import json
import os
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import DIMENSIONS, RECORD_BYTES, memory, unit, vector

from m3mlx import files
from m3mlx.errors import M3Error, StoreError
from m3mlx.export import container, signature
from m3mlx.export.container import Container, ExportError, canonical
from m3mlx.export.portable import Document, Edition, Export, Reference, export

EDITIONS = [
    Edition({"weights": "w"}, {"counts": [[1, 2]]}, RECORD_BYTES),
    Edition({"weights": "v"}, {"counts": [[1]]}, 10),
]
TEXTS = {"/a": ["apples grow", "pears \x1b[31mtoo", "plums\0"], "/b\n": ["boats flöat 🛶"]}


def documents(texts=TEXTS):
    """Documents with these texts; every other reference has a memory of the second set."""
    for path, pieces in texts.items():
        stored = [
            Reference(
                start=10 * place,
                end=10 * place + len(text),
                page=place or None,
                line=None if place else 1,
                text=text,
                tokens=[place, 7, 2**32 - 1],
                vector=vector(text),
                records={0: memory(text), **({1: b"0123456789"} if place % 2 else {})},
            )
            for place, text in enumerate(pieces)
        ]
        yield (
            Document(path, f"hash {len(path)}", 9, "2026-11-24T12:00:00+00:00", "t", len(pieces)),
            stored,
        )


def write(path, texts=TEXTS, **changes):
    about = {
        "encoder": "made up",
        "dimensions": DIMENSIONS,
        "editions": EDITIONS,
        "program": "m3mlx 0",
    }
    return export(path, lambda edition: documents(texts), **{**about, **changes})


def content(path, trusted=()):
    """All that a file says, in values that can be compared."""
    with Export(path, trusted) as opened:
        return [
            (
                document,
                [
                    {**vars(r), "tokens": list(r.tokens), "vector": r.vector.tobytes()}
                    for r in references
                ],
            )
            for document, references in opened.read()
        ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.m3"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {
        name: (signature.new_key(folder / name), signature.load_key(folder / name))
        for name in ("mine", "theirs")
    }


# what is written is read


def test_what_is_written_is_read(path):
    assert write(path) == {"documents": 2, "references": 4, "memories": 5}
    found = content(path)
    names = {"/a": "/a", "/b\n": "/b\N{REPLACEMENT CHARACTER}"}
    for (document, references), (wanted, stored) in zip(found, documents(), strict=True):
        assert document == Document(**{**vars(wanted), "path": names[wanted.path]})
        assert references == [{**vars(r), "vector": r.vector.tobytes()} for r in stored]


def test_the_file_describes_itself(path, keys):
    public, key = keys["mine"]
    write(path, key=key)
    with Export(path) as opened:
        assert (opened.encoder, opened.dimensions) == ("made up", DIMENSIONS)
        assert list(opened.editions) == EDITIONS
        assert (opened.documents, opened.references, opened.signer) == (2, 4, public)


def test_the_bytes_are_those_of_the_format(path):
    container.write(path, {"b": 1, "a": "ä"}, [("one", [b"he", b"llo"]), ("two", [])])
    hashes = [hashlib.sha256(data).hexdigest() for data in (b"hello", b"")]
    manifest = (
        '{"a":"ä","b":1,"sections":['
        f'{{"length":5,"name":"one","sha256":"{hashes[0]}"}},'
        f'{{"length":0,"name":"two","sha256":"{hashes[1]}"}}]}}'
    ).encode()
    head = b"m3mlx.ex" + struct.pack("<IIQQ", 1, len(manifest), 69, 69 + len(manifest))
    head += hashlib.sha256(manifest).digest()
    assert path.read_bytes() == head + b"hello" + manifest


def test_openssl_would_verify_the_signature(path, keys):
    """The signature is Ed25519 over a named purpose and the header, with nothing of ours."""
    public, key = keys["mine"]
    write(path, key=key)
    data = path.read_bytes()
    assert data[-96:-64].hex() == public
    key.public_key().verify(data[-64:], b"m3mlx export\n" + data[:64])


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
            lambda path: not path.isdecimal()
        ),
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4),
        max_size=4,
    )
)
def test_any_text_survives(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "file"
    write(path, texts)
    found = content(path)
    assert [[r["text"] for r in references] for _, references in found] == list(texts.values())
    for (document, _), wanted in zip(found, texts, strict=True):
        assert len(document.path) == len(wanted) and "\x1b" not in document.path


def test_memories_that_nobody_wants_are_passed_over(path):
    write(path)
    with Export(path) as opened:
        for wanted in ([], [1]):
            for _, references in opened.read(wanted):
                assert all(set(reference.records) <= set(wanted) for reference in references)
        found = [next(references).text for _, references in opened.read()]
        assert found == [pieces[0] for pieces in TEXTS.values()]


@pytest.mark.parametrize("texts", [{"7": ["x"]}, {"": ["x"]}, {"/a": []}])
def test_what_could_not_be_imported_is_not_exported(path, texts):
    with pytest.raises(ExportError, match="cannot be exported"):
        write(path, texts)
    assert not path.exists()


# files


def test_a_file_is_private_and_whole_or_not_there(path, tmp_path):
    def broken(edition):
        yield from documents()
        raise RuntimeError

    old = os.umask(0)
    try:
        seen = []
        container.write(path, {}, [("x", (seen.append(list(tmp_path.iterdir())) for _ in ()))])
        write(path)
        with pytest.raises(RuntimeError):
            write_broken = tmp_path / "other"
            export(
                write_broken, broken, encoder="e", dimensions=DIMENSIONS, editions=[], program="p"
            )
    finally:
        os.umask(old)
    assert [(file.name, file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == [
        ("file.m3", 0o600)
    ]


def test_nobody_can_read_it_while_it_is_written(path, tmp_path):
    modes = []

    def watched():
        for block in (b"a", b"b"):
            modes.extend(file.stat().st_mode & 0o777 for file in tmp_path.iterdir())
            yield block

    old = os.umask(0)
    try:
        container.write(path, {}, [("x", watched())])
    finally:
        os.umask(old)
    assert modes == [0o600, 0o600]


@pytest.mark.skipif(not files.fcntl, reason="needs locks")
def test_what_a_killed_export_left_is_removed_by_the_next(path, tmp_path):
    left, foreign, running = (tmp_path / f"{n}.m3.{n * 8}.new" for n in "abc")
    left.write_bytes(b"m3mlx.ex" + bytes(56) + b"a text")
    foreign.write_bytes(b"somebody's own")
    running.write_bytes(left.read_bytes())
    with running.open("rb") as file:
        files.fcntl.flock(file, files.fcntl.LOCK_EX)
        write(path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, foreign.name, running.name}


def test_a_neighbour_called_new_is_left_alone(path):
    neighbour = path.with_name(path.name + ".new")
    neighbour.write_text("mine")
    write(path)
    assert neighbour.read_text() == "mine"


def test_memory_does_not_grow_with_the_file(path):
    """Twenty times as many memories, the same peak of what Python holds."""
    peaks = []
    for count in (50, 1000):

        def made(edition, count=count):
            rows = unit(0, count)
            stored = (
                Reference(0, 1, None, None, "x", [1], rows[n], {0: bytes(20_000)})
                for n in range(count)
            )
            yield Document("/a", "h", 1, "2026-11-24", "", count), stored

        tracemalloc.start()
        editions = [Edition({}, {}, 20_000)]
        export(path, made, encoder="e", dimensions=DIMENSIONS, editions=editions, program="p")
        with Export(path) as opened:
            assert sum(len(r.records) for _, refs in opened.read() for r in refs) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peaks[1] < 2 * peaks[0] < 15_000_000


def test_what_cannot_be_opened_is_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ExportError, match=str(path)):
            Export(path)


# signatures


def test_a_signature_is_asked_for_by_its_key(path, keys):
    (mine, key), (theirs, _) = keys["mine"], keys["theirs"]
    write(path, key=key)
    assert content(path, [mine]) == content(path, [theirs, mine]) == content(path)
    with pytest.raises(ExportError, match=f"signed by {mine}.*{theirs}"):
        Export(path, [theirs])
    write(path)
    with pytest.raises(ExportError, match="not signed"):
        Export(path, [mine])


def test_a_signature_cannot_be_moved_to_another_file(path, tmp_path, keys):
    _, key = keys["mine"]
    write(path, key=key)
    other = tmp_path / "other"
    write(other, {"/a": ["forged"]}, key=keys["theirs"][1])
    data = other.read_bytes()
    other.write_bytes(data[:-96] + path.read_bytes()[-96:])
    with pytest.raises(ExportError, match="signature is wrong"):
        Export(other)


def test_keys_are_private_and_never_replaced(tmp_path):
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        public = signature.new_key(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").read_text() == f"{public}\n"
    for missing in ("key.pub", "key"):
        with pytest.raises(M3Error, match="already"):
            signature.new_key(path)
        kept = (tmp_path / missing).read_bytes()
        (tmp_path / missing).rename(tmp_path / "kept")
        with pytest.raises(M3Error, match="already"):
            signature.new_key(path)
        (tmp_path / missing).write_bytes(kept)
    assert signature.public_half(signature.load_key(path)) == public
    (tmp_path / "public").write_text(public.upper() + "\n")
    assert signature.read_public(str(tmp_path / "public")) == signature.read_public(public)


@pytest.mark.parametrize("data", [None, b"", b"x", b"-----BEGIN PRIVATE KEY-----\n", b"\xff"])
def test_what_is_no_key_is_named(tmp_path, data):
    path = tmp_path / "key"
    if data is not None:
        path.write_bytes(data)
    for read in (signature.load_key, signature.read_public):
        with pytest.raises(M3Error, match=str(path)):
            read(str(path))


# damage and forgery


def forged(path, about=None, sections=None, table=None):
    """A file whose hashes are right and whose content is somebody else's idea."""
    write(path)
    with Container(path) as opened:
        manifest = {**opened.about, **(about or {})}
        parts = {name: opened.open(name).read() for name in opened.sections}
    parts.update(sections or {})
    container.write(path, manifest, [(name, [data]) for name, data in parts.items()])
    if table is not None:
        rewrite_manifest(path, lambda manifest: table(manifest["sections"]))
    return path


def rewrite_manifest(path, change):
    data = path.read_bytes()
    magic, version, length, start, _, _ = struct.unpack_from("<8sIIQQ32s", data)
    manifest = json.loads(data[start : start + length])
    change(manifest)
    new = canonical(manifest)
    head = struct.pack(
        "<8sIIQQ32s",
        *(magic, version, len(new), start, start + len(new), hashlib.sha256(new).digest()),
    )
    path.write_bytes(head + data[64:start] + new)


def line(**changes):
    fields = {"start": 0, "end": 1, "page": None, "line": 1, "text": "x", "tokens": [1]}
    return canonical({**fields, **changes}) + b"\n"


def head(**changes):
    fields = {"path": "/a", "hash": "h", "size": 1, "added": "2026-11-24", "tokenizer": "t"}
    fields["references"] = 1
    return canonical({**fields, **changes}) + b"\n"


def single(**sections):
    """Sections of a file with one document of one reference, and changes to them."""
    return {
        "documents": head(),
        "references": line(),
        "vectors": unit(0).tobytes(),
        "memories/0": b"",
        "memories/1": b"",
        **sections,
    }


def record(number, length=RECORD_BYTES):
    return struct.pack("<Q", number) + bytes(length)


def test_the_frame_of_the_forgeries_is_sound(path):
    assert len(content(forged(path, sections=single()))) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"documents": b""},
        {"documents": head()[:-1]},
        {"documents": head() * 2},
        {"documents": b"{}\n"},
        {"documents": b"[]\n"},
        {"documents": b"null\n"},
        {"documents": b"\n"},
        {"documents": b"[" * 100_000 + b"]" * 100_000 + b"\n"},
        {"documents": b"9" * 10_000 + b"\n"},
        {"documents": head().replace(b'"/a"', b'"\\ud800"')},
        {"documents": head().replace(b":1", b": 1")},
        {"documents": head().replace(b'"size":1', b'"size":1,"size":1')},
        {"documents": head(path="")},
        {"documents": head(path="7")},
        {"documents": head(path=7)},
        {"documents": head(path=None)},
        {"documents": head(hash="")},
        {"documents": head(hash="\x1b[2J")},
        {"documents": head(hash="h" * 201)},
        {"documents": head(tokenizer=None)},
        {"documents": head(tokenizer="\n")},
        {"documents": head(added="yesterday")},
        {"documents": head(added=5)},
        {"documents": head(size=-1)},
        {"documents": head(size=True)},
        {"documents": head(size=1.5)},
        {"documents": head(size=2**60)},
        {"documents": head(references=0)},
        {"documents": head(references=2)},
        {"documents": head(references=2**52)},
        {"documents": head(more=1)},
        {"references": b""},
        {"references": line() * 2},
        {"references": line() + b"null\n"},
        {"references": line()[:-1]},
        {"references": b"null\n"},
        {"references": b"\xff\n"},
        {"references": line(text=None)},
        {"references": line(text=["x"])},
        {"references": line(start=-1)},
        {"references": line(start=2)},
        {"references": line(end=2**63)},
        {"references": line(end="1")},
        {"references": line(page=-1)},
        {"references": line(line=1.0)},
        {"references": line(tokens=[])},
        {"references": line(tokens=[1] * 129)},
        {"references": line(tokens=[-1])},
        {"references": line(tokens=[2**32])},
        {"references": line(tokens=["1"])},
        {"references": line(tokens=[None])},
        {"references": line(tokens={"1": 1})},
        {"references": line(tokens="1")},
        {"references": line(records={})},
        {"references": line(vector=[])},
        {"references": canonical({"start": 0}) + b"\n"},
        {"vectors": b""},
        {"vectors": unit(0).tobytes()[:-1]},
        {"vectors": unit(0, 2).tobytes()},
        {"vectors": bytes(4 * DIMENSIONS)},
        {"vectors": np.full(DIMENSIONS, np.nan, np.float32).tobytes()},
        {"vectors": (2 * unit(0)).tobytes()},
        {"memories/0": b"x"},
        {"memories/0": record(0)[:-1]},
        {"memories/0": record(0) + b"x"},
        {"memories/0": record(1)},
        {"memories/0": record(2**64 - 1)},
        {"memories/0": record(0) * 2},
        {"memories/0": record(0, 10)},
    ],
    ids=lambda sections: "-".join(f"{k} {v[:40]!r}" for k, v in sections.items()),
)
def test_content_that_is_not_right_is_refused(path, sections):
    forged(path, sections=single(**sections))
    with pytest.raises(ExportError, match=f"{path.name}.*damaged or forged"):
        Export(path)


@pytest.mark.parametrize(
    "about",
    [
        {"encoder": None},
        {"dimensions": 0},
        {"dimensions": 2**40},
        {"dimensions": "16"},
        {"dimensions": DIMENSIONS + 1},
        {"editions": None},
        {"editions": []},
        {"editions": [{}]},
        {"editions": ["x", "y"]},
        {"editions": [{"fingerprint": {"a": 1}, "memory": {}, "record_bytes": 10}] * 2},
        {"editions": [{"fingerprint": [], "memory": {}, "record_bytes": 10}] * 2},
        {"editions": [{"fingerprint": {}, "memory": 3, "record_bytes": 10}] * 2},
        {"editions": [{"fingerprint": {}, "memory": {}, "record_bytes": 2**60}] * 2},
        {"editions": [{"fingerprint": {}, "memory": {}, "record_bytes": 0}] * 2},
        {"editions": [{"fingerprint": {}, "memory": {}, "record_bytes": 10}] * 1000},
    ],
    ids=str,
)
def test_a_manifest_that_is_not_right_is_refused(path, about):
    forged(path, about=about)
    with pytest.raises(ExportError, match="damaged or forged"):
        Export(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop(),
        lambda table: table.append(table[0]),
        lambda table: table.reverse(),
        lambda table: table[0].update(name=1),
        lambda table: table[0].update(name="../x"),
        lambda table: table[0].update(length=-1),
        lambda table: table[0].update(length=2**70),
        lambda table: table[0].update(length=True),
        lambda table: table[0].update(length=table[0]["length"] - 1),
        lambda table: table[0].update(sha256=5),
        lambda table: table[0].update(sha256="0" * 64),
        lambda table: table[0].clear(),
        lambda table: table.insert(0, None),
        lambda table: table.clear(),
    ],
)
def test_a_table_of_sections_that_is_not_right_is_refused(path, change):
    forged(path, table=change)
    with pytest.raises(ExportError, match="damaged or forged"):
        Export(path)


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0, b"PK\3\4", "no file that"),
        (8, b"\2", "version is 2"),
        (12, b"\xff\xff\xff\xff", "damaged"),  # a manifest of four gigabytes
        (16, b"\xff" * 8, "damaged"),
        (24, b"\0", "damaged"),
        (24, b"\xff" * 8, "damaged"),
        (32, b"\0\0\0\0", "damaged"),
    ],
)
def test_a_header_that_is_not_right_is_refused_without_reading_on(path, offset, data, words):
    write(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    tracemalloc.start()
    with pytest.raises(ExportError, match=words):
        Export(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_line_without_end_does_not_fill_the_memory(path, monkeypatch):
    monkeypatch.setattr(container, "LONGEST_LINE", 1000)
    forged(path, sections=single(references=line(text="x" * 1000)))
    with pytest.raises(ExportError, match="has no end"):
        Export(path)


def test_a_file_that_changes_while_it_is_read_is_noticed(path):
    write(path, {"/a": ["x"] * 1500})
    with Export(path) as opened:
        data = path.read_bytes()
        at = data.rindex(memory("x"))
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"other")
        with pytest.raises(ExportError, match="damaged"):
            for _ in opened.read():
                pass
        os.truncate(path, 1000)
        with pytest.raises(ExportError, match="cut short"):
            for _ in opened.read():
                pass


def damages(data, count, seed):
    """Damaged copies of a file: bits, ranges, cuts, doubled and swapped parts, foreign bytes."""
    chance = random.Random(seed)
    for number in range(count):
        new = bytearray(data)
        at = chance.choice([chance.randrange(len(data)), chance.randrange(64)])
        length = chance.choice([1, 4, 64, 1000])
        to = chance.randrange(len(data))
        match number % 7:
            case 0:
                new[at] ^= 1 << chance.randrange(8)
            case 1:
                del new[at:]
            case 2:
                new[at : at + length] = chance.randbytes(length)
            case 3:
                new[at : at + length] = bytes(length)
            case 4:
                new[at:at] = data[to : to + length]
            case 5:
                del new[at : at + length]
            case 6:
                new[at : at + length], new[to : to + length] = (
                    new[to : to + length],
                    new[at : at + length],
                )
        if new != data:
            yield number, bytes(new)


def no_damage_is_read(path, count, seed, key):
    write(path, key=key)
    for number, data in damages(path.read_bytes(), count, seed):
        path.write_bytes(data)
        try:
            Export(path).close()
        except ExportError as error:
            assert str(path) in str(error)
        else:
            raise AssertionError(f"damage {number} of seed {seed} was not noticed")


def test_a_damaged_file_is_refused(path, keys):
    no_damage_is_read(path, 300, 0, keys["mine"][1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_damaged_files_are_refused(path, keys, seed):
    no_damage_is_read(path, 2500, seed, keys["mine"][1] if seed % 2 else None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
BYTES = st.binary(max_size=200)


@st.composite
def content_by_a_forger(draw):
    """Sections that are right but for something that is anything."""
    made = single()
    name = draw(st.sampled_from(list(made)))
    way = draw(st.integers(0, 3))
    if way == 0 or not name.startswith(("doc", "ref")):
        made[name] = draw(BYTES)
        return made
    fields = json.loads(made[name])
    if way == 1:
        made[name] = json.dumps(draw(JSON)).encode() + b"\n"
    else:
        fields[draw(st.sampled_from(list(fields)) | st.text())] = draw(JSON)
        made[name] = (
            json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
            + b"\n"
        )
    return made


def whatever_is_read_is_right(tmp_path_factory, sections):
    path = tmp_path_factory.mktemp("forged") / "file"
    about = {
        "encoder": "e",
        "dimensions": DIMENSIONS,
        "editions": [vars(made) for made in EDITIONS],
    }
    container.write(path, about, [(name, [data]) for name, data in sections.items()])
    try:
        with Export(path) as opened:
            for document, references in opened.read():
                assert document.path and document.path.encode()
                assert 0 <= document.size < 2**63 and document.references >= 1
                for reference in references:
                    assert reference.text.encode() or reference.text == ""
                    assert 0 <= reference.start <= reference.end < 2**63
                    assert 0 < len(reference.tokens) <= 128
                    assert abs(float(np.linalg.norm(reference.vector)) - 1) < 0.01
                    assert all(
                        len(data) == EDITIONS[which].record_bytes
                        for which, data in reference.records.items()
                    )
    except StoreError as error:
        assert str(path) in str(error)


@settings(max_examples=60, deadline=None)
@given(content_by_a_forger())
def test_whatever_a_forger_writes_is_right_or_refused(tmp_path_factory, sections):
    whatever_is_read_is_right(tmp_path_factory, sections)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(content_by_a_forger())
def test_whatever_many_forgers_write_is_right_or_refused(tmp_path_factory, sections):
    whatever_is_read_is_right(tmp_path_factory, sections)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, data, disguised):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes((b"m3mlx.ex\1\0\0\0" if disguised else b"") + data)
    with pytest.raises(ExportError, match="file"):
        Export(path)
