"""GET /metrics: who may read it, what it tells, and what it costs."""

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fhircm import wiring
from fhircm.app import AppConfig, create_app
from fhircm.exchange import breaker, dead_letters, pull
from fhircm.exchange.due import Due
from fhircm.exchange.news import due
from fhircm.exchange.status import PULLED, statuses
from fhircm.fhir.outcome import Conflict
from fhircm.lately import Lately
from fhircm.rest.exchange import RestSettings
from fhircm.settings import SettingsWrong, load
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.resources import Hold, SetState, SetTimer
from tests.exchange.test_pull import Ehr, partner

NORTH = "north-clinic"
BASE = "http://hub.example"
TOKEN = "a-token-of-at-least-32-characters"
REST = RestSettings(body_limit=20_000, bundle_limit=2_000_000, update_create=False, conditional_delete_limit=1)


@pytest.fixture
def hub(database_url, clock, tmp_path):
    """Opens the application; a client of it."""

    @asynccontextmanager
    async def opened(token=TOKEN):
        config = AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, [])
        app = create_app(replace(config, partners=[partner()], metrics_token=token))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            client.store = app.state.store
            yield client

    return opened


async def read(client, token=TOKEN):
    return await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})


def values(text):
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    order = ("partner", "type", "kind", "means", "what", "reaction", "job")
    return {
        (one.name.removeprefix("fhircm_"), *(one.labels[name] for name in order if name in one.labels)): one.value
        for one in samples
    }


async def test_only_who_shows_the_token_reads_them(hub):
    async with hub() as client:
        refused = [await client.get("/metrics"), await read(client, "another"), await read(client, TOKEN[:-1])]
        refused.append(await client.get("/metrics", headers={"Authorization": f"Basic {TOKEN}"}))
        assert [(one.status_code, one.headers["www-authenticate"]) for one in refused] == [(401, "Bearer")] * 4
        assert all("fhircm_" not in one.text for one in refused)
        answer = await read(client)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert answer.headers["cache-control"] == "no-store"


async def test_without_a_token_nobody_reads_them(hub):
    async with hub(token=None) as client:
        for answer in (await client.get("/metrics"), await read(client), await read(client, "")):
            assert (answer.status_code, "FHIRCM_METRICS_TOKEN" in answer.text) == (404, True)


async def test_what_partners_and_the_hub_do_is_told_without_a_word_of_a_patient(hub, clock):
    async with hub() as client:
        store, begun = client.store, clock()
        ehr = Ehr(2)
        async with ehr.client() as partner_client:
            await pull.pull(store, partner_client)
            ehr.change("Encounter", "p1-e0", status="cancelled")
            await pull.pull(store, partner_client)
        opened = {"failures": 3, "trips": 1, "since": begun.isoformat(), "why": "503", "of": []}
        until = (begun + timedelta(hours=3)).isoformat()
        await store.transact(
            [
                SetState(PULLED, NORTH, {"at": begun.isoformat(), "success": begun.isoformat()}),
                due(NORTH, begun + timedelta(hours=3)),
                Due("1:Task/p1", "Patient/p1", "Task", "p1", 1, "referral-sent", begun.isoformat()).put(NORTH),
                SetState(dead_letters.parked(NORTH), "Task/p1/x/1", {"why": "refused"}),
                SetState(breaker.namespace(NORTH), "Task create", {**opened, "until": until}),
                Hold(NORTH, "Task/p9 in Patient/p1", "misplaced", "d", "It is about somebody else", b"{}", "Patient/p1"),
                SetTimer("late", "deadline", begun + timedelta(hours=1), {}),
                SetTimer("job:Task/1", "job:export", begun, {}),
            ],
            origin="hub",
        )
        clock.advance(timedelta(hours=2))
        text = (await read(client)).text
    told = values(text)
    expected = {
        ("partner_verdict", NORTH): 2,
        ("partner_last_success_timestamp_seconds", NORTH): begun.timestamp(),
        ("partner_next_run_timestamp_seconds", NORTH): begun.timestamp() + 3 * 3600,
        ("partner_queue_length", NORTH): 1,
        ("partner_queue_oldest_seconds", NORTH): 7200,
        ("partner_dead_letters", NORTH, "refused"): 1,
        ("partner_quarantine", NORTH, "misplaced"): 1,
        ("partner_breaker_open", NORTH, "*"): 0,
        ("partner_breaker_open", NORTH, "Task create"): 1,
        ("partner_freshness_seconds", NORTH, "Encounter"): 7200,
        ("partner_late_patients", NORTH, "Encounter"): 0,
        ("partner_missing", NORTH, "Task", "quarantined"): 1,
        ("timers_overdue", "deadline"): 1,
        ("timers_overdue_seconds", "deadline"): 3600,
        ("timers_overdue", "partner"): 0,
        ("jobs", "export"): 1,
    }
    assert {name: told.get(name) for name in expected} == expected
    assert told["partner_requests_total", NORTH, "Encounter"] >= 2
    assert told["partner_received_bytes_total", NORTH, "Encounter"] > 100
    assert told["partner_changes_total", NORTH, "Encounter", "hash"] == 1
    assert told["reaction_lag_changes", "identity"] == told["change_log_head",] > 10
    assert told["reaction_lag_seconds", "identity"] == 7200
    assert not re.search(r"\bp[019]\b|Patient/|503", text)


