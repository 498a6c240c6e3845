"""Ed25519 keys and signatures of exported files.

A key is a file of its own in PEM (PKCS #8), as OpenSSL writes and reads it. The public half is
written as its 32 bytes in hexadecimal.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ..errors import M3Error

LENGTH = 96  # of a signature: public key (32) and Ed25519 signature (64)
_PURPOSE = b"m3mlx export\n"  # no signature is valid for anything else
_HEX = re.compile(r"[0-9a-f]{64}")


def new_key(path: Path) -> str:
    """Make a private key in a new file, and its public half in another that ends in ``.pub``.

    Returns:
        The public half.

    Raises:
        M3Error: there is such a file already, or it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    public = public_half(key)
    other = path.with_name(path.name + ".pub")
    if other.exists():
        raise M3Error(f"{other}: there is a file already. Name another for the key.")
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _write(other, f"{public}\n".encode())
    return public


def _write(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise M3Error(f"{path}: there is a file already. Name another for the key.") from None
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def load_key(path: str | os.PathLike) -> Ed25519PrivateKey:
    """Read a private key. Raises M3Error if the file holds none."""
    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except OSError as error:
        raise M3Error(f"{path}: the key cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError) as error:  # TypeError: it has a passphrase
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def _no_key(path: object) -> M3Error:
    return M3Error(
        f"{path}: this is no Ed25519 private key in PEM without a passphrase. "
        f"`m3mlx keygen FILE` makes one."
    )


def public_half(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def read_public(name: str) -> str:
    """The public key that a user names: its 64 hexadecimal digits, or a file that holds them."""
    text = name.strip().lower()
    if not _HEX.fullmatch(text):
        try:
            with open(name, encoding="ascii") as file:
                text = file.read(200).strip().lower()
        except (OSError, ValueError):
            text = ""
    if not _HEX.fullmatch(text):
        raise M3Error(
            f"{name}: this is neither a public key of 64 hexadecimal digits nor a file that "
            f"holds one. `m3mlx keygen` prints it."
        )
    return text


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """The signature of a message, with the public key in front."""
    return key.public_key().public_bytes_raw() + key.sign(_PURPOSE + message)


def signer(signature: bytes, message: bytes) -> str | None:
    """The public key that has signed a message; None if the signature is wrong."""
    public = signature[:32]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature[32:], _PURPOSE + message)
    except (InvalidSignature, ValueError):
        return None
    return public.hex()
