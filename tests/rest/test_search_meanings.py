"""What each modifier, prefix and special parameter finds, and what it does not. https://hl7.org/fhir/R4/search.html"""

from datetime import timedelta

import pytest

JSON = {"Content-Type": "application/fhir+json"}
V2 = "http://terminology.hl7.org/CodeSystem/v2-0203"


@pytest.fixture
async def ids(http, clock):
    """Three patients whose data differ in one thing each, with observations, value sets and a list."""
    made = {}

    async def note(name, type, /, **members):
        answer = await http.post(f"/fhir/{type}", json={"resourceType": type, **members}, headers=JSON)
        assert answer.status_code == 201, answer.text
        made[name] = answer.json()["id"]
        return {"reference": f"{type}/{made[name]}"}

    kind = {"type": {"coding": [{"system": V2, "code": "MR"}]}, "system": "urn:mrn", "value": "A1"}
    clinic = await note("clinic", "Organization", name="Clinic")
    home = {"system": "phone", "value": "1"}
    ann = await note(
        "ann",
        "Patient",
        name=[{"family": "Ève", "given": ["Ann"]}],
        gender="female",
        birthDate="2000-05-10",
        identifier=[kind],
        managingOrganization=clinic,
    )
    bob = await note("bob", "Patient", name=[{"family": "Nevers"}], gender="male", birthDate="2000-06", telecom=[home])
    clock.advance(timedelta(days=1))
    await note(
        "cat",
        "Patient",
        name=[{"family": "eve"}],
        birthDate="2001",
        generalPractitioner=[{"identifier": {"system": "urn:npi", "value": "7"}}],
    )
    weight = {"coding": [{"system": "urn:s", "code": "W", "display": "Body weight"}]}
    heavy = await note(
        "heavy",
        "Observation",
        status="final",
        code=weight,
        subject=ann,
        valueQuantity={"value": 100, "system": "urn:u", "code": "kg", "unit": "kilo"},
    )
    await note(
        "light",
        "Observation",
        status="amended",
        code={"text": "weight of body"},
        subject=bob,
        valueQuantity={"value": 50.0, "system": "urn:u", "code": "g"},
    )
    for name, url in (("deep", "http://e/a/b/c"), ("high", "http://e/a"), ("else", "http://e/ab")):
        await note(name, "ValueSet", status="active", url=url)
    await note("list", "List", status="current", mode="working", entry=[{"item": ann}, {"item": heavy}])
    return made


FOUND = {
    "Patient?family=eve": "ann cat",
    "Patient?family=EV": "ann cat",
    "Patient?family:exact=eve": "cat",
    "Patient?family:contains=eve": "ann bob cat",
    "Patient?gender=MALE": "bob",
    "Patient?gender:not=male": "ann cat",
    "Patient?gender:missing=true": "cat",
    "Patient?gender:missing=false": "ann bob",
    "Patient?identifier=urn:mrn|A1": "ann",
    "Patient?identifier=a1": "",
    "Patient?identifier=|A1": "",
    "Patient?identifier=urn:mrn|": "ann",
    f"Patient?identifier:of-type={V2}|MR|A1": "ann",
    f"Patient?identifier:of-type={V2}|MR|A2": "",
    "Patient?general-practitioner:identifier=urn:npi|7": "cat",
    "Patient?gender=male,female": "ann bob",
    "Patient?gender=male&gender=female": "",
    "Observation?code=w": "heavy",
    "Observation?code:text=body": "heavy",
    "Observation?code:text=weight": "light",
    "Observation?subject:Patient={ann}": "heavy",
    "Observation?subject=Patient/{bob}": "light",
    "Observation?subject.name=eve": "heavy",
    "Observation?subject:Patient.organization.name=clin": "heavy",
    "ValueSet?url=http://e/a": "high",
    "ValueSet?url:below=http://e/a": "deep high",
    "ValueSet?url:above=http://e/a/b/c/d": "deep high",
    "Patient?birthdate=2000": "ann bob",
    "Patient?birthdate=2000-06-01": "",
    "Patient?birthdate=ne2000-06": "ann cat",
    "Patient?birthdate=gt2000-06": "cat",
    "Patient?birthdate=gt2000-06-15": "bob cat",
    "Patient?birthdate=lt2000-06-15": "ann bob",
    "Patient?birthdate=ge2000-06": "bob cat",
    "Patient?birthdate=le2000-05-10": "ann",
    "Patient?birthdate=sa2000-06-15": "cat",
    "Patient?birthdate=eb2000-06-15": "ann",
    "Patient?birthdate=ap2000-05": "ann bob",
    "Observation?value-quantity=100": "heavy",
    "Observation?value-quantity=100.0": "heavy",
    "Observation?value-quantity=gt50": "heavy",
    "Observation?value-quantity=lt100||g": "light",
    "Observation?value-quantity=100|urn:u|kg": "heavy",
    "Observation?value-quantity=100|urn:u|g": "",
    "Observation?value-quantity=ap95": "heavy",
    "Patient?_id={ann},{bob}": "ann bob",
    "Patient?_id:not={ann}": "bob cat",
    "Patient?_lastUpdated=gt2026-03-02": "cat",
    "Patient?_lastUpdated=2026-03-02": "ann bob",
    "Patient?_has:Observation:subject:status=final": "ann",
    "Patient?_list={list}": "ann",
    "Observation?_list={list}": "heavy",
    "Observation?code=w&_include=Observation:subject": "heavy ann",
    "Observation?code=w&_include=Observation:subject&_include:iterate=Patient:organization": "heavy ann clinic",
    "Patient?_id={ann}&_revinclude=Observation:subject": "ann heavy",
    "Organization?_revinclude=Patient:organization&_revinclude:iterate=Observation:subject": "clinic ann heavy",
}  # fmt: skip


async def test_what_is_found(http, ids):
    names = {id: name for name, id in ids.items()}
    for asked, expected in FOUND.items():
        answer = await http.get("/fhir/" + asked.format(**ids))
        assert answer.status_code == 200, (asked, answer.text)
        found = {names[entry["resource"]["id"]] for entry in answer.json().get("entry", ())}
        assert found == set(expected.split()), asked


async def test_the_order_in_which_it_is_found(http, ids):
    names = {id: name for name, id in ids.items()}
    orders = {
        "birthdate": "ann bob cat",
        "-birthdate": "cat bob ann",
        "gender,-_lastUpdated": "ann bob cat",
        "-_lastUpdated,-family": "cat bob ann",
    }
    for sort, expected in orders.items():
        found = (await http.get(f"/fhir/Patient?_sort={sort}")).json()["entry"]
        assert [names[entry["resource"]["id"]] for entry in found] == expected.split(), sort


async def test_totals_are_counted_when_they_are_asked_for(http, ids):
    assert (await http.get("/fhir/Patient?_count=1&_total=accurate")).json()["total"] == 3
    assert "total" not in (await http.get("/fhir/Patient?_count=1")).json()
    assert "total" not in (await http.get("/fhir/Patient?_count=1&_total=none")).json()
    assert (await http.get("/fhir/Patient?_count=0")).json()["total"] == 3
