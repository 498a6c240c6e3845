"""What the catalog knows of facts beside their documents: who said them, and what they replaced.

A fact is a document of one reference. Its row goes when the document goes; in an encrypted store
it is encrypted and bound to the document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .catalog_memories import IN, as_json
from .catalog_references import References
from .cipher import Tampered
from .columns import Columns
from .database import Connection

FACT = "fact:"  # before the name of a document that is a fact
_FACTS = (
    "FROM reference JOIN fact USING (document) JOIN document ON document = id "
    "WHERE complete AND NOT quarantined"
)


@dataclass(frozen=True)
class Version:
    """A text that a fact had before, when it was said (ISO 8601 in UTC), and by whom."""

    text: str
    said: str
    by: str


@dataclass(frozen=True)
class StoredFact:
    """One fact.

    Attributes:
        id: of its document.
        said: when, ISO 8601 in UTC.
        by: who said it, "" for the user.
        history: what it replaced, the oldest first.
    """

    id: int
    path: str
    text: str
    said: str
    by: str
    history: tuple[Version, ...] = ()


class Facts:
    """The facts of one open catalog. Call it inside ``transaction`` or ``snapshot``."""

    def __init__(self, db: Connection, columns: Columns, references: References):
        self._db, self._columns, self._references = db, columns, references

    def put(self, document: int, by: str, history: Iterable[Version]) -> None:
        """Say that a document is a fact, complete or not."""
        versions = [[version.text, version.said, version.by] for version in history]
        details = json.dumps({"by": by, "history": versions}, ensure_ascii=False)
        details = self._columns.cipher.encrypt(details, "fact", document)
        self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [document, details])

    def about(self, document: int) -> tuple[str, tuple[Version, ...]] | None:
        """Return who said a fact and its history; None where a document is none.

        Raises:
            StoreError: the row is damaged.
        """
        stored = self.stored(document)
        if stored is None:
            return None
        try:
            details = json.loads(self._columns.cipher.decrypt(stored, "fact", document))
            history = tuple(Version(*map(_string, version)) for version in details["history"])
            return _string(details["by"]), history
        except (Tampered, ValueError, TypeError, KeyError) as error:
            path = self._columns.about_of(document)[0]
            raise self._db.damaged(f"who said {path}, and when, cannot be read") from error

    def stored(self, document: int) -> str | None:
        """Return the row of a fact as it is stored."""
        return self._db.value("SELECT details FROM fact WHERE document = ?", [document])

    def read(self, documents: Iterable[int] | None = None) -> list[StoredFact]:
        """Return facts by id, those of some documents or all, without what is in quarantine."""
        some = "" if documents is None else f"AND document {IN}"
        ids = [] if documents is None else [as_json(documents)]
        slots = self._db.column(f"SELECT slot {_FACTS} {some}", ids)
        found = []
        for reference in self._references.read(slots, 0).values():
            said = self._columns.about_of(reference.document)[3]
            by, history = self.about(reference.document) or ("", ())
            told = reference.path, reference.text, said, by, history
            found.append(StoredFact(reference.document, *told))
        return sorted(found, key=lambda fact: fact.id)

    def near(self, vector: np.ndarray, count: int) -> dict[int, float]:
        """Return the facts most like a vector, by document, with their cosine similarity."""
        slots = self._db.column(f"SELECT slot {_FACTS}")
        there, vectors = self._references.vectors(slots, len(vector))
        similar = vectors @ vector
        nearest = np.argsort(-similar)[:count]
        owners = dict(
            self._db.execute(
                f"SELECT slot, document FROM reference WHERE slot {IN}",
                [as_json(there[nearest].tolist())],
            ).fetchall()
        )
        return {owners[int(there[at])]: float(similar[at]) for at in nearest}


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
