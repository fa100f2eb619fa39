"""The checklist of a stay is what its facts ask for: opened at the admission, changed with where the patient goes, closed after them.

https://www.ecfr.gov/current/title-42/section-482.43, https://hl7.org/fhir/R4/task.html. Every change that matters to a stay arranges
all of its planning anew from what there is, one legal step of each Task at a time; so neither the order of the changes nor a replay
makes a difference. What is done stays done. What somebody called off for a reason stays so; without a reason, it comes back when it is mandatory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from fhircm.coordination.build import concept, edit, instant, new, profile, reference, stable_id
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.discharge import near, screening
from fhircm.coordination.discharge.expectation import PLANNED_END, Expectation, end_of
from fhircm.coordination.discharge.plan import ITEM, OPEN_ITEMS, PRESENT, Planning, begun, is_stay, planning, variables
from fhircm.coordination.discharge.rules import DIED, UNKNOWN, days_before, rules
from fhircm.coordination.discharge.shown import Record
from fhircm.coordination.escalation import reset
from fhircm.coordination.people import deceased, in_role, named
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine
from fhircm.store.resources import CancelTimer, Op, Put, SetTimer, Stored

Tree = dict[str, Any]
KIND = "discharge-planning"
GONE = "no-longer-applicable"
DATED = "expected-date"  # the step that is done when somebody said when and where to


def keys(stay: str) -> tuple[str, str]:
    """The keys of the timers of a stay: the discharge is near, and its expected date is over."""
    return f"discharge-near:Encounter/{stay}", f"discharge-date:Encounter/{stay}"


async def arrange(context: Context, stay: Stored, said: str | None = None) -> list[Op]:
    """Everything that is to be written for a stay as things stand now; `said`: a date that somebody gave the planning Task by an edit."""
    calendar = context.calendar_of(context.source_of(stay.tree))
    plan = await planning(context, stay, calendar)
    if plan.whole is None or not is_open(plan.whole.tree):
        return await _begin(context, plan)
    pathway = plan.pathway(context)
    if pathway is None:
        return []
    if over := await _over(context, plan):
        return [*_call_off(context, plan, over), *await near.take_back(context, plan, over), *map(CancelTimer, keys(stay.id))]
    if not plan.present and not plan.left:
        return []
    found = _state(context, plan, said)
    if found is not None:
        return [found]  # the rest follows from that, when this version is seen
    operations = [*await _items(context, plan, pathway), *_answer(context, plan)]
    then = _after(plan, operations)
    if not any(one.tree["status"] == "in-progress" for one in then.of(ITEM) if one not in plan.below):  # else they are done next
        operations += await near.flag(context, then, pathway) or _settle(context, then)
    return [*operations, *_timers(context, plan)]


def _after(plan: Planning, operations: Sequence[Op]) -> Planning:
    """The planning as it is when the items are written."""
    written = {one.resource.id: one.resource for one in operations if isinstance(one, Put)}
    below = [replace(one, body=written.pop(one.id).body) if one.id in written else one for one in plan.below]
    now = plan.stay.last_updated
    made = [
        Stored("Task", id, 1, now, False, one.body, "create")
        for id, one in written.items()
        if id and any(up.get("reference") == f"Task/{plan.whole and plan.whole.id}" for up in one.tree.get("partOf", []))
    ]
    return replace(plan, below=[*below, *made])


def _timers(context: Context, plan: Planning) -> list[Op]:
    """When to look again by itself."""
    moments = (rules().near(plan.end, plan.calendar), plan.end) if plan.end and plan.present else (None, None)
    stay, now = plan.stay.id, context.now()
    return [
        SetTimer(key, KIND, due, {"encounter": stay}) if due and due > now else CancelTimer(key)
        for key, due in zip(keys(stay), moments, strict=True)
    ]


# --- beginning ---------------------------------------------------------------------------------------------------------------


async def _begin(context: Context, plan: Planning) -> list[Op]:
    """The whole, for a patient who is in the hospital; its items follow when it is there."""
    pathways = context.pathways_of("admission")
    asked = any(is_open(one.tree) for one in plan.requests)
    if not pathways or not plan.present or not is_stay(plan.stay.tree) or not plan.patients:
        return []
    if not asked and not await _young(context, plan):
        return []
    if plan.whole is not None and plan.whole.tree["status"] != "completed":
        return []  # somebody called the planning off
    if await deceased(context, list(plan.patients)):
        return []
    reasons = await screening.reasons(context, plan)
    pathway, start = pathways[0], plan.stay.tree.get("period", {}).get("start")
    whole = await _task(context, plan, pathway, pathway.whole)
    before = [one.tree() for one in plan.expected]
    dated = pathway.step(DATED) or pathway.whole
    due = _due(context, plan, pathway, dated, None, context.now(), await variables(context, plan, need=False))
    return [
        new(
            whole
            | {
                "id": _next_whole(plan),
                "extension": before,
                "status": "in-progress",
                "reasonCode": {"text": f"Likely to do badly without planning: {', '.join(reasons)}"} if reasons else None,
                "restriction": {"period": ({"start": start} if start else {}) | {"end": plan.calendar.written(due)}},
            }
        )
    ]


def _next_whole(plan: Planning) -> str:
    return stable_id("discharge-planning", plan.stay.id, str(plan.number))


async def _young(context: Context, plan: Planning) -> bool:
    """Whether the stay began not long before the hub first saw it under way: years of history are no admissions."""
    start = begun(plan.stay.tree, plan.calendar)
    versions = [one for one in await context.store.history("Encounter", plan.stay.id) if not one.deleted]
    seen = min((one.last_updated for one in versions if one.tree["status"] in PRESENT), default=None)
    return start is not None and seen is not None and start >= seen - context.window


async def _task(context: Context, plan: Planning, pathway: Pathway, step: Step) -> Tree:
    now, stay = instant(context.now()), reference(f"Encounter/{plan.stay.id}")
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
        "for": reference(f"Patient/{plan.patients[0]}"),
        "encounter": stay,
        "authoredOn": now,
        "lastModified": now,
        "requester": context.coordinator,
        "performerType": [step.role] if step.role else None,
        "owner": await _owner(context, plan, step),
        "note": [{"text": step.description}] if step.description else None,
    }


async def _owner(context: Context, plan: Planning, step: Step) -> Tree:
    """Who has the role for this patient; else who plans the whole; else the hospital; else the coordinating organisation."""
    organization = await context.follow(plan.stay.tree.get("serviceProvider"))
    who = await in_role(context, step.role, list(plan.patients), organization) if step.role else None
    if who is None and plan.whole is not None:
        who = plan.whole.tree.get("owner")
    return who or (await named(context, organization) if organization else context.coordinator)


# --- when and where to -------------------------------------------------------------------------------------------------------


def _state(context: Context, plan: Planning, said: str | None) -> Put | None:
    """An expectation that was stated elsewhere is put with the others: by the hospital's Encounter, or by an edit of the date."""
    assert plan.whole is not None
    found, at = plan.expected, instant(context.now())
    stay = reference(f"Encounter/{plan.stay.id}")
    theirs = next(
        (one.get("valueDateTime") for one in plan.stay.tree.get("extension", []) if one.get("url") == PLANNED_END), None
    )
    before = next((one.date for one in reversed(found) if (one.by or {}).get("reference") == stay["reference"]), None)
    where = found[-1].disposition if found else None
    if theirs and theirs != before:
        return _expect(context, plan, [*found, Expectation(theirs, where, stay, at)])
    if said and end_of(said, plan.calendar) != plan.end:
        return _expect(context, plan, [*found, Expectation(said, where, None, at)])
    written = plan.whole.tree.get("restriction", {}).get("period", {}).get("end")
    differs = plan.end is not None and end_of(written, plan.calendar) != plan.end
    return _expect(context, plan, found) if differs else None


