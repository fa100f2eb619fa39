"""A referral from order to report: sent once, moved by what the clinic does, never by somebody else's papers."""

from datetime import timedelta
from decimal import Decimal

import pytest

from fhircm.coordination.distribution import task_id
from fhircm.fhir.json import splice
from fhircm.fhir.outcome import IllegalTransition
from fhircm.fhir.systems import REFERRAL
from fhircm.fhir.validation import check
from fhircm.store.operations import Put

from .conftest import NPI, SCT

ORDER = [{"coding": [{"system": SCT, "code": "3457005"}]}]
NOTE = {"coding": [{"system": "http://loinc.org", "code": "11488-4"}]}


class Referral:
    """One order from the hospital to the clinic, and what becomes of it."""

    def __init__(self, world):
        self.world, self.hospital, self.clinic = world, world.lakeside, world.riverbend
        self.id = task_id(self.hospital.id("ServiceRequest/s1"))
        self.number = {"system": REFERRAL, "value": self.id}

    async def patients(self, linked=True):
        ours, theirs = await self.hospital.patient("p1"), await self.clinic.patient("q1")
        if linked:
            await self.world.link(ours, theirs)

    async def order(self, id="s1", npi="1982736453", **members):
        if npi:
            await self.hospital.put(
                "Organization/clinic-entry", name="Riverbend (directory)", identifier=[{"system": NPI, "value": npi}]
            )
        await self.hospital.put("Practitioner/d1", name=[{"text": "Dr. Ordering"}])
        tree = {
            "status": "active",
            "intent": "order",
            "category": ORDER,
            "code": {"text": "Cardiology"},
            "subject": self.hospital.ref("Patient/p1"),
            "authoredOn": "2026-03-02T08:00:00-06:00",
            "requester": self.hospital.ref("Practitioner/d1"),
            "performer": [self.hospital.ref("Organization/clinic-entry")],
            "reasonCode": [{"text": "Dyspnoea"}],
        }
        tree.update(members)
        await self.hospital.put(f"ServiceRequest/{id}", **{name: value for name, value in tree.items() if value is not None})
        await self.world.react()

    async def visit(self, status, id="v1", patient="Patient/q1", numbers=None, **members):
        await self.clinic.put(
            f"Encounter/{id}",
            identifier=numbers or [self.number],
            status=status,
            **{"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}},
            subject=self.clinic.ref(patient),
            **members,
        )
        await self.world.react()

    async def report(self, id="n1", patient="Patient/q1", type=NOTE, **members):
        tree = {
            "status": "current",
            "type": type,
            "subject": self.clinic.ref(patient),
            "date": "2026-03-09T15:00:00Z",
            "content": [{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}],
            "context": {"related": [{"identifier": self.number}]},
        }
        await self.clinic.put(f"DocumentReference/{id}", **{**tree, **members})
        await self.world.react()

    async def task(self):
        return (await self.world.store.read("Task", self.id)).tree

    async def set(self, **members):
        await self.world.edit("Task", self.id, **members)
        await self.world.react()

    async def history(self):
        versions = await self.world.versions("Task", self.id)
        states = [(one["status"], one["businessStatus"]["coding"][0]["code"]) for one in versions]
        return [state for state, before in zip(states, [None, *states], strict=False) if state != before]

    async def questions(self, code="referral-evidence"):
        found = await self.world.find("Task", code=f"https://fhircm.example/CodeSystem/coordination|{code}")
        return sorted((one["status"], one["reasonCode"]["text"]) for one in found)


@pytest.fixture
async def referral(world):
    made = Referral(world)
    await made.patients()
    return made


async def test_an_order_becomes_a_task_for_the_clinic(referral):
    await referral.order()
    task = await referral.task()
    order = f"ServiceRequest/{referral.hospital.id('ServiceRequest/s1')}"
    assert (task["status"], task["intent"], task["businessStatus"]["coding"][0]["code"]) == ("requested", "order", "2.0")
    assert task["code"]["coding"] == [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]
    assert task["focus"]["reference"] == task["basedOn"][0]["reference"] == order
    assert task["for"] == referral.hospital.ref("Patient/p1")
    assert task["owner"] == {**referral.clinic.ref("Organization/riverbend"), "display": "Riverbend"}, (
        "as the clinic describes itself"
    )
    assert task["requester"] == {**referral.hospital.ref("Organization/lakeside"), "display": "Lakeside"}
    assert task["identifier"][0] == {
        "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "PLAC"}]},
        "system": "https://fhircm.example/referral",
        "value": task["id"],
    }
    assert task["restriction"]["period"]["end"] == "2026-03-05T23:59:59-05:00", "three business days, on the clinic's clock"
    assert task["priority"] == "routine"
    assert task["reasonCode"] == {"text": "Dyspnoea"}


async def test_an_urgent_one_must_be_answered_sooner(referral):
    await referral.order(priority="urgent")
    assert (await referral.task())["restriction"]["period"]["end"] == "2026-03-03T23:59:59-05:00"


@pytest.mark.parametrize(
    "members",
    [
        {"status": "draft"},
        {"status": "completed"},
        {"intent": "proposal"},
        {"intent": "filler-order"},
        {"category": [{"coding": [{"system": SCT, "code": "108252007"}]}]},  # laboratory
        {"performer": None},
        {"authoredOn": "2025-11-01"},  # nobody closed it
    ],
)
async def test_what_is_no_new_referral_is_not_sent(referral, members):
    await referral.order(**members)
    assert await referral.world.find("Task") == []


async def test_a_performer_without_an_npi_and_an_order_within_the_house_are_not_sent(referral):
    await referral.hospital.put("Organization/clinic-entry", name="Nameless")
    await referral.order(npi=None)
    await referral.order("s2", npi=None, performer=[referral.hospital.ref("Organization/lakeside")])
    assert await referral.world.find("Task") == []


async def test_an_old_order_that_the_hub_saw_as_a_draft_is_sent_when_it_becomes_active(referral):
    await referral.order(status="draft", authoredOn="2025-11-01")
    await referral.order(authoredOn="2025-11-01")
    assert (await referral.task())["status"] == "requested"


async def test_the_first_performer_that_can_be_found_is_asked(referral):
    await referral.clinic.put("PractitionerRole/r", organization=referral.clinic.ref("Organization/riverbend"))
    performers = [referral.hospital.ref("Practitioner/d1"), referral.clinic.ref("PractitionerRole/r")]
    await referral.order(performer=performers)
    assert (await referral.task())["owner"]["display"] == "Riverbend"


async def test_a_performer_whom_the_hub_does_not_reach_is_told_to_a_human(referral):
    await referral.order(npi="1992999991")
    assert (await referral.task())["owner"]["display"] == "Riverbend (directory)"
    assert [status for status, _ in await referral.questions("undelivered")] == ["ready"]


async def test_the_whole_way(referral):
    await referral.order()
    await referral.set(status="accepted")
    task = await referral.task()
    assert task["businessStatus"]["coding"][0]["code"] == "3.0", "the clinic's app sets the status alone"
    assert task["restriction"]["period"]["end"] == "2026-03-09T23:59:59-04:00", "five business days for the appointment"
    await referral.visit("planned")
    assert (await referral.task())["executionPeriod"] == {"start": "2026-03-02T15:00:00Z"}
    await referral.visit("finished")
    referral.world.clock.advance(timedelta(days=7))
    await referral.report()
    task = await referral.task()
    assert await referral.history() == [
        ("requested", "2.0"),
        ("accepted", "2.0"),
        ("accepted", "3.0"),
        ("in-progress", "5.1.1"),
        ("in-progress", "5.1.4"),
        ("completed", "7.0"),
    ]
    (output,) = task["output"]
    assert output["valueReference"] == referral.clinic.ref("DocumentReference/n1")
    assert output["type"]["coding"][0]["code"] == "report"
    assert task["executionPeriod"] == {"start": "2026-03-02T15:00:00Z", "end": "2026-03-09T15:00:00Z"}
    assert task["lastModified"] == "2026-03-09T15:00:00Z"
    assert await referral.questions() == []


async def test_a_report_from_a_clinic_that_never_clicked_walks_the_legal_way(referral):
    await referral.order()
    await referral.report()
    assert await referral.history() == [("requested", "2.0"), ("accepted", "3.0"), ("completed", "7.0")]
    versions = await referral.world.versions("Task", referral.id)
    assert versions[1]["statusReason"]["text"] == "Taken as accepted: a report arrived under the referral number"
    assert "statusReason" not in versions[-1]


async def test_a_booking_from_a_clinic_that_never_clicked(referral):
    await referral.order()
    await referral.visit("planned")
    assert await referral.history() == [("requested", "2.0"), ("accepted", "3.0"), ("in-progress", "5.1.1")]


@pytest.mark.parametrize("first", ["report", "visit"])
async def test_evidence_may_be_there_before_the_order(referral, first):
    await (referral.report() if first == "report" else referral.visit("planned"))
    await referral.order()
    assert (await referral.task())["status"] == ("completed" if first == "report" else "in-progress")


async def test_a_number_that_was_typed_without_its_system_is_known_all_the_same(referral):
    await referral.order()
    await referral.visit("planned", numbers=[{"value": referral.id}, {"system": "urn:clinic:visits", "value": "77"}])
    assert (await referral.history())[-1] == ("in-progress", "5.1.1")
    await referral.visit("planned", "v2", numbers=[{"system": "urn:clinic:visits", "value": referral.id}])
    await referral.report(context={"related": [{"identifier": {"value": referral.id}}]})
    assert (await referral.history())[-1] == ("completed", "7.0")


async def test_appointments_come_and_go(referral):
    await referral.order()
    await referral.set(status="accepted")
    no_show = {"reasonCode": [{"coding": [{"system": SCT, "code": "281399006"}]}]}
    await referral.visit("planned", "v1")
    await referral.visit("cancelled", "v1", **no_show)
    referral.world.clock.advance(timedelta(days=1))
    await referral.visit("planned", "v2")
    await referral.visit("cancelled", "v2")
    await referral.visit("arrived", "v3")
    await referral.visit("in-progress", "v3")
    assert [code for _, code in await referral.history()][3:] == ["5.1.1", "5.1.2", "5.1.1", "5.1.3", "5.1.1", "5.1.4"]


async def test_a_preliminary_report_is_an_interim_note(referral):
    await referral.order()
    await referral.report(docStatus="preliminary")
    task = await referral.task()
    assert (task["status"], task["businessStatus"]["coding"][0]["code"], len(task["output"])) == ("in-progress", "5.1.4", 1)
    await referral.report(docStatus="final")
    task = await referral.task()
    assert (task["status"], len(task["output"])) == ("completed", 1)


async def test_an_addendum_is_added_to_a_closed_referral(referral):
    await referral.order()
    await referral.report()
    await referral.report("n2", date="2026-03-10T15:00:00Z")
    task = await referral.task()
    assert task["status"] == "completed"
    assert [one["valueReference"] for one in task["output"]] == [
        referral.clinic.ref(f"DocumentReference/{id}") for id in ("n1", "n2")
    ]


@pytest.mark.parametrize(
    "members",
    [
        {"status": "entered-in-error"},
        {"docStatus": "entered-in-error"},
        {
            "type": {"coding": [{"system": "http://loinc.org", "code": "57133-1"}]}
        },  # our own letter, that comes back with the pull
    ],
)
async def test_what_is_no_report_moves_nothing(referral, members):
    await referral.order()
    await referral.report(**members)
    assert await referral.history() == [("requested", "2.0")]


async def test_the_papers_of_somebody_else_move_nothing_and_are_shown_to_a_human(referral):
    await referral.order()
    await referral.clinic.patient("q2")
    await referral.visit("planned", patient="Patient/q2")
    await referral.report(patient="Patient/q2")
    assert await referral.history() == [("requested", "2.0")]
    assert [status for status, _ in await referral.questions()] == ["ready", "ready"]
    (question,) = await referral.world.find("Task", focus=f"DocumentReference/{referral.clinic.id('DocumentReference/n1')}")
    assert question["owner"]["display"] == "Lakeside care coordination"
    assert question["input"][0]["valueReference"]["reference"] == f"Task/{referral.id}"


async def test_when_the_records_are_linked_later_the_loop_closes_and_the_question_goes(world):
    referral = Referral(world)
    await referral.patients(linked=False)
    await referral.order()
    await referral.report()
    assert (await referral.task())["status"] == "requested"
    await world.link(referral.hospital.id("Patient/p1"), referral.clinic.id("Patient/q1"))
    await world.react()
    assert (await referral.task())["status"] == "completed"
    assert [status for status, _ in await referral.questions()] == ["cancelled"]


@pytest.mark.parametrize("status", ["requested", "accepted", "in-progress"])
async def test_the_requester_withdraws_the_order(referral, status):
    await referral.order()
    if status != "requested":
        await referral.set(status="accepted")
    if status == "in-progress":
        await referral.visit("planned")
    await referral.order(status="revoked")
    task = await referral.task()
    assert (task["status"], task["businessStatus"]["coding"][0]["code"]) == ("cancelled", "6.0")
    assert task["statusReason"]["text"] == "The requester withdrew the order"
    assert task["executionPeriod"]["end"]


async def test_a_report_on_a_referral_that_ended_is_shown_to_a_human(referral):
    await referral.order()
    await referral.set(status="rejected", statusReason={"text": "No capacity"})
    assert (await referral.history())[-1] == ("rejected", "4.0")
    await referral.report()
    assert (await referral.history())[-1] == ("rejected", "4.0")
    assert await referral.questions() == [("ready", "It answers a referral that has ended as 'rejected'")]


async def test_what_people_set_is_not_undone_by_old_evidence(referral):
    await referral.order()
    await referral.set(status="accepted")
    await referral.visit("planned")
    await referral.set(status="on-hold", statusReason={"text": "Waiting list"})
    assert (await referral.task())["status"] == "on-hold"
    await referral.order(priority="urgent")  # the order changes, not what the clinic does
    assert (await referral.task())["status"] == "on-hold"
    await referral.visit("planned", language="en")
    assert (await referral.task())["status"] == "in-progress"
    no_show = {"coding": [{"system": "http://hl7.org/fhir/us/bser/CodeSystem/TaskBusinessStatusCS", "code": "5.1.2"}]}
    await referral.set(businessStatus=no_show)
    assert (await referral.history())[-1] == ("in-progress", "5.1.2")
    await referral.report()
    assert (await referral.history())[-1] == ("completed", "7.0")


async def test_the_clinic_cannot_complete_what_it_has_not_accepted(referral):
    await referral.order()
    with pytest.raises(IllegalTransition, match="accepted, cancelled, rejected"):
        await referral.set(status="completed")
    assert (await referral.task())["meta"]["versionId"] == "1"


async def test_other_members_of_a_task_stay_as_they_were_written(referral):
    await referral.order()
    stored = await referral.world.store.read("Task", referral.id)
    weight = {"url": "https://example.org/weight", "valueDecimal": Decimal("72.50")}
    written = splice(stored.body, {"note": [{"text": "call first"}], "extension": [weight]})
    await referral.world.store.transact([Put(check(written), stored.version)], origin="client:clinic-app")
    await referral.report()
    closed = await referral.world.store.read("Task", referral.id)
    assert b'"valueDecimal":72.50' in closed.body
    assert closed.tree["note"] == [{"text": "call first"}]


async def test_a_replay_changes_nothing(referral):
    await referral.order()
    await referral.visit("planned")
    await referral.clinic.patient("q2")
    await referral.report("n9", patient="Patient/q2")
    await referral.report()
    before = await referral.world.counts()
    referral.world.clock.advance(timedelta(days=1))
    assert await referral.world.again() == []
    assert await referral.world.counts() == before


async def test_the_number_of_another_referral_moves_only_that_one(referral):
    await referral.order()
    await referral.order("s2")
    await referral.report(
        context={"related": [{"identifier": {**referral.number, "value": task_id(referral.hospital.id("ServiceRequest/s2"))}}]}
    )
    assert (await referral.task())["status"] == "requested"
    other = await referral.world.store.read("Task", task_id(referral.hospital.id("ServiceRequest/s2")))
    assert other.tree["status"] == "completed"


async def test_a_clock_that_was_set_back_stops_no_referral(referral):
    await referral.order()
    authored = (await referral.task())["authoredOn"]
    referral.world.clock.advance(timedelta(minutes=-90))
    await referral.visit("planned", period={"start": "2026-03-09T09:00:00-05:00"})
    task = await referral.task()
    assert task["status"] == "in-progress"
    assert task["lastModified"] == authored, "a Task that is modified before it was authored is no Task"
    referral.world.clock.advance(timedelta(minutes=-5))
    await referral.report()
    task = await referral.task()
    assert task["status"] == "completed"
    assert task["executionPeriod"]["end"] == task["executionPeriod"]["start"], "no period ends before it begins"
