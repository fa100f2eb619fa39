"""What a partner sent and the hub could not take, as an operator meets it."""

import asyncio
from datetime import UTC, datetime

import pytest

from fhircm.exchange.mirror import HELD
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Hold, SetState, Store
from tests import commands

BODY = b'{"resourceType":"Practitioner","id":"p","active":"yes","name":[{"family":"Marker-Family"}]}'
GOOD = b'{"resourceType":"Practitioner","id":"q"}'
PARTNER = "lakeside-hospital"


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        environment = {"FHIRCM_DATABASE_URL": database_url, "FHIRCM_KEYS_DIR": str(tmp_path / "keys")}
        return commands.run(*arguments, **environment, FHIRCM_AUDIT_DIR=str(tmp_path / "audit"))

    return run


@pytest.fixture
def held(database_url):
    async def put():
        await migrate(database_url)
        store = Store(await open_database(database_url), clock=lambda: datetime.now(UTC))
        reason = "Practitioner.active: is not a boolean"
        rows = [
            Hold(PARTNER, "Practitioner/p", "invalid", "d", reason, BODY),
            Hold(PARTNER, "Practitioner/q", "invalid", "d", reason, GOOD),
            *(SetState(f"mirror-shared:{PARTNER}", f"Practitioner/{id}", {"of": HELD}) for id in "pq"),
        ]
        await store.transact(rows, origin="test")
        await store.close()

    asyncio.run(put())


def test_it_is_listed_shown_released_and_forgotten(fhircm, held):
    listed = fhircm("quarantine", "list")
    assert "Practitioner/p\tinvalid" in listed.stdout
    assert "Practitioner.active: is not a boolean" in listed.stdout
    assert "Marker-Family" not in listed.stdout + listed.stderr
    assert "Marker-Family" in fhircm("quarantine", "show", PARTNER, "Practitioner/p").stdout
    tried = fhircm("quarantine", "release", PARTNER)
    assert (tried.returncode, "Practitioner/q\tis in the record now" in tried.stdout) == (1, True)
    assert "1 of 2 released" in tried.stdout
    assert "Practitioner/p is forgotten" in fhircm("quarantine", "discard", PARTNER, "Practitioner/p").stdout
    assert "Nothing is in quarantine" in fhircm("quarantine", "list", PARTNER).stdout


@pytest.mark.parametrize("command", ["show", "release", "discard"])
def test_what_is_not_held_is_told(fhircm, held, command):
    told = fhircm("quarantine", command, PARTNER, "Practitioner/none")
    assert told.returncode != 0
    assert "Nothing of lakeside-hospital is in quarantine under Practitioner/none" in told.stderr
