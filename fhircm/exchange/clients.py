"""The clients of many partners: each is opened when it is first needed, shared by whoever needs it, and closed when nobody did for a while.

https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1. An open client costs memory and connections; of a thousand partners few are spoken to
at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from fhircm.exchange.attachments import fetch_from
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.pages import within
from fhircm.exchange.partners import Partner

IDLE = 60.0  # seconds after its last use, before a client is closed

Open = Callable[[Partner], AbstractAsyncContextManager[PartnerClient]]


@dataclass
class _Held:
    client: PartnerClient
    stack: AsyncExitStack
    users: int = 0
    used: float = field(default_factory=monotonic)


class Clients:
    """Use as an async context manager: at its end all are closed."""

    def __init__(self, partners: Sequence[Partner], open: Open, idle: float = IDLE) -> None:
        self.partners = {partner.name: partner for partner in partners}
        self._open, self._idle = open, idle
        self._held: dict[str, _Held] = {}  # the longest unused first
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        for held in self._held.values():
            await held.stack.aclose()
        self._held.clear()

    @property
    def opened(self) -> int:
        """How many are open."""
        return len(self._held)

    @asynccontextmanager
    async def at(self, name: str) -> AsyncIterator[PartnerClient]:
        """The client of a partner, for as long as it is needed. Raises what opening it raises, and KeyError."""
        held = await self._take(name)
        try:
            yield held.client
        finally:
            held.users, held.used = held.users - 1, monotonic()
            self._held[name] = self._held.pop(name)
            await self._close_idle()

    async def fetch(self, url: str) -> bytes:
        """The bytes of a Binary at whichever partner an address belongs to. Raises what a client raises, and LookupError."""
        for partner in self.partners.values():
            if within(partner.base_url, url):
                async with self.at(partner.name) as client:
                    return await fetch_from([client])(url)
        raise LookupError("no partner has this address")

    async def _take(self, name: str) -> _Held:
        async with self._opening:
            held = self._held.get(name)
            if held is None:
                stack = AsyncExitStack()
                held = _Held(await stack.enter_async_context(self._open(self.partners[name])), stack)
                self._held[name] = held
            held.users += 1
        return held

    async def _close_idle(self) -> None:
        now = monotonic()
        idle: list[_Held] = []
        for name, held in list(self._held.items()):
            if now - held.used < self._idle:
                break
            if not held.users:
                idle.append(self._held.pop(name))
        for held in idle:  # nobody finds them any more while they are being closed
            await held.stack.aclose()
