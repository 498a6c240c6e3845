"""Editions: find the memories of the present model in a store, and make them without the files.

A store keeps memories of several models and settings side by side, as editions that share
documents, text and vectors. The tokenizer of the model that read a file cut it into references.
Another model gets the same references, with token ids made from their text. Where these are more
than 128, its edition gets a longer interval of positions, up to the 255 that a record can hold.
Of longer references only the beginning is remembered; they are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MemoryConfig, Progress
from ..errors import FingerprintError
from ..store import Edition, Hit, MemoryStore
from .run import BATCH

if TYPE_CHECKING:
    from ..memory.format import MemoryFormat
    from ..models.decoder import Decoder

LONGEST = 255  # tokens of a reference, as positions are bytes


@dataclass
class RebuildReport:
    """Result of making memories from stored text."""

    references: int = 0  # memories written
    bytes: int = 0  # size of their records
    shortened: int = 0  # references cut, as this model has more tokens for them than fit
    seconds: float = 0.0


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
        if not nearest or len(differing) < len(nearest):
            nearest = differing
    name, found, value = nearest[0]
    plain = ", here with --adapter-path none" if name == "adapter" and not found else ""
    raise FingerprintError(
        f"{store.path}: its memories were made with another {name} ({found or 'none'!s:.40} "
        f"instead of {value or 'none'!s:.40}). Use the model and settings they were made with"
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


def new_format(
    config: MemoryConfig, store: MemoryStore, decoder: Decoder, progress: Progress
) -> MemoryFormat:
    """Return a format with enough positions for references that other models have cut."""
    from ..memory.format import MemoryFormat

    longest, done, total = config.reference_tokens, 0, store.status()["references"]
    for slots in _pages(store.slots):
        longest = max(
            [longest, *(len(decoder.tokenize(r.text)[0]) for r in store.references(slots))]
        )
        done += len(slots)
        progress("counting tokens", done, total)
    return MemoryFormat(decoder, replace(config, reference_tokens=min(longest, LONGEST)))


def rebuild(
    store: MemoryStore,
    edition: int,
    format: MemoryFormat,
    progress: Progress,
    slots: Sequence[int] | None = None,
) -> RebuildReport:
    """Write the memories of some slots of an edition, or all that it lacks.

    Each batch is one commit. Slots without a reference are skipped.
    """
    start, report = perf_counter(), RebuildReport()
    pages: Iterable[Sequence[int]] = _pages(partial(store.cold, edition=edition))
    if slots is not None:
        pages = (slots[i : i + BATCH] for i in range(0, len(slots), BATCH))
    total = store.status(edition=edition)["cold"] if slots is None else len(slots)
    for page in pages:
        if references := store.references(page):
            # never the stored ids: those of an import need not be of this text
            ids = [format.decoder.tokenize(reference.text)[0] for reference in references]
            records = format.write(ids)
            written = zip(references, records, strict=True)
            store.write({r.slot: record.tobytes() for r, record in written}, edition=edition)
            report.references += len(references)
            report.bytes += records.nbytes
            report.shortened += sum(len(i) > format.config.reference_tokens for i in ids)
            progress("making memories", report.references, total)
    report.seconds = perf_counter() - start
    return report


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
