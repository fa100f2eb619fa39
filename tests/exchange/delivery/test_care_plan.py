"""The hub's own plan reaches each partner by the best way that it has: natively, as a document, as a message, or by a human."""

import base64
import json
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from fhircm.exchange import care_plan
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.dead_letters import letters, replay
from fhircm.exchange.partners import PullType
from fhircm.exchange.pull import pull
from fhircm.fhir.validation import check

LADDER = {"care-plan-changed": "default", "care-team-changed": "default", "goal-changed": "default"}
LONGITUDINAL = [{"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "longitudinal"}]}]
NATIVE = "read search-type create update"


def settle(world):
    world.clock.advance(timedelta(seconds=11))


async def plan(world, act, title="Care plan of Amara Okafor", **members):
    """The plan of a human, with a goal and a team, as the hub keeps them."""
    patient = act.ref(act.at(world.clinic, "Patient/c1"))
    goal = {
        "resourceType": "Goal",
        "id": "goal",
        "lifecycleStatus": "active",
        "description": {"text": "Walk 20 minutes a day"},
        "subject": patient,
        "target": [{"measure": {"text": "Walking"}, "detailQuantity": {"value": 20.50, "unit": "min"}, "dueDate": "2026-06-01"}],
    }
    team = {
        "resourceType": "CareTeam",
        "id": "team",
        "status": "active",
        "subject": patient,
        "participant": [
            {"role": [{"text": "Cardiologist"}], "member": act.ref(act.at(world.clinic, "Practitioner/heart"))},
            {"role": [{"text": "Primary care"}], "member": act.ref(act.at(world.hospital, "PractitionerRole/role"))},
        ],
    }
    whole = {
        "resourceType": "CarePlan",
        "id": "plan",
        "identifier": [{"system": "https://fhircm.example/longitudinal", "value": "p1"}],
        "status": "active",
        "intent": "plan",
        "category": LONGITUDINAL,
        "title": title,
        "subject": patient,
        "author": act.ref("Organization/hub"),
        "addresses": [act.ref(act.at(world.hospital, "Condition/chf"))],
        "careTeam": [act.ref("CareTeam/team")],
        "goal": [act.ref("Goal/goal")],
        "activity": [{"detail": {"status": "in-progress", "description": "Weigh every morning"}}],
        **members,
    }
    await world.write(whole, goal, team)  # the one that refers to the others first
    return whole


@pytest.fixture
async def clinic(clinic):
    clinic.partner = replace(clinic.partner, deliver=LADDER)
    return clinic


def attachments(document):
    return [one["attachment"] for one in document["content"]]


async def test_a_plan_is_created_then_kept_alike_where_the_partner_takes_plans(world, act):
    world.clinic.can |= {"CarePlan": NATIVE, "Goal": NATIVE, "CareTeam": NATIVE}
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.posts() == {"CarePlan": 1, "Goal": 1, "CareTeam": 1}
    (there,) = world.clinic.all("CarePlan")
    assert there["subject"] == {"reference": "Patient/c1"}
    assert there["author"] == {"type": "Organization", "display": "Care coordination"}
    assert {"system": "https://fhircm.example/longitudinal", "value": "p1"} in there["identifier"]
    (team,), (goal,) = world.clinic.all("CareTeam"), world.clinic.all("Goal")
    assert there["goal"] == [{"reference": f"Goal/{goal['id']}"}], "it leads to what the hub made there"
    assert there["careTeam"] == [{"reference": f"CareTeam/{team['id']}"}]
    assert team["participant"][0]["member"]["reference"] == "Practitioner/heart"
    member = team["participant"][1]["member"]
    assert member == {"type": "Practitioner", "display": "Ken Ito"}, "nothing leads to what is not there"
    await world.change("CarePlan", "plan", title="Care plan, revised")
    settle(world)
    await world.push(world.clinic)
    assert [one["title"] for one in world.clinic.kept["CarePlan", there["id"]]] == [
        "Care plan of Amara Okafor",
        "Care plan, revised",
    ]
    assert world.clinic.posts()["CarePlan"] == 1


async def test_what_the_partner_changed_stays_and_both_changes_are_there(world, act):
    world.clinic.can |= {"CarePlan": NATIVE}
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    (there,) = world.clinic.all("CarePlan")
    world.clinic.put({**there, "note": [{"text": "Seen by our nurse"}], "description": "Theirs"})
    await world.change("CarePlan", "plan", title="Revised")
    settle(world)
    world.clinic.fail("PUT", "CarePlan", 412)
    await world.push(world.clinic)
    now = world.clinic.kept["CarePlan", there["id"]][-1]
    assert (now["title"], now["description"], now["note"]) == ("Revised", "Theirs", [{"text": "Seen by our nurse"}])


@pytest.mark.parametrize(("prefer", "title"), [("hub", "Ours"), ("partner", "Theirs")])
async def test_what_both_changed_is_never_overwritten_but_left_to_a_human(world, act, prefer, title):
    world.clinic.can |= {"CarePlan": NATIVE}
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    (there,) = world.clinic.all("CarePlan")
    world.clinic.put({**there, "title": "Theirs"})
    await world.change("CarePlan", "plan", title="Ours", description="New here")
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.kept["CarePlan", there["id"]][-1]["title"] == "Theirs"
    ((key, row),) = (await letters(world.store, "clinic")).items()
    assert row["why"] == "conflict" and "the partner (version 2) both changed title" in row["reason"]
    (task,) = await world.tasks("undelivered")
    await replay(world.store, "clinic", key, prefer)
    await world.push(world.clinic)
    now = world.clinic.kept["CarePlan", there["id"]][-1]
    assert (now["title"], now["description"]) == (title, "New here")
    assert (await world.read("Task", task["id"]))["status"] == "cancelled"
    assert await letters(world.store, "clinic") == {}
    await world.change("CarePlan", "plan", note=[{"text": "Later"}])
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.kept["CarePlan", there["id"]][-1]["title"] == title, "what was decided is not asked again"


async def test_a_partner_that_only_patches_is_patched(world, act):
    world.clinic.can |= {"CarePlan": "read search-type create patch"}
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    await world.change("CarePlan", "plan", title="Revised", description="New")
    settle(world)
    await world.push(world.clinic)
    (there,) = world.clinic.all("CarePlan")
    assert (there["title"], there["description"]) == ("Revised", "New")
    assert "PUT" not in {method for method, _ in world.clinic.log}


async def test_a_create_is_conditional_where_the_partner_honours_it(world, act):
    world.clinic.can |= {"CarePlan": NATIVE}
    world.clinic.conditional |= {"CarePlan"}
    await plan(world, act)
    settle(world)
    world.clinic.fail("POST", "CarePlan", "lost")
    world.clinic.fail("GET", "CarePlan", 404)  # and it cannot be searched for just now
    for _ in range(3):
        await world.push(world.clinic)
        world.clock.advance(timedelta(minutes=6))
    assert len(world.clinic.all("CarePlan")) == 1
    asked = [headers.get("if-none-exist") for headers in world.clinic.headers if "if-none-exist" in headers]
    assert set(asked) == {"identifier=https://fhircm.example/delivery|CarePlan/plan/native"}


async def test_a_newer_version_follows_one_whose_answer_was_lost(world, act):
    world.clinic.can |= {"CarePlan": NATIVE}
    await plan(world, act)
    settle(world)
    world.clinic.fail("POST", "CarePlan", "lost")
    await world.push(world.clinic)
    await world.change("CarePlan", "plan", title="Newer")
    settle(world)
    await world.push(world.clinic)
    (there,) = world.clinic.all("CarePlan")
    assert there["title"] == "Newer"
    assert world.clinic.posts()["CarePlan"] == 1


async def test_a_burst_is_sent_once_in_its_newest_version(world, act):
    await plan(world, act)
    for number in range(5):
        await world.push(world.clinic)
        await world.change("CarePlan", "plan", title=f"Version {number}")
    assert world.clinic.posts() == {}, "it waits for the burst to end"
    settle(world)
    report = await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    assert attachments(document)[0]["title"] == "Version 4"
    assert sorted(set(report.superseded)) == [f"CarePlan/plan/_history/{version}" for version in range(1, 6)]
    told = [
        row for row in (await world.store.states("delivery:clinic", "CarePlan/plan")).values() if row["state"] == "superseded"
    ]
    assert [row["by"] for row in told] == [6] * 5
    for _ in range(2):
        settle(world)
        assert (await world.push(world.clinic)).delivered == []


async def test_a_partner_without_plans_gets_a_document_for_people_and_one_for_programs(world, act):
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 1}
    (document,) = world.clinic.all("DocumentReference")
    readable, payload = attachments(document)
    assert (readable["contentType"], payload["contentType"]) == ("application/pdf", "application/fhir+json")
    body = base64.b64decode(readable["data"])
    assert body.startswith(b"%PDF-") and b"/MarkInfo" in body and b"/StructTreeRoot" in body and b"/Lang" in body
    bundle = json.loads(check(base64.b64decode(payload["data"]), "Bundle").body)
    composition = bundle["entry"][0]["resource"]
    assert bundle["type"] == "document" and composition["resourceType"] == "Composition"
    assert [section["title"] for section in composition["section"]] == [
        "Problems and health concerns",
        "Goals",
        "Interventions",
        "Care team",
        "Plan of care",
    ]
    urls = {entry["fullUrl"] for entry in bundle["entry"]}
    for section in composition["section"]:
        assert {entry["reference"] for entry in section.get("entry", [])} <= urls, "all that is listed is in it"
    told = json.dumps(bundle)
    assert "Heart failure" in told and "Reyes" in told and "Walk 20 minutes" in told
    assert f"{world.clinic.base_url}/Patient/c1" in urls
    assert act.at(world.hospital, "Patient/p1") not in told, "another's record of the patient is nobody's business"


async def test_what_a_consent_or_a_label_keeps_back_is_not_in_the_document(world, act):
    patient = act.ref(act.at(world.hospital, "Patient/p1"))
    denied = {
        "resourceType": "Consent",
        "id": "consent",
        "status": "active",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": patient,
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": {"type": "deny", "class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Condition"}]},
    }
    secret = {"lifecycleStatus": "active", "description": {"text": "Secret goal"}, "subject": patient}
    label = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
    await world.write(denied, {"resourceType": "Goal", "id": "secret", "meta": label, **secret})
    await plan(world, act, goal=[act.ref("Goal/goal"), act.ref("Goal/secret")])
    settle(world)
    await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    payload = base64.b64decode(attachments(document)[1]["data"]).decode()
    assert "Walk 20 minutes" in payload
    assert "Heart failure" not in payload and "Secret goal" not in payload
    world.clinic.can |= {"CarePlan": NATIVE, "Goal": NATIVE}
    await world.change("CarePlan", "plan", description="Revised")
    await world.change("Goal", "secret", description={"text": "Secret still"})
    settle(world)
    await world.push(world.clinic)
    (native,) = world.clinic.all("CarePlan")
    assert (native["description"], "addresses" in native) == ("Revised", False)
    assert native["goal"] == [{"type": "Goal", "display": "Walk 20 minutes a day"}]
    assert "Secret" not in json.dumps(world.clinic.all("Goal"))


async def test_the_newer_document_replaces_the_older(world, act):
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    await world.change("CarePlan", "plan", title="Revised")
    settle(world)
    await world.push(world.clinic)
    older, newer = world.clinic.all("DocumentReference")
    assert (older["status"], newer["status"]) == ("superseded", "current")
    assert newer["relatesTo"] == [{"code": "replaces", "target": {"reference": f"DocumentReference/{older['id']}"}}]


async def test_who_takes_one_attachment_gets_the_page_for_people_and_the_next_replaces_it(world, act):
    await plan(world, act)
    settle(world)
    world.clinic.fail("POST", "DocumentReference", 422)
    await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    assert [one["contentType"] for one in attachments(document)] == ["application/pdf"]
    await world.change("CarePlan", "plan", title="Revised")
    settle(world)
    await world.push(world.clinic)
    assert [one["status"] for one in world.clinic.all("DocumentReference")] == ["superseded", "current"]


async def test_that_the_older_cannot_be_superseded_is_no_failure(world, act):
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    await world.change("CarePlan", "plan", title="Revised")
    settle(world)
    world.clinic.fail("PUT", "DocumentReference", 405)
    await world.push(world.clinic)
    assert [one["status"] for one in world.clinic.all("DocumentReference")] == ["current", "current"]
    assert await letters(world.store, "clinic") == {}


async def test_without_anything_else_a_human_enters_it_in_the_portal(world, act):
    world.clinic.can = {}
    await plan(world, act)
    settle(world)
    report = await world.push(world.clinic)
    assert report.undelivered == []
    (task,) = await world.tasks("portal-entry")
    assert "as of version 1" in task["reasonCode"]["text"] and task["focus"]["reference"] == "CarePlan/plan"
    await world.change("CarePlan", "plan", title="Revised")
    settle(world)
    await world.push(world.clinic)
    (task,) = await world.tasks("portal-entry")
    assert "as of version 2" in task["reasonCode"]["text"], "one Task, told the newer"


async def test_what_was_not_granted_is_not_tried(world, act):
    world.clinic.can |= {"CarePlan": NATIVE}
    world.clinic.partner = replace(world.clinic.partner, scopes=("system/CarePlan.rs", "system/DocumentReference.write"))
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 1}
    rows = await world.store.states("delivery:clinic", "CarePlan/plan/care-plan-changed.1/1")
    assert "the hub is not granted to create a CarePlan there" in next(iter(rows.values()))["passed"]


