"""`fhircm reconcile` tells what was found, and how each type stands."""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import httpx
from typer.testing import CliRunner

from fhircm import cli_exchange, wiring
from fhircm.cli import app
from fhircm.exchange.status import PULLED
from fhircm.settings import load
from fhircm.store.resources import SetState
from tests.exchange.test_pull import Ehr, partner, ref


def what_it_has(request):
    """The answer to what comes before every pull; it says little."""
    if request.url.path.endswith("/metadata"):
        return httpx.Response(200, json={"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"})
    return httpx.Response(404) if request.url.path.endswith("/smart-configuration") else None


def test_reconcile_tells_what_is_gone_and_what_is_missing(sqlite_url, monkeypatch, tmp_path):
    ehr = Ehr(2)
    ehr.change("Encounter", "p1-e0", serviceProvider=ref("Organization/nowhere"))
    ehr.faults.append(what_it_has)

    @asynccontextmanager
    async def connect(*_):
        async with ehr.client() as client:
            yield client

    monkeypatch.setattr(cli_exchange, "connect", connect)
    monkeypatch.setattr(wiring, "partners", lambda *_: [partner()])
    monkeypatch.setenv("FHIRCM_DATABASE_URL", sqlite_url)
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(app, ["reconcile", "north-clinic"])
    assert first.exit_code == 0, first.output
    assert "2 patients, 17 resources: 17 written" in first.output
    assert "found: Organization/nowhere is referred to, and the partner does not give it" in first.output
    del ehr.resources["Encounter", "p0-e1"]
    again = CliRunner().invoke(app, ["reconcile", "north-clinic"])
    assert "found: 1 resources are not there any more" in again.output
    assert re.search(r"^  Encounter: looked at \d+ s ago", again.output, re.MULTILINE)
    assert "  Organization: read by reference; 1 gap" in again.output


def test_status_is_told_in_words_or_as_json_and_ends_with_1_when_something_is_down(sqlite_url, monkeypatch, tmp_path):
    monkeypatch.setattr(wiring, "partners", lambda *_: [partner()])
    monkeypatch.setenv("FHIRCM_DATABASE_URL", sqlite_url)
    monkeypatch.chdir(tmp_path)
    words = CliRunner().invoke(app, ["partner", "status"])
    assert (words.exit_code, words.output.splitlines()[0]) == (0, "north-clinic (epic): attention")

    async def down():
        async with wiring.open_store(load()) as store:
            await store.transact(
                [SetState(PULLED, "north-clinic", {"at": store.clock().isoformat(), "why": "no answer"})], origin="hub"
            )

    asyncio.run(down())
    told = CliRunner().invoke(app, ["partner", "status", "--json"])
    (one,) = json.loads(told.output)
    assert (told.exit_code, one["partner"], one["verdict"]) == (1, "north-clinic", "down")
    assert "no answer" in one["concerns"][0]["text"]
