"""Secrets of the hub that must be read again (TOTP secrets, private signing keys) are kept sealed in the database, under a key that is not in it.

https://github.com/fernet/spec: AES-128 in CBC mode with an HMAC-SHA-256, so what was changed is noticed.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from cryptography.fernet import Fernet, InvalidToken

_FILE = "seal.key"


class SealBroken(Exception):
    """What was sealed cannot be opened with this key, or the key file holds no key; the message says which."""


class Seal:
    """Seals and opens bytes with one key. All processes of a hub share its key file."""

    def __init__(self, key: bytes) -> None:
        """Raises SealBroken."""
        try:
            self._fernet = Fernet(key)
        except ValueError:
            raise SealBroken("The key is not 32 bytes in URL-safe base64") from None

    @classmethod
    def open(cls, keys_dir: Path) -> Seal:
        """With the key in keys_dir/seal.key, made when it does not exist; of two that make it at once, one wins. Raises SealBroken, OSError."""
        path = keys_dir / _FILE
        if not path.exists():
            _make(path)
        try:
            return cls(path.read_bytes().strip())
        except SealBroken:
            raise SealBroken(f"{path} holds no key: bring back the file that this database was used with") from None

    def seal(self, plain: bytes) -> bytes:
        """Only `unseal` with the same key reads it."""
        return self._fernet.encrypt(plain)

    def unseal(self, sealed: bytes) -> bytes:
        """What was sealed. Raises SealBroken when it was changed or sealed with another key."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise SealBroken("A secret in the database was sealed with another key, or was changed") from None


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mine = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        os.link(mine, path)  # whole or not at all, and never over the key of a process that was first
    except FileExistsError:
        pass
    finally:
        mine.unlink()
