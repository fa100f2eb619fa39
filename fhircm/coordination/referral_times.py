"""When the steps of a referral are due, of who performs it and of who asked for it: the pathway of the event `referral`.

profiles/plan-definition/closed-loop-referral.json
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.build import npi
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.escalation import reset
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open
from fhircm.store.resources import Stored

Tree = dict[str, Any]
EVENT = "referral"
# What the performer has to do next in a status.
_NEXT = {
    "draft": "complete-package",
    "requested": "respond-to-referral",
    "accepted": "schedule-visit",
    "on-hold": "report-back",
    "in-progress": "report-back",
}


def due(context: Context, code: str | None, priority: str, since: datetime, calendar: BusinessCalendar) -> Tree:
    """What a Task says of its step and of when it is due; nothing when the pathway does not have it."""
    found = _step(context, code, priority)
    end = found and found[0].due(found[1], since, calendar, {"priority": priority})
    if found is None or end is None:
        return {}
    pathway, step = found
    return {
        "instantiatesCanonical": pathway.canonical,
        "instantiatesUri": f"{pathway.url}#{step.id}",
        "restriction": {"period": {"start": calendar.written(since), "end": calendar.written(end)}},
    }


def step(context: Context, code: str, priority: str) -> Step | None:
    """The step of a referral that is about this, at this priority."""
    found = _step(context, code, priority)
    return found[1] if found else None


def first_due(context: Context, priority: str, calendar: BusinessCalendar, until: str | None, status: str = "requested") -> Tree:
    """The same of a referral that was just made; `until` is what the requester says itself."""
    found = due(context, _NEXT[status], priority, context.now(), calendar)
    if until:
        start = found.get("restriction", {}).get("period", {}).get("start") or calendar.written(context.now())
        found["restriction"] = {"period": {"start": start, "end": until}}
    return found


async def moved(context: Context, task: Stored, status: str) -> Tree:
    """The due time of the step that a status stands for; it stays when the Task is at that step already, or closed."""
    tree = task.tree
    if not is_open({"status": status}):
        return {}
    found = due(context, _NEXT.get(status), tree.get("priority", "routine"), context.now(), await calendar_of(context, tree))
    if not found or found["instantiatesUri"].rpartition("#")[0] != tree.get("instantiatesUri", "").rpartition("#")[0]:
        return {}
    if _code_of(context, found) == _code_of(context, tree):
        return {}
    return _anew(tree, found)


async def again(context: Context, task: Stored) -> Tree:
    """The due time of the step at which a referral is, when its time begins anew."""
    tree = task.tree
    calendar = await calendar_of(context, tree)
    found = due(context, _NEXT.get(tree["status"]), tree.get("priority", "routine"), context.now(), calendar)
    return _anew(tree, found) if found else {}


async def calendar_of(context: Context, task: Tree) -> BusinessCalendar:
    """The calendar of a Task's owner."""
    owner = await context.follow(task.get("owner"))
    return context.calendar_of(context.neighbour(npi=npi(owner.tree)) if owner else None)


def _anew(tree: Tree, found: Tree) -> Tree:
    return {**found, "restriction": {**tree.get("restriction", {}), **found["restriction"]}, "extension": reset(tree)}


def _code_of(context: Context, task: Tree) -> str | None:
    """What the step of a Task is about: the urgent and the routine form of a step are one step."""
    pathway = context.pathway_of(task)
    step = pathway.step(task.get("instantiatesUri", "").rpartition("#")[2]) if pathway else None
    return own(step.code) if step else None


def _step(context: Context, code: str | None, priority: str) -> tuple[Pathway, Step] | None:
    for pathway in context.pathways_of(EVENT):
        for step in pathway.applicable({"priority": priority}):
            if code is not None and own(step.code) == code:
                return pathway, step
    return None
