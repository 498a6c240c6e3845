"""References that share words with a query, and how much of it: BM25 on SQLite's full text.

A word counts as a whole, or by its pieces (see ``pieces``), where texts have it inside of others.

The full text of an encrypted store is made in memory, from the texts, when it is first asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from math import log

from . import pieces
from .catalog import Catalog
from .catalog_memories import IN, as_json
from .database import Connection
from .migrations import TOKENIZER

MOST_IN_MEMORY = 20_000  # references whose full text is made in memory, in a second or two
COMMON = 300  # a word in so many references tells little and costs much to rank
RANKED = 300  # so many references of rare words are ranked, the rarest words first
RANKED_COMMON = 20_000  # up to so many references, common words are ranked if there are no others
WORDS = 24  # of a query that take part in the search, the rarest first
_VISIBLE = (  # of the full text on the disk
    "rowid NOT IN (SELECT slot FROM reference WHERE document IN "
    "(SELECT id FROM document WHERE NOT complete)) "
    "AND rowid NOT IN (SELECT slot FROM reference WHERE quarantined)"
)
_MOST = 2.2  # BM25 of a word that stands in a reference endlessly often, by its rarity: k1 + 1


class Words:
    """The searches by words of one open catalog. Call it inside ``transaction`` or ``snapshot``."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        # what is in many references, with the commit that this is true of: counting it is slow
        self._common: tuple[int, set[tuple[str, str]]] = (-1, set())
        # full text in memory, with the commit that it belongs to; None where it is too large
        self._in_memory: tuple[int, sqlite3.Connection | None] = (-1, None)

    def shares(
        self, text: str, count: int, only: Iterable[int] | None = None
    ) -> dict[int, float] | None:
        """Slots of references that share words with a text, the best by BM25 first.

        Args:
            count: slots at most.
            only: the slots that are wanted, None for all.

        Returns:
            For each slot the share of the BM25 that the words of the text could give at most,
            words that are nowhere among them: 0 to 1, and 0 where common words were not ranked.
            None if the store has no full text.
        """
        db, condition = self._full_text()
        if db is None:
            return None
        words, parts, most = self._frequencies(db, text)
        found = self._ranked(db, "words", words, condition, count, only)
        if inside := self._ranked(db, "piece", parts, condition, count, only):
            for slot, score in inside.items():
                found[slot] = found.get(slot, 0.0) + score
            best = sorted(found, key=lambda slot: (-found[slot], slot))[:count]
            found = {slot: found[slot] for slot in best}
        return {slot: min(score / most, 1.0) for slot, score in found.items()}

    def _ranked(
        self,
        db: Connection | sqlite3.Connection,
        table: str,
        frequency: dict[str, int],
        condition: str,
        count: int,
        only: Iterable[int] | None,
    ) -> dict[int, float]:
        """BM25 of the references that have some of these, the rarest of them."""
        known = sorted((word for word in frequency if frequency[word]), key=frequency.__getitem__)
        if not known:
            return {}
        rare = [word for word in known if frequency[word] < COMMON]
        wanted = (rare or known)[:WORDS]
        while len(wanted) > 1 and rare and sum(map(frequency.__getitem__, wanted)) > RANKED:
            wanted.pop()
        query, score = " OR ".join(wanted), f"-bm25({table})"
        if not rare and self._catalog.settings()["next_slot"] > RANKED_COMMON:
            # ranking would take seconds; some that have the longest words is what is cheap
            query, score = " AND ".join(sorted(wanted, key=len)[-3:]), "0"
        wanted_slots = [] if only is None else [as_json(only)]
        if wanted_slots:
            condition += f" AND rowid {IN}"
        found = (
            f"SELECT rowid AS slot, {score} AS score FROM {table} "
            f"WHERE {table} MATCH ? AND {condition}"
        )
        # sorted outside, because ORDER BY in there computes each score two or three times
        rows = db.execute(
            f"SELECT * FROM ({found} LIMIT ?) ORDER BY score DESC, slot LIMIT ?",
            [query, *wanted_slots, count if score == "0" else -1, count],
        )
        return dict(rows.fetchall())

    def _full_text(self) -> tuple[Connection | sqlite3.Connection | None, str]:
        """The database whose tables have the full text, and which rows may be found."""
        if not self._catalog.cipher.encrypts:
            return self._catalog.db, _VISIBLE
        commit = self._catalog.settings()["commit"]
        if self._in_memory[0] != commit:
            self._in_memory = commit, self._made_in_memory()
        return self._in_memory[1], "1"

    def _made_in_memory(self) -> sqlite3.Connection | None:
        if self._catalog.visible() > MOST_IN_MEMORY:
            return None
        made = sqlite3.connect(":memory:", check_same_thread=False)
        made.execute(
            f"CREATE VIRTUAL TABLE words USING fts5 (text, content='', tokenize='{TOKENIZER}')"
        )
        made.execute(pieces.TABLE)
        for slot, text in self._catalog.references.texts():
            made.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", [slot, text])
            if found := pieces.pieces(text):
                made.execute("INSERT INTO piece (rowid, text) VALUES (?, ?)", [slot, found])
        return made

    def _frequencies(
        self, db: Connection | sqlite3.Connection, text: str
    ) -> tuple[dict[str, int], dict[str, int], float]:
        """In how many references the words and the pieces of a text are, up to ``COMMON`` of each,
        and the BM25 that all could give."""
        commit = self._catalog.settings()["commit"]
        if self._common[0] != commit:
            self._common = commit, set()
        words, parts, counted = dict[str, int](), dict[str, int](), list[int]()
        english = pieces.is_english(text)
        for word in pieces.words(text):
            whole = f'"{word}"'
            words[whole] = number = self._frequency(db, "words", whole)
            found = [number]
            if number < (1 if english else COMMON) and (len(word) >= pieces.WHOLE or not number):
                apart = [] if number else list(pieces.parts(word))
                asked = apart or [pieces.inside(word)]
                parts |= {part: self._frequency(db, "piece", part) for part in asked}
                found = [number or parts[part] for part in asked]
            counted += [n for n in found if n] or [0]
        for sign in pieces.signs(text):
            parts[sign] = self._frequency(db, "piece", sign)
            counted += [parts[sign]] if parts[sign] else []
        return words, parts, self._most(counted)

    def _frequency(self, db: Connection | sqlite3.Connection, table: str, word: str) -> int:
        if (table, word) in self._common[1]:
            return COMMON
        number: int = db.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)",
            [word, COMMON],
        ).fetchone()[0]
        if number >= COMMON:
            self._common[1].add((table, word))
        return number

    def _most(self, frequencies: Iterable[int]) -> float:
        """The BM25 that words of these frequencies could give, by SQLite's formula."""
        # their number, at least; asked for one by one, neither end needs a scan
        first, last = (f"(SELECT {end}(slot) FROM reference)" for end in ("min", "max"))
        rows = self._catalog.db.value(f"SELECT {last} - {first} + 1") or 0
        rarities = (log((max(rows - n, 0) + 0.5) / (n + 0.5)) for n in frequencies)
        return _MOST * sum(max(rarity, 1e-6) for rarity in rarities)
