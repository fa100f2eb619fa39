"""Reindexing makes the rows that a write makes, disturbs no write, and goes on after a worker died."""

import pytest

from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.query import parse_query
from fhircm.jobs.reindex import start_reindex
from fhircm.store.resources import Delete, Put, RewriteSearchRows
from fhircm.store.search_rows import SEARCH_TABLES

from .conftest import patient


async def rows(store):
    found = {}
    async with store.database.reading() as connection:
        for table in SEARCH_TABLES:
            found[table] = sorted(
                tuple(row.values()) if hasattr(row, "values") else tuple(row)
                for row in await connection.fetch(f"SELECT * FROM {table}")
            )
    return found


async def lose(store, where="1 = 1"):
    async with store.database.writing() as connection:
        for table in SEARCH_TABLES:
            await connection.execute(f"DELETE FROM {table} WHERE {where}")


async def found(store, family):
    return [one.id for one in (await store.search(parse_query("Patient", [("family", family)]))).matches]


async def test_lost_rows_come_back_as_they_were(store, put, run, monkeypatch):
    monkeypatch.setattr("fhircm.jobs.reindex.PAGE", 7)
    await put(*(f"p{n:03}" for n in range(40)))
    await put("p000", family="Other")
    await store.transact([Delete("Patient", "p001")], origin="test")
    before = await rows(store)
    await lose(store)
    assert await found(store, "Other") == []
    id = await start_reindex(store, ["Patient"])
    assert await run() > 5
    task = (await store.read("Task", id)).tree
    assert (task["status"], task["businessStatus"]["text"]) == ("completed", "39 of 39")
    async with store.database.reading() as connection:
        key = await connection.fetchval("SELECT key FROM resource WHERE type = 'Task'")
    await lose(store, f"resource_key = {key}")
    assert await rows(store) == before


async def test_a_resource_that_changed_meanwhile_keeps_its_new_rows(store, put):
    await put("a", "b")
    page = await store.to_reindex("Patient", 0, 10)
    await put("a", family="Newer")
    await store.transact([Delete("Patient", "b")], origin="test")
    before = await rows(store)
    await store.transact([RewriteSearchRows(page.resources)], origin="hub")
    assert await rows(store) == before
    assert await found(store, "Newer") == ["a"]


async def test_all_types_are_reindexed_unless_some_are_named(store, put, run):
    await put("a")
    await lose(store)
    await start_reindex(store)
    await run()
    assert await found(store, "Test") == ["a"]
    with pytest.raises(NotSupported):
        await start_reindex(store, ["Nothing"])


async def test_pages_are_bounded_in_bytes_too(store, monkeypatch):
    monkeypatch.setattr("fhircm.store.reindex.BYTES", 3000)
    await store.transact([Put(patient(f"p{n}", "x" * 1000)) for n in range(9)], origin="test")
    page = await store.to_reindex("Patient", 0, 100)
    assert 1 <= len(page.resources) <= 3
    seen = len(page.resources)
    while (page := await store.to_reindex("Patient", page.after, 100)).after is not None:
        seen += len(page.resources)
    assert seen == 9
