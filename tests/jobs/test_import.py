"""An import takes what is good, in any order and once, tells each line that is not, and goes on where it stood."""

import json
from datetime import timedelta

import pytest

from fhircm.coordination.task_states import RULE
from fhircm.exchange.source_address import Allowed
from fhircm.exchange.sources import Sources
from fhircm.jobs import JOBS
from fhircm.jobs.bulk_import import Imports, progress_of, start_import
from fhircm.jobs.job import Means, job_of, timer_key
from fhircm.jobs.running import run_jobs
from tests.exchange.files import File, served

LEASE = timedelta(seconds=15)


def resource(type, id, **more):
    return {"resourceType": type, "id": id, **more}


def condition(id, patient="p1", **more):
    return resource("Condition", id, subject={"reference": f"Patient/{patient}"}, **more)


def encounter(id, patient="p1", conditions=(), **more):
    diagnosis = {"diagnosis": [{"condition": {"reference": f"Condition/{one}"}} for one in conditions]} if conditions else {}
    subject = {"reference": f"Patient/{patient}"}
    return resource("Encounter", id, status="finished", subject=subject, **{"class": {"code": "AMB"}}, **diagnosis, **more)


def ndjson(*lines):
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"


class Importer:
    """Imports in slices, in this process or in one that takes over."""

    def __init__(self, store, clock, files):
        self.store, self.clock, self.files = store, clock, files
        self.may_create = True
        self.taken_over()

    def taken_over(self):
        """What was open is lost, as when another process goes on."""
        self.sources = Sources(Allowed((self.files.base,), private=True))

    async def slice(self):
        imports = Imports(self.sources, 20_000, self.may_create)
        return await run_jobs(Means(self.store, "http://hub.example/fhir", 1.0, imports=imports), JOBS, LEASE)

    async def start(self, files, source=None):
        for name, body in files.items():
            self.files.files[name] = body if isinstance(body, File) else File(body)
        inputs = [(name.partition("-")[0], self.files.url(name)) for name in files]
        return await start_import(self.store, "app", inputs, source=source, request="http://hub.example/fhir/$import")

    async def run(self, id, each=lambda: None):
        while timer := await self.store.timer(timer_key(id)):
            self.clock.advance(max(timedelta(), timer.due - self.clock()))
            job = job_of(timer)
            await self.slice()
            each()
        self.counts = progress_of(job).counts
        return (await self.store.read("Task", id)).tree

    async def imported(self, files, **how):
        """The sum over all files of what became of the lines, when an import of these has ended well."""
        id = await self.start(files, **how)
        await self.run(id)
        output = {}
        task = (await self.store.read("Task", id)).tree
        assert task["status"] == "completed", task
        return task


@pytest.fixture
async def importer(store, clock):
    store.rules = (RULE,)
    async with served() as files:
        opened = Importer(store, clock, files)
        yield opened
        await opened.sources.close()


async def test_smoke(importer, store):
    task = await importer.imported(
        {
            "Condition": ndjson(condition("c1", encounter={"reference": "Encounter/e1"})),
            "Encounter": ndjson(encounter("e1", conditions=["c1"])),
            "Patient": ndjson(resource("Patient", "p1")),
        }
    )
    print(task)
    assert (await store.read("Condition", "c1")).version == 1
    assert (await store.read("Encounter", "e1")).version == 1
