"""A transition goes with its document: made of what the caller may see, taken by the other side, and refused with the place when it is wrong."""

import copy
import json
from base64 import b64decode

from fhircm.coordination.codes import own
from fhircm.coordination.transition.document import layout
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures
from tests.rest.signing import signed_in

from .conftest import SCT

OBSERVATION = "http://terminology.hl7.org/CodeSystem/observation-category"


async def leave(world):
    """Somebody leaves the hospital for a facility, with something on record."""
    patient = await world.lakeside.patient(birthDate="1941-05-06", identifier=[{"system": "urn:mrn", "value": "M1"}])
    at, about = world.lakeside, {"subject": world.lakeside.ref("Patient/p1")}
    await at.put("Practitioner/d", name=[{"text": "Dr Jane Doe"}])
    allergy = {"code": {"text": "Penicillin"}, "patient": at.ref("Patient/p1")}
    await at.put("AllergyIntolerance/a", **allergy)
    await at.put("AllergyIntolerance/never", **allergy, verificationStatus=status("entered-in-error"))
    await at.put("Condition/c", code={"coding": [{"system": SCT, "code": "84114007"}], "text": "Heart failure"}, **about, clinicalStatus=clinical())  # fmt: skip
    order = {"intent": "order", "dosageInstruction": [{"text": "40 mg in the morning"}], "requester": at.ref("Practitioner/d")}
    await at.put("MedicationRequest/m", status="active", medicationCodeableConcept={"text": "Furosemide"}, **order, **about)
    vital = [{"coding": [{"system": OBSERVATION, "code": "vital-signs"}]}]
    weight = {"value": 81.50, "unit": "kg"}
    await at.put("Observation/v", status="final", category=vital, code={"text": "Weight"}, effectiveDateTime="2026-03-02", valueQuantity=weight, **about)  # fmt: skip
    await at.stay(start="2026-02-27T09:00:00-06:00")
    stay = await at.stay(
        start="2026-02-27T09:00:00-06:00",
        end="2026-03-02T08:30:00-06:00",
        home=None,
        hospitalization={"dischargeDisposition": {"coding": [{"system": "http://www.nubc.org/patient-discharge", "code": "03"}]}},
    )
    await world.react()
    return patient, stay


def status(code):
    return {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification", "code": code}]}


def clinical():
    return {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]}


async def made(http, stay):  # noqa: F811
    answer = await http.get(f"/fhir/Encounter/{stay}/$transition-document")
    assert answer.status_code == 200, answer.text
    return answer.json()


def elsewhere(document):
    """The same document as another house would have made it: with ids and addresses of its own."""
    text = json.dumps(document).replace(document["entry"][1]["fullUrl"].partition("/Patient/")[0], "https://other.test/r4")
    for entry in document["entry"][1:]:
        text = text.replace(entry["resource"]["id"], entry["resource"]["id"][::-1])
    there = json.loads(text)
    there["identifier"]["value"] = "other"
    return there


def section(document, title):
    return next(one for one in document["entry"][0]["resource"]["section"] if one["title"] == title)


async def test_a_document_has_every_section_with_entries_or_a_reason(world, http):  # noqa: F811
    _, stay = await leave(world)
    document = await made(http, stay)
    composition = document["entry"][0]["resource"]
    assert [one["code"]["coding"][0]["code"] for one in composition["section"]] == [one.code["code"] for one in layout().sections]
    assert len(composition["section"]) == 15
    included = {one["fullUrl"] for one in document["entry"]}
    for one in composition["section"]:
        assert ("entry" in one) != ("emptyReason" in one)
        assert {entry["reference"] for entry in one.get("entry", [])} <= included
    assert "Penicillin" in section(document, "Allergies")["text"]["div"]
    assert len(section(document, "Allergies")["entry"]) == 1, "not what was entered in error"
    assert "81.5 kg" in section(document, "Vital signs")["text"]["div"]
    assert "Furosemide: active, 40 mg in the morning" in section(document, "Medications")["text"]["div"]
    assert section(document, "Immunizations")["emptyReason"]["coding"][0]["code"] == "unavailable"
    assert {one["resource"]["resourceType"] for one in document["entry"]} >= {
        "Practitioner",
        "Organization",
        "Encounter",
        "Patient",
    }
    again = await made(http, stay)
    assert again["identifier"] == document["identifier"]
    assert composition["identifier"] == document["identifier"]


async def test_what_the_caller_may_not_see_is_withheld(world, anonymous):  # noqa: F811
    _, stay = await leave(world)
    anonymous.headers["Authorization"] = (
        f"Bearer {await signed_in(anonymous, scope='system/Encounter.rs system/Patient.rs system/Person.rs')}"
    )
    document = await made(anonymous, stay)
    assert section(document, "Medications")["emptyReason"]["coding"][0]["code"] == "withheld"
    assert "Furosemide" not in str(document)


