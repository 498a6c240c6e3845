"""Which memories of a store are those of the present model, and how they are made without files.

A store keeps memories of several models and ways of writing side by side, as editions that share
documents, text and vectors. Text was cut into references by the tokenizer of the model that read
the file. Another model gets the same references: its token ids are made from the text, and where
they are more than 128, its edition is given a longer interval of positions, up to the 255 that a
record can tell apart. What is longer still is remembered by its beginning, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..config import MemoryConfig, Progress, no_progress
from ..errors import FingerprintError
from ..store import Edition, MemoryStore, StoredReference
from .run import BATCH

if TYPE_CHECKING:
    from ..memory.format import MemoryFormat
    from ..models.decoder import Decoder

LONGEST = 255  # tokens of a reference that positions of a byte can tell apart


@dataclass
class RebuildReport:
    """What was made from the stored text.

    Attributes:
        references: number of memories written.
        bytes: size of their records.
        shortened: how many of them have more tokens for this model than a memory can hold, so
            that only their beginning is remembered.
        seconds: time taken.
    """

    references: int = 0
    bytes: int = 0
    shortened: int = 0
    seconds: float = 0.0


def find(
    store: MemoryStore,
    options: Mapping[str, object],
    conditions: Callable[[MemoryConfig], Mapping[str, str]],
) -> Edition:
    """Find the first edition whose memories are made as asked, by the present model.

    Args:
        options: fields of the memory configuration that the user asked for.
        conditions: fingerprint that the present model gives memories of a configuration.

    Raises:
        FingerprintError: there is none; it names what differs from the nearest, and what to do.
    """
    nearest: list[tuple[str, object, object]] = []
    for edition in store.editions():
        config = MemoryConfig.from_json(edition.memory)
        differing = [
            (name, getattr(config, name), value)
            for name, value in options.items()
            if getattr(config, name) != value
        ]
        differing += [
            (name, edition.fingerprint.get(name, "none"), value)
            for name, value in conditions(config).items()
            if edition.fingerprint.get(name) != value
        ]
        if not differing:
            return edition
        if not nearest or len(differing) < len(nearest):
            nearest = differing
    name, found, wanted = nearest[0]
    plain = ", here with --adapter-path none" if name == "adapter" and not found else ""
    raise FingerprintError(
        f"{store.path}: its memories were made with another {name} ({found or 'none'!s:.40} "
        f"instead of {wanted or 'none'!s:.40}). Use the model and settings they were made with"
        f"{plain} (m3mlx status shows them), or run `m3mlx memorize --rebuild "
        f"--store {store.path}` with the present ones: it makes new memories beside the old, "
        f"without the files."
    )


def description(format: MemoryFormat) -> dict[str, Any]:
    """What a store must know of memories that it keeps, as arguments of ``add_edition``."""
    return {
        "fingerprint": format.fingerprint(),
        "memory": format.config.to_json(),
        "record_bytes": format.record_bytes,
    }


def fitted(
    config: MemoryConfig, store: MemoryStore, decoder: Decoder, progress: Progress | None
) -> MemoryConfig:
    """A configuration whose interval of positions has room for what other models have cut."""
    longest, done, total = config.reference_tokens, 0, store.status()["references"]
    for references in _batches(store.slots, store):
        longest = max([longest, *(len(_tokens(reference, decoder)) for reference in references)])
        done += len(references)
        (progress or no_progress)("counting tokens", done, total)
    return replace(config, reference_tokens=min(longest, LONGEST))


def rebuild(
    store: MemoryStore, edition: int, format: MemoryFormat, progress: Progress | None
) -> RebuildReport:
    """Write all memories that an edition lacks. Each batch is one commit."""
    start, done = perf_counter(), RebuildReport()
    total = store.status(edition=edition)["cold"]
    for references in _batches(partial(store.cold, edition=edition), store):
        _rewrite(store, edition, format, references, done)
        (progress or no_progress)("making memories", done.references, total)
    done.seconds = perf_counter() - start
    return done


def rewrite(store: MemoryStore, edition: int, format: MemoryFormat, slots: Sequence[int]) -> None:
    """Write memories of some references anew; references that are gone are left out."""
    for start in range(0, len(slots), BATCH):
        if references := store.references(slots[start : start + BATCH]):
            _rewrite(store, edition, format, references, RebuildReport())


def _tokens(reference: StoredReference, decoder: Decoder) -> Sequence[int]:
    """A stored reference in the tokens of a decoder, which may be more than 128."""
    if reference.tokenizer == decoder.tokenizer_hash:
        return reference.tokens
    return decoder.tokenize(reference.text)[0]


def _rewrite(
    store: MemoryStore,
    edition: int,
    format: MemoryFormat,
    references: Sequence[StoredReference],
    done: RebuildReport,
) -> None:
    ids = [_tokens(reference, format.decoder) for reference in references]
    done.shortened += sum(len(tokens) > format.config.reference_tokens for tokens in ids)
    records = format.write(ids)
    slots = [reference.slot for reference in references]
    memories = {s: record.tobytes() for s, record in zip(slots, records, strict=True)}
    store.write(memories, edition=edition)
    done.references += len(slots)
    done.bytes += records.nbytes


def _batches(
    slots: Callable[[int, int], list[int]], store: MemoryStore
) -> Iterator[list[StoredReference]]:
    """References, a batch at a time, in the order of their slots."""
    last = -1
    while page := slots(last, BATCH):
        last = page[-1]
        yield store.references(page)
