"""The catalog's full text: words of the references, and pieces of words.

On the disk it lists the words of all documents, so an encrypted store has none (see ``words``).
All methods are called inside ``transaction`` or ``snapshot``.
"""

from __future__ import annotations

from .. import files
from . import pieces
from .columns import Columns
from .database import Connection

TABLES = ("words", "piece")


class FullText:
    """The full text of one open catalog; triggers keep the words."""

    def __init__(self, db: Connection, columns: Columns):
        self._db, self._columns = db, columns

    @property
    def there(self) -> bool:
        return not self._columns.cipher.encrypts

    def add(self, slot: int, text: str) -> None:
        """Add the pieces of a text."""
        if self.there and (found := pieces.pieces(text)):
            self._db.execute("INSERT INTO piece (rowid, text) VALUES (?, ?)", [slot, found])

    def make(self) -> None:
        """Make the full text again from the texts; an encrypted store has none."""
        if self.there:
            pieces.fill(self._db.conn)
            for table in TABLES:
                self._db.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")

    def erase(self) -> None:
        """Merge the parts of the full text, of which older ones have what younger ones delete."""
        if self.there:
            for table in TABLES:
                self._db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            files.at_step("full text merged")

    def check(self) -> None:
        """Raise StoreError if the full text is not that of the texts; needs the right to write."""
        if not self.there:
            return
        for table in TABLES:
            self._db.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        for slot, text, found in self._db.execute(
            "SELECT slot, r.text, p.text FROM reference r LEFT JOIN piece p ON p.rowid = slot"
        ):
            if isinstance(text, str) and pieces.pieces(text) != (found or ""):
                raise self._db.damaged(f"its full text lacks pieces of reference {slot}")
