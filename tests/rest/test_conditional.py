"""What a condition finds decides what is written. https://hl7.org/fhir/R4/http.html#ccreate"""

import pytest

JSON = {"Content-Type": "application/fhir+json"}
SYSTEM = "urn:example:mrn"


def patient(value, **members):
    return {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": value}], **members}


async def make(http, value, **members):
    return (await http.post("/fhir/Patient", json=patient(value, **members), headers=JSON)).json()


async def total(http, query=""):
    return (await http.get(f"/fhir/Patient?_summary=count&{query}")).json()["total"]


async def test_create_when_nothing_is_there(http):
    headers = JSON | {"If-None-Exist": f"identifier={SYSTEM}|1"}
    first = await http.post("/fhir/Patient", json=patient("1"), headers=headers)
    again = await http.post("/fhir/Patient", json=patient("1"), headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json(), again.headers["ETag"]) == (first.json(), 'W/"1"')
    await make(http, "1")
    several = await http.post("/fhir/Patient", json=patient("1"), headers=headers)
    assert several.status_code == 412
    assert several.json()["issue"][0]["code"] == "multiple-matches"
    assert await total(http) == 2


async def test_update_what_matches(http):
    url = f"/fhir/Patient?identifier={SYSTEM}|1"
    made = await http.put(url, json=patient("1"), headers=JSON)
    assert made.status_code == 201
    id = made.json()["id"]
    changed = await http.put(url, json=patient("1", active=True), headers=JSON)
    assert (changed.status_code, changed.json()["id"], changed.headers["ETag"]) == (200, id, 'W/"2"')
    other = await http.put(url, json=patient("1", id="other"), headers=JSON)
    assert (other.status_code, other.json()["issue"][0]["expression"]) == (400, ["Patient.id"])
    stale = await http.put(url, json=patient("1"), headers=JSON | {"If-Match": 'W/"1"'})
    assert stale.status_code == 412
    assert (await http.put(url, json=patient("1", id=id), headers=JSON | {"If-Match": 'W/"2"'})).status_code == 200
    unknown = f"/fhir/Patient?identifier={SYSTEM}|9"
    assert (await http.put(unknown, json=patient("9"), headers=JSON | {"If-Match": 'W/"2"'})).status_code == 412
    assert (await http.put(unknown, json=patient("9", id="mine"), headers=JSON)).status_code == 404, "ids are this server's"
    await make(http, "1")
    assert (await http.put(url, json=patient("1"), headers=JSON)).status_code == 412


async def test_delete_what_matches_but_never_several(http):
    url = f"/fhir/Patient?identifier={SYSTEM}|1"
    made = await make(http, "1")
    assert (await http.delete(url, headers={"If-Match": 'W/"7"'})).status_code == 412
    assert (await http.delete(url)).status_code == 204
    assert (await http.get(f"/fhir/Patient/{made['id']}")).status_code == 410
    assert (await http.delete(url)).status_code == 204, "nothing matches, so nothing is to do"
    for _ in range(2):
        await make(http, "1")
    assert (await http.delete(url)).status_code == 412
    assert await total(http) == 2


@pytest.mark.parametrize("criteria", ["", "colour=red", "_count=1", "identifier=a&_sort=_id", "identifier="])
async def test_a_condition_must_be_one(http, criteria):
    await make(http, "1")
    for answer in (
        await http.put(f"/fhir/Patient?{criteria}", json=patient("1"), headers=JSON),
        await http.delete(f"/fhir/Patient?{criteria}"),
        await http.patch(f"/fhir/Patient?{criteria}", content=b"[]", headers={"Content-Type": "application/json-patch+json"}),
        await http.post("/fhir/Patient", json=patient("1"), headers=JSON | {"If-None-Exist": criteria}),
    ):
        assert answer.status_code == 400, answer.text
    assert await total(http) == 1


async def test_what_may_not_be_searched_cannot_be_a_condition(anonymous):
    from .signing import signed_in

    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, 'app', 'system/Patient.cu')}"} | JSON
    answer = await anonymous.post("/fhir/Patient", json=patient("1"), headers=narrow | {"If-None-Exist": "identifier=a"})
    assert answer.status_code == 403
    assert (await anonymous.post("/fhir/Patient", json=patient("1"), headers=narrow)).status_code == 201
