"""Documents out of a store into a file, and out of a file into a store.

Where a store has a document already, path and content hash decide: both the same, and nothing is
added but memories that are missing; the same path with another content, and what the store has
is kept unless it is to be replaced. The same content under another path is another document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..config import Progress
from ..errors import StoreError
from ..store import MemoryStore, NewReference, StoredDocument
from ..store.rows import Edition
from . import portable

_BATCH = 16  # references that are read or committed together
_NAME = "model"  # of a fingerprint: what the model was called, which decides nothing


@dataclass
class ImportReport:
    """What became of the documents of a file.

    Attributes:
        added, replaced, unchanged: paths.
        kept: paths that have another content in the store, which was kept.
        references: how many were added.
        memories: how many were taken from the file.
        embedded: whether vectors were made anew.
        signer: public key that has signed the file, or None.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    references: int = 0
    memories: int = 0
    embedded: bool = False
    signer: str | None = None


def send(
    store: MemoryStore,
    file: Path,
    documents: Sequence[StoredDocument],
    *,
    program: str,
    key: Ed25519PrivateKey | None = None,
) -> dict[str, int]:
    """Write complete documents of a store, which nobody may change meanwhile, to a file.

    Returns:
        Number of documents, references and memories written.

    Raises:
        StoreError: a document is damaged, or the file cannot be written; there is none then.
    """
    hidden = store.hidden()
    for document in documents:
        if document.path in hidden or not document.hash:
            raise StoreError(
                f"{document.path}: this document is damaged, {hidden.get(document.path, 0)} of its "
                f"references are in quarantine or lost. Memorize it again or forget it first."
            )
    editions = store.editions()

    def read(which: int | None) -> Iterator[tuple[portable.Document, Iterator]]:
        edition = None if which is None else editions[which]
        for document in documents:
            slots = store.slots_of(document.id)
            tokenizer = store.references(slots[:1])[0].tokenizer
            about = (document.path, document.hash, document.size, document.added, tokenizer)
            stored = _references(store, slots, which, edition)
            yield portable.Document(*about, len(slots)), stored

    present = store.edition.id
    try:
        return portable.export(
            file,
            read,
            encoder=store.encoder,
            dimensions=store.dimensions,
            editions=[portable.Edition(e.fingerprint, e.memory, e.record_bytes) for e in editions],
            program=program,
            key=key,
        )
    finally:
        store.use(present)


def _references(
    store: MemoryStore, slots: Sequence[int], which: int | None, edition: Edition | None
) -> Iterator[portable.Reference]:
    if edition is not None and store.edition.id != edition.id:
        store.use(edition.id)
    for part in _parts(iter(slots)):
        stored = store.references(part)
        warm = [reference.slot for reference in stored if reference.warm and edition is not None]
        records = dict(zip(warm, store.read(warm), strict=True))
        for reference in stored:
            yield portable.Reference(
                start=reference.start,
                end=reference.end,
                page=reference.page,
                line=reference.line,
                text=reference.text,
                tokens=reference.tokens,
                vector=reference.vector,
                records={which: records[reference.slot].tobytes()}
                if reference.slot in records
                else {},
            )


def receive(
    store: MemoryStore,
    export: portable.Export,
    *,
    replace: bool = False,
    cold: bool = False,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> ImportReport:
    """Add the documents of a file to a store. What is interrupted goes on when it is repeated.

    Memories of editions that the store does not have are left out.

    Args:
        replace: whether the file wins where a path has another content in the store.
        cold: take no memories.
        encode: makes the vectors from texts if the file's are of another encoder.
    """
    merging = _Merging(store, export, cold, encode)
    present = {document.path: document for document in store.documents() if document.complete}
    done = 0
    for document, references in export.read(merging.editions):
        progress("importing", done, export.references)
        known = present.get(document.path)
        if known is None:
            merging.add(document, references)
            merging.done.added.append(document.path)
        elif known.hash == document.hash:
            merging.fill(store.slots_of(known.id), document, references)
            merging.done.unchanged.append(document.path)
        elif replace:
            merging.add(document, references)
            merging.done.replaced.append(document.path)
        else:
            merging.done.kept.append(document.path)
        done += document.references
    progress("importing", export.references, export.references)
    return merging.done


class _Merging:
    """One run over a file.

    Attributes:
        editions: numbers of the file's editions that the store has too, with their ids there.
    """

    def __init__(
        self,
        store: MemoryStore,
        export: portable.Export,
        cold: bool,
        encode: Callable[[Sequence[str]], np.ndarray] | None,
    ):
        self.store, self.encode = store, encode
        self.done = ImportReport(embedded=encode is not None, signer=export.signer)
        self.editions = {
            number: known.id
            for number, offered in enumerate(export.editions)
            for known in store.editions()
            if not cold
            and same_conditions(known.fingerprint, offered.fingerprint)
            and known.record_bytes == offered.record_bytes
        }
        present = [number for number, id in self.editions.items() if id == store.edition.id]
        self._first = present[0] if present else None  # whose memories come with the references

    def add(self, document: portable.Document, references: Iterator[portable.Reference]) -> None:
        id, have = self.store.begin(
            document.path,
            document.hash,
            document.references,
            size=document.size,
            tokenizer=document.tokenizer,
            added=document.added,
        )
        references = islice(references, have, None)
        for part in _parts(references):
            vectors = [reference.vector for reference in part]
            if self.encode:
                vectors = self.encode([reference.text for reference in part])
            self.store.add(
                [
                    NewReference.of(
                        reference, id, ordinal, vector, reference.records.get(self._first)
                    )
                    for ordinal, (reference, vector) in enumerate(
                        zip(part, vectors, strict=True), have
                    )
                ]
            )
            slots = self.store.slots_of(id)[have : have + len(part)]
            self._write(dict(zip(slots, part, strict=True)))
            have += len(part)
            self.done.references += len(part)
            self.done.memories += sum(self._first in reference.records for reference in part)

    def fill(
        self,
        slots: Sequence[int],
        document: portable.Document,
        references: Iterator[portable.Reference],
    ) -> None:
        """Add memories that a stored document lacks, where it was cut in the same way."""
        if len(slots) != document.references or not self.editions:
            return
        for part, same in zip(_parts(iter(slots)), _parts(references), strict=True):
            stored = self.store.references(part)
            self._write(
                {
                    known.slot: reference
                    for known, reference in zip(stored, same, strict=True)
                    if (known.tokenizer, known.tokens, known.text)
                    == (document.tokenizer, tuple(reference.tokens), reference.text)
                }
            )

    def _write(self, references: dict[int, portable.Reference]) -> None:
        """Write the memories that references have in the file and lack in the store."""
        present = self.store.edition.id
        for number, id in self.editions.items():
            records = {
                slot: reference.records[number]
                for slot, reference in references.items()
                if number in reference.records
            }
            if not records:
                continue
            self.store.use(id)
            cold = {stored.slot for stored in self.store.references(records) if not stored.warm}
            self.store.write({slot: records[slot] for slot in cold})
            self.done.memories += len(cold)
        self.store.use(present)


def same_conditions(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether memories made under two fingerprints are interchangeable."""
    return all(one.get(name) == other.get(name) for name in (one.keys() | other.keys()) - {_NAME})


def _parts(values: Iterator) -> Iterator[list]:
    while part := list(islice(values, _BATCH)):
        yield part
