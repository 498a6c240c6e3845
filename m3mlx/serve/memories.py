"""What clients may do with documents: list, add, find, forget. All of it on the owner's thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from .. import documents
from ..assistant import Assistant
from ..inspect.document import inspect_document
from ..inspect.page import kept_page
from ..memorize.run import MemorizeReport
from ..store import Filter, Hit, StoredDocument
from .errors import BadRequest
from .owner import Job

TITLE = 80  # characters of a title that is made from the text
NAME = 200  # characters of a name
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069/\\]+")


def document_json(document: StoredDocument) -> dict[str, Any]:
    warm = document.warm == document.references
    state = ("warm" if warm else "cold") if document.complete else "partial"
    keys = ("id", "path", "references", "bytes", "added", "size", "collection")
    return {**{key: getattr(document, key) for key in keys}, "state": state}


def hit_json(hit: Hit) -> dict[str, Any]:
    keys = ("document", "path", "start", "end", "page", "line", "text", "distance", "store")
    return {key: getattr(hit, key) for key in keys}


def memorized_json(done: MemorizeReport) -> dict[str, Any]:
    keys = ("added", "changed", "unchanged", "references", "bytes", "seconds")
    failed = [{"path": error.path, "reason": error.reason} for error in done.failed]
    return {**{key: getattr(done, key) for key in keys}, "failed": failed}


def text_name(text: str, title: str | None) -> str:
    """The name of a text that is no file: its title, or how it begins."""
    title = title or next((line for line in text.splitlines() if line.strip()), "")[:TITLE]
    return f"text:{_plain(title) or 'untitled'}"


def upload_name(given: str | None) -> str:
    """The name of an upload, without folders.

    Raises:
        BadRequest: it is of a type that is not read.
    """
    name = _plain(PurePosixPath((given or "").replace("\\", "/")).name)
    form = documents.format_of(Path(name))
    if not name or form is None:
        raise BadRequest(
            f"{name or 'A file without a name'}: files of this type are not read. Give it a name "
            f"that tells its type, such as notes.md.",
            *("file", "unsupported_type", 415),
        )
    if name.lower().endswith(".mbox"):
        raise BadRequest(
            f"{name}: mailboxes are read from a folder only (--root).",
            *("file", "unsupported_type", 415),
        )
    return f"upload:{name}"


def _plain(name: str) -> str:
    return _CONTROL.sub(" ", name).strip()[-NAME:]


def within(collection: str | None) -> Filter | None:
    """Search one collection alone; None for all documents."""
    return None if collection is None else Filter(collection)


def _documents(assistant: Assistant, collection: str | None) -> list[StoredDocument]:
    if not assistant.has_store():
        return []
    found = assistant.documents()
    return [d for d in found if collection is None or d.collection == collection]


def listed(assistant: Assistant, collection: str | None = None) -> list[dict[str, Any]]:
    """All documents, or those of a collection; none where there is no store."""
    return [document_json(document) for document in _documents(assistant, collection)]


def status(assistant: Assistant) -> dict[str, Any]:
    """What the store holds; all counts are 0 where there is none."""
    if not assistant.has_store():
        return {"documents": 0, "references": 0, "cold": 0, "bytes": {}}
    state = assistant.status()
    keys = ("documents", "references", "cold", "quarantined", "bytes", "max_bytes", "encrypted")
    return {key: state[key] for key in keys}


def recall(
    assistant: Assistant, query: str, k: int, collection: str | None = None
) -> list[dict[str, Any]]:
    if not assistant.has_store():
        return []
    return [hit_json(hit) for hit in assistant.recall(query, k, only=within(collection))]


def _drop(assistant: Assistant, names: Iterable[str], known: set[int]) -> None:
    """Erase documents that were begun and will never be complete, since their source is gone."""
    if assistant.has_store():
        names = set(names)
        begun = [
            str(document.id)
            for document in assistant.documents()
            if document.path in names and document.id not in known and not document.complete
        ]
        if begun:
            assistant.forget(begun)


def memorize_paths(
    assistant: Assistant, job: Job, paths: list[Path], collection: str | None = None
) -> Iterator[dict[str, Any]]:
    """Memorize files and folders that have been found to lie inside the roots."""
    done = assistant.memorize(
        paths,
        collection=collection,
        progress=job.progress,
        between_batches=job.between_batches,
    )
    yield memorized_json(done)


def memorize_contents(
    assistant: Assistant, job: Job, contents: Mapping[str, bytes], collection: str | None = None
) -> Iterator[dict[str, Any]]:
    """Memorize texts and uploads. Of one that is given up on the way nothing stays.

    Raises:
        DocumentError: the only one cannot be read.
    """
    known = {d.id for d in assistant.documents()} if assistant.has_store() else set()
    try:
        done = assistant.memorize(
            contents=contents,
            collection=collection,
            progress=job.progress,
            between_batches=job.between_batches,
        )
    except BaseException:
        _drop(assistant, contents, known)
        raise
    if done.failed and len(contents) == 1:
        raise done.failed[0]
    yield memorized_json(done)


def require(assistant: Assistant, id: int, collection: str | None) -> None:
    """Raise BadRequest if there is no document of that number, in a collection if one is given."""
    if id not in {document.id for document in _documents(assistant, collection)}:
        raise BadRequest(f"There is no document {id}.", "id", "not_found", 404)


def view(assistant: Assistant, id: int, start: int | None, collection: str | None) -> str:
    """The page of what is kept of a document, or of its reference that starts there.

    Raises:
        BadRequest: there is no such document or reference.
    """
    require(assistant, id, collection)
    store = assistant.store()
    starts = {}
    for number, slot in enumerate(store.slots_of(id), 1):
        starts.update((reference.start, number) for reference in store.references([slot]))
    if start is not None and start not in starts:
        raise BadRequest(f"Document {id} has no reference that starts at {start}.", "start")
    return kept_page(
        inspect_document(assistant, str(id) if start is None else f"{id}#{starts[start]}")
    )


def forget(
    assistant: Assistant, id: int, verify: bool, collection: str | None = None
) -> dict[str, Any]:
    """Erase one document.

    Raises:
        BadRequest: there is none of that number.
    """
    require(assistant, id, collection)
    gone = assistant.forget([str(id)], verify=verify)
    residue = None if gone.remnants is None else [asdict(left) for left in gone.remnants]
    return {
        "forgotten": [document_json(document) for document in gone.documents],
        "found": residue,
        "certificate": gone.certificate,
    }
