"""$validate over HTTP: every issue with its place, also for what is no resource at all. https://hl7.org/fhir/R4/resource-operation-validate.html"""

import json

import pytest

from tests.rest.signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}
GOAL = {"resourceType": "Goal", "lifecycleStatus": "active", "description": {"text": "a"}, "subject": {"display": "x"}}
HUB_GOAL = "https://fhircm.example/StructureDefinition/goal"


@pytest.fixture
def validate(http):
    async def ask(path, body=None, **query):
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        answer = await http.post(f"/fhir/{path}/$validate", params=query, content=content, headers=JSON)
        assert answer.status_code == 200, answer.text
        assert answer.json()["resourceType"] == "OperationOutcome"
        return [(one["severity"], one["code"], (one.get("expression") or [None])[0]) for one in answer.json()["issue"]]

    return ask


def parameters(**values):
    listed = []
    for name, value in values.items():
        member = {dict: "resource"}.get(type(value), "valueCode" if name == "mode" else "valueUri")
        listed.append({"name": name, member: value})
    return {"resourceType": "Parameters", "parameter": listed}


FINE = [("information", "informational", None)]


async def test_what_is_right_is_told_to_be(validate):
    assert await validate("Goal", GOAL) == FINE
    assert await validate("Goal", parameters(resource=GOAL)) == FINE
    assert await validate("Goal", parameters(resource=GOAL, mode="create")) == FINE
    assert await validate("Goal", parameters(resource=GOAL, mode="profile", profile=HUB_GOAL)) == FINE


async def test_every_issue_is_told_with_its_place(validate):
    broken = {**GOAL, "colour": "red", "startDate": "no date", "priority": {"coding": [{"display": 3}]}}
    del broken["subject"]
    for body in (broken, parameters(resource=broken)):
        found = await validate("Goal", body)
        assert {place for severity, _, place in found if severity == "error"} == {
            "Goal",
            "Goal.subject",
            "Goal.startDate",
            "Goal.priority.coding[0].display",
        }
        assert ("information", "incomplete", None) in found  # the rest was not looked at, and that is told
    found = await validate("Goal", {**GOAL, "startDate": "2026-02-30", "target": [{"detailInteger": 1}]})
    assert sorted(place for _, _, place in found) == ["Goal.startDate", "Goal.target[0]"]


async def test_more_issues_than_a_refusal_lists_are_all_told(validate):
    many = {**GOAL, "note": [{"text": "a", "time": "2026-02-30T00:00:00Z"} for _ in range(120)]}
    assert len(await validate("Goal", many)) == 120
    assert len(await validate("Goal", {**GOAL, "note": [{"text": 1} for _ in range(120)]})) == 121


@pytest.mark.parametrize("body", [{}, {"resourceType": 3}, {"resourceType": "Nonsense"}, {"resourceType": "Patient"}])
async def test_what_is_no_such_resource_is_an_issue(validate, body):
    assert await validate("Goal", body) == [("error", "structure", "resourceType")]
    assert await validate("Goal", parameters(resource=body)) == [("error", "structure", "resourceType")]


async def test_what_is_not_json_and_a_call_that_is_wrong_are_refused(http):
    for body in (b"{", b"[1]", b"<Goal/>"):
        assert (await http.post("/fhir/Goal/$validate", content=body, headers=JSON)).status_code == 400, body
    assert (await http.post("/fhir/Goal/$validate", headers=JSON)).status_code == 400
    assert (await http.post("/fhir/Goal/$validate?mode=other", json=GOAL, headers=JSON)).status_code == 400
    assert (await http.post("/fhir/Goal/$validate?mode=profile", json=GOAL, headers=JSON)).status_code == 400
    wrong = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": GOAL, "colour": 1}]}
    assert (await http.post("/fhir/Goal/$validate", json=wrong, headers=JSON)).status_code == 422
    assert (
        await http.post("/fhir/Goal/$validate", json={"resourceType": "Parameters", "parameter": 1}, headers=JSON)
    ).status_code == 422
    assert (await http.post("/fhir/$validate", json=GOAL, headers=JSON)).status_code == 404


