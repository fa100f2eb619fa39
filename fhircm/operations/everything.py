"""$everything: the record of patients, of an encounter or of an episode of care, and what it refers to.

https://hl7.org/fhir/R4/patient-operation-everything.html, encounter-operation-everything.html and group-operation-everything.html.
It is a search over all types that can belong there: pages are of one moment, and each is as large as one page, whatever the record is.
What is referred to comes along on the page of what refers to it, so the same Practitioner may stand on several pages. With `_type`, what
comes along is looked for from the types that are asked for; when one of them only ever comes along, from all. Provenance of what is in the
record is there for those who name it: it costs a join over every type. So are AuditEvents: who looked at a record is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fhircm.fhir.belonging import (
    Belonging,
    administrative,
    in_time,
    of_encounter,
    of_episode,
    of_every_patient,
    of_patients,
    with_provenance,
    without_audit,
)
from fhircm.fhir.conditions import Condition, IdTest, InvalidValue, Matches, SpanTest
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden
from fhircm.fhir.query import MAX_COUNT, Cursor, Include, Query
from fhircm.fhir.ranges import date_range
from fhircm.operations.call import Call, Entry, Searchset
from fhircm.operations.linked import joined
from fhircm.store.stored import Stored

if TYPE_CHECKING:
    from fhircm.store.search import Page

AT_ONCE = 20  # members of a Group whose records are in one search


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for: `types` that may be in the answer (`named` one by one), the time of care and of the last change in microseconds."""

    named: frozenset[str]
    types: frozenset[str]
    low: int | None
    high: int | None
    since: int | None
    count: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page begins: the patients that it is about, which members of which version of a Group, and the cursor of the search."""

    patients: tuple[str, ...] = ()
    group: int = 0
    member: int = 0
    cursor: Cursor | None = None

    def as_json(self) -> dict[str, Any]:
        return {"p": self.patients, "g": self.group, "m": self.member, "c": self.cursor.as_json() if self.cursor else None}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> _Place:
        cursor = Cursor.from_json(state["c"]) if state["c"] is not None else None
        return cls(tuple(state["p"]), state["g"], state["m"], cursor)


async def everything(call: Call) -> Searchset:
    """A page of the record."""
    path = "/".join(filter(None, (call.type, call.id, "$everything")))
    given, place = await _asked_here(call, path)
    asked = _asked(given)
    place, beyond = await _begun(call, place)
    page = await _page(call, asked, place)
    url = f"{call.base_url}/{path}"
    following = replace(place, cursor=page.next) if page.next else _Place(group=place.group, member=beyond) if beyond else None
    shown = call.type != "Group" and all(one.type in asked.types for one in page.matches)
    return Searchset(
        await _entries(call, asked, page),
        total=page.total if shown else None,  # known for nothing when one page holds all
        self_url=f"{url}?{urlencode(given)}" if given else url,
        next_url=f"{url}?_page={call.links.write(path, given, following.as_json())}" if following else None,
    )


async def _asked_here(call: Call, path: str) -> tuple[list[tuple[str, str]], _Place]:
    """The parameters and the place of this page: the first, or the one that a next link leads to. Raises NotFound, Gone, Malformed."""
    token = call.one("_page")
    if token is not None:
        given, state = call.links.read(path, token)
        return given, _Place.from_json(state)
    version = (await call.store.read(call.type, call.id)).version if call.type and call.id else 0
    return [(one.name, str(one.value)) for one in call.arguments], _Place(group=version)


async def _page(call: Call, asked: _Asked, place: _Place) -> Page:
    belonging = _belonging(call, place)
    if "Provenance" in asked.named:
        belonging = with_provenance(belonging)
    if "AuditEvent" not in asked.named:
        belonging = without_audit(belonging)
    there = await call.store.searchable_types()
    return await call.store.search(_query(belonging, asked, _types(call, belonging, asked, there), there, place.cursor))


async def _entries(call: Call, asked: _Asked, page: Page) -> list[Entry]:
    binaries = await _binaries(call, page.matches) if "Binary" in asked.types else []
    found = [(one, "match") for one in page.matches] + [(one, "include") for one in (*page.included, *binaries)]
    return [Entry(one, {"mode": mode}) for one, mode in found if one.type in asked.types]


async def _binaries(call: Call, matches: Sequence[Stored]) -> list[Stored]:
    """The Binaries here whose addresses stand in attachments, which are no references."""
    addresses = re.compile(rb'"url"\s*:\s*"(?:' + re.escape(call.base_url.encode()) + rb'/)?Binary/([A-Za-z0-9\-.]{1,64})"')
    ids = sorted({found.decode() for one in matches for found in addresses.findall(one.body)})
    if not ids or not call.store.principal.may("s", "Binary"):
        return []
    condition = Matches("Binary", "_id", tuple(map(IdTest, ids)))
    return (await call.store.search(Query("Binary", (condition,), count=len(ids)))).matches


def _asked(given: Sequence[tuple[str, str]]) -> _Asked:
    known = definitions().resource_types
    named = [type for name, value in given if name == "_type" for type in value.split(",")]
    unknown = [type for type in named if type not in known]
    if unknown:
        raise InvalidValue(f"'_type' names '{unknown[0][:64]}', which is not a resource type of FHIR R4")
    values = dict(given)
    low, high, since = (_moment(values, *one) for one in (("start", 0), ("end", 1), ("_since", 0)))
    if low is not None and high is not None and low >= high:
        raise InvalidValue("'start' is after 'end'")
    count = int(values.get("_count", MAX_COUNT))
    if count < 1:
        raise InvalidValue("'_count' takes a whole number of 1 or more")
    return _Asked(frozenset(named), frozenset(named) or known, low, high, since, min(count, MAX_COUNT))


def _moment(values: dict[str, str], name: str, which: int) -> int | None:
    try:
        return date_range(values[name])[which] if name in values else None
    except ValueError as error:
        raise InvalidValue(f"'{name}' takes a date: this is {error}") from None


async def _begun(call: Call, place: _Place) -> tuple[_Place, int]:
    """The place with its patients, and with which member of the Group the next search begins (0: there is none)."""
    if call.type == "Patient" and call.id and not place.patients:
        (together,) = await joined(call.store, [call.id])
        return replace(place, patients=tuple(sorted(together))), 0
    if call.type != "Group" or call.id is None:
        return place, 0
    group = await call.store.vread("Group", call.id, place.group)  # whoever comes or goes meanwhile, the pages are of these
    members = list(dict.fromkeys(_members(group.tree)))
    until = place.member + AT_ONCE
    if not place.patients:
        before, now = set(members[: place.member]), members[place.member : until]
        records = [one for one in await joined(call.store, now) if not one & before]  # linked to an earlier member: told there
        place = replace(place, patients=tuple(sorted(id for one in records for id in one)))
    return place, until if until < len(members) else 0


def _members(group: dict[str, Any]) -> list[str]:
    """The Patients who are members now."""
    entities = [member["entity"].get("reference", "") for member in group.get("member", []) if not member.get("inactive")]
    return [reference.removeprefix("Patient/") for reference in entities if reference.startswith("Patient/")]


def _belonging(call: Call, place: _Place) -> Belonging:
    match call.type, call.id:
        case "Encounter", str(id):
            return of_encounter(id)
        case "EpisodeOfCare", str(id):
            return of_episode(id)
        case "Patient", None:
            return of_every_patient()
    return of_patients(place.patients)


def _types(call: Call, belonging: Belonging, asked: _Asked, there: frozenset[str]) -> list[str]:
    """The types to search in. Raises Forbidden when the caller may search none of them."""
    # A type that only comes along is found from everything that could refer to it.
    wanted = belonging.inside.keys() if asked.types - belonging.inside.keys() else asked.types
    allowed = [type for type in belonging.inside if type in wanted and call.store.principal.may("s", type)]
    if not allowed:
        raise Forbidden("To search, the token needs a scope that ends with s, such as system/*.s")
    return [type for type in allowed if type in there] or allowed[:1]


def _query(belonging: Belonging, asked: _Asked, types: Sequence[str], there: frozenset[str], cursor: Cursor | None) -> Query:
    """The search for what belongs there in these types; what comes along is of a type of which there is any."""
    along = tuple((type, conditions) for type, conditions in belonging.along.items() if type in asked.types & there)
    besides = {type: (*_changed(type, asked.since), *in_time(type, asked.low, asked.high)) for type in types}
    first, *others = [(type, (*belonging.inside[type], *besides[type])) for type in types]
    includes = (
        Include("*", "*", None, iterate=False),
        *(Include(type, "*", None, iterate=True) for type in administrative()),
    )
    return Query(
        *first, count=asked.count, includes=includes if along else (), include_only=along, cursor=cursor, others=tuple(others)
    )


def _changed(type: str, since: int | None) -> tuple[Condition, ...]:
    return () if since is None else (Matches(type, "_lastUpdated", (SpanTest("ge", since, since),)),)
