"""$meta over HTTP. https://hl7.org/fhir/R4/resource-operation-meta.html"""

JSON = {"Content-Type": "application/fhir+json"}
TAG = {"system": "urn:tags", "code": "a"}


async def test_the_meta_of_an_instance_by_get_and_post(http):
    made = (await http.post("/fhir/Patient", json={"resourceType": "Patient", "meta": {"tag": [TAG]}}, headers=JSON)).json()
    for answer in (await http.get(f"/fhir/Patient/{made['id']}/$meta"), await http.post(f"/fhir/Patient/{made['id']}/$meta")):
        assert answer.status_code == 200
        (returned,) = answer.json()["parameter"]
        assert (returned["name"], returned["valueMeta"]) == ("return", made["meta"])


async def test_an_operation_is_found_only_where_it_is_and_refuses_what_it_does_not_have(http):
    for path in ("$meta", "Patient/$meta", "Patient/x/$nonsense", "Nonsense/x/$meta", "Patient/a/b/$meta"):
        assert (await http.get(f"/fhir/{path}")).status_code == 404, path
    refused = await http.get("/fhir/Patient/x/$meta?colour=red")
    assert refused.status_code == 400
    assert "colour" in refused.text
    assert (await http.put("/fhir/Patient/x/$meta", json={}, headers=JSON)).status_code == 405


async def test_metadata_lists_it(anonymous):
    statement = (await anonymous.get("/fhir/metadata")).json()
    task = next(one for one in statement["rest"][0]["resource"] if one["type"] == "Task")
    assert {"name": "meta", "definition": "http://hl7.org/fhir/OperationDefinition/Resource-meta"} in task["operation"]
