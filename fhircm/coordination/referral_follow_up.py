"""What a human of the coordinating organisation does for a referral on its way: find who did not come, ask after a place, choose another service.

http://hl7.org/fhir/us/bser (no-show), http://hl7.org/fhir/us/sdoh-clinicalcare (capacity). Each is a Task with an owner and a due time, made
once for what it is about, and taken back when it has become needless.
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import referral_times
from fhircm.coordination.build import concept, edit, for_a_human, instant, stable_id
from fhircm.coordination.context import Context
from fhircm.coordination.evidence import aim, is_waiting, missed
from fhircm.coordination.people import in_role
from fhircm.coordination.referral_record import Evidence
from fhircm.coordination.task_states import is_open
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
CODES = ("no-show-outreach", "recheck-waitlist", "service-full")
_UNANSWERED = ("requested", "accepted")


async def follow_up(context: Context, task: Stored, found: Evidence, patients: list[str]) -> list[Op]:
    """The Tasks that are needed now, and those that are not any more taken back."""
    return [
        *await _outreach(context, task, found, patients),
        *await _recheck(context, task, patients),
        *await _no_capacity(context, task, found, patients),
    ]


async def _outreach(context: Context, task: Stored, found: Evidence, patients: list[str]) -> list[Op]:
    """One for each visit that the patient missed, while there is no other."""
    operations: list[Op] = []
    goal = aim(found)
    unreached = is_open(task.tree) and goal is not None and goal.business == "5.1.2"
    for visit in found.visits:
        start = visit.tree.get("start") or visit.tree.get("period", {}).get("start", "")
        id = stable_id("no-show-outreach", task.id, visit.type, visit.id, start)
        if unreached and visit.tree["status"] in ("noshow", "cancelled") and missed(visit.tree):
            why = "The patient did not come. Find out why, and make a new appointment"
            operations += await ask(context, task, id, "no-show-outreach", why, patients, focus=f"{visit.type}/{visit.id}")
        else:
            operations += await take_back(context, id, "There is another appointment, or the referral is closed")
    return operations


async def _recheck(context: Context, task: Stored, patients: list[str]) -> list[Op]:
    """One at a time while the referral waits for a place: when it is done and nothing came of it, the next."""
    number = 0
    while (asked := await context.get("Task", _recheck_id(task, number))) is not None and not is_open(asked.tree):
        number += 1
    if is_waiting(task.tree):
        why = "The referral waits for a place. Ask whether there is one, or choose another service"
        return await ask(context, task, _recheck_id(task, number), "recheck-waitlist", why, patients)
    return await take_back(context, _recheck_id(task, number), "The referral does not wait any more")


def _recheck_id(task: Stored, number: int) -> str:
    return stable_id("recheck-waitlist", task.id, str(number))


async def _no_capacity(context: Context, task: Stored, found: Evidence, patients: list[str]) -> list[Op]:
    id = stable_id("service-full", task.id)
    if task.tree["status"] in _UNANSWERED and found.capacity == "no-capacity":
        why = "The service that this referral is addressed to says that it has no capacity"
        return await ask(context, task, id, "service-full", why, patients)
    return await take_back(context, id, "The service has capacity again, or has answered")


async def ask(
    context: Context,
    task: Stored,
    id: str,
    code: str,
    why: str,
    patients: list[str],
    *,
    focus: str | None = None,
    owner: Tree | None = None,
) -> list[Op]:
    """A Task about a referral for a human, due as the pathway says; nothing when it was made before."""
    if await context.get("Task", id) is not None:
        return []
    priority = task.tree.get("priority", "routine")
    step = referral_times.step(context, code, priority)
    if owner is None and step is not None and step.role is not None:
        owner = await in_role(context, step.role, patients, None)
    about = {"type": concept("closed-loop-referral"), "valueReference": {"reference": f"Task/{task.id}"}}
    return [
        for_a_human(
            id,
            code,
            why,
            owner=owner or context.coordinator,
            focus=focus or f"Task/{task.id}",
            patient=task.tree.get("for"),
            at=context.now(),
            priority=priority,
            input=[about],
            **referral_times.due(context, code, priority, context.now(), context.calendar),
        )
    ]


async def take_back(context: Context, id: str, why: str) -> list[Op]:
    """Cancel it, if it is there and open."""
    asked = await context.get("Task", id)
    if asked is None or not is_open(asked.tree):
        return []
    return [edit(asked, status="cancelled", statusReason={"text": why}, lastModified=instant(context.now()))]
