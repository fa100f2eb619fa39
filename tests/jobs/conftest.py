"""Jobs over a store: run as a worker runs them."""

import json
from datetime import timedelta

import pytest

from fhircm.fhir.validation import check
from fhircm.jobs import JOBS
from fhircm.jobs.job import Means
from fhircm.jobs.running import run_jobs
from fhircm.store.database import open_database
from fhircm.store.resources import Put, Store

LEASE = timedelta(seconds=15)


def patient(id, family="Test", **more):
    return check(json.dumps({"resourceType": "Patient", "id": id, "name": [{"family": family}], **more}).encode())


@pytest.fixture
async def other(database_url, clock):
    opened = Store(await open_database(database_url), clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
def put(store):
    async def write(*ids, family="Test"):
        return await store.transact([Put(patient(id, family)) for id in ids], origin="test")

    return write


@pytest.fixture
def run(store):
    """Slices until none is due, or one."""

    async def go(at=store, kinds=JOBS, *, slices=None, seconds=1.0):
        done = 0
        while (slices is None or done < slices) and await run_jobs(Means(at, "http://hub.example/fhir", seconds), kinds, LEASE):
            done += 1
        return done

    return go
