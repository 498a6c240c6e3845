"""Carry documents with their memories from one store to another, in one file.

The same model reads the memories as they are. For another model text and vectors arrive, and each
memory is written at its first use; another encoder makes the vectors anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..assistant import Assistant
from ..config import MemoryConfig, Progress, fingerprint, no_progress
from ..errors import StoreError
from ..memory.codec import Codec
from ..store import MemoryStore
from . import portable, signature
from .merge import ImportReport, receive, same_conditions, send

_GIVEN = ("weights", "tokenizer", "rope", "adapter")  # of a fingerprint, not by configuration


@dataclass
class ExportReport:
    """What was written to a file: counts, its bytes, and the public key of who signed it."""

    file: str
    documents: int
    references: int
    memories: int
    bytes: int
    signer: str | None


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
    with _open(assistant) as store:
        chosen = list(names)
        documents = store.find_documents(chosen) if chosen else store.documents()
        whole = [document for document in documents if document.complete]
        program = f"m3mlx {__version__}"
        counts = send(store, file, whole, program=program, key=private)
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
        known = MemoryStore.exists(assistant.store_path)
        if not known:
            _check_editions(export, file)
        with _open(assistant) if known else _new_store(assistant, export) as store:
            same = (store.encoder, store.dimensions) == (export.encoder, export.dimensions)
            if not same:
                assistant.check_encoder()
            return receive(
                store,
                export,
                replace=replace,
                cold=cold,
                encode=None if same else assistant.encoder.encode,
                progress=progress,
            )


def _check_editions(export: portable.Export, file: str | Path) -> None:
    """Raise StoreError if a new store could not be made from what a file says of its memories."""
    for edition in export.editions:
        try:
            config = MemoryConfig.from_json(edition.memory)
            made = {key: edition.fingerprint.get(key, "") for key in _GIVEN}
            good = same_conditions(fingerprint(config, **made), edition.fingerprint)
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


def _open(assistant: Assistant) -> MemoryStore:
    assistant.store()  # says what to do if there is none
    return assistant.open_store(write=True)


def _new_store(assistant: Assistant, export: portable.Export) -> MemoryStore:
    first, *others = export.editions
    store = assistant.create_store(
        fingerprint=first.fingerprint,
        memory=first.memory,
        encoder=export.encoder,
        dimensions=export.dimensions,
        record_bytes=first.record_bytes,
    )
    for edition in others:
        store.add_edition(**vars(edition))
    return store
