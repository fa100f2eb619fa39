"""Every input is broken until checked: a clear OperationOutcome with the place, and nothing half written."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

JSON = {"Content-Type": "application/fhir+json"}
NESTED = b'{"a":' * 3000


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b'{"resourceType":"Patient",', 400, "line 1, column"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"[]", 400, "object"),
        (b"{}", 400, "resourceType"),
        (b'{"resourceType":"Nonsense"}', 400, "resourceType"),
        (b'{"resourceType":"Task"}', 400, "Task"),
        (b'{"resourceType":"Patient","colour":"red"}', 422, "colour"),
        (b'{"resourceType":"Patient","gender":"blue"}', 422, "Patient.gender"),
        (b'{"resourceType":"Patient","name":[]}', 422, "Patient.name"),
        (b'{"resourceType":"Patient","active":"true"}', 422, "Patient.active"),
        (b'{"resourceType":"Patient","birthDate":"2015-02-30"}', 422, "Patient.birthDate"),
        (b'{"resourceType":"Patient","active":true,"active":false}', 400, "twice"),
        (b'{"resourceType":"Patient","language":"a\\u0000"}', 400, "U+0000"),
        (b'{"resourceType":"Patient","name":[{"family":"\\ud83d"}]}', 400, "surrogate"),
        (b'{"resourceType":"Patient","deceasedBoolean":true,"deceasedDateTime":"2020"}', 422, "deceased"),
        (b'{"resourceType":"Patient","managingOrganization":{"reference":"Organization/nowhere"}}', 422, "managingOrganization"),
        (b'{"resourceType":"Patient","managingOrganization":{"reference":"Patient/x"}}', 422, "managingOrganization"),
        (b'{"resourceType":"Patient","text":{"status":"generated","div":"<div><script>1</script></div>"}}', 422, "script"),
        (NESTED, 400, "nested"),
    ],
)
async def test_a_broken_body_is_told_with_the_place_and_writes_nothing(http, body, status, told):
    answer = await http.post("/fhir/Patient", content=body, headers=JSON)
    assert answer.status_code == status
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    assert told in json.dumps(outcome["issue"])
    assert (await http.get("/fhir/Patient?_summary=count")).json()["total"] == 0


async def test_wrong_content_type_and_wrong_accept(http):
    assert (
        await http.post("/fhir/Patient", content=b"<Patient/>", headers={"Content-Type": "application/fhir+xml"})
    ).status_code == 415
    assert (await http.post("/fhir/Patient", content=b"{}")).status_code == 415
    assert (await http.get("/fhir/Patient", headers={"Accept": "application/fhir+xml"})).status_code == 406
    assert (await http.get("/fhir/Patient?_format=xml")).status_code == 406


async def test_a_body_over_the_limit_is_refused_also_in_pieces(http):
    async def pieces():
        for _ in range(30):
            yield b" " * 1000

    assert (await http.post("/fhir/Patient", content=b" " * 20_001, headers=JSON)).status_code == 413
    assert (await http.post("/fhir/Patient", content=pieces(), headers=JSON)).status_code == 413


async def test_addresses_that_lead_nowhere(http):
    for path, status in (
        ("Nonsense", 404),
        ("Patient/a/b", 404),
        ("Patient/..%2F..%2Fetc", 404),
        ("Patient/none", 404),
        ("Patient/x/Nonsense", 404),
    ):
        answer = await http.get(f"/fhir/{path}")
        assert answer.status_code == status, path
        assert answer.json()["resourceType"] == "OperationOutcome"
    assert (await http.delete("/fhir/Patient/x/_history")).status_code == 405
    assert (await http.put("/fhir/Patient/none", json={"resourceType": "Patient", "id": "none"}, headers=JSON)).status_code == 404


async def test_an_id_that_does_not_match_the_url(http):
    id = (await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)).json()["id"]
    answer = await http.put(f"/fhir/Patient/{id}", json={"resourceType": "Patient", "id": "other"}, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["expression"] == ["Patient.id"]


async def test_an_illegal_step_names_the_legal_ones_and_changes_nothing(http):
    task = {"resourceType": "Task", "status": "requested", "intent": "order"}
    made = (await http.post("/fhir/Task", json=task, headers=JSON)).json()
    answer = await http.put(f"/fhir/Task/{made['id']}", json=made | {"status": "completed"}, headers=JSON)
    assert answer.status_code == 422
    assert "accepted" in answer.json()["issue"][0]["diagnostics"]
    assert (await http.get(f"/fhir/Task/{made['id']}")).headers["ETag"] == 'W/"1"'
    request = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"display": "x"}}
    made = (await http.post("/fhir/ServiceRequest", json=request, headers=JSON)).json()
    done = await http.put(f"/fhir/ServiceRequest/{made['id']}", json=made | {"status": "completed"}, headers=JSON)
    assert done.status_code == 200
    again = await http.put(f"/fhir/ServiceRequest/{made['id']}", json=made | {"status": "active"}, headers=JSON)
    assert again.status_code == 422


async def test_what_others_refer_to_cannot_be_deleted(http):
    id = (await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)).json()["id"]
    condition = {"resourceType": "Condition", "subject": {"reference": f"Patient/{id}"}}
    assert (await http.post("/fhir/Condition", json=condition, headers=JSON)).status_code == 201
    answer = await http.delete(f"/fhir/Patient/{id}")
    assert answer.status_code == 409


async def test_a_reference_to_a_version_holds_nobody_back(http):
    condition = {"resourceType": "Condition", "subject": {"display": "x"}}
    id = (await http.post("/fhir/Condition", json=condition, headers=JSON)).json()["id"]
    told = {
        "resourceType": "Provenance",
        "target": [{"reference": f"Condition/{id}/_history/1"}],
        "recorded": "2026-03-02T15:00:00Z",
        "agent": [{"who": {"display": "x"}}],
    }
    made = (await http.post("/fhir/Provenance", json=told, headers=JSON)).json()
    found = (await http.get(f"/fhir/Provenance?_id={made['id']}&_include=*")).json()
    assert {entry["resource"]["id"] for entry in found["entry"]} == {id, made["id"]}
    assert (await http.delete(f"/fhir/Condition/{id}")).status_code == 204
    assert (await http.put(f"/fhir/Provenance/{made['id']}", json=made, headers=JSON)).status_code == 200, "its version is there"
    told["target"][0]["reference"] = f"Condition/{id}/_history/9"
    assert (await http.post("/fhir/Provenance", json=told, headers=JSON)).status_code == 422


async def test_a_tampered_page_link_is_refused(http):
    for _ in range(2):
        await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON)
    page = (await http.get("/fhir/Patient?_count=1")).json()
    url = next(link["url"] for link in page["link"] if link["relation"] == "next")
    assert (await http.get(url)).status_code == 200
    for broken in (url[:-2] + "AA", url.replace("_page=", "_page=A"), url.replace("/Patient?", "/Task?")):
        assert (await http.get(broken)).status_code == 400


async def test_what_is_not_supported_is_refused_and_not_ignored(http):
    answer = await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON | {"If-None-Exist": "colour=a"})
    assert answer.status_code == 400
    assert (await http.get("/fhir/Patient?_summary=count")).json()["total"] == 0


async def test_no_body_makes_a_500(http):
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    names = st.sampled_from(
        ["name", "id", "meta", "text", "extension", "contained", "birthDate", "link", "other", "_birthDate", "resourceType"]
    )
    trees = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    )
    bodies = []

    @settings(max_examples=120, suppress_health_check=list(HealthCheck))
    @example(b'{"resourceType": "Patient", "contained": [{"resourceType": {"contained": "x"}}]}')
    @given(
        st.dictionaries(names, trees, max_size=5).map(lambda tree: json.dumps({"resourceType": "Patient"} | tree).encode())
        | st.binary(max_size=40)
    )
    def collect(body):
        bodies.append(body)

    collect()
    for body in bodies:
        answer = await http.post("/fhir/Patient", content=body, headers=JSON)
        assert answer.status_code in (201, 400, 422), body
