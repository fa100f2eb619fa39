"""Guides over the store: loaded as a whole, known everywhere, and never a wrong answer while what is stored is indexed."""

import asyncio
import json
from datetime import timedelta
from functools import partial
from time import monotonic

import pytest

from fhircm.exchange import guides
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import searchable
from fhircm.fhir.guides import InForce, in_force, put_in_force
from fhircm.fhir.outcome import Invalid, NotFound, NotSupported
from fhircm.fhir.profiles import profile_of, profiles
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check
from fhircm.jobs.reindex import start_indexing
from fhircm.store.guides import GUIDE, LATE
from fhircm.store.resources import Delete, Put
from tests.packages import BASE, PATIENT, RACE_PARAMETER, package, patient, profile, search_parameter
from tests.packages import GUIDE as DEFINITIONS

KEY = "example.guide#1.0.0"
URL = f"{BASE}/StructureDefinition/patient"


@pytest.fixture(autouse=True)
def no_guides():
    yield
    put_in_force(InForce())


@pytest.fixture
def load(store, monkeypatch):
    monkeypatch.setattr(guides, "LATE", 0.0)  # no other process waits to be told

    async def go(*definitions, at=store, **manifest):
        return await guides.load(at, package(*(definitions or DEFINITIONS), **manifest), partial(start_indexing, at))

    return go


@pytest.fixture
def remove(store, monkeypatch):
    monkeypatch.setattr(guides, "LATE", 0.0)
    return lambda key: guides.remove(store, key, partial(start_indexing, store))


@pytest.fixture
def index(run, clock):
    async def go():
        await run()
        clock.advance(timedelta(seconds=LATE))
        return await run()

    return go


async def write(store, id, **more):
    await store.transact([Put(check(json.dumps(patient(id, **more)).encode()))], origin="test")


async def by_race(store, code="2106-3"):
    await store.guides.follow(now=True)
    return sorted(one.id for one in (await store.search(parse_query("Patient", [("race", code)]))).matches)


async def state(store):
    """Everything that a guide leaves behind, to be compared."""
    async with store.database.reading() as connection:
        rows = await connection.fetch("SELECT type, id, version FROM resource WHERE type <> 'Task' ORDER BY type, id")
        facts = await connection.fetch("SELECT namespace, key, value FROM state ORDER BY namespace, key")
    return [tuple(row) for row in rows], [tuple(row) for row in facts]


async def test_a_new_parameter_answers_when_all_is_indexed_and_is_refused_until_then(store, load, index, run):
    await write(store, "before")
    with pytest.raises(NotSupported, match="not a search parameter"):
        await by_race(store)
    report = await load()
    assert (report.guide, report.stored, report.parameters) == (KEY, 4, ["Patient.race"])
    await write(store, "meanwhile")
    with pytest.raises(NotSupported, match="being indexed"):
        await by_race(store)
    assert [one.indexing for one in await guides.listed(store)] == [["Patient.race"]]
    await run()  # it waits first, until every process knows
    with pytest.raises(NotSupported, match="being indexed"):
        await by_race(store)
    await index()
    assert await by_race(store) == ["before", "meanwhile"]
    assert await by_race(store, "2054-5") == []
    await write(store, "after")
    assert await by_race(store) == ["after", "before", "meanwhile"]
    assert (await store.read("Task", report.job)).tree["status"] == "completed"


async def test_what_a_process_writes_that_does_not_know_yet_is_found_too(store, other, load, index):
    """The other process heard of nothing for as long as a process may: its row is made by what was in force before."""
    await write(store, "p1")
    await load()
    knows = in_force()
    put_in_force(InForce())
    other.guides._read_at = monotonic()
    await write(other, "unaware")
    put_in_force(knows)
    async with store.database.reading() as connection:
        rows = "SELECT COUNT(*) FROM search_token WHERE param = $1"
        assert await connection.fetchval(rows, param_key("Patient", "race")) == 0
    await index()
    assert await by_race(store) == ["p1", "unaware"]


