"""The background process: runs reactions and timers, and keeps up with every partner.

Nothing here decides anything: a reaction or a timer handler reads and returns operations, and the worker commits them together with
the cursor or the claim, so that inside the database everything happens exactly once. Any number of workers may run: cursors are
compared and swapped, timers are claimed under a fencing token, and work with a partner is done under a lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from fhircm.attendance import Attendance, Turn
from fhircm.exchange.news import DUE
from fhircm.fhir.outcome import FhirError, NotFound, VersionConflict
from fhircm.reactions import Reaction, TimerHandler
from fhircm.store.changes import Change, Changes, CursorMoved, Position
from fhircm.store.operations import START, Plan, preceded_by
from fhircm.store.resources import FinishTimer, MoveCursor, Op, SetState, Store
from fhircm.store.timers import StaleClaim, Timer

log = logging.getLogger("fhircm.worker")

ATTEMPTS = 5  # of one change at one reaction, before it is parked for a human
BATCH = 200
SCANNED = 4 * BATCH  # changes of any type that are looked through for so many
RETRY = 0.2  # seconds before the second attempt; doubled each time
IDLE = 1.0  # seconds; the longest time that a change whose signal was missed waits to be noticed, or a timer when the clock was changed
CLAIMED = 100  # timers at a time; many are due at the same moment, for days end at the same time for all
TOGETHER = 25  # of one kind, whose outcomes commit together

HELD_UP = 0.02  # seconds; after so long is looked again for changes behind a transaction that had not ended

Park = Callable[[str, str, Exception], Op]
Unpark = Callable[[str, str], Awaitable[Sequence[Op]]]


def parked_at(where: str) -> str:
    """The namespace of what was parked at a reaction or a kind of timer: how to find it again, and the reason."""
    return f"parked:{where}"


class _Look:
    """What reactions read that were woken together: where they stand, and what came after that, each once for all of them."""

    def __init__(self, store: Store, names: Sequence[str], heard: int | None = None) -> None:
        self.heard = heard
        self._store, self._names = store, names
        self._reading = asyncio.Lock()
        self._cursors: dict[str, Position] | None = None
        self._pages: dict[Position, Changes] = {}
        self._until: float | None = None  # by the clock of the event loop: from then on there may be more to read

    def holds(self, heard: int | None) -> bool:
        """Whether who has heard so much would read the same again."""
        return self.heard == heard and (self._until is None or asyncio.get_running_loop().time() < self._until)

    async def cursor(self, name: str) -> Position:
        """Where a reaction stands."""
        async with self._reading:
            if self._cursors is None:
                self._cursors = await self._store.cursors(self._names)
        return self._cursors.get(name, START)

    async def changes(self, after: Position, types: frozenset[str]) -> Changes:
        """At most BATCH changes of some types."""
        async with self._reading:
            if (found := self._pages.get(after)) is None:
                found = self._pages[after] = await self._store.changes(after, limit=SCANNED)
                if found.held_up:
                    self._until = asyncio.get_running_loop().time() + HELD_UP / 2
        return found.of(types, BATCH)


@dataclass
class Worker:
    """Runs everything that happens by itself, over one store."""

    store: Store
    reactions: Sequence[Reaction]
    timers: Sequence[TimerHandler]
    park: Park  # makes the Task that tells a human what was parked
    unpark: Unpark  # ends that Task
    partners: Mapping[str, Callable[[], Awaitable[Turn]]] = field(default_factory=dict)  # name: one round of work
    lease: timedelta = timedelta(seconds=15)
    jobs: Callable[[], Awaitable[int]] | None = None  # one slice of one job, how much was done
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}")
    _look: _Look | None = field(default=None, init=False, repr=False)
    # By reaction: behind its cursor (the first) there is nothing for it up to a place (the second).
    _passed: dict[str, tuple[Position, Position]] = field(default_factory=dict, init=False, repr=False)
    _held_up: set[str] = field(default_factory=set, init=False, repr=False)  # reactions

    async def run(self) -> None:
        """Work until cancelled. One that fails is logged, waits and goes on: it never stops the others."""
        async with asyncio.TaskGroup() as group:
            for reaction in self.reactions:
                group.create_task(
                    self._forever(
                        f"reaction {reaction.name}",
                        lambda heard, reaction=reaction: self.react(reaction, self._shared(heard)),
                        lambda reaction=reaction: self._until_settled(reaction),
                    )
                )
            group.create_task(self._forever("timers", lambda _: self.run_timers(), self._until_due))
            if (jobs := self.jobs) is not None:  # beside the timers: no deadline waits for a slice
                group.create_task(self._forever("jobs", lambda _: jobs()))
            if self.partners:
                group.create_task(Attendance(self.store, self.partners, self.holder, self.lease).run())

    async def run_until_idle(self) -> int:
        """Work until nothing is left to do now. Returns how much was done."""
        total = 0
        while True:
            done = sum([await self.react(reaction, self._shared(None)) for reaction in self.reactions])
            self._look = None
            done += await self.run_timers()
            done += await self.jobs() if self.jobs is not None else 0
            for name, round_of_work in self.partners.items():
                done += await self._leased(f"{DUE}:{name}", round_of_work)
            total += done
            if not done:
                return total

    async def _forever(
        self, what: str, step: Callable[[int], Awaitable[int]], idle: Callable[[], Awaitable[float]] | None = None
    ) -> None:
        pause = RETRY
        while True:
            try:
                heard = await self.store.heard()
                done = await step(heard)
                pause = RETRY
                if not done:
                    await self.store.wait(await idle() if idle else IDLE, heard)
            except Exception as error:
                # Texts of unknown errors may quote a resource, so only the kind is told.
                log.error("%s failed with %s; again in %.1f s", what, type(error).__name__, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 60.0)

    async def react(self, reaction: Reaction, look: _Look | None = None) -> int:
        """Take one batch of changes through a reaction. Returns how many changes were read; `look`: what others read, too."""
        look = look or _Look(self.store, [reaction.name])
        before = cursor = await look.cursor(reaction.name)
        at, upto = self._passed.get(reaction.name, (START, START))
        batch = await look.changes(max(upto, cursor) if at == cursor else cursor, reaction.types)
        (self._held_up.add if batch.held_up else self._held_up.discard)(reaction.name)
        try:
            for change in batch.changes:
                before = await self._react_to(reaction, change, before)
            if batch.upto > before and (batch.changes or batch.upto.number - before.number > BATCH):
                await self._commit([MoveCursor(reaction.name, before, batch.upto)])
                before = batch.upto
            self._passed[reaction.name] = before, batch.upto
        except CursorMoved:
            self._look = None
            log.debug("another worker was first at %s", reaction.name)
        return len(batch.changes)

    def _shared(self, heard: int | None) -> _Look:
        """What is read at this moment: by all who were woken by the same change, until one of them writes."""
        if self._look is None or not self._look.holds(heard):
            self._look = _Look(self.store, [reaction.name for reaction in self.reactions], heard)
        return self._look

    async def _until_settled(self, reaction: Reaction) -> float:
        return HELD_UP if reaction.name in self._held_up else IDLE

    async def _commit(self, operations: Sequence[Op] | Plan) -> None:
        await self.store.transact(operations, origin="hub")
        self._look = None

    async def _react_to(self, reaction: Reaction, change: Change, before: Position) -> Position:
        """One change. Returns where the cursor stands: it moves only with something to commit, or at the end of the batch."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                operations = await reaction.function(change)
                if not operations:
                    return before
                await self._commit(preceded_by(operations, MoveCursor(reaction.name, before, change.position)))
                return change.position
            except CursorMoved:
                raise
            except Exception as error:
                if attempt == ATTEMPTS:
                    return await self._park(reaction, change, before, error)
                if not isinstance(error, VersionConflict):  # a conflict means that the world moved: look again at once
                    log.warning("%s: attempt %d failed with %s", reaction.name, attempt, type(error).__name__)
                    await asyncio.sleep(RETRY * 2**attempt)
        raise AssertionError("unreachable")

    async def _park(self, reaction: Reaction, change: Change, before: Position, error: Exception) -> Position:
        what = f"{change.type}/{change.id}/_history/{change.version}"
        log.error("%s: parked %s after %d attempts (%s)", reaction.name, what, ATTEMPTS, type(error).__name__)
        why = str(error) if isinstance(error, FhirError) else type(error).__name__
        parked = SetState(parked_at(reaction.name), what, {"reason": why})
        cursor = MoveCursor(reaction.name, before, change.position)
        await self._commit([parked, self.park(reaction.name, what, error), cursor])
        return change.position

    async def run_timers(self) -> int:
        """Claim and handle the timers that are due. Returns how many."""
        handlers = {handler.kind: handler for handler in self.timers}
        claimed = await self.store.claim_timers(frozenset(handlers), limit=CLAIMED, lease=self.lease)
        for kind, handler in handlers.items():
            of_kind = [timer for timer in claimed if timer.kind == kind]
            for start in range(0, len(of_kind), TOGETHER):
                await self._handle_together(handler, of_kind[start : start + TOGETHER])
        return len(claimed)

    async def _until_due(self) -> float:
        """How long nothing is due, at most IDLE (seconds)."""
        due = await self.store.next_due(frozenset(handler.kind for handler in self.timers))
        return IDLE if due is None else min(IDLE, max(0.01, (due - self.store.clock()).total_seconds()))

    async def _handle_together(self, handler: TimerHandler, timers: Sequence[Timer]) -> None:
        """Timers in one transaction; when that fails, each for itself, so that one that is wrong holds back no other."""
        if len(timers) > 1:
            outcomes = await asyncio.gather(*(handler.function(timer) for timer in timers), return_exceptions=True)
            try:
                for failed in (one for one in outcomes if isinstance(one, BaseException)):
                    raise failed
                finished = [[FinishTimer(timer), *outcome] for timer, outcome in zip(timers, outcomes, strict=True)]
                await self.store.transact([one for each in finished for one in each], origin="hub")
                return
            except Exception as error:
                log.debug("%d timers of %s are handled one by one (%s)", len(timers), handler.kind, type(error).__name__)
        for timer in timers:
            await self._handle(handler, timer)

    async def _handle(self, handler: TimerHandler, timer: Timer) -> None:
        try:
            operations = await handler.function(timer)
            # Finished first: a handler may set the same timer anew.
            await self.store.transact(preceded_by(operations, FinishTimer(timer)), origin="hub")
        except StaleClaim:
            log.info("timer %s was taken over by another worker", timer.key)
        except Exception as error:
            if timer.attempts < ATTEMPTS:
                log.warning("timer %s: attempt %d failed with %s", timer.key, timer.attempts, type(error).__name__)
                await self.store.retry_timer(timer, self.store.clock() + timedelta(seconds=RETRY * 2**timer.attempts))
                return
            log.error("timer %s: parked after %d attempts (%s)", timer.key, timer.attempts, type(error).__name__)
            what = f"{timer.key} due {timer.due.isoformat()}"  # a timer of the same key may be set and parked again
            row = {"reason": type(error).__name__, "key": timer.key, "due": timer.due.isoformat(), "payload": timer.payload}
            parked = SetState(parked_at(timer.kind), what, row)
            await self.store.transact([parked, self.park(timer.kind, what, error), FinishTimer(timer)], origin="hub")

    # --- again, when a human asks ------------------------------------------------------------------------------------------------

    async def replay(self, where: str, what: str) -> None:
        """Do again what was parked at a reaction or a kind of timer; its outcome, and the end of its Task, commit once.

        Raises NotFound when nothing waits there, Conflict when another process was first, and what the function itself raises again.
        """
        row = await self.store.state(parked_at(where), what)
        if row is None:
            raise NotFound(f"Nothing waits at {where} under {what}")
        operations = await self._again(where, what, row)
        done = SetState(parked_at(where), what, None, if_present=True)
        await self.store.transact(preceded_by(operations, done, *await self.unpark(where, what)), origin="hub")

    async def _again(self, where: str, what: str, row: Mapping[str, Any]) -> Sequence[Op] | Plan:
        reaction = next((one for one in self.reactions if one.name == where), None)
        if reaction is not None:
            type, id, _, version = what.split("/")
            return await reaction.function(await self.store.change(type, id, int(version)))
        handler = next(one for one in self.timers if one.kind == where)
        due = datetime.fromisoformat(row["due"])
        return await handler.function(Timer(row["key"], where, due, row["payload"], attempts=1, token=0))

    async def _leased(self, name: str, work: Callable[[], Awaitable[Turn]]) -> int:
        """One round under a lease; when another worker holds the lease, there is nothing to do."""
        if not await self.store.lease(name, self.holder, self.lease.total_seconds()):
            return 0
        renewal = asyncio.create_task(self._renew(name))
        try:
            return (await work()).done
        finally:
            renewal.cancel()
            await self.store.release(name, self.holder)

    async def _renew(self, name: str) -> None:
        """Keep a lease; returns when it was lost."""
        seconds = self.lease.total_seconds()
        while await self.store.lease(name, self.holder, seconds):
            await asyncio.sleep(seconds / 3)
