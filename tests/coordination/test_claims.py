"""Claims over HTTP, by two processes of one database: exactly one has a Task, and nothing that was lost is written over."""

import asyncio
from datetime import timedelta

import pytest

from tests.access.world import ref, write
from tests.coordination.desk import CLAIM, claim, fence, opened, role

HALF_AN_HOUR = {"value": 30, "unit": "min", "system": "http://unitsofmeasure.org", "code": "min"}


@pytest.fixture
async def desk(database_url, clock, tmp_path):
    async with opened(database_url, clock, tmp_path) as one:
        yield one


def said(answer):
    return answer.json()["issue"][0]["diagnostics"]


async def test_a_claim_makes_the_owner_and_says_until_when_and_under_which_fence(desk):
    await desk.task()
    answer = await desk.ann.call("Task/t1/$claim", lease=HALF_AN_HOUR)
    assert answer.status_code == 200, answer.text
    task = answer.json()
    assert task["owner"] == ref("Practitioner/ann")
    assert task["extension"] == [
        claim(fence=1, until="2026-03-02T15:30:00Z", holder=ref("Practitioner/ann"), queue=ref("Organization/clinic"))
    ]
    assert task["restriction"]["recipient"] == [ref("Organization/clinic")], "the colleagues still see it"
    again = await desk.ann.call("Task/t1/$claim", lease={**HALF_AN_HOUR, "value": 60})
    assert [one for one in again.json()["extension"][0]["extension"] if one["url"] == "until"] == [
        {"url": "until", "valueInstant": "2026-03-02T16:00:00Z"}
    ]
    assert fence(again.json()) == 1, "a renewal is the same claim"


@pytest.mark.parametrize("by", ["operation", "update", "both", "system"])
async def test_of_many_who_claim_at_once_over_two_processes_exactly_one_wins(desk, by):
    await desk.task(restriction={"recipient": [ref("Organization/clinic")]})  # so that the others see it on after an update too
    read = await desk.now()

    async def attempt(number):
        name, at = ("ann", "bob")[number % 2], number // 2 % 2
        if by == "system":
            return name, await desk.engine.call("Task/t1/$claim", at=at, owner=ref(f"Practitioner/{name}"))
        who = getattr(desk, name)
        if by == "operation" or (by == "both" and number % 3):
            return name, await who.call("Task/t1/$claim", at=at)
        return name, await who.put({**read, "owner": ref(f"Practitioner/{name}")}, at=at)

    answers = await asyncio.gather(*(attempt(number) for number in range(16)))
    [winner] = {name for name, answer in answers if answer.status_code == 200}
    assert (await desk.now())["owner"] == ref(f"Practitioner/{winner}")
    assert await desk.owners() == ["Organization/clinic", f"Practitioner/{winner}"]
    for name, answer in answers:
        if name != winner:
            assert answer.status_code in (409, 412), answer.text
            assert "patient" not in said(answer).casefold()
    late = await getattr(desk, "bob" if winner == "ann" else "ann").call("Task/t1/$claim")
    assert late.status_code == 409
    assert said(late).startswith("A care-coordinator at Organization/clinic has claimed this Task until")


async def test_while_a_claim_lasts_only_the_holder_and_their_lead_write_the_task(desk):
    clinic = {"resourceType": "PractitionerRole", "organization": ref("Organization/clinic")}
    await write(desk.store, [{**clinic, "id": name, "practitioner": ref(f"Practitioner/{name}")} for name in ("ann", "bob")])
    await desk.task()
    await desk.ann.call("Task/t1/$claim")
    task = await desk.ann.read("Task/t1")
    for name, status in (("bob", 409), ("ned", 409), ("ann", 200), ("lea", 200), ("engine", 200)):
        answer = await getattr(desk, name).put({**task, "priority": "urgent"})
        assert answer.status_code == status, (name, answer.text)
    assert (await desk.bob.call("Task/t1/$release")).status_code == 409
    gone = await desk.bob.https[0].delete("/fhir/Task/t1", headers=desk.bob.headers)
    assert gone.status_code == 409
    assert (await desk.lea.call("Task/t1/$release", reason={"text": "She is ill"})).status_code == 200
    assert (await desk.bob.call("Task/t1/$claim")).status_code == 200


