"""$expand over HTTP. https://hl7.org/fhir/R4/valueset-operation-expand.html"""

import json
from urllib.parse import urlencode

from fhircm.fhir.validation import check
from fhircm.store import terminology
from tests.rest.signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}
GENDER = "http://hl7.org/fhir/ValueSet/administrative-gender"
COLOURS = {
    "resourceType": "CodeSystem",
    "url": "urn:colours",
    "version": "1",
    "status": "active",
    "content": "complete",
    "concept": [
        {
            "code": "warm",
            "display": "Warm colours",
            "property": [{"code": "notSelectable", "valueBoolean": True}],
            "concept": [
                {"code": "red", "display": "Bright red", "designation": [{"language": "de-CH", "value": "Rot"}]},
                {"code": "ochre", "display": "Ochre", "property": [{"code": "inactive", "valueBoolean": True}]},
            ],
        },
        {"code": "blue", "display": "Deep blue"},
    ],
}


def value_set(*include, url="urn:all-colours", version="1", **more):
    return {
        "resourceType": "ValueSet",
        "url": url,
        "version": version,
        "status": "active",
        "compose": {"include": list(include) or [{"system": "urn:colours"}]},
        **more,
    }


async def put(http, *resources):
    made = []
    for resource in resources:
        answer = await http.post(f"/fhir/{resource['resourceType']}", json=resource, headers=JSON)
        assert answer.status_code == 201, answer.text
        made.append(answer.json())
    return made


async def codes(http, path, **query):
    answer = await http.get(f"/fhir/{path}", params=query)
    assert answer.status_code == 200, answer.text
    check(answer.content)  # what is answered is FHIR
    return [one["code"] for one in answer.json()["expansion"].get("contains", [])]


async def refused(http, path, **query):
    answer = await http.get(f"/fhir/{path}", params=query)
    (issue,) = answer.json()["issue"]
    return answer.status_code, issue["code"], issue["diagnostics"]


async def test_what_is_built_in(http):
    answer = await http.get("/fhir/ValueSet/$expand", params={"url": GENDER})
    tree = answer.json()
    assert (tree["resourceType"], tree["url"], tree["version"]) == ("ValueSet", GENDER, "4.0.1")
    assert "compose" not in tree
    assert tree["expansion"]["total"] == 4
    assert tree["expansion"]["contains"][0] == {
        "system": "http://hl7.org/fhir/administrative-gender",
        "code": "male",
        "display": "Male",
    }
    assert tree["expansion"]["parameter"] == [{"name": "version", "valueUri": "http://hl7.org/fhir/administrative-gender|4.0.1"}]
    assert tree["expansion"]["timestamp"] == "2026-03-02T15:00:00.000Z"
    with_own = (await http.get("/fhir/ValueSet/$expand", params={"url": f"{GENDER}|4.0.1", "includeDefinition": "true"})).json()
    assert with_own["compose"] == {"include": [{"system": "http://hl7.org/fhir/administrative-gender"}]}
    assert await codes(http, "ValueSet/$expand", url="https://fhircm.example/ValueSet/missed-visit") == [
        "281399006",
        "410543007",
        "noshow",
        "no-show",
    ]


async def test_the_store_comes_first_and_its_newest_active_version(http):
    await put(http, {**COLOURS, "concept": [{"code": "old"}]}, value_set())
    assert await codes(http, "ValueSet/$expand", url="urn:all-colours") == ["old"]
    await put(
        http,
        {**COLOURS, "version": "1.10"},
        {**COLOURS, "version": "1.9", "concept": [{"code": "other"}]},
        {**COLOURS, "version": "2", "status": "retired", "concept": [{"code": "other"}]},
    )
    assert await codes(http, "ValueSet/$expand", url="urn:all-colours") == ["red", "ochre", "blue"]
    assert await codes(http, "ValueSet/$expand", **{"url": "urn:all-colours", "system-version": "urn:colours|1"}) == ["old"]
    await put(http, value_set({"system": "urn:colours", "version": "1"}, url="urn:fixed"))
    assert await codes(http, "ValueSet/$expand", url="urn:fixed") == ["old"]
    assert await codes(http, "ValueSet/$expand", **{"url": "urn:fixed", "force-system-version": "urn:colours|1.10"}) == [
        "red",
        "ochre",
        "blue",
    ]
    status, _, text = await refused(http, "ValueSet/$expand", **{"url": "urn:fixed", "check-system-version": "urn:colours|2"})
    assert (status, "check-system-version" in text) == (422, True)


