"""When something is due: business days of an organisation's own calendar, to the end of the day in its own time zone.

https://hl7.org/fhir/R4/datatypes.html#dateTime. The day on which it starts is day 0: "within 2 business days after a discharge"
ends with the second business day after the day of the discharge, whatever the hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

import holidays

_DAY = timedelta(days=1)


class BusinessCalendar:
    """The days on which an organisation works.

    `time_zone` is an IANA name; `country` and `subdivision` (ISO 3166) choose the public holidays; `closed` are further days
    without business; `weekend` are days of the week, 0 is Monday. Raises ValueError for a zone or country that is not known, or
    a week without business days.
    """

    def __init__(
        self,
        time_zone: str,
        country: str,
        subdivision: str | None = None,
        closed: Iterable[date] = (),
        weekend: Iterable[int] = (5, 6),
    ) -> None:
        self.country, self.subdivision = country, subdivision
        self.closed, self.weekend = frozenset(closed), frozenset(weekend)
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

    @cached_property
    def _holidays(self) -> holidays.HolidayBase:
        return holidays.country_holidays(self.country, subdiv=self.subdivision)

    def is_business_day(self, day: date) -> bool:
        """Whether the organisation works on this day."""
        return day.weekday() not in self.weekend and day not in self.closed and day not in self._holidays

    def day_of(self, at: datetime) -> date:
        """The local day of a moment."""
        return at.astimezone(self.zone).date()

    def end_of(self, day: date) -> datetime:
        """The last second of a local day, in UTC; right also where clocks change at midnight."""
        midnight = datetime.combine(day + _DAY, time(), self.zone)
        return midnight.astimezone(UTC) - timedelta(seconds=1)

    def start_of(self, day: date) -> datetime:
        """The first second of a local day, in UTC."""
        return self.end_of(day - _DAY) + timedelta(seconds=1)

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

    def _next(self, day: date) -> date:
        """This day, or the first business day after it."""
        for _ in range(370):
            if self.is_business_day(day):
                return day
            day += _DAY
        raise ValueError("The calendar has no business day within a year")

    def written(self, at: datetime) -> str:
        """A moment as FHIR writes it, to the second, with the offset of this calendar's zone: people read their own clock."""
        return at.astimezone(self.zone).isoformat(timespec="seconds")
