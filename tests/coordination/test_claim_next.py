"""$claim-next over HTTP, by two processes of one database: the first of a queue, for each who asks others."""

import asyncio
from datetime import timedelta

import pytest

from tests.access.world import ref
from tests.coordination.desk import fence, opened, role

SNOOZED = "https://fhircm.example/StructureDefinition/snoozed-until"
HALF_AN_HOUR = {"value": 30, "unit": "min", "system": "http://unitsofmeasure.org", "code": "min"}


@pytest.fixture
async def desk(database_url, clock, tmp_path):
    async with opened(database_url, clock, tmp_path) as one:
        yield one


def due(clock, hours):
    return {"period": {"end": (clock() + timedelta(hours=hours)).isoformat()}, "recipient": [ref("Organization/clinic")]}


def ids(answer):
    assert answer.status_code == 200, answer.text
    assert (answer.json()["type"], answer.json()["total"]) == ("searchset", len(answer.json().get("entry", [])))
    return [one["resource"]["id"] for one in answer.json().get("entry", [])]


def diagnostics(answer):
    return answer.json()["issue"][0]["diagnostics"]


async def test_the_first_of_the_queues_of_the_caller_are_claimed_in_their_order(desk, clock):
    for name, hours in (("later", 9), ("first", 1), ("second", 2), ("last", None)):
        await desk.task(name, **({"restriction": due(clock, hours)} if hours else {}))
    await desk.task("nurse", performerType=role("nurse"), restriction=due(clock, 1))
    await desk.task("hospital", owner=ref("Organization/hospital"), restriction={"period": due(clock, 1)["period"]})
    await desk.task("done", status="completed", restriction=due(clock, 1))
    assert ids(await desk.ann.call("Task/$claim-next")) == ["first"]
    task = await desk.now("first")
    assert (task["owner"], fence(task)) == (ref("Practitioner/ann"), 1)
    assert ids(await desk.bob.call("Task/$claim-next", count=2)) == ["second", "later"]
    assert await desk.owners("later") == ["Organization/clinic", "Practitioner/bob"]
    assert ids(await desk.ann.call("Task/$claim-next", count=5)) == ["last"]
    assert ids(await desk.ann.call("Task/$claim-next", count=5)) == []
    assert ids(await desk.ned.call("Task/$claim-next", count=5)) == ["nurse"]
    assert (await desk.bob.call("Task/first/$claim")).status_code == 409


async def test_what_a_pathway_asks_of_a_role_and_what_the_organisation_has_to_do_are_taken_too(desk, clock):
    snomed = [{"coding": [{"system": "http://snomed.info/sct", "code": "768832004", "display": "Case manager"}]}]
    await desk.task("anybody", performerType=None, restriction=due(clock, 1))
    await desk.task("pathway", performerType=snomed, restriction=due(clock, 2))
    await desk.task("nurse", performerType=role("nurse"), restriction=due(clock, 1))
    listed = await desk.ann.read("Task/$worklist?why=role")
    assert [one["resource"]["id"] for one in listed["entry"] if one["search"]["mode"] == "match"] == ["pathway"]
    (line,) = (one["search"]["extension"][0]["extension"] for one in listed["entry"] if one["search"]["mode"] == "match")
    assert {"url": "why", "valueCode": "role"} in line
    assert ids(await desk.ann.call("Task/$claim-next", count=9)) == ["anybody", "pathway"]
    assert ids(await desk.bob.call("Task/$claim-next", role="nurse", count=9)) == [], "it is for nurses"
    assert ids(await desk.ned.call("Task/$claim-next", count=9)) == ["nurse"]


async def test_what_is_asked_for_narrows_what_is_taken(desk, clock):
    await desk.task("early", restriction=due(clock, 1))
    await desk.task("urgent", priority="urgent", restriction=due(clock, 5))
    await desk.task("stat", priority="stat", restriction=due(clock, 9))
    until = (clock() + timedelta(hours=3)).isoformat()
    snoozed = {"url": SNOOZED, "extension": [{"url": "until", "valueDateTime": until}, {"url": "times", "valueInteger": 1}]}
    said = {"lastModified": clock().isoformat(), "extension": [snoozed]}
    await desk.task("asleep", priority="stat", restriction=due(clock, 4), **said)
    assert ids(await desk.ann.call("Task/$claim-next", priority="urgent", lease=HALF_AN_HOUR)) == ["urgent"]
    assert ids(await desk.ann.call("Task/$claim-next", _sort="priority")) == ["stat"]
    assert ids(await desk.ann.call("Task/$claim-next", organization="Organization/hospital")) == []
    parts = (await desk.now("urgent"))["extension"][0]["extension"]
    assert {"url": "until", "valueInstant": "2026-03-02T15:30:00Z"} in parts
    clock.advance(timedelta(hours=4))
    assert ids(await desk.bob.call("Task/$claim-next", _sort="priority", count=9)) == ["asleep", "urgent", "early"], (
        "the lease is over"
    )


async def test_a_system_says_for_whom_and_from_which_queue(desk):
    await desk.task()
    nobody = await desk.engine.call("Task/$claim-next", role="care-coordinator", organization="Organization/clinic")
    assert (nobody.status_code, diagnostics(nobody)) == (
        400,
        "A system says with 'owner' who claims, for example Practitioner/123",
    )
    said = {"role": "care-coordinator", "organization": "Organization/clinic", "owner": ref("Practitioner/bob")}
    assert ids(await desk.engine.call("Task/$claim-next", **said)) == ["t1"]
    assert (await desk.now())["owner"] == ref("Practitioner/bob")
    other = await desk.ann.call("Task/$claim-next", owner=ref("Practitioner/bob"))
    assert other.status_code == 403
    many = await desk.ann.call("Task/$claim-next", count=101)
    assert (many.status_code, diagnostics(many).startswith("'count' takes at most 100")) == (400, True)


async def test_many_who_ask_at_once_over_two_processes_each_get_others(desk, clock):
    names = [f"t{number:02}" for number in range(40)]
    for number, name in enumerate(names):
        await desk.task(name, restriction=due(clock, number + 1))
    asked = (
        getattr(desk, ("ann", "bob")[number % 2]).call("Task/$claim-next", at=number // 2 % 2, count=3) for number in range(16)
    )
    taken = [ids(answer) for answer in await asyncio.gather(*asked)]
    assert sorted(one for each in taken for one in each) == names, "none twice, none left"
    assert all(each == sorted(each) for each in taken)
    for name in names:
        assert len(await desk.owners(name)) == 2
