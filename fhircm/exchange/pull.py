"""Pull a partner's panel: all of it, or what is likely to have changed; copy what changed, and go on where an interrupted pull stopped.

https://hl7.org/fhir/R4/http.html. Every patient is one transaction with the progress in it, so that a process may be killed anywhere;
what did not change is not written, so that reading it again costs nothing but the reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.pull_report import PullReport
from fhircm.exchange.rounds import Round
from fhircm.exchange.rounds_planned import Planned
from fhircm.exchange.rounds_whole import Whole
from fhircm.fhir.outcome import Conflict
from fhircm.store.resources import Store

__all__ = ["PullReport", "PullRunning", "changes", "pull", "reconcile"]


class PullRunning(Conflict):
    """Another pull of the same partner is at work."""


async def pull(
    store: Store,
    client: PartnerClient,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    lease_seconds: float = 30.0,
    owner: str | None = None,
    seconds: float | None = None,
) -> PullReport:
    """Look at the whole panel; `progress` is told how many patients are done, and of how many.

    After `seconds` it stops with what it has, and its report says so; the next call goes on. `owner` is the local reference of the organisation that coordinates: its people hear of what is gone. Raises PullRunning, PartnerUnavailable, PartnerRefused and PartnerAnswerBroken. Whatever it raises, the next call
    goes on from there.
    """
    return await _leased(Whole(store, client, owner, seconds, progress), lease_seconds)


async def reconcile(
    store: Store,
    client: PartnerClient,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    lease_seconds: float = 30.0,
    owner: str | None = None,
    seconds: float | None = None,
    within_budget: float | None = None,
) -> PullReport:
    """The same without believing anything that was said of changes: this finds deletions, merges, gaps, and a dishonest `_lastUpdated`.

    `within_budget`: it stops likewise when it has used up this part of what the partner's budget has left.
    """
    whole = Whole(store, client, owner, seconds, progress, full=True, within_budget=within_budget)
    return await _leased(whole, lease_seconds)


async def changes(
    store: Store,
    client: PartnerClient,
    *,
    lease_seconds: float = 30.0,
    owner: str | None = None,
    seconds: float | None = None,
    hinted_only: bool = False,
) -> PullReport:
    """Look where something is likely to have changed, or (`hinted_only`) where somebody said so.

    It makes as many requests as the partner's budget has left. Raises as `pull` does.
    """
    return await _leased(Planned(store, client, owner, seconds, hinted_only=hinted_only), lease_seconds)


async def _leased(round: Round, seconds: float) -> PullReport:
    store, partner = round.store, round.client.partner.name
    name, holder = f"pull:{partner}", str(uuid4())
    if not await store.lease(name, holder, seconds):
        raise PullRunning(f"{partner} is being pulled already, by another process; try again when that is done")
    running: Coroutine[Any, Any, PullReport] = round.run()
    work, renewal = asyncio.create_task(running), asyncio.create_task(_renew(store, name, holder, seconds))
    try:
        await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise PullRunning(f"{partner}: this pull fell silent, and another process took it over")
    finally:
        for task in (work, renewal):
            task.cancel()
        await asyncio.gather(work, renewal, return_exceptions=True)
        await store.release(name, holder)


async def _renew(store: Store, name: str, holder: str, seconds: float) -> None:
    """Keep the lease; returns when it was lost."""
    while True:
        await asyncio.sleep(seconds / 3)
        if not await store.lease(name, holder, seconds):
            return
