"""SIGKILL in the middle of jobs: another worker goes on where they stood, and nothing is missing or twice."""

import asyncio
import json
import os
import zlib
from time import monotonic

import pytest

from fhircm.access.principal import Principal, written
from fhircm.access.scopes import parse_scopes
from fhircm.demo.processes import Processes
from fhircm.fhir.definitions import definitions
from fhircm.fhir.validation import check_tree
from fhircm.jobs.export import Request, start_export
from fhircm.jobs.export_files import as_text
from fhircm.jobs.exported import status
from fhircm.jobs.job import timer_key
from fhircm.jobs.reindex import start_reindex
from fhircm.store.resources import Put
from fhircm.store.search_rows import SEARCH_TABLES
from tests.faults.stubborn import PATIENCE

WAREHOUSE = written(Principal("app", parse_scopes("system/*.rs"), frozenset({"custodian"})))
KILLS = 1  # more show no more, and each start of a worker takes a second
EACH = 150
TYPES = ("Basic", "Patient", "Organization", "Practitioner", "Location")


@pytest.fixture
def worker(database_url, tmp_path):
    """Starts a worker whose slices, and whose claims after its death, are short."""
    environment = {**os.environ, "FHIRCM_DATABASE_URL": database_url, "FHIRCM_LEASE": "PT0.02S", "FHIRCM_PARTNERS": "[]"}
    (tmp_path / "mappings").mkdir()
    environment |= {"FHIRCM_MAPPINGS_DIR": str(tmp_path / "mappings"), "FHIRCM_LOG_LEVEL": "ERROR"}
    running = []

    def start():
        running.append(Processes.launch("fhircm.cli", "work", environment=environment, folder=tmp_path))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def tree(type, n):
    needed = {"Basic": {"code": {"text": "x"}}, "Patient": {"name": [{"family": "x"}]}, "Organization": {"name": "x"}}
    return {"resourceType": type, "id": f"{type}-{n}", **needed.get(type, {})}


async def rows(store):
    async with store.database.reading() as connection:
        where = "WHERE resource_key IN (SELECT key FROM resource WHERE type = 'Patient')"
        return {
            table: sorted(tuple(row) for row in await connection.fetch(f"SELECT * FROM {table} {where}"))
            for table in SEARCH_TABLES
        }


async def gone_on(store, key, before):
    """Wait until a job has gone on, and is not done."""
    end = monotonic() + PATIENCE
    while monotonic() < end:
        timer = await store.timer(key)
        assert timer is not None, "the job was done before anybody was killed"
        if timer.payload != before:
            return timer.payload
        await asyncio.sleep(0.005)
    raise AssertionError("no worker did anything")


async def finished(store, *ids):
    end = monotonic() + PATIENCE
    while monotonic() < end:
        tasks = await store.read_many([("Task", id) for id in ids])
        if {task.tree["status"] for task in tasks.values()} == {"completed"}:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the jobs are not done")


async def test_jobs_whose_worker_is_killed_are_finished_by_the_next(store, worker):
    for type in TYPES:
        await store.transact([Put(check_tree(tree(type, n))) for n in range(EACH)], origin="test")
    indexed = await rows(store)
    async with store.database.writing() as connection:
        for table in SEARCH_TABLES:
            await connection.execute(f"DELETE FROM {table}")
    every = sorted({*TYPES, *sorted(definitions().resource_types)[:50]})  # each at least a slice of its own, or nearly
    export = await start_export(store, "app", Request("http://hub.example", "system", every, WAREHOUSE), None)
    reindex = await start_reindex(store, ["Patient"])
    key = timer_key(export)
    state = (await store.timer(key)).payload
    for _ in range(KILLS):
        process = worker()
        state = await gone_on(store, key, state)
        process.kill()
        process.wait()
    assert state["state"]["type"] < len(every)
    worker()
    await finished(store, export, reindex)
    found = await status(store, "app", export)
    exported = []
    for number, file in enumerate(found.files):
        text = b"".join([part async for part in as_text(store, export, number, file)])
        assert (text.count(b"\n"), zlib.crc32(text)) == (file["count"], file["crc"])
        exported += [json.loads(line)["id"] for line in text.splitlines() if file["type"] in TYPES]
    assert sorted(exported) == sorted(f"{type}-{n}" for type in TYPES for n in range(EACH))
    assert await rows(store) == indexed
