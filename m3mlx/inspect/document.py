"""Find which tokens of a document its memories hold, and in how many heads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..assistant import Assistant
from ..config import MemoryConfig
from ..errors import M3Error
from ..memory.codec import PADDING
from ..models.decoder import Decoder
from ..store import ColdReference
from ..text import cite
from .page import Kept, KeptReference


def inspect_document(assistant: Assistant, name: str) -> Kept:
    """Inspect the memories of a document, or of one reference: ``NAME#N``.

    Raises:
        StoreError: there is no such document.
        M3Error: the name fits several documents, or there is no such reference.
    """
    assistant.check()
    store = assistant.store()
    document, _, number = name.rpartition("#")
    if not (document and number.isdigit()):
        document, number = name, ""
    found = store.find_documents([document])
    if len(found) != 1:
        raise M3Error(f"{document}: these are {len(found)} documents; name one of them")
    slots = store.slots_of(found[0].id)
    if number and not 1 <= int(number) <= len(slots):
        raise M3Error(f"{document}: it has {len(slots)} references, and no number {number}")
    wanted = [slots[int(number) - 1]] if number else slots
    edition, config = assistant.edition().id, assistant.format.config
    references, counts = [], []
    for stored in store.references(wanted):
        try:
            (record,) = store.read([stored.slot], edition=edition)
        except ColdReference:
            references.append(KeptReference(cite(stored), [stored.text], None))
            continue
        positions = assistant.format.read(record[None]).positions[0]
        tokens = _tokens(assistant.decoder, stored.text)
        heads = np.bincount(positions[positions != PADDING], minlength=len(tokens))[: len(tokens)]
        references.append(KeptReference(cite(stored), tokens, heads.tolist()))
        counts.append(kept_by_head(positions, config))
    mean = np.mean(counts, axis=0) if counts else np.array(config.counts, np.float64)
    title = f"{found[0].path}#{number}" if number else found[0].path
    return Kept(title, references, mean.tolist(), mean.size)


def kept_by_head(positions: np.ndarray, config: MemoryConfig) -> np.ndarray:
    """Count the tokens that each head kept of one reference: int (layers, KV heads).

    Args:
        positions: uint8 (kept,), of one memory.
    """
    ends = np.cumsum([0, *np.ravel(config.counts)])
    real = np.cumsum([0, *(positions != PADDING)])
    return np.diff(real[ends]).reshape(len(config.counts), -1)


def _tokens(decoder: Decoder, text: str) -> list[str]:
    """Split text where the model's tokens begin, but never inside a character."""
    ends = [end for _, end in decoder.tokenize(text)[1]]
    cuts = np.maximum.accumulate([0, *ends]).tolist()
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    return [*pieces[:-1], pieces[-1] + text[cuts[-1] :]] if pieces else [text]
