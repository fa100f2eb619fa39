"""CMS50, receipt of the specialist's report, counted over what the hub has by FHIR searches: DOMAIN of the measure CMS50FHIR."""

from datetime import timedelta

from fhircm.coordination.codes import value_set
from fhircm.coordination.times import moment

from .conftest import SCT, at
from .test_referral import Referral

YEAR = (at("2026-01-01T00:00:00+00:00"), at("2027-01-01T00:00:00+00:00"))
LAST = at("2026-11-01T00:00:00+00:00")  # referrals until 31 October count
CARDIOLOGY = {"coding": [{"system": SCT, "code": "183519002"}], "text": "Cardiology"}


def tokens(name):
    return ",".join("|".join(code) for code in sorted(value_set(name)))


async def measured(world):
    """(denominator, numerator): the patients with a visit and a referral in the year, and those whose first one was answered in it."""
    seen = {one["subject"]["reference"] for one in await world.find("Encounter", status="finished", date="sa2025-12-31")}
    orders = await world.find("ServiceRequest", code=tokens("referral-order"), status="active,completed", intent="order")
    first = {}
    for order in sorted(orders, key=lambda one: one["authoredOn"]):
        if YEAR[0] <= moment(order["authoredOn"]) < LAST and order["subject"]["reference"] in seen:
            first.setdefault(order["subject"]["reference"], order)
    met = set()
    for patient, order in first.items():
        asked = {"based_on": f"ServiceRequest/{order['id']}", "status": "completed", "code": tokens("consult-note")}
        for task in await world.find("Task", **asked):
            ended = moment(task.get("executionPeriod", {}).get("end"))
            if ended and moment(order["authoredOn"]) < ended < YEAR[1]:
                met.add(patient)
    return set(first), met


async def test_who_was_referred_is_counted_and_met_by_the_report_alone(world):
    referral = Referral(world)
    await referral.patients()
    await referral.order(code=CARDIOLOGY)
    patient = referral.hospital.ref("Patient/p1")["reference"]
    assert await measured(world) == (set(), set()), "without a visit at the requester's nobody counts"
    visit = {"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}}
    visit |= {"subject": {"reference": patient}, "period": {"start": "2026-03-02T08:00:00-06:00"}}
    await referral.hospital.put("Encounter/ours", status="finished", **visit)
    assert await measured(world) == ({patient}, set())
    await referral.visit("finished")
    await referral.report(docStatus="preliminary")
    assert await measured(world) == ({patient}, set()), "a visit and an interim note are no report"
    world.clock.advance(timedelta(days=7))
    await referral.report(docStatus="final")
    assert await measured(world) == ({patient}, {patient})
    codes = [one["code"] for one in (await referral.task())["code"]["coding"]]
    assert codes == ["fulfill", "11488-4"], "the Task is the referral's, and the consultant's report"


async def test_a_second_referral_an_old_one_and_an_answer_of_the_next_year_do_not_count(world):
    referral = Referral(world)
    await referral.patients()
    visit = {"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}}
    visit |= {"subject": referral.hospital.ref("Patient/p1"), "period": {"start": "2026-03-02T08:00:00-06:00"}}
    await referral.hospital.put("Encounter/ours", status="finished", **visit)
    await referral.order(code=CARDIOLOGY)
    await referral.order("s2", code=CARDIOLOGY, authoredOn="2026-03-02T09:00:00-06:00")
    second = {
        **referral.number,
        "value": (await world.find("Task", based_on=f"ServiceRequest/{referral.hospital.id('ServiceRequest/s2')}"))[0]["id"],
    }
    await referral.report("n2", context={"related": [{"identifier": second}]})
    patient = referral.hospital.ref("Patient/p1")["reference"]
    assert await measured(world) == ({patient}, set()), "the first referral counts"
    world.clock.advance(timedelta(days=310))
    await referral.report()
    assert await measured(world) == ({patient}, set()), "the report came after the end of the year"
