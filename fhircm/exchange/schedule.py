"""When a partner is asked: how often for changes and for everything, within which hours, and not while it is maintained.

https://www.rfc-editor.org/rfc/rfc5545#section-3.3.5 for local times that a change of the clocks skips or repeats: of the two readings the
one is taken that leaves the partner alone for longer. Durations are written as in ISO 8601, local times as HH:MM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from fhircm.exchange.yaml_keys import Keys

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DURATION = re.compile(r"P(?=\d|T\d)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d|24:00")
_DAY = timedelta(days=1)
_AHEAD = 15  # days: beyond a week with a change of the clocks in it, nothing new comes


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of local time on some days of the week. One that ends no later than it starts ends on the day after."""

    days: frozenset[int]  # on which it starts; 0 is Monday
    start: timedelta  # since midnight, by the wall clock
    end: timedelta  # the same, of the same day or of the next

    def around(self, at: datetime, zone: ZoneInfo, *, longest: bool, ahead: int = 1) -> Iterator[tuple[datetime, datetime]]:
        """Its instants from the day before an instant to `ahead` days after it, in UTC and in order.

        `longest` chooses among the readings of a time that the clocks skip or repeat.
        """
        first = at.astimezone(zone).date() - _DAY
        for day in (first + number * _DAY for number in range(ahead + 2)):
            if day.weekday() in self.days:
                start, end = _readings(day, self.start, zone), _readings(day, self.end, zone)
                begins, ends = (min(start), max(end)) if longest else (max(start), min(end))
                if begins < ends:
                    yield begins, ends


@dataclass(frozen=True, slots=True)
class Schedule:
    """When one partner may be asked, and when it is time to. Every instant that goes in has a time zone; those that come out are in UTC."""

    time_zone: str = "UTC"  # IANA; of the windows
    every: timedelta | None = None  # between two pulls of changes; none: the hub's own usual interval
    full: timedelta | None = None  # between two full reconciliations; none: the hub's own
    hours: tuple[Window, ...] = field(default=())  # none: around the clock
    maintenance: tuple[Window, ...] = field(default=())

    def open(self, now: datetime) -> bool:
        """Whether the partner may be asked now."""
        return self._opens(now) == now

    def maintained(self, now: datetime) -> bool:
        """Whether the partner is maintained now: nothing is asked of it, and nothing sent, whatever its working hours."""
        return self._maintenance_ends(now.astimezone(UTC)) > now

    def due(self, last: datetime | None, now: datetime, usual: timedelta = timedelta(minutes=15)) -> bool:
        """Whether it is time for a pull of changes: the partner is open, and long enough has passed since the last one began.

        `usual` is the interval of a partner that names none. A `last` in the future (a clock was put back) counts as never.
        """
        return self.open(now) and self._ripe(last, now, self.every or usual) <= now

    def full_due(self, last: datetime | None, now: datetime, usual: timedelta = timedelta(days=7)) -> bool:
        """The same for a full reconciliation."""
        return self.open(now) and self._ripe(last, now, self.full or usual) <= now

    def next(self, last: datetime | None, now: datetime, usual: timedelta = timedelta(minutes=15)) -> datetime:
        """The earliest instant, from now on, at which a pull of changes is due."""
        opens = self._opens(max(now, self._ripe(last, now, self.every or usual)))
        assert opens is not None  # read() refuses a schedule that is never open
        return opens

    def closes(self, now: datetime) -> datetime | None:
        """When the partner next stops being open, within two weeks; None when nothing closes it. An interruption starts then."""
        zone = ZoneInfo(self.time_zone)
        ends = [end for hours in self.hours for _, end in hours.around(now, zone, longest=False, ahead=_AHEAD)]
        ends += [start for one in self.maintenance for start, _ in one.around(now, zone, longest=True, ahead=_AHEAD)]
        return min((at for at in ends if at >= now and not self.open(at)), default=None)

    def _ripe(self, last: datetime | None, now: datetime, every: timedelta) -> datetime:
        return now if last is None or last > now else (last + every).astimezone(UTC)

    def _opens(self, at: datetime) -> datetime | None:
        """The first open instant from this one on; None when two weeks have none."""
        at, until = at.astimezone(UTC), at + timedelta(days=_AHEAD)
        while at < until:
            later = max(self._hours_begin(at), self._maintenance_ends(at))
            if later == at:
                return at
            at = later
        return None

    def _hours_begin(self, at: datetime) -> datetime:
        if not self.hours:
            return at
        zone = ZoneInfo(self.time_zone)
        spans = [span for hours in self.hours for span in hours.around(at, zone, longest=False, ahead=_AHEAD)]
        return min((max(at, start) for start, end in spans if end > at), default=at + _AHEAD * _DAY)

    def _maintenance_ends(self, at: datetime) -> datetime:
        zone = ZoneInfo(self.time_zone)
        spans = (span for window in self.maintenance for span in window.around(at, zone, longest=True))
        return max((end for start, end in spans if start <= at < end), default=at)


