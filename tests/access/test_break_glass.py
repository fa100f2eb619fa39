"""Emergency access: with a reason, for a time, told to the privacy officer, reviewed."""

from datetime import timedelta

import pytest

from .world import ACT, LOINC, Someone, World, concept, ref

PHYSICIAN = Someone("er", "user/*.cruds", "Organization/clinic", "Practitioner/dr-clinic", ("clinician",))
SOCIAL_WORKER = Someone("sw", "user/*.cruds", "Organization/clinic", "Practitioner/dr-clinic", ("social-worker",))
OFFICER = Someone("privacy", "user/*.cruds", "Organization/hospital", "Practitioner/dr-hospital", ("privacy-officer",))
SYSTEM = Someone("machine", "system/*.cruds", "Organization/clinic")
WHY = {"resourceType": "Parameters", "parameter": [{"name": "reason", "valueString": "Unconscious in the emergency room"}]}


def people(clock):
    one = World(clock.now, None)
    for name in ("hospital", "clinic"):
        one.add("Organization", name, plain=True, name=name)
    for name in ("dr-hospital", "dr-clinic"):
        one.add("Practitioner", name, plain=True, name=[{"family": name}])
    for id in ("p", "q"):
        me = one.add("Patient", id, plain=True, birthDate="1950-01-01", identifier=[{"system": "urn:mrn", "value": id}])
        one.add("Condition", f"c-{id}", plain=True, subject=ref(me), code=concept("a"))
    one.add(
        "Observation",
        "secret",
        status="final",
        subject=ref("Patient/p"),
        code=concept("1"),
        meta={"security": [{"system": ACT, "code": "ETHUD"}]},
    )
    one.add(
        "Consent",
        "no",
        plain=True,
        status="active",
        scope=concept("patient-privacy", "http://terminology.hl7.org/CodeSystem/consentscope"),
        category=[concept("59284-0", LOINC)],
        patient=ref("Patient/p"),
        policyRule=concept("OPTOUT", ACT),
        provision={"type": "deny"},
    )
    return one.resources


@pytest.fixture
async def asked(asking, clock):
    async with asking(people(clock)) as of:
        yield of


async def test_it_opens_the_record_for_a_time_and_is_told(asked, clock):
    physician, officer = await asked(PHYSICIAN), await asked(OFFICER)
    reads = ["Patient/p", "Condition/c-p", "Observation/secret"]
    assert [(await physician.get(path)).status_code for path in reads] == [404, 404, 404]
    answer = await physician.post("Patient/p/$break-glass", WHY)
    assert answer.status_code == 201, answer.text
    assert [(await physician.get(path)).status_code for path in reads] == [200, 200, 200]
    assert (await physician.get("Patient/q")).status_code == 404, "it opens this record alone"
    task = (await officer.get("Task?code=break-glass")).json()["entry"][0]["resource"]
    assert task["reasonCode"]["text"] == "Unconscious in the emergency room"
    assert (task["requester"], task["for"]) == (ref("Practitioner/dr-clinic"), ref("Patient/p"))
    clock.advance(timedelta(hours=4, seconds=1))
    assert [(await physician.get(path)).status_code for path in reads] == [404, 404, 404], "no grace"
    for status in ("accepted", "in-progress", "completed"):
        task = (await officer.get(f"Task/{task['id']}")).json() | {"status": status}
        reviewed = await officer.http.put(f"/fhir/Task/{task['id']}", json=task, headers=officer.headers)
        assert reviewed.status_code == 200, reviewed.text


async def test_a_patient_without_an_id_is_named_by_identifier_and_birth_date(asked):
    physician = await asked(PHYSICIAN)
    identifier = {"name": "identifier", "valueIdentifier": {"system": "urn:mrn", "value": "q"}}
    for born, status in (("1950-01-02", 404), ("1950-01-01", 201)):
        parameters = [*WHY["parameter"], identifier, {"name": "birthDate", "valueDate": born}]
        answer = await physician.post("Patient/$break-glass", {**WHY, "parameter": parameters})
        assert answer.status_code == status, answer.text
    assert (await physician.get("Condition/c-q")).status_code == 200


@pytest.mark.parametrize("someone", [SOCIAL_WORKER, SYSTEM, OFFICER], ids=lambda one: one.name)
async def test_it_is_for_people_in_roles_that_have_it(asked, someone):
    assert (await (await asked(someone)).post("Patient/p/$break-glass", WHY)).status_code == 403


async def test_a_reason_is_needed_and_nobody_writes_the_task_that_opens_a_record(asked):
    physician = await asked(PHYSICIAN)
    short = {**WHY, "parameter": [{"name": "reason", "valueString": "because"}]}
    assert (await physician.post("Patient/p/$break-glass", short)).status_code == 400
    assert (await physician.post("Patient/p/$break-glass", {"resourceType": "Parameters"})).status_code == 422
    assert (await physician.post("Patient/none/$break-glass", WHY)).status_code == 404
    made = (await physician.post("Patient/q/$break-glass", WHY)).json()
    forged = {key: made[key] for key in made if key not in ("id", "meta")}
    assert (await physician.post("Task", forged)).status_code == 403
    longer = made | {"restriction": {"period": {"end": "2099-01-01"}}}
    answer = await physician.http.put(f"/fhir/Task/{made['id']}", json=longer, headers=physician.headers)
    assert answer.status_code == 403
