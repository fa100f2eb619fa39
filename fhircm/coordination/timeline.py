"""The story of a patient from resources alone: who did what, in order, over all records of the human and all organisations.

https://hl7.org/fhir/R4/provenance.html. What the hub and its clients did stands in Provenance, one for each version that they wrote; what
happened elsewhere stands in the resources that came from there (happenings.py). Everything is found by the patients, so it costs what their
own records cost, whoever else there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.codes import codings, identifiers
from fhircm.coordination.context import Record, any_of
from fhircm.coordination.happenings import TELLING, happenings
from fhircm.coordination.people import linked, named, patients_value
from fhircm.coordination.task_states import mirrored
from fhircm.coordination.wording import text_of
from fhircm.fhir.outcome import NotFound
from fhircm.fhir.ranges import LATEST, date_range
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import DELIVERY
from fhircm.store.resources import Store, Stored
from fhircm.store.stored import micros, moment

Tree = dict[str, Any]
_COPIED = ("http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "receive")
_PRECISIONS = {4: "year", 7: "month", 10: "day"}  # by the length of what is written; anything longer is a time
_ORGANIZATIONS = frozenset({"Organization", "HealthcareService"})

Place = tuple[int, str, int, str, int]  # of an entry in the order of the story


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: when, who did it, what, and the reference of what it is about.

    `at` is when it began (UTC), as exactly as `precision` (year, month, day or time) says; both None when the source has no date that can be
    read. `written` is the date as it stands there. `actor` and `organization` are References. `source` is the meta.source of what came from elsewhere;
    None: it happened here. `told_by`: the reference of the resource that says so. `place`: where it stands in the order.
    """

    at: datetime | None
    who: str
    what: str
    reference: str
    precision: str | None = None
    written: str | None = None
    actor: Tree | None = field(default=None, compare=False)
    organization: Tree | None = field(default=None, compare=False)
    source: str | None = None
    told_by: str = ""
    place: Place = (LATEST, "", 0, "", 0)


async def timeline(
    store: Store | GuardedStore, patient_id: str, *, since: datetime | None = None, until: datetime | None = None
) -> list[Entry]:
    """The story of the human whose Patient this is, the oldest first, and last what has no date; of a guarded store, as far as its caller sees it.

    With `since` (from then on) or `until` (before it) what has no date is left out. Raises NotFound.
    """
    record = Record(store)
    if await record.get("Patient", patient_id) is None:
        raise NotFound(f"Patient/{patient_id} is not known")
    patients = await linked(record, patient_id) if _may(store, "Person") else [patient_id]
    names = _Names(record)
    done = await _seen(store, [one for one in await _provenance(store, record, patients) if _tells(one)])
    entries = [await _done(names, one) for one in done]
    told = {"/".join(entry.reference.split("/")[:2]) for entry in entries}
    for type in TELLING:
        for stored in await record.find(type, patients_value(patients)) if _may(store, type) else ():
            # What was sent from here comes back as a copy; what has a Provenance is told by that.
            if (mirrored(stored.tree) or f"{type}/{stored.id}" not in told) and not identifiers(stored.tree, DELIVERY):
                entries += await _happened(names, stored)
    return sorted((one for one in entries if _within(one, since, until)), key=lambda entry: entry.place)


def rendered(entries: list[Entry], zone: ZoneInfo) -> str:
    """The story as lines of text, on the clock of a time zone: when, who, what; what stands in both records of a human is one line."""
    width = max((len(entry.who) for entry in entries), default=0)
    return "\n".join(dict.fromkeys(f"{_clock(entry, zone):<16}  {entry.who:<{width}}  {entry.what}" for entry in entries))


def _clock(entry: Entry, zone: ZoneInfo) -> str:
    if entry.at is None:
        return "no date"
    return f"{entry.at.astimezone(zone):%Y-%m-%d %H:%M}" if entry.precision == "time" else entry.written or ""


def _within(entry: Entry, since: datetime | None, until: datetime | None) -> bool:
    if entry.at is None:
        return since is None and until is None
    return (since is None or entry.at >= since) and (until is None or entry.at < until)


def _may(store: Store | GuardedStore, type: str) -> bool:
    return not isinstance(store, GuardedStore) or store.principal.may("s", type)


# --- what was done here


