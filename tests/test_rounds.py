"""A round with one partner asks for what its last snapshot says that it has, and for nothing while it is maintained."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fhircm import partnering, wiring
from fhircm.coordination.build import coordinating_organization
from fhircm.exchange import drift
from fhircm.exchange.clients import Clients
from fhircm.fhir.query import parse_query
from fhircm.settings import Settings
from fhircm.store.database import open_database
from fhircm.store.resources import Put, SetState, Store
from tests.sandbox.ehrs import InProcess

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@pytest.fixture
async def store(database_url):
    opened = Store(await open_database(database_url), clock=lambda: datetime.now(UTC))
    yield opened
    await opened.close()


async def rounds(store, ehr, folder: Path, **changes):
    """The paths that a round asks for."""
    settings, partner = Settings(), ehr.partner(folder, **changes)
    ehr.requests.clear()
    async with Clients([partner], lambda _: ehr.client(folder, **changes)) as clients:
        await partnering.round_of(settings, store, clients, partner, wiring.context(settings, store, [partner]))
    return {request.url.path.removeprefix(ehr.habits["base_path"]).split("/")[1] for request in ehr.requests}


async def again(store):
    """The next round is due at once."""
    await store.transact([SetState("pulled", "r4-partner", {"at": "2026-01-01T00:00:00+00:00"})], origin="hub")


async def test_a_type_that_the_partner_lost_is_asked_for_again_when_it_returns(store, tmp_path):
    ehr = InProcess("r4", humans=2)
    await store.transact([Put(coordinating_organization(Settings().organization_name))], origin="hub")
    assert {"CarePlan", "Goal", "Encounter"} <= await rounds(store, ehr, tmp_path)
    types = ehr.habits["types"]
    ehr.habits["types"] = {type: served for type, served in types.items() if type != "CarePlan"}
    await again(store)
    asked = await rounds(store, ehr, tmp_path)
    assert "CarePlan" not in asked
    assert "Goal" in asked
    assert len((await store.search(parse_query("CarePlan", []))).matches) > 0  # what was read stays
    [task] = (await store.search(parse_query("Task", [("code", "partner-changed")]))).matches
    assert task.tree["status"] == "ready"
    assert task.tree["owner"]["reference"].startswith("Organization/")
    ehr.habits["types"] = types
    await again(store)
    assert "CarePlan" in await rounds(store, ehr, tmp_path)
    [task] = (await store.search(parse_query("Task", [("code", "partner-changed")]))).matches
    assert task.tree["status"] == "cancelled"


async def test_nothing_is_asked_while_the_partner_is_maintained(store, tmp_path):
    ehr = InProcess("r4", humans=2)
    now = datetime.now(UTC)
    today = [{"days": [DAYS[now.weekday()]], "from": "00:00", "to": "24:00"}]
    tomorrow = [{"days": [DAYS[(now.weekday() + 3) % 7]], "from": "00:00", "to": "24:00"}]
    assert await rounds(store, ehr, tmp_path, time_zone="UTC", maintenance=today) == set()
    assert await drift.kept(store, "r4-partner") is None
    assert "Encounter" in await rounds(store, ehr, tmp_path, time_zone="UTC", maintenance=tomorrow)


async def test_outside_its_hours_a_partner_is_not_pulled(store, tmp_path):
    ehr = InProcess("r4", humans=2)
    elsewhen = [{"days": [DAYS[(datetime.now(UTC).weekday() + 3) % 7]], "from": "00:00", "to": "24:00"}]
    assert await rounds(store, ehr, tmp_path, time_zone="UTC", schedule={"hours": elsewhen}) == set()


@pytest.mark.parametrize("command", [partnering.pull_partner, partnering.reconcile_partner])
async def test_a_pull_by_command_asks_what_the_partner_has_too(store, tmp_path, command):
    """Else nothing would be written back to a new partner until the worker's own pull, a whole interval later."""
    ehr = InProcess("r4", humans=2)
    async with ehr.client(tmp_path) as client:
        await command(Settings(), store, client)
        kept = await drift.kept(store, "r4-partner")
    assert kept is not None
    assert kept.can("ServiceRequest", "create")
