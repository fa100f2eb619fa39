"""Batches and transactions over HTTP. https://hl7.org/fhir/R4/http.html#transaction"""

import base64
import json

import pytest

from fhircm.store.operations import START

JSON = {"Content-Type": "application/fhir+json"}
MRN = "urn:example:mrn"
U1, U2, U3 = (f"urn:uuid:{n}1111111-1111-4111-8111-111111111111" for n in "123")


def entry(method, url, resource=None, full_url=None, **request):
    made = {"request": {"method": method, "url": url, **request}}
    if resource:
        made["resource"] = resource
    return made | ({"fullUrl": full_url} if full_url else {})


def patient(value="1", **members):
    return {"resourceType": "Patient", "identifier": [{"system": MRN, "value": value}], **members}


def condition(subject, **members):
    return {"resourceType": "Condition", "subject": {"reference": subject}, **members}


async def send(http, *entries, type="transaction", **headers):
    bundle = {"resourceType": "Bundle", "type": type, "entry": list(entries)}
    return await http.post("/fhir", json=bundle, headers=JSON | headers)


async def done(http, *entries, **more):
    answer = await send(http, *entries, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["entry"]


async def made(http, resource):
    return (await http.post(f"/fhir/{resource['resourceType']}", json=resource, headers=JSON)).json()


async def count(http, type):
    return (await http.get(f"/fhir/{type}?_summary=count")).json()["total"]


def located(answered):
    return "/".join(answered["response"]["location"].split("/")[-4:-2])


async def test_references_among_the_entries_lead_to_their_new_ids(http):
    answered = await done(
        http,
        entry("POST", "Condition", condition(U1, evidence=[{"detail": [{"reference": U2}]}]), U3),
        entry("POST", "Patient", patient(text={"status": "generated", "div": f"<div>{U3}</div>"}), U1),
        entry("POST", "Observation", {"resourceType": "Observation", "status": "final", "code": {"text": U1}}, U2),
        **{"Prefer": "return=representation"},
    )
    assert [one["response"]["status"] for one in answered] == ["201 Created"] * 3
    stored, subject, observation = (one["resource"] for one in answered)
    assert stored["subject"]["reference"] == f"Patient/{subject['id']}" == located(answered[1])
    assert stored["evidence"][0]["detail"][0]["reference"] == f"Observation/{observation['id']}"
    assert observation["code"]["text"] == U1, "a text that only looks like a reference stays"
    assert (await http.get(f"/fhir/Condition?patient={subject['id']}&_summary=count")).json()["total"] == 1


async def test_references_may_name_the_address_of_an_entry(http):
    elsewhere = "https://elsewhere.example/fhir"
    answered = await done(
        http,
        entry("POST", "Condition", condition("Patient/p1")),
        entry("POST", "Condition", condition(f"{elsewhere}/Patient/p1")),
        entry("POST", "Patient", patient(), f"{elsewhere}/Patient/p1"),
    )
    subject = located(answered[2])
    for one in answered[:2]:
        assert (await http.get(f"/fhir/{located(one)}")).json()["subject"]["reference"] == subject


async def test_every_kind_of_write_in_one_and_the_answers_in_order(http):
    old, changing, patched = [await made(http, patient(value)) for value in ("old", "changing", "patched")]
    change = json_patch("/active", True)
    answered = await done(
        http,
        entry("GET", f"Patient?identifier={MRN}|new"),
        entry("PATCH", f"Patient/{patched['id']}", change),
        entry("PUT", f"Patient/{changing['id']}", changing | {"active": True}, ifMatch='W/"1"'),
        entry("POST", "Patient", patient("new")),
        entry("DELETE", f"Patient/{old['id']}"),
        entry("GET", f"Patient/{old['id']}"),
        entry("HEAD", f"Patient/{patched['id']}"),
    )
    assert [one["response"]["status"] for one in answered] == [
        "200 OK",
        "200 OK",
        "200 OK",
        "201 Created",
        "204 No Content",
        "410",
        "200 OK",
    ]
    assert len(answered[0]["resource"]["entry"]) == 1, "reads see what the transaction wrote"
    assert answered[2]["response"]["etag"] == 'W/"2"'
    assert answered[5]["response"]["outcome"]["issue"][0]["code"] == "deleted"
    assert "resource" not in answered[6]
    assert (await http.get(f"/fhir/Patient/{patched['id']}")).json()["active"] is True


async def test_conditions_are_decided_and_references_follow(http):
    known = await made(http, patient("known"))
    answered = await done(
        http,
        entry("POST", "Patient", patient("known"), U1, ifNoneExist=f"identifier={MRN}|known"),
        entry("POST", "Condition", condition(U1)),
        entry("PUT", f"Patient?identifier={MRN}|fresh", patient("fresh"), U2),
        entry("POST", "Condition", condition(U2)),
        entry("POST", "Condition", condition(f"Patient?identifier={MRN}|known")),
        entry("DELETE", f"Condition?patient={known['id']}"),
    )
    assert [one["response"]["status"][:3] for one in answered] == ["200", "201", "201", "201", "201", "204"]
    subjects = [(await http.get(f"/fhir/{located(answered[at])}")).json()["subject"]["reference"] for at in (1, 3, 4)]
    assert subjects == [f"Patient/{known['id']}", located(answered[2]), f"Patient/{known['id']}"]
    assert await count(http, "Patient") == 2


def json_patch(path, value):
    operations = json.dumps([{"op": "add", "path": path, "value": value}]).encode()
    return {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": base64.b64encode(operations).decode()}


TASK = {"resourceType": "Task", "status": "requested", "intent": "order"}
FAILING = {
    "an unknown element": (lambda ids: entry("POST", "Patient", patient(colour="red")), 422, "Bundle.entry[1].resource"),
    "a wrong code": (lambda ids: entry("POST", "Patient", patient(gender="blue")), 422, "Bundle.entry[1].resource.gender"),
    "a type that is none": (lambda ids: entry("POST", "Nonsense", patient()), 422, "Bundle.entry[1]"),
    "another type than the URL": (lambda ids: entry("POST", "Task", patient()), 422, "Bundle.entry[1]"),
    "no resource": (lambda ids: entry("POST", "Patient"), 422, "Bundle.entry[1].resource"),
    "no request": (lambda ids: {"resource": patient()}, 422, "Bundle.entry[1].request"),
    "a condition on nothing": (lambda ids: entry("POST", "Condition", condition("Patient?identifier=none")), 422, "Bundle.entry[1].resource.subject"),
    "another id than the URL": (lambda ids: entry("PUT", f"Patient/{ids[0]}", patient(id="x")), 422, "Bundle.entry[1].resource.id"),
    "a stale version": (lambda ids: entry("PUT", f"Patient/{ids[0]}", patient(id=ids[0]), ifMatch='W/"9"'), 412, "Bundle.entry[1]"),
    "an update of nothing": (lambda ids: entry("PUT", "Patient/none", patient(id="none")), 404, "Bundle.entry[1]"),
    "a delete of what is needed": (lambda ids: entry("DELETE", f"Patient/{ids[1]}"), 409, "Bundle.entry[1]"),
    "a delete of nothing": (lambda ids: entry("DELETE", "Patient/none"), 404, "Bundle.entry[1]"),
    "an illegal step": (lambda ids: entry("PUT", f"Task/{ids[2]}", TASK | {"id": ids[2], "status": "completed"}), 422, "Bundle.entry[1].resource.status"),
    "a reference to nowhere": (lambda ids: entry("POST", "Condition", condition("Patient/none")), 422, "Bundle.entry[1].resource.subject"),
    "a patch to a reference to nowhere": (lambda ids: entry("PATCH", f"Patient/{ids[0]}", json_patch("/managingOrganization", {"reference": "Organization/none"})), 422, "Bundle.entry[1].resource.managingOrganization"),
    "the same resource twice": (lambda ids: entry("DELETE", f"Patient/{ids[3]}"), 422, "Bundle.entry[2].request.url"),
    "an operation": (lambda ids: entry("POST", "Patient/$match", patient()), 422, "Bundle.entry[1].request.url"),
    "a condition that is none": (lambda ids: entry("DELETE", "Patient?colour=red"), 400, None),
    "a condition on several": (lambda ids: entry("PUT", f"Patient?identifier={MRN}|1", patient()), 412, "Bundle.entry[1]"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "status", "place"), FAILING.values(), ids=FAILING)
async def test_one_that_fails_takes_all_with_it_and_is_told_with_its_place(http, store, wrong, status, place):
    ids = [(await made(http, patient()))["id"] for _ in range(2)]
    await made(http, condition(f"Patient/{ids[1]}"))
    ids.append((await made(http, TASK))["id"])
    ids.append((await made(http, patient("2")))["id"])
    before = (await store.changes(START)).upto
    answer = await send(
        http, entry("POST", "Patient", patient("new")), wrong(ids), entry("PUT", f"Patient/{ids[3]}", patient("2", id=ids[3]))
    )
    assert answer.status_code == status, answer.text
    issues = answer.json()["issue"]
    if place:
        assert any(expression.startswith(place) for issue in issues for expression in issue.get("expression", [])), issues
    assert (await store.changes(START)).upto == before


async def test_every_issue_is_told_at_once(http):
    answer = await send(http, *(entry("POST", "Patient", patient(gender="blue")) for _ in range(3)))
    assert [issue["expression"][0] for issue in answer.json()["issue"]] == [
        f"Bundle.entry[{n}].resource.gender" for n in range(3)
    ]


@pytest.mark.parametrize(
    ("bundle", "status"),
    [
        ({"resourceType": "Patient"}, 400),
        ({"resourceType": "Bundle", "type": "collection"}, 422),
        ({"resourceType": "Bundle", "type": "transaction", "entry": {}}, 422),
        ({"resourceType": "Bundle", "type": "transaction", "entry": [1]}, 422),
        ({"resourceType": "Bundle", "type": "transaction", "entry": [{"request": {"method": "JUMP", "url": "x"}}]}, 422),
        ({"resourceType": "Bundle", "type": "transaction", "entry": [{"resource": 1, "request": {"method": "POST", "url": "Patient"}}]}, 422),
        ({"resourceType": "Bundle", "type": "transaction"}, 200),
        ({"resourceType": "Bundle", "type": "batch"}, 200),
    ],
)  # fmt: skip
async def test_a_bundle_that_is_none_is_refused(http, bundle, status):
    answer = await http.post("/fhir", json=bundle, headers=JSON)
    assert answer.status_code == status, answer.text


async def test_each_entry_of_a_batch_stands_alone(http):
    known = await made(http, patient())
    answered = await done(
        http,
        entry("POST", "Patient", patient("2")),
        entry("POST", "Patient", patient(gender="blue")),
        entry("GET", f"Patient/{known['id']}"),
        entry("GET", f"Patient/{known['id']}", ifNoneMatch='W/"1"'),
        entry("GET", "Patient?colour=red"),
        entry("GET", f"Patient/{known['id']}/$meta"),
        entry("PUT", f"Patient/{known['id']}", known | {"active": True}, ifMatch='W/"7"'),
        entry("DELETE", "Patient/none"),
        entry("GET", f"Patient?identifier={MRN}|1"),
        type="batch",
    )
    statuses = [one["response"]["status"][:3] for one in answered]
    assert statuses == ["201", "422", "200", "304", "400", "200", "412", "404", "200"]
    assert answered[2]["resource"]["id"] == known["id"]
    assert answered[1]["response"]["outcome"]["issue"][0]["expression"] == ["Patient.gender"]
    assert answered[5]["resource"]["parameter"][0]["name"] == "return"
    inner = {"resourceType": "Bundle", "type": "batch"}
    assert (await done(http, entry("POST", "/", inner), type="batch"))[0]["response"]["status"] == "400"


async def test_scopes_are_kept_for_every_entry(anonymous):
    from .signing import signed_in

    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, 'app', 'system/Patient.cs')}"}
    writes = [entry("POST", "Patient", patient()), entry("POST", "Observation", {"resourceType": "Observation", "status": "final", "code": {"text": "a"}})]  # fmt: skip
    refused = await send(anonymous, *writes, **narrow)
    assert refused.status_code == 403
    assert "system/Observation.c" in refused.text
    answered = await done(anonymous, *writes, entry("GET", "Patient"), entry("GET", "Task"), type="batch", **narrow)
    assert [one["response"]["status"][:3] for one in answered] == ["201", "403", "200", "403"]


async def test_what_is_exact_stays_exact(http):
    resource = '{ "resourceType" : "Observation","status":"final","code":{"text":"Ü"},"valueQuantity":{"value":2.50},"subject":{"reference" :\n"U2"}}'
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [entry("POST", "Observation", "HERE", U1), entry("POST", "Patient", patient(), U2)],
    }
    body = json.dumps(bundle).replace('"HERE"', resource.replace("U2", U2))
    answer = await http.post("/fhir", content=body.encode(), headers=JSON)
    stored = await http.get(f"/fhir/{located(answer.json()['entry'][0])}")
    assert '{ "resourceType" : "Observation"' in stored.text
    assert '"value":2.50' in stored.text
    subject = located(answer.json()["entry"][1])
    assert f'"reference" :\n"{subject}"' in stored.text
    assert json.loads(stored.text)["code"]["text"] == "Ü"