async def test_a_process_that_heard_of_nothing_for_longer_asks_before_it_writes(store, other, load, index):
    await other.guides.follow()
    await load()
    await index()
    await store.guides.follow(now=True)
    knows = in_force()
    put_in_force(InForce())
    other.guides._read_at = monotonic() - 60
    await write(other, "late")
    assert in_force().generation == knows.generation
    assert await by_race(other) == ["late"]


async def test_what_changes_during_a_write_is_known_before_its_rows_are_made(store, other, load, index, monkeypatch):
    """The write began by what was in force before, and waited for its locks until that was too long ago."""
    confirm = type(other.guides).confirm
    before = in_force()
    await load()
    await index()
    put_in_force(before)
    other.guides._read_at = monotonic()

    async def after_a_while(self, connection):
        self._read_at -= 60
        monkeypatch.setattr(type(other.guides), "confirm", confirm)
        await confirm(self, connection)

    monkeypatch.setattr(type(other.guides), "confirm", after_a_while)
    await write(other, "waited")
    assert await by_race(other) == ["waited"]


async def test_the_job_waits_for_writes_that_were_in_flight(postgres_url, clock):
    from fhircm.jobs import JOBS
    from fhircm.jobs.job import Means
    from fhircm.jobs.running import run_jobs
    from fhircm.store.database import open_database
    from fhircm.store.resources import Store
    from fhircm.store.transaction import write_resources

    one, two = [Store(await open_database(postgres_url), clock=clock) for _ in range(2)]
    means = Means(one, "http://hub.example/fhir", 1.0)

    async def slices():
        while await run_jobs(means, JOBS, timedelta(seconds=15)):
            pass
        clock.advance(timedelta(seconds=LATE))

    before = in_force()
    async with two.database.writing() as connection:
        two.guides._read_at = monotonic()
        flying = [Put(check(json.dumps(patient("flying")).encode()))]
        await write_resources(connection, "postgresql", flying, origin="test", now=clock(), rules=(), confirm=two.guides.confirm)
        assert in_force() is before
        await guides.load(one, package(*DEFINITIONS), partial(start_indexing, one))
        for _ in range(4):
            await slices()
        with pytest.raises(NotSupported, match="being indexed"):
            await by_race(one)
    for _ in range(2):
        await slices()
    assert await by_race(one) == ["flying"]
    await one.close()
    await two.close()


async def test_the_same_package_twice_changes_nothing(store, load, index):
    await load()
    await index()
    before = await state(store)
    report = await load()
    assert (report.stored, report.unchanged, report.job) == (0, 4, None)
    assert await state(store) == before


async def test_a_load_that_ended_early_goes_on_where_it_was_and_is_in_force_as_a_whole(store, load, monkeypatch):
    monkeypatch.setattr(guides, "BATCH", 1)
    transact, done = store.transact, []

    async def dies(operations, *, origin):
        if len(done) == 2:
            raise ConnectionError
        done.append(operations)
        return await transact(operations, origin=origin)

    monkeypatch.setattr(store, "transact", dies)
    with pytest.raises(ConnectionError):
        await load()
    monkeypatch.setattr(store, "transact", transact)
    await store.guides.follow(now=True)
    assert (await store.states(GUIDE), profile_of(URL)) == ({}, None)
    report = await load()
    assert (report.stored, report.unchanged) == (2, 2)
    assert profile_of(URL) is not None


