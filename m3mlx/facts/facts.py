"""Facts: sentences that were said, memorized at once, each a document of one reference.

A later fact about the same thing takes the place of the earlier one under the same name, as a
changed file does. What it replaces stays in its history, which nobody reads, until it is forgotten.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..documents import Document, Reference, split
from ..errors import M3Error
from ..store import FACT, MemoryStore, NewReference, StoredFact, Version
from ..text import scrub_line
from .same import ALIKE, STRICT, replaces, words
from .sentences import Triple, sentences, triple

if TYPE_CHECKING:
    from ..memory.format import MemoryFormat
    from ..models.decoder import Decoder
    from ..models.encoder import Encoder

_COMPARED = 50  # of the facts that a store has, the most similar
_SUBJECT = 40  # characters of a subject in a name
_BY = 100  # characters of who said a fact


@dataclass
class Remembered:
    """Result of remembering.

    Attributes:
        fact: as it is stored now.
        replaced: what it took the place of.
        known: it was stored already, word for word, and nothing was changed.
    """

    fact: StoredFact
    replaced: list[StoredFact] = field(default_factory=list)
    known: bool = False


def triples(text: str) -> list[Triple]:
    """Return what the sentences of a fact say, where the rules find it."""
    return [found for sentence in sentences(text) if (found := triple(sentence))]


def about(facts: Sequence[StoredFact], name: str) -> list[StoredFact]:
    """Return the facts that have a name as subject or object, or else all of its words."""
    wanted = words(name)
    named = [
        fact
        for fact in facts
        if any(wanted in (words(said.subject), words(said.object)) for said in triples(fact.text))
    ]
    return named or [fact for fact in facts if wanted and set(wanted) <= set(words(fact.text))]


class Facts:
    """The facts of one store that is open for writing.

    Args:
        format: writes their memories.
        edition: whose memories they are; None for the first.
    """

    def __init__(
        self,
        store: MemoryStore,
        decoder: Decoder,
        encoder: Encoder,
        format: MemoryFormat,
        edition: int | None = None,
    ):
        self._store, self._decoder, self._encoder = store, decoder, encoder
        self._format, self._edition = format, edition

    def remember(self, text: str, *, by: str = "", keep_both: bool = False) -> Remembered:
        """Memorize a fact; it takes the place of those about the same thing.

        Args:
            by: who said it, "" for the user.
            keep_both: take the place of none.

        Raises:
            M3Error: the text is empty, or too long for one reference.
        """
        reference = self._reference(text)
        (vector,) = self._encoder.encode([reference.text])
        near = self._store.facts_near(vector, _COMPARED)
        known = self._store.facts(near)
        for fact in known:
            if (fact.text, fact.by) == (reference.text, by):
                return Remembered(fact, known=True)
        least = ALIKE.get(self._encoder.name, STRICT)
        replaced = [
            fact
            for fact in known
            if not keep_both
            and replaces(
                reference.text, fact.text, near[fact.id] >= least, same_speaker=fact.by == by
            )
        ]
        name = replaced[0].path if replaced else _name(reference.text)
        return self._add(name, reference, vector, by, replaced)

    def change(self, id: int, text: str, *, by: str = "") -> Remembered:
        """Give a fact another text; the old one stays in its history.

        Raises:
            M3Error: there is no such fact, or the text is empty or too long.
        """
        old = self._store.facts([id])
        if not old:
            raise M3Error(f"there is no fact {id}. `m3mlx facts` lists them.")
        reference = self._reference(text)
        if reference.text == old[0].text:
            return Remembered(old[0], known=True)
        (vector,) = self._encoder.encode([reference.text])
        return self._add(old[0].path, reference, vector, by or old[0].by, old)

    def _reference(self, text: str) -> Reference:
        said = " ".join(scrub_line(text).split())
        if not said:
            raise M3Error("the fact is empty. Say it in a sentence.")
        references = split(Document("", "", said), self._decoder.tokenize)
        if len(references) != 1:
            raise M3Error(
                f"the fact is too long for one memory ({len(references)} would be needed). "
                f"Say it in a few sentences, or memorize it as a document."
            )
        return references[0]

    def _add(
        self,
        path: str,
        reference: Reference,
        vector: np.ndarray,
        by: str,
        replaced: list[StoredFact],
    ) -> Remembered:
        history = [
            version
            for fact in replaced
            for version in (*fact.history, Version(fact.text, fact.said, fact.by))
        ]
        history.sort(key=lambda version: version.said)
        content = reference.text.encode()
        # a text that was said before gets another hash: it is another version
        hash = hashlib.sha256(content + b"\0" * len(history)).hexdigest()
        document, _ = self._store.begin(
            path, hash, 1, size=len(content), tokenizer=self._decoder.tokenizer_hash
        )
        self._store.describe_fact(document, by[:_BY], history)
        (record,) = self._format.write([reference.tokens])
        new = NewReference.of(reference, document, 0, vector, record.tobytes())
        self._store.add([new], edition=self._edition)
        if others := [fact.id for fact in replaced if fact.path != path]:
            self._store.forget(others)
        (fact,) = self._store.facts([document])
        return Remembered(fact, replaced)


def _name(text: str) -> str:
    """Return a new name for a fact, which tells whom it is about."""
    said = triples(text)
    subject = said[0].subject if said else " ".join(text.split()[:4])
    return f"{FACT}{subject[:_SUBJECT].strip()} {secrets.token_hex(4)}"
