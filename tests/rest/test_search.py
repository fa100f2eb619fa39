"""Search over several types, in compartments, and for a part of each resource. https://hl7.org/fhir/R4/http.html#search"""

import pytest

from .signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}


async def made(http, type, **members):
    return (await http.post(f"/fhir/{type}", json={"resourceType": type, **members}, headers=JSON)).json()


async def found(http, url, **headers):
    answer = await http.get(url, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(bundle):
    return [entry["resource"]["id"] for entry in bundle.get("entry", [])]


@pytest.fixture
async def record(http):
    """Two patients; the first has a condition, a goal, and an observation that another resource of theirs leads to."""
    kept = {"patient": await made(http, "Patient", active=True), "other": await made(http, "Patient")}
    of = {"reference": f"Patient/{kept['patient']['id']}"}
    kept["organization"] = await made(http, "Organization", name="A")
    kept["condition"] = await made(http, "Condition", subject=of, code={"coding": [{"code": "c1"}]})
    kept["goal"] = await made(http, "Goal", subject=of, lifecycleStatus="active", description={"text": "a"})
    kept["foreign"] = await made(http, "Condition", subject={"reference": f"Patient/{kept['other']['id']}"})
    return {name: tree["id"] for name, tree in kept.items()}


async def test_several_types_in_one_search(http, record):
    every = await found(http, "/fhir?_type=Condition,Goal")
    assert ids(every) == [record["foreign"], record["goal"], record["condition"]]
    assert every["total"] == 3
    one = await found(http, f"/fhir?_type=Condition,Goal&patient={record['patient']}&_sort=_lastUpdated,-_id")
    assert set(ids(one)) == {record["goal"], record["condition"]}
    posted = await http.post("/fhir/_search", data={"_type": "Goal"})
    assert ids(posted.json()) == [record["goal"]]
    assert (await found(http, "/fhir?_type=Patient,Goal&_summary=count"))["total"] == 3
    everything = await found(http, f"/fhir?_id={record['goal']}")
    assert ids(everything) == [record["goal"]]


async def test_pages_over_several_types_list_everything_once(http, record):
    url, seen = "/fhir?_type=Patient,Condition,Goal&_count=2", []
    while url:
        page = await found(http, url)
        seen += ids(page)
        await made(
            http,
            "Goal",
            subject={"reference": f"Patient/{record['patient']}"},
            lifecycleStatus="active",
            description={"text": "a"},
        )
        url = next((link["url"] for link in page["link"] if link["relation"] == "next"), None)
    assert seen == [record[name] for name in ("foreign", "goal", "condition", "other", "patient")]


async def test_what_belongs_to_a_patient(http, record):
    patient = f"/fhir/Patient/{record['patient']}"
    assert ids(await found(http, f"{patient}/Condition")) == [record["condition"]]
    assert ids(await found(http, f"{patient}/Condition?code=c2")) == []
    assert set(ids(await found(http, f"{patient}/*"))) == {record["condition"], record["goal"], record["patient"]}
    assert ids((await http.post(f"{patient}/Goal/_search", data={"lifecycle-status": "active"})).json()) == [record["goal"]]
    assert (await http.get("/fhir/Patient/none/Condition")).status_code == 404
    assert (await http.get(f"{patient}/Organization")).status_code == 404
    assert (await http.get(f"/fhir/Organization/{record['organization']}/Condition")).status_code == 404


async def test_nobody_searches_types_without_scope(anonymous):
    full = {"Authorization": f"Bearer {await signed_in(anonymous)}"}
    patient = (await anonymous.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=JSON | full)).json()
    goal = {
        "resourceType": "Goal",
        "subject": {"reference": f"Patient/{patient['id']}"},
        "lifecycleStatus": "active",
        "description": {"text": "a"},
    }
    await anonymous.post("/fhir/Goal", json=goal, headers=JSON | full)
    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"}
    assert len((await found(anonymous, "/fhir", **full))["entry"]) == 2
    assert ids(await found(anonymous, "/fhir", **narrow)) == [patient["id"]]
    assert ids(await found(anonymous, f"/fhir/Patient/{patient['id']}/*", **narrow)) == [patient["id"]]
    for path in ("?_type=Patient,Goal", f"/Patient/{patient['id']}/Goal"):
        assert (await anonymous.get(f"/fhir{path}", headers=narrow)).status_code == 403


