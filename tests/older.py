"""Stores of earlier formats, made from stores of the present one."""

import json
import sqlite3
import struct
import zlib
from contextlib import closing

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from m3mlx.store import MemoryStore
from m3mlx.store import cipher as ciphers
from m3mlx.store.catalog_references import checksum_of
from m3mlx.store.record_file import CHECKSUM, PAGE, Identity, stride


def third_format(path, passphrase=None):
    """Make the store at ``path``, which has one edition, one of the format before ties and roots.

    Then a record's checksum, and the associated data of an encrypted one, covered store, edition,
    fingerprint and slot, but no text; and names in an encrypted store were bound to nothing.
    """
    with MemoryStore.open(path, passphrase=passphrase) as store:
        edition, cipher = store.edition, store._catalog.cipher
        identity = Identity.of(store.id, edition)
        slots = [slot for slot in store.slots() if store.references([slot])[0].warm]
        memories = {slot: store.read([slot])[0].tobytes() for slot in slots}
    owner = store.id + edition.id.to_bytes(4, "little") + identity.fingerprint
    with (path / edition.file).open("r+b") as file:
        head = bytearray(identity.header())[:-CHECKSUM]
        head[8:12] = struct.pack("<I", 2)
        file.write(head + struct.pack("<I", zlib.crc32(head)))
        for slot, memory in memories.items():
            place = owner + slot.to_bytes(8, "little")
            stored = bytes(cipher.encrypt_record(memory, place))
            file.seek(PAGE + (slot - edition.origin) * stride(edition.stored_bytes))
            file.write(stored + struct.pack("<I", zlib.crc32(place + stored)))
    with closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as db:
        if cipher.encrypts:
            _unseal(db, cipher)
            (value,) = db.execute("SELECT value FROM setting WHERE name = 'cipher'").fetchone()
            key = _rewrapped(json.loads(value), passphrase())
            db.execute("UPDATE setting SET value = ? WHERE name = 'cipher'", [json.dumps(key)])
        for column in ("tie", "next_tie", "unbound"):
            db.execute(f"ALTER TABLE edition DROP COLUMN {column}")
        db.execute("ALTER TABLE document DROP COLUMN sealed")
        db.execute("DELETE FROM setting WHERE name = 'root'")
        db.execute("DROP TRIGGER IF EXISTS reference_pieces_removed")
        db.execute("DROP TABLE IF EXISTS piece")
        db.execute("DROP TABLE IF EXISTS fact")
        db.execute("DELETE FROM _sqlite_migrations WHERE name >= 'm004'")


def _rewrapped(settings, words):
    opener = AESGCM(ciphers._stretched(words, bytes.fromhex(settings["salt"]), settings["cost"]))
    wrapped = bytes.fromhex(settings["key"])
    key = opener.decrypt(wrapped[:12], wrapped[12:], ciphers._SEALED)
    return {**settings, "key": ciphers._encrypted(opener, key, ciphers._WRAPPING).hex()}


def _unseal(db, cipher):
    """Bind texts to document and position alone, and names of collections to nothing."""
    rows = db.execute(
        'SELECT slot, path, document, ordinal, "start", "end", page, line, text, tokens, vector '
        "FROM reference JOIN document ON document = id"
    ).fetchall()
    for slot, path, document, ordinal, *place, text, tokens, vector in rows:
        clear = cipher.decrypt(text, "text", document, ordinal, *place)
        text = cipher.encrypt(clear, "text", document, ordinal)
        checksum = checksum_of(slot, path, [ordinal, *place, text, tokens, vector])
        db.execute(
            "UPDATE reference SET text = ?, checksum = ? WHERE slot = ?", [text, checksum, slot]
        )
    for document, name in db.execute("SELECT document, name FROM collection").fetchall():
        stored = cipher.encrypt_name(cipher.decrypt(name, "collection", document))
        db.execute("UPDATE collection SET name = ? WHERE document = ?", [stored, document])
