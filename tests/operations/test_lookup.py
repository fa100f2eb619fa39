"""$lookup and $subsumes over HTTP. https://hl7.org/fhir/R4/codesystem-operation-lookup.html"""

from fhircm.fhir.validation import check
from tests.operations.test_expand import COLOURS, JSON, put

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


async def looked_up(http, **query):
    answer = await http.get("/fhir/CodeSystem/$lookup", params=query)
    assert answer.status_code == 200, answer.text
    check(answer.content)
    return answer.json()["parameter"]


def properties(parameters):
    listed = [{part["name"]: part for part in one["part"]} for one in parameters if one["name"] == "property"]
    return [(one["code"]["valueCode"], next(value for name, value in one["value"].items() if name != "name")) for one in listed]


async def test_what_hl7_says_of_a_code(http):
    found = await looked_up(http, system=ACT_CODE, code="ACUTE")
    assert found[:3] == [
        {"name": "name", "valueString": "v3 Code System ActCode"},
        {"name": "version", "valueString": "2018-08-12"},
        {"name": "display", "valueString": "inpatient acute"},
    ]
    assert ("parent", "IMP") in properties(found)
    assert ("inactive", False) in properties(found)


async def test_properties_and_words_that_are_asked_for(http):
    await put(http, COLOURS)
    ask = {"system": "urn:colours", "code": "warm"}
    assert properties(await looked_up(http, **ask)) == [
        ("notSelectable", True),
        ("child", "red"),
        ("child", "ochre"),
        ("inactive", False),
    ]
    assert properties(await looked_up(http, **ask, property="child")) == [("child", "red"), ("child", "ochre")]
    (designation,) = [
        one for one in await looked_up(http, system="urn:colours", code="red", property="lang.de") if one["name"] == "designation"
    ]
    assert designation["part"] == [{"name": "language", "valueCode": "de-CH"}, {"name": "value", "valueString": "Rot"}]
    assert {"name": "display", "valueString": "Rot"} in await looked_up(
        http, system="urn:colours", code="red", displayLanguage="de"
    )


async def test_by_a_coding(http):
    coding = {"name": "coding", "valueCoding": {"system": ACT_CODE, "code": "AMB"}}
    answer = await http.post("/fhir/CodeSystem/$lookup", json={"resourceType": "Parameters", "parameter": [coding]}, headers=JSON)
    assert {"name": "display", "valueString": "ambulatory"} in answer.json()["parameter"]


async def test_what_is_not_there(http):
    cases = [
        ({"system": ACT_CODE, "code": "NONESUCH"}, 404),
        ({"system": "urn:nowhere", "code": "x"}, 404),
        ({"system": ACT_CODE, "version": "1", "code": "AMB"}, 404),
        ({"code": "AMB"}, 400),
        ({"system": ACT_CODE}, 400),
    ]
    for query, status in cases:
        assert (await http.get("/fhir/CodeSystem/$lookup", params=query)).status_code == status


async def test_which_is_a_kind_of_which(http):
    cases = [
        ("IMP", "ACUTE", "subsumes"),
        ("ACUTE", "IMP", "subsumed-by"),
        ("ACUTE", "ACUTE", "equivalent"),
        ("ACUTE", "AMB", "not-subsumed"),
    ]
    for one, other, outcome in cases:
        answer = await http.get("/fhir/CodeSystem/$subsumes", params={"system": ACT_CODE, "codeA": one, "codeB": other})
        assert answer.json()["parameter"] == [{"name": "outcome", "valueCode": outcome}]


async def test_subsumes_at_an_instance_and_with_codings(http):
    (system,) = await put(http, COLOURS)
    answer = await http.get(f"/fhir/CodeSystem/{system['id']}/$subsumes", params={"codeA": "warm", "codeB": "red"})
    assert answer.json()["parameter"] == [{"name": "outcome", "valueCode": "subsumes"}]
    codings = [
        {"name": f"coding{one}", "valueCoding": {"system": system, "code": "red"}}
        for one, system in (("A", "urn:a"), ("B", "urn:b"))
    ]
    answer = await http.post(
        "/fhir/CodeSystem/$subsumes", json={"resourceType": "Parameters", "parameter": codings}, headers=JSON
    )
    assert answer.status_code == 400
    assert (await http.get("/fhir/CodeSystem/$subsumes", params={"system": ACT_CODE, "codeA": "AMB"})).status_code == 400
    assert (
        await http.get("/fhir/CodeSystem/$subsumes", params={"system": ACT_CODE, "codeA": "AMB", "codeB": "NO"})
    ).status_code == 404
