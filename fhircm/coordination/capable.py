"""Who is able to do what a request needs, and so may take it when it is open: an active HealthcareService, or a role, of the needed type.

https://hl7.org/fhir/R4/healthcareservice.html, https://hl7.org/fhir/R4/task-definitions.html#Task.restriction.recipient: who may take it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.build import edit, instant
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.people import named, organization_of
from fhircm.store.resources import Put, Stored

Tree = dict[str, Any]
# Where a type of performer may stand: resource type, and its search parameters.
_PLACES = (("HealthcareService", ("service-type", "service-category", "specialty")), ("PractitionerRole", ("role", "specialty")))


async def organizations(context: Context, order: Tree) -> list[Tree]:
    """References to the organisations that offer what an order needs (`performerType`), by name; one that asks is not among them."""
    wanted = sorted(set(codings(order.get("performerType"))))
    if not wanted:
        return []
    asks = await organization_of(context, order.get("requester"))
    found: dict[str, Stored] = {}
    for type, parameters in _PLACES:
        for parameter in parameters:
            for one in await context.find(type, (parameter, any_of(token(*code) for code in wanted))):
                if one.tree.get("active") is False:
                    continue
                organization = await organization_of(context, {"reference": f"{type}/{one.id}"})
                if organization is not None and organization.tree.get("active") is not False and organization != asks:
                    found[organization.id] = organization
    return [await named(context, found[id]) for id in sorted(found)]


def addressed(task: Tree, able: list[Tree]) -> Tree:
    """An open Task, addressed to those who may take it."""
    return {**task, "restriction": {**task.get("restriction", {}), "recipient": able}} if able else task


def refreshed(task: Stored, able: list[Tree], now: datetime) -> Put | None:
    """The same of a Task that waits; None when nothing is different."""
    tree = task.tree
    if "owner" in tree or tree["status"] != "requested" or tree.get("restriction", {}).get("recipient", []) == able:
        return None
    restriction = {name: value for name, value in tree.get("restriction", {}).items() if name != "recipient"}
    return edit(task, restriction={**restriction, **({"recipient": able} if able else {})} or None, lastModified=instant(now))
