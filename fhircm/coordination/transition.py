"""A transition of care: what a discharge home sets going, when it is over, and when it is called off.

https://hl7.org/fhir/R4/encounter.html, https://hl7.org/fhir/R4/task.html. The pathways for the event `discharge`
(profiles/plan-definition/) say what must happen: one parent Task for the whole, and a Task for each step, due in the business
days of the discharging organisation.

A first pull brings years of history, and a discharge of last week whose call was due long ago is noise. So a discharge that was
over for longer than `Context.window` when the hub first saw it opens nothing, and of one that the hub did not see coming (its
first version here was finished already) only the steps are opened whose time had not run out at that moment. Of a stay that the
hub watched, all are. Both follow from the versions of the Encounter, so a replay decides the same.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination import risk
from fhircm.coordination.build import edit, instant, new, profile, reference, stable_id
from fhircm.coordination.codes import codings, member
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.people import deceased, in_role, linked, named, patient_of, patients_value
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Change, Op, Put, Stored

Tree = dict[str, Any]
EVENT = "discharge"
_EARLY = timedelta(days=1)  # clocks differ; what is said to end later than this is not over
_BEGUN = frozenset(("arrived", "triaged", "in-progress", "onleave", "finished"))
_OPEN = any_of(state for state in machine("Task").next if state not in machine("Task").terminal)


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Encounter, Patient and Task: open a transition, call it off, or close it."""
    stored = await context.get(change.type, change.id)
    if stored is None:
        return []
    if change.type == "Encounter":
        return await _encounter(context, stored)
    if change.type == "Patient":
        return await _patient(context, stored)
    return await _close(context, stored)


# --- opening -----------------------------------------------------------------------------------------------------------------


async def _encounter(context: Context, stored: Stored) -> list[Op]:
    tree = stored.tree
    patient = patient_of(tree)
    if patient is None or not member("inpatient-stay", tree.get("class")):
        return []
    calendar = context.calendar_of(context.source_of(tree))
    if discharged(tree, calendar):
        opened = await _open(context, stored, patient, calendar)
    else:
        opened = await _call_off(context, await _of_stay(context, stored), "The discharge was taken back or led elsewhere")
    return [*opened, *await _readmission(context, stored, patient, calendar)]


def discharged(encounter: Tree, calendar: BusinessCalendar) -> bool:
    """Whether a stay is over, with a time, and the patient went home."""
    disposition = encounter.get("hospitalization", {}).get("dischargeDisposition")
    return encounter["status"] == "finished" and _end(encounter, calendar) is not None and member("home-discharge", disposition)


def _end(encounter: Tree, calendar: BusinessCalendar) -> datetime | None:
    return moment(encounter.get("period", {}).get("end"), calendar)


async def _seen(context: Context, encounter: Stored, calendar: BusinessCalendar) -> tuple[datetime, bool]:
    """When the hub first knew of the discharge, and whether it had watched the stay before."""
    versions = [one for one in await context.store.history("Encounter", encounter.id) if not one.deleted]
    over = [discharged(one.tree, calendar) for one in versions]  # newest first
    since = over.index(False) if False in over else len(over)
    watched = any(one.tree["status"] != "finished" for one in versions[since:])
    return versions[max(since - 1, 0)].last_updated, watched


async def _open(context: Context, encounter: Stored, patient: str, calendar: BusinessCalendar) -> list[Op]:
    tree = encounter.tree
    left = _end(tree, calendar)
    seen, watched = await _seen(context, encounter, calendar)
    if left is None or not seen - context.window <= left <= seen + _EARLY:
        return []
    vacant = [(pathway, id) for pathway in context.pathways_of(EVENT) if (id := await _vacant_id(context, encounter, pathway))]
    patients = await linked(context, patient)
    if not vacant or await deceased(context, patients) or await _stays_after(context, encounter, patients, left, calendar):
        return []
    result, basis = await risk.lace(context, encounter, patients, calendar)
    operations: list[Op] = []
    for pathway, id in vacant:
        due = _due_steps(pathway, left, calendar, {"risk": result.level}, None if watched else seen)
        if due:
            operations += await _tasks(context, encounter, patients, pathway, id, due, calendar)
    assessed = risk.assessment(encounter, reference(f"Patient/{patient}"), result, basis, context.now())
    if operations and await context.get("RiskAssessment", assessed.id or "") is None:
        operations.append(Put(assessed, if_version=0))
    return operations


