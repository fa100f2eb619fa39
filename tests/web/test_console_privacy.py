"""The privacy officer's pages: emergency accesses and their review, audit trails, the disclosure report."""

import csv
import io
import re
from html import unescape

import pytest

from fhircm.access.audit_drain import Drain
from fhircm.app import AuditConfig
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put

from .conftest import BASE, Browser, populate, running

REASON = "Unconscious in the <b>emergency</b> room"
FOUND = "It was an emergency, and no more was looked at than needed."


@pytest.fixture
async def opened(hub, browser):
    """The id of the Task of an emergency access of Cleo's."""
    await browser.sign_in("cleo")
    fields = {"identifier": "MRN-2", "birthdate": "1950-01-02", "reason": REASON, "sure": "yes"}
    answer = await browser.send_form("/emergency", fields, await browser.get("/emergency"))
    assert "The record is open" in answer.text
    from fhircm.fhir.query import parse_query

    (task,) = (await hub.state.store.search(parse_query("Task", [("code", "break-glass")]))).matches
    return task.id


async def test_an_emergency_access_is_told_with_who_whom_when_and_why(officer, opened):
    shown = (await officer.get("/privacy")).text
    for word in ("Example opened the record of Bo Berg", "2 March 2026, 15:00", "open until 2 March 2026, 19:00"):
        assert word in shown, word
    assert (REASON in shown, REASON in unescape(shown)) == (False, True)
    one = (await officer.get(f"/privacy/emergency?task={opened}")).text
    assert "Nobody reviews it yet." in one


async def test_a_review_goes_its_steps_and_ends_with_a_note(hub, officer, opened):
    page = await officer.get(f"/privacy/emergency?task={opened}")
    answer = await officer.send_form("/privacy/emergency/accept", {"task": opened}, page)
    assert answer.headers["location"] == f"/privacy/emergency?task={opened}&done=accepted"
    tree = (await hub.state.store.read("Task", opened)).tree
    assert (tree["status"], tree["owner"]) == ("accepted", {"reference": "Practitioner/prio", "display": "Priya Officer"})
    page = await officer.get(answer.headers["location"])
    short = await officer.send_form("/privacy/emergency/review", {"task": opened, "found": "fine"}, page)
    assert (short.status_code, 'id="error-found"' in short.text) == (422, True)
    answer = await officer.send_form("/privacy/emergency/review", {"task": opened, "found": FOUND}, page)
    assert answer.headers["location"].endswith("done=reviewed")
    tree = (await hub.state.store.read("Task", opened)).tree
    assert (tree["status"], tree["note"][0]["text"], tree["note"][0]["authorReference"]["reference"]) == (
        "completed",
        FOUND,
        "Practitioner/prio",
    )
    versions = [(await hub.state.store.vread("Task", opened, number)).tree["status"] for number in (1, 2, 3, 4)]
    assert versions == ["requested", "accepted", "in-progress", "completed"]
    assert "None waits for review" in (await officer.get("/privacy")).text
    done = (await officer.get("/privacy/reviewed")).text
    assert "reviewed by Priya Officer" in done
    assert FOUND in (await officer.get(f"/privacy/emergency?task={opened}")).text
    again = await officer.send_form("/privacy/emergency/review", {"task": opened, "found": FOUND}, page)
    assert again.status_code == 409


async def test_other_tasks_are_no_emergencies(hub, officer):
    tree = {"resourceType": "Task", "id": "other", "status": "requested", "intent": "order", "for": {"reference": "Patient/ada"}}
    await hub.state.store.transact([Put(check_tree(tree))], origin="test")
    page = await officer.get("/privacy/trail")
    assert (await officer.get("/privacy/emergency?task=other")).status_code == 404
    for path in ("accept", "review"):
        answer = await officer.send_form(f"/privacy/emergency/{path}", {"task": "other", "found": FOUND}, page)
        assert answer.status_code == 404
    assert (await hub.state.store.read("Task", "other")).version == 1


async def test_the_rooms_of_the_privacy_officer_are_for_nobody_else(browser, admin, opened):
    for one in (browser, admin):
        for path in ("/privacy", "/privacy/reviewed", "/privacy/trail", f"/privacy/emergency?task={opened}"):
            assert (await one.get(path)).status_code == 403
        page = await one.get("/account")
        for path in ("emergency/accept", "emergency/review", "trail", "disclosures"):
            answer = await one.send_form(f"/privacy/{path}", {"task": opened, "found": FOUND, "who": "Patient/ada"}, page)
            assert (answer.status_code, "text/csv" in answer.headers["content-type"]) == (403, False)


