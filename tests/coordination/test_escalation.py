"""What is overdue passes to the next in line, once for each level, and stops when it is done."""

from datetime import timedelta

import pytest

from fhircm.coordination import escalation
from fhircm.fhir.outcome import VersionConflict
from fhircm.fhir.systems import LONGITUDINAL
from fhircm.fhir.validation import check, check_tree
from fhircm.store.operations import FinishTimer, Put
from fhircm.store.timers import StaleClaim

from .conftest import SCT
from .test_referral import Referral

CODES = "https://fhircm.example/CodeSystem/coordination"
LEASE = timedelta(seconds=30)


def role(code):
    return [{"coding": [{"system": SCT, "code": code}]}]


@pytest.fixture
async def opened(world):
    """A transition whose call belongs to Nora Nurse; Dr. Primary is next in line. It is due on Wednesday, 2026-03-04."""
    await world.lakeside.patient()
    for id, name in (("n", "Nora Nurse"), ("d", "Dr. Primary")):
        await world.lakeside.put(f"Practitioner/{id}", name=[{"text": name}])
    team = [
        {"role": role("768820003"), "member": world.lakeside.ref("Practitioner/n")},
        {"role": role("446050000"), "member": world.lakeside.ref("Practitioner/d")},
    ]
    await world.lakeside.put("CareTeam/t", status="active", subject=world.lakeside.ref("Patient/p1"), participant=team)
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00")
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", end="2026-03-02T08:30:00-06:00")
    await world.react()
    return world


async def contact(world):
    (task,) = await world.find("Task", code=f"{CODES}|contact")
    return task


async def told(world, topic="escalation", **parameters):
    """What was said of Tasks for a reason."""
    found = await world.find("Communication", **parameters)
    return [one for one in found if one["topic"]["coding"][0]["code"] == topic]


async def pass_to(world, day, hour=6):
    """Let the time come (UTC), and everything happen that is due."""
    world.clock.now = world.clock.now.replace(month=3, day=day, hour=hour, minute=0, second=0)
    done = await world.timers()
    await world.react()
    return done


async def test_a_team_of_the_record_goes_before_the_one_that_the_hub_makes_out_of_all(opened):
    await opened.lakeside.put("Practitioner/x", name=[{"text": "Dr. Elsewhere"}])
    made = {
        "resourceType": "CareTeam",
        "id": "0",  # before any other
        "identifier": [{"system": LONGITUDINAL, "value": "p1"}],
        "status": "active",
        "subject": opened.lakeside.ref("Patient/p1"),
        "participant": [{"role": role("446050000"), "member": opened.lakeside.ref("Practitioner/x")}],
    }
    await opened.store.transact([Put(check_tree(made))], origin="hub")
    await pass_to(opened, 5)
    assert (await contact(opened))["owner"]["display"] == "Dr. Primary"


async def test_nothing_happens_before_its_time(opened):
    await pass_to(opened, 5, 5)  # 23:00 of the 4th in Chicago
    assert await told(opened) == []
    assert (await contact(opened))["owner"]["display"] == "Nora Nurse"


async def test_an_overdue_task_goes_up_the_line_to_the_end(opened):
    await pass_to(opened, 5)
    task = await contact(opened)
    assert (task["owner"]["display"], task["priority"], task["status"]) == ("Dr. Primary", "urgent", "ready")
    assert escalation.level_of(task) == 1
    (message,) = await told(opened, part_of=f"Task/{task['id']}")
    assert message["recipient"] == [task["owner"]]
    assert message["about"] == [{"reference": f"Task/{task['id']}"}]
    assert (message["status"], message["subject"]) == ("in-progress", opened.lakeside.ref("Patient/p1"))
    assert (
        message["payload"][0]["contentString"]
        == "Contact the patient: this was due 2026-03-04 at 23:59 and is not done. It is yours now."
    )
    await pass_to(opened, 6, 5)
    assert (await contact(opened))["owner"]["display"] == "Dr. Primary", "who has one business day"
    await pass_to(opened, 7)
    task = await contact(opened)
    assert (task["owner"]["display"], task["priority"], escalation.level_of(task)) == ("Lakeside care coordination", "asap", 2)
    await pass_to(opened, 30)
    kept = await contact(opened)
    assert (kept["owner"], escalation.level_of(kept)) == (task["owner"], 2), "there is nobody above"
    words = [one["payload"][0]["contentString"] for one in await told(opened, part_of=f"Task/{task['id']}")]
    assert len(words) == 3
    assert "Contact the patient: this was due 2026-03-09 at 23:59 and is not done. It is still yours." in words, "it comes back"


