"""Who is away, until when, and who stands in for them: PractitionerRole.notAvailable, and the extension `deputy`.

https://hl7.org/fhir/R4/practitionerrole.html
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination.claims import organizations
from fhircm.coordination.codes import BASE
from fhircm.coordination.context import Context, Record
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.people import named
from fhircm.coordination.times import moment
from fhircm.store.resources import Stored

Tree = dict[str, Any]
DEPUTY = f"{BASE}/StructureDefinition/deputy"
_CHAIN = 5  # deputies of deputies


async def roles_of(record: Record, who: str) -> list[Stored]:
    """The active PractitionerRoles behind a reference to a Practitioner or a PractitionerRole."""
    type, _, id = who.rpartition("/")
    if type.endswith("PractitionerRole"):
        found = await record.get("PractitionerRole", id)
        listed = [found] if found else []
    else:
        listed = await record.find("PractitionerRole", ("practitioner", who))
    return [one for one in listed if one.tree.get("active") is not False]


async def absence(context: Context, who: str, task: Tree, now: datetime) -> str | None:
    """Until which day somebody is away from the work that a Task is of (the last day of it), or None when they are there.

    The roles at the organisation of the Task's queue count; when there are none, all of them. Away is who is away from each.
    """
    roles = _at_queue(await roles_of(context, who), task)
    found = [away_until(one.tree, now, context.calendar) for one in roles]
    return max(one for one in found if one) if found and all(found) else None


def away_until(role: Tree, now: datetime, calendar: BusinessCalendar | None) -> str | None:
    """The last day of the time in which a role is not available and which `now` is in; 'further notice' when it has no end.

    Days are those of the calendar; without one, in UTC.
    """
    for one in role.get("notAvailable", []):
        during = one.get("during", {})
        start, end = moment(during.get("start"), calendar), moment(during.get("end"), calendar)
        if end is not None and len(during["end"]) == 10:
            end += timedelta(days=1)  # the whole of its last day
        if (start is None or start <= now) and (end is None or now < end) and during:
            return during["end"][:10] if "end" in during else "further notice"
    return None


async def deputy(context: Context, who: str, task: Tree, now: datetime) -> Tree | None:
    """Who stands in for somebody, or for whoever stands in for them, and is there."""
    seen = {who}
    for _ in range(_CHAIN):
        roles = _at_queue(await roles_of(context, who), task)
        named_ = (one["valueReference"] for role in roles for one in role.tree.get("extension", []) if one["url"] == DEPUTY)
        following = await context.follow(next(named_, None))
        if following is None or (who := f"{following.type}/{following.id}") in seen:
            return None
        if await absence(context, who, task, now) is None:
            return await named(context, following)
        seen.add(who)
    return None


def _at_queue(roles: list[Stored], task: Tree) -> list[Stored]:
    places = {one.get("reference") for one in organizations(task)}
    return [one for one in roles if one.tree.get("organization", {}).get("reference") in places] or roles
