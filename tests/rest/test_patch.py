"""JSON Patch. https://hl7.org/fhir/R4/http.html#patch and https://www.rfc-editor.org/rfc/rfc6902"""

import pytest

PATCH = {"Content-Type": "application/json-patch+json"}
JSON = {"Content-Type": "application/fhir+json"}


@pytest.fixture
async def url(http):
    body = b'{"resourceType":"Observation","status":"final","code":{"text":"a"},"valueQuantity":{"value":2.50,"unit":"kg"}}'
    made = await http.post("/fhir/Observation", content=body, headers=JSON)
    return f"/fhir/Observation/{made.json()['id']}"


async def test_a_part_changes_and_the_rest_stays_exact(http, url):
    operations = [
        {"op": "test", "path": "/status", "value": "final"},
        {"op": "replace", "path": "/status", "value": "amended"},
        {"op": "add", "path": "/note", "value": [{"text": "b"}]},
        {"op": "add", "path": "/note/-", "value": {"text": "c"}},
        {"op": "remove", "path": "/valueQuantity/unit"},
    ]
    answer = await http.patch(url, json=operations, headers=PATCH)
    assert (answer.status_code, answer.headers["ETag"]) == (200, 'W/"2"')
    assert '"value":2.50' in answer.text
    assert (answer.json()["status"], [note["text"] for note in answer.json()["note"]]) == ("amended", ["b", "c"])
    assert "unit" not in answer.json()["valueQuantity"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{}", 400),
        (b"[1]", 400),
        (b"nonsense", 400),
        (b'[{"op":"jump","path":"/a"}]', 400),
        (b'[{"op":"replace","path":"status","value":1}]', 400),
        (b'[{"op":"replace","path":"/no/such","value":1}]', 422),
        (b'[{"op":"remove","path":"/note/5"}]', 422),
        (b'[{"op":"test","path":"/status","value":"amended"}]', 409),
        (b'[{"op":"replace","path":"/status","value":"no-such-code"}]', 422),
        (b'[{"op":"remove","path":"/code"}]', 422),
        (b'[{"op":"replace","path":"/id","value":"other"}]', 422),
        (b'[{"op":"replace","path":"/resourceType","value":"Patient"}]', 422),
        (b'[{"op":"replace","path":"","value":null}]', 422),
    ],
)
async def test_a_patch_that_cannot_be_is_told_and_changes_nothing(http, url, content, status):
    answer = await http.patch(url, content=content, headers=PATCH)
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert (await http.get(url)).headers["ETag"] == 'W/"1"'


async def test_it_keeps_to_versions_types_and_the_state_machine(http, url):
    change = [{"op": "replace", "path": "/status", "value": "amended"}]
    assert (await http.patch(url, json=change, headers=PATCH | {"If-Match": 'W/"2"'})).status_code == 412
    assert (await http.patch(url, json=change, headers=PATCH | {"If-Match": 'W/"1"'})).status_code == 200
    assert (await http.patch(url, json=change, headers=JSON)).status_code == 415
    assert (await http.patch("/fhir/Observation/none", json=change, headers=PATCH)).status_code == 404
    task = {"resourceType": "Task", "status": "requested", "intent": "order"}
    made = (await http.post("/fhir/Task", json=task, headers=JSON)).json()
    done = [{"op": "replace", "path": "/status", "value": "completed"}]
    answer = await http.patch(f"/fhir/Task/{made['id']}", json=done, headers=PATCH)
    assert answer.status_code == 422
    assert "accepted" in answer.json()["issue"][0]["diagnostics"]
    assert (await http.get(f"/fhir/Task/{made['id']}")).headers["ETag"] == 'W/"1"'


async def test_what_matches_a_condition_is_changed(http):
    patient = {"resourceType": "Patient", "identifier": [{"value": "1"}]}
    await http.post("/fhir/Patient", json=patient, headers=JSON)
    change = [{"op": "add", "path": "/active", "value": True}]
    assert (await http.patch("/fhir/Patient?identifier=1", json=change, headers=PATCH)).json()["active"] is True
    assert (await http.patch("/fhir/Patient?identifier=2", json=change, headers=PATCH)).status_code == 404
    await http.post("/fhir/Patient", json=patient, headers=JSON)
    assert (await http.patch("/fhir/Patient?identifier=1", json=change, headers=PATCH)).status_code == 412
