"""When a partner may be asked: intervals, working hours and maintenance in its own time zone, across changes of the clocks."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.exchange.schedule import WEEKDAYS, Schedule, duration, read
from fhircm.exchange.yaml_keys import Keys, YamlWrong

CHICAGO = "America/Chicago"  # clocks go forward on 8 March 2026 at 02:00 and back on 1 November at 02:00


def schedule(zone=CHICAGO, **tree):
    keys = Keys(Path("partner.yaml"), "", tree)
    made = read(keys, zone)
    keys.done()
    return made


def local(text, zone=CHICAGO):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def window(start, end, *days):
    return {"from": start, "to": end, **({"days": list(days)} if days else {})}


def test_without_a_section_a_partner_is_always_open_and_due_by_the_usual_interval():
    plain, now = schedule(), local("2026-03-02T12:00")
    assert plain.open(now)
    assert plain.closes(now) is None
    assert plain.due(None, now)
    assert not plain.due(now - timedelta(minutes=14), now)
    assert plain.due(now - timedelta(minutes=15), now)
    assert not plain.due(now - timedelta(minutes=15), now, usual=timedelta(hours=1))
    assert plain.next(now, now, usual=timedelta(hours=1)) == now + timedelta(hours=1)


def test_a_partners_own_interval_goes_before_the_usual_one():
    often, now = schedule(schedule={"every": "PT2M", "full": "P1D"}), local("2026-03-02T12:00")
    assert often.due(now - timedelta(minutes=2), now)
    assert not often.due(now - timedelta(minutes=1), now)
    assert often.full_due(now - timedelta(days=1), now)
    assert not often.full_due(now - timedelta(hours=23), now)


def test_a_last_pull_in_the_future_does_not_stop_the_next():
    plain, now = schedule(), local("2026-03-02T12:00")
    assert plain.due(now + timedelta(days=400), now)


def test_in_maintenance_nothing_is_due_until_it_ends():
    closed = schedule(maintenance=[window("23:00", "04:00", "saturday")])
    for text, is_open in (
        ("2026-03-14T22:59", True),
        ("2026-03-14T23:00", False),
        ("2026-03-15T03:59", False),
        ("2026-03-15T04:00", True),
        ("2026-03-16T01:00", True),
    ):
        assert closed.open(local(text)) == is_open, text
        assert closed.due(None, local(text)) == is_open, text
        assert closed.full_due(None, local(text)) == is_open, text
    assert closed.next(None, local("2026-03-15T00:30")) == local("2026-03-15T04:00")
    assert closed.next(local("2026-03-14T22:50"), local("2026-03-14T22:51")) == local("2026-03-15T04:00")
    assert closed.closes(local("2026-03-12T12:00")) == local("2026-03-14T23:00")


def test_windows_that_touch_are_one():
    closed = schedule(maintenance=[window("01:00", "02:00"), window("02:00", "03:00"), window("02:30", "05:00")])
    assert closed.next(None, local("2026-06-01T01:15")) == local("2026-06-01T05:00")


def test_working_hours_are_the_only_time_and_maintenance_cuts_them():
    weekdays = WEEKDAYS[:5]
    office = schedule(schedule={"hours": [window("07:00", "19:00", *weekdays)]}, maintenance=[window("06:00", "08:00", "monday")])
    assert not office.open(local("2026-03-06T06:59"))
    assert office.open(local("2026-03-06T07:00"))
    assert office.closes(local("2026-03-06T07:00")) == local("2026-03-06T19:00")
    assert not office.open(local("2026-03-06T19:00"))
    assert office.next(None, local("2026-03-06T19:00")) == local("2026-03-09T08:00")  # over the change of the clocks
    assert office.next(None, local("2026-03-09T08:00")) == local("2026-03-09T08:00")


def test_a_whole_day():
    closed = schedule(maintenance=[window("00:00", "24:00", "sunday")])
    assert closed.next(None, local("2026-06-07T00:00")) == local("2026-06-08T00:00")
    assert closed.open(local("2026-06-06T23:59"))


def test_a_time_that_comes_twice_closes_both_times():
    closed = schedule(maintenance=[window("01:00", "01:30")])
    first, again = (datetime(2026, 11, 1, hour, 15, tzinfo=UTC) for hour in (6, 7))  # 01:15 before and after the clocks go back
    assert not closed.open(first)
    assert not closed.open(again)
    assert closed.next(None, first) == datetime(2026, 11, 1, 7, 30, tzinfo=UTC)


def test_a_time_that_the_clocks_skip_does_not_shorten_the_maintenance():
    closed = schedule(maintenance=[window("01:30", "02:30")])
    assert not closed.open(datetime(2026, 3, 8, 7, 45, tzinfo=UTC))  # 01:30 and an hour on
    assert closed.open(datetime(2026, 3, 8, 8, 30, tzinfo=UTC))


CLOCKS = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from((0, 15, 30, 45)))
WINDOWS = st.lists(
    st.builds(
        lambda start, end, days: window(start, end, *days),
        CLOCKS,
        CLOCKS,
        st.lists(st.sampled_from(WEEKDAYS), min_size=1, max_size=3, unique=True),
    ).filter(lambda one: one["from"] != one["to"]),
    max_size=3,
)
INSTANTS = st.one_of(
    st.datetimes(datetime(2026, 3, 6), datetime(2026, 3, 11)), st.datetimes(datetime(2026, 10, 30), datetime(2026, 11, 4))
).map(lambda at: at.replace(tzinfo=UTC, second=0, microsecond=0))


def _wall_says(windows, at, zone):
    """Whether the wall clock and the calendar on the wall show a time within one of these."""
    wall = at.astimezone(ZoneInfo(zone))
    shown, today, yesterday = f"{wall:%H:%M}", WEEKDAYS[wall.weekday()], WEEKDAYS[wall.weekday() - 1]
    for one in windows:
        start, end = one["from"], one["to"]
        if start < end and start <= shown < end and today in one["days"]:
            return True
        if start > end and ((shown >= start and today in one["days"]) or (shown < end and yesterday in one["days"])):
            return True
    return False


@settings(max_examples=60)
@given(WINDOWS, WINDOWS, INSTANTS, st.sampled_from((CHICAGO, "Australia/Lord_Howe", "Europe/London", "UTC")))
def test_whatever_the_clocks_do_a_closed_partner_is_left_alone(maintenance, hours, at, zone):
    try:
        made = schedule(zone, schedule={"hours": hours}, maintenance=maintenance)
    except YamlWrong as error:
        assert "leaves no time" in str(error)
        return
    if made.open(at):
        assert not _wall_says(maintenance, at, zone)
        assert not hours or _wall_says(hours, at, zone)
    opens = made.next(None, at)
    assert opens >= at
    assert made.open(opens)
    if opens > at:
        assert not made.open(at)
        assert not made.open(at + (opens - at) / 2)
        assert not made.open(opens - timedelta(microseconds=1))
    closes = made.closes(opens)
    if closes is not None:
        assert closes > opens
        assert made.open(closes - timedelta(microseconds=1))
        assert not made.open(closes)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"schedule": {"every": "5m"}}, r"schedule\.every must be an ISO 8601 duration such as PT5M"),
        ({"schedule": {"every": "PT0S"}}, r"schedule\.every must be"),
        ({"schedule": {"full": "P400D"}}, r"schedule\.full must be .* at most 366 days"),
        ({"schedule": {"often": "PT5M"}}, r"schedule\.often is not a key .* every, full, hours"),
        ({"maintenance": [window("25:00", "03:00")]}, r"maintenance\[0\]\.from must be a local time"),
        ({"maintenance": [{"from": 60, "to": "03:00"}]}, r"maintenance\[0\]\.from must be .*\(put it in quotes\)"),
        ({"maintenance": [window("03:00", "03:00")]}, r"maintenance\[0\]\.to is where it starts"),
        ({"maintenance": [window("03:00", "04:00", "noday")]}, r"maintenance\[0\]\.days\[0\] must be one of monday"),
        ({"maintenance": [{"days": [], "from": "03:00", "to": "04:00"}]}, r"maintenance\[0\]\.days names no day"),
        ({"maintenance": [window("00:00", "24:00")]}, "maintenance leaves no time in which the partner is open"),
        (
            {"schedule": {"hours": [window("08:00", "09:00")]}, "maintenance": [window("07:00", "10:00")]},
            "maintenance leaves no time",
        ),
    ],
)
def test_mistakes_are_named(tree, told):
    with pytest.raises(YamlWrong, match=told):
        schedule(**tree)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("PT5M", timedelta(minutes=5)),
        ("P1DT2H", timedelta(days=1, hours=2)),
        ("P2W", timedelta(weeks=2)),
        ("P", None),
        ("PT", None),
        ("P1DT", None),
        ("-PT5M", None),
        ("P" + "9" * 20 + "D", None),
    ],
)
def test_durations(text, means):
    assert duration(text) == means


def test_a_schedule_is_plain_and_comparable():
    assert schedule(schedule={"every": "PT5M"}) == Schedule(CHICAGO, timedelta(minutes=5))
