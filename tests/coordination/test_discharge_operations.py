"""The operations of discharge planning over HTTP, with the reactions of the hub between them: choices, offers, notices, hand-over."""

import json
from base64 import b64decode
from datetime import timedelta

import pytest

from fhircm.fhir.validation import check
from fhircm.store.operations import Put
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

from .conftest import REACTIONS, at
from .test_discharge import ALL, CODES, NUBC, Hospital, parts

BARRIER = {"coding": [{"system": CODES, "code": "barrier-authorisation"}]}
SNF = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/service-type", "code": "snf"}], "text": "Skilled nursing"}
PARTIES = ("oakwood", "pinecrest", "elmhurst")


class Called(Hospital):
    """A hospital whose people use the operations."""

    reactions = (*ALL[:1], *(one for one in REACTIONS if one[0] == "referral"))

    async def call(self, name, at=None, status=200, **said):
        kinds = {str: "String", bool: "Boolean"}
        parameter = []
        for key, values in said.items():
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, tuple):
                    parameter.append({"name": key, f"value{value[0]}": value[1]})
                elif isinstance(value, dict) and "provider" in value:
                    inner = [{"name": k, f"value{kinds.get(type(v), 'Reference')}": v} for k, v in value.items()]
                    parameter.append({"name": key, "part": inner})
                else:
                    kind = kinds.get(type(value)) or ("CodeableConcept" if "reference" not in value else "Reference")
                    parameter.append({"name": key, f"value{kind}": value})
        body = {"resourceType": "Parameters", **({"parameter": parameter} if parameter else {})}
        answer = await self.http.post(f"/fhir/{at or f'Encounter/{self.stay}'}/${name}", json=body)
        assert answer.status_code == status, answer.text
        await self.react()
        return answer.json()

    async def put(self, **tree):
        await self.store.transact([Put(check(json.dumps(tree).encode()))], origin="client:ward")
        await self.react()
        return {"reference": f"{tree['resourceType']}/{tree['id']}"}

    async def told(self, name, at=None):
        """What a read-only operation answers: its parameters by name, parts as dicts."""
        answer = await self.http.get(f"/fhir/{at or f'Encounter/{self.stay}'}/${name}")
        assert answer.status_code == 200, answer.text
        found = {}
        for one in answer.json()["parameter"]:
            value = (
                parts({"extension": [{"url": p["name"], **{k: v for k, v in p.items() if k != "name"}} for p in one["part"]]})
                if "part" in one
                else next(v for k, v in one.items() if k != "name")
            )
            found.setdefault(one["name"], []).append(value)
        return found


@pytest.fixture
async def called(http, rest_app, clock):  # noqa: F811
    clock.now = at("2026-03-02T10:00:00-06:00")
    made = Called(rest_app.state.store, clock)
    made.http = http
    await made.begin()
    await made.admit()
    return made


def disposition(code):
    return {"coding": [{"system": NUBC, "code": code}]}


async def test_who_expects_what_and_why_is_kept_and_slips_are_counted(called):
    nurse = await called.put(resourceType="Practitioner", id="rn", name=[{"text": "R. N."}])
    task = await called.call("expect-discharge", date=("DateTime", "2026-03-05"), disposition=disposition("01"), by=nurse)
    assert task["code"]["text"] == "Discharge planning"
    await called.call("expect-discharge", date=("DateTime", "2026-03-05"), disposition=disposition("01"), by=nurse)
    await called.call("expect-discharge", date=("DateTime", "2026-03-08"), reason="Waits for the authorisation")
    await called.call("expect-discharge", date=("DateTime", "2026-03-06"), disposition=disposition("06"))
    told = await called.told("discharge-plan")
    assert [one["date"] for one in told["expected"]] == ["2026-03-05", "2026-03-08", "2026-03-06"]
    assert told["expected"][0]["by"] == nurse
    assert told["expected"][1]["reason"] == "Waits for the authorisation"
    assert (told["slips"], told["disposition"]) == ([1], ["home-health"])
    plan = await called.plan()
    assert plan["restriction"]["period"]["end"] == "2026-03-06T23:59:59-06:00"
    due = {one["step"]: one["due"] for one in told["item"] if one["status"] == "ready"}
    assert (due["face-to-face"], due["choice"]) == ("2026-03-06T23:59:59-06:00", "2026-03-05T23:59:59-06:00")


