"""Days that barriers cost: the local days on which something kept a patient in hospital, each counted once.

https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.task_states import is_open
from fhircm.coordination.times import moment
from fhircm.store.resources import Stored

Tree = dict[str, Any]


def barrier_days(barrier: Tree, now: datetime, calendar: BusinessCalendar) -> set[date]:
    """The midnights, by the day before each, over which a barrier stood; none for one that was entered in error."""
    start = moment(barrier.get("authoredOn"))
    if start is None or barrier["status"] == "entered-in-error":
        return set()
    over = barrier.get("executionPeriod", {}).get("end") or barrier.get("lastModified")
    end = now if is_open(barrier) else moment(over)
    first, last = calendar.day_of(start), calendar.day_of(end or start)
    return {first + timedelta(days=n) for n in range((last - first).days)}


def days_lost(barriers: Iterable[Stored], now: datetime, calendar: BusinessCalendar) -> int:
    """How many days any barrier stood; two at once count once."""
    return len(set[date]().union(*(barrier_days(one.tree, now, calendar) for one in barriers)))
