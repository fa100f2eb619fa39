"""What people do to the planning of a discharge: say when and where to, and name what is in the way.

https://hl7.org/fhir/R4/task.html; docs/reference/coordination-operations-discharge.md. Each writes what a plain update could have written.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fhircm.coordination.acting import Act
from fhircm.coordination.build import concept, edit, instant, new, profile, reference
from fhircm.coordination.codes import displays, member, value_set
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.discharge.expectation import Expectation
from fhircm.coordination.discharge.plan import BARRIER, Planning, begun, planning
from fhircm.coordination.task_states import is_open
from fhircm.coordination.times import moment
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]
UTC = BusinessCalendar("UTC", "US")  # for what is only compared


async def open_planning(act: Act) -> tuple[Planning, Stored]:
    """The planning of the stay that is acted on, and its Task. Raises Conflict."""
    plan = await planning(act, act.about, UTC)
    if plan.whole is None or not is_open(plan.whole.tree):
        raise Conflict(
            f"No discharge is planned for Encounter/{act.about.id}: planning opens by itself for an inpatient or observation stay that is"
            " under way; for another, a Task with the code discharge-evaluation-request and the Encounter as its focus opens it"
        )
    return plan, plan.whole


async def expect_discharge(act: Act) -> list[Put]:
    """Somebody (`by`) expects the patient to leave on a `date`, to a `disposition`; what is not said stays as it was."""
    plan, whole = await open_planning(act)
    last = plan.expected[-1] if plan.expected else Expectation()
    date, disposition = act.one("date", last.date), act.one("disposition", last.disposition)
    if not act.said.get("date") and not act.said.get("disposition"):
        raise Invalid("Say the expected 'date', the 'disposition', or both", "Parameters.parameter")
    at, start = moment(date, UTC), begun(act.about.tree, UTC)
    if date and at is None:
        raise Invalid("The expected date must be a day or a moment, such as 2026-03-09 or 2026-03-09T14:00:00-05:00", "date")
    if at and start and UTC.day_of(at) < UTC.day_of(start):
        raise Invalid("The expected date lies before the day of the admission", "date")
    if (date, disposition, act.one("by", last.by)) == (last.date, last.disposition, last.by):
        return [edit(whole)]  # it is expected already
    said = Expectation(date, disposition, act.one("by"), instant(act.store.now), act.one("reason"))
    return [edit(whole, extension=[*whole.tree.get("extension", []), said.tree()], lastModified=instant(act.store.now))]


async def add_barrier(act: Act) -> list[Put]:
    """Something keeps the patient in hospital (`reason`); who sees to it (`owner`), until when (`due`), in words (`text`)."""
    plan, whole = await open_planning(act)
    reason = act.one("reason")
    if not member("discharge-barrier", reason):
        codes = ", ".join(sorted(code for _, code in value_set("discharge-barrier")))
        raise Invalid(f"'reason' needs a code of the value set discharge-barrier: {codes}", "reason")
    due, now = act.one("due"), instant(act.store.now)
    at = moment(due)
    if due and (at is None or at < act.store.now):
        raise Invalid("'due' must be a moment to come, with its time zone", "due")
    stay = reference(f"Encounter/{act.about.id}")
    return [
        new(
            {
                "resourceType": "Task",
                "id": str(uuid4()),
                "meta": profile("coordination-task"),
                "status": "ready",
                "intent": "order",
                "priority": act.one("priority", "routine"),
                "code": concept(BARRIER),
                "description": act.one("text") or reason.get("text") or displays()[BARRIER],
                "reasonCode": reason,
                "focus": stay,
                "encounter": stay,
                "for": reference(f"Patient/{plan.patients[0]}"),
                "partOf": [reference(f"Task/{whole.id}")],
                "authoredOn": now,
                "lastModified": now,
                "requester": whole.tree.get("requester"),
                "owner": act.one("owner") or whole.tree.get("owner"),
                "restriction": {"period": {"end": due}} if due else None,
            }
        )
    ]
