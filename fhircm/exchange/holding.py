"""Hold a lease for as long as some work takes. https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html

A process that falls silent loses it, so what is done under it must be safe to be done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from fhircm.fhir.outcome import Conflict
from fhircm.store.resources import Store


class Busy(Conflict):
    """Another process does this at the moment."""


@asynccontextmanager
async def holding(store: Store, name: str, seconds: float) -> AsyncIterator[None]:
    """Hold a lease, renewed until the end. Raises Busy while another process has it."""
    holder = uuid4().hex
    if not await store.lease(name, holder, seconds):
        raise Busy(f"Another process is at {name} at this moment; try again when that is done")
    renewal = asyncio.create_task(_renew(store, name, holder, seconds))
    try:
        yield
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)
        await store.release(name, holder)


async def _renew(store: Store, name: str, holder: str, seconds: float) -> None:
    while await store.lease(name, holder, seconds):
        await asyncio.sleep(seconds / 3)
