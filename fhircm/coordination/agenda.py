"""What happens to an open Task by itself, and when: reminders, the end of its owner's time, the end of a pause.

https://hl7.org/fhir/R4/task.html. It follows from the Task, its earlier versions, the rules of profiles/deadline/ and what was written of
it already, and from nothing else: who looks twice finds the same, and a reminder that was given is not given again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from fhircm.coordination.build import instant, stable_id
from fhircm.coordination.calendars import calendar_of
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar, Span
from fhircm.coordination.protocol import Step
from fhircm.coordination.task_times import PAUSED, SNOOZED, due_of, is_loop, is_paused, level_of, parts
from fhircm.coordination.times import moment
from fhircm.coordination.timing import Timing, timing_of
from fhircm.store.resources import Stored

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """What is to happen, and when (UTC)."""

    at: datetime
    what: Literal["reminder", "due", "resume"]
    message: str = ""  # of a reminder: the id of its Communication


@dataclass(frozen=True, slots=True)
class Agenda:
    """What is ahead of a Task, the next first; `late_in` is the status whose time is over at `due`, when that is why."""

    events: tuple[Event, ...] = ()
    due: datetime | None = None
    late_in: str | None = None

    @property
    def next(self) -> datetime | None:
        """When something happens next."""
        return self.events[0].at if self.events else None


def step_of(context: Context, task: Tree) -> Step | None:
    """The step of a pathway that a Task is."""
    pathway = context.pathway_of(task)
    return pathway.step(task.get("instantiatesUri", "").rpartition("#")[2]) if pathway else None


def is_whole(context: Context, task: Tree) -> bool:
    """Whether a Task stands for a whole pathway: its steps have due times of their own."""
    pathway = context.pathway_of(task)
    return pathway is not None and step_of(context, task) is pathway.whole


async def agenda(context: Context, stored: Stored, calendar: BusinessCalendar | None = None) -> Agenda:
    """What is ahead of a Task; nothing of one that is closed, a partner's, or a whole pathway. `calendar`: that of who has it, if it is known."""
    tree = stored.tree
    if not is_loop(tree) or is_whole(context, tree):
        return Agenda()
    if is_paused(tree):
        until = moment(parts(tree, PAUSED).get("until"))
        return Agenda((Event(until, "resume"),) if until else ())
    timing, calendar = timing_of(tree), calendar or await calendar_of(context, tree)
    due, late_in = await _due(context, stored, timing, calendar)
    if due is None:
        return Agenda()
    events = [Event(due, "due"), *await _reminders(context, stored, timing, calendar, due)]
    return Agenda(tuple(sorted(_put_off(tree, timing, events), key=lambda event: event.at)), due, late_in)


async def _due(
    context: Context, stored: Stored, timing: Timing, calendar: BusinessCalendar
) -> tuple[datetime | None, str | None]:
    """When the owner's time is over; and the status, when that is because the Task was in it for too long."""
    due = due_of(stored.tree, calendar)
    if level_of(stored.tree) or timing.in_state is None or step_of(context, stored.tree) is not None:
        return due, None
    state = calendar.after(await since(context, stored), timing.in_state)
    return (state, stored.tree["status"]) if due is None or state < due else (due, None)


async def since(context: Context, stored: Stored) -> datetime:
    """When a Task came to its present status."""
    first = stored.last_updated
    for version in await context.store.history("Task", stored.id):
        if version.version > stored.version:
            continue
        if version.deleted or version.tree["status"] != stored.tree["status"]:
            break
        first = version.last_updated
    return first


async def _reminders(context: Context, stored: Stored, timing: Timing, calendar: BusinessCalendar, due: datetime) -> list[Event]:
    """The reminders that are still to come. One that would come before the Task was there is none; one that is late does for those before it."""
    if level_of(stored.tree) or not timing.remind:
        return []
    begun = moment(stored.tree.get("restriction", {}).get("period", {}).get("start")) or moment(stored.tree.get("authoredOn"))
    events = sorted((_reminder(stored.id, calendar, due, span) for span in timing.remind), key=lambda event: event.at)
    given = await context.store.read_many([("Communication", event.message) for event in events])
    last = max((at for at, event in enumerate(events) if ("Communication", event.message) in given), default=-1)
    return [event for event in events[last + 1 :] if begun is None or event.at > begun]


def _reminder(task: str, calendar: BusinessCalendar, due: datetime, span: Span) -> Event:
    return Event(calendar.before(due, span), "reminder", stable_id("reminder", task, instant(due), str(span)))


def _put_off(task: Tree, timing: Timing, events: list[Event]) -> list[Event]:
    """Nothing happens before the end of a snooze; but what a law or payer sets is put off only when that was said outright."""
    snoozed = parts(task, SNOOZED)
    until = moment(snoozed.get("until"))
    if until is None:
        return events
    firm = timing.hard is not None and not snoozed.get("past-deadline")
    return [event if firm and event.what == "due" else replace(event, at=max(event.at, until)) for event in events]
