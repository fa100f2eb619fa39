"""$match over HTTP. https://hl7.org/fhir/R4/patient-operation-match.html"""

from tests.rest.signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}
SSN, MRN = "http://hl7.org/fhir/sid/us-ssn", "urn:example:mrn"
ADDRESS = {"line": ["12 Elm Street"], "city": "Madison", "postalCode": "53703"}
ROSA = {
    "name": [{"family": "Alvarez", "given": ["Rosa"]}],
    "birthDate": "1951-04-12",
    "gender": "female",
    "address": [ADDRESS],
    "telecom": [{"system": "phone", "value": "608-555-0143"}],
    "identifier": [{"system": SSN, "value": "536-90-4812"}],
}
THIN = {name: ROSA[name] for name in ("name", "birthDate")}


async def made(http, **members):
    answer = await http.post("/fhir/Patient", json={"resourceType": "Patient", **members}, headers=JSON)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def ask(http, description, **parameters):
    named = {"onlyCertainMatches": "valueBoolean", "count": "valueInteger"}
    listed = [{"name": name, named[name]: value} for name, value in parameters.items()]
    given = {
        "resourceType": "Parameters",
        "parameter": [{"name": "resource", "resource": {"resourceType": "Patient", **description}}, *listed],
    }
    return await http.post("/fhir/Patient/$match", json=given, headers=JSON)


async def matches(http, description, **parameters):
    """The ids that match with their grades, in order."""
    answer = await ask(http, description, **parameters)
    assert answer.status_code == 200, answer.text
    bundle = answer.json()
    assert bundle["type"] == "searchset"
    found = bundle.get("entry", [])
    scores = [entry["search"]["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    return [(entry["resource"]["id"], entry["search"]["extension"][0]["valueCode"]) for entry in found]


async def test_certain_probable_and_possible_in_order(http):
    rosa = await made(http, **ROSA)
    shared = {name: ROSA[name] for name in ("address", "telecom", "gender")}
    daughter = await made(http, name=[{"family": "Alvarez", "given": ["Rosalind"]}], birthDate="1980-01-01", **shared)
    await made(http, name=[{"family": "Smith", "given": ["Ann"]}], birthDate="1951-04-12", gender="female")
    assert await matches(http, ROSA) == [(rosa, "certain")]
    assert await matches(http, THIN) == [(rosa, "probable")], "name and birth date alone are nobody's proof"
    assert await matches(http, {"name": ROSA["name"]}) == [(rosa, "possible")]
    assert daughter not in dict(await matches(http, ROSA))
    by_typo = THIN | {"name": [{"family": "Alvares", "given": ["Rosa"]}], "telecom": ROSA["telecom"]}
    assert (await matches(http, by_typo))[0][0] == rosa
    by_phone = {"telecom": ROSA["telecom"], "name": [{"family": "Alvarez", "given": ["R"]}]}
    assert dict(await matches(http, by_phone)) == {rosa: "possible", daughter: "possible"}


async def test_two_who_match_equally_are_not_certain(http):
    twice = {name: value for name, value in ROSA.items() if name != "identifier"}
    ids = {await made(http, **twice) for _ in range(2)}
    assert dict.fromkeys(ids, "probable") == dict(await matches(http, ROSA))
    assert await matches(http, ROSA, onlyCertainMatches=True) == []
    assert len(await matches(http, ROSA, count=1)) == 1


async def test_a_conflict_is_never_certain(http):
    rosa = await made(http, **ROSA)
    assert (await matches(http, ROSA, onlyCertainMatches=True)) == [(rosa, "certain")]
    other_number = ROSA | {"identifier": [{"system": SSN, "value": "536-90-4813"}]}
    assert (await matches(http, other_number)) == [(rosa, "possible")]
    assert (await matches(http, other_number, onlyCertainMatches=True)) == []


async def test_records_that_are_linked_are_one(http):
    a, b = await made(http, **ROSA), await made(http, **ROSA)
    assert len(await matches(http, ROSA)) == 2
    links = [{"target": {"reference": f"Patient/{id}"}} for id in (a, b)]
    await http.post("/fhir/Person", json={"resourceType": "Person", "link": links}, headers=JSON)
    ((found, grade),) = await matches(http, ROSA)
    assert (found in (a, b), grade) == (True, "certain")


async def test_what_was_merged_stands_for_the_record_that_goes_on(http):
    goes_on = await made(http, name=[{"family": "Newname", "given": ["Rosa"]}])
    await made(http, **ROSA, active=False, link=[{"other": {"reference": f"Patient/{goes_on}"}, "type": "replaced-by"}])
    assert await matches(http, ROSA) == [(goes_on, "certain")]


async def test_a_number_of_one_register_finds_by_itself(http):
    rosa = await made(http, **THIN, identifier=[{"system": MRN, "value": "77"}, *ROSA["identifier"]])
    assert await matches(http, {"identifier": ROSA["identifier"]}) == [(rosa, "possible")]
    assert await matches(http, {"identifier": [{"system": MRN, "value": "78"}]}) == []


async def test_the_patient_itself_is_a_body_too(http):
    rosa = await made(http, **ROSA)
    answer = await http.post("/fhir/Patient/$match", json={"resourceType": "Patient", **ROSA}, headers=JSON)
    assert [entry["resource"]["id"] for entry in answer.json()["entry"]] == [rosa]


async def test_too_little_to_go_by(http):
    for description in (
        {},
        {"gender": "female"},
        {"birthDate": "1900-01-01"},
        {"address": [ADDRESS]},
        {"name": [{"family": "Alvarez"}]},
    ):
        answer = await ask(http, description)
        assert answer.status_code == 400, description
        assert answer.json()["issue"][0]["code"] == "required"


async def test_what_it_needs(http, anonymous):
    assert (await http.get("/fhir/Patient/$match")).status_code == 405
    assert (await http.post("/fhir/Patient/$match", json={"resourceType": "Parameters"}, headers=JSON)).status_code == 422
    assert (await ask(http, ROSA, count=0)).status_code == 400
    wrong = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": {"resourceType": "Person"}}]}
    assert (await http.post("/fhir/Patient/$match", json=wrong, headers=JSON)).status_code == 400
    for scope, status in (("system/Patient.s", 403), ("system/Patient.r", 403), ("system/Patient.rs", 200)):
        anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'app', scope)}"
        assert (await ask(anonymous, ROSA)).status_code == status, scope