async def accepted(http, document):  # noqa: F811
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "document", "resource": document}]}
    return await http.post("/fhir/Bundle/$accept-document", json=parameters)


async def tasks(world, whole):
    (parent,) = [one for one in await world.find("Task") if own(one["code"]) == whole and one["status"] != "cancelled"]
    return parent, {own(one["code"]): one for one in await world.find("Task", part_of=f"Task/{parent['id']}")}


async def test_a_document_comes_back_and_both_sides_go_on(world, http):  # noqa: F811
    patient, stay = await leave(world)
    answer = await accepted(http, await made(http, stay))
    assert answer.status_code == 201, answer.text
    await world.react()
    _, sending = await tasks(world, "transition-of-care")
    assert sending["discharge-summary"]["status"] == "completed"
    assert sending["summary-acknowledged"]["status"] == "ready"
    taking, receiving = await tasks(world, "take-over")
    assert receiving.keys() == {"review-document", "medication-reconciliation", "summary-acknowledged"}
    (link,) = await world.find("DocumentReference")
    assert taking["focus"]["reference"] == f"DocumentReference/{link['id']}"
    assert link["subject"]["reference"] == f"Patient/{patient}"
    assert link["content"][0]["attachment"]["url"] == f"Bundle/{answer.json()['id']}"
    assert b64decode(link["content"][0]["attachment"]["data"]) == answer.content
    for state in ("in-progress", "completed"):
        await world.edit("Task", receiving["summary-acknowledged"]["id"], status=state)
    await world.react()
    whole, sending = await tasks(world, "transition-of-care")
    assert sending["summary-acknowledged"]["status"] == "completed"
    done, of = whole["extension"][0]["extension"][:2]
    assert (done["valueInteger"], of["valueInteger"]) == (2, 5)
    assert await world.again() == []


async def test_the_same_document_again_or_by_a_plain_create_changes_nothing_more(world, http):  # noqa: F811
    _, stay = await leave(world)
    document = await made(http, stay)
    first, second = await accepted(http, document), await accepted(http, document)
    assert (first.status_code, second.status_code, second.json()) == (201, 200, first.json())
    await world.react()
    assert len([one for one in await world.find("Task") if own(one["code"]) == "take-over"]) == 1
    plain = await http.post("/fhir/Bundle", json=elsewhere(document))
    assert plain.status_code == 201, plain.text
    await world.react()
    found = await world.find("DocumentReference")
    assert len({one["subject"]["reference"] for one in found}) == 1, "found by its number"
    assert len(found) == 2


async def test_a_patient_who_is_not_known_is_shown_to_a_human(world, http):  # noqa: F811
    _, stay = await leave(world)
    document = elsewhere(await made(http, stay))
    patient = next(one["resource"] for one in document["entry"] if one["resource"]["resourceType"] == "Patient")
    patient["identifier"] = [{"system": "urn:other", "value": "1"}]
    await accepted(http, document)
    await world.react()
    (asked,) = [one for one in await world.find("Task") if own(one["code"]) == "transition-document"]
    assert asked["reasonCode"]["text"] == "A transition document came for a patient who is not known here"
    assert await world.find("DocumentReference") == []


def without_a_section(document):
    del document["entry"][0]["resource"]["section"][1]


def with_neither(document):
    del section(document, "Immunizations")["emptyReason"]


def with_a_stranger(document):
    section(document, "Allergies")["entry"].append({"reference": "AllergyIntolerance/none"})


def without_its_patient(document):
    document["entry"] = [one for one in document["entry"] if one["resource"]["resourceType"] != "Patient"]


WRONG = [
    (without_a_section, "Bundle.entry[0].resource.section", "The section 'Allergies' (48765-2) must be there once"),
    (with_neither, "Bundle.entry[0].resource.section[4]", "A section needs entries, or the reason"),
    (with_a_stranger, "Bundle.entry[0].resource.section[1].entry[1]", "What a section lists must be in the Bundle"),
    (without_its_patient, "Bundle.entry[0].resource.subject", "The subject must be a Patient"),
    (lambda document: document.pop("identifier"), "Bundle.identifier", "A document needs Bundle.identifier"),
]


async def test_what_is_wrong_is_refused_with_the_place_on_every_way_in(world, http):  # noqa: F811
    _, stay = await leave(world)
    right = await made(http, stay)
    for spoil, place, words in WRONG:
        document = copy.deepcopy(right)
        spoil(document)
        for answer in (await accepted(http, document), await http.post("/fhir/Bundle", json=document)):
            assert answer.status_code == 422
            found = [(issue["expression"], issue["diagnostics"]) for issue in answer.json()["issue"]]
            assert any(at == [place] and words in said for at, said in found), found
    assert await world.find("Bundle") == []
