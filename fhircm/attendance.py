"""Rounds at many partners: each has a due time in the database, and any worker that has a hand free takes the one that waited longest.

https://hl7.org/fhir/R4/http.html. A round is held by a lease, so that there is one at a time for each partner, and ends after a slice of
time with what is left due at once: one partner's long work delays no other's. A worker that dies is taken over when its claim ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic

from fhircm.exchange.news import DUE, due
from fhircm.store.resources import FinishTimer, RepeatTimer, Store
from fhircm.store.timers import StaleClaim, Timer

log = logging.getLogger("fhircm.worker")

AT_ONCE = 32  # rounds of one worker at a time
IDLE = 0.25  # seconds; the longest time that a due round waits to be noticed while a hand is free
ANEW = 300.0  # seconds between two looks whether every partner has a due time
JITTER = 0.1  # of the time until the next round, by which it may come later: so partners do not stay in step
BUSY = timedelta(seconds=1)  # until a partner is tried again that another worker is at
LONGEST = 300.0  # seconds until a round that failed is tried again


@dataclass(frozen=True, slots=True)
class Turn:
    """What a round came to: how much was done, and when the next one is due."""

    done: int
    again: datetime


class Attendance:
    """The rounds of one worker, by the partners' names."""

    def __init__(
        self,
        store: Store,
        rounds: Mapping[str, Callable[[], Awaitable[Turn]]],
        holder: str,
        lease: timedelta,
        at_once: int = AT_ONCE,
    ) -> None:
        self.store, self.rounds, self.holder, self.lease, self.at_once = store, rounds, holder, lease, at_once
        self._running: dict[str, asyncio.Task[None]] = {}
        self._lot = random.Random(holder)  # noqa: S311 nothing is secret about it

    async def run(self) -> None:
        """Attend until cancelled. A database that fails is waited for."""
        planned, pause = -ANEW, IDLE
        try:
            while True:
                try:
                    if (now := monotonic()) - planned >= ANEW:
                        await self.plan()
                        planned = now
                    heard = await self.store.heard()
                    if not await self.start():
                        await self._wait(heard)
                    pause = IDLE
                except Exception as error:
                    log.error("partners failed with %s; again in %.1f s", type(error).__name__, pause)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 60.0)
        finally:
            await self.close()

    async def close(self) -> None:
        """End what runs, and give it back."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def plan(self) -> None:
        """See that every partner has a due time."""
        for name in sorted(self.rounds):
            if await self.store.timer(f"{DUE}:{name}") is None:
                await self.store.transact([due(name, self.store.clock())], origin="hub")

    async def start(self) -> int:
        """Take as many due rounds as there are hands free. Returns how many were taken."""
        self._running = {key: task for key, task in self._running.items() if not task.done()}
        free = self.at_once - len(self._running)
        claimed = await self.store.claim_timers({DUE}, limit=free, lease=self.lease) if free > 0 else []
        for timer in claimed:
            self._running[f"{timer.key}/{timer.token}"] = asyncio.create_task(self._turn(timer))
        return len(claimed)

    async def _wait(self, heard: int) -> None:
        """Until something changed since what was heard, a hand is free, or for a moment."""
        signal = asyncio.create_task(self.store.wait(IDLE, heard))
        full = self._running.values() if len(self._running) >= self.at_once else ()
        try:
            await asyncio.wait({signal, *full}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signal.cancel()
            await asyncio.gather(signal, return_exceptions=True)

    async def _turn(self, timer: Timer) -> None:
        name = timer.payload["partner"]
        try:
            if name not in self.rounds:  # taken out of the settings; a worker that knows it sets it anew
                await self.store.transact([FinishTimer(timer)], origin="hub")
            elif await self.store.lease(timer.key, self._holder(timer), self.lease.total_seconds()):
                await self._held(timer, name)
            else:
                await self.store.retry_timer(timer, self.store.clock() + BUSY)
        except StaleClaim:
            log.debug("%s was woken meanwhile", name)
        except Exception as error:  # the database failed: when the claim ends, somebody takes it again
            log.error("partner:%s was left with %s", name, type(error).__name__)

    def _holder(self, timer: Timer) -> str:
        """Each turn has a name of its own: a partner that is woken while this worker is at it must wait, here as elsewhere."""
        return f"{self.holder}/{timer.token}"

    async def _held(self, timer: Timer, name: str) -> None:
        renewal = asyncio.create_task(self._renew(timer))
        try:
            turn = await self._round(timer, name, renewal)
        finally:
            renewal.cancel()
            await self.store.release(timer.key, self._holder(timer))
        if turn is not None:
            late = (turn.again - self.store.clock()) * (JITTER * self._lot.random())
            again = turn.again + max(late, timedelta())
            await self.store.transact([RepeatTimer(timer, again, timer.payload)], origin="hub")

    async def _round(self, timer: Timer, name: str, renewal: asyncio.Task[None]) -> Turn | None:
        """One round; None when it failed, or when the lease was lost and somebody else has it."""
        work = asyncio.ensure_future(self.rounds[name]())
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            log.warning("%s: the lease was lost", name)
        except Exception as error:
            # Texts of unknown errors may quote a resource, so only the kind is told.
            pause = min(0.2 * 2.0**timer.attempts, LONGEST)
            log.error("partner:%s failed with %s; again in %.1f s", name, type(error).__name__, pause)
            await self.store.retry_timer(timer, self.store.clock() + timedelta(seconds=pause))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return None

    async def _renew(self, timer: Timer) -> None:
        """Keep the lease and the claim; returns when the lease was lost. A claim that is lost means that the partner was woken."""
        seconds = self.lease.total_seconds()
        while True:
            await asyncio.sleep(seconds / 3)
            if not await self.store.lease(timer.key, self._holder(timer), seconds):
                return
            await self.store.extend_timer(timer, self.lease)
