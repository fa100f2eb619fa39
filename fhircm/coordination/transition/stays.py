"""Stays in hospital and visits to an emergency department: what Encounters tell of one human, however the hub came to know them.

https://hl7.org/fhir/R4/encounter.html: class and type say what it is, status and period whether it has begun and is over,
hospitalization where from and where to. profiles/transition/dispositions.yaml says what a disposition means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

from fhircm.coordination.codes import codings, member
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.people import deceased, linked, patients_value
from fhircm.coordination.times import moment
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Stored

Tree = dict[str, Any]
Setting = Literal["inpatient", "observation", "emergency"]
LOOK_BACK = timedelta(days=400)  # as far as anything that is decided here looks
_HAPPENED = frozenset(("arrived", "triaged", "in-progress", "onleave", "finished"))


@dataclass(frozen=True, slots=True)
class Disposition:
    """What one kind of discharge means."""

    name: str
    title: str
    leads_to: str | None
    codes: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Dispositions:
    """The table of profiles/transition/dispositions.yaml."""

    by_code: dict[tuple[str, str], Disposition]
    planned: frozenset[tuple[str, str]]
    arrival: timedelta


@cache
def dispositions() -> Dispositions:
    """The table, read once."""
    tree = read_yaml(folder("profiles") / "transition" / "dispositions.yaml")

    def listed(one: Tree) -> frozenset[tuple[str, str]]:
        return frozenset(
            (system, code) for name, systems in tree["systems"].items() for system in systems for code in one.get(name, ())
        )

    by_code: dict[tuple[str, str], Disposition] = {}
    for name, one in tree["dispositions"].items():
        disposition = Disposition(name, one["title"], one.get("leads-to"), listed(one))
        by_code |= {code: disposition for code in disposition.codes if code not in by_code}
    return Dispositions(by_code, listed(tree["planned-readmission"]), timedelta(hours=tree["arrival-hours"]))


def setting_of(encounter: Tree) -> Setting | None:
    """What an Encounter is, as far as transitions go; None for anything else."""
    if member("observation-stay", encounter.get("class")):
        return "observation"
    if member("inpatient-stay", encounter.get("class")):
        return "inpatient"
    return "emergency" if member("emergency-visit", encounter.get("class"), encounter.get("type")) else None


def disposition_of(encounter: Tree) -> Disposition | None:
    """Where a discharge leads; None when nothing is said, or nothing that is known."""
    said = codings(encounter.get("hospitalization", {}).get("dischargeDisposition"))
    return next((found for code in said if (found := dispositions().by_code.get(code))), None)


@dataclass(frozen=True, slots=True)
class Stay:
    """One stay or emergency visit, as it is known now; times are UTC."""

    stored: Stored
    tree: Tree
    calendar: BusinessCalendar
    setting: Setting
    begun: datetime | None  # None: it has not begun, or was cancelled
    ended: datetime | None  # None: it is not over
    disposition: Disposition | None

    @property
    def id(self) -> str:
        """The id of its Encounter."""
        return self.stored.id

    @property
    def source(self) -> str | None:
        """The system from which its Encounter came."""
        return self.tree.get("meta", {}).get("source", "").partition("/Encounter/")[0] or None

    @property
    def in_bed(self) -> bool:
        """Whether the patient stays: an admission or observation, no emergency visit."""
        return self.setting != "emergency"

    @property
    def place(self) -> Tree | None:
        """Where in the house the patient is now, or was last: a Reference to a Location."""
        places = self.tree.get("location", [])
        here = [one["location"] for one in places if one.get("status", "active") == "active"] or [
            one["location"] for one in places
        ]
        return here[-1] if here else None

    def leads_to(self, other: Stay) -> bool:
        """Whether another stay is where this discharge, or this emergency visit, led to: it begins soon after, and not before."""
        if self.ended is None or other.begun is None or other.id == self.id or not other.in_bed:
            return False
        expected = not self.in_bed or (self.disposition is not None and self.disposition.leads_to is not None)
        since = self.begun if not self.in_bed and self.begun else self.ended
        return expected and since <= other.begun <= self.ended + dispositions().arrival


def stay(context: Context, stored: Stored) -> Stay | None:
    """An Encounter as a stay or emergency visit; None when it is neither."""
    tree = stored.tree
    setting = setting_of(tree)
    if setting is None:
        return None
    calendar = context.calendar_of(context.source_of(tree))
    period = tree.get("period", {})
    begun = moment(period.get("start"), calendar) if tree["status"] in _HAPPENED else None
    ended = moment(period.get("end"), calendar) if tree["status"] == "finished" else None
    return Stay(stored, tree, calendar, setting, begun, ended, disposition_of(tree))


@dataclass(frozen=True, slots=True)
class Human:
    """One human: the ids of their records, the first one first, and their stays and emergency visits, in order of their beginning."""

    patients: list[str]
    stays: list[Stay]
    dead: bool

    def after(self, one: Stay) -> list[Stay]:
        """The stays that began at or after its end, and those that began during it in the same house and went on."""
        if one.ended is None or one.begun is None:
            return []
        return [other for other in self.stays if other.in_bed and other.id != one.id and self._follows(one, other)]

    def again(self, one: Stay) -> bool:
        """Whether the patient is, or was, in hospital again after a stay, and not where that led to."""
        led_to = self.led_to(one)
        return any(led_to is None or other.id != led_to.id for other in self.after(one))

    def _follows(self, one: Stay, other: Stay) -> bool:
        if one.begun is None or one.ended is None or other.begun is None or self.part_of(other) is not None:
            return False
        goes_on = other.ended is None or other.ended > one.ended
        return other.begun >= one.ended or (other.source == one.source and one.begun < other.begun and goes_on)

    def part_of(self, one: Stay) -> Stay | None:
        """The stay of which it is a part: one ward of it, recorded as an Encounter of its own."""
        to = parse_reference(one.tree.get("partOf", {}).get("reference", ""))
        return next((other for other in self.stays if other.in_bed and other.id == to.id and other.id != one.id), None)

    def led_to(self, one: Stay) -> Stay | None:
        """The stay where a discharge or emergency visit led to, once it has begun."""
        return next((other for other in self.stays if one.leads_to(other)), None)


async def human(context: Context, patient: str, *also: Stored) -> Human:
    """Everything about one human's stays; `also` are Encounters that are looked at whatever their dates."""
    patients = await linked(context, patient)
    since = (context.now() - LOOK_BACK).date().isoformat()
    found = {one.id: one for one in await context.find("Encounter", patients_value(patients), ("date", f"ge{since}"))}
    found |= {one.id: one for one in also}
    stays = [one for stored in found.values() if (one := stay(context, stored))]
    never = datetime.max.replace(tzinfo=context.now().tzinfo)
    stays.sort(key=lambda one: (one.begun or never, one.id))
    dead = any(one.ended and one.disposition and one.disposition.name == "died" for one in stays)
    return Human(patients, stays, dead or await deceased(context, patients))


async def first_seen(context: Context, encounter: str, happened: Callable[[Stay | None], bool]) -> tuple[datetime, list[Stored]]:
    """When the hub first knew that something had happened of a stay, as it is known now; and the versions from before, newest first."""
    versions = [one for one in await context.store.history("Encounter", encounter) if not one.deleted]
    over = [happened(stay(context, one)) for one in versions]
    since = over.index(False) if False in over else len(over)
    return versions[max(since - 1, 0)].last_updated, versions[since:]