async def test_only_those_of_the_role_at_the_organisation_claim(desk):
    await desk.task("t1", restriction={"recipient": [ref("Organization/clinic"), ref("Organization/hospital")]})
    await desk.task("t2", restriction={"recipient": [ref("Organization/hospital")]})
    assert (await desk.ned.call("Task/t1/$claim")).status_code == 403
    refused = await desk.ned.put({**await desk.ned.read("Task/t1"), "owner": ref("Practitioner/ned")})
    assert refused.status_code == 403
    assert said(refused).startswith("This Task is for: care-coordinator at Organization/clinic")
    assert (await desk.far.call("Task/t1/$claim")).status_code == 200, "it was sought of the hospital too"
    system = await desk.engine.call("Task/t2/$claim")
    assert (system.status_code, said(system)) == (400, "A system says with 'owner' who claims, for example Practitioner/123")
    other = await desk.ann.call("Task/t2/$claim", owner=ref("Practitioner/bob"))
    assert other.status_code == 403


async def test_a_role_that_there_is_not_is_refused_with_those_that_there_are(desk):
    answer = await desk.engine.https[0].post(
        "/fhir/Task", json={**await desk.now(await desk.task()), "performerType": role("wizard")}, headers=desk.engine.headers
    )
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["expression"] == ["Task.performerType"]
    assert "there are: administrator, care-coordinator" in said(answer)
    await desk.task("t3", performerType=[{"text": "Somebody kind"}], owner=None)
    plain = await desk.engine.call("Task/t3/$claim", owner=ref("Practitioner/ann"))
    assert (plain.status_code, "is in no queue" in said(plain)) == (422, True)


async def test_what_an_organisation_has_to_do_itself_is_claimed_by_anybody_of_it(desk):
    await desk.task(performerType=None)
    assert (await desk.far.call("Task/t1/$claim")).status_code == 404
    assert (await desk.ned.call("Task/t1/$claim")).status_code == 200
    late = await desk.ann.call("Task/t1/$claim")
    assert (late.status_code, said(late).startswith("Somebody at Organization/clinic has claimed this Task")) == (409, True)
    assert (await desk.ann.put({**await desk.now(), "priority": "stat"})).status_code == 409
    assert (await desk.ned.call("Task/t1/$release")).json()["owner"] == ref("Organization/clinic")


async def test_a_process_that_lost_its_claim_cannot_write_with_what_it_knew(desk, clock):
    await desk.task()
    lost = (await desk.engine.call("Task/t1/$claim", owner=ref("Practitioner/ann"), lease=HALF_AN_HOUR)).json()
    clock.advance(timedelta(minutes=31))
    await desk.react()
    back = await desk.now()
    assert (back["owner"], fence(back)) == (ref("Organization/clinic"), 2)
    assert "claim ended at 2026-03-02 09:30 and was not renewed" in back["note"][-1]["text"]
    for number, by in ((3, "bob"), (5, "ann")):  # also when the same person has it again, through another process
        assert (await desk.engine.call("Task/t1/$claim", at=1, owner=ref(f"Practitioner/{by}"))).status_code == 200
        stale = await desk.engine.put({**lost, "status": "in-progress"})
        assert stale.status_code == 409
        assert f"its fence is {number}, and what is written says 1" in said(stale)
        assert (await desk.engine.call("Task/t1/$release", fence=1)).status_code == 409
        assert (await desk.engine.call("Task/t1/$claim", fence=1, owner=ref("Practitioner/ann"))).status_code == 409
        assert (await desk.now())["status"] == "ready"
        await desk.lea.call("Task/t1/$release")


