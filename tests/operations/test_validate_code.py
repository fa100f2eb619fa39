"""$validate-code over HTTP. https://hl7.org/fhir/R4/valueset-operation-validate-code.html"""

from fhircm.fhir.validation import check
from tests.operations.test_expand import COLOURS, GENDER, JSON, put, value_set

SYSTEM = "http://hl7.org/fhir/administrative-gender"


async def validated(http, type="ValueSet", body=None, **query):
    if body is None:
        answer = await http.get(f"/fhir/{type}/$validate-code", params=query)
    else:
        answer = await http.post(
            f"/fhir/{type}/$validate-code", json={"resourceType": "Parameters", "parameter": body}, headers=JSON
        )
    assert answer.status_code == 200, answer.text
    check(answer.content)
    found = {one["name"]: next(value for name, value in one.items() if name != "name") for one in answer.json()["parameter"]}
    return found["result"], found.get("display"), found.get("message")


async def test_a_code_of_a_value_set(http):
    assert await validated(http, url=GENDER, system=SYSTEM, code="male") == (True, "Male", None)
    result, display, message = await validated(http, url=GENDER, system=SYSTEM, code="robot")
    assert (result, display) == (False, None)
    assert f"{SYSTEM}|4.0.1" in message
    result, _, message = await validated(http, url=GENDER, system="urn:other", code="male")
    assert (result, f"{GENDER}|4.0.1" in message) == (False, True)


async def test_the_right_display_is_told(http):
    assert await validated(http, url=GENDER, system=SYSTEM, code="male", display=" MALE ") == (True, "Male", None)
    result, display, message = await validated(http, url=GENDER, system=SYSTEM, code="male", display="Man")
    assert (result, display) == (False, "Male")
    assert "'Male'" in message
    await put(http, COLOURS, value_set())
    assert (await validated(http, url="urn:all-colours", system="urn:colours", code="red", display="Rot"))[0] is True
    assert (await validated(http, url="urn:all-colours", system="urn:colours", code="red", displayLanguage="de"))[1] == "Rot"


async def test_the_version_that_is_asked(http):
    fixed = value_set({"system": "urn:colours", "version": "1"})
    system, own = await put(http, COLOURS, fixed)
    await put(http, {**COLOURS, "version": "2", "concept": [{"code": "green"}]})
    ask = {"url": "urn:all-colours", "system": "urn:colours", "code": "red"}
    assert (await validated(http, **ask, systemVersion="1"))[0] is True
    assert (await validated(http, **ask, systemVersion="2"))[0] is False
    assert (await validated(http, "CodeSystem", url="urn:colours", code="green"))[0] is True
    assert (await validated(http, "CodeSystem", url="urn:colours", version="1", code="green"))[0] is False
    for path in (
        f"CodeSystem/{system['id']}/$validate-code?code=red&version=2",
        f"ValueSet/{own['id']}/$expand?valueSetVersion=2",
    ):
        assert (await http.get(f"/fhir/{path}")).status_code == 404


async def test_a_code_without_a_system_is_looked_for_in_all(http):
    assert await validated(http, url=GENDER, code="male") == (True, "Male", None)
    await put(http, value_set({"system": "urn:a", "concept": [{"code": "x"}]}, {"system": "urn:b", "concept": [{"code": "x"}]}))
    result, _, message = await validated(http, url="urn:all-colours", code="x")
    assert (result, "several systems" in message) == (False, True)


async def test_a_coding_and_a_concept(http):
    url = {"name": "url", "valueUri": GENDER}
    coding = {"system": SYSTEM, "code": "female", "display": "Female"}
    assert await validated(http, body=[url, {"name": "coding", "valueCoding": coding}]) == (True, "Female", None)
    concept = {"coding": [{"system": "urn:local", "code": "f"}, coding], "text": "a woman"}
    assert (await validated(http, body=[url, {"name": "codeableConcept", "valueCodeableConcept": concept}]))[0] is True
    concept = {"coding": [{"system": "urn:local", "code": "f"}]}
    assert (await validated(http, body=[url, {"name": "codeableConcept", "valueCodeableConcept": concept}]))[0] is False
    assert (await validated(http, body=[url, {"name": "codeableConcept", "valueCodeableConcept": {"text": "?"}}]))[0] is False


async def test_what_only_groups_and_what_is_inactive(http):
    await put(http, COLOURS, value_set())
    ask = {"url": "urn:all-colours", "system": "urn:colours"}
    assert (await validated(http, **ask, code="warm"))[0] is False
    assert (await validated(http, **ask, code="warm", abstract="true"))[0] is True
    assert await validated(http, **ask, code="ochre") == (True, "Ochre", "The code is inactive")


async def test_what_is_known_of_a_value_set_that_has_more(http):
    """Another system of it is not here: its codes cannot be told, the rest can."""
    await put(http, COLOURS, value_set({"system": "urn:colours"}, {"system": "urn:far"}))
    assert (await validated(http, url="urn:all-colours", system="urn:colours", code="red"))[0] is True
    answer = await http.get("/fhir/ValueSet/$validate-code", params={"url": "urn:all-colours", "system": "urn:far", "code": "x"})
    assert answer.status_code == 422


async def test_at_an_instance_and_sent_along(http):
    system, own = await put(http, COLOURS, value_set())
    assert (await validated(http, f"ValueSet/{own['id']}", system="urn:colours", code="blue"))[:2] == (True, "Deep blue")
    assert (await validated(http, f"CodeSystem/{system['id']}", code="blue"))[:2] == (True, "Deep blue")
    sent = [{"name": "codeSystem", "resource": COLOURS}, {"name": "code", "valueCode": "blue"}]
    assert (await validated(http, "CodeSystem", body=sent))[:2] == (True, "Deep blue")


async def test_a_code_of_a_code_system(http):
    assert await validated(http, "CodeSystem", url=SYSTEM, code="other") == (True, "Other", None)
    assert (await validated(http, "CodeSystem", url=SYSTEM, code="robot"))[0] is False
    coding = [{"name": "coding", "valueCoding": {"system": SYSTEM, "code": "other", "display": "Another"}}]
    assert (await validated(http, "CodeSystem", body=coding))[:2] == (False, "Other")
    await put(http, {**COLOURS, "caseSensitive": False})
    assert (await validated(http, "CodeSystem", url="urn:colours", code="RED"))[0] is True


async def test_what_cannot_be_answered_is_told(http):
    cases = [
        ("ValueSet", {"url": "urn:nowhere", "system": SYSTEM, "code": "male"}, 404),
        ("ValueSet", {"url": GENDER}, 400),
        ("ValueSet", {"code": "male", "system": SYSTEM}, 400),
        ("ValueSet", {"url": GENDER, "code": "male", "context": "Patient.gender"}, 400),
        ("CodeSystem", {"url": "urn:nowhere", "code": "male"}, 404),
        ("CodeSystem", {"code": "male"}, 400),
        ("CodeSystem", {"url": "http://snomed.info/sct", "code": "1"}, 404),
    ]
    for type, query, status in cases:
        assert (await http.get(f"/fhir/{type}/$validate-code", params=query)).status_code == status
