"""What is overdue: every open Task of the hub has a timer at its due time, and when it fires, the next in line has the Task.

https://hl7.org/fhir/R4/task.html (restriction.period is when it is due). How far a Task has gone up is written on it, in an
extension: its `level`, and when the present owner's time is over (`due`). A handler that is run again finds the level raised
and does nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.build import concept, edit, for_a_human, instant, new, reference, stable_id
from fhircm.coordination.codes import BASE
from fhircm.coordination.context import Context
from fhircm.coordination.people import in_role, linked, patient_of
from fhircm.coordination.protocol import NextInLine, Step
from fhircm.coordination.task_states import is_open, is_referral, mirrored
from fhircm.coordination.times import moment
from fhircm.store.resources import CancelTimer, Change, Op, SetTimer, Stored, Timer

Tree = dict[str, Any]
KIND = "deadline"
ESCALATED = f"{BASE}/StructureDefinition/task-escalation"
_RAISED = {"routine": "urgent", "urgent": "asap"}  # what is higher stays


def key(task_id: str) -> str:
    """The key of a Task's timer."""
    return f"due:Task/{task_id}"


def level_of(task: Tree) -> int:
    """How often a Task was escalated."""
    return next((one.get("valueInteger", 0) for one in _parts(task) if one["url"] == "level"), 0)


def due_of(task: Tree) -> datetime | None:
    """When the present owner's time is over (UTC): as escalated, else as the Task was made."""
    if level_of(task):
        return moment(next((one.get("valueDateTime") for one in _parts(task) if one["url"] == "due"), None))
    return moment(task.get("restriction", {}).get("period", {}).get("end"))


def _parts(task: Tree) -> list[Tree]:
    return next((one.get("extension", []) for one in task.get("extension", []) if one["url"] == ESCALATED), [])


def reset(task: Tree) -> list[Tree] | None:
    """The extensions of a Task without those of its escalation: a new step begins with a new deadline."""
    return [one for one in task.get("extension", []) if one["url"] != ESCALATED] or None


async def watch(context: Context, change: Change) -> list[Op]:
    """Reaction to Task: the timer is where the due time is, and gone when the Task is closed."""
    stored = await context.get("Task", change.id)
    tree = stored.tree if stored else None
    if mirrored(tree):
        return []
    due = due_of(tree) if tree and is_open(tree) and not _is_whole(context, tree) else None
    return [SetTimer(key(change.id), KIND, due, {"task": change.id}) if due else CancelTimer(key(change.id))]


def _is_whole(context: Context, task: Tree) -> bool:
    """Whether a Task stands for a whole pathway: its steps have due times of their own."""
    pathway = context.pathway_of(task)
    return pathway is not None and _step_of(context, task) is pathway.whole


async def overdue(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: pass an open Task that is overdue to the next in line, once for each level."""
    stored = await context.get("Task", timer.payload["task"])
    if stored is None or mirrored(tree := stored.tree) or not is_open(tree):
        return []
    due = due_of(tree)
    if due is None or due > context.now():
        return []
    return _referral_overdue(context, stored, due) if is_referral(tree) else await _pass_on(context, stored, due)


async def _pass_on(context: Context, stored: Stored, due: datetime) -> list[Op]:
    tree, level = stored.tree, level_of(stored.tree)
    owner, following, place = await _next_owner(context, tree, level)
    until = None
    if following is not None:
        calendar = await _calendar(context, tree)
        until = calendar.written(calendar.due(context.now(), following.after.days, following.after.business))
    escalated = edit(
        stored,
        owner=owner,
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
        lastModified=instant(context.now()),
        extension=[*(reset(tree) or []), _mark(place, until)],
    )
    return [escalated, new(_message(context, stored, owner, place, due))]


async def _next_owner(context: Context, tree: Tree, level: int) -> tuple[Tree, NextInLine | None, int]:
    """Who has it now, how long, and the level.

    The next in the chain who is somebody else, at last the organisation that coordinates.
    """
    step = _step_of(context, tree)
    chain = step.chain if step else ()
    patient = patient_of(tree)
    patients = await linked(context, patient) if patient else []
    organization = await _organization(context, tree)
    for place, following in enumerate(chain[level:], start=level + 1):
        who = await in_role(context, following.role, patients, organization)
        if who is not None and who["reference"] != tree.get("owner", {}).get("reference"):
            return who, following, place
    return context.coordinator, None, len(chain) + 1


def _step_of(context: Context, tree: Tree) -> Step | None:
    pathway = context.pathway_of(tree)
    return pathway.step(tree.get("instantiatesUri", "").rpartition("#")[2]) if pathway else None


async def _organization(context: Context, tree: Tree) -> Stored | None:
    """Where the Task came about: the organisation of its Encounter."""
    encounter = await context.follow(tree.get("encounter"))
    return await context.follow(encounter.tree.get("serviceProvider")) if encounter else None


async def _calendar(context: Context, tree: Tree) -> Any:
    encounter = await context.follow(tree.get("encounter"))
    return context.calendar_of(context.source_of(encounter.tree) if encounter else None)


def _mark(level: int, until: str | None) -> Tree:
    parts: list[Tree] = [{"url": "level", "valueInteger": level}]
    if until is not None:
        parts.append({"url": "due", "valueDateTime": until})
    return {"url": ESCALATED, "extension": parts}


def _what(tree: Tree) -> str:
    return tree.get("description") or tree.get("code", {}).get("text") or "A task"


def _spoken(context: Context, at: datetime) -> str:
    """A moment as people say it, on the clock of the coordinating organisation."""
    return context.calendar.written(at)[:16].replace("T", " at ")


def _message(context: Context, stored: Stored, owner: Tree, level: int, due: datetime) -> Tree:
    """What the new owner is told. It is on its way (in-progress) until somebody says that it arrived."""
    tree = stored.tree
    task = reference(f"Task/{stored.id}")
    words = f"{_what(tree)}: this was due {_spoken(context, due)} and is not done. It is yours now."
    return {
        "resourceType": "Communication",
        "id": stable_id("escalation", stored.id, str(level)),
        "partOf": [task],
        "status": "in-progress",
        "priority": _RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
        "subject": tree.get("for"),
        "topic": concept("escalation"),
        "about": [task],
        "encounter": tree.get("encounter"),
        "sent": instant(context.now()),
        "recipient": [owner],
        "sender": context.coordinator,
        "payload": [{"contentString": words}],
    }


def _referral_overdue(context: Context, stored: Stored, due: datetime) -> list[Op]:
    """A referral keeps its addressee; a human of the coordinating organisation looks after it, once for each of its steps."""
    tree = stored.tree
    step = _step_of(context, tree)
    marked = edit(
        stored,
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
        lastModified=instant(context.now()),
        extension=[*(reset(tree) or []), _mark(level_of(tree) + 1, None)],
    )
    follow_up = for_a_human(
        stable_id("referral-overdue", stored.id, step.id if step else "", instant(due)),
        "referral-overdue",
        f"{step.title if step else 'An answer to the referral'} was due {_spoken(context, due)}",
        owner=context.coordinator,
        focus=f"Task/{stored.id}",
        patient=tree.get("for"),
        at=context.now(),
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
    )
    return [marked, follow_up]
