"""The timeline of a patient: it equals the history, tells each thing once, and nothing to who could not read it; over HTTP on both databases."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from fhircm.coordination.timeline import Entry, rendered, timeline
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.operations import Delete, Put
from fhircm.store.resources import Store
from tests.access.conftest import opened  # noqa: F401 a fixture
from tests.access.world import ACT, Someone

from .test_worklist import NURSE, hub, put, ref  # noqa: F401 fixtures

CUSTODIAN = Someone("custodian", "system/*.cruds", "Organization/clinic", roles=("custodian",))
STRANGER = Someone("stranger", "user/*.cruds", "Organization/third", "Practitioner/olga", ("nurse",))
FAR = "https://far.test/r4"


async def story(hub, query="", who=NURSE, patient="ada"):  # noqa: F811
    """The entries of all pages, as plain values."""
    url, entries = f"/fhir/Patient/{patient}/$timeline{'?' if query else ''}{query}", []
    await hub.asked(who)
    while url:
        answer = await hub.http.get(url, headers={"Authorization": f"Bearer {hub.tokens[who.name]}"})
        assert answer.status_code == 200, answer.text
        said = answer.json()["parameter"]
        entries += [plain(one["part"]) for one in said if one["name"] == "entry"]
        url = next((one["valueUri"] for one in said if one["name"] == "next"), None)
    return entries, next(one["valueInteger"] for one in said if one["name"] == "undated")


def plain(parts):
    return {part["name"]: next(value for name, value in part.items() if name != "name") for part in parts}


def stay(id, start, patient="ada", **more):
    tree = {
        "resourceType": "Encounter",
        "id": id,
        "status": "in-progress",
        "class": {"code": "AMB"},
        "subject": ref(f"Patient/{patient}"),
    }
    period = {"period": {"start": start}} if start else {}
    return tree | period | {"meta": {"source": f"{FAR}/Encounter/{id}"}, "serviceProvider": ref("Organization/elsewhere")} | more


def whats(entries):
    return [one["what"] for one in entries]


async def test_each_entry_says_when_who_what_and_from_where(hub):  # noqa: F811
    note = {
        "resourceType": "DocumentReference",
        "id": "note",
        "status": "current",
        "description": "Letter",
        "subject": ref("Patient/ada"),
    }
    note |= {
        "content": [{"attachment": {"title": "x"}}],
        "author": [ref("Practitioner/olga")],
        "custodian": ref("Organization/elsewhere"),
    }
    visit = {"resourceType": "Appointment", "id": "visit", "status": "noshow", "start": "2026-02-20T10:00:00Z"}
    visit["participant"] = [{"actor": ref(one), "status": "accepted"} for one in ("Patient/ada", "Practitioner/olga")]
    await put(
        hub.store,
        stay(
            "e1",
            "2026-02-03T10:15:00+02:00",
            status="finished",
            period={"start": "2026-02-03T10:15:00+02:00", "end": "2026-02-05"},
        ),
        stay("e2", "2025"),
        stay("e3", "2026-02"),
        stay("e4", None),
        stay("wrong", "2026-02-01", status="entered-in-error"),
        note | {"date": "2026-02-04T08:00:00Z", "meta": {"source": f"{FAR}/DocumentReference/note"}},
        visit | {"end": "2026-02-20T11:00:00Z"},
    )
    entries, undated = await story(hub)
    assert [(one.get("when"), one["precision"], one["who"], one["what"]) for one in entries] == [
        ("2025", "year", "Elsewhere", "Began: visit"),
        ("2026-02", "month", "Elsewhere", "Began: visit"),
        ("2026-02-03T10:15:00+02:00", "time", "Elsewhere", "Began: visit"),
        ("2026-02-04T08:00:00Z", "time", "Olga", "Wrote: Letter"),
        ("2026-02-05", "day", "Elsewhere", "Ended: visit"),
        ("2026-02-20T10:00:00Z", "time", "Olga", "Did not come to: appointment"),
        (None, "none", "Elsewhere", "Began: visit"),
    ]
    assert undated == 1
    assert entries[2] == {
        "when": "2026-02-03T10:15:00+02:00",
        "at": "2026-02-03T08:15:00.000Z",
        "precision": "time",
        "what": "Began: visit",
        "who": "Elsewhere",
        "actor": {"reference": "Organization/elsewhere", "display": "Elsewhere"},
        "organization": {"reference": "Organization/elsewhere", "display": "Elsewhere"},
        "about": {"reference": "Encounter/e1"},
        "source": f"{FAR}/Encounter/e1",
        "told-by": {"reference": "Encounter/e1"},
    }
    assert whats((await story(hub, "since=2026-02-04&until=2026-02-20"))[0]) == ["Wrote: Letter", "Ended: visit"]
    assert whats((await story(hub, "type=DocumentReference,Appointment"))[0]) == ["Wrote: Letter", "Did not come to: appointment"]
    assert whats((await story(hub, "organization=Organization/clinic"))[0]) == []
    assert len((await story(hub, "organization=Organization/elsewhere"))[0]) == 6
    for wrong, said in (("since=soon", "'since' takes a date"), ("type=Letter", "is no"), ("_count=0", "of 1 or more")):
        answer = await hub.http.get(
            f"/fhir/Patient/ada/$timeline?{wrong}", headers={"Authorization": f"Bearer {hub.tokens['nurse']}"}
        )
        assert answer.status_code in (400, 422), wrong
        assert said.replace("is no", "is not a resource type") in answer.json()["issue"][0]["diagnostics"]


async def test_who_does_not_see_the_record_is_told_nothing_and_who_sees_a_part_is_told_that(hub):  # noqa: F811
    secret = {"meta": {"source": f"{FAR}/Encounter/secret", "security": [{"system": ACT, "code": "ETHUD"}]}}
    person = {
        "resourceType": "Person",
        "id": "one",
        "active": True,
        "link": [{"target": ref(f"Patient/{id}")} for id in ("ada", "cy")],
    }
    closed = {
        "resourceType": "Task",
        "id": "secret",
        "status": "requested",
        "intent": "order",
        "for": ref("Patient/ada"),
        "description": "Detox",
    }
    told = {
        "resourceType": "Provenance",
        "id": "p",
        "recorded": "2026-02-09T10:00:00Z",
        "activity": {"text": "Task 'Detox': status requested"},
    }
    told |= {"target": [ref("Task/secret/_history/1"), ref("Patient/ada")], "agent": [{"who": {"display": "Hub"}}]}
    await put(
        hub.store,
        stay("seen", "2026-02-03"),
        stay("secret", "2026-02-04") | secret,
        stay("of-cy", "2026-02-05", "cy"),
        person,
        closed | {"meta": {"security": [{"system": ACT, "code": "ETHUD"}]}},
    )
    await put(hub.store, told)
    assert [one["about"]["reference"] for one in (await story(hub))[0]] == ["Encounter/seen"]
    everything = [one["about"]["reference"] for one in (await story(hub, who=CUSTODIAN))[0]]
    assert everything == ["Encounter/seen", "Encounter/secret", "Encounter/of-cy", "Task/secret/_history/1"]
    await hub.asked(STRANGER)
    answer = await hub.http.get("/fhir/Patient/ada/$timeline", headers={"Authorization": f"Bearer {hub.tokens['stranger']}"})
    assert answer.status_code == 404
    answer = await hub.http.get("/fhir/Patient/nobody/$timeline", headers={"Authorization": f"Bearer {hub.tokens['nurse']}"})
    assert answer.status_code == 404


@pytest.mark.parametrize("seed", range(2))
async def test_pages_hold_while_others_write(hub, seed):  # noqa: F811
    chance = random.Random(seed)
    days = [f"2026-01-{day:02}" for day in range(1, 8)]
    made = {f"e{number:02}": stay(f"e{number:02}", chance.choice(days)) for number in range(30)}
    await put(hub.store, *made.values())
    before, seen, touched = {id: one["period"]["start"] for id, one in made.items()}, [], set()
    url = "/fhir/Patient/ada/$timeline?_count=4"
    await hub.asked(NURSE)
    while url:
        said = (await hub.http.get(url, headers={"Authorization": f"Bearer {hub.tokens['nurse']}"})).json()["parameter"]
        seen += [plain(one["part"])["about"]["reference"].partition("/")[2] for one in said if one["name"] == "entry"]
        url = next((one["valueUri"] for one in said if one["name"] == "next"), None)
        for _ in range(chance.randrange(3)):
            id = chance.choice([*made, f"new{len(made) + len(touched)}"])
            touched.add(id)
            await put(hub.store, stay(id, chance.choice(days)))
    same = [id for id in seen if id not in touched]
    assert len(same) == len(set(same))
    assert same == sorted((id for id in made if id not in touched), key=lambda id: (before[id], id))


@pytest.mark.parametrize("seed", range(3))
async def test_the_timeline_equals_the_history(world, seed):
    """Random writes of the hub, of clients and of partners: every version that was written here is told once, in order, and nothing else is."""
    chance = random.Random(seed)
    elsewhere = {"resourceType": "Organization", "id": "elsewhere", "name": "Elsewhere"}
    await put(world.store, elsewhere, *({"resourceType": "Patient", "id": id} for id in ("x", "y")))
    alive, written, mirrors = {}, [], set()
    for number in range(40):
        world.clock.advance(timedelta(minutes=chance.randrange(3)))
        kind = chance.choice(["Task", "Goal", "Communication", "Encounter"])
        id = chance.choice([f"{kind.lower()}{number % 4}", f"{kind.lower()}{number % 3}"])
        patient = "x" if int(id[-1]) % 2 == 0 else "y"
        origin = chance.choice(["hub", "client:a", "client:b"])
        if kind == "Encounter":
            await world.store.transact([Put(check_tree(stay(id, f"2026-01-0{1 + number % 9}", patient)))], origin="partner:far")
            mirrors |= {id} if patient == "x" else set()
            continue
        if id in alive and chance.random() < 0.2:
            await world.store.transact([Delete(kind, id)], origin=origin)
            del alive[id]
            version = (await world.store.heads([(kind, id)]))[kind, id].version
        else:
            (stored,) = await world.store.transact([Put(check_tree(sample(kind, id, patient, number)))], origin=origin)
            alive[id], version = True, stored.version
        if patient == "x":
            written.append(f"{kind}/{id}/_history/{version}")
    await world.react("provenance")
    entries = await timeline(world.store, "x")
    here = [one.reference for one in entries if one.told_by.startswith("Provenance/")]
    assert sorted(here) == sorted(written)
    assert {one.reference for one in entries if one.told_by.startswith("Encounter/")} == {f"Encounter/{id}" for id in mirrors}
    assert len(entries) == len({(one.told_by, one.what) for one in entries})
    assert [one.at for one in entries] == sorted(one.at for one in entries)
    for name in {one.rpartition("/_history/")[0] for one in here}:
        versions = [int(one.rpartition("/")[2]) for one in here if one.startswith(f"{name}/_history/")]
        assert versions == sorted(versions)


def sample(kind, id, patient, number):
    trees = {
        "Task": {"status": "requested", "intent": "order", "description": f"Do {number}", "for": ref(f"Patient/{patient}")},
        "Goal": {"lifecycleStatus": "active", "description": {"text": f"Walk {number}"}, "subject": ref(f"Patient/{patient}")},
        "Communication": {"status": "completed", "topic": {"text": f"Word {number}"}, "subject": ref(f"Patient/{patient}")},
    }
    return {"resourceType": kind, "id": id, **trees[kind]}


async def test_what_it_costs_does_not_grow_with_the_data_of_others(sqlite_url, clock):
    """Counted in steps of SQLite's machine, which no other load disturbs; so is a page of a work list among many Tasks."""
    from fhircm.store.work_list import WorkQuery

    store = Store(await open_database(sqlite_url), clock=clock)
    await put(
        store,
        {"resourceType": "Patient", "id": "ada"},
        {"resourceType": "Practitioner", "id": "nora"},
        stay("e", "2026-01-01") | {"serviceProvider": {"display": "Far"}},
    )

    async def steps(asked):
        count = 0

        def tick():
            nonlocal count
            count += 1

        for connection in [*store.database._idle, store.database._writer]:
            connection.raw.set_progress_handler(tick, 10)
        await asked()
        return count

    async def page():
        found = await store.work_list(WorkQuery(("Practitioner/nora",), 0, count=5))
        assert len(found.tasks) == 5

    async def told():
        assert len(await timeline(store, "ada")) == 1

    async def more(first, last):
        trees = []
        for number in range(first, last):
            patient = ref(f"Patient/q{number}")
            trees += [
                {"resourceType": "Patient", "id": f"q{number}"},
                stay(f"e{number}", "2026-01-01", f"q{number}") | {"serviceProvider": {"display": "Far"}},
            ]
            trees.append(sample("Task", f"t{number}", f"q{number}", number) | {"owner": ref("Practitioner/nora"), "for": patient})
        await put(store, *trees)

    await more(0, 20)
    few = [await steps(told), await steps(page)]
    await more(20, 600)
    many = [await steps(told), await steps(page)]
    await store.close()
    assert all(after <= 1.25 * before + 5 for before, after in zip(few, many, strict=True)), (few, many)
    assert min(few) > 5


def test_what_happened_to_both_records_of_a_human_is_read_once():
    at = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
    twice = [Entry(at, "Hub", "Made the plan", f"CarePlan/{id}", "time", source=id) for id in ("ours", "theirs")]
    later = Entry(at + timedelta(minutes=1), "Hub", "Made the plan", "CarePlan/ours", "time")
    assert rendered([*twice, later], ZoneInfo("America/Chicago")).splitlines() == [
        "2026-03-02 09:00  Hub  Made the plan",
        "2026-03-02 09:01  Hub  Made the plan",
    ]