async def test_profiles_are_in_force_in_every_process_from_then_on(store, other, load):
    claimed = {"resourceType": "Patient", "id": "a", "meta": {"profile": [URL]}}
    check(json.dumps(claimed).encode())
    await load()
    put_in_force(InForce())
    await other.guides.follow(now=True)
    with pytest.raises(Invalid) as caught:
        check(json.dumps(claimed).encode())
    assert {issue.expression for issue in caught.value.issues} == {"Patient.name", "Patient.extension"}
    assert profiles()[URL] == "Patient"
    check(json.dumps(patient("a", name=[{"text": "x"}], meta={"profile": [URL]})).encode())
    with pytest.raises(Invalid) as caught:
        check(json.dumps(patient("a", code="other", name=[{"text": "x"}], meta={"profile": [f"{URL}|1.0.0"]})).encode())
    assert [issue.expression for issue in caught.value.issues] == ["Patient.extension[0].value"]


async def test_what_somebody_writes_over_a_definition_is_not_in_force(store, load):
    await load()
    fact = (await store.states(GUIDE))[KEY]
    row = next(row for row in fact["artefacts"] if row["url"] == URL)
    changed = profile("patient", "Patient", ("Patient.birthDate", {"min": 1}), id=row["id"], version="1.0.0")
    await store.transact([Put(check(json.dumps(changed).encode()))], origin="client:app")
    put_in_force(InForce())
    await store.guides.follow(now=True)
    assert "name" in profile_of(URL).root.children
    assert (await load()).stored == 1
    assert "name" in profile_of(URL).root.children


async def test_a_newer_version_replaces_the_older_whose_profiles_are_claimed_by_version(store, load, index, remove):
    await write(store, "p1")
    await load()
    await index()
    stricter = profile("patient", "Patient", ("Patient.birthDate", {"min": 1}))
    other_race = {**RACE_PARAMETER, "expression": f"Patient.extension.where(url = '{BASE}/other').value.code"}
    report = await load(stricter, other_race, version="1.10.0")
    assert [(one.guide.key, one.newest) for one in await guides.listed(store)] == [
        (KEY, False),
        ("example.guide#1.10.0", True),
    ]
    assert list(profile_of(URL).root.children) == ["birthDate"]
    assert "name" in profile_of(f"{URL}|1.0.0").root.children
    with pytest.raises(NotSupported, match="being indexed"):  # its meaning changed, so it does not answer by the old one
        await by_race(store)
    await index()
    assert await by_race(store) == []
    assert (await store.read("Task", report.job)).tree["status"] == "completed"
    await load(version="1.9.0")  # older than what is in force: it changes nothing of that
    assert list(profile_of(URL).root.children) == ["birthDate"]
    assert await by_race(store) == []
    await remove("example.guide#1.10.0")
    assert "name" in profile_of(URL).root.children
    await index()
    assert await by_race(store) == ["p1"]


async def test_a_job_that_was_overtaken_by_another_change_makes_nothing_answer(store, load, run, index, clock):
    await write(store, "p1")
    first = await load()
    await run()
    clock.advance(timedelta(seconds=LATE))
    await run(slices=1)  # it knows what was in flight, and reads next
    gender = search_parameter("birth-gender", "Patient.gender")
    second = await load(gender, name="second.guide")
    assert second.job != first.job
    await run()
    assert (await store.read("Task", first.job)).tree["status"] == "completed"
    with pytest.raises(NotSupported, match="being indexed"):
        await by_race(store)
    await index()
    assert await by_race(store) == ["p1"]
    assert "birth-gender" in searchable("Patient").extractors


async def test_a_guide_that_is_removed_leaves_nothing_but_what_others_need(store, load, index, remove):
    await write(store, "p1")
    await load()
    await load(RACE_PARAMETER, profile("more", "Patient", ("Patient.gender", {"min": 1})), name="second.guide")
    await index()
    removed = await remove(KEY)
    assert (removed.deleted, removed.kept, removed.job) == (3, [], None)
    assert profile_of(URL) is None
    assert await by_race(store) == ["p1"]  # the other guide has it too
    await remove("second.guide#1.0.0")
    with pytest.raises(NotSupported, match="not a search parameter"):
        await by_race(store)
    assert await store.states(GUIDE) == {}
    with pytest.raises(NotFound):
        await remove(KEY)


