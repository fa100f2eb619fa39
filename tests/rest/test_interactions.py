"""Each interaction over HTTP, on both databases. https://hl7.org/fhir/R4/http.html"""

import json

JSON = {"Content-Type": "application/fhir+json"}


async def post(http, resource, **headers):
    return await http.post(f"/fhir/{resource['resourceType']}", json=resource, headers=JSON | headers)


async def test_what_is_put_is_what_is_served_apart_from_id_and_meta(http):
    body = '{ "resourceType" : "Observation", "status":"final",\n "code":{"text":"Ünits"},"valueQuantity":{"value":2.50},"issued":"2020-01-01T00:00:00.120+01:00"}'
    made = await http.post("/fhir/Observation", content=body.encode(), headers=JSON)
    assert made.status_code == 201
    assert made.headers["Location"].endswith(f"/fhir/Observation/{made.json()['id']}/_history/1")
    read = await http.get(f"/fhir/Observation/{made.json()['id']}")
    assert read.headers["ETag"] == 'W/"1"'
    for kept in ('{ "resourceType" : "Observation"', '"value":2.50', "\n ", "2020-01-01T00:00:00.120+01:00", "Ünits"):
        assert kept in read.text


async def test_versions_are_kept_and_told(http):
    id = (await post(http, {"resourceType": "Patient", "gender": "male"})).json()["id"]
    second = await http.put(f"/fhir/Patient/{id}", json={"resourceType": "Patient", "id": id, "gender": "female"}, headers=JSON)
    assert (second.status_code, second.headers["ETag"]) == (200, 'W/"2"')
    assert (await http.get(f"/fhir/Patient/{id}/_history/1")).json()["gender"] == "male"
    history = (await http.get(f"/fhir/Patient/{id}/_history")).json()
    assert [entry["request"]["method"] for entry in history["entry"]] == ["PUT", "POST"]
    assert (await http.delete(f"/fhir/Patient/{id}")).status_code == 204
    assert (await http.get(f"/fhir/Patient/{id}")).status_code == 410
    assert (await http.get(f"/fhir/Patient/{id}/_history/3")).status_code == 410
    assert (await http.get(f"/fhir/Patient/{id}/_history/2")).status_code == 200


async def test_a_stale_if_match_changes_nothing(http):
    patient = (await post(http, {"resourceType": "Patient"})).json()
    url = f"/fhir/Patient/{patient['id']}"
    assert (await http.put(url, json=patient | {"active": True}, headers=JSON | {"If-Match": 'W/"1"'})).status_code == 200
    stale = await http.put(url, json=patient | {"active": False}, headers=JSON | {"If-Match": 'W/"1"'})
    assert stale.status_code == 412
    assert (await http.get(url)).json()["active"] is True
    assert (await http.put(url, json=patient, headers=JSON | {"If-Match": "x"})).status_code == 400


async def test_conditional_read(http):
    id = (await post(http, {"resourceType": "Patient"})).json()["id"]
    first = await http.get(f"/fhir/Patient/{id}")
    assert (await http.get(f"/fhir/Patient/{id}", headers={"If-None-Match": first.headers["ETag"]})).status_code == 304
    assert (await http.get(f"/fhir/Patient/{id}", headers={"If-None-Match": 'W/"9"'})).status_code == 200
    assert (
        await http.get(f"/fhir/Patient/{id}", headers={"If-Modified-Since": first.headers["Last-Modified"]})
    ).status_code == 304


async def test_prefer_return(http):
    minimal = await post(http, {"resourceType": "Patient"}, Prefer="return=minimal")
    assert (minimal.status_code, minimal.content) == (201, b"")
    told = await post(http, {"resourceType": "Patient"}, Prefer="return=OperationOutcome")
    assert told.json()["resourceType"] == "OperationOutcome"


async def test_search_finds_and_pages_without_gap_while_others_write(http):
    ids = {(await post(http, {"resourceType": "Patient", "gender": "male"})).json()["id"] for _ in range(5)}
    seen, url = [], "/fhir/Patient?gender=male&_count=2"
    while url:
        page = (await http.get(url)).json()
        seen += [entry["resource"]["id"] for entry in page["entry"]]
        await post(http, {"resourceType": "Patient", "gender": "male"})
        url = next((link["url"] for link in page["link"] if link["relation"] == "next"), None)
    assert len(seen) == len(set(seen)) == 5
    assert set(seen) == ids
    posted = await http.post("/fhir/Patient/_search", data={"_id": ",".join(ids), "_count": "1"})
    assert len(posted.json()["entry"]) == 1


async def test_an_unknown_parameter_is_refused_or_named(http):
    assert (await http.get("/fhir/Patient?colour=red")).status_code == 400
    lenient = (await http.get("/fhir/Patient?colour=red", headers={"Prefer": "handling=lenient"})).json()
    assert lenient["entry"][-1]["search"]["mode"] == "outcome"
    assert "colour" in lenient["entry"][-1]["resource"]["issue"][0]["diagnostics"]


async def test_metadata_tells_what_routes_and_needs_no_token(anonymous):
    statement = (await anonymous.get("/fhir/metadata")).json()
    task = next(one for one in statement["rest"][0]["resource"] if one["type"] == "Task")
    assert {one["code"] for one in statement["rest"][0]["interaction"]} == {
        "transaction",
        "batch",
        "history-system",
        "search-system",
    }
    assert {one["code"] for one in task["interaction"]} == {
        "patch",
        "history-type",
        "create",
        "read",
        "vread",
        "update",
        "delete",
        "history-instance",
        "search-type",
    }
    assert "owner" in {one["name"] for one in task["searchParam"]}
    configuration = (await anonymous.get("/fhir/.well-known/smart-configuration")).json()
    assert configuration["token_endpoint"] == "http://hub.example/oauth/token"


async def test_head_answers_as_get_without_a_body(http):
    id = (await post(http, {"resourceType": "Patient"})).json()["id"]
    head = await http.head(f"/fhir/Patient/{id}")
    assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", 'W/"1"')


async def test_bundles_are_spliced_from_the_stored_bytes(http):
    made = await http.post("/fhir/Observation", content=b'{"resourceType":"Observation","status":"final","code":{"text":"a"},"valueQuantity":{"value":1.00}}', headers=JSON)  # fmt: skip
    found = await http.get(f"/fhir/Observation?_id={made.json()['id']}")
    assert '"value":1.00' in found.text
    assert json.loads(found.text)["entry"][0]["search"]["mode"] == "match"