async def _provenance(store: Store | GuardedStore, record: Record, patients: list[str]) -> list[Stored]:
    """Every Provenance of the patients, and of the Tasks and Communications about them."""
    if not _may(store, "Provenance"):
        return []
    found = {one.id: one for one in await record.find("Provenance", patients_value(patients))}
    types = [type for type in ("Task", "Communication") if _may(store, type)]
    about = [f"{type}/{one.id}" for type in types for one in await record.find(type, patients_value(patients))]
    if about:
        found |= {one.id: one for one in await record.find("Provenance", ("target", any_of(about)))}
    return list(found.values())


def _tells(stored: Stored) -> bool:
    """Whether a Provenance tells of something: what was copied tells its own story."""
    return _COPIED not in codings(stored.tree.get("activity"))


async def _seen(store: Store | GuardedStore, found: list[Stored]) -> list[Stored]:
    """Those whose target the caller sees: a Provenance says in words what its target is about. What is deleted, only who sees everything is told of."""
    if not isinstance(store, GuardedStore) or store.principal.sees_everything:
        return found
    wanted: dict[str, set[str]] = {}
    targets = {one.id: parse_reference(_about(one.tree)) for one in found}
    for to in targets.values():
        if to.type and to.id:
            wanted.setdefault(to.type, set()).add(to.id)
    seen = {(type, id) for type, ids in wanted.items() for id in await _visible(store, type, ids)}
    return [one for one in found if (targets[one.id].type, targets[one.id].id) in seen]


async def _visible(store: GuardedStore, type: str, ids: Collection[str]) -> Iterable[str]:
    if not store.principal.may("s", type):
        return ()
    return [one.id for one in await Record(store).find(type, ("_id", any_of(sorted(ids))))]


def _about(provenance: Tree) -> str:
    target = provenance["target"][0]
    return str(target.get("reference") or target.get("identifier", {}).get("value", ""))


async def _done(names: _Names, stored: Stored) -> Entry:
    tree, about = stored.tree, _about(stored.tree)
    when = tree.get("occurredDateTime") or tree.get("occurredPeriod", {}).get("start") or tree["recorded"]
    agent = tree["agent"][0]
    what = text_of(tree.get("activity")) or "Changed"
    return await _entry(names, stored, 0, when, agent.get("who"), agent.get("onBehalfOf"), what, about)


# --- what happened elsewhere, and what became of both


async def _happened(names: _Names, stored: Stored) -> list[Entry]:
    """What a resource says happened, with its times."""
    about = f"{stored.type}/{stored.id}"
    return [
        await _entry(names, stored, number, one.when, one.who, one.organization, one.what, about)
        for number, one in enumerate(happenings(stored.tree))
    ]


async def _entry(
    names: _Names,
    stored: Stored,
    number: int,
    when: str | None,
    who: Tree | None,
    organization: Tree | None,
    what: str,
    about: str,
) -> Entry:
    at, precision = _dated(when)
    place, _, version = about.partition("/_history/")
    if organization is None and parse_reference((who or {}).get("reference", "")).type in _ORGANIZATIONS:
        organization = who
    told_by = f"{stored.type}/{stored.id}"
    return Entry(
        at,
        await names.of(who),
        what,
        about,
        precision,
        when if at else None,
        await names.reference(who),
        await names.reference(organization),
        stored.tree.get("meta", {}).get("source"),
        told_by,
        (micros(at) if at else LATEST, place, int(version) if version.isdigit() else 0, told_by, number),
    )


def _dated(text: str | None) -> tuple[datetime | None, str | None]:
    """When it began, in UTC, and how exactly that is said."""
    try:
        return (moment(date_range(text)[0]), _PRECISIONS.get(len(text), "time")) if text else (None, None)
    except (ValueError, OverflowError):
        return None, None


class _Names:
    """What people are called: each is looked for once."""

    def __init__(self, record: Record) -> None:
        self._record, self._known = record, dict[str, str | None]()

    async def of(self, element: Tree | None) -> str:
        """A name, as people know it."""
        if not element:
            return "unknown"
        named = await self.reference(element) or element
        return named.get("display") or element.get("identifier", {}).get("value") or element.get("reference") or "unknown"

    async def reference(self, element: Tree | None) -> Tree | None:
        """The Reference, with a display when there is a name."""
        to = (element or {}).get("reference")
        if element is None or to is None or "display" in element:
            return element
        if to not in self._known:
            found = await self._record.follow(element)
            self._known[to] = (await named(self._record, found)).get("display") if found else None
        return element | ({"display": self._known[to]} if self._known[to] else {})
