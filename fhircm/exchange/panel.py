"""Read a panel from a partner: for each patient what the partner's searches find, and what that refers to.

https://hl7.org/fhir/R4/group.html and https://hl7.org/fhir/R4/search.html. Which searches, and which types by reference, is in
partner.yaml. A type that the partner refuses or cannot deliver is told and left out; the rest is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused
from fhircm.exchange.mapping import Source, referred
from fhircm.exchange.mirror import GONE, Batch, Refusal, Row
from fhircm.exchange.pages import Received, newest
from fhircm.exchange.partners import PullType
from fhircm.exchange.quarantine import nameless
from fhircm.fhir.outcome import Issue

STRIKES = 3  # of one type in a row, before it is left for the next pull
OVERLAP = timedelta(minutes=10)  # of two reads by _lastUpdated: clocks differ, and a transaction may be slow
FULL_AGAIN = timedelta(days=1)  # _lastUpdated is believed for so long
Result = TypeVar("Result")


class Stopped(Exception):
    """The partner is in trouble as a whole: going on now would be useless or impolite. Its cause is the partner's error."""


@dataclass
class Reading:
    """What was read of one patient, ready to be written."""

    batch: Batch
    refused: list[Refusal] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # what is left for the next pull


class Panel:
    """One panel during one pull: what patients share is read once."""

    def __init__(self, client: PartnerClient, patients: Iterable[str]) -> None:
        self.client, self.partner, self.base = client, client.partner, client.partner.base_url
        self.patients = sorted(set(patients))
        self.members = frozenset(self.patients)
        self._by_reference = {one.type for one in self.partner.pull if one.by_reference}
        self._shared: dict[Source, asyncio.Task[Received | None]] = {}
        self._strikes: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()

    async def read(self, id: str, row: Row) -> Reading:
        """Read one patient. Raises Stopped, and what the partner answered when the Patient itself cannot be had."""
        reading = Reading(Batch(f"Patient/{id}", row))
        here = Source("Patient", id)
        reading.batch.own[here] = await self._tried("Patient", lambda: self.client.read("Patient", id))
        whole = await together(self._type(one, reading, id) for one in self.partner.pull if one.searches)
        reading.batch.whole = frozenset({"Patient", *(type for type in whole if type is not None)})
        await self._vanished(reading)
        await self._follow(reading)
        return reading

    async def again(self, known: Iterable[Source]) -> Reading:
        """Read shared resources that nothing led to in this pull, to see whether they changed."""
        reading = Reading(Batch("", Row()))
        await self._read_shared(reading, set(known))
        await self._follow(reading)
        return reading

    def may_come(self, wanted: frozenset[Source]) -> frozenset[Source]:
        """Of what was referred to and is not at the hub, what this pull did not yet ask the partner for in vain."""
        return frozenset(one for one in wanted if not self._is_absent(one))

    def _is_absent(self, one: Source) -> bool:
        task = self._shared.get(one)
        return task is not None and task.done() and not task.cancelled() and not task.exception() and task.result() is None

    async def close(self) -> None:
        """End what is still being read."""
        for task in self._shared.values():
            task.cancel()
        await asyncio.gather(*self._shared.values(), return_exceptions=True)

    # --- one type of one patient ----------------------------------------------------------------------------------------------

    async def _type(self, one: PullType, reading: Reading, id: str) -> str | None:
        """Search for one type; returns it when everything that there is was found, rather than what changed."""
        mark, since = self._since(one, reading.batch.row)
        try:
            found: list[Received] = []
            for search in one.searches:
                parameters = [(name, value.replace("{patient}", id)) for name, value in search] + since
                found += await self._tried(one.type, lambda sent=parameters: self.client.search_all(one.type, sent))
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            reading.failed.append(f"{one.type} of Patient/{id}: {error}")
            self._keep_mark(one, reading)
            return None
        except PartnerRefused as error:
            self._refuse(reading, f"{one.type}, by search", error)
            self._keep_mark(one, reading)
            return None
        if mark is not None:
            reading.batch.marks[one.strategy] = mark
            reading.batch.marks_matter |= not since
        for received in newest(found):
            self._own(reading, received)
        return None if since else one.type

    def _since(self, one: PullType, row: Row) -> tuple[dict[str, str] | None, list[tuple[str, str]]]:
        """The mark to keep once this is read, and the parameter that asks for what changed since the last one."""
        now = self.client.counts.clock
        if not one.last_updated or now is None:
            return None, []
        before = row.marks.get(one.strategy)
        if before is None or now - datetime.fromisoformat(before["full"]) > FULL_AGAIN:
            return {"full": now.isoformat(), "since": now.isoformat()}, []
        since = datetime.fromisoformat(before["since"]) - OVERLAP
        asked = ("_lastUpdated", f"ge{since.strftime('%Y-%m-%dT%H:%M:%SZ')}")
        return {"full": before["full"], "since": now.isoformat()}, [asked]

    def _keep_mark(self, one: PullType, reading: Reading) -> None:
        if one.strategy in reading.batch.row.marks:
            reading.batch.marks[one.strategy] = reading.batch.row.marks[one.strategy]

    def _own(self, reading: Reading, received: Received) -> None:
        """Take a resource that was found for a patient, if it has a name and is of a type that is wanted."""
        if received.type is None or not received.id:
            strange = nameless(received, reading.batch.key)
            reading.batch.strange[strange.name] = strange
            reading.refused.append(Refusal(strange.name, tuple(strange.why.issues)))
        elif received.type in self.partner.types:
            reading.batch.own.setdefault(Source(received.type, received.id), received)

    def _is_ours(self, received: Received) -> bool:
        """Whether a resource speaks of the panel's patients alone."""
        return all(target.type != "Patient" or target.id in self.members for target in referred(self.base, received.body))

    async def _vanished(self, reading: Reading) -> None:
        """What a search found before and does not find now may have changed its status, or be gone: ask by id."""
        batch = reading.batch
        before = [Source(*name.split("/", 1)) for name, mark in batch.row.of.items() if mark != GONE]

        async def ask(one: Source) -> None:
            try:
                self._own(reading, await self._tried(one.type, lambda: self.client.read(one.type, one.id)))
            except (PartnerUnavailable, PartnerAnswerBroken) as error:
                reading.failed.append(f"{one}: {error}")
            except PartnerRefused as error:
                if error.answered in (404, 410):
                    batch.gone.add(one)

        await together(ask(one) for one in before if one.type in batch.whole and one not in batch.own)

    # --- what is referred to --------------------------------------------------------------------------------------------------

    async def _follow(self, reading: Reading) -> None:
        """Read what the patient's resources refer to, and what that refers to, as far as partner.yaml says."""
        batch = reading.batch
        wanted = {Source("Organization", self.partner.organization.id)}
        wanted |= {target for received in batch.own.values() for target in referred(self.base, received.body)}
        wanted |= {target for received in batch.shared.values() for target in referred(self.base, received.body)}
        seen: set[Source] = set(batch.own) | set(batch.shared)
        while wanted := {one for one in wanted - seen if self._may_follow(one)}:
            seen |= wanted
            fresh = await self._read_shared(reading, wanted)
            wanted = {target for received in fresh for target in referred(self.base, received.body)}

    def _may_follow(self, one: Source) -> bool:
        if one.type == "Patient":
            return one.id in self.members
        return one.type in self._by_reference or one == Source("Organization", self.partner.organization.id)

    async def _read_shared(self, reading: Reading, wanted: set[Source]) -> list[Received]:
        fresh: list[Received] = []

        async def ask(one: Source) -> None:
            try:
                received = await self._once(one)
            except (PartnerUnavailable, PartnerAnswerBroken) as error:
                reading.failed.append(f"{one}: {error}")
            else:
                if received is not None:
                    reading.batch.shared[one] = received
                    fresh.append(received)

        await together(ask(one) for one in sorted(wanted))
        return fresh

    async def _once(self, one: Source) -> Received | None:
        """A shared resource, read at most once in a pull; None when the partner does not give it."""
        task = self._shared.get(one)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._shared[one] = asyncio.create_task(self._given(one))
        return await asyncio.shield(task)

    async def _given(self, one: Source) -> Received | None:
        try:
            received = await self._tried(one.type, lambda: self.client.read(one.type, one.id))
        except PartnerRefused:
            return None
        return received if received.id == one.id and self._is_ours(received) else None

    # --- asking ---------------------------------------------------------------------------------------------------------------

    async def _tried(self, type: str, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Ask, unless the partner failed at this type again and again. Raises Stopped when asking anything more is useless."""
        if self._strikes.get(type, 0) >= STRIKES:
            raise PartnerUnavailable(f"{type} is left for the next pull, after {STRIKES} failures in a row")
        try:
            result = await ask()
        except SignInRefused as error:
            raise Stopped from error
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            self._strikes[type] = self._strikes.get(type, 0) + 1
            if self._asks_for_time(error) or (type == "Patient" and self._strikes[type] >= STRIKES):
                raise Stopped from error
            raise
        self._strikes[type] = 0
        return result

    def _asks_for_time(self, error: PartnerUnavailable | PartnerAnswerBroken) -> bool:
        """Whether the partner as a whole wants to be left alone for a while."""
        if not isinstance(error, PartnerUnavailable):
            return False
        return error.throttled or (error.retry_after or 0) > self.partner.limits.patience

    def _refuse(self, reading: Reading, what: str, error: Any) -> None:
        """Tell a refusal once in a pull."""
        if (what, str(error)) not in self._told:
            self._told.add((what, str(error)))
            reading.refused.append(Refusal(what, (Issue("error", error.code, str(error)),)))


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Do these together and return their results; when one fails, end the others and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
