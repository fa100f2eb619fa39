"""Two organisations that sign in: each takes its own steps, by every way in, and what is refused changes nothing."""

import json
from urllib.parse import quote

import pytest

from fhircm.coordination.state_tables import protocols
from fhircm.fhir.outcome import IllegalTransition
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put

from .world import Someone, World, ref

ASKS = Someone("hospital-system", "system/*.cruds", "Organization/hospital")
DOES = Someone("clinic-system", "system/*.cruds", "Organization/clinic")
LOOKS_ON = Someone("payer-system", "system/*.cruds", "Organization/payer")
NURSE = Someone("nurse-app", "user/*.cruds", "Organization/clinic", "Practitioner/nurse", ("nurse",))
COORDINATOR = Someone("desk", "user/*.cruds", "Organization/payer", "Practitioner/coordinator", ("care-coordinator",))
CUSTODIAN = Someone("engine", "system/*.cruds", "Organization/hub", None, ("custodian",))
GRAVITY = sorted(protocols("Task")["gravity"].profiles)[0]
FULFILL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
WHY = {"text": "No capacity"}
ROLE = "https://fhircm.example/role"


def referral(id, **members):
    return {
        "resourceType": "Task",
        "id": id,
        "meta": {"profile": [GRAVITY]},
        "identifier": [{"system": "urn:t", "value": id}],
        "status": "requested",
        "intent": "order",
        "code": FULFILL,
        "focus": ref("ServiceRequest/order"),
        "for": ref("Patient/p"),
        "authoredOn": "2026-01-01",
        "requester": ref("PractitionerRole/surgeon"),
        "owner": ref("Organization/clinic"),
        **members,
    }


def records(clock):
    one = World(clock.now, None)
    for name in ("hospital", "clinic", "payer", "hub"):
        one.add("Organization", name, plain=True, name=name)
    for name in ("nurse", "physician", "surgeon", "stranger", "coordinator"):
        one.add("Practitioner", name, plain=True, name=[{"family": name}])
    for name, place in (("nurse", "clinic"), ("physician", "clinic"), ("surgeon", "hospital")):
        house = ref(f"Organization/{place}")
        one.add("PractitionerRole", name, plain=True, practitioner=ref(f"Practitioner/{name}"), organization=house)
    one.add("Patient", "p", plain=True, name=[{"family": "Okafor"}])
    team = [{"member": ref(f"Organization/{name}")} for name in ("hospital", "clinic", "payer")]
    one.add("CareTeam", "team", plain=True, status="active", subject=ref("Patient/p"), participant=team)
    for id, requester in (("order", "PractitionerRole/surgeon"), ("of-stranger", "Practitioner/stranger")):
        order = {"status": "active", "intent": "order", "subject": ref("Patient/p"), "requester": ref(requester)}
        one.add("ServiceRequest", id, plain=True, **order, performer=[ref("Organization/clinic")])
    one.resources.append(referral("t"))
    return one.resources


@pytest.fixture
async def asked(asking, clock):
    async with asking(records(clock), update_create=True) as of:
        yield of


# --- every way in ------------------------------------------------------------------------------------------------------------


async def _put(who, tree):
    return await who.http.put(f"/fhir/{tree['resourceType']}/{tree['id']}", json=tree, headers=who.headers)


async def _conditional_update(who, tree):
    path = f"/fhir/{tree['resourceType']}?identifier={quote('urn:t|' + tree['id'])}"
    return await who.http.put(path, json=tree, headers=who.headers)


def _patches(tree):
    made = [{"op": "add", "path": f"/{name}", "value": tree[name]} for name in ("status", "statusReason") if name in tree]
    return json.dumps(made)


async def _json_patch(who, tree):
    headers = who.headers | {"Content-Type": "application/json-patch+json"}
    return await who.http.patch(f"/fhir/{tree['resourceType']}/{tree['id']}", content=_patches(tree), headers=headers)


async def _fhirpath_patch(who, tree):
    part = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": f"{tree['resourceType']}.status"},
        {"name": "value", "valueCode": tree["status"]},
    ]
    change = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": part}]}
    return await who.http.patch(f"/fhir/{tree['resourceType']}/{tree['id']}", json=change, headers=who.headers)