async def test_a_changed_code_system_is_seen_at_once(http):
    system, own = await put(http, COLOURS, value_set())
    assert await codes(http, "ValueSet/$expand", url="urn:all-colours") == ["red", "ochre", "blue"]
    changed = {**COLOURS, "id": system["id"], "concept": [{"code": "green"}]}
    assert (await http.put(f"/fhir/CodeSystem/{system['id']}", json=changed, headers=JSON)).status_code == 200
    assert await codes(http, "ValueSet/$expand", url="urn:all-colours") == ["green"]
    assert await codes(http, f"ValueSet/{own['id']}/$expand") == ["green"]
    assert (await http.delete(f"/fhir/CodeSystem/{system['id']}")).status_code == 204
    assert (await refused(http, "ValueSet/$expand", url="urn:all-colours"))[:2] == (422, "not-found")


async def test_which_codes_are_shown(http):
    await put(http, COLOURS, value_set())
    ask = {"url": "urn:all-colours"}
    assert await codes(http, "ValueSet/$expand", **ask, activeOnly="true") == ["red", "blue"]
    assert await codes(http, "ValueSet/$expand", **ask, filter="dee") == ["blue"]
    assert await codes(http, "ValueSet/$expand", **ask, filter="RED bri") == ["red"]
    assert await codes(http, "ValueSet/$expand", **ask, filter="rot") == ["red"]
    assert await codes(http, "ValueSet/$expand", **ask, filter="ed") == []
    assert await codes(http, "ValueSet/$expand", **ask, **{"exclude-system": "urn:colours"}) == []
    assert await codes(http, "ValueSet/$expand", **ask, **{"exclude-system": "urn:colours|7"}) == ["red", "ochre", "blue"]
    nested = (await http.get("/fhir/ValueSet/$expand", params={**ask, "excludeNested": "false"})).json()["expansion"]
    assert nested["total"] == 4
    warm, blue = nested["contains"]
    assert (warm["code"], warm["abstract"], blue["code"]) == ("warm", True, "blue")
    assert [(one["code"], one.get("inactive")) for one in warm["contains"]] == [("red", None), ("ochre", True)]


async def test_words_in_a_language_and_designations(http):
    await put(http, COLOURS, value_set())
    first = (await http.get("/fhir/ValueSet/$expand", params={"url": "urn:all-colours", "displayLanguage": "de"})).json()
    assert first["expansion"]["contains"][0] == {"system": "urn:colours", "code": "red", "display": "Rot"}
    for query in ({"includeDesignations": "true"}, {"designation": "urn:ietf:bcp:47|de"}):
        red = (await http.get("/fhir/ValueSet/$expand", params={"url": "urn:all-colours", **query})).json()["expansion"][
            "contains"
        ][0]
        assert (red["display"], red["designation"]) == ("Bright red", [{"language": "de-CH", "value": "Rot"}])
    red = (
        await http.get("/fhir/ValueSet/$expand", params={"url": "urn:all-colours", "designation": "urn:ietf:bcp:47|fr"})
    ).json()
    assert "designation" not in red["expansion"]["contains"][0]


async def test_pages_join_into_the_whole(http):
    ask = {"url": "http://hl7.org/fhir/ValueSet/defined-types"}
    whole = await codes(http, "ValueSet/$expand", **ask)
    pages, identifiers = [], set()
    while True:
        answer = (await http.get("/fhir/ValueSet/$expand", params={**ask, "offset": len(pages), "count": 50})).json()["expansion"]
        assert (answer["total"], answer["offset"]) == (len(whole), len(pages))
        identifiers.add(answer["identifier"])
        if not answer.get("contains"):
            break
        pages += [one["code"] for one in answer["contains"]]
    assert pages == whole
    assert len(whole) > 200
    assert len(identifiers) == 1
    none = (await http.get("/fhir/ValueSet/$expand", params={**ask, "count": 0})).json()["expansion"]
    assert (none["total"], "contains" in none) == (len(whole), False)


