"""A pause keeps what was left of a Task's time, whichever way it came; a snooze puts off who is told, within its limits."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from fhircm.coordination import escalation
from fhircm.coordination.rules import RULES
from fhircm.coordination.task_times import PAUSED, SNOOZED, parts
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.fhir.validation import check
from fhircm.store.operations import Put
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

from .test_escalation import CODES, told

REASON = {"text": "The patient travels"}


def at(text):
    return datetime.fromisoformat(text).astimezone(UTC)


def parameters(**values):
    kinds = {"until": "valueDateTime", "reason": "valueCodeableConcept", "past-deadline": "valueBoolean"}
    given = [{"name": name.replace("_", "-"), kinds[name.replace("_", "-")]: value} for name, value in values.items()]
    return {"resourceType": "Parameters", "parameter": given}


async def task(world, id="t", **members):
    tree = {
        "resourceType": "Task",
        "id": id,
        "status": "ready",
        "intent": "order",
        "description": "Call the patient",
        "authoredOn": "2026-03-02T15:00:00Z",
        "lastModified": "2026-03-02T15:00:00Z",
        "owner": {"reference": f"Organization/{world.context.organization}"},
        "restriction": {"period": {"end": "2026-03-05T23:59:59-06:00"}},
        **members,
    }
    await world.store.transact([Put(check(json.dumps(tree).encode()))], origin="client:x")
    await world.react()


async def now(world, id="t"):
    return (await world.store.read("Task", id)).tree


async def go(world, text):
    """To a moment of Chicago, with all that is due until then."""
    world.clock.now = at(text)
    await world.timers()
    await world.react()


def ended(tree):
    return tree["restriction"]["period"]["end"]


@pytest.mark.parametrize("by", ["operation", "update"])
async def test_what_is_left_of_its_time_is_there_again_by_operation_and_by_update(world, http, by):  # noqa: F811
    await task(world)  # on Monday morning, due on Thursday: three business days are left

    async def step(operation, body, **members):
        if by == "operation":
            answer = await http.post(f"/fhir/Task/t/${operation}", json=body)
        else:
            tree = {**await now(world), **members}
            answer = await http.put("/fhir/Task/t", json={name: value for name, value in tree.items() if value})
        assert answer.status_code == 200
        await world.react()

    await step("pause", parameters(reason=REASON), status="on-hold", statusReason=REASON)
    held = await now(world)
    assert (held["status"], held["statusReason"]) == ("on-hold", REASON)
    said = parts(held, PAUSED)
    assert (said["from"], said["remaining"]["value"], said["remaining"]["unit"]) == ("ready", 3, "business days")
    assert said["until"] == "2026-03-16T23:59:59-05:00", "ten business days, as nobody said until when"
    await go(world, "2026-03-10T14:00:00-05:00")  # Tuesday
    assert await world.find("Communication") == [], "while it is on hold its time stands still"
    await step("resume", None, status="ready", statusReason=None)
    going = await now(world)
    assert (going["status"], going.get("statusReason"), parts(going, PAUSED)) == ("ready", None, {})
    assert ended(going) == "2026-03-13T23:59:59-05:00", "three business days after Tuesday"


async def test_hours_are_kept_as_hours(world):
    await task(world, restriction={"period": {"end": "2026-03-02T15:00:00-06:00"}})  # six hours from nine o'clock
    await world.edit("Task", "t", status="on-hold")
    await world.react()
    assert parts(await now(world), PAUSED)["remaining"]["value"] == 6 * 3600
    world.clock.now = at("2026-03-03T14:00:00-06:00")
    await world.edit("Task", "t", status="in-progress")
    await world.react()
    assert ended(await now(world)) == "2026-03-04T11:00:00-06:00", "three until five o'clock, and three from eight"


async def test_an_update_that_drops_the_mark_gets_the_time_all_the_same(world):
    await task(world)
    await world.edit("Task", "t", status="on-hold")
    await world.react()
    world.clock.now = at("2026-03-10T14:00:00-05:00")
    await world.edit("Task", "t", status="in-progress", extension=[{"url": "https://client.test/x", "valueBoolean": True}])
    await world.react()
    tree = await now(world)
    assert (ended(tree), len(tree["extension"])) == ("2026-03-13T23:59:59-05:00", 1)


async def test_a_due_time_that_was_set_meanwhile_and_one_that_was_over_stay(world):
    await task(world)
    late = {"period": {"end": "2026-03-01T23:59:59-06:00"}}
    await task(world, "late", authoredOn="2026-02-20T15:00:00Z", restriction=late)
    for id in ("t", "late"):
        await world.edit("Task", id, status="on-hold")
    await world.react()
    world.clock.now = at("2026-03-10T14:00:00-05:00")
    await world.edit("Task", "t", status="in-progress", restriction={"period": {"end": "2026-03-20T12:00:00-05:00"}})
    await world.edit("Task", "late", status="in-progress")
    await world.react()
    assert ended(await now(world)) == "2026-03-20T12:00:00-05:00"
    assert ended(await now(world, "late")) == "2026-03-01T23:59:59-06:00"


@pytest.mark.parametrize("until", ["2027", "9999-12-31T00:00:00Z"])
async def test_nothing_is_on_hold_for_ever(world, until):
    world.store.rules = ()  # as what was there before the rules
    await task(world)
    held = [{"url": PAUSED, "extension": [{"url": "until", "valueDateTime": until}]}]
    await world.edit("Task", "t", status="on-hold", extension=held)
    await world.react()
    assert parts(await now(world), PAUSED)["until"] == "2026-03-16T23:59:59-05:00"
    assert (await world.store.timer(escalation.key("t"))).due == at("2026-03-16T23:59:59-05:00")


async def test_a_pause_has_a_longest(world):
    world.store.rules = RULES
    await task(world)
    for until in ("2027-03-01T00:00:00Z", "9999-12-31T00:00:00Z"):
        held = [{"url": PAUSED, "extension": [{"url": "until", "valueDateTime": until}]}]
        with pytest.raises(Conflict, match="on hold for 180 days"):
            await world.edit("Task", "t", status="on-hold", extension=held)


async def test_it_goes_on_by_itself_when_the_pause_is_over_once(world):
    await task(world)
    held = [{"url": PAUSED, "extension": [{"url": "until", "valueDateTime": "2026-03-04T09:00:00-06:00"}]}]
    await world.edit("Task", "t", status="on-hold", extension=held, statusReason=REASON)
    await world.react()
    await go(world, "2026-03-04T08:59:00-06:00")
    assert (await now(world))["status"] == "on-hold"
    await go(world, "2026-03-04T09:00:00-06:00")
    going = await now(world)
    assert (going["status"], ended(going)) == ("ready", "2026-03-09T23:59:59-05:00")
    (message,) = await told(world, "hold-over")
    assert message["payload"][0]["contentString"].endswith("the pause is over, and the time that was left runs again.")
    assert await world.timers() == 0


async def test_what_is_paused_when_it_was_escalated_keeps_its_place_in_line(world):
    await task(world)
    await go(world, "2026-03-06T06:00:00-06:00")
    assert escalation.level_of(await now(world)) == 3, "nobody is team lead or manager: who coordinates has it"
    await world.edit("Task", "t", status="on-hold")
    await world.react()
    left = parts(await now(world), PAUSED)["remaining"]["value"]
    world.clock.now += timedelta(days=7)
    await world.edit("Task", "t", status="ready")
    await world.react()
    tree = await now(world)
    assert (escalation.level_of(tree), left) == (3, 5)
    assert escalation.due_of(tree) == datetime.fromisoformat("2026-03-20T23:59:59-05:00")


async def test_a_snooze_puts_off_who_is_told_and_not_the_due_time(world, http):  # noqa: F811
    await task(world)
    answer = await http.post("/fhir/Task/t/$snooze", json=parameters(until="2026-03-09T09:00:00-05:00", reason=REASON))
    assert answer.status_code == 200
    assert answer.json()["restriction"] == {"period": {"end": "2026-03-05T23:59:59-06:00"}}
    await world.react()
    said = parts(await now(world), SNOOZED)
    assert (said["until"], said["reason"], said["times"]) == ("2026-03-09T09:00:00-05:00", REASON, 1)
    await go(world, "2026-03-09T08:59:00-05:00")
    assert await world.find("Communication") == []
    await go(world, "2026-03-09T09:00:00-05:00")
    assert len(await told(world)) == 1


async def snoozed(world, times, until, modified="2026-03-02T15:00:00Z", **more):
    extra = [{"url": "past-deadline", "valueBoolean": True}] if more.get("past") else []
    said = [{"url": "until", "valueDateTime": until}, {"url": "times", "valueInteger": times}, *extra]
    await world.edit("Task", "t", lastModified=modified, extension=[{"url": SNOOZED, "extension": said}])


async def test_a_plain_update_is_held_to_the_limits_of_a_snooze(world):
    world.store.rules = RULES
    await task(world)
    with pytest.raises(Conflict, match="14 days at a time"):
        await snoozed(world, 1, "2026-03-17T09:00:00-05:00")
    with pytest.raises(Invalid, match="time number 1"):
        await snoozed(world, 7, "2026-03-03T09:00:00-06:00")
    for times in (1, 2, 3):
        await snoozed(world, times, f"2026-03-0{3 + times}T09:00:00-06:00")
    with pytest.raises(Conflict, match="may be put off 3 times, and was 3 times"):
        await snoozed(world, 4, "2026-03-08T09:00:00-06:00")
    await world.edit("Task", "t", priority="urgent")  # what is not about the snooze is free


async def test_what_a_payer_sets_is_put_off_only_when_that_is_said(world):
    world.store.rules = RULES
    contact = {"coding": [{"system": CODES, "code": "contact"}]}
    end = {"period": {"end": "2026-03-02T23:59:59-06:00"}}
    await task(world, code=contact, restriction=end)
    with pytest.raises(Conflict, match="CPT 99495"):
        await snoozed(world, 1, "2026-03-03T08:00:00-06:00")
    await snoozed(world, 1, "2026-03-03T08:00:00-06:00", past=True)
    await world.react()
    await go(world, "2026-03-03T07:00:00-06:00")
    assert await told(world) == []
    await go(world, "2026-03-03T08:00:00-06:00")
    assert len(await told(world)) == 1


async def test_what_cannot_be_is_refused(http):  # noqa: F811
    made = await http.post("/fhir/Task", json={"resourceType": "Task", "status": "requested", "intent": "order"})
    id = made.json()["id"]
    for operation, body, status, words in [
        ("resume", None, 409, "not on hold"),
        ("pause", parameters(until="2026-03-04T00:00:00Z"), 422, "reason"),
        ("pause", parameters(reason=REASON, until="2026-03-01T00:00:00Z"), 422, "still to come"),
        ("pause", parameters(reason=REASON), 422, "may go from 'requested' to:"),
        ("snooze", parameters(reason=REASON, until="2026-03-01T00:00:00Z"), 422, "still to come"),
        ("snooze", parameters(until="2026-03-04T00:00:00Z"), 422, "reason"),
    ]:
        answer = await http.post(f"/fhir/Task/{id}/${operation}", json=body)
        assert (answer.status_code, words in answer.text) == (status, True), (operation, body, answer.text)