async def _conditional_patch(who, tree):
    headers = who.headers | {"Content-Type": "application/json-patch+json"}
    path = f"/fhir/{tree['resourceType']}?identifier={quote('urn:t|' + tree['id'])}"
    return await who.http.patch(path, content=_patches(tree), headers=headers)


def _bundle(kind, tree):
    entry = {"resource": tree, "request": {"method": "PUT", "url": f"{tree['resourceType']}/{tree['id']}"}}
    beside = {"resourceType": "Basic", "code": {"text": "beside"}, "subject": ref("Patient/p")}
    entries = [{"resource": beside, "request": {"method": "POST", "url": "Basic"}}, entry]
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


async def _transaction(who, tree):
    return await who.post("", _bundle("transaction", tree))


async def made(who, tree):
    """It as it was made, with the id that it got."""
    answer = await who.post(tree["resourceType"], {key: value for key, value in tree.items() if key != "id"})
    assert answer.status_code == 201, answer.text
    return {**tree, "id": answer.json()["id"]}


WAYS = [_put, _conditional_update, _json_patch, _fhirpath_patch, _conditional_patch, _transaction]


async def test_a_step_that_is_not_in_the_table_or_not_theirs_is_refused_by_every_way_in(asked):
    requester, performer = await asked(ASKS), await asked(DOES)
    for way in WAYS:
        skipped = await way(performer, referral("t", status="completed"))
        assert skipped.status_code == 422, (way, skipped.text)
        issue = skipped.json()["issue"][0]
        assert "Task.status may go from 'requested' to: accepted, cancelled, rejected" in issue["diagnostics"]
        theirs = await way(requester, referral("t", status="accepted"))
        assert theirs.status_code == 403, (way, theirs.text)
        issue = theirs.json()["issue"][0]
        assert "taken by the performer (Task.owner" in issue["diagnostics"]
        assert "you are the requester, and may go to: cancelled" in issue["diagnostics"]
        assert issue["code"] == "forbidden"
        bare = await way(performer, referral("t", status="rejected"))
        assert bare.status_code == 422
        assert bare.json()["issue"][0]["expression"][0].endswith("statusReason")
    batch = (await performer.post("", _bundle("batch", referral("t", status="completed")))).json()
    assert [one["response"]["status"][:3] for one in batch["entry"]] == ["201", "422"], "entries of a batch stand alone"
    assert (await performer.get("Task/t")).json()["meta"]["versionId"] == "1"
    assert (await performer.get("Basic?_summary=count")).json()["total"] == 1, "a transaction is done whole or not at all"
    for step, way in zip(("accepted", "in-progress", "on-hold", "in-progress", "completed"), WAYS, strict=False):
        reason = {"statusReason": WHY} if step == "on-hold" else {}
        done = await way(performer, referral("t", status=step, **reason))
        assert done.status_code == 200, (way, done.text)


@pytest.mark.parametrize(
    ("tree", "then", "told"),
    [
        (
            {"resourceType": "ServiceRequest", "status": "draft", "intent": "order", "subject": ref("Patient/p")},
            "completed",
            "ServiceRequest.status may go from 'draft' to: active, on-hold, revoked, unknown",
        ),
        (
            {"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"}, "subject": ref("Patient/p")},
            "planned",
            "Encounter.status may go from 'finished' to: in-progress",
        ),
        (
            {
                "resourceType": "Appointment",
                "status": "booked",
                "start": "2026-05-05T09:00:00Z",
                "end": "2026-05-05T09:30:00Z",
                "participant": [{"actor": ref("Patient/p"), "status": "accepted"}],
            },
            "proposed",
            "Appointment.status may go from 'booked' to: arrived, cancelled, checked-in, fulfilled, noshow, pending, waitlist",
        ),
        (
            {"resourceType": "EpisodeOfCare", "status": "finished", "patient": ref("Patient/p")},
            "active",
            "EpisodeOfCare.status may go from 'finished' to: nothing",
        ),
    ],
    ids=["ServiceRequest", "Encounter", "Appointment", "EpisodeOfCare"],
)
async def test_the_other_types_have_their_tables_by_every_way_in(asked, tree, then, told):
    who = await asked(CUSTODIAN)
    tree = {**tree, "id": "x", "identifier": [{"system": "urn:t", "value": "x"}]}
    assert (await _put(who, tree)).status_code == 201
    for way in WAYS:
        refused = await way(who, {**tree, "status": then})
        assert refused.status_code == 422, (way, refused.text)
        assert told in refused.json()["issue"][0]["diagnostics"]
    assert (await who.get(f"{tree['resourceType']}/x")).json()["meta"]["versionId"] == "1"


