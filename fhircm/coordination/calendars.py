"""Whose days and hours count for a Task: those of the organisation that has it, as far as anybody said what they are.

https://hl7.org/fhir/R4/healthcareservice.html (availableTime, notAvailable), https://hl7.org/fhir/R4/location.html (hoursOfOperation),
http://hl7.org/fhir/StructureDefinition/timezone. A partner's calendar is that of its partner.yaml, and the coordinating organisation's that of the
settings. On top of it counts what the owner's own record says: hours and absences of a HealthcareService or PractitionerRole; and of
an Organization that is no partner its country and state, its time zone, and the hours of its Location.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, time, timedelta
from typing import Any

from fhircm.coordination.build import npi
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar, Hours
from fhircm.coordination.people import organization_of
from fhircm.coordination.times import moment
from fhircm.store.resources import Stored

Tree = dict[str, Any]
TIME_ZONE = "http://hl7.org/fhir/StructureDefinition/timezone"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONGEST = 400  # days of an absence that are kept


async def calendar_of(context: Context, task: Tree) -> BusinessCalendar:
    """The calendar of who has a Task; where nothing is said of it, of where the Task came about; else the hub's own."""
    owner = await context.follow(task.get("owner"))
    organization = owner if owner is None or owner.type == "Organization" else await organization_of(context, task.get("owner"))
    neighbour = context.neighbour(npi=npi(organization.tree)) if organization else None
    if organization is None:
        about = owner or await context.follow(task.get("encounter"))
        neighbour = context.source_of(about.tree) if about else None
    calendar = context.calendar_of(neighbour)
    if organization is not None and neighbour is None and organization.id != context.organization:
        calendar = await _of_organization(context, organization, context.calendar_of(context.source_of(organization.tree)))
    if owner is not None and owner.type in ("HealthcareService", "PractitionerRole"):
        calendar = own_hours(owner.tree, calendar)
    return calendar


async def _of_organization(context: Context, organization: Stored, base: BusinessCalendar) -> BusinessCalendar:
    found = placed(organization.tree, base)
    for location in await context.find("Location", ("organization", f"Organization/{organization.id}")):
        if location.tree.get("hoursOfOperation") and location.tree.get("status") != "inactive":
            return own_hours(location.tree, placed(location.tree, found))
    return found


def placed(tree: Tree, base: BusinessCalendar) -> BusinessCalendar:
    """A calendar where an Organization or Location is: its time zone and its public holidays, when they are known."""
    addresses = tree.get("address", [])
    address = next(iter(addresses), {}) if isinstance(addresses, list) else addresses
    zone = next((one.get("valueCode") for one in tree.get("extension", []) if one["url"] == TIME_ZONE), None)
    zones, countries = [zone or base.zone.key, base.zone.key], [address.get("country"), base.country]
    for country in countries:
        state = address.get("state") if country == address.get("country") else base.subdivision
        for subdivision in (state, None):
            for each in zones:
                try:
                    return BusinessCalendar(each, country, subdivision, base.closed, base.weekend, base.hours)
                except (ValueError, TypeError):  # what somebody wrote as a country, a state or a zone is none that is known
                    continue
    return base


def own_hours(tree: Tree, base: BusinessCalendar) -> BusinessCalendar:
    """A calendar with the hours and absences that a HealthcareService, PractitionerRole or Location says of itself."""
    hours: dict[int, Hours] = {}
    for each in (*tree.get("availableTime", []), *tree.get("hoursOfOperation", [])):
        begin = _time(each.get("availableStartTime") or each.get("openingTime"))
        end = _time(each.get("availableEndTime") or each.get("closingTime"))
        whole = each.get("allDay") or begin is None or end is None
        span = (time(), time()) if whole or begin is None or end is None else (begin, end)
        for day in each.get("daysOfWeek") or _DAYS:
            hours[_DAYS.index(day)] = (*hours.get(_DAYS.index(day), ()), span)
    closed = {day for each in tree.get("notAvailable", []) for day in _absence(each.get("during", {}), base)}
    if not hours and not closed:
        return base
    try:
        return BusinessCalendar(
            base.zone.key,
            base.country,
            base.subdivision,
            base.closed | closed,
            base.weekend if not hours else frozenset(range(7)) - set(hours),
            hours or base.hours,
        )
    except ValueError:  # hours that end before they begin: nobody can work by them
        return base


def _time(text: str | None) -> time | None:
    return time.fromisoformat(text[:8]) if text else None


def _absence(period: Tree, calendar: BusinessCalendar) -> Iterable[date]:
    """The days of an absence; one without an end, or longer than a year, is no absence but something else."""
    begin, end = _day(period.get("start"), calendar), _day(period.get("end"), calendar)
    length = (end - begin).days + 1 if begin and end else 0
    return [begin + timedelta(days=n) for n in range(length)] if begin and 0 < length <= _LONGEST else []


def _day(text: str | None, calendar: BusinessCalendar) -> date | None:
    at = moment(text, calendar)
    return calendar.day_of(at) if at else None
