"""Who is to have a Task: by room, skill, language, who cares for the patient already, and load; never past anybody's capacity."""

import asyncio
from datetime import timedelta

import pytest

from fhircm.coordination import assigning, handing_on
from fhircm.fhir.outcome import VersionConflict
from fhircm.store.changes import CursorMoved
from fhircm.store.operations import MoveCursor, preceded_by
from tests.access.world import ref, write
from tests.coordination.desk import QUEUE, claim, opened, role

CAPACITY = "https://fhircm.example/StructureDefinition/caseload-capacity"
AUTO = "https://fhircm.example/StructureDefinition/auto-assignment"
SKILL = {"coding": [{"system": "http://nucc.org/provider-taxonomy", "code": "163WC0400X"}]}
SPANISH = {"coding": [{"system": "urn:ietf:bcp:47", "code": "es"}]}


@pytest.fixture
async def desk(database_url, clock, tmp_path):
    async with opened(database_url, clock, tmp_path) as one:
        yield one


def works(name, capacity=None, **members):
    extension = {"extension": [{"url": CAPACITY, "valueUnsignedInt": capacity}]} if capacity is not None else {}
    return {
        "resourceType": "PractitionerRole",
        "id": f"{name}-clinic",
        "practitioner": ref(f"Practitioner/{name}"),
        "organization": ref("Organization/clinic"),
        "code": role("care-coordinator"),
        **extension,
        **members,
    }


def owned(id, name, **members):
    return {**QUEUE, "id": id, "owner": ref(f"Practitioner/{name}"), **members}


async def owner_of(desk, id="t1"):
    return (await desk.now(id))["owner"]["reference"].removeprefix("Practitioner/")


CASES = {
    "the least loaded": ([works("ann"), works("bob"), owned("o1", "ann")], {}, "bob", "1 of 40 points with this one"),
    "in proportion": ([works("ann", 8), works("bob", 3), owned("o1", "ann"), owned("o2", "bob")], {}, "ann", "2 of 8 points"),
    "by name when all is alike": ([works("ann"), works("bob")], {}, "ann", "one of 2 of 2 who could have it"),
    "who has room": ([works("ann", 1), works("bob", 40), owned("o1", "bob"), owned("o2", "bob")], {"priority": "urgent"}, "bob", ""),
    "urgent weighs more": ([works("ann"), works("bob"), owned("o1", "ann", priority="stat"), *(owned(f"b{n}", "bob") for n in range(3))], {}, "bob", ""),
    "a patient at high risk too": ([works("ann"), works("bob"), owned("o1", "ann", **{"for": ref("Patient/q")}), owned("o2", "bob"), {"resourceType": "RiskAssessment", "id": "r", "status": "final", "subject": ref("Patient/q"), "prediction": [{"qualitativeRisk": {"coding": [{"code": "high"}]}}]}], {}, "bob", ""),
    "not who is away": ([works("ann", notAvailable=[{"description": "Leave", "during": {"start": "2026-03-01", "end": "2026-03-09"}}]), works("bob"), owned("o1", "bob")], {}, "bob", "one of 1 of 2"),
    "who has the skill": ([works("ann"), works("bob", specialty=[SKILL]), owned("o1", "bob")], {"performerType": [*role("care-coordinator"), SKILL]}, "bob", "has the specialty"),
    "who speaks the language": ([works("ann"), {"resourceType": "Practitioner", "id": "bob", "communication": [SPANISH]}, works("bob"), owned("o1", "bob")], {"for": ref("Patient/s")}, "bob", "speaks the patient's language"),
    "who cares already": ([works("ann"), works("bob"), owned("o1", "bob", **{"for": ref("Patient/p")})], {"for": ref("Patient/p")}, "bob", "cares for the patient already"),
    "who is of the team": ([works("ann"), works("bob"), owned("o1", "bob"), {"resourceType": "CareTeam", "id": "c", "status": "active", "subject": ref("Patient/p"), "participant": [{"member": ref("PractitionerRole/bob-clinic")}]}], {"for": ref("Patient/p")}, "bob", "cares"),
}  # fmt: skip
PATIENTS = [
    {"resourceType": "Patient", "id": "q"},
    {"resourceType": "Patient", "id": "s", "communication": [{"language": {"coding": [{"code": "es-MX"}]}, "preferred": True}]},
]