async def test_the_end_of_a_claim_rings_once_and_not_for_who_renewed_or_finished(desk, clock):
    for id in ("renewed", "done", "forgotten"):
        await desk.task(id)
        await desk.ann.call(f"Task/{id}/$claim", lease=HALF_AN_HOUR)
    await desk.react()
    clock.advance(timedelta(minutes=20))
    await desk.ann.call("Task/renewed/$claim", lease=HALF_AN_HOUR)
    for status in ("in-progress", "completed"):
        await desk.ann.put({**await desk.now("done"), "status": status})
    clock.advance(timedelta(minutes=11))
    for _ in range(2):
        await desk.react()
    assert [(await desk.now(id))["owner"]["reference"] for id in ("renewed", "done", "forgotten")] == [
        "Practitioner/ann",
        "Practitioner/ann",
        "Organization/clinic",
    ]
    assert len((await desk.now("forgotten"))["note"]) == 1


async def test_who_takes_a_task_whose_time_is_over_need_not_wait_for_the_timer(desk, clock):
    await desk.task()
    await desk.ann.call("Task/t1/$claim", lease=HALF_AN_HOUR)
    clock.advance(timedelta(minutes=30))
    taken = await desk.bob.call("Task/t1/$claim")
    assert (taken.status_code, fence(taken.json())) == (200, 2)
    await desk.react()
    assert (await desk.now())["owner"] == ref("Practitioner/bob")


async def test_a_plain_update_claims_and_gives_back_as_the_operations_do(desk):
    await desk.task()
    task = await desk.ann.read("Task/t1")
    assert (await desk.ann.put({**task, "owner": ref("Practitioner/ann")})).status_code == 200
    assert (await desk.bob.call("Task/t1/$claim")).status_code == 404, "and sees it no more"
    without = await desk.ann.put(task)
    assert (without.status_code, "raises its fence" in said(without)) == (409, True)
    assert (await desk.ann.put({**task, "extension": [claim(fence=1)]})).status_code == 200
    assert (await desk.bob.call("Task/t1/$claim")).status_code == 200
    # and one that was claimed by an update is given back by the operation, to where it was
    await desk.task("t2")
    await desk.ann.put({**await desk.now("t2"), "owner": ref("Practitioner/ann")})
    back = await desk.ann.call("Task/t2/$release", reason={"text": "Off duty"})
    assert (back.json()["owner"], fence(back.json())) == (ref("Organization/clinic"), 1)
    assert back.json()["note"][0]["text"] == "Off duty"


async def test_handed_over_in_one_moment_with_the_note_told_and_written_down(desk):
    await desk.task(**{"for": ref("Patient/p")})
    await desk.ann.call("Task/t1/$claim")
    note = "Called twice, try in the evening"
    answer = await desk.ann.call("Task/t1/$hand-over", to=ref("Practitioner/bob"), note=note)
    assert answer.status_code == 200, answer.text
    assert answer.json()["owner"] == ref("Practitioner/bob")
    assert answer.json()["note"][-1] == {"authorReference": ref("Practitioner/ann"), "time": "2026-03-02T15:00:00Z", "text": note}
    for _ in range(2):
        await desk.react()
    [told] = [one.tree for one in await desk.context.find("Communication")]
    assert (told["recipient"], told["sender"], told["about"]) == (
        [ref("Practitioner/bob")],
        ref("Practitioner/ann"),
        [ref("Task/t1")],
    )
    assert told["payload"] == [{"contentString": f"Call the patient: this is yours now. {note}"}]
    assert await desk.owners() == ["Organization/clinic", "Practitioner/ann", "Practitioner/bob"], "never without an owner"
    assert (await desk.ann.put({**await desk.now(), "priority": "stat"})).status_code == 409
    assert (await desk.bob.call("Task/t1/$release")).json()["owner"] == ref("Organization/clinic")


