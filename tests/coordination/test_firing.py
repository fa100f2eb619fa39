"""Reminders and escalations: each once, whoever claims them, whatever becomes of the worker or the clock."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from fhircm import worker as working
from fhircm.coordination import escalation
from fhircm.reactions import TimerHandler
from fhircm.store import resources
from fhircm.store.database import open_database
from fhircm.store.operations import FinishTimer, SetTimer
from fhircm.store.resources import Store
from fhircm.worker import Worker

from .conftest import SCT
from .test_escalation import CODES, role, told
from .test_pausing import at, go, now, task


async def spoken(world, topic="reminder"):
    return sorted(one["payload"][0]["contentString"] for one in await told(world, topic))


async def test_an_owner_is_reminded_once_before_it_is_due(world):
    await task(world)  # due at the end of Thursday
    await go(world, "2026-03-04T07:59:00-06:00")
    assert await spoken(world) == []
    await go(world, "2026-03-04T08:00:00-06:00")
    (message,) = await told(world, "reminder")
    assert message["payload"][0]["contentString"] == "Call the patient: this is due 2026-03-05 at 23:59."
    assert (message["status"], message["recipient"]) == ("in-progress", [(await now(world))["owner"]])
    assert (await world.store.timer(escalation.key("t"))).due == at("2026-03-05T23:59:59-06:00"), "what comes next"
    await world.edit("Task", "t", priority="routine", note=[{"text": "Called, nobody there"}])
    await world.react()
    await go(world, "2026-03-05T12:00:00-06:00")
    assert len(await spoken(world)) == 1
    assert (await now(world))["meta"]["versionId"] == "2", "a reminder is no change of the Task"


async def test_another_due_time_is_reminded_of_again(world):
    await task(world)
    await go(world, "2026-03-04T08:00:00-06:00")
    await world.edit("Task", "t", restriction={"period": {"end": "2026-03-12T23:59:59-05:00"}})
    await world.react()
    await go(world, "2026-03-11T08:00:00-05:00")
    assert len(await spoken(world)) == 2
    assert await spoken(world, "escalation") == []


async def test_a_reminder_that_would_have_come_before_the_task_was_there_does_not_come(world):
    await task(world, restriction={"period": {"end": "2026-03-02T23:59:59-06:00"}})
    assert (await world.store.timer(escalation.key("t"))).due == at("2026-03-02T23:59:59-06:00")


async def test_owner_then_lead_then_manager_then_who_coordinates(world):
    await world.lakeside.patient()
    for id, name in (("n", "Nora Nurse"), ("l", "Lea Lead"), ("m", "Max Manager")):
        await world.lakeside.put(f"Practitioner/{id}", name=[{"text": name}])
    team = [
        {"role": role("768820003"), "member": world.lakeside.ref("Practitioner/n")},
        {"role": [{"coding": [{"system": CODES, "code": "team-lead"}]}], "member": world.lakeside.ref("Practitioner/l")},
    ]
    await world.lakeside.put("CareTeam/t", status="active", subject=world.lakeside.ref("Patient/p1"), participant=team)
    await world.lakeside.put(  # the manager is one of the owner's organisation
        "PractitionerRole/m",
        practitioner=world.lakeside.ref("Practitioner/m"),
        organization=world.lakeside.ref("Organization/lakeside"),
        code=[{"coding": [{"system": CODES, "code": "care-manager"}]}],
    )
    await world.lakeside.put(
        "PractitionerRole/n",
        practitioner=world.lakeside.ref("Practitioner/n"),
        organization=world.lakeside.ref("Organization/lakeside"),
        code=[{"coding": [{"system": SCT, "code": "768820003"}]}],
    )
    await task(world, owner=world.lakeside.ref("PractitionerRole/n"), **{"for": world.lakeside.ref("Patient/p1")})
    seen = []
    for day in ("06", "10", "12"):
        await go(world, f"2026-03-{day}T00:00:00-06:00")
        tree = await now(world)
        seen.append((escalation.level_of(tree), tree["owner"]["display"]))
    assert seen == [(1, "Lea Lead"), (2, "Max Manager"), (3, "Lakeside care coordination")]
    assert len(await spoken(world, "escalation")) == 3


async def test_what_nobody_answers_goes_up_whatever_its_due_time_is_and_comes_back_when_it_is_answered(world):
    await task(world, status="requested", restriction={"period": {"end": "2026-04-30T23:59:59-05:00"}})
    await go(world, "2026-03-06T00:00:00-06:00")
    assert await spoken(world, "escalation") == [
        "Call the patient: it is 'requested' for too long, since 2026-03-05 at 23:59. It is yours now."
    ]
    await go(world, "2026-03-07T00:00:00-06:00")
    await go(world, "2026-03-13T00:00:00-05:00")
    assert escalation.level_of(await now(world)) == 3
    await world.edit("Task", "t", status="accepted")
    await world.react()
    assert escalation.level_of(await now(world)) == 0
    assert (await world.store.timer(escalation.key("t"))).due == at("2026-04-30T15:00:00-05:00"), (
        "its own due time counts again, now as urgent: two hours of business before"
    )


# --- clocks ------------------------------------------------------------------------------------------------------------------------


async def test_a_clock_that_jumps_forwards_fires_at_once_and_once(world):
    await task(world)
    await go(world, "2026-03-20T12:00:00-05:00")
    assert (await spoken(world), len(await spoken(world, "escalation"))) == ([], 1), "late as it is, no reminder comes any more"


async def test_a_clock_that_is_set_back_does_not_fire_twice(world):
    await task(world)
    await go(world, "2026-03-04T08:00:00-06:00")
    await go(world, "2026-03-03T08:00:00-06:00")
    await world.edit("Task", "t", note=[{"text": "x"}])
    await world.react()
    await go(world, "2026-03-04T08:00:00-06:00")
    assert len(await spoken(world)) == 1
    await go(world, "2026-03-06T08:00:00-06:00")
    await go(world, "2026-03-05T08:00:00-06:00")
    await world.edit("Task", "t", note=[{"text": "y"}])
    await world.react()
    await go(world, "2026-03-06T08:00:00-06:00")
    assert len(await spoken(world, "escalation")) == 1


async def test_a_claim_from_before_the_clock_of_the_machine_was_set_back_holds_no_more(store, clock, monkeypatch):
    await store.transact([SetTimer("t", "due", clock(), {})], origin="test")
    real = resources.time.time()
    monkeypatch.setattr(resources.time, "time", lambda: real + 86_400)
    assert len(await store.claim_timers({"due"}, limit=1, lease=timedelta(seconds=15))) == 1
    monkeypatch.setattr(resources.time, "time", lambda: real)
    assert len(await store.claim_timers({"due"}, limit=1, lease=timedelta(seconds=15))) == 1


# --- workers -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def other(database_url, clock):
    opened = Store(await open_database(database_url), clock=clock)
    yield opened
    await opened.close()


def worker(world, store, function=None, **more):
    handler = TimerHandler(escalation.KIND, function or partial(escalation.overdue, world.context))
    return Worker(store, [], [handler], None, None, **more)


async def test_two_workers_fire_each_once(world, other, monkeypatch):
    monkeypatch.setattr(working, "CLAIMED", 5)
    monkeypatch.setattr(working, "TOGETHER", 3)
    for n in range(12):
        await task(world, f"t{n:02}")
    for moment, topic in (("2026-03-04T08:00:00-06:00", "reminder"), ("2026-03-06T08:00:00-06:00", "escalation")):
        world.clock.now = at(moment)
        await asyncio.gather(*(worker(world, store).run_until_idle() for store in (world.store, other)))
        await world.react()
        messages = await told(world, topic)
        assert sorted(one["about"][0]["reference"] for one in messages) == [f"Task/t{n:02}" for n in range(12)]
    assert {escalation.level_of(one) for one in await world.find("Task")} == {3}


async def test_a_worker_that_dies_before_it_commits_has_done_nothing_and_another_fires_once(world, other, monkeypatch):
    for n in range(3):
        await task(world, f"t{n}")
    world.clock.now = at("2026-03-06T08:00:00-06:00")
    dying = worker(world, world.store, lease=timedelta())
    transact = world.store.transact

    async def killed(*_, **__):
        raise asyncio.CancelledError  # as SIGKILL: nothing after this runs

    monkeypatch.setattr(world.store, "transact", killed)
    with pytest.raises(asyncio.CancelledError):
        await dying.run_timers()
    monkeypatch.setattr(world.store, "transact", transact)
    assert await told(world) == []
    await worker(world, other).run_until_idle()
    assert len(await told(world)) == 3
    assert await worker(world, world.store).run_timers() == 0


async def test_what_a_dead_worker_claimed_can_be_finished_by_nobody_but_who_took_it_over(world, other):
    await task(world)
    world.clock.now = at("2026-03-04T08:00:00-06:00")
    (claimed,) = await world.store.claim_timers({escalation.KIND}, limit=1, lease=timedelta())
    late = await escalation.overdue(world.context, claimed)
    await worker(world, other).run_until_idle()  # which sets the same timer anew, for what comes next
    with pytest.raises(Exception, match="due:Task/t"):
        await world.store.transact([FinishTimer(claimed), *late[1:]], origin="hub")
    assert len(await spoken(world)) == 1
    assert (await world.store.timer(escalation.key("t"))).due == at("2026-03-05T23:59:59-06:00")


async def test_one_that_is_wrong_holds_back_no_other_of_its_batch(world):
    for n in range(5):
        await task(world, f"t{n}")
    world.clock.now = at("2026-03-06T08:00:00-06:00")

    async def picky(timer):
        if timer.payload["task"] == "t2":
            raise ValueError
        return await escalation.overdue(world.context, timer)

    assert await worker(world, world.store, picky).run_timers() == 5
    assert len(await told(world)) == 4
