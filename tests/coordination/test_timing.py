"""The rules of profiles/deadline/: which counts for a Task, what is refused in a file, and whose calendar it is."""

from datetime import UTC, datetime

import pytest

from fhircm.coordination.calendars import TIME_ZONE, calendar_of, own_hours, placed
from fhircm.coordination.deadlines import BusinessCalendar, Span
from fhircm.coordination.timing import TimingWrong, load_rules, shipped, timing_of

from .test_escalation import CODES

CHICAGO = BusinessCalendar("America/Chicago", "US")
MONDAY = datetime(2026, 3, 2, 15, tzinfo=UTC)
ALL = "{name: all, within: 1 day, again: 1 day, pause: 1 day, longest-pause: 1 day}"


def task(**members):
    return {"resourceType": "Task", "status": "ready", "intent": "order", **members}


def test_the_first_rule_that_says_something_counts():
    stat, contact = timing_of(task(priority="stat")), timing_of(task(code={"coding": [{"system": CODES, "code": "contact"}]}))
    assert stat.within == Span(4, True, "h")
    assert [next_.after for next_ in stat.chain or ()] == [Span(1, True, "h")] * 2
    assert (contact.within, contact.snooze.times) == (Span(5, True), 1)
    assert contact.hard.startswith("Transitional care management")
    assert timing_of(task(status="requested")).in_state == Span(3, True)
    assert timing_of(task()).in_state is None
    fulfil = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
    assert timing_of(task(code=fulfil)).remind == (), "an empty list says: none"


def test_every_task_has_an_answer_to_what_every_task_needs():
    for status in ("draft", "requested", "on-hold", "in-progress"):
        for priority in ("routine", "urgent", "asap", "stat"):
            found = timing_of(task(status=status, priority=priority), shipped())
            assert all((found.within, found.again, found.pause))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [", "is not YAML"),
        ("[]", "rules must be a list"),
        ("rules: []", "must say within"),
        ("rules: [{within: 1 day}]", "must have a name"),
        (f"rules: [{{name: x, wihtin: 1 day}}, {ALL}]", "wihtin is none of"),
        (f"rules: [{{name: x, within: soon}}, {ALL}]", r"rules\[0\] \(x\).within: 'soon' must be a number"),
        (f"rules: [{{name: x, for: {{colour: [red]}}}}, {ALL}]", "must have lists under"),
        (f"rules: [{{name: x, chain: [{{role: boss, after: 1 day}}]}}, {ALL}]", "boss is none of the roles"),
        (f"rules: [{{name: x, snooze: {{times: 1}}}}, {ALL}]", "snooze: 'most'"),
        (f"rules: [{{name: x, hard: 3}}, {ALL}]", "must be words"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(TimingWrong, match=words):
        load_rules(tmp_path / "x.yaml")


def test_hours_and_absences_of_a_record():
    service = {
        "availableTime": [
            {"daysOfWeek": ["mon", "tue", "sat"], "availableStartTime": "10:00:00", "availableEndTime": "12:00:00"},
            {"daysOfWeek": ["mon"], "availableStartTime": "14:00:00", "availableEndTime": "15:00:00"},
        ],
        "notAvailable": [{"description": "Works", "during": {"start": "2026-03-03", "end": "2026-03-04"}}],
    }
    calendar = own_hours(service, CHICAGO)
    assert calendar.after(MONDAY, Span.read("4 business hours")) == datetime(2026, 3, 7, 17, tzinfo=UTC), "Saturday, 11:00"
    whole = own_hours({"hoursOfOperation": [{"allDay": True}]}, CHICAGO)
    assert whole.after(MONDAY, Span.read("24 business hours")) == datetime(2026, 3, 3, 15, tzinfo=UTC)
    backwards = {"availableTime": [{"availableStartTime": "12:00:00", "availableEndTime": "10:00:00"}]}
    for nothing in (backwards, {"notAvailable": [{"description": "x", "during": {"start": "2026-03-03"}}]}, {}):
        assert own_hours(nothing, CHICAGO) is CHICAGO


def test_where_an_organisation_is_says_its_holidays_and_its_clock():
    zone = [{"url": TIME_ZONE, "valueCode": "America/New_York"}]
    found = placed({"address": [{"country": "US", "state": "TX"}], "extension": zone}, CHICAGO)
    assert (found.zone.key, found.country, found.subdivision) == ("America/New_York", "US", "TX")
    unknown = placed(
        {"address": [{"country": "Freedonia", "state": "?"}], "extension": [{"url": TIME_ZONE, "valueCode": "Mars"}]}, CHICAGO
    )
    assert (unknown.zone.key, unknown.country, unknown.subdivision) == ("America/Chicago", "US", None)


async def test_whose_calendar_counts_for_a_task(world):
    riverbend, lakeside = world.riverbend, world.lakeside
    await riverbend.put("Practitioner/d", name=[{"text": "Dr. Away"}])
    hours = [{"daysOfWeek": ["mon"], "availableStartTime": "10:00:00", "availableEndTime": "11:00:00"}]
    service = {"providedBy": riverbend.ref("Organization/riverbend"), "availableTime": hours}
    await riverbend.put("HealthcareService/s", **service)
    await lakeside.put(
        "Organization/cbo",
        name="Food bank",
        address=[{"country": "US", "state": "TX"}],
        extension=[{"url": TIME_ZONE, "valueCode": "America/Denver"}],
    )
    await lakeside.put(
        "Location/l",
        managingOrganization=lakeside.ref("Organization/cbo"),
        hoursOfOperation=[{"daysOfWeek": ["sat"], "openingTime": "09:00:00", "closingTime": "12:00:00"}],
    )
    of = {
        "partner": riverbend.ref("Organization/riverbend"),
        "person of a partner": riverbend.ref("Practitioner/d"),
        "service": riverbend.ref("HealthcareService/s"),
        "other organisation": lakeside.ref("Organization/cbo"),
        "hub": {"reference": f"Organization/{world.context.organization}"},
        "nobody": {},
    }
    found = {who: await calendar_of(world.context, task(owner=owner)) for who, owner in of.items()}
    zones = {who: calendar.zone.key for who, calendar in found.items()}
    assert zones == {
        "partner": "America/New_York",
        "person of a partner": "America/New_York",
        "service": "America/New_York",
        "other organisation": "America/Denver",
        "hub": "America/Chicago",
        "nobody": "America/Chicago",
    }
    assert found["service"].after(MONDAY, Span.read("1 business day")).isoformat() == "2026-03-10T03:59:59+00:00", "a week later"
    assert found["other organisation"].after(MONDAY, Span.read("2 business hours")).isoformat() == "2026-03-07T18:00:00+00:00"
