"""The content of an exported file: documents, references, vectors and memories.

    documents     a line of JSON each: path, hash, size, added, tokenizer, number of references; of
                  facts also fact: who said it (by), and what it replaced (history)
    references    a line of JSON each, document by document: start, end, page, line, text, tokens
    vectors       float32, one for each reference in the same order
    memories/N    for each reference that has a memory of edition N, in the same order: its number
                  (8 bytes, counted from 0 over the whole file) and the memory

The manifest names the encoder of the vectors, their dimensions, and the editions: fingerprint,
memory configuration and length of one memory for each. Nothing in the file is a place to write
to: paths are names, and a name's control characters are replaced before anybody sees them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..config import REFERENCE_TOKENS, Progress, no_progress
from ..store.index import are_unit
from ..store.rows import CONTENT
from ..text import scrub
from .container import LONGEST_LINE, Container, ExportError, canonical, write

_NUMBER = struct.Struct("<Q")
_LARGEST = 2**53  # of integers, as far as every reader of JSON is exact
_MOST_EDITIONS, _MOST_DIMENSIONS, _MOST_BYTES = 64, 2**16, 2**30
_BREAKS = dict.fromkeys(map(ord, "\t\n\u2028\u2029"), "\N{REPLACEMENT CHARACTER}")  # of lines


@dataclass(frozen=True)
class Edition:
    """All memories of one fingerprint: see ``rows.Edition``."""

    fingerprint: Mapping[str, str]
    memory: Mapping
    record_bytes: int


@dataclass(frozen=True)
class Document:
    """A document in a file: see ``StoredDocument``.

    Attributes:
        tokenizer: what made the token ids of its references.
        references: how many there are.
        fact: of a fact who said it, and what it replaced: by, and history, a list of text, time
            and who said that; None for other documents.
    """

    path: str
    hash: str
    size: int
    added: str
    tokenizer: str
    references: int
    fact: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reference:
    """A reference in a file: see ``NewReference``.

    Attributes:
        records: its memory for each edition that has one, by the edition's number.
    """

    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    tokens: tuple[int, ...]
    vector: np.ndarray
    records: Mapping[int, bytes] = field(default_factory=dict)


def export(
    path: Path,
    documents: Callable[[int | None], Iterable[tuple[Document, Iterable[Reference]]]],
    *,
    encoder: str,
    dimensions: int,
    editions: Sequence[Edition],
    program: str,
    key: Ed25519PrivateKey | None = None,
) -> dict[str, int]:
    """Write documents to a file, reading them once for each section.

    Args:
        documents: gives them with their references and the memories of one edition, or of none.

    Returns:
        Number of documents, references and memories written.
    """
    counts = {"documents": 0, "references": 0, "memories": 0}

    def heads() -> Iterator[bytes]:
        for document, _ in documents(None):
            counts["documents"] += 1
            counts["references"] += document.references
            fields = asdict(document)
            if document.fact is None:  # earlier releases read all other documents
                del fields["fact"]
            yield _line(document.path, fields, _is_document(document))

    def references() -> Iterator[bytes]:
        for document, stored in documents(None):
            for reference in stored:
                fields = {name: getattr(reference, name) for name in CONTENT}
                yield _line(document.path, fields, _is_reference(reference, dimensions))

    def vectors() -> Iterator[bytes]:
        for _, stored in documents(None):
            for reference in stored:
                yield np.asarray(reference.vector, dtype="<f4").tobytes()

    def memories(which: int) -> Iterator[bytes]:
        number = 0
        for _, stored in documents(which):
            for reference in stored:
                if which in reference.records:
                    counts["memories"] += 1
                    yield _NUMBER.pack(number) + reference.records[which]
                number += 1

    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dimensions": dimensions,
        "encoder": encoder,
        "editions": [asdict(edition) for edition in editions],
        "program": program,
    }
    sections = [("documents", heads()), ("references", references()), ("vectors", vectors())]
    sections += [(f"memories/{number}", memories(number)) for number in range(len(editions))]
    write(path, about, sections, key)
    return counts


def _line(path: str, value: dict, good: bool) -> bytes:
    line = canonical(value)
    if not good or len(line) > LONGEST_LINE:
        raise ExportError(
            f"{path}: this document cannot be exported, because no import would take it. "
            f"Its name is a number, or a reference is not of the usual kind."
        )
    return line + b"\n"


class Export:
    """An exported file, every byte of which was proved when it was opened.

    Attributes:
        encoder, dimensions: what made the vectors, and their length.
        editions: whose memories it has.
        documents, references: how many there are.
        signer: the public key that has signed the file, or None.
    """

    def __init__(
        self,
        path: Path,
        trusted: Sequence[str] = (),
        progress: Progress = no_progress,
    ):
        """Open a file and read it once from end to end. ``trusted`` is as of ``Container``.

        Raises:
            ExportError: it is no such file, is damaged, or is not signed by one of them.
        """
        self._file = Container(path, trusted)
        self.signer = self._file.signer
        try:
            self._describe(self._file.about)
            self.documents = self.references = 0
            for document, _ in self.read():
                self.documents += 1
                self.references += document.references
                progress("checking", self._file.done, self._file.total)
            progress("checking", self._file.total, self._file.total)
        except BaseException:
            self._file.close()
            raise

    def _describe(self, about: Mapping) -> None:
        try:
            self.encoder, self.dimensions = about["encoder"], about["dimensions"]
            self.editions = tuple(Edition(**edition) for edition in about["editions"])
            known = len(self.editions) <= _MOST_EDITIONS and isinstance(self.encoder, str)
            known &= _is_count(self.dimensions, 1, _MOST_DIMENSIONS)
            for edition in self.editions:
                known &= _is_count(edition.record_bytes, 1, _MOST_BYTES)
                known &= isinstance(edition.memory, dict)
                known &= all(isinstance(value, str) for value in edition.fingerprint.values())
        except (AttributeError, KeyError, TypeError) as error:
            raise self._file.damaged("its manifest does not say what it must") from error
        wanted = ["documents", "references", "vectors"]
        wanted += [f"memories/{number}" for number in range(len(self.editions))]
        if not known or self._file.sections != tuple(wanted):
            raise self._file.damaged("its manifest does not say what it must")

    def read(self, editions: Iterable[int] | None = None) -> Iterator[tuple[Document, Iterator]]:
        """Yield each document with an iterator of its references.

        A document's references are read before the next document, or passed over.

        Args:
            editions: numbers of those whose memories are wanted; None for all.

        Raises:
            ExportError: the file was changed after it was opened.
        """
        heads = self._file.lines("documents")
        lines = self._file.lines("references")
        vectors = self._file.open("vectors")
        wanted = range(len(self.editions)) if editions is None else editions
        memories = {which: self._memories(which) for which in wanted}
        ahead = {which: next(stream, None) for which, stream in memories.items()}
        number = 0  # of the reference, over the whole file

        def references(count: int) -> Iterator[Reference]:
            nonlocal number
            for fields in islice(lines, count):
                records = {}
                for which, stream in memories.items():
                    following = ahead[which]
                    if following and following[0] == number:
                        records[which] = following[1]
                        ahead[which] = next(stream, None)
                number += 1
                yield self._reference(fields, vectors.read(4 * self.dimensions), records)

        for fields in heads:
            document = self._document(fields)
            last = number + document.references
            stored = references(document.references)
            yield document, stored
            for _ in stored:  # what was not asked for
                pass
            if number != last:
                raise self._file.damaged("it has fewer references than it says")
        if next(lines, self) is not self or vectors.read(1) or any(ahead.values()):
            raise self._file.damaged("it has more references than it says")

    def _memories(self, which: int) -> Iterator[tuple[int, bytes]]:
        """Number of the reference and memory, for each of a set."""
        section, last = self._file.open(f"memories/{which}"), -1
        length = self.editions[which].record_bytes
        while head := section.read(_NUMBER.size):
            record = section.read(length)
            if len(head) < _NUMBER.size or len(record) < length:
                raise self._file.damaged("a memory is cut short")
            (number,) = _NUMBER.unpack(head)
            if number <= last:
                raise self._file.damaged("its memories are out of order")
            last = number
            yield number, record

    def _document(self, fields: dict) -> Document:
        try:
            document = Document(**fields)
            known = _is_document(document)
        except TypeError:
            known = False
        if not known:
            raise self._file.damaged("a document is not described as it must be")
        return replace(document, path=scrub(document.path.translate(_BREAKS)))

    def _reference(self, fields: dict, vector: bytes, records: dict[int, bytes]) -> Reference:
        try:
            floats = np.frombuffer(vector, dtype="<f4")
            reference = Reference(**fields, vector=floats, records=records)
            known = _is_reference(reference, self.dimensions)
        except (TypeError, ValueError):
            known = False
        if not known:
            raise self._file.damaged("a reference is not described as it must be")
        return reference

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _is_document(document: Document) -> bool:
    """Return whether all values are of their kind and range."""
    path = document.path
    try:
        datetime.fromisoformat(document.added)
    except (TypeError, ValueError):
        return False
    return (
        isinstance(path, str)
        and path != ""
        and not path.isdecimal()  # or it would stand for the document that has this id
        and _is_name(document.hash)
        and (document.tokenizer == "" or _is_name(document.tokenizer))
        and _is_count(document.size)
        and _is_count(document.references, 1)
        and (document.fact is None or (document.references == 1 and _is_fact(document.fact)))
    )


def _is_fact(fact: object) -> bool:
    """Return whether this says of a fact who said it, and what it replaced."""
    if not isinstance(fact, Mapping) or fact.keys() != {"by", "history"}:
        return False
    by, history = fact["by"], fact["history"]
    if not isinstance(by, str) or len(by) > 200 or not isinstance(history, list | tuple):
        return False
    for version in history:
        if not isinstance(version, list | tuple) or len(version) != 3:
            return False
        if not all(isinstance(value, str) for value in version):
            return False
        try:
            datetime.fromisoformat(version[1])
        except ValueError:
            return False
    return True


def _is_reference(reference: Reference, dimensions: int) -> bool:
    """Return whether all values are of their kind and range."""
    return (
        isinstance(reference.text, str)
        and isinstance(reference.tokens, list | tuple)
        and 0 < len(reference.tokens) <= REFERENCE_TOKENS
        and all(_is_count(token, 0, 2**32 - 1) for token in reference.tokens)
        and _is_count(reference.start)
        and _is_count(reference.end, reference.start)
        and all(place is None or _is_count(place) for place in (reference.page, reference.line))
        and reference.vector.shape == (dimensions,)
        and are_unit(reference.vector[None])
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_count(value: object, least: int = 0, most: int = _LARGEST) -> bool:
    return type(value) is int and least <= value <= most