def _due_steps(
    pathway: Pathway, left: datetime, calendar: BusinessCalendar, variables: dict[str, str], not_before: datetime | None
) -> list[tuple[Step, datetime]]:
    steps = [(step, pathway.due(step, left, calendar, variables)) for step in pathway.applicable(variables)]
    return [(step, due) for step, due in steps if due is not None and (not_before is None or due > not_before)]


async def _tasks(
    context: Context,
    encounter: Stored,
    patients: list[str],
    pathway: Pathway,
    whole: str,
    due: list[tuple[Step, datetime]],
    calendar: BusinessCalendar,
) -> list[Op]:
    organization = await context.follow(encounter.tree.get("serviceProvider"))
    last = max(end for _, end in due)
    trees = [
        await _task(context, encounter, patients, organization, pathway, pathway.whole, calendar.written(last))
        | {"id": whole, "status": "in-progress"}
    ]
    for step, end in due:
        tree = await _task(context, encounter, patients, organization, pathway, step, calendar.written(end))
        trees.append(tree | {"id": stable_id(whole, step.id), "status": "ready", "partOf": [reference(f"Task/{whole}")]})
    return [new(tree) for tree in trees]


async def _task(
    context: Context, encounter: Stored, patients: list[str], organization: Stored | None, pathway: Pathway, step: Step, end: str
) -> Tree:
    stay = reference(f"Encounter/{encounter.id}")
    return {
        "resourceType": "Task",
        "meta": profile("coordination-task"),
        "instantiatesCanonical": pathway.canonical,
        "instantiatesUri": f"{pathway.url}#{step.id}",
        "intent": "order",
        "priority": "routine",
        "code": step.code,
        "description": step.title,
        "focus": stay,
        "for": reference(f"Patient/{patients[0]}"),
        "encounter": stay,
        "authoredOn": instant(context.now()),
        "lastModified": instant(context.now()),
        "requester": context.coordinator,
        "performerType": [step.role] if step.role else None,
        "owner": await _owner(context, step, patients, organization),
        "restriction": {"period": {"start": encounter.tree["period"]["end"], "end": end}},
        "note": [{"text": step.description}] if step.description else None,
    }


async def _owner(context: Context, step: Step, patients: list[str], organization: Stored | None) -> Tree:
    """Who has the role for this patient; else the discharging organisation; else the coordinating one."""
    who = await in_role(context, step.role, patients, organization) if step.role else None
    if who is not None:
        return who
    return await named(context, organization) if organization else context.coordinator


async def _latest(context: Context, encounter: Stored, pathway: Pathway) -> tuple[Stored | None, str]:
    """The newest transition of a stay, and the id that the next would have: a discharge may be taken back and come again."""
    latest, number = None, 0
    while found := await context.get("Task", id := stable_id("transition", encounter.id, pathway.url, str(number))):
        latest, number = found, number + 1
    return latest, id


async def _vacant_id(context: Context, encounter: Stored, pathway: Pathway) -> str | None:
    """The id for a new transition; None when this discharge has its transition, open or closed."""
    latest, id = await _latest(context, encounter, pathway)
    if latest is None:
        return id
    of_another = latest.tree.get("restriction", {}).get("period", {}).get("start") != encounter.tree["period"]["end"]
    return id if latest.tree["status"] == "cancelled" and of_another else None


# --- calling off -------------------------------------------------------------------------------------------------------------


async def _of_stay(context: Context, encounter: Stored) -> list[Stored]:
    """The open transitions of a stay."""
    found = [(await _latest(context, encounter, pathway))[0] for pathway in context.pathways_of(EVENT)]
    return [task for task in found if task is not None and is_open(task.tree)]