async def test_an_impossible_expectation_is_refused_whole(called):
    before = await called.plan()
    for said, words in (
        ({}, "Say the expected 'date', the 'disposition', or both"),
        ({"date": ("DateTime", "2026-02-27")}, "before the day of the admission"),
        ({"date": ("DateTime", "2026-03")}, "must be a day or a moment"),
    ):
        assert words in json.dumps(await called.call("expect-discharge", status=422, **said))
        assert await called.plan() == before
    visit = await called.put(resourceType="Encounter", id="visit", status="in-progress", **{"class": {"code": "AMB"}})
    for name, said in (
        ("expect-discharge", {"date": ("DateTime", "2026-03-05")}),
        ("add-barrier", {"reason": BARRIER}),
        ("record-choice", {"noPreference": True}),
    ):
        refused = await called.call(name, at=visit["reference"], status=409, **said)
        assert "discharge-evaluation-request" in refused["issue"][0]["diagnostics"]


async def test_barriers_cost_days_each_counted_once(called):
    await called.call("expect-discharge", date=("DateTime", "2026-03-03"), disposition=disposition("03"))
    refused = await called.call("add-barrier", status=422, reason={"text": "waits"})
    assert "barrier-guardianship" in refused["issue"][0]["diagnostics"]
    await called.call("add-barrier", status=422, reason=BARRIER, due=("DateTime", "2026-03-01T09:00:00Z"))
    first = await called.call(
        "add-barrier", reason=BARRIER, text="The plan has not answered", due=("DateTime", "2026-03-04T17:00:00-06:00")
    )
    assert first["owner"]["display"] == "Lakeside"
    called.clock.now += timedelta(days=2)
    second = await called.call("add-barrier", reason={"coding": [{"system": CODES, "code": "barrier-transport"}]})
    called.clock.now += timedelta(days=1)
    for status in ("in-progress", "completed"):
        await called.edit("Task", first["id"], status=status, lastModified=called.clock.now.isoformat())
    await called.react()
    called.clock.now += timedelta(days=2)
    told = await called.told("discharge-plan")
    assert {one["title"]: one["days"] for one in told["barrier"]} == {
        "The plan has not answered": 3,
        "What keeps a patient in hospital": 3,
    }
    assert told["daysLost"] == [5]
    await called.lakeside.stay(start="2026-03-02T09:00:00-06:00", end="2026-03-07T11:00:00-06:00")
    await called.react()
    assert (await called.context.get("Task", second["id"])).tree["statusReason"]["text"] == "The patient has left"


async def providers(called):
    """Three nursing facilities: two where the patient lives, one far away."""
    await called.lakeside.patient(birthDate="1990-05-01", address=[{"postalCode": "60601", "state": "IL"}])
    for name, code in zip(PARTIES, ("60644", "60622", "10001"), strict=True):
        await called.put(resourceType="Organization", id=name, name=name.title())
        await called.put(
            resourceType="Location", id=name, address={"postalCode": code, "state": "IL" if code[0] == "6" else "NY"}
        )
        await called.put(
            resourceType="HealthcareService", id=name, active=True, name=name.title(), type=[SNF],
            providedBy={"reference": f"Organization/{name}"}, location=[{"reference": f"Location/{name}"}],
        )  # fmt: skip
    await called.put(
        resourceType="MeasureReport", id="stars", status="complete", type="summary", measure="http://cms.test/Measure/stars",
        reporter={"reference": "Organization/oakwood"}, period={"start": "2025-01-01", "end": "2025-12-31"},
    )  # fmt: skip
    return [{"reference": f"HealthcareService/{name}"} for name in PARTIES]