async def test_a_partner_that_comes_to_know_the_patient_gets_the_plan(world, act):
    patient = act.ref(act.at(world.hospital, "Patient/p2"))
    whole = {"status": "active", "intent": "plan", "category": LONGITUDINAL, "subject": patient}
    await world.write({"resourceType": "CarePlan", "id": "of-p2", **whole})
    settle(world)
    await world.push(world.clinic)
    assert world.clinic.posts() == {}
    await world.pulled(world.clinic, {"resourceType": "Patient", "id": "c2", "name": [{"family": "Lund"}]})
    await world.write(act.person(world, "p2", "c2"))
    await world.push(world.clinic)
    settle(world)
    await world.push(world.clinic)
    assert [one["subject"]["reference"] for one in world.clinic.all("DocumentReference")] == ["Patient/c2"]


async def test_the_same_version_is_the_same_bytes_and_a_name_without_a_font_makes_a_page(world, act):
    made = [care_plan.pdf(told("Амара Ωμέγα محمد", "Goal")) for _ in range(2)]
    assert made[0] == made[1] and made[0].startswith(b"%PDF-")
    assert care_plan.pdf(told("\U00012000", "Goal")) is None
    tree = (await world.store.read("Patient", act.at(world.clinic, "Patient/c1").removeprefix("Patient/"))).tree
    await world.write({**tree, "name": [{"text": "\U00012000 Okafor"}]}, origin="partner:clinic")
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    readable = attachments(document)[0]
    assert readable["contentType"] == "text/html" and "\U00012000 Okafor" in base64.b64decode(readable["data"]).decode()