async def test_the_choice_goes_by_room_skill_language_who_cares_already_and_load(desk):
    await write(desk.store, PATIENTS)
    for case, (record, asked, expected, why) in CASES.items():
        await write(desk.store, record)
        await desk.task("t1", **asked)
        answer = await desk.lea.call("Task/t1/$assign")
        assert answer.status_code == 200, (case, answer.text)
        assert await owner_of(desk) == expected, (case, answer.json()["note"])
        assert why in answer.json()["note"][-1]["text"], case
        assert answer.json()["note"][-1]["authorReference"] == ref("Practitioner/lea")
        for one in reversed([*record, {**QUEUE, "id": "t1"}]):  # the next case begins with an empty desk
            if one["resourceType"] != "Practitioner":
                path = f"/fhir/{one['resourceType']}/{one['id']}"
                assert (await desk.https[0].delete(path, headers=desk.engine.headers)).status_code == 204
        await write(desk.store, [{"resourceType": "Practitioner", "id": "bob"}])


async def test_whom_nobody_can_have_stays_where_it_is_and_says_so(desk):
    await write(desk.store, [works("ann", 1)])
    await desk.task("t1", priority="stat")
    refused = await desk.lea.call("Task/t1/$assign")
    assert refused.status_code == 409
    assert refused.json()["issue"][0]["diagnostics"].startswith(
        "Nobody of the queue could have this Task: each is away, has no room"
    )
    assert (await desk.ned.call("Task/t1/$assign")).status_code == 403
    await desk.task("t2")
    await desk.bob.call("Task/t2/$claim")
    assert (await desk.ann.call("Task/t2/$assign")).status_code == 409, "bob works it"
    assert (await desk.lea.call("Task/t2/$assign")).json()["owner"]["reference"] == "Practitioner/ann"


