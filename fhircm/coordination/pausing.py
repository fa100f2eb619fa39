"""A Task on hold, taken up again, or put off: the time that was left when it was paused is there again when it goes on.

https://hl7.org/fhir/R4/task.html#statemachine. The verbs write what a plain update could have written: a status, its reason, and until
when. Whichever way that came, the reaction to Tasks measures what was left of the due time, in the calendar of who has the Task, and
gives it back when the status is another one again.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination.acting import Act
from fhircm.coordination.agenda import since
from fhircm.coordination.build import edit, instant
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar, Span
from fhircm.coordination.protocol import BUSINESS
from fhircm.coordination.task_states import is_open, machine_of, mirrored
from fhircm.coordination.task_times import ESCALATED, PAUSED, SNOOZED, due_of, level_of, marked, parts
from fhircm.coordination.times import moment
from fhircm.coordination.timing import timing_of
from fhircm.fhir.outcome import Conflict, Gone, Invalid, NotFound
from fhircm.store.operations import Put, Write, WriteRule
from fhircm.store.resources import Stored

Tree = dict[str, Any]
_UCUM = "http://unitsofmeasure.org"


# --- what people do ----------------------------------------------------------------------------------------------------------------


async def pause(act: Act) -> list[Put]:
    """Put it on hold, for a reason (`reason`, a CodeableConcept), until a moment (`until`) or for as long as the rules say."""
    until = act.one("until")
    if until is not None and (moment(until) or act.store.now) <= act.store.now:
        raise Invalid("until must be a moment that is still to come", "Parameters.parameter")
    return [
        edit(
            act.about,
            status="on-hold",
            statusReason=act.one("reason"),
            extension=marked(act.about.tree, PAUSED, until=until and {"valueDateTime": until}),
            lastModified=instant(act.store.now),
        )
    ]


async def resume(act: Act) -> list[Put]:
    """Take up again what is on hold."""
    if act.about.tree["status"] != "on-hold":
        raise Conflict(f"The Task is not on hold: its status is '{act.about.tree['status']}'")
    return [edit(act.about, status=status_after(act.about.tree), statusReason=None, lastModified=instant(act.store.now))]


async def snooze(act: Act) -> list[Put]:
    """Put off its next reminder or escalation (`until`), for a reason; the due time stays."""
    tree, until = act.about.tree, act.one("until")
    if not is_open(tree):
        raise Conflict(f"The Task is closed: its status is '{tree['status']}'")
    if (moment(until) or act.store.now) <= act.store.now:
        raise Invalid("until must be a moment that is still to come", "Parameters.parameter")
    return [
        edit(
            act.about,
            extension=marked(
                tree,
                SNOOZED,
                until={"valueDateTime": until},
                reason={"valueCodeableConcept": act.one("reason")},
                times={"valueInteger": int(parts(tree, SNOOZED).get("times", 0)) + 1},
                past_deadline={"valueBoolean": True} if act.one("past-deadline") else None,
            ),
            lastModified=instant(act.store.now),
        )
    ]


def status_after(task: Tree) -> str:
    """The status to which a Task on hold goes back: where it was before, when its table has that step, else in-progress."""
    before = parts(task, PAUSED).get("from", "in-progress")
    return before if before != "on-hold" and machine_of(task).may("on-hold", before) else "in-progress"


# --- what the rules ask ------------------------------------------------------------------------------------------------------------


def enforce(write: Write) -> None:
    """The write rule of pauses and snoozes: how often, how far, and never beyond what a law or payer sets without saying so.

    Raises Conflict, and Invalid for a wrong count.
    """
    new = write.new
    assert new is not None
    if not mirrored(new):
        _enforce_pause(write.previous or {}, new)
        _enforce_snooze(write.previous or {}, new)


def _enforce_pause(previous: Tree, new: Tree) -> None:
    until, most = _newly(previous, new, PAUSED), timing_of(new).longest_pause
    if until is not None and most is not None and not _within(new, most, until):
        raise Conflict(f"This Task may be on hold for {most} at a time, counted from Task.lastModified: choose an earlier moment")


def _enforce_snooze(previous: Tree, new: Tree) -> None:
    until = _newly(previous, new, SNOOZED)
    if until is None:
        return
    now, before, timing = parts(new, SNOOZED), parts(previous, SNOOZED), timing_of(new)
    times = int(before.get("times", 0)) + 1
    if int(now.get("times", 0)) != times:
        raise Invalid(f"It is put off for time number {times}: that is what `times` must say", "Task.extension")
    if timing.snooze is None or times > timing.snooze.times:
        most = timing.snooze.times if timing.snooze else 0
        raise Conflict(
            f"This Task may be put off {most} times, and was {times - 1} times: do it, hand it over, pause or cancel it"
        )
    if not _within(new, timing.snooze.most, until):
        raise Conflict(
            f"This Task may be put off for {timing.snooze.most} at a time, counted from Task.lastModified: choose an earlier moment"
        )
    due = due_of(new)
    if timing.hard and due and until > due and not now.get("past-deadline"):
        said = new.get("restriction", {}).get("period", {}).get("end")
        raise Conflict(
            f"It is due {said}, and this lies beyond. {timing.hard}. Choose an earlier moment, or say past-deadline = true"
        )


def _newly(previous: Tree, new: Tree, url: str) -> datetime | None:
    """Until when something is asked for that was not before."""
    said = parts(new, url).get("until")
    return moment(said) if said != parts(previous, url).get("until") else None


def _within(task: Tree, most: Span, until: datetime) -> bool:
    asked = moment(task.get("lastModified"))
    return asked is not None and until <= asked + _length(most)


def _length(span: Span) -> timedelta:
    return timedelta(days=span.count) if span.unit == "d" else timedelta(hours=span.count)


RULE = WriteRule(frozenset({"Task"}), enforce)


# --- what follows ------------------------------------------------------------------------------------------------------------------


async def paused(context: Context, stored: Stored, tree: Tree, calendar: BusinessCalendar) -> Tree:
    """What a Task that was put on hold says besides: since when, from which status, until when, and what is left of its time."""
    began, due, said = await since(context, stored), due_of(tree, calendar), parts(tree, PAUSED)
    span, most = timing_of(tree).pause, timing_of(tree).longest_pause
    assert span is not None  # one rule is
    assert most is not None  # for all Tasks
    asked = moment(said.get("until"))
    lasts = asked is not None and asked <= began + _length(most) + timedelta(days=1)
    until = said["until"] if lasts else calendar.written(calendar.after(began, span))
    previous = await _version_before(context, stored, "on-hold")
    remaining = None
    if due is not None and due > began:
        remaining = {"valueDuration": _remaining(calendar, began, due)}
    return {
        "extension": marked(
            tree,
            PAUSED,
            until={"valueDateTime": until},
            since={"valueDateTime": calendar.written(began)},
            **({"from": {"valueCode": previous["status"]}} if previous else {}),
            due={"valueDateTime": calendar.written(due)} if due else None,
            remaining=remaining,
        )
    }


def _remaining(calendar: BusinessCalendar, began: datetime, due: datetime) -> Tree:
    if calendar.ends_a_day(due):
        business = [{"url": BUSINESS["d"], "valueBoolean": True}]
        days = calendar.days_between(began, due)
        return {"extension": business, "value": days, "unit": "business days", "system": _UCUM, "code": "d"}
    seconds = int(calendar.time_between(began, due).total_seconds())
    return {"value": seconds, "unit": "seconds of working time", "system": _UCUM, "code": "s"}


async def resumed(context: Context, stored: Stored, calendar: BusinessCalendar) -> Tree:
    """What changes of a Task that is on hold no more: it is due when what was left of its time is over, counted from then.

    A due time that somebody else has set since the pause began stays; so does one that was over before.
    """
    tree = stored.tree
    mark = parts(tree, PAUSED) or await _mark_before(context, stored)
    if not mark:
        return {}
    members: Tree = {"extension": marked(tree, PAUSED)} if parts(tree, PAUSED) else {}
    due, left = due_of(tree, calendar), mark.get("remaining")
    if left is None or due is None or due != moment(mark.get("due")):
        return members
    at = await since(context, stored)
    days = left.get("code") == "d"
    again = calendar.due(at, int(left["value"]), True) if days else calendar.worked(at, timedelta(seconds=int(left["value"])))
    written = calendar.written(again)
    if level_of(tree):
        mark_of = parts(tree, ESCALATED)
        state = {"valueCode": mark_of["state"]} if "state" in mark_of else None
        level = {"valueInteger": mark_of["level"]}
        base = {**tree, "extension": members.get("extension", tree.get("extension", [])) or []}
        return {"extension": marked(base, ESCALATED, level=level, due={"valueDateTime": written}, state=state)}
    restriction = tree.get("restriction", {})
    return {**members, "restriction": {**restriction, "period": {**restriction.get("period", {}), "end": written}}}


async def _mark_before(context: Context, stored: Stored) -> Tree:
    """What the version before said of a pause: an update that took the Task up again may have left it out."""
    if stored.version == 1:
        return {}
    try:
        before = (await context.store.vread("Task", stored.id, stored.version - 1)).tree
    except (NotFound, Gone):
        return {}
    return parts(before, PAUSED) if before["status"] == "on-hold" else {}


async def _version_before(context: Context, stored: Stored, status: str) -> Tree | None:
    """The newest version before this one with another status."""
    number = stored.version - 1
    while number:
        try:
            version = await context.store.vread("Task", stored.id, number)
        except (NotFound, Gone):
            return None
        if version.tree["status"] != status:
            return version.tree
        number -= 1
    return None
