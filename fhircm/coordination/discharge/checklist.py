"""The items of a stay's checklist: which there must be now, which are done, which do not apply any more, and when each is due.

https://www.ecfr.gov/current/title-42/section-482.43, profiles/plan-definition/discharge-planning.json. What is done stays done. What somebody
called off for a reason stays so; without a reason, it comes back when it is mandatory.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fhircm.coordination import protocol
from fhircm.coordination.build import concept, edit, instant, new, reference
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.discharge import near
from fhircm.coordination.discharge.expectation import end_of
from fhircm.coordination.discharge.plan import MANDATORY, Planning, begun, variables
from fhircm.coordination.discharge.rules import UNKNOWN, days_before, rules
from fhircm.coordination.discharge.shown import Search
from fhircm.coordination.escalation import reset
from fhircm.coordination.people import in_role, named
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine
from fhircm.coordination.times import moment
from fhircm.fhir.invariants import over
from fhircm.store.resources import Op, Put, Stored

Tree = dict[str, Any]
GONE = "no-longer-applicable"
CALLED_OFF = "called-off"  # the transition of care that it belongs to as well
EVALUATION = "evaluation"  # the step that is asked for by a request
DATED = "expected-date"  # the step that is done when somebody said when and where to


async def items(context: Context, plan: Planning, pathway: Pathway) -> list[Op]:
    """What is to be written so that the items are those that are asked for now."""
    need = bool(plan.whole and plan.whole.tree.get("reasonCode")) or bool(plan.requests) or bool(plan.items(EVALUATION))
    facts = await variables(context, plan, need=need)
    wanted, search = pathway.applicable(facts), Search(context, plan, pathway.steps)
    operations: list[Op] = []
    for step in pathway.steps:
        tasks = plan.items(step.id)
        standing = [one for one in tasks if is_open(one.tree)]
        if step in wanted:
            operations += await _wanted(context, plan, pathway, step, search, standing, tasks, facts)
        elif not (plan.left and plan.where == UNKNOWN):  # where somebody went may be said after they have left
            operations += [close(context, one, "cancelled", concept(GONE, _why(plan))) for one in standing]
    return operations + (await near.carry_on(context, plan, operations) if plan.left else [])


def _why(plan: Planning) -> str:
    title = rules().titles.get(plan.where)
    return f"Not asked for any more: {title}" if title else "Not asked for any more"


async def _wanted(
    context: Context,
    plan: Planning,
    pathway: Pathway,
    step: Step,
    search: Search,
    standing: Sequence[Stored],
    tasks: Sequence[Stored],
    facts: dict[str, str],
) -> list[Op]:
    if standing:
        done = await _done(context, plan, step, search)
        if done is not None:
            return [move(context, one, "completed", done) for one in standing]
        if plan.left and not step.mandatory:
            return [close(context, one, "cancelled", concept(GONE, "The patient has left")) for one in standing]
        return [moved for one in standing if (moved := _redated(context, plan, pathway, step, one, facts)) is not None]
    if plan.whole is None or (plan.left and not step.mandatory) or (tasks and not _again(context, plan, step, tasks[-1])):
        return []
    due = due_of(plan, pathway, step, plan.end, context.now(), facts)
    tree = await task_of(context, plan, pathway, step)
    declined = bool(tasks) and tasks[-1].tree["status"] == "rejected"
    return [
        new(
            tree
            | {
                "id": plan.item_id(step.id, len(tasks)),
                "extension": [{"url": MANDATORY, "valueBoolean": True}] if step.mandatory else None,
                "status": "in-progress" if await _done(context, plan, step, search) is not None else "ready",
                "partOf": [reference(f"Task/{plan.whole.id}")],
                "owner": context.coordinator if declined else tree["owner"],
                "restriction": {"period": {"end": plan.calendar.written(due)}},
            }
        )
    ]


async def _done(context: Context, plan: Planning, step: Step, search: Search) -> list[Stored] | None:
    """What shows that a step is done; None when nothing does."""
    if step.id == DATED:
        return [] if _dated(context, plan) else None
    return await search.showing(step) or None


def _dated(context: Context, plan: Planning) -> bool:
    """Whether it is known when and where to the patient goes, and the time has not passed."""
    return plan.where != UNKNOWN and (plan.left or (plan.end is not None and plan.end > context.now()))


def _again(context: Context, plan: Planning, step: Step, closed: Stored) -> bool:
    """Whether an item that was closed comes back: it was not asked for then, or nobody said why a mandatory one is not done."""
    if step.id == EVALUATION and any(not answers(one, closed) for one in plan.requests if is_open(one.tree)):
        return True
    last = closed.tree
    if last["status"] == "completed":
        return step.id == DATED and not _dated(context, plan)
    reason = last.get("statusReason")
    if own(reason) == GONE or last["status"] in ("rejected", "entered-in-error"):
        return True
    if own(reason) == CALLED_OFF:
        return True  # with the transition of a discharge that was taken back, or led elsewhere
    return step.mandatory and not reason


def answers(request: Stored, evaluation: Stored) -> bool:
    """Whether an evaluation that is over is the answer to a request: it ended after somebody asked."""
    asked = moment(request.tree.get("authoredOn")) or request.last_updated
    over = moment(evaluation.tree.get("executionPeriod", {}).get("end") or evaluation.tree.get("lastModified"))
    return not is_open(evaluation.tree) and (over or evaluation.last_updated) >= asked


def due_of(plan: Planning, pathway: Pathway, step: Step, end: datetime | None, made: datetime, facts: dict[str, str]) -> datetime:
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
    due = due_of(plan, pathway, step, plan.end, made, facts)
    earlier = [None, *(end_of(one.date, plan.calendar) for one in plan.expected[:-1])]
    if due == written or written not in {due_of(plan, pathway, step, end, made, facts) for end in earlier}:
        return None
    period = {**item.tree.get("restriction", {}).get("period", {}), "end": plan.calendar.written(due)}
    restriction = {**item.tree.get("restriction", {}), "period": period}
    return edit(item, restriction=restriction, extension=reset(item.tree), lastModified=instant(context.now()))


# --- one Task ----------------------------------------------------------------------------------------------------------------


async def task_of(context: Context, plan: Planning, pathway: Pathway, step: Step) -> Tree:
    stay = reference(f"Encounter/{plan.stay.id}")
    about = {"patient": plan.patients[0], "focus": stay, "encounter": stay}
    by = {"owner": await _owner(context, plan, step), "requester": context.coordinator}
    return protocol.task_of(pathway, step, **about, **by, at=context.now())


async def _owner(context: Context, plan: Planning, step: Step) -> Tree:
    """Who has the role for this patient; else who plans the whole; else the hospital; else the coordinating organisation."""
    organization = await context.follow(plan.stay.tree.get("serviceProvider"))
    who = await in_role(context, step.role, list(plan.patients), organization) if step.role else None
    if who is None and plan.whole is not None:
        who = plan.whole.tree.get("owner")
    return who or (await named(context, organization) if organization else context.coordinator)


def move(context: Context, task: Stored, status: str, showing: Sequence[Stored]) -> Put:
    """One legal step towards a status; at the end with what shows it."""
    step = (machine("Task").path(task.tree["status"], status) or [status])[0]
    if step != status:
        return edit(task, status=step, lastModified=instant(context.now()))
    shows = [{"type": concept("evidence"), "valueReference": reference(f"{one.type}/{one.id}")} for one in showing]
    return close(context, task, status, None, output=[*task.tree.get("output", []), *shows] or None)


def close(context: Context, task: Stored, status: str, why: Tree | None, **members: Any) -> Put:
    now = instant(context.now())
    period = over({"start": task.tree.get("authoredOn", now)}, now)
    ended = {"executionPeriod": period} if status == "completed" else {}
    return edit(task, status=status, statusReason=why, lastModified=now, **ended, **members)
