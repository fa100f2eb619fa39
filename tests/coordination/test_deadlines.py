"""Due times against dates worked out by hand on a calendar, and against laws that hold for every start."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.deadlines import BusinessCalendar, Span
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


# --- hours of business ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "span", "due"),
    [
        ("2026-03-02T09:00-06:00", "4 business hours", "2026-03-02T13:00-06:00"),
        ("2026-03-02T16:00-06:00", "4 business hours", "2026-03-03T11:00-06:00"),  # closes at five, opens at eight
        ("2026-03-06T16:00-06:00", "4 business hours", "2026-03-09T11:00-05:00"),  # over a weekend on which the clocks go forward
        ("2026-03-07T12:00-06:00", "1 business hour", "2026-03-09T09:00-05:00"),  # Saturday
        ("2026-02-27T16:30-06:00", "1 business hour", "2026-03-02T08:30-06:00"),
        ("2028-02-28T16:30-06:00", "1 business hour", "2028-02-29T08:30-06:00"),  # a leap day
        ("2028-02-29T10:00-06:00", "1 business day", "2028-03-01T23:59:59-06:00"),
        ("2026-12-24T16:00-06:00", "2 business hours", "2026-12-28T09:00-06:00"),  # Friday is Christmas
        ("2026-03-07T23:00-06:00", "3 hours", "2026-03-08T03:00-05:00"),  # of the clock: two to three does not exist
        ("2026-11-01T00:30-05:00", "2 hours", "2026-11-01T01:30-06:00"),  # one to two comes twice
    ],
)
def test_hours_worked_out_by_hand(start, span, due):
    assert CHICAGO.after(datetime.fromisoformat(start), Span.read(span)) == datetime.fromisoformat(due)


@pytest.mark.parametrize(
    ("due", "span", "before"),
    [
        ("2026-03-04T23:59:59-06:00", "1 business day", "2026-03-03T08:00-06:00"),
        ("2026-03-02T23:59:59-06:00", "1 business day", "2026-02-27T08:00-06:00"),
        ("2026-03-02T23:59:59-06:00", "1 day", "2026-03-01T08:00-06:00"),  # a Sunday has no hours: those of an office
        ("2026-03-03T09:00-06:00", "4 business hours", "2026-03-02T14:00-06:00"),
        ("2026-03-03T23:59:59-06:00", "2 business hours", "2026-03-03T15:00-06:00"),
        ("2026-03-08T03:30-05:00", "1 hour", "2026-03-08T01:30-06:00"),
    ],
)
def test_moments_before_worked_out_by_hand(due, span, before):
    assert CHICAGO.before(datetime.fromisoformat(due), Span.read(span)) == datetime.fromisoformat(before)


def test_hours_in_pieces_and_over_a_change_of_clocks():
    split = {day: ((time(8), time(12)), (time(13), time(17))) for day in range(5)}
    calendar = BusinessCalendar("America/Chicago", "US", hours=split)
    assert calendar.worked(datetime.fromisoformat("2026-03-02T11:00-06:00"), timedelta(hours=2)) == datetime.fromisoformat(
        "2026-03-02T14:00-06:00"
    )
    night = BusinessCalendar("America/Chicago", "US", weekend=(), hours={6: ((time(), time()),)})
    sundays = [night.opening(date(2026, month, day)) for month, day in ((3, 8), (3, 15), (11, 1))]
    assert [sum((end - begin for begin, end in day), timedelta()) / timedelta(hours=1) for day in sundays] == [23, 24, 25]


@given(zones, starts, st.integers(0, 200), st.integers(0, 200))
def test_hours_of_business_add_up_and_can_be_counted(zone, start, first, second):
    calendar = BusinessCalendar(zone, "US")
    one, other = timedelta(minutes=first * 7), timedelta(minutes=second * 7)
    end = calendar.worked(start, one)
    assert calendar.time_between(start, end) == one
    assert calendar.worked(start, one + other) >= end
    assert calendar.time_between(start, calendar.worked(end, other)) == one + other
    assert calendar.is_business_day(calendar.day_of(end))


@given(zones, starts, starts, st.integers(1, 30))
def test_what_was_left_in_days_is_left_after_a_pause(zone, paused, resumed, days):
    calendar = BusinessCalendar(zone, "US")
    due = calendar.due(paused, days, True)
    left = calendar.days_between(paused, due)
    again = calendar.due(resumed, left, True)
    assert left == days
    assert calendar.ends_a_day(again)
    assert calendar.days_between(resumed, again) == left


@given(zones, starts, starts, st.integers(1, 400))
def test_what_was_left_in_hours_is_left_after_a_pause(zone, paused, resumed, minutes):
    calendar = BusinessCalendar(zone, "US")
    left = calendar.time_between(paused, calendar.worked(paused, timedelta(minutes=minutes)))
    assert calendar.time_between(resumed, calendar.worked(resumed, left)) == timedelta(minutes=minutes)


@given(zones, starts, st.integers(0, 12), st.booleans(), st.sampled_from("dh"))
def test_a_reminder_comes_before_and_further_ones_earlier(zone, due, count, business, unit):
    calendar = BusinessCalendar(zone, "US")
    moments = [calendar.before(due, Span(count + more, business, unit)) for more in (0, 1, 2)]
    assert moments == sorted(moments, reverse=True)
    assert moments[1] < due


@pytest.mark.parametrize("words", ["2 weeks", "two days", "2 businessdays", "-1 days", 2, None, "2 business days "])
def test_spans_that_cannot_be_read_are_refused(words):
    with pytest.raises(ValueError, match="number of days or hours"):
        Span.read(words)


def test_spans_say_what_they_are():
    assert [str(Span.read(text)) for text in ("1 business day", "2 hours", "0 days")] == ["1 business day", "2 hours", "0 days"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("Mars/Olympus", "US"),
        ("UTC", "XX"),
        ("UTC", "US", "ZZ"),
        ("UTC", "US", None, (), range(7)),
        ("UTC", "US", None, (), (7,)),
        ("UTC", "US", None, (), (5, 6), {0: ((time(9), time(9)),)}),
        ("UTC", "US", None, (), (5, 6), {5: ((time(9), time(12)),)}),
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
