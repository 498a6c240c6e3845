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
from time import perf_counter

import numpy as np

from ..config import MemoryConfig, Progress
from ..errors import FingerprintError
from ..store import Edition, MemoryStore, StoredReference
from .run import BATCH

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


def use(
    store: MemoryStore,
    options: Mapping[str, object],
    conditions: Callable[[MemoryConfig], Mapping[str, str]],
) -> Edition:
    """Take the first edition into use whose memories are made as asked, by the present model.

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
            if edition.id != store.edition.id:
                store.use(edition.id)
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


def token_ids(
    reference: StoredReference, tokenizer: str, tokenize: Callable[[str], Sequence[int]]
) -> Sequence[int]:
    """A stored reference in the tokens of a tokenizer, which may be more than 128."""
    return reference.tokens if reference.tokenizer == tokenizer else tokenize(reference.text)


def fitted(
    config: MemoryConfig,
    store: MemoryStore,
    tokenizer: str,
    tokenize: Callable[[str], Sequence[int]],
    progress: Progress,
) -> MemoryConfig:
    """A configuration whose interval of positions has room for what other models have cut."""
    longest, done, total = config.reference_tokens, 0, store.status()["references"]
    for references in _pages(store.slots, store):
        longest = max([longest, *(len(token_ids(r, tokenizer, tokenize)) for r in references)])
        done += len(references)
        progress("counting tokens", done, total)
    return replace(config, reference_tokens=min(longest, LONGEST))


def rebuild(
    store: MemoryStore,
    config: MemoryConfig,
    tokenize: Callable[[str], Sequence[int]],
    write: Callable[[Sequence[Sequence[int]]], np.ndarray],
    progress: Progress,
) -> RebuildReport:
    """Write all memories that the edition in use lacks. Each batch is one commit.

    Args:
        write: token ids of a batch of references to their records, uint8 (batch, record_bytes).
    """
    start, done = perf_counter(), RebuildReport()
    total = store.status()["cold"]
    for references in _pages(store.cold, store):
        _rewrite(store, references, config, tokenize, write, done)
        progress("making memories", done.references, total)
    done.seconds = perf_counter() - start
    return done


def rewrite(
    store: MemoryStore,
    slots: Sequence[int],
    config: MemoryConfig,
    tokenize: Callable[[str], Sequence[int]],
    write: Callable[[Sequence[Sequence[int]]], np.ndarray],
) -> RebuildReport:
    """As ``rebuild``, for some references; those that are gone are left out."""
    done = RebuildReport()
    for start in range(0, len(slots), BATCH):
        references = store.references(slots[start : start + BATCH])
        if references:
            _rewrite(store, references, config, tokenize, write, done)
    return done


def _rewrite(
    store: MemoryStore,
    references: Sequence[StoredReference],
    config: MemoryConfig,
    tokenize: Callable[[str], Sequence[int]],
    write: Callable[[Sequence[Sequence[int]]], np.ndarray],
    done: RebuildReport,
) -> None:
    ids = [token_ids(reference, store.edition.tokenizer, tokenize) for reference in references]
    done.shortened += sum(len(tokens) > config.reference_tokens for tokens in ids)
    packed = write([tokens[: config.reference_tokens] for tokens in ids])
    slots = [reference.slot for reference in references]
    store.write({s: record.tobytes() for s, record in zip(slots, packed, strict=True)})
    done.references += len(slots)
    done.bytes += packed.nbytes


def _pages(
    slots: Callable[[int, int], list[int]], store: MemoryStore
) -> Iterator[list[StoredReference]]:
    """References, a batch at a time, in the order of their slots."""
    last = -1
    while page := slots(last, BATCH):
        last = page[-1]
        yield store.references(page)
