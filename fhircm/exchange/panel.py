"""Read a panel from a partner: for each patient what the partner's searches find, and what that refers to.

https://hl7.org/fhir/R4/group.html and https://hl7.org/fhir/R4/search.html. Which searches, and which types by reference, is in
partner.yaml. A type that the partner refuses or cannot deliver is told and left out; the rest is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused
from fhircm.exchange.mapping import Source, referred
from fhircm.exchange.mirror import GONE, Batch, Refusal, Row
from fhircm.exchange.pages import Received, newest
from fhircm.exchange.partners import PullType
from fhircm.exchange.plan import PATIENT, Look
from fhircm.exchange.quarantine import nameless
from fhircm.exchange.together import together
from fhircm.fhir.outcome import Issue

STRIKES = 3  # of one type in a row, before it is left for the next pull
OVERLAP = timedelta(minutes=10)  # of two reads by _lastUpdated: clocks differ, and a transaction may be slow
FULL_AGAIN = timedelta(days=1)  # _lastUpdated is believed for so long
Result = TypeVar("Result")


class Stopped(Exception):
    """The partner is in trouble as a whole: going on now would be useless or impolite. Its cause is the partner's error."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One type of one patient was read without a fault. Clocks in whole seconds since the epoch."""

    at: int  # the hub's, when it began
    there: int  # the partner's then, or the hub's when that was behind; 0 when the partner told none
    full: int  # the partner's, as it told it
    whole: bool  # everything was asked for, rather than what changed
    cost: int  # requests


@dataclass
class Reading:
    """What was read of one patient, ready to be written."""

    batch: Batch
    refused: list[Refusal] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # what is left for the next pull
    wanted: frozenset[str] = frozenset()  # the types that were to be read
    taken: dict[str, Taken] = field(default_factory=dict)  # by type
    broken: dict[str, str] = field(default_factory=dict)  # type: why it could not be read, or not to its end


