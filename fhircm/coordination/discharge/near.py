"""A discharge with something mandatory open is flagged before it happens; when it happens all the same, that is put on record.

https://hl7.org/fhir/R4/flag.html, https://hl7.org/fhir/R4/detectedissue.html. Near is a discharge whose expected date is (see
profiles/discharge/planning.yaml), or that a physician has ordered. The Flag is for everybody who opens the record, the Task for who plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fhircm.coordination.build import concept, edit, for_a_human, instant, new, reference, stable_id
from fhircm.coordination.codes import member, own
from fhircm.coordination.context import Context
from fhircm.coordination.discharge.plan import BARRIER, ITEM, OPEN_ITEMS, Planning, whole_id
from fhircm.coordination.discharge.rules import rules
from fhircm.coordination.task_states import is_open, machine
from fhircm.fhir.invariants import over
from fhircm.store.resources import Op, Put, Stored

Tree = dict[str, Any]
_ORDERED = "active,completed"


async def flag(context: Context, plan: Planning) -> list[Op]:
    """The Flag, the Task and the exception as they should be now."""
    left_open = plan.open_mandatory()
    if plan.left:
        return [*await take_back(context, plan, "The patient has left"), *await _exception(context, plan, left_open)]
    operations = await _taken_back(context, plan)
    if left_open and (why := await _near(context, plan)):
        return [*operations, *await _raise(context, plan, left_open, why)]
    return [*operations, *await take_back(context, plan)]


async def _near(context: Context, plan: Planning) -> str | None:
    """Why the discharge is near, in words; None when it is not."""
    orders = await context.find("ServiceRequest", ("encounter", f"Encounter/{plan.stay.id}"), ("status", _ORDERED))
    if any(member("discharge-order", one.tree.get("code")) for one in orders):
        return "The discharge is ordered"
    if plan.end and context.now() >= rules().near(plan.end, plan.calendar):
        return f"The discharge is expected {plan.calendar.written(plan.end)[:16].replace('T', ' at ')}"
    return None


async def _raise(context: Context, plan: Planning, left_open: list[Stored], why: str) -> list[Op]:
    operations: list[Op] = []
    now, patient = instant(context.now()), reference(f"Patient/{plan.patients[0]}")
    flags = await context.get("Flag", _flag_id(plan))
    if flags is None:
        operations.append(
            new(
                {
                    "resourceType": "Flag",
                    "id": _flag_id(plan),
                    "status": "active",
                    "code": concept(OPEN_ITEMS),
                    "subject": patient,
                    "period": {"start": now},
                    "encounter": reference(f"Encounter/{plan.stay.id}"),
                    "author": context.coordinator,
                }
            )
        )
    elif flags.tree["status"] != "active":
        operations.append(edit(flags, status="active", period={"start": now}))
    inputs = [
        {"type": concept(ITEM), "valueReference": reference(f"Task/{one.id}", one.tree["description"])} for one in left_open
    ]
    told = plan.of(OPEN_ITEMS)
    standing = next((one for one in told if is_open(one.tree)), None)
    if standing is None:
        whole = plan.whole
        assert whole is not None
        due = plan.end if plan.end and plan.end > context.now() else plan.calendar.due(context.now(), 0, business=False)
        operations.append(
            for_a_human(
                stable_id("discharge-open-items", whole.id, str(len(told))),
                OPEN_ITEMS,
                f"{why}, and this is open: {_titles(left_open)}",
                owner=whole.tree.get("owner") or context.coordinator,
                focus=f"Encounter/{plan.stay.id}",
                patient=patient,
                at=context.now(),
                priority="urgent",
                encounter=reference(f"Encounter/{plan.stay.id}"),
                partOf=[reference(f"Task/{whole.id}")],
                restriction={"period": {"end": plan.calendar.written(due)}},
                input=inputs,
            )
        )
    elif standing.tree.get("input") != inputs:
        operations.append(edit(standing, input=inputs, lastModified=now))
    return operations


def _titles(items: list[Stored]) -> str:
    return "; ".join(one.tree["description"] for one in items)


def _flag_id(plan: Planning) -> str:
    return stable_id("discharge-open-items", plan.stay.id)


async def take_back(context: Context, plan: Planning, why: str | None = None) -> list[Op]:
    """No flag any more: nothing mandatory is open, or the discharge is put off; `why`: there is nothing to plan any more."""
    operations: list[Op] = []
    now = instant(context.now())
    flagged = await context.get("Flag", _flag_id(plan))
    if flagged is not None and flagged.tree["status"] == "active":
        operations.append(edit(flagged, status="inactive", period=over(flagged.tree.get("period", {}), now)))
    for one in plan.of(OPEN_ITEMS):
        if is_open(one.tree):
            ended = "cancelled" if why else (machine("Task").path(one.tree["status"], "completed") or ["cancelled"])[0]
            reason = {"text": why or "The discharge is not near any more"} if ended == "cancelled" else None
            operations.append(edit(one, status=ended, statusReason=reason, lastModified=now))
    return operations


# --- when it happened all the same -------------------------------------------------------------------------------------------


def _issue_id(whole: str) -> str:
    return stable_id("discharged-with-open-items", whole)


async def _exception(context: Context, plan: Planning, left_open: list[Stored]) -> list[Op]:
    """What was open when the patient left, once; what is done of it later does not change that."""
    assert plan.whole is not None
    id = _issue_id(plan.whole.id)
    there = await context.get("DetectedIssue", id)
    if not left_open or (there is not None and there.tree["status"] == "final"):
        return []
    issue = {
        "status": "final",
        "identifiedDateTime": instant(context.now()),
        "implicated": [reference(f"Task/{one.id}", one.tree["description"]) for one in left_open],
        "detail": f"Discharged while this was open: {_titles(left_open)}",
    }
    if there is not None:
        return [edit(there, **issue)]
    return [
        new(
            {
                "resourceType": "DetectedIssue",
                "id": id,
                "code": concept("discharged-with-open-items"),
                "severity": "moderate",
                "patient": reference(f"Patient/{plan.patients[0]}"),
                **issue,
            }
        )
    ]


async def _taken_back(context: Context, plan: Planning) -> list[Op]:
    """A discharge that was taken back is no exception, whichever planning of the stay it ended."""
    ids = [_issue_id(whole_id(plan.stay.id, number)) for number in range(plan.number)]
    found = await context.store.read_many([("DetectedIssue", id) for id in ids])
    return [edit(one, status="cancelled") for one in found.values() if one.tree["status"] == "final"]


async def carry_on(context: Context, plan: Planning, operations: Sequence[Op]) -> list[Op]:
    """What is open after the patient has left goes on as part of the transition of care; a barrier is none any more."""
    written = {one.resource.id for one in operations if isinstance(one, Put)}  # comes next time
    carried: list[Op] = []
    now = instant(context.now())
    transition = await _transition(context, plan)
    for one in plan.below:
        if one.id in written:
            continue
        if is_open(one.tree) and own(one.tree.get("code")) == BARRIER:
            why = {"text": "The patient has left"}
            carried.append(edit(one, status="cancelled", statusReason=why, lastModified=now))
        elif is_open(one.tree) and own(one.tree.get("code")) == ITEM and transition is not None:
            above = one.tree.get("partOf", [])
            if all(up.get("reference") != f"Task/{transition.id}" for up in above):
                under = [*above, reference(f"Task/{transition.id}")]
                carried.append(edit(one, partOf=under, lastModified=now))
    return carried


async def _transition(context: Context, plan: Planning) -> Stored | None:
    """The open transition of care that follows this stay."""
    for one in await context.find("Task", ("focus", f"Encounter/{plan.stay.id}")):
        if own(one.tree.get("code")) == "transition-of-care" and is_open(one.tree):
            return one
    return None