async def test_who_assign_at_once_over_two_processes_fill_nobody_past_their_capacity(desk):
    await write(desk.store, [works("ann", 3), works("bob", 2)])
    for number in range(8):
        await desk.task(f"t{number}")
    answers = await asyncio.gather(*(desk.lea.call(f"Task/t{number}/$assign", at=number % 2) for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [409] * 3
    owners = [await owner_of(desk, f"t{number}") for number in range(8)]
    assert (owners.count("ann"), owners.count("bob")) == (3, 2)


async def react_at_once(desk, name="assignment"):
    """Two workers take the same changes through the reaction."""

    async def worker():
        while True:
            before = await desk.store.cursor(name)
            batch = await desk.store.changes(before, types=frozenset({"Task", "PractitionerRole"}), limit=500)
            if not batch.changes:
                return
            change = batch.changes[0]
            operations = await assigning.follow(desk.context, change)
            try:
                await desk.store.transact(preceded_by(operations, MoveCursor(name, before, change.position)), origin="hub")
            except (VersionConflict, CursorMoved):
                continue

    await asyncio.gather(worker(), worker())


async def test_a_queue_that_assigns_by_itself_gives_what_waits_to_who_has_room(desk):
    marked = {"extension": [{"url": AUTO, "valueCode": "care-coordinator"}]}
    await write(desk.store, [{"resourceType": "Organization", "id": "clinic", "name": "clinic", **marked}, works("ann", 1)])
    await desk.task("nurses", performerType=role("nurse"))
    await desk.task("skilled", performerType=[*role("care-coordinator"), SKILL], priority="stat")
    await desk.task("older", authoredOn="2026-03-01")
    await desk.task("newer", authoredOn="2026-03-02")
    await react_at_once(desk)
    assert {id: await owner_of(desk, id) for id in ("nurses", "skilled", "older", "newer")} == {
        "nurses": "Organization/clinic",
        "skilled": "Organization/clinic",
        "older": "ann",
        "newer": "Organization/clinic",
    }
    assert (await desk.now("older"))["note"][-1]["authorReference"] == {
        "reference": f"Organization/{desk.context.organization}",
        "display": "Clinic",
    }
    for status in ("in-progress", "completed"):
        await desk.ann.put({**await desk.now("older"), "status": status})
    await react_at_once(desk)
    assert await owner_of(desk, "newer") == "ann", "room came with what was done"
    await write(desk.store, [works("bob", specialty=[SKILL])])
    await react_at_once(desk)
    assert await owner_of(desk, "skilled") == "bob", "and with somebody new"


async def test_who_carries_how_much_is_told_to_those_of_the_organisation(desk):
    away = {"notAvailable": [{"description": "Leave", "during": {"start": "2026-03-01", "end": "2026-03-06"}}]}
    await write(desk.store, [works("ann", 10), works("bob", **away), owned("o1", "ann", priority="stat"), owned("o2", "ann")])
    answer = await desk.ned.https[0].get("/fhir/Organization/clinic/$caseload?role=care-coordinator", headers=desk.ned.headers)
    assert answer.status_code == 200, answer.text
    told = [{part["name"]: list(part.values())[1] for part in one["part"]} for one in answer.json()["parameter"]]
    assert told == [
        {"who": ref("Practitioner/bob"), "tasks": 0, "points": 0, "capacity": 40, "away-until": "2026-03-06"},
        {"who": ref("Practitioner/ann"), "tasks": 2, "points": 5, "capacity": 10},
    ]
    assert (await desk.far.https[0].get("/fhir/Organization/clinic/$caseload", headers=desk.far.headers)).status_code == 403
    wrong = await desk.ned.https[0].get("/fhir/Organization/clinic/$caseload?role=wizard", headers=desk.ned.headers)
    assert (wrong.status_code, "wizard: no such role" in wrong.text) == (400, True)


def _queued_at(place, *, fence):
    extension = [claim(fence=fence, holder=ref("Practitioner/ann"), queue=ref(f"Organization/{place}"))]
    recipient = {"recipient": [ref(f"Organization/{place}")]}
    return {"owner": ref("Practitioner/ann"), "restriction": recipient, "extension": extension}


async def test_a_caseload_is_handed_over_in_whole_batches_and_goes_on_where_it_was_cut(desk, monkeypatch):
    monkeypatch.setattr(handing_on, "BATCH", 2)
    for number in range(5):
        await desk.task(f"t{number}")
        await desk.ann.call(f"Task/t{number}/$claim")
    await desk.task("other")
    await desk.bob.call("Task/other/$claim")
    # one of the second batch is led by nobody here: the first is handed over, the second not at all
    await desk.task("t3", **_queued_at("hospital", fence=2), requester=ref("Organization/clinic"))
    cut = await desk.lea.call("Practitioner/ann/$hand-over-caseload", to=ref("Practitioner/bob"), note="On leave from Monday")
    assert cut.status_code == 409
    assert [await owner_of(desk, f"t{number}") for number in range(5)] == ["bob", "bob", "ann", "ann", "ann"]
    await desk.task("t3", **_queued_at("clinic", fence=3))
    desk.clock.advance(timedelta(minutes=1))
    whole = await desk.ann.call("Practitioner/ann/$hand-over-caseload", to=ref("Practitioner/bob"), note="On leave from Monday")
    assert whole.json()["parameter"] == [{"name": "handed-over", "valueUnsignedInt": 3}]
    assert {await owner_of(desk, f"t{number}") for number in range(5)} == {"bob"}
    await desk.react()
    texts = [one.tree["payload"][0]["contentString"] for one in await desk.context.find("Communication")]
    assert texts == ["A caseload was handed over to you: its tasks are on your work list. On leave from Monday"] * 2, (
        "once a call"
    )
    again = await desk.ann.call("Practitioner/ann/$hand-over-caseload", to=ref("Practitioner/bob"), note="Nothing left")
    assert again.json()["parameter"] == [{"name": "handed-over", "valueUnsignedInt": 0}]
    mine = await desk.ned.call("Practitioner/bob/$hand-over-caseload", to=ref("Practitioner/ann"), note="I take it")
    assert mine.status_code == 409
    nobody = await desk.bob.call("Practitioner/bob/$hand-over-caseload", to=ref("Practitioner/bob"), note="To me")
    assert nobody.status_code == 400
