"""The keys with which identity tokens are signed: made when first needed, rotated, and published while a token of theirs can live.

https://openid.net/specs/openid-connect-core-1_0.html#RotateSigKeys
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from joserfc.jwk import ECKey, RSAKey

from fhircm.access.sealing import Seal
from fhircm.smart.clients import ID_TOKEN_ALGORITHMS
from fhircm.store.database import Database
from fhircm.store.signing_keys import SigningKeyRows, StoredKey

LIFETIME = 600  # seconds that an identity token is good for
_KEPT = LIFETIME + 3600  # seconds that a retired key stays published: for tokens under way, and clocks that differ
Key = RSAKey | ECKey


class SigningKeys:
    """The signing keys of a hub, shared by its processes."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._rows, self._seal = SigningKeyRows(database), seal
        self._opened: dict[str, Key] = {}

    async def to_sign(self, algorithm: str) -> Key:
        """The key for an algorithm. Raises SealBroken when the seal is not the one that it was kept under."""
        stored = await self._rows.active(algorithm)
        if stored is None:
            await self._make(algorithm, replace=False)
            stored = await self._rows.active(algorithm)
            assert stored is not None
        if stored.kid not in self._opened:
            tree = json.loads(self._seal.unseal(stored.private))
            self._opened[stored.kid] = RSAKey.import_key(tree) if tree["kty"] == "RSA" else ECKey.import_key(tree)
        return self._opened[stored.kid]

    async def published(self) -> list[dict[str, Any]]:
        """The public keys by which tokens of this hub can be verified now."""
        return [dict(key.public) for key in await self._rows.all(int(time.time()) - _KEPT)]

    async def listed(self) -> list[StoredKey]:
        """Every key that is kept."""
        return await self._rows.all(0)

    async def rotate(self, algorithm: str | None = None) -> list[str]:
        """New keys for an algorithm, or for every one that is in use; returns their kids. What is needed no more is forgotten."""
        chosen = [algorithm] if algorithm else sorted({key.algorithm for key in await self.listed() if key.retired is None})
        kids = [await self._make(one, replace=True) for one in chosen]
        await self._rows.forget(int(time.time()) - _KEPT)
        return kids

    async def _make(self, algorithm: str, *, replace: bool) -> str:
        if algorithm not in ID_TOKEN_ALGORITHMS:
            raise ValueError(f"{algorithm} is none of {', '.join(ID_TOKEN_ALGORITHMS)}")
        key = await asyncio.to_thread(_generated, algorithm)
        public, private = key.as_dict(private=False), key.as_dict(private=True)
        kid = str(public["kid"])
        sealed = self._seal.seal(json.dumps(private).encode())
        await self._rows.add(StoredKey(kid, algorithm, public, sealed, int(time.time()), None), replace=replace)
        return kid


def _generated(algorithm: str) -> Key:
    use = {"use": "sig", "alg": algorithm}
    if algorithm == "ES384":
        return ECKey.generate_key("P-384", use, auto_kid=True)
    return RSAKey.generate_key(3072, use, auto_kid=True)
