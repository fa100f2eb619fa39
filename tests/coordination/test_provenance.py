"""Who wrote each version is on record, once; and the story of a patient can be told from it."""

import json
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from fhircm.coordination.timeline import rendered, timeline
from fhircm.fhir.outcome import NotFound
from fhircm.fhir.validation import check
from fhircm.store.operations import Delete, Put

from .test_referral import Referral


@pytest.fixture
async def referral(world):
    made = Referral(world)
    await made.patients()
    await made.order()
    return made


async def of(world, reference):
    """The Provenance of each version of a resource, by version."""
    found = await world.find("Provenance", target=reference)
    return {one["target"][0]["reference"].rpartition("/")[2]: one for one in found}


async def test_every_version_of_the_hub_and_its_clients_has_its_provenance(referral):
    await referral.set(status="accepted")
    written = await of(referral.world, f"Task/{referral.id}")
    assert sorted(written) == ["1", "2", "3"]
    created, accepted, brought_in_line = (written[version] for version in "123")
    assert created["agent"][0]["who"]["display"] == "Lakeside care coordination"
    assert accepted["agent"][0]["who"] == {
        "identifier": {"system": "https://fhircm.example/client", "value": "clinic-app"},
        "display": "clinic-app",
    }
    assert created["target"] == [{"reference": f"Task/{referral.id}/_history/1"}, referral.hospital.ref("Patient/p1")]
    assert created["activity"]["coding"][0]["code"] == "CREATE"
    assert created["occurredDateTime"] == "2026-03-02T15:00:00Z"
    assert created["activity"]["text"] == (
        "Task 'Cardiology': status requested, step 2.0 Sent, owner Riverbend, priority routine, due 2026-03-05 23:59"
    )
    assert accepted["activity"]["text"] == "Task 'Cardiology': status requested → accepted"
    assert brought_in_line["activity"]["text"].startswith("Task 'Cardiology': step 2.0 Sent → 3.0 Accepted, due ")


async def test_what_was_pulled_has_its_provenance_from_the_pull(referral):
    order = referral.hospital.id("ServiceRequest/s1")
    assert await of(referral.world, f"ServiceRequest/{order}") == {}


async def test_it_is_written_once(referral):
    before = await referral.world.counts()
    assert await referral.world.again() == []
    assert await referral.world.counts() == before


async def test_a_person_names_all_of_its_patients(referral):
    (person,) = await referral.world.find("Person")
    (written,) = (await of(referral.world, f"Person/{person['id']}")).values()
    patients = {referral.hospital.ref("Patient/p1")["reference"], referral.clinic.ref("Patient/q1")["reference"]}
    assert {one["reference"] for one in written["target"][1:]} == patients


async def test_what_was_deleted_is_named_by_its_versions(world):
    goal = {"resourceType": "Goal", "id": "g", "lifecycleStatus": "active", "description": {"text": "Walk"}}
    patient = {"resourceType": "Patient", "id": "x"}
    goal["subject"] = {"reference": "Patient/x"}
    await world.store.transact([Put(check(json.dumps(one).encode())) for one in (patient, goal)], origin="client:x")
    await world.store.transact([Delete("Goal", "g")], origin="client:x")
    await world.react()
    found = await world.find("Provenance", patient="Patient/x")
    assert sorted(one["activity"]["text"] for one in found) == ["Goal 'Walk': status active", "Goal deleted"]
    assert {one["target"][0]["reference"] for one in found} == {"Goal/g/_history/1", "Goal/g/_history/2"}


async def test_the_story_of_a_referral_in_order_whichever_record_is_asked(referral):
    world = referral.world
    world.clock.advance(timedelta(hours=3))
    await referral.set(status="accepted")
    world.clock.advance(timedelta(days=2))
    period = {"start": "2026-03-06T10:00:00-05:00"}
    await referral.visit("planned", period=period, serviceProvider=referral.clinic.ref("Organization/riverbend"))
    world.clock.advance(timedelta(days=5))
    await referral.report(author=[{"display": "Dr. Consult"}], date="2026-03-09T10:00:00-05:00")
    told = await timeline(world.store, referral.hospital.id("Patient/p1"))
    assert told == await timeline(world.store, referral.clinic.id("Patient/q1"))
    assert [entry.at for entry in told] == sorted(entry.at for entry in told)
    lines = [(entry.who, entry.what.split(",")[0]) for entry in told]
    story = [
        ("Dr. Ordering", "Ordered: Cardiology (active)"),
        ("Lakeside care coordination", "Task 'Cardiology': status requested"),
        ("clinic-app", "Task 'Cardiology': status requested → accepted"),
        ("Lakeside care coordination", "Task 'Cardiology': status accepted → in-progress"),
        ("Riverbend", "Planned: visit"),
        ("Dr. Consult", "Wrote: a document"),
        ("Lakeside care coordination", "Task 'Cardiology': status in-progress → completed"),
    ]
    places = [lines.index(line) for line in story]
    assert places == sorted(places)
    later = await timeline(world.store, referral.hospital.id("Patient/p1"), since=told[-1].at)
    assert later == [entry for entry in told if entry.at >= told[-1].at]


async def test_the_story_as_text(referral):
    text = rendered(await timeline(referral.world.store, referral.hospital.id("Patient/p1")), ZoneInfo("America/Chicago"))
    assert "2026-03-02 09:00  Lakeside care coordination  Task 'Cardiology': status requested" in text
    assert rendered([], ZoneInfo("UTC")) == ""


async def test_the_story_of_nobody(world):
    with pytest.raises(NotFound):
        await timeline(world.store, "nobody")


async def test_what_was_loaded_in_bulk_tells_its_story_too(world):
    patient = {"resourceType": "Patient", "id": "x"}
    code = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    period = {"start": "2020-01-02T08:00:00Z", "end": "2020-01-05"}
    stay = {"resourceType": "Encounter", "id": "s", "status": "finished", "class": code, "period": period}
    stay["subject"] = {"reference": "Patient/x"}
    await world.store.transact([Put(check(json.dumps(one).encode())) for one in (patient, stay)], origin="load")
    await world.react()
    assert [(entry.who, entry.what) for entry in await timeline(world.store, "x")] == [
        ("unknown", "Began: hospital stay"),
        ("unknown", "Ended: hospital stay"),
    ]