async def test_a_patient_is_offered_providers_chooses_and_their_answers_are_compared(called):
    oakwood, pinecrest, elmhurst = await providers(called)
    await called.call("expect-discharge", date=("DateTime", "2026-03-06"), disposition=disposition("03"))
    refused = await called.call("record-choice", status=409, choice=pinecrest)
    assert "offer them first" in refused["issue"][0]["diagnostics"]
    offered = await called.call("offer-choices", service=SNF)
    assert [one["item"]["display"] for one in offered["entry"]] == ["Oakwood", "Pinecrest"], "in the patient's area"
    assert offered["entry"][0]["extension"][0]["extension"][0]["valueReference"]["reference"] == "MeasureReport/stars"
    told = {"provider": pinecrest, "interest": "The hospital owns a share", "network": True, "quality": "4 of 5 stars"}
    offered = await called.call("offer-choices", service=SNF, candidate=[told, {"provider": oakwood}])
    assert parts(offered["entry"][0]["extension"][0])["interest"] == "The hospital owns a share"
    rn = {"reference": "Practitioner/rn"}
    assert "RelatedPerson who speaks" in json.dumps(await called.call("record-choice", status=422, choice=pinecrest, by=rn))
    assert "choice" in await called.open()
    first = await called.call("record-choice", choice=oakwood)
    chosen = await called.call("record-choice", choice=[pinecrest, oakwood, elmhurst], reason="Near my daughter")
    assert [one["item"]["reference"] for one in chosen["entry"]] == [one["reference"] for one in (pinecrest, oakwood, elmhurst)]
    assert (await called.context.get("List", first["id"])).tree["status"] == "retired"
    item = (await called.items())["choice"]
    assert (item["status"], item["output"][0]["valueReference"]["reference"]) == ("completed", f"List/{first['id']}")

    order = await called.call("refer-to-chosen", respondBy=("DateTime", "2026-03-04T12:00:00-06:00"))
    assert [one["reference"] for one in order["performer"]] == [one["reference"] for one in (pinecrest, oakwood, elmhurst)]
    await answered(called, order)
    told = await called.told("compare-offers", at=f"ServiceRequest/{order['id']}")
    assert [(one["provider"]["reference"].split("/")[1], one["answer"], one.get("rank")) for one in told["answer"]] == [
        ("oakwood", "offered", 2), ("elmhurst", "offered", 3), ("pinecrest", "declined", 1)
    ]  # fmt: skip
    best = told["answer"][0]
    assert (best["terms"], best["earliest"], best["hoursToAnswer"]) == ("A bed by the window", "2026-03-06T15:00:00Z", 3.0)
    assert told["refusals"] == [{"kind": "non-clinical", "reason": "No bed (1)"}]
    assert (told["offered"], told["declined"], told["waiting"]) == ([2], [1], [0])
    assert "acceptance" in await called.open(), "an offer is no acceptance before it is chosen"
    await called.call("choose", at=told["answer"][0]["task"]["reference"])
    assert (await called.items())["acceptance"]["status"] == "completed"


async def answered(called, order):
    """The answers of those who were asked: the Tasks that the request was given out as."""
    asked = {
        task["owner"]["reference"].split("/")[1]: task
        for task in await called.find("Task", focus=f"ServiceRequest/{order['id']}")
    }
    assert set(asked) == {"oakwood", "pinecrest", "elmhurst"}
    called.clock.now += timedelta(hours=3)
    period = ("Period", {"start": "2026-03-06T09:00:00-06:00"})
    await called.call("offer", at=f"Task/{asked['oakwood']['id']}", terms="A bed by the window", period=period)
    await called.call("offer", at=f"Task/{asked['elmhurst']['id']}")
    await called.call("decline", at=f"Task/{asked['pinecrest']['id']}", reason={"text": "No bed"})


async def test_a_notice_counts_when_it_is_signed(called):
    await called.call("expect-discharge", date=("DateTime", "2026-03-06"), disposition=disposition("01"))
    patient = called.lakeside.ref("Patient/p1")
    document = {
        "resourceType": "DocumentReference",
        "status": "current",
        "type": {"coding": [{"system": CODES, "code": "notice-important-message"}]},
        "subject": patient,
        "content": [{"attachment": {"url": "Binary/x"}}],
        "context": {"encounter": [{"reference": f"Encounter/{called.stay}"}]},
    }
    await called.put(id="imm", date="2026-03-02T12:00:00-06:00", **document)
    assert "important-message" in await called.open(), "nobody signed it"
    nurse = await called.put(resourceType="Practitioner", id="rn", name=[{"text": "R. N."}])
    await signed(called, "sig", "DocumentReference/imm", nurse)
    assert "important-message" in await called.open(), "a nurse does not sign for the patient"
    await signed(called, "sig2", "DocumentReference/imm", patient)
    first = (await called.items())["important-message"]
    assert (first["status"], first["output"][0]["valueReference"]["reference"]) == ("completed", "DocumentReference/imm")
    assert "important-message-copy" in await called.open(), "it is older than two days before the discharge"
    called.clock.now = at("2026-03-05T09:00:00-06:00")
    copy = {**document, "type": {"coding": [{"system": CODES, "code": "notice-important-message-copy"}]}}
    await called.put(id="copy", date="2026-03-05T09:00:00-06:00", **copy)
    assert (await called.items())["important-message-copy"]["status"] == "completed"


async def signed(called, id, target, who):
    signature = {"type": [{"code": "1.2.840.10065.1.12.1.7"}], "when": "2026-03-02T12:30:00Z", "who": who}
    agent = [{"who": who}]
    await called.put(
        resourceType="Provenance", id=id, target=[{"reference": target}], recorded="2026-03-02T12:30:00Z", agent=agent, signature=[signature]
    )  # fmt: skip


