"""Every partner is told of every occasion once, by the best way it has, whatever fails on the way; the rest is told to a human."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from fhircm.exchange.push import parked, replay
from fhircm.fhir.outcome import NotFound
from tests.exchange.delivery.mortal import Killed, Mortal

REFERRAL = "https://fhircm.example/referral"


def numbers(tree):
    return [one["value"] for one in tree["identifier"] if one["system"] == REFERRAL]


async def test_a_referral_reaches_the_clinic_as_letter_and_message(world, act):
    await act.referral(world)
    report = await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 1, "Communication": 1}
    assert len(report.delivered) == 2
    (letter,), (message,) = world.clinic.all("DocumentReference"), world.clinic.all("Communication")
    assert numbers(letter) == numbers(message) == ["referral-1"]
    assert letter["context"]["related"][0]["identifier"]["value"] == "referral-1"
    assert letter["subject"]["reference"] == message["subject"]["reference"] == "Patient/c1"
    assert "Cardiology consultation" in message["payload"][0]["contentString"]
    assert message["recipient"] == [{"reference": "Organization/riverbend", "display": "The clinic"}]


async def test_a_second_round_sends_nothing(world, act):
    await act.referral(world)
    await world.push(world.clinic)
    report = await world.push(world.clinic)
    assert (report.delivered, report.changes, report.done) == ([], 0, 0)
    assert world.clinic.posts().total() == 2


async def test_deliveries_are_told_as_provenance(world, act):
    await act.referral(world)
    await world.push(world.clinic)
    told = await world.deliveries()
    assert {one["target"][0]["reference"] for one in told} == {"Task/referral-1/_history/1"}
    assert {one["entity"][0]["what"]["reference"].rpartition("/")[0] for one in told} == {
        f"{world.clinic.base_url}/DocumentReference",
        f"{world.clinic.base_url}/Communication",
    }
    assert all(one["agent"][0]["who"]["reference"] == "Organization/hub" for one in told)


async def test_only_the_partner_concerned_is_told(world, act):
    await act.referral(world)
    await world.push(world.hospital)
    assert world.hospital.posts() == {}


async def test_a_partner_never_gets_its_own_news_back(world, act):
    await act.referral(world)
    await world.change("Task", "referral-1", origin="partner:hospital", status="accepted")
    await world.push(world.hospital)
    assert world.hospital.posts() == {}


async def test_the_end_of_a_referral_reaches_the_requester_in_three_ways(world, act):
    await act.referral(world)
    await act.closed(world)
    await world.push(world.hospital)
    order = world.hospital.kept["ServiceRequest", "order-referral-1"][-1]
    assert order["status"] == "completed"
    assert numbers(order) == ["referral-1"]
    (note,) = world.hospital.all("DocumentReference")
    assert note["content"] == [{"attachment": {"contentType": "text/plain", "data": "U3RhYmxlLg=="}}]
    assert note["subject"] == {"reference": "Patient/p1"}
    assert note["author"][0]["display"] == "Ana Reyes"
    assert note["custodian"] == {"reference": "Organization/riverbend-listed", "display": "Riverbend Clinic"}
    # Neither the clinic's visit nor the number as a related thing: the copy must not answer the referral once more.
    assert note["context"] == {"related": [{"reference": "ServiceRequest/order-referral-1"}]}
    assert numbers(note) == ["referral-1"]
    told = [one["payload"][0]["contentString"].split(".")[0] for one in world.hospital.all("Communication")]
    assert told == ["Referral completed"]  # that it was accepted is no news any more
    assert world.hospital.all("Communication")[0]["recipient"] == [{"reference": "PractitionerRole/role"}]


async def test_an_order_that_changed_meanwhile_is_read_again(world, act):
    await act.referral(world)
    await act.closed(world)
    world.hospital.fail("PUT", "ServiceRequest", "changed meanwhile", 2)
    await world.push(world.hospital)
    order = world.hospital.kept["ServiceRequest", "order-referral-1"]
    assert len(order) == 4  # two changes of others, and ours on the last of them
    assert (order[-1]["status"], order[-1]["priority"]) == ("completed", "urgent")


async def test_an_order_that_ended_otherwise_is_left_to_a_human(world, act):
    await act.referral(world)
    world.hospital.put({**world.hospital.kept["ServiceRequest", "order-referral-1"][-1], "status": "revoked"})
    await act.closed(world)
    await world.push(world.hospital)
    assert world.hospital.kept["ServiceRequest", "order-referral-1"][-1]["status"] == "revoked"
    (task,) = await world.tasks("undelivered")
    assert "its order is already 'revoked'" in task["reasonCode"]["text"]


FAULTS = ["down", "late", "lost", 500, "html", "done, then html", (503, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault_delays_and_neither_loses_nor_doubles(world, act, method, fault):
    await act.referral(world)
    await act.closed(world)
    for _ in range(12):
        world.hospital.fail(method, "*", fault)
        await world.push(world.hospital, attempts=50)
        world.clock.advance(timedelta(minutes=6))
    world.hospital.faults.clear()
    await world.push(world.hospital)
    kinds = Counter(tree["resourceType"] for type in ("DocumentReference", "Communication") for tree in world.hospital.all(type))
    assert kinds == {"DocumentReference": 1, "Communication": 1}
    assert [one["status"] for one in world.hospital.kept["ServiceRequest", "order-referral-1"]] == ["active", "completed"]
    assert await world.tasks("undelivered") == []
    assert len(await world.deliveries()) == 3


async def test_retry_after_is_honoured_and_is_no_attempt(world, act):
    await act.referral(world)
    world.clinic.fail("POST", "*", (429, {"Retry-After": "600"}), 3)
    for _ in range(3):
        report = await world.push(world.clinic, attempts=1)
        assert report.waiting_until is not None
        world.clock.advance(timedelta(seconds=590))
        before = len(world.clinic.log)
        await world.push(world.clinic, attempts=1)
        assert len(world.clinic.log) == before
        world.clock.advance(timedelta(seconds=11))
    await world.push(world.clinic, attempts=1)
    assert world.clinic.posts()["Communication"] == 1
    assert await world.tasks("undelivered") == []


async def test_one_that_is_down_delays_only_itself(world, act):
    await act.referral(world)
    await act.closed(world)
    world.hospital.fail("GET", "*", "down")
    assert (await world.push(world.hospital)).waiting_until is not None
    assert (await world.push(world.clinic)).waiting_until is None


async def test_what_is_refused_goes_the_next_way(world, act):
    await act.referral(world)
    await world.change("Task", "referral-1", status="rejected", statusReason={"text": "No capacity"})
    world.hospital.fail("POST", "Communication", 422)
    await world.push(world.hospital)
    assert world.hospital.posts() == {"Communication": 1, "DocumentReference": 1}
    assert await world.tasks("undelivered") == []


async def test_what_a_partner_has_natively_comes_first(world, act):
    world.clinic.can["ServiceRequest"] += " create"
    await act.referral(world)
    await world.push(world.clinic)
    (order,) = world.clinic.all("ServiceRequest")
    assert world.clinic.posts() == {"ServiceRequest": 1, "Communication": 1}
    assert order["subject"] == {"reference": "Patient/c1"}
    assert order["requester"]["display"] == "Lakeside Hospital"
    world.clinic.can["Task"] = "create"
    await act.referral(world, "referral-2")
    await world.push(world.clinic)
    (task,) = world.clinic.all("Task")
    assert (task["status"], task["for"]["reference"], numbers(task)) == ("requested", "Patient/c1", ["referral-2"])


async def test_what_nobody_can_take_is_told_to_a_human(world, act):
    world.clinic.can = {"DocumentReference": "read"}
    await act.referral(world)
    report = await world.push(world.clinic)
    assert report.undelivered == ["Task/referral-1/referral-sent/1"]
    (task,) = await world.tasks("undelivered")
    assert task["focus"]["reference"] == "Task/referral-1"
    assert task["owner"]["reference"] == "Organization/hub"
    assert "it takes no new DocumentReference" in task["reasonCode"]["text"]
    assert task["status"] == "ready"


async def test_what_no_way_is_wanted_for_is_nobodys_task(world, act):
    world.hospital.can = {}
    await act.referral(world)
    await world.change("Task", "referral-1", status="accepted")
    await world.push(world.hospital)
    assert await world.tasks("undelivered") == []


async def test_a_stranger_is_told_to_a_human_and_sent_when_known(world, act):
    await act.referral(world, patient="p2")
    await world.push(world.clinic)
    (task,) = await world.tasks("undelivered")
    assert "no record there" in task["reasonCode"]["text"]
    assert "Lund" not in str(await world.store.states(parked("clinic")))
    await world.pulled(world.clinic, {"resourceType": "Patient", "id": "c2", "name": [{"family": "Lund"}]})
    await world.write(act.person(world, "p2", "c2"))
    await world.push(world.clinic)
    assert world.clinic.all("DocumentReference")[0]["subject"] == {"reference": "Patient/c2"}
    assert (await world.read("Task", task["id"]))["status"] == "cancelled"
    assert await world.store.states(parked("clinic")) == {}
    await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 1, "Communication": 1}


async def test_what_a_human_did_is_not_sent_when_the_patient_becomes_known(world, act):
    await act.referral(world, patient="p2")
    await world.push(world.clinic)
    (task,) = await world.tasks("undelivered")
    await world.change("Task", task["id"], origin="client:console", status="in-progress")
    await world.change("Task", task["id"], origin="client:console", status="completed")
    await world.pulled(world.clinic, {"resourceType": "Patient", "id": "c2", "name": [{"family": "Lund"}]})
    await world.write(act.person(world, "p2", "c2"))
    await world.push(world.clinic)
    assert world.clinic.posts() == {}
    assert await world.store.states(parked("clinic")) == {}


async def test_after_the_last_attempt_a_change_is_parked_and_can_be_replayed(world, act):
    await act.referral(world)
    world.clinic.fail("POST", "*", "down", 3)
    for _ in range(3):
        await world.push(world.clinic, attempts=3)
        world.clock.advance(timedelta(minutes=6))
    assert list(await world.store.states(parked("clinic"))) == [
        "Task/referral-1/referral-sent/1",
        "Task/referral-1/referral-sent/2",
    ]
    assert len(await world.tasks("undelivered")) == 2
    await act.referral(world, "referral-2")  # the cursor went on
    await world.push(world.clinic)
    assert [numbers(one) for one in world.clinic.all("DocumentReference")] == [["referral-2"]]
    for key in await world.store.states(parked("clinic")):
        await replay(world.store, "clinic", key)
    await world.push(world.clinic)
    assert sorted(numbers(one)[0] for one in world.clinic.all("DocumentReference")) == ["referral-1", "referral-2"]
    assert {task["status"] for task in await world.tasks("undelivered")} == {"cancelled"}
    assert await world.store.states(parked("clinic")) == {}


async def test_where_the_hub_itself_fails_a_change_is_parked_and_the_next_goes_on(world, act):
    world.clinic.partner.folder.mkdir()
    habits = world.clinic.partner.folder / "outbound.yaml"
    habits.write_text("DocumentReference: [")  # what an operator broke
    await act.referral(world)
    for _ in range(2):
        assert (await world.push(world.clinic, attempts=2)).delivered == []
        world.clock.advance(timedelta(minutes=6))
    waiting = await world.store.states(parked("clinic"))
    assert {row["why"] for row in waiting.values()} == {"failed"}
    tasks = await world.tasks("undelivered")
    assert all("2 attempts failed, the last because" in task["reasonCode"]["text"] for task in tasks)
    habits.write_text("DocumentReference: {}")
    await act.referral(world, "referral-2")
    for key in waiting:
        await replay(world.store, "clinic", key)
    await world.push(world.clinic)
    assert sorted(numbers(one)[0] for one in world.clinic.all("DocumentReference")) == ["referral-1", "referral-2"]
    assert [(await world.read("Task", task["id"]))["status"] for task in tasks] == ["cancelled", "cancelled"]


async def test_a_replay_that_fails_again_is_told_again(world, act):
    world.clinic.can = {}
    await act.referral(world)
    await world.push(world.clinic)
    key = "Task/referral-1/referral-sent/1"
    await replay(world.store, "clinic", key)
    await world.push(world.clinic)
    assert len(await world.tasks("undelivered")) == 1
    assert not (await world.store.states(parked("clinic")))[key].get("replay")
    with pytest.raises(NotFound):
        await replay(world.store, "clinic", "Task/other/referral-sent/1")


async def test_a_lost_create_that_cannot_be_asked_after_is_left_to_a_human(world, act):
    world.clinic.can = {"Communication": "create"}
    await act.referral(world)
    silent = replace(world.clinic.capabilities, types={"Communication": {"interactions": ["create"], "search": []}})
    type(world.clinic).capabilities, before = property(lambda _: silent), type(world.clinic).capabilities
    try:
        world.clinic.fail("POST", "Communication", "lost")
        await world.push(world.clinic)
        world.clock.advance(timedelta(minutes=1))
        await world.push(world.clinic)
    finally:
        type(world.clinic).capabilities = before
    assert world.clinic.posts()["Communication"] == 1
    assert any("cannot be asked" in task["reasonCode"]["text"] for task in await world.tasks("undelivered"))


async def test_a_referral_that_ended_before_it_was_sent_is_not_sent(world, act):
    await act.referral(world)
    await world.change(
        "Task",
        "referral-1",
        origin="hub",
        status="cancelled",
        statusReason={"text": "Patient moved"},
        businessStatus=act.business("6.0"),
    )
    await world.push(world.clinic)
    assert world.clinic.posts() == {}


async def test_a_cancellation_follows_what_was_sent(world, act):
    await act.referral(world)
    await world.push(world.clinic)
    await world.change("Task", "referral-1", origin="hub", status="cancelled", statusReason={"text": "Patient moved"})
    await world.push(world.clinic)
    assert [one["topic"]["text"] for one in world.clinic.all("Communication")] == ["Referral", "Referral cancelled"]
    assert "Patient moved" in world.clinic.all("Communication")[1]["payload"][0]["contentString"]


async def test_a_cancellation_withdraws_what_still_waited_for_a_human(world, act):
    await act.referral(world, patient="p2")
    await world.push(world.clinic)
    await world.change("Task", "referral-1", origin="hub", status="cancelled", statusReason={"text": "Patient moved"})
    await world.push(world.clinic)
    assert [task["status"] for task in await world.tasks("undelivered")] == ["cancelled"]
    assert await world.store.states(parked("clinic")) == {}


async def test_a_message_goes_to_whom_it_is_addressed(world, act):
    message = {
        "resourceType": "Communication",
        "id": "escalation-1",
        "status": "in-progress",
        "subject": act.ref(act.at(world.clinic, "Patient/c1")),
        "topic": {"text": "Contact is overdue"},
        "recipient": [act.ref(act.at(world.hospital, "PractitionerRole/role"))],
        "payload": [{"contentString": "Nobody has called the patient yet."}],
    }
    await world.write(message)
    await world.push(world.hospital)
    await world.push(world.clinic)
    (sent,) = world.hospital.all("Communication")
    assert sent["recipient"] == [{"reference": "PractitionerRole/role"}]
    assert sent["payload"] == [{"contentString": "Contact is overdue.\nNobody has called the patient yet."}]
    assert sent["subject"] == {"reference": "Patient/p1"}
    assert (await world.read("Communication", "escalation-1"))["status"] == "completed"  # no longer on its way
    assert world.clinic.posts() == {}


async def discharged(world, act, patient):
    """A stay at the hospital that ended, and the transition of care that was opened for it."""
    await world.pulled(
        world.hospital,
        {
            "resourceType": "Encounter",
            "id": "stay",
            "status": "finished",
            "class": {"code": "IMP"},
            "subject": act.ref(act.at(world.hospital, f"Patient/{patient}")),
            "period": {"start": "2026-02-25T10:00:00Z", "end": "2026-03-02T21:30:00Z"},
            "serviceProvider": act.ref(act.at(world.hospital, "Organization/lakeside")),
        },
    )
    await world.write(
        {
            "resourceType": "Task",
            "id": "toc",
            "status": "requested",
            "intent": "plan",
            "code": {"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "transition-of-care"}]},
            "focus": act.ref(act.at(world.hospital, "Encounter/stay")),
            "for": act.ref(act.at(world.hospital, f"Patient/{patient}")),
            "requester": act.ref("Organization/hub"),
        }
    )


async def test_a_discharge_is_told_where_else_the_patient_is_known(world, act):
    await discharged(world, act, "p1")
    await world.push(world.hospital)
    await world.push(world.clinic)
    assert world.hospital.posts() == {}
    (message,) = world.clinic.all("Communication")
    text = message["payload"][0]["contentString"]
    assert "discharged from Lakeside Hospital on 2026-03-02 at 15:30 (America/Chicago)" in text
    assert "Care coordination follows the transition" in text


@pytest.mark.parametrize("status", ["in-progress", "on-hold", "completed"])
async def test_a_discharge_is_told_to_who_is_known_to_have_the_patient_only_later_while_it_matters(world, act, status):
    await discharged(world, act, "p2")
    await world.push(world.clinic)
    assert world.clinic.posts() == {}
    for step in ("accepted", "in-progress", *({status} - {"in-progress"})):
        await world.change("Task", "toc", origin="hub", status=step)
    await world.push(world.clinic)
    await world.pulled(world.clinic, {"resourceType": "Patient", "id": "c2", "name": [{"family": "Lund"}]})
    await world.write(act.person(world, "p2", "c2"))
    await world.push(world.hospital)
    await world.push(world.clinic)
    told = [one["subject"]["reference"] for one in world.clinic.all("Communication")]
    assert told == ([] if status == "completed" else ["Patient/c2"])
    await world.write({**act.person(world, "p2", "c2"), "gender": "male"})
    await world.push(world.clinic)
    assert len(world.clinic.all("Communication")) == len(told), "once"
    assert world.hospital.posts() == {}


async def test_a_confidential_note_is_not_handed_on(world, act):
    await act.referral(world)
    label = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
    await act.closed(world, securityLabel=[label])
    await world.push(world.hospital)
    assert world.hospital.all("DocumentReference") == []
    (task,) = await world.tasks("undelivered")
    assert "confidential" in task["reasonCode"]["text"]


async def test_a_note_whose_content_is_elsewhere_is_fetched(world, act):
    async def fetch(url):
        assert url == f"{world.clinic.base_url}/Binary/b1"
        return b"Stable."

    await act.referral(world)
    await act.closed(world, content=[{"attachment": {"contentType": "text/plain", "url": f"{world.clinic.base_url}/Binary/b1"}}])
    await world.push(world.hospital, fetch=fetch)
    assert world.hospital.all("DocumentReference")[0]["content"][0]["attachment"] == {
        "contentType": "text/plain",
        "data": "U3RhYmxlLg==",
        "size": 7,
    }


async def test_appointments_made_twice_are_told_twice(world, act):
    await act.referral(world)
    await world.change("Task", "referral-1", status="accepted")
    await world.push(world.hospital)
    for code in ("5.1.1", "5.1.2", "5.1.1"):
        await world.change("Task", "referral-1", origin="hub", status="in-progress", businessStatus=act.business(code))
        await world.push(world.hospital)
    told = [one["topic"]["text"] for one in world.hospital.all("Communication")]
    assert told == ["Referral accepted", "Appointment made for a referral", "Appointment made for a referral"]


async def test_an_unusable_deliver_stops_before_anything_is_sent(world, act):
    world.clinic.partner = replace(world.clinic.partner, deliver={"referral-sent": [["pigeon"]]})
    await act.referral(world)
    with pytest.raises(ValueError, match="pigeon is no way"):
        await world.push(world.clinic)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_moment_it_finishes_with_nothing_lost_and_nothing_doubled(world, act, after):
    """One death after the other, each at a later write, until the work is done."""
    await act.referral(world)
    await act.closed(world)
    await act.referral(world, "referral-2", patient="p2")
    sound = world.store
    for ehr in (world.hospital, world.clinic):
        for moment in range(1, 60):
            world.store = Mortal(sound, 1 + moment % 3, after)
            try:
                await world.push(ehr)
            except Killed:
                continue
            break
        else:
            pytest.fail("never done")
    world.store = sound
    assert world.hospital.posts() == {"DocumentReference": 1, "Communication": 1}
    assert world.clinic.posts() == {}  # one referral was over before it could be sent, the other is of a stranger
    assert len(await world.tasks("undelivered")) == 1
    assert len(await world.deliveries()) == 3
