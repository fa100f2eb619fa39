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
from fhircm.coordination.people import organization_of, same_organization
from fhircm.coordination.task_states import is_open, is_referral, mirrored, protocol_of
from fhircm.fhir.invariants import over
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
TYPE = "intermediary"
_DEAD = ("revoked", "entered-in-error", "draft")


async def above(context: Context, order: Tree) -> list[Tree]:
    """The Tasks that an order passes on: open ones, for an order that it is based on, of the organisation that asks now."""
    if order["intent"] != "filler-order":
        return []
    asks = await organization_of(context, order.get("requester"))
    found = []
    for element in order.get("basedOn", []) if asks else []:
        source = await context.follow(element)
        if source is not None and source.type == "ServiceRequest":
            for task in await distribution.tasks_of(context, source.id):
                if is_open(task.tree) and same_organization(asks, await organization_of(context, task.tree.get("owner"))):
                    found.append(reference(f"Task/{task.id}"))
    return found


async def orders_below(context: Context, order: Stored | None) -> list[Stored]:
    """The requests of the hub that were made for an order, and are good still."""
    if order is None:
        return []
    found = await context.find("ServiceRequest", ("based-on", f"ServiceRequest/{order.id}"), ("intent", "filler-order"))
    return [one for one in found if not mirrored(one.tree) and one.tree["status"] not in _DEAD]


async def asked_otherwise(context: Context, order: Stored) -> bool:
    """Whether what an order asks for is asked for, or was done, by a request that was made for it."""
    for one in await orders_below(context, order):
        if one.tree["status"] != "completed":
            return True
        if any(task.tree["status"] == "completed" for task in await distribution.tasks_of(context, one.id)):
            return True
    return False


async def _passed_on(context: Context, task: Stored) -> list[Stored]:
    """Those that the owner of a Task made for it."""
    below = await orders_below(context, await context.follow(task.tree.get("focus")))
    owner = await organization_of(context, task.tree.get("owner")) if below else None
    makers = [await organization_of(context, one.tree.get("requester")) for one in below]
    return [one for one, maker in zip(below, makers, strict=True) if owner is not None and same_organization(owner, maker)]


async def pass_on(context: Context, task: Stored) -> list[Op]:
    """What the requests below a Task mean for it: one step, its new outputs; and their end, when it has ended without being done."""
    tree = task.tree
    if tree["status"] in ("draft", "completed") or not is_referral(tree):
        return []
    below = await _passed_on(context, task)
    if not is_open(tree):
        return [edit(one, status="revoked") for one in below if one.tree["status"] in ("active", "on-hold")]
    children = {one.id: await distribution.tasks_of(context, one.id) for one in below}
    if below and not await distribution.may_be_moved(context, task):
        return []
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
            period = {"start": now, **tree.get("executionPeriod", {})}
            members["executionPeriod"] = over(period, now) if way[0] == "completed" else period
    return members


async def nobody_below(context: Context, task: Stored) -> bool:
    """Whether one who does nothing but pass on (its Organization says so by its type) has accepted a request and passed it on to nobody."""
    if task.tree["status"] not in ("accepted", "in-progress"):
        return False
    owner = await organization_of(context, task.tree.get("owner"))
    if owner is None or not any(own(one) == TYPE for one in owner.tree.get("type", [])):
        return False
    return not await _passed_on(context, task)
