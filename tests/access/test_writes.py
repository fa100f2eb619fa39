"""Writing: nothing that is not seen is changed, referred to or told of, and nobody opens a record for himself."""

import json

import pytest

from .test_probes import Asked, normal
from .world import ACT, LOINC, Someone, World, admitted, concept, ref, write

CLINIC = Someone("clinic-writer", "system/*.cruds", "Organization/clinic")
RECEIVER = Someone("receiver", "system/*.cruds", "Organization/receiver")
HEART = Someone(
    "heart-app",
    "patient/Observation.cruds?category=vital-signs patient/Patient.rs",
    None,
    "Patient/mine",
    ("patient",),
    {"patient": "mine"},
)


def records(clock):
    one = World(clock.now, None)
    for name in ("clinic", "receiver", "elsewhere"):
        one.add("Organization", name, plain=True, name=name)
    for id in ("mine", "other"):
        one.add("Patient", id, plain=True, identifier=[{"system": "urn:mrn", "value": id}])
        one.add("Condition", f"c-{id}", plain=True, subject=ref(f"Patient/{id}"), code=concept("a"))
        one.add("Observation", f"o-{id}", plain=True, status="final", subject=ref(f"Patient/{id}"), code=concept("1"))
    one.add(
        "CareTeam",
        "team",
        plain=True,
        status="active",
        subject=ref("Patient/mine"),
        participant=[{"member": ref("Organization/clinic")}],
    )
    one.add(
        "ServiceRequest",
        "order",
        plain=True,
        status="active",
        intent="order",
        subject=ref("Patient/other"),
        requester=ref("Organization/elsewhere"),
        performer=[ref("Organization/receiver")],
        reasonReference=[ref("Condition/c-other")],
    )
    return one.resources


@pytest.fixture
async def asked(asking, clock):
    async with asking(records(clock), update_create=True) as of:
        yield of


async def put(asked, path, tree, **headers):
    return await asked.http.put(f"/fhir/{path}", json=tree, headers=asked.headers | headers)


def without_ids(answer, *ids):
    text = json.dumps(normal(answer))
    for id in ids:
        text = text.replace(id, "ID")
    return text


async def test_what_is_hidden_is_written_to_as_if_it_did_not_exist(asked):
    clinic = await asked(CLINIC)
    for method, path, tree in (
        ("PUT", "Observation/{}", {"resourceType": "Observation", "id": "{}", "status": "final", "code": concept("1")}),
        ("PATCH", "Observation/{}", [{"op": "replace", "path": "/status", "value": "amended"}]),
        ("DELETE", "Observation/{}", None),
        ("POST", "Condition", {"resourceType": "Condition", "subject": ref("Patient/{}")}),
        (
            "POST",
            "Observation/{}/$meta-add",
            {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "x"}]}}]},
        ),
        ("PUT", "Observation?_id={}", {"resourceType": "Observation", "id": "{}", "status": "final", "code": concept("1")}),
    ):
        answers = []
        for id in ("other", "none") if method == "POST" and path == "Condition" else ("o-other", "o-none"):
            body = None if tree is None else json.dumps(tree).replace("{}", id)
            kind = "application/json-patch+json" if method == "PATCH" else "application/fhir+json"
            answer = await clinic.http.request(
                method, f"/fhir/{path.replace('{}', id)}", content=body, headers=clinic.headers | {"Content-Type": kind}
            )
            answers.append(without_ids(answer, id))
        assert answers[0] == answers[1], (method, path)
        assert json.loads(answers[0])[0] >= 400


async def test_a_conditional_write_does_not_find_what_is_hidden(asked):
    clinic = await asked(CLINIC)
    tree = {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:mrn", "value": "other"}],
        "managingOrganization": ref("Organization/clinic"),
    }
    answer = await clinic.post("Patient", tree, **{"If-None-Exist": "identifier=urn:mrn|other"})
    assert answer.status_code == 201, "of what is hidden another one is made"
    entry = {
        "resource": {"resourceType": "Condition", "subject": ref("Patient?identifier=urn:mrn|hidden")},
        "request": {"method": "POST", "url": "Condition"},
    }
    answer = await clinic.post("", {"resourceType": "Bundle", "type": "transaction", "entry": [entry]})
    assert answer.status_code in (400, 412, 422)


async def test_a_new_resource_must_be_of_those_whom_one_cares_for(asked):
    clinic = await asked(CLINIC)
    assert (await clinic.post("Condition", {"resourceType": "Condition", "subject": ref("Patient/mine")})).status_code == 201
    for tree in (
        {"resourceType": "Patient", "name": [{"family": "Unowned"}]},
        {"resourceType": "List", "status": "current", "mode": "working"},
    ):
        assert (await clinic.post(tree["resourceType"], tree)).status_code == 403
    mine = {"resourceType": "Patient", "managingOrganization": ref("Organization/clinic")}
    made = (await clinic.post("Patient", mine)).json()
    assert (
        await clinic.post("Condition", {"resourceType": "Condition", "subject": ref(f"Patient/{made['id']}")})
    ).status_code == 201