async def test_until_a_hand_over_is_accepted_the_giver_keeps_the_task(desk):
    await desk.task()
    await desk.ann.call("Task/t1/$claim")
    offer = {"to": ref("Practitioner/bob"), "note": "Could you take this?", "must_accept": True}
    for answer_of_bob in ("$release", "$claim"):
        offered = await desk.ann.call("Task/t1/$hand-over", **offer)
        assert offered.json()["owner"] == ref("Practitioner/ann")
        await desk.react()
        assert (await desk.bob.put({**await desk.now(), "priority": "stat"})).status_code == 409, "only an answer"
        answer = await desk.bob.call(f"Task/t1/{answer_of_bob}")
        assert answer.status_code == 200, answer.text
        owner = "ann" if answer_of_bob == "$release" else "bob"
        assert answer.json()["owner"] == ref(f"Practitioner/{owner}")
        assert "offered" not in str(answer.json()["extension"])
        desk.clock.advance(timedelta(minutes=1))
    texts = [one.tree["payload"][0]["contentString"] for one in await desk.context.find("Communication")]
    assert texts == ["Call the patient: this is offered to you: claim it, or say no with $release. Could you take this?"] * 2


async def test_delegated_to_a_person_or_to_another_role_the_requester_stays(desk):
    await desk.task(requester=ref("Practitioner/lea"))
    await desk.ann.call("Task/t1/$claim")
    to_person = (await desk.ann.call("Task/t1/$delegate", to=ref("Practitioner/bob"), note="For you")).json()
    assert (to_person["owner"], to_person["requester"]) == (ref("Practitioner/bob"), ref("Practitioner/lea"))
    to_role = (await desk.bob.call("Task/t1/$delegate", role="nurse")).json()
    assert (to_role["owner"], to_role["performerType"][0]["coding"][0]["code"]) == (ref("Organization/clinic"), "nurse")
    assert (await desk.bob.call("Task/t1/$claim")).status_code == 403
    assert (await desk.ned.call("Task/t1/$claim")).status_code == 200
    for wrong in ({}, {"role": "wizard"}, {"to": ref("Practitioner/nobody")}, {"to": ref("Organization/clinic")}):
        refused = await desk.ned.call("Task/t1/$delegate", **wrong)
        assert refused.status_code == 400, refused.text


async def test_the_work_lists_follow_a_task_that_changes_hands(desk):
    async def why(who, query=""):
        entries = (await who.read(f"Task/$worklist{query}")).get("entry", [])
        parts = [one["search"]["extension"][0]["extension"] for one in entries if one["search"]["mode"] == "match"]
        return [[part["valueCode"] for part in line if part["url"] == "why"] for line in parts]

    await desk.task(status="accepted")
    assert await why(desk.ann) == await why(desk.bob) == [["role", "organization"]]
    await desk.ann.call("Task/t1/$claim")
    assert (await why(desk.ann), await why(desk.bob)) == ([["mine", "role"]], [])
    await desk.ann.call("Task/t1/$hand-over", to=ref("Practitioner/bob"), note="For you", must_accept=True)
    assert (await why(desk.bob), await why(desk.ann, "?why=mine")) == ([["offered", "role"]], [["mine", "role"]])
    await desk.bob.call("Task/t1/$claim")
    await desk.bob.call("Task/t1/$delegate", to=ref("Practitioner/ann"))
    assert (await why(desk.ann), await why(desk.bob)) == ([["delegated", "mine", "role"]], [])
    await desk.ann.call("Task/t1/$release")
    assert await why(desk.ann) == await why(desk.bob) == [["role", "organization"]]


async def test_what_cannot_be_claimed_is_told_with_what_can_be_done(desk):
    await desk.task()
    nothing = await desk.ann.call("Task/t1/$release")
    assert (nothing.status_code, said(nothing)) == (422, "Nobody has claimed this Task: there is nothing to give back")
    for lease in ({"value": 30, "unit": "min"}, {**HALF_AN_HOUR, "code": "kg"}, {**HALF_AN_HOUR, "value": -1}):
        wrong = await desk.ann.call("Task/t1/$claim", lease=lease)
        assert (wrong.status_code, "such as 30 min" in said(wrong)) == (400, True)
    await desk.engine.put({**await desk.now(), "status": "cancelled"})
    closed = await desk.ann.call("Task/t1/$claim")
    assert (closed.status_code, "Task.status may go from 'cancelled' to: nothing" in said(closed)) == (422, True)
    odd = await desk.engine.put({**await desk.now(await desk.task("t2")), "extension": [{"url": CLAIM, "valueString": "mine"}]})
    assert odd.status_code == 422
