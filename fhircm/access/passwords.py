"""Passwords: kept as argon2id hashes, refused when they are easily guessed.

https://www.rfc-editor.org/rfc/rfc9106 and https://pages.nist.gov/800-63-4/sp800-63b.html#passwordver: long ones, no rules of composition.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from fhircm.fhir.artefacts import folder

SHORTEST, LONGEST = 12, 1000  # characters


class Passwords:
    """Hashes passwords and checks them. The work is done in threads, at most one for each core, for each takes 64 MiB."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._nobodys: str | None = None  # made when it is first needed, and then for whoever comes first
        self._at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def hash(self, password: str) -> str:
        """What to keep of a password."""
        async with self._at_once:
            return await asyncio.to_thread(self._hasher.hash, _normal(password))

    async def verify(self, kept: str | None, password: str) -> bool:
        """Whether this is the password. Without one that is kept the same work is done, so that the time does not tell."""
        async with self._at_once:
            if self._nobodys is None:
                self._nobodys = await asyncio.to_thread(self._hasher.hash, secrets.token_urlsafe(16))
            right = await asyncio.to_thread(self._matches, kept or self._nobodys, _normal(password))
        return right and kept is not None

    def outdated(self, kept: str) -> bool:
        """Whether a hash was made with other parameters than these days."""
        return self._hasher.check_needs_rehash(kept)

    def _matches(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False


def fault(password: str, *names: str | None) -> str | None:
    """Why a password cannot be taken, in a sentence; None when it can. `names`: what its owner is called, which it must not contain."""
    text = _normal(password)
    if len(text) < SHORTEST:
        return f"Use at least {SHORTEST} characters. Three or four words that do not belong together are easy to remember."
    if len(text) > LONGEST:
        return f"Use at most {LONGEST} characters."
    if any(name and len(name) > 2 and name.casefold() in text.casefold() for name in names):
        return "Choose a password that does not contain your user name."
    if text.casefold() in _common() or len(set(text)) < 4:
        return "This password is one of the first that others would try. Choose another one."
    return None


@cache
def _common() -> frozenset[str]:
    lines = (folder("profiles") / "password" / "common.txt").read_text().splitlines()
    return frozenset(line.strip().casefold() for line in lines if line.strip())


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)