def _expect(context: Context, plan: Planning, found: Sequence[Expectation]) -> Put:
    assert plan.whole is not None
    return edit(plan.whole, **stated(plan.whole.tree, found, plan.calendar), lastModified=instant(context.now()))


def stated(task: Tree, found: Sequence[Expectation], calendar: Any) -> Tree:
    """The members of the planning Task with these expectations."""
    others = [one for one in task.get("extension", []) if one.get("url") != found[-1].tree()["url"]] if found else []
    period = dict(task.get("restriction", {}).get("period", {}))
    end = end_of(found[-1].date, calendar) if found else None
    period |= {"end": calendar.written(end)} if end else {}
    return {
        "extension": [*others, *(one.tree() for one in found)],
        "restriction": {**task.get("restriction", {}), "period": period},
    }


# --- items -------------------------------------------------------------------------------------------------------------------


async def _items(context: Context, plan: Planning, pathway: Pathway) -> list[Op]:
    need = bool(plan.whole and plan.whole.tree.get("reasonCode")) or bool(plan.requests) or bool(plan.items("evaluation"))
    facts = await variables(context, plan, need=need)
    wanted, record = pathway.applicable(facts), Record(context, plan, pathway.steps)
    operations: list[Op] = []
    for step in pathway.steps:
        tasks = plan.items(step.id)
        standing = [one for one in tasks if is_open(one.tree)]
        if step in wanted:
            operations += await _wanted(context, plan, pathway, step, record, standing, tasks, facts)
        elif not (plan.left and plan.where == UNKNOWN):  # where somebody went may be said after they have left
            operations += [_end(context, one, "cancelled", concept(GONE, _why(plan))) for one in standing]
    return operations + (await near.carry_on(context, plan, operations) if plan.left else [])


