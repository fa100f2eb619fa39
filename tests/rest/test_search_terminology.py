"""Searches that know what codes mean: :in, :not-in, :above and :below. https://hl7.org/fhir/R4/search.html#token"""

from urllib.parse import urlencode

from fhircm.store import terminology
from tests.operations.test_expand import COLOURS, GENDER, JSON, put, value_set
from tests.rest.signing import signed_in

GOAL_STATUS = "http://hl7.org/fhir/goal-status"


async def found(http, type, **query):
    answer = await http.get(f"/fhir/{type}?{urlencode(query)}")
    assert answer.status_code == 200, answer.text
    return sorted(one["resource"]["id"] for one in answer.json().get("entry", []))


async def refused(http, type, **query):
    answer = await http.get(f"/fhir/{type}?{urlencode(query)}")
    (issue,) = answer.json()["issue"]
    return answer.status_code, issue["code"], issue["diagnostics"]


def observation(code, system="urn:colours", **more):
    concept = {"coding": [{"system": system, "code": code}]} if code else {"text": "nothing coded"}
    return {"resourceType": "Observation", "status": "final", "code": concept, **more}


async def test_codes_of_a_value_set(http):
    red, blue, other, bare = [
        one["id"]
        for one in await put(http, observation("RED"), observation("blue"), observation("red", "urn:x"), observation(None))
    ]
    warm = value_set(
        {"system": "urn:colours", "filter": [{"property": "concept", "op": "is-a", "value": "warm"}]}, url="urn:warm"
    )
    _, own = await put(http, COLOURS, warm)
    for name in ("urn:warm", "urn:warm|1", f"ValueSet/{own['id']}"):
        assert await found(http, "Observation", **{"code:in": name}) == [red]
        assert await found(http, "Observation", **{"code:not-in": name}) == sorted([blue, other, bare])
    await put(http, value_set({"system": "urn:colours", "concept": [{"code": "blue"}]}, url="urn:cold"))
    assert await found(http, "Observation", **{"code:in": "urn:warm,urn:cold"}) == sorted([red, blue])
    assert await found(http, "Observation", **{"code:in": "urn:warm", "status": "amended"}) == []


async def test_the_value_set_is_as_it_is_now(http):
    (red,) = [one["id"] for one in await put(http, observation("red"))]
    system, _ = await put(http, COLOURS, value_set())
    assert await found(http, "Observation", **{"code:in": "urn:all-colours"}) == [red]
    changed = {**COLOURS, "id": system["id"], "concept": [{"code": "green"}]}
    await http.put(f"/fhir/CodeSystem/{system['id']}", json=changed, headers=JSON)
    assert await found(http, "Observation", **{"code:in": "urn:all-colours"}) == []


async def test_codes_that_have_no_system_in_the_resource(http):
    male, _, nobody = [
        one["id"]
        for one in await put(
            http, *({"resourceType": "Patient", **more} for more in ({"gender": "male"}, {"gender": "other"}, {}))
        )
    ]
    await put(
        http,
        value_set(
            {"system": "http://hl7.org/fhir/administrative-gender", "concept": [{"code": "male"}, {"code": "female"}]},
            url="urn:two",
        ),
    )
    assert await found(http, "Patient", **{"gender:in": "urn:two"}) == [male]
    assert nobody in await found(http, "Patient", **{"gender:not-in": "urn:two"})
    assert len(await found(http, "Patient", **{"gender:in": GENDER})) == 2


async def test_filters_ask_the_same_of_codes(http):
    warm, red, blue, bare = [
        one["id"] for one in await put(http, observation("warm"), observation("red"), observation("blue"), observation(None))
    ]
    await put(http, COLOURS, value_set({"system": "urn:colours", "concept": [{"code": "blue"}]}, url="urn:cold"))
    for filter, expected in (
        ("code in urn:cold", [blue]),
        ("code ni urn:cold", [warm, red, bare]),
        ("not (code in urn:cold) and code pr true", [warm, red, bare]),
        ("code ss urn:colours|warm", [warm, red]),
        ("code sb urn:colours|red or code in urn:cold", [warm, red, blue]),
    ):
        assert await found(http, "Observation", _filter=filter) == sorted(expected), filter


async def test_above_and_below_a_code(http):
    warm, red, blue = [one["id"] for one in await put(http, observation("warm"), observation("red"), observation("blue"))]
    await put(http, COLOURS)
    assert await found(http, "Observation", **{"code:below": "urn:colours|warm"}) == sorted([warm, red])
    assert await found(http, "Observation", **{"code:above": "urn:colours|red"}) == sorted([warm, red])
    assert await found(http, "Observation", **{"code:below": "urn:colours|red,urn:colours|blue"}) == sorted([red, blue])
    assert await found(http, "Observation", **{"code:below": "urn:colours|unheard-of"}) == []


async def test_above_and_below_a_code_of_a_required_binding(http):
    subject = {"reference": (await put(http, {"resourceType": "Patient"}))[0]["id"]}
    subject = {"reference": f"Patient/{subject['reference']}"}
    goals = [
        {"resourceType": "Goal", "lifecycleStatus": status, "description": {"text": "-"}, "subject": subject}
        for status in ("accepted", "on-hold", "rejected")
    ]
    accepted, held, rejected = [one["id"] for one in await put(http, *goals)]
    assert await found(http, "Goal", **{"lifecycle-status:below": f"{GOAL_STATUS}|accepted"}) == sorted([accepted, held])
    assert await found(http, "Goal", **{"lifecycle-status:above": f"{GOAL_STATUS}|on-hold"}) == sorted([accepted, held])
    assert await found(http, "Goal", **{"lifecycle-status:below": "rejected"}) == [rejected]


