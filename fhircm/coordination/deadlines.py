"""When something is due: days and hours of an organisation's own calendar, in its own time zone.

https://hl7.org/fhir/R4/datatypes.html#dateTime. The day on which it starts is day 0: "within 2 business days after a discharge"
ends with the second business day after the day of the discharge, whatever the hour. Hours of business count only while the
organisation works: 4 business hours from 16:00, when it closes at 17:00, end at 11:00 of the next business day that begins at 8:00.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Literal
from zoneinfo import ZoneInfo

import holidays

Hours = tuple[tuple[time, time], ...]  # when work begins and ends, local; an end of 00:00 is the end of the day
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_LONGEST = 370  # days without business that a calendar may have
_WORDS = re.compile(r"(\d{1,4}) (business )?(day|hour)s?")
WORKING_HOURS: Hours = ((time(8), time(17)),)


@dataclass(frozen=True, slots=True)
class Span:
    """A number of days or hours ("d", "h", as in UCUM), of business or of the clock."""

    count: int
    business: bool
    unit: Literal["d", "h"] = "d"

    @classmethod
    def read(cls, text: object) -> Span:
        """From words such as `2 business days`. Raises ValueError."""
        found = _WORDS.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"'{text}' must be a number of days or hours, such as '2 business days' or '4 business hours'")
        return cls(int(found[1]), bool(found[2]), "d" if found[3] == "day" else "h")

    def __str__(self) -> str:
        return (
            f"{self.count} {'business ' if self.business else ''}{'day' if self.unit == 'd' else 'hour'}{'s' * (self.count != 1)}"
        )


class BusinessCalendar:
    """The days and hours in which an organisation works.

    `time_zone` is an IANA name; `country` and `subdivision` (ISO 3166) choose the public holidays; `closed` are further days
    without business; `weekend` are days of the week, 0 is Monday. `hours` are those of each day of the week; a day that is not in
    it has none, and without it every day has those of an office, 8 to 17. Raises ValueError for a zone or country that is not
    known, a week without business days, or hours that end before they begin.
    """

    def __init__(
        self,
        time_zone: str,
        country: str,
        subdivision: str | None = None,
        closed: Iterable[date] = (),
        weekend: Iterable[int] = (5, 6),
        hours: Mapping[int, Hours] | None = None,
    ) -> None:
        self.country, self.subdivision = country, subdivision
        self.closed, self.weekend = frozenset(closed), frozenset(weekend)
        self.hours = dict.fromkeys(range(7), WORKING_HOURS) if hours is None else dict(hours)
        try:
            self.zone = ZoneInfo(time_zone)
        except (OSError, LookupError) as error:
            raise ValueError(f"'{time_zone}' is not an IANA time zone") from error
        if country not in (supported := holidays.list_supported_countries()):
            raise ValueError(f"The public holidays of '{country}' are not known")
        if subdivision is not None and subdivision not in supported[country]:
            raise ValueError(f"'{subdivision}' is not a part of '{country}' whose public holidays are known")
        if not self.weekend < set(range(7)):
            raise ValueError("weekend must hold days of the week, 0 to 6, and leave one to work on")
        if not {day for day, found in self.hours.items() if found} & (set(range(7)) - self.weekend):
            raise ValueError("hours must leave a day of the week to work on")
        for begin, end in (each for found in self.hours.values() for each in found):
            if end != time() and begin >= end:
                raise ValueError(f"hours must end after they begin, unlike {begin:%H:%M}-{end:%H:%M}")

    @cached_property
    def _holidays(self) -> holidays.HolidayBase:
        return holidays.country_holidays(self.country, subdiv=self.subdivision)

    def is_business_day(self, day: date) -> bool:
        """Whether the organisation works on this day."""
        if day.weekday() in self.weekend or not self.hours.get(day.weekday()):
            return False
        return day not in self.closed and day not in self._holidays

    def day_of(self, at: datetime) -> date:
        """The local day of a moment."""
        return at.astimezone(self.zone).date()

    def end_of(self, day: date) -> datetime:
        """The last second of a local day, in UTC; right also where clocks change at midnight."""
        return self._at(day + _DAY, time()) - _SECOND

    def start_of(self, day: date) -> datetime:
        """The first second of a local day, in UTC."""
        return self.end_of(day - _DAY) + _SECOND

    def _at(self, day: date, hour: time) -> datetime:
        return datetime.combine(day, hour, self.zone).astimezone(UTC)

    def opening(self, day: date) -> list[tuple[datetime, datetime]]:
        """When the organisation works on a local day, in UTC, in order. Hours that a change of clocks leaves out are not among them."""
        if not self.is_business_day(day):
            return []
        found = sorted(
            (self._at(day, begin), self._at(day + _DAY if end == time() else day, end))
            for begin, end in self.hours.get(day.weekday(), ())
        )
        apart: list[tuple[datetime, datetime]] = []
        for begin, end in found:
            begin = max(begin, apart[-1][1]) if apart else begin
            if begin < end:
                apart.append((begin, end))
        return apart

    # --- forwards ----------------------------------------------------------------------------------------------------------------

    def after(self, start: datetime, span: Span) -> datetime:
        """When a span is over (UTC) that begins at `start`: days end with the local day, hours with the hour."""
        if span.unit == "d":
            return self.due(start, span.count, span.business)
        if start.tzinfo is None:
            raise ValueError("start must have a time zone")
        length = timedelta(hours=span.count)
        return self.worked(start, length) if span.business else start.astimezone(UTC) + length

    def due(self, start: datetime, days: int, business: bool) -> datetime:
        """The end (UTC) of the local day that is so many days, or business days, after the day of `start`.

        With 0 business days: the day itself, or the next one on which the organisation works.
        """
        if start.tzinfo is None:
            raise ValueError("start must have a time zone")
        if days < 0:
            raise ValueError("days must not be negative")
        day = self.day_of(start)
        if not business:
            return self.end_of(day + days * _DAY)
        for _ in range(days):
            day = self._next(day + _DAY)
        return self.end_of(self._next(day))

    def worked(self, start: datetime, length: timedelta) -> datetime:
        """When the organisation has worked for so long (UTC), counted from `start`."""
        left = max(length, timedelta())
        for begin, end in self._open(self.day_of(start), _DAY):
            begin = max(begin, start)
            if begin < end:
                if left <= end - begin:
                    return begin.astimezone(UTC) + left
                left -= end - begin
        raise AssertionError("unreachable")

    # --- backwards, and between ---------------------------------------------------------------------------------------------------

    def before(self, due: datetime, span: Span) -> datetime:
        """The moment (UTC) a span before `due`: for days when work begins on that day, for hours that hour."""
        if span.unit == "h":
            length = timedelta(hours=span.count)
            return self._worked_back(due, length) if span.business else due.astimezone(UTC) - length
        day = self.day_of(due)
        for _ in range(span.count):
            day -= _DAY
            if span.business:
                day = self._previous(day)
        hours = self.opening(day)
        return hours[0][0] if hours else self._at(day, WORKING_HOURS[0][0])

    def _worked_back(self, end: datetime, length: timedelta) -> datetime:
        left = length
        for begin, until in self._open(self.day_of(end), -_DAY):
            until = min(until, end)
            if begin < until:
                if left <= until - begin:
                    return until.astimezone(UTC) - left
                left -= until - begin
        raise AssertionError("unreachable")

    def days_between(self, start: datetime, due: datetime) -> int:
        """How many business days lie after the day of `start`, up to that of `due`; 0 when it is due that day, or was before."""
        day, last = self.day_of(start), self.day_of(due)
        return sum(self.is_business_day(day + n * _DAY) for n in range(1, (last - day).days + 1))

    def time_between(self, start: datetime, due: datetime) -> timedelta:
        """For how long the organisation works between two moments."""
        day, total = self.day_of(start), timedelta()
        while day <= self.day_of(due):
            total += sum((max(timedelta(), min(end, due) - max(begin, start)) for begin, end in self.opening(day)), timedelta())
            day += _DAY
        return total

    def ends_a_day(self, at: datetime) -> bool:
        """Whether a moment is the end of a local day: what is due then was counted in days."""
        return at.astimezone(UTC).replace(microsecond=0) == self.end_of(self.day_of(at))

    # --- days --------------------------------------------------------------------------------------------------------------------

    def _open(self, day: date, step: timedelta) -> Iterator[tuple[datetime, datetime]]:
        """When the organisation works, from a day on, forwards or backwards."""
        while True:
            hours = self.opening(day)
            yield from hours if step > timedelta() else reversed(hours)
            day = self._next(day + step) if step > timedelta() else self._previous(day + step)

    def _next(self, day: date) -> date:
        """This day, or the first business day after it."""
        return self._business_day(day, _DAY)

    def _previous(self, day: date) -> date:
        """This day, or the last business day before it."""
        return self._business_day(day, -_DAY)

    def _business_day(self, day: date, step: timedelta) -> date:
        for _ in range(_LONGEST):
            if self.is_business_day(day):
                return day
            day += step
        raise ValueError("The calendar has no business day within a year")

    def written(self, at: datetime) -> str:
        """A moment as FHIR writes it, to the second, with the offset of this calendar's zone: people read their own clock."""
        return at.astimezone(self.zone).isoformat(timespec="seconds")
