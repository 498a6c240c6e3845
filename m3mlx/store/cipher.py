"""Encryption at rest: documents in a store cannot be read without its passphrase.

A random key encrypts the store. It lies in the catalog's settings, itself encrypted with a key
that scrypt makes from the passphrase, or from random bytes that the system's key store keeps.
From it come four keys by HKDF-SHA256:

    records   AES-256-GCM, a random nonce of 12 bytes in front and a tag of 16 behind; the
              associated data say whose record it is, so that it is refused in another place
    columns   the same for text, token ids and vectors, and for all that is said of a document
              and of the place of a text in it
    names     AES-256-SIV for paths and content hashes: the same name is always the same
              ciphertext, so that it can be looked up, and is only looked up
    rows      BLAKE2b with a key, of which the root is made (see ``root``)

Without the key, the files still show how many documents and references there are, how
long they are, where they start and when they came, and which model made the memories.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import AnyStr

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..errors import StoreError

Passphrase = Callable[[], str]  # asked only when it is needed

OVERHEAD = 28  # bytes by which the encrypted form is longer: nonce and tag
_NONCE = 12
_COST = 2**17  # of scrypt, with blocks of 8: 128 MiB and some tenths of a second
_HIGHEST_COST = 2**18  # a store of somebody else may not ask for more than 256 MiB
_WRAPPING = b"m3mlx store key"  # of a store that is new, or of an earlier release
_SEALED = b"m3mlx sealed store key"  # of one whose catalog has a root
_SERVICE = "m3mlx"  # in the system's key store


class LockedError(StoreError):
    """A store is encrypted, and the passphrase is missing or wrong."""


class Tampered(Exception):
    """Bytes are not those that were encrypted in this place."""


class Plain:
    """Stands for the cipher in a store that is not encrypted: everything is kept as it is."""

    encrypts = False
    overhead = 0

    def encrypt_record(self, memory: bytes, identity: bytes) -> bytes:
        return memory

    def decrypt_record(self, stored: bytes, identity: bytes) -> bytes:
        return stored

    def encrypt(self, value: AnyStr, *identity: object) -> AnyStr:
        return value

    def decrypt(self, stored: AnyStr, *identity: object) -> AnyStr:
        return stored

    def encrypt_name(self, name: str) -> str:
        return name

    def decrypt_name(self, stored: str) -> str:
        return stored


PLAIN = Plain()


class Cipher:
    """The keys of one store. What decrypts raises Tampered.

    Attributes:
        encrypts: whether anything changes.
        overhead: bytes by which the encrypted form of a record is longer.
    """

    encrypts = True
    overhead = OVERHEAD

    def __init__(self, key: bytes):
        self._records = AESGCM(_derived(key, b"records", 32))
        self._columns = AESGCM(_derived(key, b"columns", 32))
        self._names = AESSIV(_derived(key, b"names", 64))
        self._rows = _derived(key, b"rows", 32)

    def digest(self, data: bytes) -> bytes:
        """A digest of 32 bytes that only these keys give."""
        return hashlib.blake2b(data, key=self._rows, digest_size=32).digest()

    def encrypt_record(self, memory: bytes, identity: bytes) -> bytes:
        return _encrypted(self._records, memory, identity)

    def decrypt_record(self, stored: bytes, identity: bytes) -> bytes:
        return _decrypted(self._records, stored, identity)

    def encrypt(self, value: AnyStr, *identity: object) -> AnyStr:
        """Encrypt a value of a column; ``identity`` says whose and which it is."""
        owner = repr(identity).encode()
        if isinstance(value, str):
            return base64.b64encode(_encrypted(self._columns, value.encode(), owner)).decode()
        return _encrypted(self._columns, value, owner)

    def decrypt(self, stored: AnyStr, *identity: object) -> AnyStr:
        owner = repr(identity).encode()
        if isinstance(stored, bytes):
            return _decrypted(self._columns, stored, owner)
        return _decrypted(self._columns, _from_base64(stored), owner).decode()

    def encrypt_name(self, name: str) -> str:
        """Return the one encrypted form of a name."""
        # a name has always two bytes more: AES-SIV refuses an empty one
        return base64.b64encode(self._names.encrypt(b"n:" + name.encode(), None)).decode()

    def decrypt_name(self, stored: str) -> str:
        try:
            return self._names.decrypt(_from_base64(stored), None)[2:].decode()
        except (InvalidTag, ValueError) as error:
            raise Tampered from error


def _encrypted(key: AESGCM, value: bytes, identity: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + key.encrypt(nonce, value, identity)


def _decrypted(key: AESGCM, stored: bytes, identity: bytes) -> bytes:
    try:
        return key.decrypt(stored[:_NONCE], stored[_NONCE:], identity)
    except (InvalidTag, ValueError) as error:  # ValueError: too short for a nonce
        raise Tampered from error


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise Tampered from error


def _derived(key: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"m3mlx " + purpose).derive(key)


# the key of a store


def new_key(store: str, passphrase: Passphrase | None) -> tuple[dict, Cipher]:
    """Make the key of a new store.

    Args:
        store: its id.
        passphrase: asked for one; None to leave a random one in the system's key store.

    Returns:
        What the catalog keeps in its settings, and the keys.
    """
    if passphrase is None:
        words = secrets.token_urlsafe(32)
        _keyring("set_password", store, words)
    else:
        words = _normal(passphrase())
        if not words:
            raise LockedError("the passphrase is empty. Choose one of several words.")
    salt, key = os.urandom(16), os.urandom(32)
    wrapped = _encrypted(AESGCM(_stretched(words, salt, _COST)), key, _WRAPPING)
    settings = {
        "cost": _COST,
        "key": wrapped.hex(),
        "keyring": passphrase is None,
        "salt": salt.hex(),
    }
    return settings, Cipher(key)


def unlock(
    path: object, store: str, settings: Mapping, passphrase: Passphrase | None
) -> tuple[Cipher, dict | None]:
    """The keys of a store, and what is to be kept in place of ``settings`` once it has a root.

    The key itself says that there must be a root, so that nobody can take it away.

    Args:
        path: of the store, for messages.
        settings: what ``new_key`` returned.
        passphrase: asked for one, unless the system's key store has it.

    Raises:
        LockedError: there is no passphrase, or a wrong one.
    """
    try:
        salt, wrapped = bytes.fromhex(settings["salt"]), bytes.fromhex(settings["key"])
        cost = int(settings["cost"])
        if not 2 <= cost <= _HIGHEST_COST:
            raise ValueError(cost)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path}: the key of this encrypted store is damaged. Restore the catalog from a "
            f"backup."
        ) from error
    if settings.get("keyring"):
        words = _keyring("get_password", store)
        if words is None:
            raise LockedError(
                f"{path}: this store is encrypted, and its key is not in the key store of this "
                f"system and user. Open it where it was made."
            )
    elif passphrase is None:
        raise LockedError(
            f"{path}: this store is encrypted. Give its passphrase in M3MLX_PASSPHRASE or with "
            f"--passphrase-file."
        )
    else:
        words = passphrase()
    for form in dict.fromkeys([_normal(words), words]):  # as typed: stores of earlier releases
        with suppress(InvalidTag, ValueError):
            opener = AESGCM(_stretched(form, salt, cost))
            with suppress(InvalidTag):
                return Cipher(opener.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _SEALED)), None
            key = opener.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _WRAPPING)
            return Cipher(key), {**settings, "key": _encrypted(opener, key, _SEALED).hex()}
    raise LockedError(
        f"{path}: this is not the passphrase of this store. Without the right one nobody can "
        f"read it."
    )


def _normal(words: str) -> str:
    """One form for what looks the same, however a keyboard or system composes it."""
    return unicodedata.normalize("NFC", words)


@lru_cache(maxsize=4)  # one process opens the same store many times
def _stretched(words: str, salt: bytes, cost: int) -> bytes:
    try:
        return Scrypt(salt, length=32, n=cost, r=8, p=1).derive(words.encode())
    except MemoryError as error:
        raise StoreError(
            f"a passphrase needs {cost // 1024} MiB of memory to be tried, which are not free. "
            f"Close other programs, then try again."
        ) from error


def _keyring(action: str, store: str, *value: str) -> str | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise LockedError(
            "the system's key store needs the library keyring. Install it with: "
            "pip install 'm3mlx[keyring]'"
        ) from None
    try:
        return getattr(keyring, action)(_SERVICE, store, *value)
    except KeyringError as error:
        raise LockedError(
            f"the system's key store does not answer ({error}). Unlock it, or use a passphrase."
        ) from error