async def test_a_database_that_is_away_is_told_as_such(hub, monkeypatch):
    async with hub() as client:

        async def away(*_):
            raise DatabaseUnavailable("The database does not answer")

        monkeypatch.setattr(client.store, "states_of", away)
        assert (await read(client)).status_code == 503
        monkeypatch.undo()
        assert (await read(client)).status_code == 200


async def test_some_partners_more_cost_no_statement_more_each(store, monkeypatch):
    counted, reading = [], store.database.reading
    monkeypatch.setattr(store.database, "reading", lambda **more: counted.append(1) or reading(**more))
    await statuses(store, [partner()])
    of_one = len(counted)
    found = await statuses(store, [replace(partner(), name=f"p{number}") for number in range(100)])
    assert len(found) == 100
    assert len(counted) - of_one == of_one


async def test_what_was_found_lately_is_not_found_again():
    now, found = [0.0], []

    async def find():
        await asyncio.sleep(0)
        if len(found) == 2:
            raise Conflict("not now")
        found.append(now[0])
        now[0] += 3 * len(found)
        return len(found)

    lately = Lately(find, lambda: now[0])
    assert await asyncio.gather(*(lately.get() for _ in range(5))) == [1] * 5
    now[0] = 32.9  # it took 3 seconds, so it is kept for 30
    assert await lately.get() == 1
    now[0] = 33
    assert await lately.get() == 2
    now[0] = 1000
    with pytest.raises(Conflict):
        await lately.get()
    found.clear()
    assert await lately.get() == 1


async def test_every_metric_is_in_the_reference_and_no_other(hub):
    reference = (Path(__file__).parent.parent / "docs/reference/metrics.md").read_text()
    async with hub() as client:
        told = {(name, kind) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", (await read(client)).text, re.MULTILINE)}
    assert set(re.findall(r"^\| `(\w+)` \| (gauge|counter) \|", reference, re.MULTILINE)) == told


async def test_the_settings_say_who_reads_them_and_of_which_partners(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("DATABASE_URL", sqlite_url), ("METRICS_TOKEN", TOKEN), ("AUDIT", "false")):
        monkeypatch.setenv(f"FHIRCM_{name}", value)
    app = wiring.application(load())
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        told = values((await read(client)).text)
    assert {name[1] for name in told if name[0] == "partner_verdict"} == {"lakeside-hospital", "riverbend-clinic"}
    monkeypatch.setenv("FHIRCM_METRICS_TOKEN", "short")
    with pytest.raises(SettingsWrong, match="metrics_token") as wrong:
        load()
    assert "short" not in str(wrong.value)