async def test_answers_that_are_signed_and_a_language_that_is_read_count(called):
    await called.lakeside.patient(
        birthDate="1990-05-01", communication=[{"language": {"coding": [{"code": "es"}]}, "preferred": True}]
    )
    await called.call("expect-discharge", date=("DateTime", "2026-03-03"), disposition=disposition("01"))
    patient, stay = called.lakeside.ref("Patient/p1"), {"reference": f"Encounter/{called.stay}"}
    signature = {
        "url": "http://hl7.org/fhir/StructureDefinition/questionnaireresponse-signature",
        "valueSignature": {"type": [{"code": "1.2.840.10065.1.12.1.1"}], "when": "2026-03-02T12:30:00Z", "who": patient},
    }
    form = {"resourceType": "QuestionnaireResponse", "status": "completed", "subject": patient, "encounter": stay}
    form["questionnaire"] = "https://fhircm.example/Questionnaire/notice-important-message|1"
    await called.put(id="plain", **form)
    assert "important-message" in await called.open()
    await called.put(id="signed", extension=[signature], **form)
    assert (await called.items())["important-message"]["status"] == "completed"
    document = {"resourceType": "DocumentReference", "status": "current", "subject": patient, "context": {"encounter": [stay]}}
    document["type"] = {"coding": [{"system": "http://loinc.org", "code": "74213-0"}]}
    await called.put(id="en", **document, content=[{"attachment": {"url": "Binary/x", "language": "en-US"}}])
    assert "instructions" in await called.open(), "the patient reads Spanish"
    await called.put(id="es", **document, content=[{"attachment": {"url": "Binary/x", "language": "es-MX"}}])
    assert (await called.items())["instructions"]["status"] == "completed"


async def test_who_is_under_observation_has_another_notice_and_a_plan_that_pays_none(called):
    await called.lakeside.stay("e2", start="2026-03-02T09:30:00-06:00", cls="OBSENC")
    await called.react()
    items = {
        task["instantiatesUri"].rpartition("#")[2]: task["restriction"]["period"]["end"]
        for task in await called.find(
            "Task", code=f"{CODES}|discharge-item", encounter=f"Encounter/{called.lakeside.id('Encounter/e2')}"
        )
    }
    assert items == {"expected-date": "2026-03-04T23:59:59-06:00", "observation-notice": "2026-03-03T21:30:00-06:00"}
    commercial = {"coding": [{"system": "https://nahdo.org/sopt", "code": "5"}]}
    await called.lakeside.put(
        "Coverage/c1",
        status="active",
        type=commercial,
        beneficiary=called.lakeside.ref("Patient/p1"),
        payor=[{"display": "Plan"}],
    )
    await called.react()
    opened = await called.find("Task", code=f"{CODES}|discharge-item", status="ready")
    assert {task["instantiatesUri"].rpartition("#")[2] for task in opened} == {"expected-date"}


async def test_the_hand_over_package_says_what_is_missing_and_is_sent(called):
    await called.call("expect-discharge", date=("DateTime", "2026-03-06"), disposition=disposition("03"))
    patient = called.lakeside.ref("Patient/p1")
    await called.lakeside.put("AllergyIntolerance/a1", patient=patient, code={"text": "Penicillin"})
    await called.lakeside.put(
        "MedicationRequest/m1", status="active", intent="order", subject=patient, medicationCodeableConcept={"text": "Furosemide"}
    )
    answer = (await called.http.get(f"/fhir/Encounter/{called.stay}/$handover-package")).json()
    assert "entry" in answer, answer
    types = [one["resource"]["resourceType"] for one in answer["entry"]]
    assert types[:3] == ["Composition", "Patient", "Encounter"]
    assert {"AllergyIntolerance", "MedicationRequest", "Task"} <= set(types)
    sections = {one["title"]: one for one in answer["entry"][0]["resource"]["section"]}
    assert "entry" in sections["Medications"]
    assert sections["Summary of the stay"]["emptyReason"]["coding"][0]["code"] == "unavailable"
    missing = sections["Missing"]["text"]["div"]
    assert "Summary of the stay: nothing is on record" in missing
    assert "Transport is arranged: not done" in missing
    assert all(one["fullUrl"].endswith(f"/{one['resource']['id']}") for one in answer["entry"])

    await called.put(resourceType="Organization", id="oakwood", name="Oakwood")
    sent = await called.call("send-handover", to={"reference": "Organization/oakwood"})
    assert (sent["resourceType"], sent["status"], sent["recipient"][0]["reference"]) == (
        "Communication",
        "in-progress",
        "Organization/oakwood",
    )
    assert "Missing: Summary of the stay: nothing is on record" in sent["payload"][0]["contentString"]
    document = (await called.http.get(f"/fhir/{sent['payload'][1]['contentReference']['reference']}")).json()
    kept = json.loads(b64decode(document["content"][0]["attachment"]["data"]))
    assert [one["resource"]["resourceType"] for one in kept["entry"]][:3] == ["Composition", "Patient", "Encounter"]
    assert (await called.items())["summary"]["status"] == "completed"
