"""The partners in the console: who sees them, what is told of each, and what is not."""

import re
from dataclasses import replace
from datetime import timedelta
from html import unescape

import pytest

from fhircm.exchange import breaker, dead_letters, pull
from fhircm.exchange.channels import HEARD
from fhircm.exchange.due import Due
from fhircm.exchange.news import due
from fhircm.exchange.notifications import rows_at
from fhircm.exchange.status import PULLED
from fhircm.store.resources import Hold, SetState
from tests.exchange.test_pull import Ehr, partner

from .conftest import Browser, populate, running

WELL = "north-clinic"
DOWN = "south-clinic"
SECRET = "p1"  # the id of a patient at the partner


def partners():
    return [partner(), replace(partner(), name=DOWN, vendor="oracle"), replace(partner(), name="new-clinic")]


async def broken(store, name=DOWN):
    """This partner does not answer; things wait for it, were given up, are held, and are left alone."""
    begun = store.clock()
    opened = {"failures": 3, "trips": 1, "since": begun.isoformat(), "why": "it <answered> 503", "of": []}
    failed = {"at": begun.isoformat(), "why": f"{name} answered 503 to GET /fhir/Group/panel"}
    await store.transact(
        [
            SetState(PULLED, name, failed),
            due(name, begun + timedelta(minutes=5)),
            Due(f"1:Task/{SECRET}", f"Patient/{SECRET}", "Task", SECRET, 1, "referral-sent", begun.isoformat()).put(name),
            SetState(dead_letters.parked(name), f"Task/{SECRET}/x/1", {"why": "refused"}),
            SetState(breaker.namespace(name), breaker.WHOLE, {**opened, "until": (begun + timedelta(minutes=3)).isoformat()}),
            Hold(name, f"Task/9 in Patient/{SECRET}", "misplaced", "d", "It is about somebody else", b"{}", f"Patient/{SECRET}"),
        ],
        origin="hub",
    )


async def well(store):
    """The other one was pulled, and everything is in order."""
    ehr = Ehr(2)
    async with ehr.client() as client:
        await pull.pull(store, client)
        ehr.change("Encounter", "p1-e0", status="cancelled")
        await pull.pull(store, client)
    now = store.clock()
    row = {"at": now.isoformat(), "success": now.isoformat()}
    subscriptions = [SetState(rows_at(WELL), key, {"state": state}) for key, state in (("a", "active"), ("b", "requested"))]
    facts = [SetState(PULLED, WELL, row), SetState(HEARD, WELL, {"at": now.isoformat()}), *subscriptions]
    await store.transact([*facts, due(WELL, now + timedelta(minutes=5))], origin="hub")


@pytest.fixture
async def hub(sqlite_url, clock, tmp_path, time):
    async with running(sqlite_url, clock, tmp_path, time, partners=partners()) as app:
        await populate(app.state.store)
        yield app


def words(answer):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


async def test_the_worst_stands_first_with_what_is_wrong(hub, admin):
    await well(hub.state.store)
    await broken(hub.state.store)
    page = await admin.get("/console/partners")
    assert re.findall(r"partner=([a-z-]+)", page.text) == [DOWN, "new-clinic", WELL]
    told = words(page)
    assert "The last pull did not come to its end, and never did: south-clinic answered 503" in told
    assert "oracle · last success never · no patient looked at yet · 1 in line · 1 dead letter · 1 in quarantine" in told
    assert "epic · last success 0 s ago · half of its patients looked at within 0 s" in told
    assert "next run in 5 min" in told
    assert not re.search(rf"\b{SECRET}\b", told)


async def test_one_is_told_with_what_to_do_first(hub, admin):
    await well(hub.state.store)
    await broken(hub.state.store)
    page = await admin.get(f"/console/partners/show?partner={DOWN}")
    told = words(page)
    remedies = re.findall(r"<code>(fhircm [^<]+)</code>", page.text)
    assert remedies[0] == "fhircm partner check south-clinic"
    assert {"fhircm dead-letters list south-clinic --kind refused", "fhircm quarantine list south-clinic --kind misplaced"} <= {
        *remedies
    }
    assert told.index("did not come to its end") < told.index("Deliveries in line 1, the oldest since")
    assert "after 3 failures: it <answered> 503 It is tried again by itself" in told
    assert "Left alone as a whole until 2 March 2026, 15:03 (in 3 min) Dead letters 1 refused In quarantine 1 misplaced" in told
    assert "Encounter not yet Patient not yet ServiceRequest not yet Task not yet 1 quarantined" in told
    assert not re.search(rf"\b{SECRET}\b", told)
    told = words(await admin.get(f"/console/partners/show?partner={WELL}"))
    assert "Nothing is to be done." in told
    assert re.search(r"Encounter half within 0 s, the oldest 0 s ago 1 hash \S.* \d+ requests, \d+ kB", told)
    assert "Organization as needed" in told
    assert "Subscriptions 1 active, 1 requested Last HL7 v2 message 2 March 2026, 15:00 (now)" in told


async def test_they_are_found_by_name_and_by_how_they_are(hub, admin):
    await broken(hub.state.store)
    for text, names in (("south", [DOWN]), ("down", [DOWN]), ("epic", ["new-clinic", WELL]), ("nothing", [])):
        page = await admin.send_form("/console/partners", {"find": text})
        assert re.findall(r"partner=([a-z-]+)", page.text) == names
    assert "No partner is found by this." in words(page)


async def test_one_that_there_is_not_and_somebody_who_may_not(hub, admin):
    page = await admin.get("/console/partners/show?partner=<script>")
    assert (page.status_code, "<script>" in page.text) == (404, False)
    for username in ("cleo", "prio", "custos"):
        async with Browser(hub) as other:
            await other.sign_in(username)
            for path in ("/console/partners", f"/console/partners/show?partner={WELL}"):
                assert (await other.get(path)).status_code == 403
    async with Browser(hub) as nobody:
        assert (await nobody.get("/console/partners")).headers["location"].startswith("/signin")


async def test_without_partners_it_says_how_to_begin(sqlite_url, clock, tmp_path, time):
    async with running(sqlite_url, clock, tmp_path, time) as app:
        await populate(app.state.store)
        async with Browser(app) as browser:
            await browser.sign_in("root")
            assert "begin with fhircm partner new" in words(await browser.get("/console/partners"))
