"""The server's documents: list, recall, memorize, view, forget. Runs on the model thread."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
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
FOLDERS = 8  # maximum number of folders in the name of an upload
FACT = 2000  # maximum characters of a fact
PAGE = 50  # documents of a page, unless a request says how many
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


def upload_name(given: str | None, folder: str | None = None) -> str:
    """Name an upload; raises BadRequest for types that are not read.

    Args:
        given: name of the file, whose own folders are left out.
        folder: in which it was, below the folder that was dropped on the page.
    """
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
    parts = re.split(r"[/\\]", folder or "")
    places = [part for part in map(_plain, parts) if part.strip(".")]
    return f"upload:{'/'.join([*places[-FOLDERS:], name])}"


def _plain(name: str) -> str:
    return _CONTROL.sub(" ", name).strip()[-NAME:]


def collection_filter(collection: str | None) -> Filter | None:
    """Return a filter for one collection; None for all documents."""
    return None if collection is None else Filter(collection)


def stored(assistant: Assistant, collection: str | None = None) -> list[StoredDocument]:
    """Return all documents, or those of a collection; none where there is no store."""
    found = assistant.documents() if assistant.has_store() else []
    return [d for d in found if collection is None or d.collection == collection]


def list_documents(assistant: Assistant, collection: str | None = None) -> list[dict[str, Any]]:
    """List all documents, or those of a collection; none where there is no store."""
    return [_document_json(document) for document in stored(assistant, collection)]


def plain_name(path: str) -> str:
    """Return the last part of a document's path, without what tells where it came from."""
    return re.sub(r"^(upload|text|demo|chat|fact):", "", path).replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True)
class Listing:
    """Which documents a page of the list shows, and in which order.

    Attributes:
        words: that the path contains, all of them, whatever their case.
        only: what else is known of them.
        sort: "newest", "oldest", "name" or "largest" first.
    """

    words: tuple[str, ...] = ()
    only: Filter = field(default_factory=Filter)
    sort: str = "newest"
    offset: int = 0
    limit: int = PAGE

    @classmethod
    def of(cls, query: Mapping[str, str], collection: str | None) -> Listing | None:
        """Parse the query of a request; None where it asks for the whole list.

        Raises:
            BadRequest: a value is none that is known.
        """
        if not query.keys() & {"limit", "offset", "q", "type", "since", "sort"}:
            return None
        sort, since = query.get("sort", "newest"), query.get("since")
        if sort not in _ORDERS:
            raise BadRequest(f"sort is one of {', '.join(_ORDERS)}.", "sort")
        try:
            offset, limit = int(query.get("offset", 0)), int(query.get("limit", PAGE))
            if since is not None:
                moment = datetime.fromisoformat(since)
                moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
                since = moment.isoformat(timespec="seconds")
        except ValueError as error:
            message = "offset and limit are numbers, since is a time in ISO 8601."
            raise BadRequest(message, "since") from error
        if offset < 0 or limit < 1:
            raise BadRequest("offset is at least 0, limit at least 1.", "limit")
        kinds = (query["type"],) if query.get("type") else ()
        only = Filter(collection, types=kinds, since=since)
        return cls(tuple(query.get("q", "").casefold().split()), only, sort, offset, limit)

    @property
    def wants_all(self) -> bool:
        return not self.words and self.only == Filter()

    def matches(self, document: StoredDocument) -> bool:
        path = document.path.casefold()
        return all(word in path for word in self.words) and self.only.matches(
            document.path, document.collection, document.added
        )


_ORDERS: dict[str, tuple[Callable[[StoredDocument], Any], bool]] = {
    "newest": (lambda document: (document.added, document.id), True),
    "oldest": (lambda document: (document.added, document.id), False),
    "name": (lambda document: (plain_name(document.path).casefold(), document.id), False),
    "largest": (lambda document: (document.references, document.size or 0), True),
}


