"""Resources to store, and a second store on the same database as another process would have it."""

import json

import pytest

from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.resources import Put, Store


def patient(id, family="Test"):
    return check(json.dumps({"resourceType": "Patient", "id": id, "name": [{"family": family}]}).encode())


def condition(id, of):
    tree = {"resourceType": "Condition", "id": id, "subject": {"reference": f"Patient/{of}"}}
    return check(json.dumps(tree).encode())


@pytest.fixture
async def other(database_url, clock):
    opened = Store(await open_database(database_url), clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
def put(store):
    async def write(id, family="Test", if_version=None):
        return (await store.transact([Put(patient(id, family), if_version)], origin="test"))[0]

    return write
