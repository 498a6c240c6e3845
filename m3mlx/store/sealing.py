"""Bind what earlier releases encrypted to its row, which they did not."""

from __future__ import annotations

from contextlib import suppress

from ..errors import StoreError
from .catalog_memories import IN, as_json
from .catalog_references import CHECKED, blocks, checksum_of
from .cipher import Tampered
from .columns import ABOUT, Columns
from .database import Connection


def seal_all(db: Connection, columns: Columns) -> None:
    """Encrypt names, collections and texts anew. Call it inside of a transaction."""
    for id, path, hash, *rest, _ in db.execute(f"SELECT {ABOUT} FROM document").fetchall():
        with suppress(StoreError):  # what is damaged stays so
            columns.put(id, columns.name(path), columns.name(hash), *rest)
    for id, name in db.execute("SELECT document, name FROM collection").fetchall():
        with suppress(StoreError):
            sealed = columns.cipher.encrypt(columns.name(name), "collection", id)
            db.execute("UPDATE collection SET name = ? WHERE document = ?", [sealed, id])
    for part in blocks(db.column("SELECT slot FROM reference ORDER BY slot")):
        for row in db.execute(f"{CHECKED} slot {IN}", [as_json(part)]).fetchall():
            slot, path, *place, text, tokens, vector, checksum = row
            document = db.value("SELECT document FROM reference WHERE slot = ?", [slot])
            with suppress(Tampered, TypeError):
                clear = columns.cipher.decrypt(text, "text", document, place[0])
                sealed = columns.cipher.encrypt(clear, "text", document, *place)
                before = checksum_of(slot, path, [*place, text, tokens, vector])
                after = checksum_of(slot, path, [*place, sealed, tokens, vector])
                db.execute(
                    "UPDATE reference SET text = ?, checksum = ? WHERE slot = ?",
                    [sealed, checksum ^ before ^ after, slot],
                )