async def test_a_removal_that_ended_early_goes_on_when_it_is_asked_again(store, load, remove, monkeypatch):
    await load()
    places = [(row["type"], row["id"]) for row in (await store.states(GUIDE))[KEY]["artefacts"]]
    transact = store.transact

    async def dies(operations, *, origin):
        if operations == [Delete(*sorted(places)[2])]:
            raise ConnectionError
        return await transact(operations, origin=origin)

    monkeypatch.setattr(store, "transact", dies)
    with pytest.raises(ConnectionError):
        await remove(KEY)
    monkeypatch.setattr(store, "transact", transact)
    assert (profile_of(URL), await guides.versions(store, "example.guide")) == (None, [KEY])
    assert len(await store.read_many(places)) == 2
    await remove(KEY)
    assert (await store.read_many(places), await guides.versions(store, "example.guide")) == ({}, [])
    await load()
    await load(version="2.0.0")
    assert await guides.versions(store, "example.guide") == [KEY, "example.guide#2.0.0"]


async def test_a_definition_that_something_refers_to_is_kept(store, load, remove):
    await load()
    row = next(row for row in (await store.states(GUIDE))[KEY]["artefacts"] if row["url"] == URL)
    place = f"StructureDefinition/{row['id']}"
    basic = {"resourceType": "Basic", "id": "b", "code": {"text": "a"}, "subject": {"reference": place}}
    await store.transact([Put(check(json.dumps(basic).encode()))], origin="test")
    removed = await remove(KEY)
    assert (removed.deleted, removed.kept) == (3, [place])
    await store.transact([Delete("Basic", "b")], origin="test")


async def test_what_cannot_be_searched_or_stored_is_told(store, load):
    dangling = {
        "resourceType": "Library",
        "url": f"{BASE}/Library/a",
        "status": "active",
        "type": {"text": "a"},
        "subjectReference": {"reference": "Group/nowhere"},
    }
    report = await load(
        search_parameter("name", "Patient.name.family", type="string"),
        search_parameter("_odd", "Patient.gender"),
        search_parameter("deep", "Patient.name.repeat(given)", type="string"),
        search_parameter("both", "Patient.name", type="composite"),
        PATIENT,
        dangling,
        profile("vital", "Observation", baseDefinition="http://elsewhere.example/vitalsigns"),
        dependencies={"hl7.fhir.r4.core": "4.0.1", "another.guide": "2.0.0"},
    )
    assert (report.parameters, report.as_r4) == ([], 1)
    assert [one.partition(":")[0] for one in sorted(report.refused)] == ["Patient._odd", "Patient.both", "Patient.deep"]
    assert report.left_out == ["package/Library-5.json: refers to Group/nowhere, which is not here"]
    assert report.missing == ["another.guide#2.0.0"]
    assert report.in_part == [
        f"{BASE}/StructureDefinition/vital: it has no snapshot, and builds on http://elsewhere.example/vitalsigns, which is not here"
    ]
    with pytest.raises(NotSupported, match="repeat"):
        parse_query("Patient", [("deep", "x")])


async def test_a_search_that_was_understood_before_its_guide_went_is_refused(store, load, index, remove):
    await load()
    await index()
    await store.guides.follow(now=True)
    query = parse_query("Patient", [("race", "a"), ("_sort", "race")])
    assert (await store.search(query)).matches == []
    await remove(KEY)
    with pytest.raises(NotSupported, match="not in force any more"):
        await store.search(query)


async def test_two_loads_at_once_do_not_mix(store, other, load):
    async def attempt(at, version):
        try:
            return await load(at=at, version=version)
        except guides.GuidesBusy:
            return None

    done = await asyncio.gather(attempt(store, "1.0.0"), attempt(other, "2.0.0"))
    assert any(done)
    assert len(await guides.listed(store)) == sum(one is not None for one in done)
