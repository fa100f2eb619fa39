"""$meta, $meta-add and $meta-delete over HTTP. https://hl7.org/fhir/R4/resource-operation-meta.html"""

import asyncio

from fhircm.fhir.query import parse_query
from fhircm.store.operations import Narrowing
from tests.rest.signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}
TAG, OTHER = {"system": "urn:tags", "code": "a"}, {"system": "urn:tags", "code": "Bee", "display": "B"}
SECRET = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
PROFILE = "http://example.org/fhir/StructureDefinition/p"


async def made(http, type="Patient", **meta):
    body = {"resourceType": type, "meta": meta} if meta else {"resourceType": type}
    return (await http.post(f"/fhir/{type}", json=body, headers=JSON)).json()


def given(**meta):
    return {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": meta}]}


def returned(answer):
    assert answer.status_code == 200, answer.text
    (parameter,) = answer.json()["parameter"]
    assert parameter["name"] == "return"
    return parameter.get("valueMeta", {})


async def test_the_meta_of_an_instance_by_get_and_post(http):
    resource = await made(http, tag=[TAG])
    for answer in (
        await http.get(f"/fhir/Patient/{resource['id']}/$meta"),
        await http.post(f"/fhir/Patient/{resource['id']}/$meta"),
    ):
        assert returned(answer) == resource["meta"]


async def test_the_meta_of_a_version(http):
    resource = await made(http, tag=[TAG])
    at = f"/fhir/Patient/{resource['id']}"
    await http.post(f"{at}/$meta-delete", json=given(tag=[TAG]), headers=JSON)
    assert returned(await http.get(f"{at}/_history/1/$meta")) == resource["meta"]
    assert "tag" not in returned(await http.get(f"{at}/_history/2/$meta"))
    assert (await http.get(f"{at}/_history/3/$meta")).status_code == 404
    for code in ("meta-add", "meta-delete"):
        refused = await http.post(f"{at}/_history/1/${code}", json=given(tag=[TAG]), headers=JSON)
        assert refused.status_code == 400
        assert "new version" in refused.json()["issue"][0]["diagnostics"]


async def test_the_labels_in_use_of_a_type_and_of_everything(http, anonymous):
    assert returned(await http.get("/fhir/$meta")) == {}
    for _ in range(3):
        await made(http, tag=[TAG, {"code": "a"}], profile=[PROFILE])
    gone = await made(http, tag=[{"code": "gone"}])
    await http.delete(f"/fhir/Patient/{gone['id']}")
    await made(http, tag=[OTHER], security=[SECRET])
    await made(http, "Device", tag=[{"system": "urn:else", "code": "a"}], profile=[PROFILE, f"{PROFILE}2|1.0"])
    of_patients = {"profile": [PROFILE], "tag": [{"code": "a"}, OTHER, TAG], "security": [SECRET]}
    assert returned(await http.get("/fhir/Patient/$meta")) == of_patients
    everything = returned(await http.get("/fhir/$meta"))
    assert everything["profile"] == [PROFILE, f"{PROFILE}2|1.0"]
    assert everything["tag"] == [{"code": "a"}, {"system": "urn:else", "code": "a"}, OTHER, TAG]
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"
    assert returned(await anonymous.get("/fhir/$meta")) == of_patients
    assert (await anonymous.get("/fhir/Device/$meta")).status_code == 403


async def test_labels_of_what_one_may_see_a_part_of(http, store_of_app):
    await made(http, tag=[TAG], profile=[PROFILE])
    await made(http, tag=[OTHER], security=[SECRET])
    (only,) = parse_query("Patient", [("_tag", "urn:tags|bee")]).conditions
    (found,) = await store_of_app.labels(Narrowing({"Patient": (only,)}))
    assert found.tree["meta"]["tag"] == [OTHER]


async def test_labels_are_sets_and_only_they_change(http):
    body = b'{"resourceType":"Observation","meta":{"tag":[{"system":"urn:tags","code":"a"}]},"status":"final", "code":{"text":"a"},"valueQuantity":{"value":2.50}}'
    id = (await http.post("/fhir/Observation", content=body, headers=JSON)).json()["id"]
    at = f"/fhir/Observation/{id}"
    answer = await http.post(f"{at}/$meta-add", json=given(tag=[TAG | {"display": "x"}, OTHER], profile=[PROFILE]), headers=JSON)
    meta = returned(answer)
    assert (meta["tag"], meta["profile"], meta["versionId"], answer.headers["ETag"]) == ([TAG, OTHER], [PROFILE], "2", 'W/"2"')
    read = await http.get(at)
    assert '"status":"final", "code":{"text":"a"},"valueQuantity":{"value":2.50}}' in read.text
    assert read.json()["meta"] == meta
    assert returned(await http.post(f"{at}/$meta-add", json=given(tag=[TAG]), headers=JSON))["versionId"] == "2", "nothing to do"
    less = returned(
        await http.post(f"{at}/$meta-delete", json=given(tag=[TAG, {"code": "none"}], profile=[PROFILE]), headers=JSON)
    )
    assert (less["tag"], "profile" in less, less["versionId"]) == ([OTHER], False, "3")
    assert (await http.get("/fhir/Observation?_tag=urn:tags|a&_summary=count")).json()["total"] == 0
    assert (await http.get("/fhir/Observation?_tag=urn:tags|bee&_summary=count")).json()["total"] == 1


async def test_changes_of_labels_at_the_same_time_all_count(http):
    resource = await made(http)
    at = f"/fhir/Patient/{resource['id']}"
    codes = [str(number) for number in range(8)]
    answers = await asyncio.gather(
        *(http.post(f"{at}/$meta-add", json=given(tag=[{"code": one}]), headers=JSON) for one in codes)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(tag["code"] for tag in returned(await http.get(f"{at}/$meta"))["tag"]) == codes


async def test_what_a_change_of_labels_needs(http, anonymous):
    resource = await made(http)
    at = f"/fhir/Patient/{resource['id']}"
    assert (await http.get(f"{at}/$meta-add")).status_code == 405
    assert (await http.post(f"{at}/$meta-add", json={"resourceType": "Parameters"}, headers=JSON)).status_code == 422
    assert (await http.post(f"{at}/$meta-add", json=given(tag=[{"colour": "red"}]), headers=JSON)).status_code == 422
    assert (await http.post(f"{at}/$meta-add", json=given(tag=[TAG]), headers=JSON | {"If-Match": 'W/"2"'})).status_code == 412
    assert (await http.post(f"{at}/$meta-add", json=given(tag=[TAG]), headers=JSON | {"If-Match": 'W/"1"'})).status_code == 200
    assert (await http.post("/fhir/Patient/none/$meta-add", json=given(tag=[TAG]), headers=JSON)).status_code == 404
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"
    assert (await anonymous.post(f"{at}/$meta-add", json=given(tag=[TAG]), headers=JSON)).status_code == 403


async def test_an_operation_is_found_only_where_it_is(http):
    for path in ("Patient/$meta-add", "$meta-delete", "Patient/x/$nonsense", "Nonsense/x/$meta", "Patient/a/b/$meta"):
        assert (await http.get(f"/fhir/{path}")).status_code == 404, path


async def test_an_operation_refuses_what_it_does_not_have(http):
    refused = await http.get("/fhir/Patient/x/$meta?colour=red")
    assert refused.status_code == 400
    assert "colour" in refused.text
    assert (await http.put("/fhir/Patient/x/$meta", json={}, headers=JSON)).status_code == 405


async def test_metadata_lists_them(anonymous):
    statement = (await anonymous.get("/fhir/metadata")).json()
    task = next(one for one in statement["rest"][0]["resource"] if one["type"] == "Task")
    assert {"name": "meta", "definition": "http://hl7.org/fhir/OperationDefinition/Resource-meta"} in task["operation"]
    assert {one["name"] for one in task["operation"]} >= {"meta", "meta-add", "meta-delete"}
    assert [one["name"] for one in statement["rest"][0]["operation"]].count("meta") == 1
