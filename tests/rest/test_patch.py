"""JSON Patch and FHIRPath Patch over HTTP.

https://hl7.org/fhir/R4/http.html#patch, https://www.rfc-editor.org/rfc/rfc6902 and https://hl7.org/fhir/R4/fhirpatch.html
"""

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
    assert (await http.patch(url, json=change, headers={"Content-Type": "application/json"})).status_code == 415
    assert (await http.patch(url, json=change, headers=JSON)).status_code == 400, "a FHIRPath Patch is a resource"
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


def fhirpath(*operations):
    """A FHIRPath Patch of operations, each as its type, path, and parts as they are in a Parameters resource."""
    listed = []
    for type, path, *parts in operations:
        named = [{"name": "type", "valueCode": type}, {"name": "path", "valueString": path}]
        listed.append({"name": "operation", "part": [*named, *parts]})
    return {"resourceType": "Parameters", "parameter": listed}


def value(**member):
    return {"name": "value", **member}


AMENDED = ("replace", "Observation.status", value(valueCode="amended"))


async def test_a_fhirpath_patch_changes_a_part_and_the_rest_stays_exact(http, url):
    note = ("add", "Observation", {"name": "name", "valueString": "note"}, value(valueAnnotation={"text": "b"}))
    unit = ("delete", "Observation.value.ofType(Quantity).unit")
    answer = await http.patch(url, json=fhirpath(AMENDED, note, unit), headers=JSON)
    assert (answer.status_code, answer.headers["ETag"]) == (200, 'W/"2"'), answer.text
    assert '"value":2.50' in answer.text
    assert (answer.json()["status"], answer.json()["note"], "unit" in answer.json()["valueQuantity"]) == (
        "amended",
        [{"text": "b"}],
        False,
    )
    assert (await http.get(url)).json() == answer.json()


async def test_a_fhirpath_patch_that_cannot_be_is_told_and_changes_nothing(http, url):
    nowhere = ("replace", "Observation.note[0].text", value(valueString="x"))
    refused = await http.patch(url, json=fhirpath(AMENDED, nowhere), headers=JSON)
    assert refused.status_code == 422
    assert refused.json()["issue"][0]["expression"] == ["Parameters.parameter[1]"]
    assert (await http.patch(url, json={"resourceType": "Patient"}, headers=JSON)).status_code == 400
    wrong = await http.patch(url, json=fhirpath(("replace", "Observation.status", value(valueCode="no-such-code"))), headers=JSON)
    assert (wrong.status_code, wrong.json()["issue"][0]["expression"]) == (422, ["Observation.status"])
    assert (await http.get(url)).headers["ETag"] == 'W/"1"'


async def test_a_fhirpath_patch_keeps_to_versions_and_conditions(http, url):
    assert (await http.patch(url, json=fhirpath(AMENDED), headers=JSON | {"If-Match": 'W/"2"'})).status_code == 412
    assert (await http.patch(url, json=fhirpath(AMENDED), headers=JSON | {"If-Match": 'W/"1"'})).status_code == 200
    finish = fhirpath(("replace", "Observation.status", value(valueCode="corrected")))
    assert (await http.patch("/fhir/Observation?status=amended", json=finish, headers=JSON)).json()["status"] == "corrected"
    assert (await http.patch("/fhir/Observation?status=amended", json=finish, headers=JSON)).status_code == 404


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_a_fhirpath_patch_in_a_bundle(http, url, kind):
    request = {"method": "PATCH", "url": url.removeprefix("/fhir/")}
    bundle = {"resourceType": "Bundle", "type": kind, "entry": [{"request": request, "resource": fhirpath(AMENDED)}]}
    answer = await http.post("/fhir", json=bundle, headers=JSON)
    assert (answer.status_code, answer.json()["entry"][0]["response"]["status"]) == (200, "200 OK"), answer.text
    assert (await http.get(url)).json()["status"] == "amended"


async def test_in_a_transaction_its_references_lead_to_the_other_entries(http, url):
    patient, known = "urn:uuid:11111111-1111-4111-8111-111111111111", {"resourceType": "Patient", "identifier": [{"value": "k"}]}
    id = (await http.post("/fhir/Patient", json=known, headers=JSON)).json()["id"]
    subject = ("add", "Observation", {"name": "name", "valueString": "subject"}, value(valueReference={"reference": patient}))
    performer = {"reference": "Patient?identifier=k"}
    who = ("add", "Observation", {"name": "name", "valueString": "performer"}, value(valueReference=performer))
    entries = [
        {"request": {"method": "PATCH", "url": url.removeprefix("/fhir/")}, "resource": fhirpath(subject, who)},
        {"request": {"method": "POST", "url": "Patient"}, "resource": {"resourceType": "Patient"}, "fullUrl": patient},
    ]
    answer = await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": entries}, headers=JSON)
    assert answer.status_code == 200, answer.text
    made = answer.json()["entry"][1]["response"]["location"].split("/")[-3]
    read = (await http.get(url)).json()
    assert (read["subject"], read["performer"]) == ({"reference": f"Patient/{made}"}, [{"reference": f"Patient/{id}"}])
    entries[0]["resource"] = fhirpath(("move", "Observation.performer", {"name": "source", "valueInteger": 0}))
    refused = await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": entries}, headers=JSON)
    assert (refused.status_code, refused.json()["issue"][0]["expression"]) == (422, ["Bundle.entry[0].resource.parameter[0]"])


async def test_metadata_tells_both_formats(anonymous):
    statement = (await anonymous.get("/fhir/metadata")).json()
    assert statement["patchFormat"] == ["application/json-patch+json", "application/fhir+json"]