def read(keys: Keys, time_zone: str = "UTC") -> Schedule:
    """The sections `schedule` and `maintenance` of a partner.yaml; neither must be there. Raises YamlWrong."""
    section = keys.keys("schedule", "a mapping of every, full and hours", {})
    every = _duration(section, "every", timedelta(seconds=1), timedelta(days=31))
    full = _duration(section, "full", timedelta(minutes=1), timedelta(days=366))
    hours = section.each("hours", "a list of windows with days, from and to", window, [])
    section.done()
    maintenance = keys.each("maintenance", "a list of windows with days, from and to", window, [])
    schedule = Schedule(time_zone, every, full, hours, maintenance)
    if not _ever_open(schedule):
        keys.wrong("maintenance" if maintenance else "schedule.hours", "leaves no time in which the partner is open")
    return schedule


def duration(text: str) -> timedelta | None:
    """An ISO 8601 duration of weeks, days, hours, minutes and seconds; None when the text is none."""
    if not (found := _DURATION.fullmatch(text)):
        return None
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    try:
        return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        return None


def _duration(keys: Keys, key: str, least: timedelta, most: timedelta) -> timedelta | None:
    text = keys.text(key, "an ISO 8601 duration such as PT5M, PT12H or P7D", default=None)
    if text is None:
        return None
    read = duration(text)
    if read is None or not least <= read <= most:
        keys.wrong(key, f"must be an ISO 8601 duration such as PT5M, PT12H or P7D, and at most {most.days} days")
    return read


def window(keys: Keys) -> Window:
    """A window as a file says it: days, from and to."""
    days = keys.take("days", list, "a list of days of the week", list(WEEKDAYS))
    for number, name in enumerate(days):
        if name not in WEEKDAYS:
            keys.wrong(f"days[{number}]", f"must be one of {', '.join(WEEKDAYS)}")
    if not days:
        keys.wrong("days", "names no day")
    start, end = (keys.text(key, 'a local time such as "22:30", in quotes', _CLOCK) for key in ("from", "to"))
    if start in (end, "24:00"):
        keys.wrong("to", 'is where it starts; a whole day is from "00:00" to "24:00"')
    keys.done()
    begins, ends = _since_midnight(start), _since_midnight(end)
    return Window(frozenset(WEEKDAYS.index(name) for name in days), begins, ends if ends > begins else ends + _DAY)


def _since_midnight(text: str) -> timedelta:
    hours, minutes = text.split(":")
    return timedelta(hours=int(hours), minutes=int(minutes))


def _readings(day: date, since_midnight: timedelta, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """What a wall clock's time may mean, in UTC: two instants where the clocks skip or repeat it, else the same one twice."""
    wall = datetime(day.year, day.month, day.day) + since_midnight
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def _ever_open(schedule: Schedule) -> bool:
    """Whether an ordinary week has an open moment; one in UTC stands for all, for only a change of the clocks makes them differ."""
    plain = Schedule("UTC", hours=schedule.hours, maintenance=schedule.maintenance)
    return plain._opens(datetime(2026, 1, 5, tzinfo=UTC)) is not None