def _why(plan: Planning) -> str:
    title = rules().titles.get(plan.where)
    return f"Not asked for any more: {title}" if title else "Not asked for any more"


async def _wanted(
    context: Context,
    plan: Planning,
    pathway: Pathway,
    step: Step,
    record: Record,
    standing: Sequence[Stored],
    tasks: Sequence[Stored],
    facts: dict[str, str],
) -> list[Op]:
    if standing:
        done = await _done(context, plan, step, record)
        if done is not None:
            return [_move(context, one, "completed", done) for one in standing]
        if plan.left and not step.mandatory:
            return [_end(context, one, "cancelled", concept(GONE, "The patient has left")) for one in standing]
        return [moved for one in standing if (moved := _redated(context, plan, pathway, step, one, facts)) is not None]
    if (plan.left and not step.mandatory) or (tasks and not _again(context, plan, step, tasks[-1].tree)):
        return []
    assert plan.whole is not None
    due = _due(context, plan, pathway, step, plan.end, context.now(), facts)
    tree = await _task(context, plan, pathway, step)
    declined = bool(tasks) and tasks[-1].tree["status"] == "rejected"
    return [
        new(
            tree
            | {
                "id": stable_id(plan.whole.id, step.id, str(len(tasks))),
                "status": "in-progress" if await _done(context, plan, step, record) is not None else "ready",
                "partOf": [reference(f"Task/{plan.whole.id}")],
                "owner": context.coordinator if declined else tree["owner"],
                "restriction": {"period": {"end": plan.calendar.written(due)}},
            }
        )
    ]


async def _done(context: Context, plan: Planning, step: Step, record: Record) -> list[Stored] | None:
    """What shows that a step is done; None when nothing does."""
    if step.id == DATED:
        return [] if _dated(context, plan) else None
    return await record.showing(step) or None


def _dated(context: Context, plan: Planning) -> bool:
    """Whether it is known when and where to the patient goes, and the time has not passed."""
    return plan.where != UNKNOWN and (plan.left or (plan.end is not None and plan.end > context.now()))


def _again(context: Context, plan: Planning, step: Step, last: Tree) -> bool:
    """Whether an item that was closed comes back: it was not asked for then, or nobody said why a mandatory one is not done."""
    if last["status"] == "completed":
        return step.id == DATED and not _dated(context, plan)
    reason = last.get("statusReason")
    if own(reason) == GONE or last["status"] in ("rejected", "entered-in-error"):
        return True
    if plan.present and len(last.get("partOf", [])) > 1:
        return True  # it was called off with the transition of a discharge that was taken back
    return step.mandatory and not reason