class Panel:
    """One panel during one pull: what patients share is read once.

    `trusts` tells whether `_lastUpdated` of a type is believed; `whole`: it is not asked for. `known` are shared resources that need not
    be read again in this pull.
    """

    def __init__(
        self,
        client: PartnerClient,
        patients: Iterable[str],
        clock: Callable[[], datetime],
        *,
        trusts: Callable[[str], bool] = lambda _: True,
        whole: bool = False,
        known: Container[Source] = (),
    ) -> None:
        self.client, self.partner, self.base = client, client.partner, client.partner.base_url
        self.patients = sorted(set(patients))
        self.members = frozenset(self.patients)
        self.refuse_since: set[str] = set()  # types whose search by _lastUpdated was refused in this pull
        self._clock, self._trusts, self._whole, self._known = clock, trusts, whole, known
        self._by_reference = {one.type for one in self.partner.pull if one.by_reference}
        self._shared: dict[Source, asyncio.Task[Received | None]] = {}
        self._strikes: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()

    async def read(
        self, id: str, row: Row, looks: Mapping[str, Look], types: Collection[str] | None = None, whole: Collection[str] = ()
    ) -> Reading:
        """Read one patient, or these types of it; those in `whole` from end to end whatever the partner can tell of changes.

        Raises Stopped, and what the partner answered when the Patient itself cannot be had.
        """
        reading = Reading(Batch(f"Patient/{id}", row))
        if types is None or PATIENT in types:
            begun = self._begin()
            here = Source(PATIENT, id)
            reading.batch.own[here] = await self._tried(PATIENT, lambda: self.client.read(PATIENT, id))
            reading.taken[PATIENT] = Taken(*begun, whole=True, cost=1)
        wanted = [one for one in self.partner.pull if one.searches and (types is None or one.type in types)]
        reading.wanted = frozenset(one.type for one in wanted)
        await together(self._type(one, reading, id, looks.get(one.type, Look()), one.type in whole) for one in wanted)
        reading.batch.whole = frozenset(type for type, taken in reading.taken.items() if taken.whole)
        await self._vanished(reading)
        await self._follow(reading)
        return reading

    async def again(self, known: Iterable[Source]) -> Reading:
        """Read shared resources that nothing led to in this pull, to see whether they changed."""
        reading = Reading(Batch("", Row()))
        await self._read_shared(reading, set(known))
        await self._follow(reading)
        return reading

    async def across(self, one: PullType, since: int) -> tuple[dict[str, list[Received]], Taken]:
        """What changed of a type since a second of the partner's clock, by patient of the panel, by one search for all of them.

        Raises Stopped and the client's errors.
        """
        begun, found = self._begin(), list[Received]()
        cost = await self._tried(one.type, lambda: self._pages(one.type, [_changed_since(since)], found))
        by_patient: dict[str, list[Received]] = {}
        for received in newest(found):
            for target in referred(self.base, received.body):
                if target.type == PATIENT and target.id in self.members:
                    by_patient.setdefault(target.id, []).append(received)
        return by_patient, Taken(*begun, whole=False, cost=cost)

    def absent(self) -> Iterator[Source]:
        """What was referred to, asked for, and is not given by the partner."""
        return (one for one in self._shared if self._is_absent(one))

    def may_come(self, wanted: frozenset[Source]) -> frozenset[Source]:
        """Of what was referred to and is not at the hub, what this pull did not yet ask the partner for in vain."""
        return frozenset(one for one in wanted if not self._is_absent(one) and one not in self._known)

    def _is_absent(self, one: Source) -> bool:
        task = self._shared.get(one)
        return task is not None and task.done() and not task.cancelled() and not task.exception() and task.result() is None

    async def close(self) -> None:
        """End what is still being read."""
        for task in self._shared.values():
            task.cancel()
        await asyncio.gather(*self._shared.values(), return_exceptions=True)

    # --- one type of one patient ----------------------------------------------------------------------------------------------

    async def _type(self, one: PullType, reading: Reading, id: str, look: Look, whole: bool) -> None:
        """Search for one type, for everything or for what changed. What came before it broke off is taken, and nothing is claimed."""
        begun, found = self._begin(), list[Received]()
        since = [] if whole else self._since(one, look, begun[1])
        cost = 0
        try:
            for search in one.searches:
                parameters = [(name, value.replace("{patient}", id)) for name, value in search] + since
                cost += await self._tried(one.type, lambda sent=parameters: self._pages(one.type, sent, found))
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            reading.failed.append(f"{one.type} of Patient/{id}: {error}")
            reading.broken[one.type] = str(error)
        except PartnerRefused as error:
            if since:  # it stopped to support what it supported: that costs a search, and nothing is lost
                self.refuse_since.add(one.type)
                await self._type(one, reading, id, look, whole=True)
                return
            self._refuse(reading, f"{one.type}, by search", error)
            reading.broken[one.type] = str(error)
        else:
            reading.taken[one.type] = Taken(*begun, whole=not since, cost=cost)
        for received in newest(found):
            self._own(reading, received)

    async def _pages(self, type: str, parameters: Sequence[tuple[str, str]], found: list[Received]) -> int:
        """Add what a search finds, page by page; returns how many there were."""
        pages = 0
        async for resources in self.client.search(type, parameters):
            found += resources
            pages += 1
        return pages

    def _begin(self) -> tuple[int, int, int]:
        """The clocks before something is read, as Taken wants them.

        A partner's clock that runs ahead of the hub's is not believed: what is changed now would be older than the mark.
        """
        now, there = int(self._clock().timestamp()), self.client.counts.clock
        told = int(there.timestamp()) if there else 0
        return now, min(now, told), told

    def _since(self, one: PullType, look: Look, there: int) -> list[tuple[str, str]]:
        """The parameter that asks for what changed since the last look, when that can be believed."""
        believed = one.last_updated and self._trusts(one.type) and one.type not in self.refuse_since and not self._whole
        told = self.client.counts.clock
        if not believed or told is None or not look.since or not look.full:
            return []
        went_back = there + OVERLAP.total_seconds() < look.since
        old = abs(told.timestamp() - look.full) > FULL_AGAIN.total_seconds()
        return [] if went_back or old else [_changed_since(look.since)]

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
        while wanted := {one for one in wanted - seen if self._may_follow(one) and not self._is_known(one, reading)}:
            seen |= wanted
            fresh = await self._read_shared(reading, wanted)
            wanted = {target for received in fresh for target in referred(self.base, received.body)}

    def _may_follow(self, one: Source) -> bool:
        if one.type == "Patient":
            return one.id in self.members
        return one.type in self._by_reference or one == Source("Organization", self.partner.organization.id)

    def _is_known(self, one: Source, reading: Reading) -> bool:
        """Whether something is looked at on its own, and need not be read because this refers to it."""
        mark = reading.batch.row.of.get(str(one))
        return one in self._known or (mark not in (None, GONE) and bool(reading.wanted) and one.type not in reading.wanted)

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


def _changed_since(second: int) -> tuple[str, str]:
    since = datetime.fromtimestamp(second, UTC) - OVERLAP
    return "_lastUpdated", f"ge{since.strftime('%Y-%m-%dT%H:%M:%SZ')}"
