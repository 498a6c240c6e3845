"""Carry documents with their memories from one store to another, in one file.

The same model reads the memories as they are. For another model text and vectors arrive, and each
memory is written at its first use; another encoder makes the vectors anew.

Where a store has a document already, path and content hash decide: both the same, and nothing is
added but memories that are missing; the same path with another content, and what the store has
is kept unless it is to be replaced. The same content under another path is another document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .. import __version__
from ..assistant import Assistant
from ..config import MemoryConfig, Progress, fingerprint, no_progress
from ..errors import StoreError
from ..memory.bounds import Bounds
from ..memory.codec import Codec
from ..store import Edition, MemoryStore, NewReference, StoredDocument, StoredFact, Version
from ..store.rows import CONTENT
from . import portable, signature

T = TypeVar("T")
_GIVEN = ("weights", "tokenizer", "rope", "adapter")  # of a fingerprint, not by configuration
_NAME = "model"  # of a fingerprint: what the model was called, which decides nothing
_BATCH = 16  # references that are read or committed together


@dataclass
class ExportReport:
    """Counts of what was written to a file, its bytes, and the public key that signed it."""

    file: str
    documents: int
    references: int
    memories: int
    bytes: int
    signer: str | None


@dataclass
class ImportReport:
    """Result of an import.

    Attributes:
        added, replaced, unchanged: paths.
        kept: paths that have another content in the store, which was kept.
        references: how many were added.
        memories: how many were taken from the file.
        refused: how many were not, because no model makes such values; their references are cold.
        embedded: whether vectors were made anew.
        signer: public key that has signed the file, or None.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    references: int = 0
    memories: int = 0
    refused: int = 0
    embedded: bool = False
    signer: str | None = None


def export_documents(
    assistant: Assistant,
    file: str | Path,
    names: Iterable[str] = (),
    *,
    key: str | Path | None = None,
) -> ExportReport:
    """Write documents with text, token ids, vectors and the memories of all editions to a file.

    Nobody else can write to the store meanwhile. The file is complete under its name, or there
    is none; it is readable by its owner alone, and not encrypted.

    Args:
        file: a new file.
        names: paths, folders or ids; none for all documents that are complete.
        key: file of an Ed25519 private key to sign with.

    Raises:
        StoreError: there is such a file, a name is not stored, or a document is damaged.
        M3Error: the key cannot be read.
    """
    file = Path(file).expanduser()
    private = signature.load_key(key) if key else None
    if file.exists() or file.is_symlink():
        raise StoreError(f"{file}: there is a file already. Name another, or remove it first.")
    if not file.parent.is_dir():
        raise StoreError(f"{file.parent}: there is no such folder. Make it first.")
    with _writer(assistant) as store:
        chosen = list(names)
        documents = store.find_documents(chosen) if chosen else store.documents()
        whole = [document for document in documents if document.complete]
        counts = write_export(store, file, whole, program=f"m3mlx {__version__}", key=private)
    signer = signature.public_half(private) if private else None
    return ExportReport(str(file), **counts, bytes=file.stat().st_size, signer=signer)


def import_documents(
    assistant: Assistant,
    file: str | Path,
    *,
    replace: bool = False,
    cold: bool = False,
    trusted: Sequence[str] = (),
    progress: Progress = no_progress,
) -> ImportReport:
    """Add the documents of a file to the assistant's store, or to a new one.

    The whole file is proved before anything is changed. A new store becomes what the file's was,
    for the same models. Neither decoder nor encoder is loaded, unless vectors must be made anew.

    Args:
        replace: whether the file wins where a path has another content in the store.
        cold: take no memories, but write each at its first use.
        trusted: public keys (or files that hold them), by one of which it must be signed.

    Raises:
        StoreError: the file is damaged, forged or not signed as it must be; nothing was changed.
    """
    keys = [signature.read_public(name) for name in trusted]
    with portable.Export(Path(file).expanduser(), keys, progress) as export:
        known = assistant.has_store()
        if not known:
            _check_editions(export, file)
        with _writer(assistant) if known else _new_store(assistant, export) as store:
            encode = None
            if (store.encoder, store.dimensions) != (export.encoder, export.dimensions):
                assistant.check_encoder()
                encode = assistant.encoder.encode
            return read_export(
                store, export, replace=replace, cold=cold, encode=encode, progress=progress
            )