@pytest.mark.parametrize(
    "query",
    [
        "_type=Nonsense",
        "_type=",
        "_type=Patient&colour=red",
        "_type=Patient,Goal&family=a",
        "_type=Patient,Goal&_include=Goal:patient",
    ],
)
async def test_what_several_types_do_not_share_is_refused(http, query):
    assert (await http.get(f"/fhir?{query}")).status_code == 400


OBSERVATION = {
    "text": {"status": "generated", "div": "<div>a</div>"},
    "status": "final",
    "code": {"text": "a"},
    "issued": "2020-01-01T00:00:00Z",
    "note": [{"text": "b"}],
    "component": [{"code": {"text": "c"}, "valueString": "d", "interpretation": [{"text": "e"}]}],
}


@pytest.mark.parametrize(
    ("asked", "members"),
    [
        ("_summary=true", {"status", "code", "issued", "component"}),
        ("_summary=text", {"text", "status", "code"}),
        ("_summary=data", {"status", "code", "issued", "note", "component"}),
        ("_elements=note", {"note", "status", "code"}),
        ("_elements=Observation.note,issued", {"note", "issued", "status", "code"}),
    ],
)
async def test_a_part_is_told_to_be_one(http, asked, members):
    id = (await made(http, "Observation", **OBSERVATION))["id"]
    read = await found(http, f"/fhir/Observation/{id}?{asked}")
    assert read.keys() == members | {"resourceType", "id", "meta"}
    assert read["meta"]["tag"] == [{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}]
    assert read["meta"]["versionId"] == "1"
    searched = await found(http, f"/fhir/Observation?_id={id}&{asked}")
    assert searched["entry"][0]["resource"] == read
    history = await found(http, f"/fhir/Observation/{id}/_history?{asked}")
    assert history["entry"][0]["resource"] == read
    if asked == "_summary=true":
        assert read["component"] == [{"code": {"text": "c"}, "valueString": "d"}]


async def test_a_part_that_cannot_be_is_refused(http):
    id = (await made(http, "Observation", **OBSERVATION))["id"]
    for asked in ("_elements=colour", "_elements=", "_summary=some", "_summary=true&_elements=note"):
        for path in (f"Observation/{id}", "Observation"):
            assert (await http.get(f"/fhir/{path}?{asked}")).status_code == 400, (path, asked)


async def test_pages_keep_the_part_and_pretty_is_laid_out(http):
    for _ in range(2):
        await made(http, "Observation", **OBSERVATION, valueQuantity={"value": 1})
    page = await found(http, "/fhir/Observation?_count=1&_elements=note")
    following = await found(http, next(link["url"] for link in page["link"] if link["relation"] == "next"))
    assert "issued" not in following["entry"][0]["resource"]
    body = b'{"resourceType":"Observation","status":"final","code":{"text":"a"},"valueQuantity":{"value":2.50}}'
    id = (await http.post("/fhir/Observation", content=body, headers=JSON)).json()["id"]
    pretty = await http.get(f"/fhir/Observation/{id}?_pretty=true")
    assert '\n  "status": "final"' in pretty.text
    assert '"value": 2.50' in pretty.text
    assert pretty.headers["ETag"] == 'W/"1"'


async def named(http, type, **members):
    return f"{type}/{(await made(http, type, **members))['id']}"


async def listed(http, path):
    bundle = await found(http, f"/fhir/{path}")
    return {f"{one['resource']['resourceType']}/{one['resource']['id']}" for one in bundle.get("entry", ())}


def observation(patient, code="a"):
    return {"status": "final", "code": {"coding": [{"system": "urn:s", "code": code}]}, "subject": {"reference": patient}}


@pytest.fixture
async def two_charts(http):
    one, other = [await named(http, "Patient") for _ in range(2)]
    mine = [await named(http, "Observation", **observation(one, code)) for code in "aab"]
    theirs = await named(http, "Observation", **observation(other))
    return one, other, mine, theirs


