"""$translate over HTTP. https://hl7.org/fhir/R4/conceptmap-operation-translate.html"""

from fhircm.fhir.validation import check
from tests.operations.test_expand import JSON, put
from tests.rest.signing import signed_in

MAP = {
    "resourceType": "ConceptMap",
    "url": "urn:map",
    "version": "1",
    "status": "active",
    "sourceUri": "urn:from-set",
    "targetUri": "urn:to-set",
    "group": [
        {
            "source": "urn:from",
            "target": "urn:to",
            "element": [
                {"code": "a", "display": "A", "target": [{"code": "1", "display": "One", "equivalence": "wider"}]},
                {
                    "code": "b",
                    "target": [
                        {
                            "code": "2",
                            "equivalence": "equivalent",
                            "dependsOn": [{"property": "urn:sex", "system": "urn:s", "value": "f"}],
                            "product": [{"property": "urn:site", "system": "urn:sites", "value": "left"}],
                        },
                        {"code": "3", "equivalence": "inexact"},
                    ],
                },
                {"code": "c", "target": [{"equivalence": "unmatched"}]},
            ],
            "unmapped": {"mode": "other-map", "url": "urn:rest"},
        }
    ],
}
REST = {
    "resourceType": "ConceptMap",
    "url": "urn:rest",
    "status": "active",
    "group": [
        {
            "source": "urn:from",
            "target": "urn:to",
            "element": [{"code": "z"}],
            "unmapped": {"mode": "fixed", "code": "9", "display": "Other"},
        }
    ],
}


async def translated(http, at="ConceptMap", body=None, **query):
    if body is None:
        answer = await http.get(f"/fhir/{at}/$translate", params=query)
    else:
        answer = await http.post(f"/fhir/{at}/$translate", json={"resourceType": "Parameters", "parameter": body}, headers=JSON)
    assert answer.status_code == 200, answer.text
    check(answer.content)
    parameters = answer.json()["parameter"]
    matches = [{part["name"]: part for part in one["part"]} for one in parameters if one["name"] == "match"]
    told = [(one["equivalence"]["valueCode"], one.get("concept", {}).get("valueCoding", {}).get("code")) for one in matches]
    return parameters[0]["valueBoolean"], told


async def test_by_url_and_at_an_instance(http):
    (made,) = await put(http, MAP)
    assert await translated(http, url="urn:map", system="urn:from", code="a") == (True, [("wider", "1")])
    assert await translated(http, f"ConceptMap/{made['id']}", system="urn:from", code="a") == (True, [("wider", "1")])
    answer = (await http.get("/fhir/ConceptMap/$translate", params={"url": "urn:map", "system": "urn:from", "code": "a"})).json()
    assert answer["parameter"][1]["part"][1:] == [
        {"name": "concept", "valueCoding": {"system": "urn:to", "code": "1", "display": "One"}},
        {"name": "source", "valueUri": "urn:map|1"},
    ]
    sent = [{"name": "conceptMap", "resource": MAP}, {"name": "coding", "valueCoding": {"system": "urn:from", "code": "a"}}]
    assert await translated(http, body=sent) == (True, [("wider", "1")])


async def test_by_what_it_is_to_become(http):
    await put(http, MAP)
    ask = {"system": "urn:from", "code": "a"}
    assert await translated(http, **ask, targetsystem="urn:to") == (True, [("wider", "1")])
    assert await translated(http, **ask, target="urn:to-set") == (True, [("wider", "1")])
    assert await translated(http, **ask, source="urn:from-set", target="urn:to-set") == (True, [("wider", "1")])
    assert await translated(http, **ask, target="urn:elsewhere") == (False, [])
    assert await translated(http, **ask, targetsystem="urn:elsewhere") == (False, [])


async def test_a_map_that_is_named_must_fit_what_is_asked(http):
    group = MAP["group"][0] | {"sourceVersion": "7"}
    await put(http, MAP | {"group": [group]})
    ask = {"url": "urn:map", "system": "urn:from", "code": "a"}
    assert await translated(http, **ask, target="urn:to-set|1", source="urn:from-set") == (True, [("wider", "1")])
    assert await translated(http, **ask, target="urn:elsewhere") == (False, [])
    assert await translated(http, **ask, targetsystem="urn:elsewhere") == (False, [])
    assert await translated(http, **ask, version="7") == (True, [("wider", "1")])
    assert await translated(http, **ask, version="8") == (False, [])


async def test_backwards(http):
    await put(http, MAP)
    assert await translated(http, url="urn:map", system="urn:to", code="1", reverse="true") == (True, [("narrower", "a")])
    assert await translated(http, system="urn:to", code="1", reverse="true", targetsystem="urn:from") == (
        True,
        [("narrower", "a")],
    )


async def test_what_depends_on_something_else(http):
    await put(http, MAP)
    body = [{"name": "url", "valueUri": "urn:map"}, {"name": "coding", "valueCoding": {"system": "urn:from", "code": "b"}}]
    assert await translated(http, body=body) == (True, [("inexact", "3")])
    concept = {"coding": [{"system": "urn:s", "code": "f"}]}
    part = [{"name": "element", "valueUri": "urn:sex"}, {"name": "concept", "valueCodeableConcept": concept}]
    dependency = {"name": "dependency", "part": part}
    assert await translated(http, body=[*body, dependency]) == (True, [("equivalent", "2"), ("inexact", "3")])
    answer = await http.post(
        "/fhir/ConceptMap/$translate", json={"resourceType": "Parameters", "parameter": [*body, dependency]}, headers=JSON
    )
    assert '"valueCoding":{"system":"urn:sites","code":"left"}' in answer.text


async def test_what_the_map_does_not_have(http):
    await put(http, MAP)
    assert await translated(http, url="urn:map", system="urn:from", code="c") == (False, [("unmatched", None)])
    assert await translated(http, url="urn:map", system="urn:from", code="q") == (False, [])
    await put(http, REST)
    assert await translated(http, url="urn:map", system="urn:from", code="q") == (True, [("inexact", "9")])
    assert await translated(http, url="urn:map", system="urn:another", code="a") == (False, [])


async def test_what_is_built_in(http):
    ask = {"system": "http://hl7.org/fhir/administrative-gender", "code": "female"}
    url = "http://hl7.org/fhir/ConceptMap/cm-administrative-gender-v3"
    assert await translated(http, url=url, **ask) == (True, [("equal", "F")])
    answer = await translated(http, targetsystem="http://terminology.hl7.org/CodeSystem/v3-AdministrativeGender", **ask)
    assert answer == (True, [("equal", "F")])


async def test_one_who_may_not_read_them(http):
    await put(http, MAP)
    http.headers["Authorization"] = f"Bearer {await signed_in(http, 'reader', 'system/Patient.rs')}"
    assert await translated(http, system="urn:from", code="a", targetsystem="urn:to") == (False, [])
    assert (
        await http.get("/fhir/ConceptMap/$translate", params={"url": "urn:map", "system": "urn:from", "code": "a"})
    ).status_code == 404


async def test_what_cannot_be_answered_is_told(http):
    cases = [
        ({"url": "urn:nowhere", "system": "urn:from", "code": "a"}, 404),
        ({"system": "urn:from", "code": "a"}, 400),
        ({"url": "urn:map"}, 400),
        ({"url": "urn:map", "code": "a", "colour": "red"}, 400),
    ]
    for query, status in cases:
        assert (await http.get("/fhir/ConceptMap/$translate", params=query)).status_code == status