async def _of_human(context: Context, patients: list[str]) -> list[Stored]:
    """The open transitions of a human."""
    codes = {token(*one) for pathway in context.pathways_of(EVENT) for one in codings(pathway.whole.code)}
    if not codes:
        return []
    found = await context.find("Task", patients_value(patients), ("code", any_of(sorted(codes))), ("status", _OPEN))
    return [task for task in found if _is_whole(context, task.tree)]


def _is_whole(context: Context, task: Tree) -> bool:
    pathway = context.pathway_of(task)
    if pathway is None or pathway.event != EVENT or mirrored(task):
        return False
    return task.get("instantiatesUri") == f"{pathway.url}#{pathway.whole.id}"


async def _readmission(context: Context, stay: Stored, patient: str, calendar: BusinessCalendar) -> list[Op]:
    """A stay calls off the transitions from discharges before it."""
    begun = _begun(stay.tree, calendar)
    if begun is None:
        return []
    operations: list[Op] = []
    for task in await _of_human(context, await linked(context, patient)):
        before = await context.follow(task.tree.get("focus"))
        left = _end(before.tree, context.calendar_of(context.source_of(before.tree))) if before and before.id != stay.id else None
        if left is not None and left <= begun:
            operations += await _call_off(context, [task], "The patient is in hospital again")
    return operations


def _begun(stay: Tree, calendar: BusinessCalendar) -> datetime | None:
    return moment(stay.get("period", {}).get("start"), calendar) if stay["status"] in _BEGUN else None


async def _stays_after(
    context: Context, encounter: Stored, patients: list[str], left: datetime, calendar: BusinessCalendar
) -> bool:
    """Whether the human is, or was, in hospital again after a discharge."""
    for other in await context.find("Encounter", patients_value(patients), ("status", any_of(sorted(_BEGUN)))):
        if other.id != encounter.id and member("inpatient-stay", other.tree.get("class")):
            begun = _begun(other.tree, calendar)
            if begun is not None and begun >= left:
                return True
    return False


async def _patient(context: Context, stored: Stored) -> list[Op]:
    if not await deceased(context, [stored.id]):
        return []
    return await _call_off(context, await _of_human(context, await linked(context, stored.id)), "The patient has died")


async def _call_off(context: Context, wholes: list[Stored], why: str) -> list[Op]:
    ended = {"status": "cancelled", "statusReason": {"text": why}, "lastModified": instant(context.now())}
    operations: list[Op] = []
    for whole in wholes:
        steps = [step for step in await _steps(context, whole.id) if is_open(step.tree)]
        operations += [edit(task, **ended) for task in (*steps, whole)]
    return operations


# --- closing -----------------------------------------------------------------------------------------------------------------


async def _steps(context: Context, whole: str) -> list[Stored]:
    return await context.find("Task", ("part-of", f"Task/{whole}"))


async def _close(context: Context, changed: Stored) -> list[Op]:
    """When no step is open any more, the whole is completed; cancelled, if nothing came about."""
    above = [parse_reference(element.get("reference", "")) for element in changed.tree.get("partOf", [])]
    wholes = [await context.get("Task", to.id) for to in above if to.type == "Task" and to.kind == "local" and to.id]
    return [operation for whole in (*wholes, changed) if whole for operation in await _settle(context, whole)]


async def _settle(context: Context, whole: Stored) -> list[Op]:
    if not is_open(whole.tree) or not _is_whole(context, whole.tree):
        return []
    states = {one.tree["status"] for one in await _steps(context, whole.id)}
    if not states or not states <= machine("Task").terminal:
        return []
    # One step at a time: a whole that somebody put on hold is taken up again before it is completed.
    way = machine("Task").path(whole.tree["status"], "completed" if "completed" in states else "cancelled") or ["cancelled"]
    now = instant(context.now())
    ended = (
        {"executionPeriod": {"start": whole.tree.get("authoredOn", now), "end": now}}
        if way[0] in machine("Task").terminal
        else {}
    )
    return [edit(whole, status=way[0], lastModified=now, **ended)]