async def test_a_reference_that_is_there_already_may_stay_though_its_target_is_hidden(asked):
    receiver = await asked(RECEIVER)
    order = (await receiver.get("ServiceRequest/order")).json()
    assert (await put(receiver, "ServiceRequest/order", order | {"note": [{"text": "seen"}]})).status_code == 200


async def test_nobody_opens_a_record_for_himself(asked):
    receiver = await asked(RECEIVER)
    assert (await receiver.get("Patient/other")).status_code == 200
    assert (await receiver.get("Condition/c-other")).status_code == 200
    assert (await receiver.get("Observation/o-other")).status_code == 404, "a referral shares what it names"
    subject, me = ref("Patient/other"), ref("Organization/receiver")
    for tree in (
        {"resourceType": "CareTeam", "status": "active", "subject": subject, "participant": [{"member": me}]},
        {
            "resourceType": "Encounter",
            "status": "in-progress",
            "class": {"code": "AMB"},
            "subject": subject,
            "serviceProvider": me,
        },
        {"resourceType": "EpisodeOfCare", "status": "active", "patient": subject, "managingOrganization": me},
        {"resourceType": "Coverage", "status": "active", "beneficiary": subject, "payor": [me]},
        {"resourceType": "Group", "type": "person", "actual": True, "managingEntity": me, "member": [{"entity": subject}]},
        {
            "resourceType": "Consent",
            "status": "active",
            "scope": concept("patient-privacy", "http://terminology.hl7.org/CodeSystem/consentscope"),
            "category": [concept("59284-0", LOINC)],
            "patient": subject,
            "policyRule": concept("OPTIN", ACT),
            "provision": {"type": "permit", "actor": [{"role": concept("IRCP"), "reference": me}]},
        },
    ):
        answer = await receiver.post(tree["resourceType"], tree)
        assert answer.status_code == 403, (tree["resourceType"], answer.text)
    patient = (await receiver.get("Patient/other")).json() | {"managingOrganization": me}
    assert (await put(receiver, "Patient/other", patient)).status_code == 403
    task = {"resourceType": "Task", "status": "requested", "intent": "order", "owner": me, "focus": ref("Observation/o-other")}
    assert (await receiver.post("Task", task)).status_code == 422, "a task cannot name what its writer does not see"
    assert (await receiver.get("Observation/o-other")).status_code == 404


async def test_an_app_of_a_patient_writes_within_its_granular_scope(asked):
    app = await asked(HEART)
    vital = {
        "resourceType": "Observation",
        "status": "final",
        "subject": ref("Patient/mine"),
        "code": concept("8867-4", LOINC),
        "category": [concept("vital-signs", "http://terminology.hl7.org/CodeSystem/observation-category")],
    }
    made = await app.post("Observation", vital)
    assert made.status_code == 201, made.text
    assert (await app.get(f"Observation/{made.json()['id']}")).status_code == 200
    assert (await app.get("Observation/o-mine")).status_code == 404, "of another category"
    other = {**vital, "category": [concept("laboratory")]}
    assert (await app.post("Observation", other)).status_code == 403
    assert (await put(app, f"Observation/{made.json()['id']}", made.json() | {"category": other["category"]})).status_code == 403
    assert (await app.post("Observation", {**vital, "subject": ref("Patient/other")})).status_code == 422
    assert (await app.http.delete(f"/fhir/Observation/{made.json()['id']}", headers=app.headers)).status_code == 403, (
        "a patient deletes nothing"
    )


async def test_a_relationship_that_has_ended_is_not_prolonged_while_its_grace_lasts(opened, clock):
    trees = records(clock)
    team = next(tree for tree in trees if tree["resourceType"] == "CareTeam")
    team["participant"][0]["period"] = {"end": "2026-02-27"}
    async with opened() as (store, http):
        await write(store, trees)
        clinic = Asked(http, await admitted(store.database, CLINIC))
        assert (await clinic.get("Condition/c-mine")).status_code == 200
        mine = (await clinic.get("CareTeam/team")).json()
        assert await prolonged(clinic, mine, {"end": "2027-02-27"}) == 403
        assert await prolonged(clinic, mine, {}) == 403
        assert await prolonged(clinic, mine, {"end": "2026-02-27"}) == 200


async def prolonged(asked, team, period):
    member = {key: value for key, value in team["participant"][0].items() if key != "period"}
    changed = team | {"participant": [member | ({"period": period} if period else {})]}
    answer = await asked.http.put("/fhir/CareTeam/team", json=changed, headers=asked.headers)
    return answer.status_code