async def test_what_got_another_due_time_goes_up_the_line_again_from_its_beginning(opened):
    nora, other = (await contact(opened))["owner"], [{"url": "https://example.org/colour", "valueString": "green"}]
    await pass_to(opened, 5)
    for day, end in ((7, "2026-03-06"), (10, "2026-03-04")):  # a later one, and then the first one once more
        task = await contact(opened)
        period = {**task["restriction"]["period"], "end": f"{end}T23:59:59-06:00"}
        await opened.edit("Task", task["id"], owner=nora, restriction={"period": period}, extension=other)
        await pass_to(opened, day)
        task = await contact(opened)
        assert (task["owner"]["display"], escalation.level_of(task)) == ("Dr. Primary", 1)
    assert len(await told(opened, part_of=f"Task/{task['id']}")) == 3


async def test_what_is_done_is_not_escalated(opened):
    task = await contact(opened)
    await opened.edit("Task", task["id"], status="in-progress")
    await opened.edit("Task", task["id"], status="completed")
    await opened.react()
    assert await pass_to(opened, 5) == 0
    assert await told(opened) == []


async def test_what_was_done_at_the_last_moment_is_not_escalated_either(opened):
    """The timer is claimed before the reaction could remove it."""
    task = await contact(opened)
    await opened.edit("Task", task["id"], status="cancelled")
    assert await pass_to(opened, 5) == 1
    assert await told(opened) == []


async def test_a_deadline_that_is_put_off_counts(opened):
    task = await contact(opened)
    later = {"period": {"end": "2026-03-09T23:59:59-05:00"}}
    await opened.edit("Task", task["id"], restriction=later)
    assert await pass_to(opened, 5), "claimed by the old time, and left alone"
    assert (await contact(opened))["owner"]["display"] == "Nora Nurse"
    await pass_to(opened, 10)
    assert (await contact(opened))["owner"]["display"] == "Dr. Primary"


async def test_two_workers_escalate_once(opened):
    opened.clock.now += timedelta(days=3)
    (timer,) = await opened.store.claim_timers({escalation.KIND}, limit=5, lease=LEASE)
    first, second = [await escalation.overdue(opened.context, timer) for _ in range(2)]
    await opened.store.transact([*first, FinishTimer(timer)], origin="hub")
    with pytest.raises((VersionConflict, StaleClaim)):
        await opened.store.transact([*second, FinishTimer(timer)], origin="hub")
    again = await escalation.overdue(opened.context, timer)
    assert [one for one in again if isinstance(one, Put)] == [], "and who looks again sees the level raised"
    await opened.react()
    assert len(await told(opened)) == 1


async def test_who_comes_next_is_somebody_else(opened):
    """The owner by hand is the one who is next in line: then it goes to the one after."""
    task = await contact(opened)
    await opened.edit("Task", task["id"], owner=opened.lakeside.ref("Practitioner/d"))
    await opened.react()
    await pass_to(opened, 5)
    assert (await contact(opened))["owner"]["display"] == "Lakeside care coordination"


async def test_a_task_of_a_client_is_watched_too(opened):
    body = (
        b'{"resourceType":"Task","id":"mine","status":"requested","intent":"order","restriction":'
        b'{"period":{"end":"2026-03-03T12:00:00Z"}},"input":[{"type":{"text":"x"},"valueDecimal":1.50}]}'
    )
    await opened.store.transact([Put(check(body))], origin="client:x")
    await opened.react()
    await pass_to(opened, 3, 13)
    stored = await opened.store.read("Task", "mine")
    assert stored.tree["owner"]["display"] == "Lakeside care coordination"
    assert b'"valueDecimal":1.50' in stored.body


async def test_a_whole_has_no_deadline_beside_those_of_its_steps(opened):
    for day in (5, 7, 17, 18, 19, 23, 30):
        await pass_to(opened, day)
    (whole,) = await opened.find("Task", code=f"{CODES}|transition-of-care")
    assert whole["meta"]["versionId"] == "1"
    spoken = [one["payload"][0]["contentString"] for one in await told(opened)]
    assert len([one for one in spoken if one.endswith("It is yours now.")]) == 6, "three steps, two levels"


async def test_the_tasks_of_a_partner_are_left_alone(world):
    await world.lakeside.patient()
    await world.lakeside.put(
        "Task/t",
        status="requested",
        intent="order",
        restriction={"period": {"end": "2026-03-03T12:00:00Z"}},
        **{"for": world.lakeside.ref("Patient/p1")},
    )
    await world.react()
    assert await pass_to(world, 5) == 0


async def test_a_referral_keeps_its_addressee_and_a_human_looks_after_it(world):
    referral = Referral(world)
    await referral.patients()
    await referral.order()
    await pass_to(world, 6)
    task = await referral.task()
    assert (task["owner"]["display"], task["priority"], task["status"]) == ("Riverbend", "urgent", "requested")
    assert await referral.questions("referral-overdue") == [("ready", "Answer the referral was due 2026-03-05 at 22:59")]
    await pass_to(world, 20)
    assert len(await referral.questions("referral-overdue")) == 1, "once for this step"
    await referral.set(status="accepted")
    assert escalation.level_of(await referral.task()) == 0, "the next step begins anew"
    await pass_to(world, 30)
    assert len(await referral.questions("referral-overdue")) == 2