def told(name, goal):
    sections = [{"heading": "Goals", "empty": "None told", "items": [{"name": goal, "facts": ["active"]}]}]
    facts = [["Patient", name]]
    return {"title": "Plan", "author": "Hub", "language": "en", "footer": "x", "facts": facts, "text": [], "sections": sections}


async def test_what_the_hub_wrote_comes_back_and_starts_nothing(world, act):
    """Round after round of pull and push: nothing grows, and nothing more is written on either side."""
    world.clinic.can |= {"CarePlan": NATIVE, "Goal": NATIVE, "CareTeam": NATIVE}
    searches = ((("patient", "{patient}"),),)
    pulled = tuple(PullType(type, searches, by_reference=False, last_updated=False) for type in ("CarePlan", "Goal", "CareTeam"))
    world.clinic.partner = replace(world.clinic.partner, pull=pulled)
    world.clinic.put({"resourceType": "Group", "id": "panel", "member": [{"entity": {"reference": "Patient/c1"}}]})
    await plan(world, act)
    seen = 0
    for number in range(4):
        settle(world)
        async with PartnerClient(world.clinic.partner, transport=httpx.MockTransport(world.clinic.answer)) as client:
            await pull(world.store, client)
        before = await world.store.changes((0, 0), types=None, limit=5000)
        written = [method for method, _ in world.clinic.log if method != "GET"]
        report = await world.push(world.clinic)
        if number:
            assert report.delivered == []
            assert [method for method, _ in world.clinic.log if method != "GET"] == written == ["POST"] * 3
        if number > 1:
            assert len(before.changes) == seen, "nothing was written at the hub either"
        seen = len((await world.store.changes((0, 0), types=None, limit=5000)).changes)
    (copy,) = [one for one in before.changes if one.type == "CarePlan" and one.id != "plan"]
    mirror = await world.read("CarePlan", copy.id)
    assert "https://fhircm.example/delivery" in {one["system"] for one in mirror["identifier"]}, (
        "by that it is known as the hub's own"
    )


async def test_of_the_plans_of_a_humans_records_a_partner_gets_that_of_its_own(world, act):
    await world.write(act.person(world, "p1", "c1"))
    world.clinic.can |= {"CarePlan": NATIVE}
    await plan(world, act, subject=act.ref(act.at(world.hospital, "Patient/p1")))
    settle(world)
    assert (await world.push(world.clinic)).delivered == []
    await plan(world, act)
    settle(world)
    await world.push(world.clinic)
    assert [one["subject"]["reference"] for one in world.clinic.all("CarePlan")] == ["Patient/c1"]