async def test_an_operation_is_refused_as_the_update_is(asked):
    assert (await (await asked(ASKS)).post("Task/t/$accept", None)).status_code == 403
    never_asked = await (await asked(LOOKS_ON)).post("Task/t/$accept", None)
    assert never_asked.status_code == 403, "an accept from somebody who was never asked"
    assert "you are neither, and may go to: nothing" in never_asked.json()["issue"][0]["diagnostics"]
    assert (await (await asked(DOES)).post("Task/t/$accept", None)).status_code == 200


# --- who is who --------------------------------------------------------------------------------------------------------------


async def test_people_act_for_their_organisation_and_an_organisation_for_its_people(asked):
    nurse, clinic, hospital = await asked(NURSE), await asked(DOES), await asked(ASKS)
    assert (await _put(nurse, referral("t", status="accepted"))).status_code == 200, "the owner is her organisation"
    of_colleague = await made(hospital, referral("u", owner=ref("PractitionerRole/physician")))  # asked by a role at the hospital
    assert (await _put(clinic, {**of_colleague, "status": "accepted"})).status_code == 200
    for owner in ("Practitioner/physician", "PractitionerRole/nurse"):
        other = await made(hospital, referral("v", owner=ref(owner)))
        assert (await _put(nurse, {**other, "status": "accepted"})).status_code == 200, owner
    assert (await _put(await asked(LOOKS_ON), {**of_colleague, "status": "failed", "statusReason": WHY})).status_code == 403
    assert (await _put(await asked(CUSTODIAN), {**of_colleague, "status": "in-progress"})).status_code == 200


async def test_a_task_in_the_name_of_somebody_else_is_not_made(asked):
    forged = await (await asked(LOOKS_ON)).post("Task", referral("forged", owner=ref("Organization/payer")))
    assert forged.status_code == 403
    assert "the requester (Task.requester)" in forged.json()["issue"][0]["diagnostics"]


async def test_an_open_task_is_taken_by_whom_it_is_addressed_to_and_each_for_themselves(asked):
    hospital, clinic, payer = await asked(ASKS), await asked(DOES), await asked(LOOKS_ON)
    open_ = {key: value for key, value in referral("open").items() if key != "owner"}
    only = {**open_, "id": "only", "restriction": {"recipient": [ref("Organization/clinic")]}}
    open_, only = await made(hospital, open_), await made(hospital, only)
    mine = {"status": "accepted", "owner": ref("Organization/payer")}
    refused = await _put(payer, {**only, **mine})
    assert refused.status_code == 403, "never asked"
    assert (await _put(payer, {**open_, "status": "accepted", "owner": ref("Organization/clinic")})).status_code == 403
    without = await _put(payer, {**open_, "status": "accepted"})
    assert (without.status_code, without.json()["issue"][0]["expression"]) == (422, ["Task.owner"])
    assert (await _put(payer, {**open_, **mine})).status_code == 200
    late = await _put(clinic, {**open_, "status": "accepted", "owner": ref("Organization/clinic")})
    assert late.status_code == 403, "it has an owner now, and another claims it"
    assert "it is owned by somebody else" in late.json()["issue"][0]["diagnostics"]
    assert (await _put(clinic, {**only, "status": "accepted", "owner": ref("PractitionerRole/physician")})).status_code == 200


