"""What a referral must carry: it waits until it is complete, somebody is told what is missing, and the latest consent counts."""

import json

import pytest

from fhircm.coordination.package import rules
from fhircm.fhir.definitions import definitions
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check
from fhircm.store.operations import Put

from .conftest import SCT
from .test_referral import Referral

SDOH = "http://hl7.org/fhir/us/sdoh-clinicalcare/CodeSystem/SDOHCC-CodeSystemTemporaryCodes"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
FOOD = [{"coding": [{"system": SDOH, "code": "food-insecurity"}]}]
PSYCHIATRY = {"coding": [{"system": SCT, "code": "183524004"}], "text": "Psychiatry"}


class Carried(Referral):
    """A referral, and the consents of its patient."""

    async def paper(self, id):
        content = [{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}]
        await self.hospital.put(
            f"DocumentReference/{id}", status="current", subject=self.hospital.ref("Patient/p1"), content=content
        )
        return self.hospital.ref(f"DocumentReference/{id}")

    async def consent(self, id, written, status="active", type="permit", recipient=None, **provision):
        actor = [{"role": {"coding": [{"system": ACT, "code": "IRCP"}]}, "reference": recipient}] if recipient else []
        await self.hospital.put(
            f"Consent/{id}",
            status=status,
            scope={"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
            category=[{"coding": [{"system": ACT, "code": "IDSCL"}]}],
            patient=self.hospital.ref("Patient/p1"),
            dateTime=written,
            organization=[self.hospital.ref("Organization/lakeside")],
            sourceReference=await self.paper("signed"),
            policyRule={"text": "Release of what a referral for a social need carries"},
            provision={"type": type, **({"actor": actor} if actor else {}), **provision},
        )
        await self.world.react()

    async def asked(self):
        found = await self.world.find("Task", code=f"{COORDINATION}|complete-package")
        return [(one["status"], one["reasonCode"]["text"].partition("It lacks ")[2]) for one in found]

    async def inputs(self):
        return [one["valueReference"]["reference"].split("/")[0] for one in (await self.task()).get("input", [])]


@pytest.fixture
async def referral(world):
    made = Carried(world)
    await made.patients()
    return made


def test_the_rules_name_what_there_is():
    known = definitions()
    kinds = [kind for rule in rules() for need in rule.needs for kind in need.any]
    assert {kind["type"] for kind in kinds if "type" in kind} <= known.resource_types
    assert {kind["element"] for kind in kinds if "element" in kind} <= {"reasonCode", "reasonReference", "note", "bodySite"}
    assert all(need.says and (need.any or need.consent) for rule in rules() for need in rule.needs)


async def test_a_referral_for_a_social_need_waits_for_the_consent_to_its_release(referral):
    await referral.order(category=FOOD)
    assert (await referral.task())["status"] == "draft"
    ((status, missing),) = await referral.asked()
    assert status == "ready"
    assert missing.startswith("the patient's consent to the release to this organisation")
    (question,) = await referral.world.find("Task", code=f"{COORDINATION}|complete-package")
    assert question["owner"] == (await referral.task())["requester"], "the requester's side is asked"
    assert question["restriction"]["period"]["end"] == "2026-03-04T23:59:59-06:00"
    await referral.consent("elsewhere", "2026-03-02", recipient=referral.hospital.ref("Organization/lakeside"))
    assert (await referral.task())["status"] == "draft", "it lets another organisation be told"
    await referral.consent("c1", "2026-03-01", recipient=referral.clinic.ref("Organization/riverbend"))
    task = await referral.task()
    assert (task["status"], await referral.inputs()) == ("requested", ["Consent"])
    assert task["input"][0]["type"]["coding"][0]["code"] == "additional-content"
    assert task["restriction"]["period"]["end"] == "2026-03-05T23:59:59-05:00", "the addressee's time begins now"
    assert [status for status, _ in await referral.asked()] == ["cancelled"]
    assert await referral.world.again() == []


@pytest.mark.parametrize(
    "latest",
    [{"status": "inactive"}, {"type": "deny"}, {"period": {"end": "2026-03-01T00:00:00Z"}}],
    ids=["withdrawn", "refused", "over"],
)
async def test_the_latest_consent_wins(referral, latest):
    await referral.consent("new", "2026-02-02", **latest)
    await referral.consent("old", "2026-01-01")
    await referral.order(category=FOOD)
    assert (await referral.task())["status"] == "draft"
    await referral.consent("newest", "2026-03-02")
    assert (await referral.task())["status"] == "requested"
    assert await referral.inputs() == ["Consent"]


async def test_what_the_order_refers_to_goes_along(referral):
    await referral.hospital.put("Condition/k1", subject=referral.hospital.ref("Patient/p1"), code={"text": "Low mood"})
    reason = {"reasonReference": [referral.hospital.ref("Condition/k1")]}
    await referral.order(code=PSYCHIATRY, **reason)
    ((_, missing),) = await referral.asked()
    assert missing.startswith("a screening or assessment")
    await referral.order(code=PSYCHIATRY, supportingInfo=[await referral.paper("d1")], **reason)
    assert (await referral.task())["status"] == "requested"
    assert await referral.inputs() == ["Condition", "DocumentReference"]
    payor = {"beneficiary": referral.hospital.ref("Patient/p1"), "payor": [{"display": "A payer"}]}
    await referral.hospital.put("Coverage/v1", status="active", **payor)
    await referral.order(code=PSYCHIATRY, insurance=[referral.hospital.ref("Coverage/v1")])
    assert await referral.inputs() == ["Condition", "DocumentReference", "Coverage"], "what the order names later follows"


@pytest.mark.parametrize("how", ["the question is done", "the referral is sent", "something is added to it"])
async def test_people_may_complete_it_or_send_it_as_it_is(referral, how):
    await referral.order(code=PSYCHIATRY)
    (question,) = await referral.world.find("Task", code=f"{COORDINATION}|complete-package")
    if how == "the question is done":
        for status in ("in-progress", "completed"):
            await referral.world.edit("Task", question["id"], status=status)
        await referral.world.react()
    elif how == "the referral is sent":
        await referral.set(status="requested")
    else:
        answers = {"resourceType": "QuestionnaireResponse", "id": "r1", "status": "completed"}
        answers["subject"] = referral.hospital.ref("Patient/p1")
        await referral.world.store.transact([Put(check(json.dumps(answers).encode()))], origin="client:desk")
        added = {"type": {"text": "PHQ-9"}, "valueReference": {"reference": "QuestionnaireResponse/r1"}}
        await referral.set(input=[added])
        assert (await referral.task())["input"] == [added]
    assert (await referral.history())[-1] == ("requested", "2.0")
    assert [status for status, _ in await referral.asked()] == ["completed" if "question" in how else "cancelled"]


async def test_a_draft_that_somebody_prepares_is_not_sent_by_the_hub(referral):
    await referral.order()
    order = (await referral.task())["focus"]
    draft = {"resourceType": "Task", "id": "mine", "status": "draft", "intent": "order", "focus": order}
    draft |= {"code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}}
    draft |= {"for": referral.hospital.ref("Patient/p1"), "identifier": [{**referral.number, "value": "mine"}]}
    await referral.world.store.transact([Put(check(json.dumps(draft).encode()))], origin="client:desk")
    await referral.consent("c1", "2026-03-02")
    assert (await referral.world.store.read("Task", "mine")).tree["status"] == "draft"