def _writer(assistant: Assistant) -> MemoryStore:
    assistant.store()  # says what to do if there is none
    return assistant.open_store(write=True)


def _check_editions(export: portable.Export, file: str | Path) -> None:
    """Raise StoreError if a new store could not be made from what a file says of its memories."""
    for edition in export.editions:
        try:
            config = MemoryConfig.from_json(edition.memory)
            made = {key: edition.fingerprint.get(key, "") for key in _GIVEN}
            good = _interchangeable(fingerprint(config, **made), edition.fingerprint)
            good = good and Codec(config).record_bytes == edition.record_bytes
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
            good = False
        if not good:
            raise portable.ExportError(
                f"{file}: its memories are described in a way that contradicts itself, so the "
                f"file is forged or of another version. Import it into a store that exists."
            )
    if not export.editions:
        raise portable.ExportError(f"{file}: it names no model, so no new store can be made.")


def _new_store(assistant: Assistant, export: portable.Export) -> MemoryStore:
    first, *others = export.editions
    store = assistant.create_store(
        **vars(first), encoder=export.encoder, dimensions=export.dimensions
    )
    for edition in others:
        store.add_edition(**vars(edition))
    return store


def _interchangeable(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether memories made under two fingerprints can stand for each other."""
    return all(one.get(name) == other.get(name) for name in (one.keys() | other.keys()) - {_NAME})


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while batch := list(islice(values, _BATCH)):
        yield batch


# from a store into a file


def write_export(
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
    quarantined = store.quarantined()
    for document in documents:
        if document.path in quarantined or not document.hash:
            raise StoreError(
                f"{document.path}: this document is damaged, {quarantined.get(document.path, 0)} "
                f"of its references are in quarantine or lost. Memorize it again or forget it "
                f"first."
            )
    editions = store.editions()
    facts = {fact.id: _about(fact) for fact in store.facts(d.id for d in documents)}

    def read(which: int | None) -> Iterator[tuple[portable.Document, Iterator]]:
        for document in documents:
            slots = store.slots_of(document.id)
            tokenizer = store.references(slots[:1])[0].tokenizer
            about = (document.path, document.hash, document.size, document.added, tokenizer)
            stored = _stored(store, slots, which, editions)
            yield portable.Document(*about, len(slots), facts.get(document.id)), stored

    return portable.export(
        file,
        read,
        encoder=store.encoder,
        dimensions=store.dimensions,
        editions=[portable.Edition(e.fingerprint, e.memory, e.record_bytes) for e in editions],
        program=program,
        key=key,
    )


def _about(fact: StoredFact) -> dict[str, Any]:
    history = [[version.text, version.said, version.by] for version in fact.history]
    return {"by": fact.by, "history": history}


def _stored(
    store: MemoryStore, slots: Sequence[int], which: int | None, editions: Sequence[Edition]
) -> Iterator[portable.Reference]:
    """References with their memories of the edition ``which``, counted from 0; or with none."""
    id = None if which is None else editions[which].id
    for batch in _batches(slots):
        stored = store.references(batch, id)
        warm = [reference.slot for reference in stored if reference.warm and id is not None]
        records = dict(zip(warm, store.read(warm, id), strict=True))
        for reference in stored:
            record = records.get(reference.slot)
            yield portable.Reference(
                **{name: getattr(reference, name) for name in CONTENT},
                vector=reference.vector,
                records={} if which is None or record is None else {which: record.tobytes()},
            )


# from a file into a store


def read_export(
    store: MemoryStore,
    export: portable.Export,
    *,
    replace: bool = False,
    cold: bool = False,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Add the documents of a file to a store. What is interrupted goes on when it is repeated.

    Memories of editions that the store does not have are left out.

    Args:
        replace: whether the file wins where a path has another content in the store.
        cold: take no memories.
        encode: makes the vectors from texts if the file's are of another encoder.
    """
    run = _Import(store, export, cold, encode)
    report = run.report
    present = {document.path: document for document in store.documents() if document.complete}
    done = 0
    for document, references in export.read(run.editions):
        progress("importing", done, export.references)
        known = present.get(document.path)
        if known is not None and known.hash == document.hash:
            run.fill(store.slots_of(known.id), document, references)
            report.unchanged.append(document.path)
        elif known is None or replace:
            run.add(document, references)
            (report.replaced if known else report.added).append(document.path)
        else:
            report.kept.append(document.path)
        done += document.references
    progress("importing", export.references, export.references)
    return report


class _Import:
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
        self.report = ImportReport(embedded=encode is not None, signer=export.signer)
        self.editions = {
            number: known.id
            for number, offered in enumerate(export.editions)
            for known in store.editions()
            if not cold
            and _interchangeable(known.fingerprint, offered.fingerprint)
            and known.record_bytes == offered.record_bytes
        }
        self.bounds = {number: _bounds(store, id) for number, id in self.editions.items()}

    def add(self, document: portable.Document, references: Iterator[portable.Reference]) -> None:
        id, have = self.store.begin(
            document.path,
            document.hash,
            document.references,
            size=document.size,
            tokenizer=document.tokenizer,
            added=document.added,
        )
        if document.fact is not None:
            history = (Version(*version) for version in document.fact["history"])
            self.store.describe_fact(id, document.fact["by"], history)
        first = next(iter(self.editions), -1)  # its memories come with the references
        for batch in _batches(self._checked(islice(references, have, None))):
            vectors: Iterable[np.ndarray] = [reference.vector for reference in batch]
            if self.encode:
                vectors = self.encode([reference.text for reference in batch])
            records = [reference.records.get(first) for reference in batch]
            new = [
                NewReference.of(reference, id, ordinal, vector, record)
                for ordinal, (reference, vector, record) in enumerate(
                    zip(batch, vectors, records, strict=True), have
                )
            ]
            self.store.add(new, self.editions.get(first))
            slots = self.store.slots_of(id)[have : have + len(batch)]
            self._write(dict(zip(slots, batch, strict=True)))
            have += len(batch)
            self.report.references += len(batch)
            self.report.memories += sum(record is not None for record in records)

    def fill(
        self,
        slots: Sequence[int],
        document: portable.Document,
        references: Iterator[portable.Reference],
    ) -> None:
        """Add memories that a stored document lacks, where it was cut in the same way."""
        if len(slots) != document.references or not self.editions:
            return
        for batch, same in zip(_batches(slots), _batches(self._checked(references)), strict=True):
            stored = self.store.references(batch)
            self._write(
                {
                    known.slot: reference
                    for known, reference in zip(stored, same, strict=True)
                    if (known.tokenizer, known.tokens, known.text)
                    == (document.tokenizer, tuple(reference.tokens), reference.text)
                }
            )

    def _checked(self, references: Iterable[portable.Reference]) -> Iterator[portable.Reference]:
        """References with those of their memories that can be right."""
        for reference in references:
            records = reference.records.items()
            good = {number: data for number, data in records if _good(data, self.bounds[number])}
            self.report.refused += len(records) - len(good)
            yield dataclasses.replace(reference, records=good)

    def _write(self, references: dict[int, portable.Reference]) -> None:
        """Write the memories that references have in the file and lack in the store."""
        for number, id in self.editions.items():
            records = {
                slot: reference.records[number]
                for slot, reference in references.items()
                if number in reference.records
            }
            stored = self.store.references(records, id)
            missing = {known.slot: records[known.slot] for known in stored if not known.warm}
            if missing:
                self.store.write(missing, id)
                self.report.memories += len(missing)


def _bounds(store: MemoryStore, id: int) -> Bounds | None:
    """What memories of an edition may be; None where no model reads such memories."""
    edition = next(edition for edition in store.editions() if edition.id == id)
    try:
        codec = Codec(MemoryConfig.from_json(edition.memory))
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return Bounds(codec, store, id) if codec.record_bytes == edition.record_bytes else None


def _good(record: bytes, bounds: Bounds | None) -> bool:
    if bounds is None:
        return True
    memory = bounds.codec.unpack(np.frombuffer(record, np.uint8)[None])
    return bool(bounds.hold(memory)[0])