async def test_in_chains_and_from_the_other_side(http):
    (patient,) = [one["id"] for one in await put(http, {"resourceType": "Patient", "gender": "female"})]
    to = {"subject": {"reference": f"Patient/{patient}"}}
    red, _ = [one["id"] for one in await put(http, observation("red", **to), observation("blue"))]
    await put(http, COLOURS, value_set())
    assert await found(http, "Observation", **{"subject:Patient.gender:in": GENDER}) == [red]
    assert await found(http, "Observation", **{"patient.gender:not-in": GENDER}) == []
    assert await found(http, "Patient", **{"_has:Observation:patient:code:in": "urn:all-colours"}) == [patient]
    assert await found(http, "Patient", **{"_has:Observation:patient:code:below": "urn:colours|warm"}) == [patient]
    assert await found(http, "Patient", **{"_has:Observation:patient:code:below": "urn:colours|blue"}) == []


async def test_pages_and_totals(http):
    made = sorted([one["id"] for one in await put(http, *(observation("red") for _ in range(5)), observation("blue"))][:5])
    warm = value_set(
        {"system": "urn:colours", "filter": [{"property": "concept", "op": "is-a", "value": "warm"}]}, url="urn:warm"
    )
    await put(http, COLOURS, warm)
    page = (await http.get("/fhir/Observation", params={"code:in": "urn:warm", "_count": 2, "_total": "accurate"})).json()
    assert page["total"] == 5
    seen = [one["resource"]["id"] for one in page["entry"]]
    await put(http, observation("red"))
    while following := next((one["url"] for one in page["link"] if one["relation"] == "next"), None):
        page = (await http.get(following)).json()
        seen += [one["resource"]["id"] for one in page["entry"]]
    assert sorted(seen) == made
    assert (await http.get("/fhir/Observation", params={"code:in": "urn:warm", "_summary": "count"})).json()["total"] == 6


async def test_ten_thousand_codes(http):
    last, other = [one["id"] for one in await put(http, observation("9999", "urn:numbers"), observation("10000", "urn:numbers"))]
    many = value_set({"system": "urn:numbers", "concept": [{"code": str(number)} for number in range(10_000)]}, url="urn:many")
    entry = {"resource": many, "request": {"method": "POST", "url": "ValueSet"}}
    await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": [entry]}, headers=JSON)
    assert await found(http, "Observation", **{"code:in": "urn:many"}) == [last]
    assert await found(http, "Observation", **{"code:not-in": "urn:many"}) == [other]
    assert await found(http, "Observation", **{"code:in": "urn:many", "_id": last}) == [last]
    four = {f"_has:Observation:focus:code:{how}": "urn:many" for how in ("in", "not-in")}
    assert await found(http, "Observation", **{"code:in": "urn:many"}, **four) == []


async def test_more_codes_than_a_search_looks_for(http, monkeypatch):
    await put(http, COLOURS, value_set(), value_set({"system": "urn:colours"}, url="urn:same"))
    monkeypatch.setattr(terminology, "SEARCHED", 3)
    assert (await refused(http, "Observation", **{"code:in": "urn:all-colours"}))[:2] == (403, "too-costly")
    monkeypatch.undo()
    monkeypatch.setattr(terminology, "SEARCHED_TOGETHER", 7)
    assert await found(http, "Observation", **{"code:in": "urn:all-colours"}) == []
    assert (await refused(http, "Observation", **{"code:in": "urn:all-colours,urn:same"}))[:2] == (403, "too-costly")


async def test_a_conditional_write_asks_the_same(http):
    await put(http, COLOURS, value_set())
    for status in (201, 200):
        condition = {**JSON, "If-None-Exist": urlencode({"code:in": "urn:all-colours"})}
        assert (await http.post("/fhir/Observation", json=observation("red"), headers=condition)).status_code == status
    condition = {**JSON, "If-None-Exist": urlencode({"code:in": "urn:nowhere"})}
    assert (await http.post("/fhir/Observation", json=observation("red"), headers=condition)).status_code == 400


async def test_what_cannot_be_answered_is_told(http):
    await put(http, value_set({"system": "urn:far"}), value_set({"valueSet": ["urn:round"]}, url="urn:round"))
    for name, told in (
        ("urn:nowhere", "not known"),
        ("ValueSet/nobody", "not known"),
        ("urn:all-colours", "urn:far"),
        ("urn:round", "itself"),
    ):
        status, code, text = await refused(http, "Observation", **{"code:in": name})
        assert (status, code, told in text) == (400, "value", True), text
    for query in ({"code:below": "urn:nowhere|x"}, {"code:below": "x"}, {"code:above": "urn:x|"}):
        assert (await refused(http, "Observation", **query))[:2] == (400, "value")
    assert (await refused(http, "Patient", **{"identifier:in": GENDER}))[:2] == (400, "not-supported")


async def test_one_who_may_not_search_value_sets_has_what_is_built_in(http):
    patient = (await put(http, {"resourceType": "Patient", "gender": "female"}))[0]["id"]
    await put(http, value_set({"system": "http://hl7.org/fhir/administrative-gender"}))
    assert await found(http, "Patient", **{"gender:in": "urn:all-colours"}) == [patient]
    http.headers["Authorization"] = f"Bearer {await signed_in(http, 'reader', 'system/Patient.rs')}"
    assert await found(http, "Patient", **{"gender:in": GENDER}) == [patient]
    assert (await refused(http, "Patient", **{"gender:in": "urn:all-colours"}))[:2] == (400, "value")
