"""Editions: find the memories of the present model in a store, and make them without the files.

A store keeps memories of several models and settings side by side, as editions that share
documents, text and vectors. The tokenizer of the model that read a file cut it into references.
Another model gets the same references, with token ids made from their text. Where these are more
than 128, its edition gets a longer interval of positions, up to the 255 that a record can hold.
Of longer references only the beginning is remembered; they are counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MemoryConfig, Progress
from ..errors import FingerprintError
from ..models import rates
from ..store import Edition, Hit, MemoryStore, StoredDocument

if TYPE_CHECKING:
    from ..memory.format import MemoryFormat
    from ..models.decoder import Decoder

BATCH = 16  # references written and committed together
UNLOCKED = 0.06  # seconds to leave between two batches; other writers try every 0.05
_FIRST = 4  # references in the first batch; more follow where that is quick
_SHORT, _LONG = 0.5, 2.0  # seconds of a batch; nobody waits longer for Ctrl-C, or to write
LONGEST = 255  # tokens of a reference, as positions are bytes


@dataclass
class RebuildReport:
    """Result of making memories from stored text."""

    references: int = 0  # memories written
    bytes: int = 0  # size of their records
    shortened: int = 0  # references cut, as this model has more tokens for them than fit
    seconds: float = 0.0
    full: bool = False  # the store's size is limited, and others would have to go


def find(
    store: MemoryStore,
    decoder: Decoder,
    wanted: Mapping[str, object] | None = None,
    *,
    config: MemoryConfig | None = None,
) -> Edition:
    """Find the first edition whose memories the present model would make alike.

    Args:
        wanted: fields of the memory configuration that the user asked for.
        config: the whole memory configuration, if it must be this one.

    Raises:
        FingerprintError: there is none; names a difference from the nearest, and what to do.
    """
    from ..memory.format import conditions

    nearest: list[tuple[str, object, object]] = []
    for edition in store.editions():
        known = MemoryConfig.from_json(edition.memory)
        compared = [(name, getattr(known, name), value) for name, value in (wanted or {}).items()]
        compared += [
            (name, edition.fingerprint.get(name, "none"), value)
            for name, value in conditions(decoder, config or known).items()
        ]
        differing = [(name, found, value) for name, found, value in compared if found != value]
        if not differing:
            return edition
        made_by = edition.fingerprint.get("model", decoder.name)
        if differing[0][0] == "weights" and made_by != decoder.name:  # names say more than hashes
            differing[0] = ("weights", made_by, decoder.name)
        if not nearest or len(differing) < len(nearest):
            nearest = differing
    name, found, value = nearest[0]
    plain = ", here with --adapter-path none" if name == "adapter" and not found else ""
    raise FingerprintError(
        f"{store.path}: its memories were made with another {name} ({found or 'none'!s:.80} "
        f"instead of {value or 'none'!s:.80}). Use the model and settings they were made with"
        f"{plain} (m3mlx status shows them), or run `m3mlx memorize --rebuild "
        f"--store {store.path}` with the present ones: it makes new memories beside the old, "
        f"without the files."
    )


def description(format: MemoryFormat) -> dict[str, Any]:
    """Describe a format to a store, as arguments of ``MemoryStore.add_edition``."""
    return {
        "fingerprint": format.fingerprint(),
        "memory": format.config.to_json(),
        "record_bytes": format.record_bytes,
    }


def widen(
    config: MemoryConfig, store: MemoryStore, decoder: Decoder, progress: Progress
) -> MemoryConfig:
    """Return a configuration with enough positions for references that other models have cut."""
    longest, done, total = config.reference_tokens, 0, store.status()["references"]
    for slots in _pages(store.slots):
        longest = max(
            [longest, *(len(decoder.tokenize(r.text)[0]) for r in store.references(slots))]
        )
        done += len(slots)
        progress("counting tokens", done, total)
    return replace(config, reference_tokens=min(longest, LONGEST))


def order(store: MemoryStore, edition: int, paths: Collection[str] | None = None) -> list[int]:
    """Return the slots whose memories an edition lacks, those likely to be asked about first.

    The first reference of each document tells what it is about, so all of those come first, those
    of the files that changed last before others; then all second ones, and so on.

    Args:
        paths: of the documents to look at; None for all.
    """
    cold = {slot for page in _pages(partial(store.cold, edition=edition)) for slot in page}
    if not cold:
        return []
    documents = [
        document
        for document in store.documents(edition)
        if document.complete
        and document.warm < document.references
        and (paths is None or document.path in paths)
    ]
    documents.sort(key=_changed, reverse=True)
    found = [
        (ordinal, rank, slot)
        for rank, document in enumerate(documents)
        for ordinal, slot in enumerate(store.slots_of(document.id))
        if slot in cold
    ]
    return [slot for _, _, slot in sorted(found)]


def _changed(document: StoredDocument) -> float:
    """When a document's file changed last, in seconds; when it was memorized, without a file."""
    try:
        return os.stat(document.path).st_mtime
    except OSError:
        return datetime.fromisoformat(document.added).timestamp()


