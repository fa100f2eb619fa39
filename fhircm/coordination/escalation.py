"""Who hears of a Task whose time is short, and who has it when its time is over: the next in line, at last who coordinates.

https://hl7.org/fhir/R4/task.html (restriction.period is when it is due). Every open Task of the hub has one timer, at what happens to it next
(fhircm/coordination/agenda.py). How far a Task has gone up is written on it (task_times.py): a handler that is run again finds the level
raised, or the reminder written, and does nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.agenda import Agenda, agenda, is_whole, step_of
from fhircm.coordination.build import edit, for_a_human, instant, new, stable_id, told_of_task
from fhircm.coordination.calendars import calendar_of
from fhircm.coordination.codes import NPI
from fhircm.coordination.context import Context, token
from fhircm.coordination.deadlines import BusinessCalendar, Span
from fhircm.coordination.pausing import paused, resumed, status_after
from fhircm.coordination.people import in_role, linked, organization_of, patient_of
from fhircm.coordination.task_states import is_open, is_referral
from fhircm.coordination.task_times import ESCALATED, PAUSED, due_of, is_loop, level_of, marked, parts, reset
from fhircm.coordination.times import moment
from fhircm.coordination.timing import Timing, timing_of
from fhircm.fhir.systems import COORDINATION
from fhircm.store.resources import Change, Op, SetTimer, Stored, Timer

__all__ = ["KIND", "key", "level_of", "overdue", "reset", "settle", "watch"]

Tree = dict[str, Any]
KIND = "deadline"
REACTION = "deadlines"  # the name of the reaction below
_RAISED = {"routine": "urgent", "urgent": "asap"}  # what is higher stays


def key(task_id: str) -> str:
    """The key of a Task's timer."""
    return f"due:Task/{task_id}"


def _timer(id: str, at: datetime) -> SetTimer:
    return SetTimer(key(id), KIND, at, {"task": id})


# --- by construction ---------------------------------------------------------------------------------------------------------------


async def watch(context: Context, change: Change) -> list[Op]:
    """Reaction to Task: an open one has an owner, a due time and a timer at what happens next; its time stands still while it is on hold."""
    stored = await context.get("Task", change.id)
    if stored is None or not is_open(stored.tree):
        return await context.timed(key(change.id), KIND, None, {})
    if not is_loop(stored.tree):
        return []
    return await settle(context, stored)


async def settle(context: Context, stored: Stored) -> list[Op]:
    """What an open Task needs to be under watch; nothing for a whole pathway, which is watched by its steps."""
    calendar = await calendar_of(context, stored.tree)
    if members := await _missing(context, stored, calendar):
        return [edit(stored, **members, lastModified=instant(context.now()))]  # which is a change again: then the timer is set
    at = (await agenda(context, stored, calendar)).next
    return await context.timed(key(stored.id), KIND, at, {"task": stored.id})


async def _missing(context: Context, stored: Stored, calendar: BusinessCalendar) -> Tree:
    """What an open Task must say and does not."""
    tree, members = stored.tree, dict[str, Any]()
    if not tree.get("owner") and not tree.get("performerType") and not is_referral(tree):
        members["owner"] = context.coordinator
    if due_of(tree, calendar) is None and not level_of(tree):
        within = timing_of(tree).within
        assert within is not None  # one rule is for all Tasks
        restriction = tree.get("restriction", {})
        period = {"start": calendar.written(stored.last_updated), **restriction.get("period", {})}
        begin = max(stored.last_updated, moment(period["start"], calendar) or stored.last_updated)
        end = calendar.written(calendar.after(begin, within))
        members["restriction"] = {**restriction, "period": {**period, "end": end}}
    if is_whole(context, tree):
        return members
    tree = {**tree, **members}
    if tree["status"] != "on-hold":
        members |= await resumed(context, stored, calendar)
        if parts(tree, ESCALATED).get("state", tree["status"]) != tree["status"]:
            members["extension"] = reset({**tree, **members})
    elif "since" not in parts(tree, PAUSED):
        members |= await paused(context, stored, tree, calendar)
    return members


# --- when the time has come --------------------------------------------------------------------------------------------------------


