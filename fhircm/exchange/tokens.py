"""Access tokens that the processes of a hub share: one fetches while the others wait, and each token lies sealed in the database.

https://hl7.org/fhir/smart-app-launch/backend-services.html#obtain-access-token. Times of day differ from machine to machine and jump, so
a process that has a token counts its life on its own monotonic clock. A token that a partner refuses is never deleted here: whoever
fetches next compares, and takes a token that somebody else fetched meanwhile. So a late refusal of an old token costs no fetch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from fhircm.access.sealing import Seal, SealBroken
from fhircm.store.resources import SetState, Store

NAMESPACE = "token"
LEASE = 15.0  # seconds that the others wait for one that fell silent


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. `lifetime`: for how many seconds it is used, and `until`: to which moment of the monotonic clock.

    `skew`: by how many seconds the token endpoint's clock is ahead; `refused_key`: a key that it did not take, and `refused_at` when
    (seconds since the epoch).
    """

    value: str = field(repr=False)
    lifetime: float
    until: float
    scope: str | None = None
    skew: float = 0.0
    refused_key: str | None = None
    refused_at: float = 0.0

    @property
    def mark(self) -> str:
        """By what it is told from others without being told."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:16]


class Tokens(Protocol):
    """Where tokens are kept, by name."""

    async def find(self, name: str) -> Token | None:
        """The last token that was fetched, good or not."""

    async def keep(self, name: str, token: Token, partner: str) -> None:
        """From now on this one."""

    async def claim(self, name: str, holder: str) -> bool:
        """Whether `holder` is the one to fetch; False while another does."""

    async def release(self, name: str, holder: str) -> None:
        """It has done, or given up."""


class OwnTokens:
    """Tokens of one process, which shares them with no other."""

    def __init__(self) -> None:
        self._kept: dict[str, Token] = {}

    async def find(self, name: str) -> Token | None:
        return self._kept.get(name)

    async def keep(self, name: str, token: Token, partner: str) -> None:
        self._kept[name] = token

    async def claim(self, name: str, holder: str) -> bool:
        return True

    async def release(self, name: str, holder: str) -> None:
        pass


class SharedTokens:
    """Tokens of all processes that use a store and have its seal. `now` tells seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        seal: Seal,
        *,
        lease: float = LEASE,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._seal, self._lease = store, seal, lease
        self._now, self._monotonic = now, monotonic

    async def find(self, name: str) -> Token | None:
        kept = await self._store.state(NAMESPACE, name)
        if kept is None:
            return None
        try:
            token = Token(**json.loads(self._seal.unseal(base64.b64decode(kept["sealed"]))))
        except (SealBroken, ValueError, TypeError, KeyError):  # of another seal, or of another version of the hub: fetch anew
            return None
        left = min(token.until - self._now(), token.lifetime)
        return replace(token, until=self._monotonic() + left)

    async def keep(self, name: str, token: Token, partner: str) -> None:
        at = self._now() + token.until - self._monotonic()
        sealed = self._seal.seal(json.dumps(asdict(replace(token, until=at))).encode())
        fact = {
            "partner": partner,
            "sealed": base64.b64encode(sealed).decode(),
            "skew": token.skew,
            "refused_key": token.refused_key,
        }
        await self._store.transact([SetState(NAMESPACE, name, fact)], origin="hub")

    async def claim(self, name: str, holder: str) -> bool:
        return await self._store.lease(f"token:{name}", holder, self._lease)

    async def release(self, name: str, holder: str) -> None:
        await self._store.release(f"token:{name}", holder)


async def told(store: Store, partner: str) -> list[str]:
    """What the last sign-ins at a partner showed that an operator should know, a sentence each: for `partner check` and the status page."""
    return sentences(one for one in (await store.states(NAMESPACE)).values() if one.get("partner") == partner)


def sentences(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The same of the rows of one partner."""
    told = []
    for row in rows:
        if abs(row.get("skew", 0.0)) > 1:
            way = "ahead of" if row["skew"] > 0 else "behind"
            told.append(f"Its clock is {abs(row['skew']):.0f} s {way} ours; assertions are dated by its clock")
        if row.get("refused_key"):
            told.append(
                f"It does not take the key {row['refused_key']} yet, and the one before it signs: ask it to read our JWKS"
            )
    return list(dict.fromkeys(told))