class DocumentList:
    """The documents of the store, which are read again only after they have changed.

    Args:
        collection: that the server is restricted to.
    """

    def __init__(self, collection: str | None = None) -> None:
        self._collection = collection
        self._moment: tuple[object, ...] = ()
        self._every: list[StoredDocument] = []
        self._counts: dict[str, dict[str, int]] = {}

    def page(self, assistant: Assistant, listing: Listing) -> dict[str, Any]:
        """Return a page of the list, with what the filters can be."""
        found = every = self.documents(assistant)
        if not listing.wants_all:
            found = list(filter(listing.matches, found))
        key, backwards = _ORDERS[listing.sort]
        found = sorted(found, key=key, reverse=backwards)
        shown = found[listing.offset : listing.offset + listing.limit]
        data = list(map(_document_json, shown))
        counts = {"total": len(found), "all": len(every), **self._counts}
        return {"object": "list", "data": data, **counts}

    def documents(self, assistant: Assistant) -> list[StoredDocument]:
        """Return all of them, by id."""
        moment = assistant.store().moment() if assistant.has_store() else ()
        if moment and moment == self._moment:
            return self._every
        self._moment, self._every = moment, stored(assistant, self._collection)
        kinds = Counter(os.path.splitext(each.path)[1].lower()[1:] for each in self._every)
        collections = Counter(each.collection for each in self._every)
        self._counts = {
            "types": {kind: number for kind, number in kinds.most_common() if kind},
            "collections": dict(sorted(collections.items())),
        }
        return self._every

    def quotes(
        self, assistant: Assistant, wanted: Sequence[tuple[int, int]]
    ) -> list[dict[str, Any] | None]:
        """Return path and text of references, as document and start; None where one is gone."""
        asked = {id for id, _ in wanted}
        paths = {each.id: each.path for each in self.documents(assistant) if each.id in asked}
        texts: dict[tuple[int, int], str] = {}
        for id in paths:
            store = assistant.store()
            for reference in store.references(store.slots_of(id)):
                texts[id, reference.start] = reference.text
        return [
            {"path": paths[id], "text": texts[id, start]} if (id, start) in texts else None
            for id, start in wanted
        ]


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
    known = {document.id for document in (stored(assistant) if contents else ())}
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
        begun = [d for d in stored(assistant) if contents and d.path in contents]
        partial = [str(d.id) for d in begun if d.id not in known and not d.complete]
        if partial:
            assistant.forget(partial)
        raise
    if contents and len(contents) == 1 and report.failed:
        raise report.failed[0]
    failed = [{"path": error.path, "reason": error.reason} for error in report.failed]
    names = "added changed unchanged references bytes seconds"
    yield {**_fields(report, names), "failed": failed}


def remember(assistant: Assistant, fact: str, by: str, keep_both: bool) -> dict[str, Any]:
    """Memorize a fact at once; tell what it replaces."""
    done = assistant.remember(fact, by=by, keep_both=keep_both)
    replaces = [_fields(each, "text said by") for each in done.replaced]
    return {**_fields(done.fact, "id path text said by"), "replaces": replaces, "known": done.known}


def _require(id: int, there: Collection[int]) -> None:
    """Raise BadRequest if a document is not among those that there are."""
    if id not in there:
        raise BadRequest(f"There is no document {id}.", "id", "not_found", 404)


def view(assistant: Assistant, id: int, start: int | None, collection: str | None) -> str:
    """Return the HTML page of a document's memories, or of the reference that starts there."""
    _require(id, {document.id for document in stored(assistant, collection)})
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
    assistant: Assistant, ids: Sequence[int], verify: bool, collection: str | None = None
) -> dict[str, Any]:
    """Erase documents; with ``verify`` also search for traces of them."""
    there = {document.id for document in stored(assistant, collection)}
    for id in ids:
        _require(id, there)
    report = assistant.forget(map(str, ids), verify=verify)
    return {
        "forgotten": [_document_json(document) for document in report.documents],
        "found": None if report.remnants is None else [asdict(each) for each in report.remnants],
        "certificate": report.certificate,
    }