async def overdue(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: remind the owner of an open Task, pass it on when it is overdue, take it up again when its pause is over; each once."""
    stored = await context.get("Task", timer.payload["task"])
    if stored is None:
        return []
    ahead = await agenda(context, stored)
    now = [event for event in ahead.events if event.at <= context.now()]
    if not now:
        return [_timer(stored.id, ahead.next)] if ahead.next else []
    what = {event.what for event in now}
    if "resume" in what:
        return await _end_pause(context, stored)
    if "due" in what:
        return await (_referral_overdue if is_referral(stored.tree) else _pass_on)(context, stored, ahead)
    following = next(event.at for event in ahead.events if event.at > context.now())
    return [new(_reminder(context, stored, now[-1].message, ahead)), _timer(stored.id, following)]


async def _pass_on(context: Context, stored: Stored, ahead: Agenda) -> list[Op]:
    tree, level, timing = stored.tree, level_of(stored.tree), timing_of(stored.tree)
    owner, after, place = await _next_owner(context, tree, level, timing)
    calendar = await calendar_of(context, {**tree, "owner": owner})
    escalated = edit(
        stored,
        owner=owner,
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
        lastModified=instant(context.now()),
        extension=_raised(context, tree, place, calendar, after, ahead.late_in),
    )
    return [escalated, new(_message(context, stored, owner, place, ahead))]


async def _next_owner(context: Context, tree: Tree, level: int, timing: Timing) -> tuple[Tree, Span | None, int]:
    """Who has it now, how long, and the level.

    The next in the chain who is somebody else, at last the organisation that coordinates: to that it comes back again and again.
    """
    step = step_of(context, tree)
    chain = step.chain if step and step.chain else timing.chain or ()
    patient = patient_of(tree)
    patients = await linked(context, patient) if patient else []
    organization = await _organization(context, tree)
    for place, following in enumerate(chain[level:], start=level + 1):
        who = await in_role(context, following.role, patients, organization)
        if who is not None and who["reference"] != tree.get("owner", {}).get("reference"):
            return who, following.after, place
    return context.coordinator, timing.again, len(chain) + 1


async def _organization(context: Context, tree: Tree) -> Stored | None:
    """Whose people are next in line: those of where the Task came about, by its Encounter; else those of its owner, or of who coordinates."""
    encounter = await context.follow(tree.get("encounter"))
    found = await context.follow(encounter.tree.get("serviceProvider")) if encounter else None
    return found or await _of_owner(context, tree) or await context.get("Organization", context.organization)


async def _of_owner(context: Context, tree: Tree) -> Stored | None:
    """The organisation of a Task's owner: as the record says, by a role that a person has, or the partner that the record is from."""
    found = await organization_of(context, tree.get("owner"))
    owner = await context.follow(tree.get("owner")) if found is None else None
    if owner is None:
        return found
    for role in await context.find("PractitionerRole", ("practitioner", f"{owner.type}/{owner.id}")):
        if (found := await context.follow(role.tree.get("organization"))) is not None:
            return found
    source = context.source_of(owner.tree)
    entries = await context.find("Organization", ("identifier", token(NPI, source.npi))) if source else []
    return next((one for one in entries if context.source_of(one.tree) == source), None)


def _raised(
    context: Context, tree: Tree, level: int, calendar: BusinessCalendar, after: Span | None, late_in: str | None
) -> list[Tree] | None:
    until = calendar.written(calendar.after(context.now(), after)) if after else None
    late_in = late_in or parts(tree, ESCALATED).get("state")
    return marked(
        tree,
        ESCALATED,
        level={"valueInteger": level},
        due={"valueDateTime": until} if until else None,
        state={"valueCode": late_in} if late_in else None,
    )


async def _end_pause(context: Context, stored: Stored) -> list[Op]:
    """What is on hold goes on. A referral is its addressee's to take up: a human looks after it, and is told so again later."""
    tree = stored.tree
    if is_referral(tree):
        calendar, again = await calendar_of(context, tree), timing_of(tree).again
        assert again is not None  # one rule is for all Tasks
        said = parts(tree, PAUSED)
        until = calendar.written(calendar.after(context.now(), again))
        kept = {name: _element(name, value) for name, value in said.items() if name != "until"}
        later = edit(
            stored,
            extension=marked(tree, PAUSED, until={"valueDateTime": until}, **kept),
            lastModified=instant(context.now()),
        )
        if await _looked_after(context, stored):
            return [later]
        return [later, _look_after(context, stored, "The referral is on hold, and its pause is over")]
    status = status_after(tree)
    going_on = edit(stored, status=status, statusReason=None, lastModified=instant(context.now()))
    return [going_on, new(_over(context, stored))]


def _element(name: str, value: Any) -> Tree:
    kind = {"from": "valueCode", "remaining": "valueDuration"}.get(name, "valueDateTime")
    return {kind: value}


# --- in words ----------------------------------------------------------------------------------------------------------------------


def _what(tree: Tree) -> str:
    return tree.get("description") or tree.get("code", {}).get("text") or "A task"


def _spoken(context: Context, at: datetime) -> str:
    """A moment as people say it, on the clock of the coordinating organisation."""
    return context.calendar.written(at)[:16].replace("T", " at ")


def _message(context: Context, stored: Stored, owner: Tree, level: int, ahead: Agenda) -> Tree:
    """What the new owner is told; who has it for good is told again each time."""
    tree = stored.tree
    again = level_of(tree) == level
    id = stable_id("escalation", stored.id, str(stored.version))  # which is passed on once; its level and due time may come again
    due = _spoken(context, ahead.due) if ahead.due else ""
    why = f"it is '{ahead.late_in}' for too long, since {due}" if ahead.late_in else f"this was due {due} and is not done"
    yours = "It is still yours." if again else "It is yours now."
    raised = _RAISED.get(tree.get("priority", "routine"), tree.get("priority"))
    return told_of_task(
        id,
        stored,
        "escalation",
        f"{_what(tree)}: {why}. {yours}",
        to=[owner],
        sender=context.coordinator,
        at=context.now(),
        priority=raised,
    )


def _reminder(context: Context, stored: Stored, id: str, ahead: Agenda) -> Tree:
    """What the owner is told before the time is over; who coordinates, when the Task waits for somebody to take it."""
    tree = stored.tree
    due = _spoken(context, ahead.due) if ahead.due else ""
    owner = tree.get("owner") or context.coordinator
    return told_of_task(
        id, stored, "reminder", f"{_what(tree)}: this is due {due}.", to=[owner], sender=context.coordinator, at=context.now()
    )


def _over(context: Context, stored: Stored) -> Tree:
    tree = stored.tree
    id = stable_id("hold-over", stored.id, str(stored.version))
    owner = tree.get("owner") or context.coordinator
    words = f"{_what(tree)}: the pause is over, and the time that was left runs again."
    return told_of_task(id, stored, "hold-over", words, to=[owner], sender=context.coordinator, at=context.now())


async def _referral_overdue(context: Context, stored: Stored, ahead: Agenda) -> list[Op]:
    """A referral keeps its addressee; a human of the coordinating organisation looks after it, for each of its steps as long as it is late."""
    tree, timing = stored.tree, timing_of(stored.tree)
    calendar = await calendar_of(context, tree)
    marked_ = edit(
        stored,
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
        lastModified=instant(context.now()),
        extension=_raised(context, tree, level_of(tree) + 1, calendar, timing.again, ahead.late_in),
    )
    step = step_of(context, tree)
    due = ahead.due or context.now()
    words = f"{step.title if step else 'An answer to the referral'} was due {_spoken(context, due)}"
    if level_of(tree) and await _looked_after(context, stored):
        return [marked_]
    return [marked_, _look_after(context, stored, words)]


async def _looked_after(context: Context, stored: Stored) -> bool:
    found = await context.find("Task", ("focus", f"Task/{stored.id}"), ("code", token(COORDINATION, "referral-overdue")))
    return any(is_open(task.tree) for task in found)


def _look_after(context: Context, stored: Stored, why: str) -> Op:
    """The Task of a human to look after a referral, as this version of it asks for."""
    tree = stored.tree
    return for_a_human(
        stable_id("referral-overdue", stored.id, str(stored.version)),
        "referral-overdue",
        why,
        owner=context.coordinator,
        focus=f"Task/{stored.id}",
        patient=tree.get("for"),
        at=context.now(),
        priority=_RAISED.get(tree.get("priority", "routine"), tree.get("priority")),
    )
