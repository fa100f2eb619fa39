"""When a patient is expected to leave and where to: every expectation that there was stands on the planning Task, in order.

https://hl7.org/fhir/R4/task.html. An Encounter of R4 has no place for it. `Task.restriction.period.end` is the date that holds now, so that
it can be searched and is seen by who knows nothing of this; the extension says who expected what, when, and why it changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from fhircm.coordination.codes import BASE
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.times import moment

Tree = dict[str, Any]
EXPECTED = f"{BASE}/StructureDefinition/expected-discharge"
PLANNED_END = (
    "http://hl7.org/fhir/5.0/StructureDefinition/extension-Encounter.plannedEndDate"  # as R5 has it, on an Encounter of R4
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What somebody expected; `date` as it was written, a day or a moment."""

    date: str | None = None
    disposition: Tree | None = None
    by: Tree | None = None
    at: str | None = None
    reason: str | None = None

    def tree(self) -> Tree:
        """The extension."""
        parts = [
            ("date", "valueDateTime", self.date),
            ("disposition", "valueCodeableConcept", self.disposition),
            ("by", "valueReference", self.by),
            ("at", "valueDateTime", self.at),
            ("reason", "valueString", self.reason),
        ]
        return {"url": EXPECTED, "extension": [{"url": url, name: value} for url, name, value in parts if value]}


def expectations(task: Tree) -> list[Expectation]:
    """All that were, the oldest first."""
    found = []
    for extension in task.get("extension", []):
        if extension.get("url") == EXPECTED:
            parts = {one["url"]: next((one[name] for name in one if name != "url"), None) for one in extension["extension"]}
            found.append(Expectation(*(parts.get(name) for name in ("date", "disposition", "by", "at", "reason"))))
    return found


def end_of(date: str | None, calendar: BusinessCalendar) -> datetime | None:
    """When an expected date is over (UTC): the end of a day, or the moment."""
    at = moment(date, calendar)
    return calendar.end_of(calendar.day_of(at)) if at and date and len(date) == 10 else at


def slips(found: Sequence[Expectation], calendar: BusinessCalendar) -> int:
    """How often the date was put off."""
    ends = [end for one in found if (end := end_of(one.date, calendar))]
    return sum(later > earlier for earlier, later in pairwise(ends))