def rebuild(
    open_store: Callable[[], MemoryStore],
    edition: int,
    format: MemoryFormat,
    progress: Progress,
    slots: Sequence[int],
    *,
    batch: int = BATCH,
    drop: bool = False,
) -> Iterator[RebuildReport]:
    """Write the memories of some slots of an edition; yield the report after each batch.

    Each batch is one commit, and between two of them the store is unlocked. Slots without a
    reference are skipped. Batches are as large as a second or two allows.

    Args:
        batch: most references in one.
        open_store: opens the store for writing.
        drop: where the store's size is limited, go on when it is full, so that others are dropped.
    """
    report, tokens = RebuildReport(), 0
    try:
        start, size = 0, min(batch, _FIRST)
        while start < len(slots):
            began = perf_counter()
            page = slots[start : start + size]
            start += size
            with open_store() as store:
                if not drop and _is_full(store, edition, size):
                    report.full = True
                    break
                references = store.references(page)
                # never the stored ids: those of an import need not be of this text
                ids = [format.decoder.tokenize(reference.text)[0] for reference in references]
                if not ids:
                    continue
                records = format.write(ids)
                written = zip(references, records, strict=True)
                store.write({r.slot: record.tobytes() for r, record in written}, edition=edition)
            took = perf_counter() - began
            report.references += len(references)
            report.bytes += records.nbytes
            report.shortened += sum(len(i) > format.config.reference_tokens for i in ids)
            report.seconds += took
            tokens += sum(map(len, ids))
            name = os.path.basename(references[-1].path)
            counts = f"{report.references} of {len(slots)}"
            progress(f"writing memories: {name}, {counts}", min(start, len(slots)), len(slots))
            yield report
            if took < _SHORT:
                size = min(2 * size, batch)
            elif took > _LONG:
                size = max(size // 2, 2)
        if report.full:
            yield report
    finally:
        progress("writing memories", 1, 1)
        rates.note(format.decoder.name, "writing", tokens, report.seconds)


def _is_full(store: MemoryStore, edition: int, count: int) -> bool:
    """Return whether so many memories more would drop others, as the store's size is limited."""
    state = store.status(edition)
    if not state["max_bytes"]:
        return False
    record = max(known["record_bytes"] for known in state["editions"] if known["id"] == edition)
    return sum(state["bytes"].values()) + count * record > state["max_bytes"]


def records_of(hits: Sequence[Hit], format: MemoryFormat) -> dict[Hit, np.ndarray]:
    """Make the memories of hits: a record, uint8 (record_bytes,), for each."""
    records: dict[Hit, np.ndarray] = {}
    for start in range(0, len(hits), BATCH):
        part = hits[start : start + BATCH]
        ids = [format.decoder.tokenize(hit.text)[0] for hit in part]
        records.update(zip(part, format.write(ids), strict=True))
    return records


def _pages(slots: Callable[[int, int], list[int]]) -> Iterator[list[int]]:
    """Yield slots in order, a batch at a time, from a function of the last slot and a count."""
    last = -1
    while page := slots(last, BATCH):
        last = page[-1]
        yield page