async def test_one_that_is_sent_along(http):
    await put(http, COLOURS)
    sent = value_set({"system": "urn:colours", "filter": [{"property": "concept", "op": "descendent-of", "value": "warm"}]})
    for body in (sent, {"resourceType": "Parameters", "parameter": [{"name": "valueSet", "resource": sent}]}):
        answer = await http.post("/fhir/ValueSet/$expand", json=body, headers=JSON)
        assert [one["code"] for one in answer.json()["expansion"]["contains"]] == ["red", "ochre"], answer.text


async def test_a_stored_expansion_stands_in_where_the_code_system_is_not_here(http):
    contains = [{"system": "urn:far", "code": "a", "contains": [{"system": "urn:far", "code": "b", "abstract": True}]}]
    await put(http, value_set({"system": "urn:far"}, url="urn:kept", expansion={"timestamp": "2026-01-01", "contains": contains}))
    answer = (await http.get("/fhir/ValueSet/$expand", params={"url": "urn:kept"})).json()["expansion"]
    assert [one["code"] for one in answer["contains"]] == ["a"]
    assert answer["parameter"] == [{"name": "stored-expansion", "valueUri": "urn:kept|1"}]
    await put(
        http,
        value_set({"system": "urn:far"}, url="urn:part", expansion={"timestamp": "2026-01-01", "total": 3, "contains": contains}),
    )
    assert (await refused(http, "ValueSet/$expand", url="urn:part"))[:2] == (422, "not-found")


async def test_a_part_of_a_code_system_says_so(http):
    await put(http, {**COLOURS, "content": "fragment"}, value_set())
    answer = (await http.get("/fhir/ValueSet/$expand", params={"url": "urn:all-colours"})).json()["expansion"]
    assert answer["extension"] == [{"url": "http://hl7.org/fhir/StructureDefinition/valueset-unclosed", "valueBoolean": True}]
    assert {"name": "only-a-part-is-here", "valueUri": "urn:colours|1"} in answer["parameter"]


async def test_more_than_goes_at_once_is_too_costly(http):
    numbers = [{"code": str(number)} for number in range(10_001)]
    many = value_set({"system": "urn:numbers", "concept": numbers}, url="urn:many")
    entry = {"resource": many, "request": {"method": "POST", "url": "ValueSet"}}
    await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": [entry]}, headers=JSON)
    assert (await refused(http, "ValueSet/$expand", url="urn:many"))[:2] == (403, "too-costly")
    assert len(await codes(http, "ValueSet/$expand", url="urn:many", count=100, offset=9_950)) == 51


async def test_more_terminology_than_fits_is_too_costly(http, monkeypatch):
    await put(http, {**COLOURS, "version": "2"}, COLOURS, value_set())
    monkeypatch.setattr(terminology, "GATHERED_BYTES", 1_200)
    assert (await refused(http, "ValueSet/$expand", url="urn:all-colours"))[:2] == (403, "too-costly")
    monkeypatch.undo()
    monkeypatch.setattr(terminology, "GATHERED", 2)
    assert (await refused(http, "ValueSet/$expand", url="urn:all-colours"))[:2] == (403, "too-costly")


async def test_what_cannot_be_answered_is_told(http):
    cases = [
        ({}, 400, "not-supported"),
        ({"url": "urn:nowhere"}, 404, "not-found"),
        ({"url": f"{GENDER}|3"}, 404, "not-found"),
        ({"url": GENDER, "valueSetVersion": "3"}, 404, "not-found"),
        ({"url": GENDER, "colour": "red"}, 400, "not-supported"),
        ({"context": "http://x"}, 400, "not-supported"),
        ({"url": GENDER, "count": "-1"}, 422, "invalid"),
        ({"url": GENDER, "count": "many"}, 422, "invalid"),
        ({"url": GENDER, "system-version": "http://hl7.org/fhir/administrative-gender"}, 422, "invalid"),
    ]
    for query, status, code in cases:
        assert (await refused(http, "ValueSet/$expand", **query))[:2] == (status, code)


