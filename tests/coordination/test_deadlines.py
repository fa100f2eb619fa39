"""Due times against dates worked out by hand on a calendar, and against laws that hold for every start."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.times import moment, months_before

CHICAGO = BusinessCalendar("America/Chicago", "US")


@pytest.mark.parametrize(
    ("start", "days", "business", "due"),
    [
        ("2026-03-02T10:00-06:00", 2, True, "2026-03-04T23:59:59-06:00"),  # Monday
        ("2026-03-02T23:30-06:00", 2, True, "2026-03-04T23:59:59-06:00"),  # late in the evening is still that day
        ("2026-03-05T12:00-06:00", 2, True, "2026-03-09T23:59:59-05:00"),  # over a weekend on which the clocks go forward
        ("2026-11-24T23:30-06:00", 2, True, "2026-11-27T23:59:59-06:00"),  # Tuesday; Thursday is Thanksgiving
        ("2026-11-25T08:00-06:00", 2, True, "2026-11-30T23:59:59-06:00"),  # Wednesday; Friday is the first, Monday the second
        ("2026-12-31T08:00-06:00", 2, True, "2027-01-05T23:59:59-06:00"),  # Thursday; New Year, weekend, Monday, Tuesday
        ("2026-07-02T08:00-05:00", 1, True, "2026-07-06T23:59:59-05:00"),  # Independence Day is a Saturday: Friday is off
        ("2026-03-07T08:00-06:00", 0, True, "2026-03-09T23:59:59-05:00"),  # Saturday: the next day of business
        ("2026-03-02T08:00-06:00", 0, True, "2026-03-02T23:59:59-06:00"),
        ("2026-03-04T08:00-06:00", 7, False, "2026-03-11T23:59:59-05:00"),  # calendar days over the change of clocks
        ("2026-10-28T08:00-05:00", 7, False, "2026-11-04T23:59:59-06:00"),
        ("2026-03-03T05:30+00:00", 2, True, "2026-03-04T23:59:59-06:00"),  # in UTC it is Tuesday, at the hospital Monday
    ],
)
def test_due_times_worked_out_by_hand(start, days, business, due):
    assert CHICAGO.due(datetime.fromisoformat(start), days, business) == datetime.fromisoformat(due)
    assert CHICAGO.written(CHICAGO.due(datetime.fromisoformat(start), days, business)) == due


def test_a_state_and_a_house_have_days_of_their_own():
    texas = BusinessCalendar("America/Chicago", "US", "TX")
    assert CHICAGO.is_business_day(date(2026, 11, 27))
    assert not texas.is_business_day(date(2026, 11, 27)), "the Friday after Thanksgiving"
    closed = BusinessCalendar("America/Chicago", "US", closed=[date(2026, 3, 3)])
    assert closed.due(datetime(2026, 3, 2, 12, tzinfo=UTC), 2, True) == datetime.fromisoformat("2026-03-05T23:59:59-06:00")
    sunday_to_thursday = BusinessCalendar("Asia/Dubai", "AE", weekend=(4, 5))
    assert sunday_to_thursday.is_business_day(date(2026, 3, 8))


@pytest.mark.parametrize(
    ("zone", "day", "end"),
    [
        ("America/Havana", date(2026, 3, 7), "2026-03-08T04:59:59+00:00"),  # the next day begins at 01:00
        ("America/Havana", date(2026, 10, 31), "2026-11-01T03:59:59+00:00"),  # 00:00 comes twice: the first begins the day
        ("Asia/Beirut", date(2026, 3, 28), "2026-03-28T21:59:59+00:00"),
    ],
)
def test_clocks_that_change_at_midnight(zone, day, end):
    calendar = BusinessCalendar(zone, "US")
    assert calendar.end_of(day) == datetime.fromisoformat(end)
    assert calendar.day_of(calendar.end_of(day)) == day
    assert calendar.day_of(calendar.end_of(day) + timedelta(seconds=1)) == day + timedelta(days=1)


zones = st.sampled_from(["America/Chicago", "America/Havana", "Asia/Beirut", "Australia/Lord_Howe", "Pacific/Auckland", "UTC"])
starts = st.datetimes(datetime(2015, 1, 1), datetime(2035, 12, 31)).map(lambda at: at.replace(tzinfo=UTC))


@given(zones, starts, st.integers(0, 40))
def test_business_days_are_counted_one_by_one(zone, start, days):
    calendar = BusinessCalendar(zone, "US")
    due = calendar.due(start, days, True)
    first, last = calendar.day_of(start), calendar.day_of(due)
    between = [first + timedelta(days=n) for n in range(1, (last - first).days + 1)]
    assert calendar.is_business_day(last)
    assert sum(map(calendar.is_business_day, between)) == max(days, 0 if calendar.is_business_day(first) else 1)
    assert (due + timedelta(seconds=1)).astimezone(ZoneInfo(zone)).date() == last + timedelta(days=1)
    following = calendar.due(start, days + 1, True)
    assert following > due if days or calendar.is_business_day(first) else following == due


@given(zones, starts, st.integers(0, 60))
def test_calendar_days_end_with_the_local_day(zone, start, days):
    calendar = BusinessCalendar(zone, "US")
    due = calendar.due(start, days, False)
    assert due >= start.replace(microsecond=0)
    assert (calendar.day_of(due) - calendar.day_of(start)).days == days
    assert calendar.due(calendar.start_of(calendar.day_of(start)), days, False) == due, "the hour does not matter"


@pytest.mark.parametrize(
    "arguments",
    [
        ("Mars/Olympus", "US"),
        ("UTC", "XX"),
        ("UTC", "US", "ZZ"),
        ("UTC", "US", None, (), range(7)),
        ("UTC", "US", None, (), (7,)),
    ],
)
def test_a_calendar_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"not|must"):
        BusinessCalendar(*arguments)


def test_a_start_without_a_time_zone_and_days_that_run_backwards_are_refused():
    with pytest.raises(ValueError, match="time zone"):
        CHICAGO.due(datetime(2026, 3, 2), 1, True)
    with pytest.raises(ValueError, match="negative"):
        CHICAGO.due(datetime(2026, 3, 2, tzinfo=UTC), -1, True)


def test_moments_as_fhir_writes_them():
    assert moment("2026-03-02T10:00:00.5-06:00") == datetime(2026, 3, 2, 16, 0, 0, 500000, UTC)
    assert moment("2016-12-31T23:59:60Z") == datetime(2017, 1, 1, tzinfo=UTC)
    assert moment("2026-03-02", CHICAGO) == datetime(2026, 3, 2, 6, tzinfo=UTC)
    assert [moment(text) for text in ("2026", "2026-03", None, "")] == [None] * 4
    edges = ("9999-12-31T23:59:59-06:00", "0001-01-01T00:00:00+14:00")
    assert [moment(text) for text in edges] == [None, None]
    assert moment("9999-12-31", CHICAGO) is not None


@given(st.dates(date(2000, 1, 1), date(2040, 12, 31)), st.integers(0, 30))
def test_months_before(day, months):
    earlier = months_before(day, months)
    assert (day.year * 12 + day.month) - (earlier.year * 12 + earlier.month) == months
    assert earlier.day == day.day or (earlier + timedelta(days=1)).day == 1
