"""A coordination platform between the one who asks and those who do it: its own requests, and what becomes of the one it was sent.

http://hl7.org/fhir/us/sdoh-clinicalcare (indirect referrals). The platform asks with a ServiceRequest of its own, intent filler-order and
basedOn the one it was sent; the Tasks of that are part of (partOf) the Task that it was sent, and move it.
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import distribution
from fhircm.coordination.build import edit, instant, reference
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.evidence import in_line
from fhircm.coordination.task_states import is_open, is_referral, mirrored, protocol_of
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
TYPE = "intermediary"
_DEAD = ("revoked", "entered-in-error", "draft")


def is_intermediary(context: Context, organization: Stored | None) -> bool:
    """Whether an organisation passes referrals on: it says so by its type, or it is the one that runs the hub."""
    if organization is None:
        return False
    return organization.id == context.organization or any(own(one) == TYPE for one in organization.tree.get("type", []))


async def above(context: Context, order: Tree) -> list[Tree]:
    """The Task of an intermediary that an order of its own is part of."""
    if order["intent"] != "filler-order":
        return []
    found = []
    for element in order.get("basedOn", []):
        source = await context.follow(element)
        if source is not None and source.type == "ServiceRequest":
            for task in await distribution.tasks_of(context, source.id):
                if is_open(task.tree) and is_intermediary(context, await context.follow(task.tree.get("owner"))):
                    found.append(reference(f"Task/{task.id}"))
    return found


async def orders_below(context: Context, order: Stored | None) -> list[Stored]:
    """The requests of the hub that were made for an order, and are good still."""
    if order is None:
        return []
    found = await context.find("ServiceRequest", ("based-on", f"ServiceRequest/{order.id}"), ("intent", "filler-order"))
    return [one for one in found if not mirrored(one.tree) and one.tree["status"] not in _DEAD]


async def pass_on(context: Context, task: Stored) -> list[Op]:
    """What the requests below a Task mean for it: one step, its new outputs; and their end, when it has ended without being done."""
    tree = task.tree
    if not is_referral(tree) or not is_intermediary(context, await context.follow(tree.get("owner"))):
        return []
    below = await orders_below(context, await context.follow(tree.get("focus")))
    if not is_open(tree):
        if tree["status"] == "completed":
            return []
        return [edit(one, status="revoked") for one in below if one.tree["status"] in ("active", "on-hold")]
    children = {one.id: await distribution.tasks_of(context, one.id) for one in below}
    members = _members(tree, children, instant(context.now()))
    return [edit(task, **members, lastModified=instant(context.now()))] if members else []


def _members(tree: Tree, children: dict[str, list[Stored]], now: str) -> Tree:
    """What changes at the Task above."""
    tasks = [one.tree for found in children.values() for one in found]
    there = tree.get("output", [])
    known = {one.get("valueReference", {}).get("reference") for one in there}
    fresh: dict[str, Tree] = {}
    for output in (one for task in tasks if distribution.has_it(task) for one in task.get("output", [])):
        to = output.get("valueReference", {}).get("reference")
        if to and to not in known:
            fresh[to] = output
    members: Tree = {"output": [*there, *fresh.values()]} if fresh else {}
    done = [any(one.tree["status"] == "completed" for one in found) for found in children.values()]
    goal = None
    if done and all(done):
        goal = "completed"
    elif any(distribution.has_it(task) for task in tasks) and tree["status"] in ("requested", "accepted"):
        goal = "in-progress"
    way = protocol_of(tree).machine.path(tree["status"], goal) if goal else None
    if way:
        members |= {"status": way[0], "statusReason": None, **in_line(tree, way[0])}
        if way[0] in ("in-progress", "completed"):
            end = {"end": now} if way[0] == "completed" else {}
            members["executionPeriod"] = {"start": now, **tree.get("executionPeriod", {}), **end}
    return members


async def nobody_below(context: Context, task: Stored) -> bool:
    """Whether an intermediary accepted a request and has passed it on to nobody so far."""
    if task.tree["status"] not in ("accepted", "in-progress"):
        return False
    if not is_intermediary(context, await context.follow(task.tree.get("owner"))):
        return False
    return not await orders_below(context, await context.follow(task.tree.get("focus")))
