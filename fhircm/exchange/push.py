"""Keep one partner told: read the change log after its own cursor into a queue, and give it of every occasion as much as it can take.

https://hl7.org/fhir/R4/http.html. What a partner cannot take becomes a Task for a human. A partner that does not answer is waited for
and delays nobody else; a delivery that fails delays what follows for the same patient, and no other patient. After so many attempts it is
a dead letter, told to a human, and can be replayed. Every delivery is at least once and seen as the same (fhircm/exchange/sending.py), so a
round may be cut off anywhere and run again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fhircm.exchange.attachments import Fetch
from fhircm.exchange.breaker import Breakers, backoff
from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.dead_letters import parked, replay
from fhircm.exchange.delivering import Delivering, Waits
from fhircm.exchange.due import Due, idle, lanes, moment, queue
from fhircm.exchange.errors import PartnerUnavailable
from fhircm.exchange.noticing import Noticing
from fhircm.exchange.outbound import check_deliver
from fhircm.exchange.partners import Partner
from fhircm.exchange.sending import Sender, TakenOver
from fhircm.exchange.writing import Planner
from fhircm.fhir.outcome import Conflict, VersionConflict
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.resources import SetState, Store

__all__ = ["PushReport", "parked", "push", "replay"]

log = logging.getLogger("fhircm.exchange.push")

AGAIN = 5  # how often what somebody else wrote meanwhile is looked at again


@dataclass
class PushReport:
    """What one round did."""

    partner: str
    changes: int = 0
    delivered: list[str] = field(default_factory=list)  # URLs at the partner
    undelivered: list[str] = field(default_factory=list)  # keys that a human was told of
    superseded: list[str] = field(default_factory=list)  # versions that a newer one overtook before they were sent
    withheld: list[str] = field(default_factory=list)  # keys that a consent keeps from the partner
    waiting_until: datetime | None = None  # nothing more can be done before

    @property
    def done(self) -> int:
        """How much was done; nothing means that there is nothing to do now."""
        return self.changes + len(self.delivered)


async def push(
    store: Store,
    partner: Partner,
    client: PartnerClient,
    capabilities: Capabilities,
    clock: Callable[[], datetime],
    *,
    attempts: int = 8,
    owner: str | None = None,
    fetch: Fetch | None = None,
) -> PushReport:
    """Tell a partner all that is due, then return. One worker at a time for each partner: hold the lease "partner:<name>".

    `attempts` is how often a delivery that fails is tried before a human is told; `owner` is the local reference of the organisation that
    coordinates; `fetch` gets a document's bytes from another partner. Raises ValueError when `deliver` in partner.yaml cannot be followed.
    """
    deliver = check_deliver(partner.deliver)
    report = PushReport(partner.name)
    breakers = Breakers(store, partner.name, partner.breaker, clock)
    await breakers.load()
    sender = Sender(store, client, capabilities, clock)
    delivering = Delivering(
        store, partner, deliver, sender, Planner(capabilities, partner.scopes), breakers, owner, fetch, report
    )
    turn = _Round(store, partner, delivering, breakers, clock, attempts, report)
    try:
        report.changes = await Noticing(store, partner, deliver, clock).read()
        await turn.work(fresh=report.changes > 0)
    except CursorMoved:
        log.info("%s: another worker was first", partner.name)
    return report


async def anything_due(store: Store, partner: str) -> bool:
    """Whether something waits in the queue of a partner."""
    return bool(await store.state_keys(queue(partner), 1))


@dataclass
class _Round:
    store: Store
    partner: Partner
    delivering: Delivering
    breakers: Breakers
    clock: Callable[[], datetime]
    attempts: int
    report: PushReport

    async def work(self, *, fresh: bool) -> None:
        """Work off what is due, as far as that goes now."""
        self.next: datetime | None = None  # the earliest time at which what waits can be tried
        self.stopped: set[str] = set()  # lanes that wait
        if (until := self.breakers.wait()) or (not fresh and (until := await self._idle())):
            self.report.waiting_until = until
            return
        async for found in lanes(self.store, self.partner.name):
            for lane in list(found):
                if self.breakers.half_open and not self.breakers.wait():
                    await self._lane(lane, found.pop(lane))  # one at a time, until one shows that it is back
            if self.breakers.wait():
                break
            await self._together(found)
        self.report.waiting_until = self.breakers.wait() or self.next
        await self._rest()

    async def _together(self, found: dict[str, list[Due]]) -> None:
        """Lanes side by side, as many as the partner bears."""
        slots = asyncio.Semaphore(self.partner.limits.concurrency)

        async def one(lane: str, due: list[Due]) -> None:
            async with slots:
                await self._lane(lane, due)

        tasks = [asyncio.create_task(one(lane, due)) for lane, due in found.items()]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION) if tasks else (set(), set())
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _lane(self, lane: str, waiting: list[Due]) -> None:
        """One patient's, in order, until something there must wait."""
        if lane in self.stopped:
            return
        for number, due in enumerate(waiting):
            until = moment(due.until)
            if until is None or until <= self.clock():
                until = self.breakers.wait() or self.delivering.settles(due, waiting[number + 1 :])
            if until is None:
                until = await self._one(due)
            if until is not None:
                self.stopped.add(lane)
                self.next = min(until, self.next or until)
                return

    async def _one(self, due: Due) -> datetime | None:
        """One thing. Returns until when it waits; None when it is off the queue."""
        name = self.partner.name
        for attempt in range(AGAIN):
            try:
                operations = await self.delivering(due)
            except Waits as waits:
                return waits.until
            except TakenOver:
                return self.clock()
            except (VersionConflict, DatabaseUnavailable):
                raise
            except Exception as error:
                until = await self._failed(due, error)
                if until is not None:
                    return until
                operations = await self.delivering.give_up(due, error)
            try:
                await self.store.transact([*operations, due.done(name)], origin="hub")
                return None
            except VersionConflict:  # somebody wrote what was to be written: look at it again
                log.info("%s: %s was written meanwhile", name, due.key)
                if attempt == AGAIN - 1:
                    raise
            except Conflict:
                log.info("%s: another worker was first at %s", name, due.key)
                return None
        raise AssertionError("unreachable")

    async def _failed(self, due: Due, error: Exception) -> datetime | None:
        """Note that an attempt failed. Returns until when it waits, or None when that was the last. One that was throttled is no attempt."""
        if isinstance(error, PartnerUnavailable) and error.throttled:
            return self.breakers.wait() or self.clock()
        now = self.clock()
        tried = due.attempts + 1
        log.warning("%s: attempt %d at %s failed (%s)", self.partner.name, tried, due.key, type(error).__name__)
        if tried >= self.attempts:
            return None
        until = now + backoff(tried, self.partner.breaker.longest_wait)
        again = due.again(attempts=tried, first=due.first or now.isoformat(), until=until.isoformat())
        await self.store.transact([again.put(self.partner.name)], origin="hub")
        return until

    # --- nothing to do ---------------------------------------------------------------------------------------------------------

    async def _idle(self) -> datetime | None:
        """Until when a look at what is due is of no use. A clock that was set back ends it."""
        row = await self.store.state(*idle(self.partner.name))
        if row is None:
            return None
        since, until = datetime.fromisoformat(row["since"]), datetime.fromisoformat(row["until"])
        return until if since <= self.clock() < until else None

    async def _rest(self) -> None:
        """Remember when something can be done again, so that rounds before cost nothing."""
        now, before = self.clock(), await self.store.state(*idle(self.partner.name))
        row = {"since": now.isoformat(), "until": self.next.isoformat()} if self.next and self.next > now else None
        if row != before and not (before and row and before["until"] == row["until"]):
            await self.store.transact([SetState(*idle(self.partner.name), row)], origin="hub")
