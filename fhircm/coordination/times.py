"""Dates and times as FHIR writes them.

https://hl7.org/fhir/R4/datatypes.html#dateTime
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from fhircm.coordination.deadlines import BusinessCalendar


def moment(text: str | None, calendar: BusinessCalendar | None = None) -> datetime | None:
    """A dateTime or instant in UTC. A date begins with its local day (UTC without a calendar).

    None for a year or month alone, and for what lies at the edge of the calendar: 9999-12-31 is how some say "for ever".
    """
    if not text or len(text) < 10:
        return None
    try:
        return _moment(text, calendar)
    except OverflowError:
        return None


def _moment(text: str, calendar: BusinessCalendar | None) -> datetime:
    if len(text) == 10:
        day = date.fromisoformat(text)
        return calendar.start_of(day) if calendar else datetime(day.year, day.month, day.day, tzinfo=UTC)
    head, leap, tail = text.partition(":60")  # a leap second, which Python does not know
    at = datetime.fromisoformat(f"{head}:59{tail}" if leap else text)
    return (at + timedelta(seconds=1) if leap else at).astimezone(UTC)


def months_before(day: date, months: int) -> date:
    """The same day so many months earlier, or the last day of that month."""
    years, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    following = date(years + (month == 11), (month + 1) % 12 + 1, 1)
    return min(date(years, month + 1, 1) + timedelta(days=day.day - 1), following - timedelta(days=1))
