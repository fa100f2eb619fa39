"""What can be asked about a referral over HTTP: its package, its loop, its candidates; and the appointment that is made for it."""

import pytest

from fhircm.fhir.systems import REFERRAL
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

SCT, LOINC = "http://snomed.info/sct", "http://loinc.org"
SDOH = "http://hl7.org/fhir/us/sdoh-clinicalcare/CodeSystem/SDOHCC-CodeSystemTemporaryCodes"
CAPACITY = "http://hl7.org/fhir/us/sdoh-clinicalcare/StructureDefinition/SDOHCC-ExtensionHealthcareServiceCapacityStatus"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
FULFILL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
CARDIOLOGY = [{"coding": [{"system": SCT, "code": "394579002"}]}]
PAPER = {"status": "current", "content": [{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}]}


class Desk:
    """A client that makes what a referral needs, and asks."""

    def __init__(self, http):  # noqa: F811
        self.http = http

    async def made(self, type, /, **members):
        answer = await self.http.post(f"/fhir/{type}", json={"resourceType": type, **members})
        assert answer.status_code == 201, answer.text
        return {"reference": f"{type}/{answer.json()['id']}"}

    async def ask(self, reference, operation, **query):
        answer = await self.http.get(f"/fhir/{reference['reference']}/${operation}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def begin(self, **order):
        home = {"postalCode": "60601", "city": "Chicago", "state": "IL"}
        spoken = [{"language": {"coding": [{"system": "urn:ietf:bcp:47", "code": "es-MX"}]}, "preferred": True}]
        told = {"gender": "female", "birthDate": "1951-04-12", "address": [home], "communication": spoken}
        self.patient = await self.made("Patient", **told)
        self.clinic = await self.made("Organization", name="Riverbend")
        self.hospital = await self.made("Organization", name="Lakeside")
        self.open = await self.made("DocumentReference", subject=self.patient, **PAPER)
        self.closed = await self.made(
            "DocumentReference", subject=self.patient, meta={"security": [{"system": ACT, "code": "PSY"}]}, **PAPER
        )
        asked = {"category": [{"coding": [{"system": SCT, "code": "3457005"}]}], "performerType": CARDIOLOGY[0]}
        asked |= {"requester": self.hospital, "performer": [self.clinic], "supportingInfo": [self.open, self.closed]}
        self.order = await self.made(
            "ServiceRequest", status="active", intent="order", subject=self.patient, **{**asked, **order}
        )
        asks = {"requester": self.hospital, "owner": self.clinic, "for": self.patient, "focus": self.order}
        self.number = {"system": REFERRAL, "value": "R1"}
        self.task = await self.made(
            "Task",
            status="requested",
            intent="order",
            code=FULFILL,
            authoredOn="2026-03-02T15:00:00Z",
            identifier=[self.number],
            **asks,
        )


@pytest.fixture
async def desk(http):  # noqa: F811
    return Desk(http)


def kinds(bundle):
    return [one["resource"]["resourceType"] for one in bundle["entry"]]


async def test_a_package_holds_what_its_recipient_may_see(desk):
    await desk.begin()
    bundle = await desk.ask(desk.order, "package")
    assert (bundle["type"], bundle["identifier"]) == ("collection", desk.number)
    assert kinds(bundle) == [
        "ServiceRequest",
        "Task",
        "Patient",
        "Organization",
        "Organization",
        "DocumentReference",
        "OperationOutcome",
    ]
    assert desk.closed not in bundle["entry"][0]["resource"]["supportingInfo"], "that there is something confidential is not told"
    assert bundle["entry"][-1]["resource"]["issue"][0]["code"] == "suppressed"
    denied = {"type": "deny", "actor": [{"role": {"coding": [{"system": ACT, "code": "IRCP"}]}, "reference": desk.clinic}]}
    scope = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]}
    denied |= {"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "DocumentReference"}]}
    said = {"scope": scope, "category": [{"coding": [{"system": LOINC, "code": "59284-0"}]}], "policyRule": {"text": "Privacy"}}
    await desk.made("Consent", status="active", patient=desk.patient, dateTime="2026-03-01", provision=denied, **said)
    assert "DocumentReference" not in kinds(await desk.ask(desk.order, "package"))
    other = {"resourceType": "Parameters", "parameter": [{"name": "recipient", "valueReference": desk.hospital}]}
    told = await desk.http.post(f"/fhir/{desk.order['reference']}/$package", json=other)
    assert "DocumentReference" in kinds(told.json()), "the consent speaks of the clinic"
    other["parameter"][0]["valueReference"] = {"reference": "Organization/nobody"}
    unknown = await desk.http.post(f"/fhir/{desk.order['reference']}/$package", json=other)
    assert (unknown.status_code, "is a Reference to an Organization" in unknown.text) == (422, True)


async def test_a_package_is_also_a_document_and_says_what_it_lacks(desk):
    await desk.begin(category=[{"coding": [{"system": SDOH, "code": "food-insecurity"}]}])
    bundle = await desk.ask(desk.order, "package", **{"as": "document"})
    assert kinds(bundle)[:2] == ["Composition", "ServiceRequest"]
    assert bundle["entry"][0]["resource"]["type"]["coding"][0]["code"] == "57133-1"
    issues = [one["diagnostics"] for one in bundle["entry"][-1]["resource"]["issue"]]
    assert any(one.startswith("The package lacks the patient's consent to the release") for one in issues)
    checked = await desk.http.post("/fhir/Bundle/$validate", json=bundle)
    errors = [one for one in checked.json()["issue"] if one["severity"] in ("error", "fatal")]
    assert errors == []
    wrong = await desk.http.get(f"/fhir/{desk.order['reference']}/$package?as=letter")
    assert (wrong.status_code, wrong.json()["issue"][0]["diagnostics"]) == (422, "'as' is collection or document")


async def test_an_appointment_that_an_operation_makes_is_in_the_loop(desk):
    await desk.begin()
    when = [{"name": "start", "valueInstant": "2026-03-05T15:00:00Z"}, {"name": "end", "valueInstant": "2026-03-05T15:30:00Z"}]
    answer = await desk.http.post(
        f"/fhir/{desk.task['reference']}/$schedule", json={"resourceType": "Parameters", "parameter": when}
    )
    assert (answer.status_code, answer.json()["resourceType"], answer.json()["status"]) == (200, "Appointment", "booked")
    note = {"type": {"coding": [{"system": LOINC, "code": "11488-4"}]}, "context": {"related": [{"identifier": desk.number}]}}
    await desk.made("DocumentReference", subject=desk.patient, **PAPER, **note)
    stranger = await desk.made("Patient")
    await desk.made("DocumentReference", subject=stranger, **PAPER, **note)
    bundle = await desk.ask(desk.order, "loop")
    assert kinds(bundle) == ["ServiceRequest", "Appointment", "DocumentReference", "Task"], "the stranger's paper is not told"
    assert bundle["identifier"] == desk.number
    again = await desk.http.post(
        f"/fhir/{desk.task['reference']}/$schedule", json={"resourceType": "Parameters", "parameter": when}
    )
    assert again.status_code == 409
    assert "$reschedule" in again.json()["issue"][0]["diagnostics"]


async def test_candidates_are_ranked_and_each_rank_has_its_reasons(desk):
    await desk.begin()

    async def service(name, capacity=None, **members):
        told = [{"url": "capacityStatus", "valueCodeableConcept": {"coding": [{"system": SDOH, "code": capacity}]}}]
        extension = {"extension": [{"url": CAPACITY, "extension": told}]} if capacity else {}
        await desk.made("HealthcareService", name=name, specialty=CARDIOLOGY, **extension, **members)

    near = await desk.made("Location", name="Near", address={"postalCode": "60601", "city": "Chicago", "state": "IL"})
    far = await desk.made("Location", name="Far", address={"postalCode": "94102", "city": "San Francisco", "state": "CA"})
    spanish = [{"coding": [{"system": "urn:ietf:bcp:47", "code": "es"}]}]
    children = [{"code": {"coding": [{"system": SCT, "code": "67822003"}]}}]
    men = [{"code": {"coding": [{"system": SCT, "code": "248153007"}]}}]
    adults = [{"code": {"coding": [{"system": SCT, "code": "133936004"}]}}]
    hours = [{"daysOfWeek": ["mon"], "allDay": True}]
    away = [{"description": "Holidays", "during": {"start": "2020-01-01", "end": "2099-01-01"}}]
    await service("best", "capacity", location=[near], communication=spanish, availableTime=hours, eligibility=adults)
    await service("waits", "waitlist", location=[near])
    await service("silent", location=[far])
    await service("full", "no-capacity", location=[near])
    await service("elsewhere", "capacity", coverageArea=[far])
    await service("children", "capacity", eligibility=children)
    await service("men", "capacity", eligibility=men)
    await service("away", "capacity", notAvailable=away)
    await service("gone", "capacity", active=False)
    await desk.made("HealthcareService", name="other", specialty=[{"coding": [{"system": SCT, "code": "394587001"}]}])
    bundle = await desk.ask(desk.order, "candidates")
    assert [one["resource"]["name"] for one in bundle["entry"]] == ["best", "waits", "silent"]
    assert (bundle["total"], bundle["entry"][0]["search"]["score"]) == (3, 1.0)
    reasons = [one["valueString"] for one in bundle["entry"][0]["search"]["extension"]]
    assert "It has capacity" in reasons
    assert "It speaks the patient's language" in reasons
    whole = await desk.ask(desk.order, "candidates", unfit="true")
    against = {one["resource"]["name"]: one["search"] for one in whole["entry"][3:]}
    assert {name: found["extension"][0]["valueString"] for name, found in against.items()} == {
        "full": "It has no capacity",
        "elsewhere": "It does not cover the area where the patient lives",
        "children": "It does not take patients of this age",
        "men": "It does not take patients of this gender",
        "away": "It is closed at the time that is asked for",
    }
    assert {one["score"] for one in against.values()} == {0}
    assert len((await desk.ask(desk.order, "candidates", count="1"))["entry"]) == 1
    assert (await desk.http.get(f"/fhir/{desk.order['reference']}/$candidates?count=0")).status_code == 422
