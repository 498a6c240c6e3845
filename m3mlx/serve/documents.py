"""The server's documents: list, recall, memorize, view, forget. Runs on the model thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from ..assistant import Assistant
from ..documents import format_of
from ..inspect.document import inspect_document
from ..inspect.page import kept_page
from ..store import Filter, StoredDocument
from .errors import BadRequest
from .model_thread import Job

TITLE = 80  # maximum characters of a title taken from the text
NAME = 200  # maximum characters of a name
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069/\\]+")


def _fields(value: object, names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names.split()}


def _document_json(document: StoredDocument) -> dict[str, Any]:
    warm = document.warm == document.references
    state = ("warm" if warm else "cold") if document.complete else "partial"
    names = "id path references bytes added size collection"
    return {**_fields(document, names), "state": state}


def text_contents(text: str, title: str | None) -> dict[str, bytes]:
    """Return a text as UTF-8, by a name made of its title or its first line."""
    title = title or next((line for line in text.splitlines() if line.strip()), "")[:TITLE]
    return {f"text:{_plain(title) or 'untitled'}": text.encode("utf-8", "replace")}


def upload_name(given: str | None) -> str:
    """Name an upload, without folders; raises BadRequest for types that are not read."""
    name = _plain(PurePosixPath((given or "").replace("\\", "/")).name)
    reason = None
    form = format_of(Path(name))
    if form is None or form.guessed:
        reason = (
            "files of this type are not read. Give it a name that tells its type, such as notes.md."
        )
    if reason:
        message = f"{name or 'A file without a name'}: {reason}"
        raise BadRequest(message, "file", "unsupported_type", 415)
    return f"upload:{name}"


def _plain(name: str) -> str:
    return _CONTROL.sub(" ", name).strip()[-NAME:]


def collection_filter(collection: str | None) -> Filter | None:
    """Return a filter for one collection; None for all documents."""
    return None if collection is None else Filter(collection)


def _stored(assistant: Assistant, collection: str | None = None) -> list[StoredDocument]:
    found = assistant.documents() if assistant.has_store() else []
    return [d for d in found if collection is None or d.collection == collection]


def list_documents(assistant: Assistant, collection: str | None = None) -> list[dict[str, Any]]:
    """List all documents, or those of a collection; none where there is no store."""
    return [_document_json(document) for document in _stored(assistant, collection)]


def status(assistant: Assistant) -> dict[str, Any]:
    """Count what the store holds; 0 where there is none."""
    if not assistant.has_store():
        return {"documents": 0, "references": 0, "cold": 0, "bytes": {}}
    state = assistant.status()
    names = ("documents", "references", "cold", "quarantined", "bytes", "max_bytes", "encrypted")
    return {name: state[name] for name in names}


def recall(
    assistant: Assistant, query: str, k: int, collection: str | None = None
) -> list[dict[str, Any]]:
    """Return the references that fit a query best; none where there is no store."""
    only = collection_filter(collection)
    hits = assistant.recall(query, k, only=only) if assistant.has_store() else []
    names = "document path start end page line text distance store"
    return [_fields(hit, names) for hit in hits]


def memorize(
    assistant: Assistant,
    job: Job,
    *,
    paths: Iterable[Path] = (),
    contents: Mapping[str, bytes] | None = None,
    collection: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Store files and folders, or texts and uploads by name; yield the report.

    Memories are written at their first use, or while nothing is asked. Texts and uploads that are
    cancelled half way are erased again, since their source is gone.

    Args:
        paths: have been checked to lie inside the roots.

    Raises:
        DocumentError: the only text or upload cannot be read.
    """
    known = {document.id for document in (_stored(assistant) if contents else ())}
    try:
        report = assistant.memorize(
            paths,
            contents=contents,
            collection=collection,
            cold=True,
            progress=job.progress,
            between_batches=job.between_batches,
        )
    except BaseException:
        begun = [d for d in _stored(assistant) if contents and d.path in contents]
        partial = [str(d.id) for d in begun if d.id not in known and not d.complete]
        if partial:
            assistant.forget(partial)
        raise
    if contents and len(contents) == 1 and report.failed:
        raise report.failed[0]
    failed = [{"path": error.path, "reason": error.reason} for error in report.failed]
    names = "added changed unchanged references bytes seconds"
    yield {**_fields(report, names), "failed": failed}


def _require(assistant: Assistant, id: int, collection: str | None) -> None:
    """Raise BadRequest if there is no such document, or not in the collection."""
    if id not in {document.id for document in _stored(assistant, collection)}:
        raise BadRequest(f"There is no document {id}.", "id", "not_found", 404)


def view(assistant: Assistant, id: int, start: int | None, collection: str | None) -> str:
    """Return the HTML page of a document's memories, or of the reference that starts there."""
    _require(assistant, id, collection)
    name = str(id)
    if start is not None:
        store = assistant.store()
        numbers = {slot: number for number, slot in enumerate(store.slots_of(id), 1)}
        starts = {each.start: numbers[each.slot] for each in store.references(numbers)}
        if start not in starts:
            raise BadRequest(f"Document {id} has no reference that starts at {start}.", "start")
        name = f"{id}#{starts[start]}"
    return kept_page(inspect_document(assistant, name))


def forget(
    assistant: Assistant, id: int, verify: bool, collection: str | None = None
) -> dict[str, Any]:
    """Erase one document; with ``verify`` also search for traces of it."""
    _require(assistant, id, collection)
    report = assistant.forget([str(id)], verify=verify)
    return {
        "forgotten": [_document_json(document) for document in report.documents],
        "found": None if report.remnants is None else [asdict(each) for each in report.remnants],
        "certificate": report.certificate,
    }