async def test_a_list_finds_what_it_holds(http, two_charts):
    one, _, mine, _ = two_charts
    items = [{"item": {"reference": held}} for held in (one, mine[1])]
    list = await named(http, "List", status="current", mode="working", entry=items)
    id = list.partition("/")[2]
    assert await listed(http, f"Patient?_list={id}") == {one}
    assert await listed(http, f"Observation?_list={id}&code=a") == {mine[1]}
    assert await listed(http, f"Patient?_list=none,{id}") == {one}
    assert await listed(http, "Patient?_list=none") == set()
    for refused in ("$current-problems", "", "a/b", f"{id},"):
        assert (await http.get(f"/fhir/Patient?_list={refused}")).status_code == 400, refused


async def test_revinclude_of_everything(http, two_charts):
    one, other, mine, theirs = two_charts
    assert await listed(http, f"Patient?_id={one[8:]}&_revinclude=*") == {one, *mine}
    assert await listed(http, f"Patient?_id={other[8:]}&_revinclude=*") == {other, theirs}


async def test_values_of_every_kind_are_asked_by_get_and_post_and_told_in_metadata(http):
    def component(code, value):
        quantity = {"value": value, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}
        return {"code": {"coding": [{"system": "http://loinc.org", "code": code}]}, "valueQuantity": quantity}

    code = {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}
    high = await made(
        http, "Observation", status="final", code=code, component=[component("8480-6", 150), component("8462-4", 80)]
    )
    await made(http, "Observation", status="final", code=code, component=[component("8480-6", 120), component("8462-4", 150)])
    asked = {"component-code-value-quantity": "http://loinc.org|8480-6$ge15|http://unitsofmeasure.org|cm[Hg]"}
    answer = await http.get("/fhir/Observation", params=asked)
    assert ids(answer.json()) == [high["id"]]
    assert "component-code-value-quantity=" in answer.json()["link"][0]["url"]
    assert ids((await http.post("/fhir/Observation/_search", data=asked)).json()) == [high["id"]]
    wrong = await http.get("/fhir/Observation", params={"component-code-value-quantity": "8480-6"})
    assert wrong.status_code == 400
    assert "component-code$component-value-quantity" in wrong.json()["issue"][0]["diagnostics"]
    place = await made(http, "Location", name="Clinic", position={"latitude": 52.52, "longitude": 13.405})
    await made(http, "Location", name="Elsewhere", position={"latitude": -52.52, "longitude": 13.405})
    assert ids(await found(http, "/fhir/Location?near=52.5|13.4|10|km")) == [place["id"]]
    assert (await http.get("/fhir/Location?near=here")).status_code == 400
    told = {
        one["type"]: {p["name"]: p["type"] for p in one["searchParam"]}
        for one in (await found(http, "/fhir/metadata"))["rest"][0]["resource"]
    }
    assert told["Observation"]["combo-code-value-concept"] == "composite"
    assert told["Location"]["near"] == "special"


async def test_filters_are_searched_by_and_decide_what_is_written(http, two_charts):
    one, other, mine, theirs = two_charts
    asked = f"Observation?_filter=code eq urn:s|b or subject re {other}"
    assert await listed(http, asked) == {mine[2], theirs}
    assert await listed(http, f"{asked}&_filter=not (code eq a)") == {mine[2]}
    assert await listed(http, f"{one}/Observation?_filter=code ne b") == set(mine[:2])
    assert await listed(http, f"?_type=Observation,Patient&_filter=_id eq {theirs[12:]} or _id eq {one[8:]}") == {theirs, one}
    again = {"If-None-Exist": f'_filter=code eq b and subject re "{one}"'}
    known = await http.post("/fhir/Observation", json={"resourceType": "Observation", **observation(one)}, headers=JSON | again)
    assert (known.status_code, known.json()["id"]) == (200, mine[2][12:])
    refused = await http.get("/fhir/Observation?_filter=status eq")
    assert refused.status_code == 400
    assert "at character 10" in refused.json()["issue"][0]["diagnostics"]
    (first, *_) = (await found(http, "/fhir/metadata"))["rest"][0]["resource"]
    special = {"name": "_filter", "definition": "http://hl7.org/fhir/SearchParameter/filter", "type": "special"}
    assert special in first["searchParam"]