async def test_hostile_text_is_text(http):
    for text in ("\0", "a\0b", "\ud800", "'; DROP TABLE resource; --", "|", "x" * 5_000, "", " "):
        url, system = (urlencode({name: text}, errors="surrogatepass") for name in ("url", "system"))
        for path in (
            f"ValueSet/$expand?{url}",
            f"ValueSet/$validate-code?{url}&code=x",
            f"ValueSet/$validate-code?url={GENDER}&{system}&{system.replace('system', 'code')}&display=x",
            f"CodeSystem/$lookup?code=x&{system}",
            f"ConceptMap/$translate?code=x&targetsystem=y&{system}",
        ):
            assert (await http.get(f"/fhir/{path}")).status_code in (200, 400, 404, 422), path
        body = {"resourceType": "Parameters", "parameter": [{"name": "url", "valueUri": text}]}
        answer = await http.post("/fhir/ValueSet/$expand", content=json.dumps(body), headers=JSON)
        assert answer.status_code in (400, 404, 422), text
    assert len(await codes(http, "ValueSet/$expand", url=GENDER)) == 4


async def test_in_a_batch(http):
    asked = [f"ValueSet/$expand?url={GENDER}&count=1", "ValueSet/$expand?url=urn:nowhere"]
    entries = [{"request": {"method": "GET", "url": url}} for url in asked]
    answer = await http.post("/fhir", json={"resourceType": "Bundle", "type": "batch", "entry": entries}, headers=JSON)
    first, second = answer.json()["entry"]
    assert [one["code"] for one in first["resource"]["expansion"]["contains"]] == ["male"]
    assert second["response"]["status"].startswith("404")


async def test_the_wrong_place_or_more_than_one_value_set(http):
    assert (await http.get("/fhir/ValueSet/nobody/$expand")).status_code == 404
    (own,) = await put(http, value_set())
    assert (await http.get(f"/fhir/ValueSet/{own['id']}/$expand", params={"url": GENDER})).status_code == 400
    assert (await http.get("/fhir/CodeSystem/$expand", params={"url": GENDER})).status_code == 404


async def test_one_who_may_not_read_them_has_what_is_built_in(http):
    (_, own) = await put(http, COLOURS, value_set())
    http.headers["Authorization"] = f"Bearer {await signed_in(http, 'reader', 'system/Patient.rs')}"
    assert len(await codes(http, "ValueSet/$expand", url=GENDER)) == 4
    assert (await refused(http, "ValueSet/$expand", url="urn:all-colours"))[:2] == (404, "not-found")
    assert (await http.get(f"/fhir/ValueSet/{own['id']}/$expand")).status_code == 403


async def test_metadata_lists_each_by_its_own_definition(anonymous):
    resources = {
        one["type"]: one.get("operation", []) for one in (await anonymous.get("/fhir/metadata")).json()["rest"][0]["resource"]
    }
    told = {(type, one["name"], one["definition"].rpartition("/")[2]) for type, listed in resources.items() for one in listed}
    assert {
        ("ValueSet", "expand", "ValueSet-expand"),
        ("ValueSet", "validate-code", "ValueSet-validate-code"),
        ("CodeSystem", "validate-code", "CodeSystem-validate-code"),
        ("CodeSystem", "lookup", "CodeSystem-lookup"),
        ("CodeSystem", "subsumes", "CodeSystem-subsumes"),
        ("ConceptMap", "translate", "ConceptMap-translate"),
    } <= told
    assert not any(name == "expand" for type, name, _ in told if type != "ValueSet")


async def test_what_the_terminology_service_can_do(anonymous):
    answer = await anonymous.get("/fhir/metadata?mode=terminology")
    check(answer.content)
    told = answer.json()
    known = {one["uri"]: one.get("version", [{}])[0].get("code") for one in told["codeSystem"]}
    assert known["http://terminology.hl7.org/CodeSystem/v3-ActCode"] == "2018-08-12"
    assert "https://fhircm.example/CodeSystem/coordination" in known
    assert len(known) > 1000
    assert {"name": "filter"} in told["expansion"]["parameter"]
    assert (await anonymous.get("/fhir/metadata?mode=full")).json()["resourceType"] == "CapabilityStatement"