async def test_a_plain_task_is_worked_on_by_who_is_concerned_with_it(asked):
    plain = {"resourceType": "Task", "status": "requested", "intent": "order", "for": ref("Patient/p")}
    hospital, nurse, payer = await asked(ASKS), await asked(NURSE), await asked(LOOKS_ON)
    mine = {**plain, "id": "mine", "requester": ref("Organization/hospital"), "owner": ref("Organization/hospital")}
    queue = {**plain, "id": "queue", "performerType": [{"coding": [{"system": ROLE, "code": "care-coordinator"}]}]}
    loose = {**plain, "id": "loose"}
    mine, queue, loose = [await made(hospital, tree) for tree in (mine, queue, loose)]
    refused = await _put(payer, {**mine, "status": "accepted"})
    assert refused.status_code == 403
    assert "or somebody in a role of Task.performerType" in refused.json()["issue"][0]["diagnostics"]
    assert (await _put(payer, {**mine, "note": [{"text": "seen"}]})).status_code == 200, "a note is no step"
    assert (await _put(payer, {**mine, "owner": ref("Organization/payer")})).status_code == 403
    assert (await _put(hospital, {**mine, "status": "accepted"})).status_code == 200
    assert (await _put(nurse, {**queue, "status": "accepted"})).status_code == 403, "it is not her queue"
    taken = {**queue, "status": "accepted", "owner": ref("Practitioner/coordinator")}
    assert (await _put(await asked(COORDINATOR), taken)).status_code == 200
    assert (await _put(payer, {**loose, "status": "accepted"})).status_code == 200, "nobody's, and addressed to nobody"


async def test_the_order_stays_the_requesters(asked):
    hospital, clinic, payer = await asked(ASKS), await asked(DOES), await asked(LOOKS_ON)
    order = (await hospital.get("ServiceRequest/order")).json()
    for who in (clinic, payer):
        refused = await _put(who, {**order, "status": "completed"})
        assert refused.status_code == 403, refused.text
        assert refused.json()["issue"][0]["diagnostics"].startswith(
            "ServiceRequest.status: the step from 'active' to 'completed'"
        )
        assert (await _put(who, {**order, "requester": ref("Organization/clinic")})).status_code == 403
    assert (await _put(clinic, {**order, "note": [{"text": "seen"}]})).status_code == 200
    assert (await _put(hospital, {**order, "status": "completed"})).status_code == 200
    of_stranger = (await hospital.get("ServiceRequest/of-stranger")).json()
    assert (await _put(clinic, {**of_stranger, "status": "revoked"})).status_code == 403, (
        "the one who is asked does not end the order"
    )
    assert (await _put(hospital, {**of_stranger, "status": "revoked"})).status_code == 200, "nobody knows whose the requester is"


async def test_nobody_deletes_what_others_ask_for_or_do(asked):
    hospital, clinic, payer = await asked(ASKS), await asked(DOES), await asked(LOOKS_ON)

    async def delete(who, path):
        return (await who.http.delete(f"/fhir/{path}", headers=who.headers)).status_code

    assert await delete(payer, "Task/t") == 403
    assert [await delete(who, "ServiceRequest/of-stranger") for who in (clinic, payer)] == [403, 204]
    assert await delete(clinic, "Task/t") == 204
    assert [await delete(who, "ServiceRequest/order") for who in (clinic, hospital)] == [403, 204]


async def test_what_a_partner_says_of_its_own_tasks_may_miss_steps_and_goes_not_back(asked):
    theirs = referral("theirs", meta={"profile": [GRAVITY], "source": "https://ehr.example/Task/1"}, status="requested")

    async def snapshot(**members):
        await asked.store.transact([Put(check_tree({**theirs, **members}))], origin="partner:lakeside")

    await snapshot()
    await snapshot(status="completed")
    with pytest.raises(IllegalTransition, match="may go from 'completed' to: nothing"):
        await snapshot(status="in-progress")
    by_client = await _put(await asked(LOOKS_ON), {**theirs, "status": "entered-in-error"})
    assert by_client.status_code == 403, "a mirror is no free ground"
