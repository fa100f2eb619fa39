"""The checklist of a stay is what its facts ask for: opened at the admission, changed with where the patient goes, closed after them.

https://www.ecfr.gov/current/title-42/section-482.43, https://hl7.org/fhir/R4/task.html. Every change that matters to a stay arranges
all of its planning anew from what there is, one legal step of each Task at a time; so neither the order of the changes nor a replay
makes a difference. What is done stays done. What somebody called off for a reason stays so; without a reason, it comes back when it is mandatory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fhircm.coordination.build import concept, edit, instant, new, reference
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.discharge import near, screening
from fhircm.coordination.discharge.checklist import DATED, EVALUATION, GONE, answers, close, due_of, items, move, task_of
from fhircm.coordination.discharge.expectation import PLANNED_END, Expectation, end_of
from fhircm.coordination.discharge.plan import (
    ITEM,
    OPEN_ITEMS,
    PRESENT,
    Planning,
    age,
    begun,
    is_stay,
    planning,
    variables,
    whole_id,
)
from fhircm.coordination.discharge.rules import DIED, rules
from fhircm.coordination.people import deceased
from fhircm.coordination.task_states import is_open
from fhircm.coordination.transition.stays import human
from fhircm.coordination.transition.stays import stay as stay_of
from fhircm.fhir.invariants import over
from fhircm.store.resources import CancelTimer, Op, Put, Stored

Tree = dict[str, Any]
KIND = "discharge-planning"


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
    operations = [*await items(context, plan, pathway), *_answer(context, plan)]
    then = _after(plan, operations)
    if not any(one.tree["status"] == "in-progress" for one in then.of(ITEM) if one not in plan.below):  # else they are done next
        operations += await near.flag(context, then) or _settle(context, then)
    return [*operations, *await _timers(context, plan)]


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
    return replace(plan, below=sorted([*below, *made], key=age))  # in the order in which they are read next time


async def _timers(context: Context, plan: Planning) -> list[Op]:
    """When to look again by itself."""
    moments = (rules().near(plan.end, plan.calendar), plan.end) if plan.end and plan.present else (None, None)
    stay, now = plan.stay.id, context.now()
    set_anew = [
        await context.timed(key, KIND, moment if moment and moment > now else None, {"encounter": stay})
        for key, moment in zip(keys(stay), moments, strict=True)
    ]
    return [operation for one in set_anew for operation in one]


# --- beginning ---------------------------------------------------------------------------------------------------------------


async def _begin(context: Context, plan: Planning) -> list[Op]:
    """The whole, for a patient who is in the hospital; its items follow when it is there."""
    pathways = context.pathways_of("admission")
    asked = any(is_open(one.tree) for one in plan.requests)
    if not pathways or not plan.present or not is_stay(plan.stay.tree) or not plan.patients:
        return []
    if not asked and not await _young(context, plan):
        return []
    if plan.whole is not None and plan.whole.tree["status"] != "completed" and own(plan.whole.tree.get("statusReason")) != GONE:
        return []  # somebody called the planning off
    if await deceased(context, list(plan.patients)):
        return []
    reasons = await screening.reasons(context, plan)
    pathway, start = pathways[0], plan.stay.tree.get("period", {}).get("start")
    whole = await task_of(context, plan, pathway, pathway.whole)
    before = [one.tree() for one in plan.expected]
    dated = pathway.step(DATED) or pathway.whole
    due = due_of(plan, pathway, dated, None, context.now(), await variables(context, plan, need=False))
    return [
        new(
            whole
            | {
                "id": whole_id(plan.stay.id, plan.number),
                "extension": before,
                "status": "in-progress",
                "reasonCode": {"text": f"Likely to do badly without planning: {', '.join(reasons)}"} if reasons else None,
                "restriction": {"period": ({"start": start} if start else {}) | {"end": plan.calendar.written(due)}},
            }
        )
    ]


async def _young(context: Context, plan: Planning) -> bool:
    """Whether the stay began not long before the hub first saw it under way: neither history nor what is planned elsewhere is an admission."""
    start = begun(plan.stay.tree, plan.calendar)
    versions = [one for one in await context.store.history("Encounter", plan.stay.id) if not one.deleted]
    seen = min((one.last_updated for one in versions if one.tree["status"] in PRESENT), default=None)
    return start is not None and seen is not None and start >= seen - rules().opens_within


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
    follows = stated(plan.whole.tree, found, plan.calendar)["restriction"]["period"].get("end")
    differs = plan.end is not None and end_of(written, plan.calendar) != end_of(follows, plan.calendar)
    return _expect(context, plan, found) if differs else None


def _expect(context: Context, plan: Planning, found: Sequence[Expectation]) -> Put:
    assert plan.whole is not None
    return edit(plan.whole, **stated(plan.whole.tree, found, plan.calendar), lastModified=instant(context.now()))


def stated(task: Tree, found: Sequence[Expectation], calendar: Any) -> Tree:
    """The members of the planning Task with these expectations."""
    others = [one for one in task.get("extension", []) if one.get("url") != found[-1].tree()["url"]] if found else []
    period = dict(task.get("restriction", {}).get("period", {}))
    end = end_of(found[-1].date, calendar) if found else None
    if end:  # which may be said to lie before the hour of the admission
        period = over(period, calendar.written(end))
    return {
        "extension": [*others, *(one.tree() for one in found)],
        "restriction": {**task.get("restriction", {}), "period": period},
    }


# --- closing -----------------------------------------------------------------------------------------------------------------


def _answer(context: Context, plan: Planning) -> list[Op]:
    """Who asked for an evaluation has it when it is over: done, or not done for a reason."""
    evaluation = (plan.items(EVALUATION) or [None])[-1]
    answered = [one for one in plan.requests if evaluation and is_open(one.tree) and answers(one, evaluation)]
    if evaluation is not None and evaluation.tree["status"] != "completed":
        return [close(context, one, "cancelled", evaluation.tree.get("statusReason")) for one in answered]
    return [move(context, one, "completed", [evaluation]) for one in answered if evaluation]


async def _over(context: Context, plan: Planning) -> str | None:
    """Why there is nothing to plan any more, in words."""
    if plan.stay.tree["status"] in ("cancelled", "entered-in-error"):
        return "The stay was called off"
    if plan.left and await _in_hospital_again(context, plan):
        return "The patient is in hospital again"
    died = (plan.left and plan.where == DIED) or await deceased(context, list(plan.patients))
    return "The patient has died" if died else None


async def _in_hospital_again(context: Context, plan: Planning) -> bool:
    one = stay_of(context, plan.stay)
    return one is not None and (await human(context, plan.patients[0], plan.stay)).again(one)


def _call_off(context: Context, plan: Planning, why: str) -> list[Op]:
    below = [one for one in plan.below if own(one.tree.get("code")) != OPEN_ITEMS]
    tasks = [one for one in (*below, *plan.requests, plan.whole) if one is not None and is_open(one.tree)]
    return [close(context, one, "cancelled", concept(GONE, why)) for one in tasks]


def _settle(context: Context, plan: Planning) -> list[Op]:
    """The whole is over when the patient has left and nothing below it is open."""
    if not plan.left or any(is_open(one.tree) for one in plan.below) or plan.whole is None:
        return []
    return [move(context, plan.whole, "completed", [])]