async def test_profiles_that_are_claimed_and_that_are_asked_for(validate, http):
    bare = {key: value for key, value in GOAL.items() if key != "lifecycleStatus"} | {"lifecycleStatus": "active"}
    task = {"resourceType": "Task", "status": "ready", "intent": "plan"}
    referral = "https://fhircm.example/StructureDefinition/referral-task"
    found = await validate("Task", task, profile=referral)
    assert ("error", "required", "Task.focus") in found
    assert ("error", "value", "Task.intent") in found
    assert await validate("Task", {**task, "meta": {"profile": [referral]}}) == found
    assert await validate("Task", task) == FINE
    assert await validate("Goal", bare, profile=referral) == [("error", "structure", "Goal")]
    answer = await http.post("/fhir/Goal/$validate?profile=https://elsewhere.example/x", json=GOAL, headers=JSON)
    (issue,) = answer.json()["issue"]
    assert (issue["severity"], issue["code"]) == ("error", "not-found")
    assert HUB_GOAL in issue["diagnostics"]
    assert "elsewhere" in issue["diagnostics"]
    claimed = await validate("Goal", {**GOAL, "meta": {"profile": ["https://elsewhere.example/x"]}})
    assert claimed == [("information", "informational", "Goal.meta.profile")]


async def test_a_write_is_rehearsed_and_not_done(validate, http):
    made = (await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)).json()
    goal = {**GOAL, "subject": {"reference": f"Patient/{made['id']}"}}
    nowhere = {**GOAL, "subject": {"reference": "Patient/nowhere"}}
    assert await validate("Goal", goal, mode="create") == FINE
    assert await validate("Goal", nowhere, mode="create") == [("error", "not-found", "Goal.subject")]
    assert await validate("Goal", nowhere) == FINE
    assert (await http.get("/fhir/Goal?_summary=count")).json()["total"] == 0
    patient = f"Patient/{made['id']}"
    assert await validate(patient, made, mode="update") == FINE
    assert await validate(patient, {**made, "id": "other"}, mode="update") == [("error", "structure", "Patient.id")]
    assert await validate("Patient", {"resourceType": "Patient"}, mode="update") == [("error", "structure", "Patient.id")]
    unknown = {"resourceType": "Patient", "id": "unknown"}
    assert await validate("Patient", unknown, mode="update") == [("error", "not-found", None)]
    assert (await http.get(f"/fhir/{patient}")).json()["meta"]["versionId"] == "1"


async def test_whether_a_delete_is_forbidden(validate, http):
    made = (await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)).json()
    patient = f"Patient/{made['id']}"
    assert await validate(patient, mode="delete") == FINE
    goal = {**GOAL, "subject": {"reference": patient}}
    await http.post("/fhir/Goal", json=goal, headers=JSON)
    assert await validate(patient, parameters(mode="delete")) == [("error", "conflict", None)]
    assert await validate("Patient/unknown", mode="delete") == [("error", "not-found", None)]
    assert await validate("Patient", mode="delete") == [("error", "not-supported", None)]
    assert (await http.get(f"/fhir/{patient}")).status_code == 200


async def test_what_is_stored_is_validated_too(http):
    task = {"resourceType": "Task", "status": "ready", "intent": "plan"}
    made = (await http.post("/fhir/Task", json=task, headers=JSON)).json()
    referral = "https://fhircm.example/StructureDefinition/referral-task"
    answer = await http.get(f"/fhir/Task/{made['id']}/$validate", params={"profile": referral})
    assert answer.status_code == 200
    assert "Task.focus" in {one["expression"][0] for one in answer.json()["issue"]}
    assert (await http.get("/fhir/Task/unknown/$validate")).status_code == 404
    body = (await http.post(f"/fhir/Task/{made['id']}/$validate", headers=JSON)).json()
    assert [one["diagnostics"] for one in body["issue"]] == ["All OK"]


async def test_who_may_not_write_learns_nothing_by_rehearsing(validate, anonymous, http):
    made = (await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)).json()
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"
    assert await validate(f"Patient/{made['id']}", mode="delete") == [("error", "forbidden", None)]
    assert await validate("Patient/unknown", mode="delete") == [("error", "forbidden", None)]
    assert await validate("Goal", GOAL, mode="create") == [("error", "forbidden", None)]
    assert (await anonymous.get("/fhir/Goal/x/$validate")).status_code == 403
