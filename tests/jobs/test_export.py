"""An export shows one moment, whoever is writing, and nothing that its client may not see."""

import asyncio
import json
from datetime import timedelta
from random import Random

from fhircm.access.principal import Principal, written
from fhircm.access.scopes import parse_scopes
from fhircm.fhir.query import parse_query
from fhircm.jobs.export import Request, start_export
from fhircm.jobs.export_files import as_text
from fhircm.jobs.exported import Exported, UnderWay, status
from fhircm.store.export import ExportQuery
from fhircm.store.resources import Delete, Narrowing, Put
from fhircm.store.stored import micros
from fhircm.store.transaction import write_resources

from .conftest import patient

WAREHOUSE = written(Principal("app", parse_scopes("system/*.rs"), frozenset({"custodian"})))
PATIENTS = Request("http://hub.example/fhir/$export?_type=Patient", "system", ["Patient"], WAREHOUSE)


async def ids(store, export):
    found = await status(store, "app", export)
    assert isinstance(found, Exported)
    texts = [b"".join([part async for part in as_text(store, export, n, file)]) for n, file in enumerate(found.files)]
    return [json.loads(line)["id"] for line in b"".join(texts).splitlines()]


async def test_who_was_writing_at_the_moment_is_waited_for(store, other, run, clock, put):
    """A write that was given an earlier time, and commits later: left out, no later export with _since would bring it."""
    await put("before")
    async with other.database.writing() as connection:
        slow = [Put(patient("slow"))]
        await write_resources(
            connection, other.database.dialect, slow, origin="test", now=clock(), rules=(), confirm=other.guides.confirm
        )
        clock.advance(timedelta(seconds=1))
        starting = asyncio.create_task(start_export(store, "app", PATIENTS, None))
        await asyncio.sleep(0.1)
        await run(seconds=0.1)
        if starting.done():  # PostgreSQL has many writers, and the export goes no further than to wait for this one
            assert isinstance(await status(store, "app", await starting), UnderWay)
        else:
            assert store.database.dialect == "sqlite"
    export = await starting
    clock.advance(timedelta(seconds=1))
    await put("after")
    await run()
    assert await ids(store, export) == ["before", "slow"]


async def test_an_export_is_narrowed_like_a_search_now_and_then(store, put, clock):
    """A condition that the caller is under holds for what is there, what has changed since, and what was deleted."""
    await put("a", "b", "gone", family="Seen")
    await put("c", "d", "lost", family="Hidden")
    moment = micros(clock())
    clock.advance(timedelta(seconds=1))
    await put("b", family="Hidden")
    await put("d", family="Seen")
    await store.transact([Delete("Patient", "gone"), Delete("Patient", "lost")], origin="test")
    within = Narrowing({"Patient": parse_query("Patient", [("family", "Seen")]).conditions})

    async def exported(at, since=None):
        page = await store.export_page(ExportQuery("job", "Patient", at, since), within)
        return sorted(row.id for row in page.rows), sorted(page.deleted)

    assert await exported(moment) == (["a", "b", "gone"], [])
    assert await exported(micros(clock())) == (["a", "d"], [])
    assert await exported(micros(clock()), moment) == (["d"], ["gone"])
    page = await store.export_page(ExportQuery("job", "Patient", moment), Narrowing({"Task": ()}))
    assert page.rows == []


async def test_pages_between_which_others_write_show_the_moment(store, clock, monkeypatch):
    """Whatever is made, changed, deleted and made again before, between and after the pages of an export and of the one that follows it."""
    monkeypatch.setattr("fhircm.store.export.ROWS", 3)
    dice = Random(7)
    model: dict[str, str] = {}
    seen = parse_query("Patient", [("family", "Seen")]).conditions

    async def something_happens():
        clock.advance(timedelta(milliseconds=dice.randint(1, 5)))
        id = f"p{dice.randrange(12)}"
        if id in model and dice.random() < 0.3:
            del model[id]
            await store.transact([Delete("Patient", id)], origin="test")
        else:
            model[id] = dice.choice(("Seen", "Hidden"))
            await store.transact([Put(patient(id, model[id]))], origin="test")

    async def exported(at, **more):
        rows, deleted, after = [], [], 0
        while after is not None:
            page = await store.export_page(ExportQuery("job", "Patient", at, after=after, **more))
            rows, deleted, after = [*rows, *page.rows], [*deleted, *page.deleted], page.after
            for _ in range(dice.randrange(3)):
                await something_happens()
        found = {row.id: json.loads(row.body)["name"][0]["family"] for row in rows}
        assert len(found) == len(rows), "none twice"
        return found, set(deleted)

    for _ in range(12):
        for _ in range(dice.randrange(8)):
            await something_happens()
        earlier, start = dict(model), micros(clock())
        for _ in range(dice.randrange(8)):
            await something_happens()
        then, at = dict(model), micros(clock())
        assert (await exported(at))[0] == then
        assert (await exported(at, alternatives=(seen,)))[0] == {id: one for id, one in then.items() if one == "Seen"}
        changed, deleted = await exported(at, since=start)
        assert {id: one for id, one in (earlier | changed).items() if id not in deleted} == then
        assert deleted >= earlier.keys() - then.keys()
        assert not deleted & then.keys()


async def test_what_was_deleted_before_or_made_later_is_not_in_it(store, put, run, clock):
    await put("kept", "gone", "late")
    await store.transact([Delete("Patient", "gone")], origin="test")
    export = await start_export(store, "app", PATIENTS, None)
    clock.advance(timedelta(seconds=1))
    await store.transact([Delete("Patient", "late")], origin="test")
    await put("gone", "new")
    await run()
    assert sorted(await ids(store, export)) == ["kept", "late"]