def _due(
    context: Context, plan: Planning, pathway: Pathway, step: Step, end: datetime | None, made: datetime, facts: dict[str, str]
) -> datetime:
    """When an item is due that came up at `made`."""
    start = begun(plan.stay.tree, plan.calendar)
    due = pathway.due(step, start, plan.calendar, facts) if start else None
    if step.before_end is not None and end is not None:
        back = step.before_end
        day = days_before(plan.calendar.day_of(end), back.count, plan.calendar if back.business else None)
        ahead = plan.calendar.end_of(day) if back.count else end
        due = min(due, ahead) if due else ahead
    if due is not None and due > made:
        return due
    return plan.calendar.due(made, 1 if due else rules().without_date, business=True)


def _redated(context: Context, plan: Planning, pathway: Pathway, step: Step, item: Stored, facts: dict[str, str]) -> Put | None:
    """An item whose date followed from an earlier expectation follows the one that holds now; one that somebody set stays."""
    made = end_of(item.tree.get("authoredOn"), plan.calendar)
    written = end_of(item.tree.get("restriction", {}).get("period", {}).get("end"), plan.calendar)
    if step.before_end is None or plan.end is None or made is None or plan.end <= context.now():
        return None
    due = _due(context, plan, pathway, step, plan.end, made, facts)
    earlier = [None, *(end_of(one.date, plan.calendar) for one in plan.expected[:-1])]
    if due == written or written not in {_due(context, plan, pathway, step, end, made, facts) for end in earlier}:
        return None
    period = {**item.tree.get("restriction", {}).get("period", {}), "end": plan.calendar.written(due)}
    restriction = {**item.tree.get("restriction", {}), "period": period}
    return edit(item, restriction=restriction, extension=reset(item.tree), lastModified=instant(context.now()))


# --- closing -----------------------------------------------------------------------------------------------------------------


def _move(context: Context, task: Stored, status: str, showing: Sequence[Stored]) -> Put:
    """One legal step towards a status; at the end with what shows it."""
    step = (machine("Task").path(task.tree["status"], status) or [status])[0]
    if step != status:
        return edit(task, status=step, lastModified=instant(context.now()))
    shows = [{"type": concept("evidence"), "valueReference": reference(f"{one.type}/{one.id}")} for one in showing]
    return _end(context, task, status, None, output=[*task.tree.get("output", []), *shows] or None)


def _end(context: Context, task: Stored, status: str, why: Tree | None, **members: Any) -> Put:
    now = instant(context.now())
    period = {"start": task.tree.get("authoredOn", now), "end": now}
    ended = {"executionPeriod": period} if status == "completed" else {}
    return edit(task, status=status, statusReason=why, lastModified=now, **ended, **members)


def _answer(context: Context, plan: Planning) -> list[Op]:
    """Who asked for an evaluation has it when it is done."""
    done = [one for one in plan.items("evaluation") if one.tree["status"] == "completed"]
    return [_move(context, one, "completed", done) for one in plan.requests if done and is_open(one.tree)]


async def _over(context: Context, plan: Planning) -> str | None:
    """Why there is nothing to plan any more, in words."""
    if plan.stay.tree["status"] in ("cancelled", "entered-in-error"):
        return "The stay was called off"
    died = (plan.left and plan.where == DIED) or await deceased(context, list(plan.patients))
    return "The patient has died" if died else None


def _call_off(context: Context, plan: Planning, why: str) -> list[Op]:
    below = [one for one in plan.below if own(one.tree.get("code")) != OPEN_ITEMS]
    tasks = [one for one in (*below, *plan.requests, plan.whole) if one is not None and is_open(one.tree)]
    return [_end(context, one, "cancelled", {"text": why}) for one in tasks]


def _settle(context: Context, plan: Planning) -> list[Op]:
    """The whole is over when the patient has left and nothing below it is open."""
    if not plan.left or any(is_open(one.tree) for one in plan.below) or plan.whole is None:
        return []
    return [_move(context, plan.whole, "completed", [])]
