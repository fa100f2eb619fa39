"""What reactions and timer handlers know: the store, who coordinates, the neighbours and their calendars, and the pathways.

https://hl7.org/fhir/R4/search.html. The clock is the store's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.build import reference
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import Pathway
from fhircm.fhir.conditions import LENGTH_LIMIT
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import CancelTimer, Op, SetTimer, Store, Stored

Tree = dict[str, Any]
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is on record, to be read; with a guarded store, what its principal may see of it."""

    store: Store | GuardedStore

    async def get(self, type: str, id: str) -> Stored | None:
        """The current version, unless there is none or it is deleted."""
        return (await self.store.read_many([(type, id)])).get((type, id))

    async def follow(self, element: Tree | None) -> Stored | None:
        """What a Reference to this server points to."""
        to = parse_reference((element or {}).get("reference", ""))
        return await self.get(to.type, to.id) if to.kind == "local" and to.type and to.id else None

    async def find(self, type: str, *parameters: tuple[str, str]) -> list[Stored]:
        """Everything that a search finds, over all its pages, by id: the same answer whenever the same things are there.

        A value that lists more alternatives than one may have is asked for in parts.
        """
        long = next((place for place, (_, value) in enumerate(parameters) if len(value) > LENGTH_LIMIT and "," in value), None)
        if long is None:
            return await self.find_any([(type, parameters)])
        found: dict[str, Stored] = {}
        name, value = parameters[long]
        for part in _parts(value):
            for one in await self.find(type, *parameters[:long], (name, part), *parameters[long + 1 :]):
                found[one.id] = one
        return [found[id] for id in sorted(found)]

    async def find_any(self, searches: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> list[Stored]:
        """The same over several searches, each of a type with its parameters, in one question; what several find comes once."""
        parsed = [parse_query(type, [*parameters, ("_count", str(_PAGE))]) for type, parameters in searches]
        query = replace(parsed[0], others=tuple((one.type, one.conditions) for one in parsed[1:]))
        page = await self.store.search(query)
        found = list(page.matches)
        while page.next is not None:
            page = await self.store.search(replace(query, cursor=page.next))
            found += page.matches
        return sorted({(one.type, one.id): one for one in found}.values(), key=lambda stored: (stored.id, stored.type))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A partner, as far as coordination must know it."""

    name: str
    npi: str  # of its organisation
    base_url: str  # of its FHIR API: what meta.source begins with
    calendar: BusinessCalendar
    linking: Any = (
        None  # what fhircm/exchange/identity.py asks for before it links this partner's Patients, when that is more than usual
    )


@dataclass(frozen=True, slots=True)
class Context(Record):
    """What a reaction may look at.

    `organization` is the id of the Organization that coordinates, at the hub; `calendar` is its own, and stands in for an
    organisation that is no neighbour. A discharge or order that the hub first sees later than `window` after it happened starts
    nothing.
    """

    store: Store  # all of it
    organization: str
    organization_name: str
    calendar: BusinessCalendar
    neighbours: tuple[Neighbour, ...] = ()
    pathways: tuple[Pathway, ...] = ()
    window: timedelta = timedelta(days=30)

    def now(self) -> datetime:
        """The time by the store's clock, in UTC."""
        return self.store.clock()

    async def timed(self, key: str, kind: str, due: datetime | None, payload: Tree) -> list[Op]:
        """What sets a timer, or (`due` None) takes it away; nothing when it stands so: most changes move no moment, and have nothing to commit."""
        there = await self.store.timer(key)
        if (there.due if there else None) == due:
            return []
        return [CancelTimer(key) if due is None else SetTimer(key, kind, due, payload)]

    @property
    def coordinator(self) -> Tree:
        """A Reference to the organisation that coordinates."""
        return reference(f"Organization/{self.organization}", self.organization_name)

    def pathways_of(self, event: str) -> list[Pathway]:
        """The pathways that an event starts."""
        return [pathway for pathway in self.pathways if pathway.event == event]

    def pathway_of(self, task: Tree) -> Pathway | None:
        """The pathway that a Task is a step of; another version of it will do."""
        url = task.get("instantiatesCanonical", "").split("|")[0]
        return next((pathway for pathway in self.pathways if pathway.url == url), None) if url else None

    def neighbour(self, *, npi: str | None = None, source: str | None = None) -> Neighbour | None:
        """The partner of this NPI, or from which a resource with this meta.source was pulled."""
        for one in self.neighbours:
            if (npi and one.npi == npi) or (source and source.startswith(f"{one.base_url}/")):
                return one
        return None

    def source_of(self, tree: Tree) -> Neighbour | None:
        """The partner from which a resource was pulled."""
        return self.neighbour(source=tree.get("meta", {}).get("source"))

    def calendar_of(self, neighbour: Neighbour | None) -> BusinessCalendar:
        """The calendar of a partner, or the hub's own."""
        return neighbour.calendar if neighbour else self.calendar


def _parts(value: str) -> Iterator[str]:
    """The alternatives of a search value, as many at once as it may have."""
    part: list[str] = []
    for one in re.split(r"(?<!\\),", value):
        if part and len(",".join([*part, one])) > LENGTH_LIMIT:
            yield ",".join(part)
            part = []
        part.append(one)
    yield ",".join(part)


def any_of(values: Iterable[str]) -> str:
    """A search value that any of these matches."""
    return ",".join(values)


def token(system: str, code: str) -> str:
    """A token as a search value. https://hl7.org/fhir/R4/search.html#escaping"""
    return "|".join(_escaped(part) for part in (system, code))


def _escaped(value: str) -> str:
    for character in "\\,|$":
        value = value.replace(character, "\\" + character)
    return value
