"""One referral under the numbers of both sides, whether the other side speaks FHIR or only takes documents."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.context import Neighbour
from fhircm.coordination.correlation import same
from fhircm.coordination.distribution import task_id
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.systems import REFERRAL

from .conftest import NPI, Place
from .test_referral import NOTE, Referral

LOINC = "http://loinc.org"
PLAC, FILL = (
    {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": code}]} for code in ("PLAC", "FILL")
)
ORDER_NUMBER = {"system": "urn:lakeside:orders", "value": "8471"}
BOOKED = {"coding": [{"system": LOINC, "code": "56446-8"}]}
DEMAND = "urn:lakeside:requisitions"


numbers = st.fixed_dictionaries(
    {"value": st.sampled_from("12")},
    optional={
        "system": st.sampled_from([REFERRAL, "urn:a", "urn:b"]),
        "assigner": st.sampled_from("xy").map(lambda name: {"identifier": {"value": name}}),
    },
)


@given(numbers, numbers)
def test_two_numbers_are_one_only_when_nothing_they_say_differs(one, other):
    alike = asyncio.run(same(None, one, other))
    assert alike == asyncio.run(same(None, other, one))
    told = [{name: number.get(name) for name in ("value", "system", "assigner")} for number in (one, other)]
    differ = any(a != b and a and b for a, b in zip(*(said.values() for said in told), strict=True))
    if REFERRAL not in (one.get("system"), other.get("system")):
        assert not (alike and differ)
    if "system" not in one and "system" not in other and "assigner" not in one:
        assert not alike, "a bare number says nothing"


@pytest.fixture
async def referral(world):
    made = Referral(world)
    await made.patients()
    return made


async def found(world, number):
    return [one["id"] for one in await world.find("Task", identifier=f"{number['system']}|{number['value']}")]


async def native(clinic, patient, number, react):
    """A performer whose system keeps a Task of its own, books Appointments and reports by DiagnosticReport."""
    own = {"system": f"urn:{clinic.name}:referrals", "value": "R-1"}
    task = {
        "identifier": [number, own],
        "intent": "order",
        "focus": {"type": "ServiceRequest", "identifier": number},
        "for": patient,
    }
    await clinic.put("Task/t1", status="accepted", **task)
    await react()
    when = {"start": "2026-03-05T15:00:00Z", "end": "2026-03-05T15:30:00Z"}
    visit = {"identifier": [number], "participant": [{"actor": patient, "status": "accepted"}], **when}
    await clinic.put("Appointment/a1", status="booked", **visit)
    await react()
    report = {"basedOn": [{"identifier": own}], "code": NOTE, "subject": patient, "issued": "2026-03-05T16:00:00Z"}
    for status in ("preliminary", "final"):
        await clinic.put("DiagnosticReport/d1", status=status, **report)
        await react()
    return own


async def by_document(clinic, patient, number, react):
    """A performer who has nothing but documents, and writes the number on each."""
    paper = {"status": "current", "subject": patient, "context": {"related": [{"identifier": number}]}}
    paper["content"] = [{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}]
    await clinic.put("DocumentReference/b1", type=BOOKED, **paper)
    await react()
    for status in ("preliminary", "final"):
        await clinic.put("DocumentReference/n1", type=NOTE, docStatus=status, **paper)
        await react()


async def test_a_native_performer_and_one_with_documents_only_close_the_loop_alike(referral):
    world = referral.world
    harbor = Place(world, "harbor", "1234509873", "America/New_York")
    neighbour = Neighbour(harbor.name, harbor.npi, harbor.base, harbor.calendar)
    world.context = replace(world.context, neighbours=(*world.context.neighbours, neighbour))
    await harbor.organization()
    theirs = await harbor.patient("h1")
    await world.link(referral.hospital.id("Patient/p1"), referral.clinic.id("Patient/q1"), theirs)
    await referral.order()
    await referral.hospital.put("Organization/harbor-entry", name="Harbor", identifier=[{"system": NPI, "value": harbor.npi}])
    await referral.order("s2", performer=[referral.hospital.ref("Organization/harbor-entry")])
    other = Referral(world)
    other.id = task_id(referral.hospital.id("ServiceRequest/s2"))
    own = await native(referral.clinic, referral.clinic.ref("Patient/q1"), referral.number, world.react)
    await by_document(harbor, harbor.ref("Patient/h1"), {**referral.number, "value": other.id}, world.react)
    told = [await referral.history(), await other.history()]
    assert told[0] == told[1]
    assert told[0][-3:] == [("in-progress", "5.1.1"), ("in-progress", "5.1.4"), ("completed", "7.0")]
    closed = [await referral.task(), await other.task()]
    assert [len(one["output"]) for one in closed] == [1, 1]
    assert all(one["executionPeriod"].keys() == {"start", "end"} for one in closed)
    assert set(await found(world, own)) == {referral.id, referral.clinic.id("Task/t1")}
    filler = next(one for one in closed[0]["identifier"] if one["system"] == own["system"])
    assert filler == {**own, "type": FILL, "assigner": closed[0]["owner"]}


async def test_the_order_s_own_number_finds_the_loop_and_what_quotes_it_moves_it(referral):
    await referral.order(identifier=[{"type": PLAC, **ORDER_NUMBER}])
    (placer,) = [one for one in (await referral.task())["identifier"] if one["system"] == ORDER_NUMBER["system"]]
    assert placer == {"type": PLAC, **ORDER_NUMBER, "assigner": (await referral.task())["requester"]}
    assert await found(referral.world, ORDER_NUMBER) == [referral.id]
    await referral.visit("planned", numbers=[{"system": "urn:clinic:visits", "value": "8471"}])
    assert await referral.history() == [("requested", "2.0")], "the same number of another system is another number"
    await referral.visit("planned", numbers=[ORDER_NUMBER])
    assert (await referral.history())[-1] == ("in-progress", "5.1.1")


async def test_the_same_number_of_two_assigners_is_two_numbers(referral):
    await referral.order()
    await referral.order("s2")
    ids = [referral.id, task_id(referral.hospital.id("ServiceRequest/s2"))]
    assigners = [referral.clinic.ref("Organization/riverbend"), referral.hospital.ref("Organization/lakeside")]
    for id, assigner in zip(ids, assigners, strict=True):
        known = (await referral.world.store.read("Task", id)).tree["identifier"]
        await referral.world.edit("Task", id, identifier=[*known, {"type": FILL, "value": "1", "assigner": assigner}])
    await referral.visit("planned", numbers=[{"value": "1"}])
    await referral.visit("planned", "v2", numbers=[{"value": "1", "assigner": assigners[1]}])
    states = [(await referral.world.store.read("Task", id)).tree["status"] for id in ids]
    assert states == ["requested", "in-progress"]


async def test_a_requisition_finds_the_order_that_is_alone_under_it(referral):
    requisition = {"system": DEMAND, "value": "9"}
    await referral.order(requisition=requisition)
    await referral.order("s2", requisition=requisition)
    await referral.report(context={"related": [{"identifier": requisition}]})
    assert await referral.history() == [("requested", "2.0")], "nobody knows which of the two is meant"
    await referral.order("s2", requisition={"system": DEMAND, "value": "10"})
    await referral.visit("planned", numbers=[requisition])
    assert (await referral.history())[-1] == ("completed", "7.0"), "the report counts as well now"


async def test_a_number_of_the_addressee_names_who_gave_it(referral):
    await referral.order()
    known = (await referral.task())["identifier"]
    with pytest.raises(Invalid, match="says who assigned it"):
        await referral.set(identifier=[*known, {"type": FILL, "system": "urn:clinic", "value": "1"}])


async def test_what_the_addressee_s_own_task_says_counts(referral):
    await referral.order()
    task = {"identifier": [referral.number], "intent": "order", "for": referral.clinic.ref("Patient/q1")}
    await referral.clinic.put("Task/t1", status="requested", **task)
    await referral.world.react()
    assert await referral.history() == [("requested", "2.0")]
    await referral.hospital.put("Task/t9", status="rejected", **{**task, "for": referral.hospital.ref("Patient/p1")})
    await referral.world.react()
    assert await referral.history() == [("requested", "2.0")], "only the addressee's counts"
    reason = {"coding": [{"system": "urn:clinic:reasons", "code": "full"}], "text": "No place before May"}
    await referral.clinic.put("Task/t1", status="rejected", statusReason=reason, **task)
    await referral.world.react()
    assert (await referral.history())[-1] == ("rejected", "4.0")
    assert (await referral.task())["statusReason"] == reason
    await referral.clinic.put("Task/t2", status="in-progress", **task)
    await referral.world.react()
    assert (await referral.history())[-1] == ("rejected", "4.0"), "what has ended stays as it ended"


async def test_who_declines_late_in_their_own_system_has_failed(referral):
    await referral.order()
    await referral.set(status="accepted")
    task = {"identifier": [referral.number], "intent": "order", "for": referral.clinic.ref("Patient/q1")}
    await referral.clinic.put("Task/t1", status="rejected", statusReason={"text": "The cardiologist has left"}, **task)
    await referral.world.react()
    closed = await referral.task()
    assert (closed["status"], closed["statusReason"]) == ("failed", {"text": "The cardiologist has left"})


async def test_of_several_who_were_asked_the_one_from_whose_house_it_comes_is_meant(referral):
    await referral.hospital.put("Organization/other", name="Other", identifier=[{"system": NPI, "value": "1992999991"}])
    entries = ["Organization/other", "Organization/clinic-entry"]
    await referral.hospital.put(entries[1], name="Riverbend", identifier=[{"system": NPI, "value": referral.clinic.npi}])
    to_many = {"url": "https://fhircm.example/StructureDefinition/distribution"}
    to_many["extension"] = [{"url": "how", "valueCode": "first-accept"}]
    performer = [referral.hospital.ref(one) for one in entries]
    await referral.order(performer=performer, identifier=[ORDER_NUMBER], extension=[to_many])
    await referral.visit("planned", numbers=[ORDER_NUMBER])
    order = f"ServiceRequest/{referral.hospital.id('ServiceRequest/s1')}"
    states = {one["owner"]["display"]: one["status"] for one in await referral.world.find("Task", based_on=order)}
    assert states == {"Other": "cancelled", "Riverbend": "in-progress"}


async def test_a_copy_of_the_report_at_the_requester_answers_nothing_twice(referral):
    await referral.order()
    await referral.report()
    order = {"reference": f"ServiceRequest/{referral.hospital.id('ServiceRequest/s1')}"}
    await referral.hospital.put(
        "DocumentReference/copy",
        status="current",
        type=NOTE,
        subject=referral.hospital.ref("Patient/p1"),
        content=[{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}],
        context={"related": [order]},
    )
    referral.world.clock.advance(timedelta(hours=1))
    await referral.world.react()
    assert len((await referral.task())["output"]) == 1