async def test_emergencies_come_in_pages(hub, officer, opened, browser):
    for _ in range(26):
        fields = {"identifier": "MRN-2", "birthdate": "1950-01-02", "reason": REASON, "sure": "yes"}
        await browser.send_form("/emergency", fields, await browser.get("/emergency"))
    first = await officer.get("/privacy")
    onward = unescape(re.search(r'name="page" value="([^"]+)"', first.text)[1])
    second = await officer.send_form("/privacy", {"page": onward}, first)
    ids = [set(re.findall(r"/privacy/emergency\?task=([\w-]+)", one.text)) for one in (first, second)]
    assert (len(ids[0]), len(ids[1]), ids[0] & ids[1]) == (25, 2, set())
    forged = await officer.send_form("/privacy", {"page": onward[:-4] + "AAAA"}, first)
    assert forged.status_code == 400


# --- the audit trail ---


@pytest.fixture
async def seen(database_url, clock, tmp_path, time):
    """The hub after Cleo looked at Bo's record in an emergency; what was recorded is written."""
    folder = tmp_path / "audit"
    async with running(database_url, clock, tmp_path, time, audit=AuditConfig(folder, 10_000_000)) as app:
        await populate(app.state.store)
        async with Browser(app) as cleo, Browser(app) as officer:
            await cleo.sign_in("cleo")
            await officer.sign_in("prio")
            fields = {"identifier": "MRN-2", "birthdate": "1950-01-02", "reason": REASON, "sure": "yes"}
            await cleo.send_form("/emergency", fields, await cleo.get("/emergency"))
            app.state.journal.close_segment()
            await Drain(app.state.store, folder, f"{BASE}/fhir").drain()
            yield officer


async def asked(officer, **fields):
    page = await officer.get("/privacy/trail")
    return await officer.send_form("/privacy/trail", {"kind": "patient", "find": "", "since": "", "until": "", **fields}, page)


def cells(page):
    rows = re.findall(r"<tr>(<td.*?)</tr>", page.text)
    return [[unescape(one) for one in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


async def test_the_trail_of_a_patient_tells_who_looked(seen):
    for find in ("MRN-2", "berg", "Patient/bo"):
        page = await asked(seen, find=find)
        assert "Audit trail of Bo Berg" in page.text, find
        rows = cells(page)
        assert [row[1] for row in rows] == ["Example"] * len(rows)
        assert {row[3] for row in rows} >= {"read Patient/bo"}
        assert {row[5] for row in rows} == {"yes"}


async def test_the_trail_of_a_person_tells_at_whom_they_looked(seen):
    for find in ("cleo", "Cleo Ex", "Practitioner/cleo"):
        page = await asked(seen, kind="person", find=find)
        assert "Audit trail of Example" in page.text, find
        assert "Bo Berg" in {row[4] for row in cells(page)}


async def test_it_is_narrowed_by_days_and_nothing_is_nothing(seen):
    today = (await asked(seen, find="MRN-2")).text
    day = re.search(r"(\d+) (\w+) (\d{4}), \d\d:\d\d", today)
    assert day
    for since, until, there in (
        ("2020-01-01", "2020-12-31", False),
        ("2020-01-01", "2099-12-31", True),
        ("2099-01-01", "", False),
    ):
        page = await asked(seen, find="MRN-2", since=since, until=until)
        assert bool(cells(page)) == there, (since, until)
    wrong = await asked(seen, find="MRN-2", since="yesterday")
    assert (wrong.status_code, 'id="error-since"' in wrong.text) == (422, True)


async def test_when_several_are_meant_the_officer_chooses_and_when_nobody_is_it_is_told(seen):
    page = await asked(seen, kind="person", find="e")
    assert "Who is meant?" in page.text
    assert 'value="Practitioner/prio"' in page.text
    for find in ("nobody at all", "", "<b>"):
        none = await asked(seen, find=find)
        assert (none.status_code, 'id="error-find"' in none.text) == (422, True)
    chosen = await seen.send_form("/privacy/trail", {"kind": "patient", "find": "x", "who": "Patient/bo' or 1"}, page)
    assert "Audit trail of" not in chosen.text


async def test_the_disclosure_report_is_a_table_for_a_spreadsheet(seen):
    page = await asked(seen, find="MRN-2")
    answer = await seen.send_form("/privacy/disclosures", {"who": "Patient/bo", "since": "", "until": ""}, page)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert answer.headers["content-disposition"] == 'attachment; filename="disclosures-bo.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["who"], row["what"]) for row in rows] == [("Example", "read Patient/bo")]
    for who in ("Practitioner/cleo", "Patient/../x", "Patient/", 'Patient/a"; x'):
        refused = await seen.send_form("/privacy/disclosures", {"who": who}, page)
        assert refused.status_code == 422, who
