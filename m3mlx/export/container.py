"""The file that carries documents from one store to another: sections, manifest, signature.

The header has 64 bytes: the ASCII bytes ``m3mlx.ex``, version of this format (4 bytes), length of
the manifest (4), where it starts, which is where the sections end (8), length of the whole file
(8), SHA-256 of the manifest. All numbers are unsigned and little-endian.

Then come the sections, one behind the other. Then the manifest: JSON in UTF-8 with sorted keys
and no spaces, whose ``sections`` list name, length and SHA-256 of each. Then, if the file is
signed, 32 bytes of public key and 64 of the Ed25519 signature of ``m3mlx export``, a newline and
the header. So every byte is covered: signature, header, manifest, sections.

The manifest comes last so that a file of any size is written and read in one pass and little
memory. Nothing is compressed, so nothing can unfold.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..errors import StoreError
from ..files import NEW, fcntl, os_errors_as_store_errors, replacing
from ..store.lock import try_lock
from . import signature

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"m3mlx.ex"
VERSION = 1
LONGEST_MANIFEST = 2**24
LONGEST_LINE = 2**24
_HEADER = struct.Struct("<8sIIQQ32s")
_BLOCK = 2**20
_UNFINISHED = re.compile(r".*\.[0-9a-f]{8}\.new", re.DOTALL)


class ExportError(StoreError):
    """A file is no export, is damaged, or is not signed as it must be."""


def canonical(value: object) -> bytes:
    """Write a value as JSON in the one way that is used here."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def parsed(data: bytes) -> Any:
    """Return the value of canonical JSON. Raises ValueError for all else."""
    try:
        value = json.loads(data)
        if canonical(value) != data:
            raise ValueError("it is not canonical JSON")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def write(
    path: Path,
    about: dict,
    sections: Iterable[tuple[str, Iterable[bytes]]],
    key: Ed25519PrivateKey | None = None,
) -> None:
    """Write a file: complete under its name, or not at all, and readable by its owner alone.

    Args:
        about: what the manifest says beside the sections; looked at after the last section, so
            that it may be completed while they are written.
        sections: name and content of each.
        key: to sign with.
    """
    _sweep(path.parent)
    ending = f".{secrets.token_hex(4)}{NEW}"  # unique among programs that write here
    with (
        os_errors_as_store_errors(path),
        replacing(path, ending=ending) as new,
        new.open("r+b") as file,
    ):
        try_lock(file.fileno())
        file.write(MAGIC.ljust(_HEADER.size, b"\0"))
        file.flush()  # so that it is known as one of these wherever this is cut off
        table = []
        for name, content in sections:
            length, hash = 0, hashlib.sha256()
            for block in content:
                file.write(block)
                length += len(block)
                hash.update(block)
            table.append({"name": name, "length": length, "sha256": hash.hexdigest()})
        start = file.tell()
        manifest = canonical({**about, "sections": table})
        file.write(manifest)
        end = file.tell() + (signature.LENGTH if key else 0)
        sha256 = hashlib.sha256(manifest).digest()
        header = _HEADER.pack(MAGIC, VERSION, len(manifest), start, end, sha256)
        if key:
            file.write(signature.sign(key, header))
        file.seek(0)
        file.write(header)


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of programs that were killed, which hold documents."""
    if fcntl is None:
        return
    with suppress(OSError):
        for left in folder.iterdir():
            if _UNFINISHED.fullmatch(left.name) and left.is_file() and not left.is_symlink():
                with left.open("rb") as file:
                    if file.read(len(MAGIC)) == MAGIC and try_lock(file.fileno()):
                        left.unlink()


class Container:
    """An open file, whose header, manifest and signature are proved.

    Attributes:
        about: the manifest without its sections.
        sections: names, in the order of the file.
        signer: the public key that has signed it, or None.
        done, total: bytes of sections that were read, and that there are.
    """

    def __init__(self, path: Path, trusted: Sequence[str] = ()):
        """Open a file.

        Args:
            trusted: public keys, one of which must have signed it; none asks for no signature.

        Raises:
            ExportError: it is no such file, damaged, or not signed by one of them.
        """
        self.path = path
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(path.open("rb", buffering=0))
                self._prove(trusted)
            except OSError as error:
                raise ExportError(f"{path}: it cannot be read ({error.strerror}).") from error
            opened.pop_all()

    def _prove(self, trusted: Sequence[str]) -> None:
        size = os.fstat(self._file.fileno()).st_size
        header = self.read(0, _HEADER.size)
        if not header.startswith(MAGIC):
            raise ExportError(f"{self.path}: this is no file that `m3mlx export` has written.")
        if len(header) < _HEADER.size:
            raise self.damaged("it is cut short")
        _, version, length, start, end, sha256 = _HEADER.unpack(header)
        if version != VERSION:
            raise ExportError(
                f"{self.path}: its format version is {version}, this program reads {VERSION}. "
                f"Use the m3mlx that wrote it, or a newer one."
            )
        if end != size:
            raise self.damaged(f"it has {size} bytes where it says {end}")
        signed = size - start - length
        known = length <= LONGEST_MANIFEST and _HEADER.size <= start <= size
        if not known or signed not in (0, signature.LENGTH):
            raise self.damaged("its header is wrong")
        manifest = self.read(start, length)
        if hashlib.sha256(manifest).digest() != sha256:
            raise self.damaged("its manifest is not the one that was written")
        self.signer = None
        if signed:
            self.signer = signature.signer(self.read(start + length, signed), header)
            if self.signer is None:
                raise self.damaged("its signature is wrong")
        if trusted and self.signer not in trusted:
            raise ExportError(
                f"{self.path}: it is {f'signed by {self.signer}' if self.signer else 'not signed'}"
                f", and a signature by {' or '.join(trusted)} is asked for. Nothing was imported."
            )
        self._read_manifest(manifest, start)

    def _read_manifest(self, manifest: bytes, end: int) -> None:
        self._table: dict[str, tuple[int, int, str]] = {}  # name -> start, length, SHA-256
        try:
            self.about = parsed(manifest)
            at = _HEADER.size
            for section in self.about.pop("sections"):
                name, length, sha256 = (section[key] for key in ("name", "length", "sha256"))
                known = isinstance(name, str) and isinstance(sha256, str) and type(length) is int
                if not known or name in self._table or length < 0:
                    raise ValueError("a section is wrong")
                self._table[name] = at, length, sha256
                at += length
            if at != end:
                raise ValueError("its sections do not fill it")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(f"its manifest cannot be read ({error})") from error
        self.sections = tuple(self._table)
        self.done, self.total = 0, end - _HEADER.size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, none of them proved."""
        with os_errors_as_store_errors(self.path):
            return os.pread(self._file.fileno(), length, offset)

    def open(self, name: str) -> io.BufferedReader:
        """A section's content from its start; what was read is proved when its end is reached."""
        return io.BufferedReader(_Section(self, *self._table[name]), _BLOCK)

    def lines(self, name: str) -> Iterator[Any]:
        """Yield the values of a section of JSON lines."""
        section = self.open(name)
        while line := section.readline(LONGEST_LINE + 1):
            if not line.endswith(b"\n"):
                raise self.damaged(f"a line of its {name} has no end")
            try:
                yield parsed(line[:-1])
            except ValueError as error:  # whose text may quote the document
                raise self.damaged(f"a line of its {name} is no canonical JSON") from error

    def damaged(self, what: str) -> ExportError:
        return ExportError(
            f"{self.path}: {what}, so the file is damaged or forged. Copy or export it again."
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Section(io.RawIOBase):
    """The bytes of a section, each read once, in order, and hashed."""

    def __init__(self, container: Container, start: int, length: int, sha256: str):
        self._container = container
        self._at, self._end = start, start + length
        self._wanted, self._sha256 = sha256, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = self._container.read(self._at, min(len(view), self._end - self._at))
        if self._at < self._end and not data:
            raise self._container.damaged("it was cut short while it was read")
        view[: len(data)] = data
        self._at += len(data)
        self._container.done += len(data)
        self._sha256.update(data)
        if self._at == self._end and self._sha256.hexdigest() != self._wanted:
            raise self._container.damaged("a section is not the one that was written")
        return len(data)
