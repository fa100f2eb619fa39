"""What a Task says about its time: when it is due, how far it went up, since when and until when it is on hold or put off.

https://hl7.org/fhir/R4/task.html (restriction.period is when it is due). What FHIR has no element for stands in extensions, so that whoever
reads the Task sees it:

- `task-escalation`: `level`, how often it was passed on; `due`, when the present owner's time is over; `state`, the status in which it
  had stayed too long, when that was why;
- `task-pause`: `until`, when the pause ends; `since`; `from`, the status before; `due` and `remaining`, the due time then, and what
  was left of it, in business days or in seconds of working time;
- `snoozed-until`: `until`, before which nobody is reminded of it and it is passed to nobody; `reason`; `times`, how often so far;
  `past-deadline`, that this lies beyond a due time that a law or payer sets, and who asked for it knows.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.task_states import is_open, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.systems import JOB

Tree = dict[str, Any]
ESCALATED = f"{BASE}/StructureDefinition/task-escalation"
PAUSED = f"{BASE}/StructureDefinition/task-pause"
SNOOZED = f"{BASE}/StructureDefinition/snoozed-until"


def parts(task: Tree, url: str) -> Tree:
    """The parts of an extension of a Task by name: their values."""
    found = next((one.get("extension", []) for one in task.get("extension", []) if one["url"] == url), [])
    return {one["url"]: value for one in found for name, value in one.items() if name.startswith("value")}


def marked(task: Tree, url: str, **values: Tree | None) -> list[Tree] | None:
    """The extensions of a Task with this one instead of what it was: `until={"valueDateTime": …}`; without values, without it."""
    said = [{"url": name.replace("_", "-"), **value} for name, value in values.items() if value is not None]
    others = [one for one in task.get("extension", []) if one["url"] != url]
    return [*others, *([{"url": url, "extension": said}] if said else [])] or None


def reset(task: Tree) -> list[Tree] | None:
    """The extensions of a Task without those of its escalation: a new step begins with a new deadline."""
    return marked(task, ESCALATED)


def level_of(task: Tree) -> int:
    """How often a Task was escalated."""
    return int(parts(task, ESCALATED).get("level", 0))


def due_of(task: Tree, calendar: BusinessCalendar | None = None) -> datetime | None:
    """When the present owner's time is over (UTC): as escalated, else as the Task was made. A date is over when its local day is."""
    said = parts(task, ESCALATED).get("due") if level_of(task) else None
    said = said or task.get("restriction", {}).get("period", {}).get("end")
    if isinstance(said, str) and len(said) == 10 and calendar is not None:
        at = moment(said, calendar)
        return calendar.end_of(calendar.day_of(at)) if at else None
    return moment(said)


def is_loop(task: Tree | None) -> bool:
    """Whether a Task is open, and the hub's to keep: not the mirror of a partner's, and no job of the hub's own machines."""
    if task is None or mirrored(task) or not is_open(task):
        return False
    return all(system != JOB for system, _ in codings(task.get("code")))


def is_paused(task: Tree) -> bool:
    """Whether a Task is on hold, and its time stands still."""
    return task["status"] == "on-hold" and "since" in parts(task, PAUSED)
