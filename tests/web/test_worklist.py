"""The work list and what it launches; emergency access; over HTTP on both databases."""

import re
from datetime import timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest

from fhircm.app import AuditConfig
from fhircm.coordination.codes import BASE as HUB
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check_tree
from fhircm.smart.launch import CODES
from fhircm.store.credentials import Credentials
from fhircm.store.resources import Put

from .conftest import APP, Browser, populate, running

LAUNCH = "https://app.example/launch"
HOSTILE = "<img src=x onerror=alert(1)>"


def ref(to):
    return {"reference": to}


def task(id, due=None, patient="ada", owner="Practitioner/cleo", **more):
    tree = {
        "resourceType": "Task",
        "id": id,
        "status": "requested",
        "intent": "order",
        "code": {"text": f"Task {id}"},
        "for": ref(f"Patient/{patient}"),
        "owner": ref(owner) if owner else None,
        "restriction": {"period": {"end": due}} if due else None,
        **more,
    }
    return {name: value for name, value in tree.items() if value is not None}


def role(code):
    return [{"coding": [{"system": f"{HUB}/role", "code": code}]}]


def risk_of_ada():
    probability = {"system": "http://terminology.hl7.org/CodeSystem/risk-probability", "code": "high"}
    tree = {"resourceType": "RiskAssessment", "id": "risk", "status": "final", "subject": ref("Patient/ada")}
    return tree | {"prediction": [{"qualitativeRisk": {"coding": [probability]}}]}


def asks(application, code="launch-app-ehr", context="what the app knows"):
    inputs = {"smartonfhir-application": {"valueUrl": application}, "smartonfhir-appcontext": {"valueString": context}}
    return {
        "code": {"coding": [{"system": CODES, "code": code}], "text": "Open the app"},
        "input": [{"type": {"coding": [{"system": CODES, "code": name}]}, **value} for name, value in inputs.items()],
    }


async def put(hub, *trees):
    await hub.state.store.transact([Put(check_tree(tree)) for tree in trees], origin="load")


@pytest.fixture
async def clinic(hub):
    """Cleo treats Ada, and nobody treats Bo; the clinic's app can be launched."""
    await Credentials(hub.state.store.database).add_client("growth", APP | {"launch_uri": LAUNCH})
    team = {
        "resourceType": "CareTeam",
        "id": "team",
        "status": "active",
        "subject": ref("Patient/ada"),
        "participant": [{"member": ref("Practitioner/cleo")}],
    }
    others = [
        {"resourceType": "Organization", "id": "other", "name": "Elsewhere"},
        {"resourceType": "Practitioner", "id": "other", "name": [{"family": "Other"}]},
    ]
    await put(hub, team, *others)
    return hub


@pytest.fixture
async def cleo(clinic, browser):
    await browser.sign_in("cleo")
    return browser


def titles(page):
    return re.findall(r"<h2>([^<]*)</h2>", page.text)


async def launched(one, **fields):
    return await one.send_form("/worklist/launch", fields, await one.get("/worklist"))


async def test_tasks_of_the_person_the_role_and_the_organisation_are_listed_by_due_time(clinic, cleo):
    await put(
        clinic,
        task("own", "2026-03-05T10:00:00Z"),
        task("of-clinic", "2026-03-03", owner="Organization/clinic"),
        task("of-role", "2026-03-04T09:00:00-06:00", owner=None, performerType=role("clinician")),
        task("without-due"),
        task("overdue", "2026-03-01T10:00:00Z", priority="urgent", businessStatus={"text": "2.0 Sent"}),
        task("of-another", "2026-03-02", owner="Practitioner/other"),
        task("of-another-role", "2026-03-02", owner=None, performerType=role("nurse")),
        task("role-but-owned", "2026-03-02", owner="Practitioner/other", performerType=role("clinician")),
        task("done", "2026-03-02", status="completed"),
        task("of-a-stranger", "2026-03-02", patient="cy", owner="Organization/other"),
    )
    page = await cleo.get("/worklist")
    assert titles(page) == ["Task overdue", "Task of-clinic", "Task of-role", "Task own", "Task without-due"]
    assert "overdue since 1 March 2026, 10:00" in page.text
    assert "due 3 March 2026 ·" in page.text
    assert "new: 2.0 Sent" in page.text
    assert "urgent" in page.text
    assert page.text.count("Ada Abbott") == 5
    assert "<script" not in page.text


async def test_the_list_comes_in_pages(clinic, cleo):
    await put(clinic, *(task(f"t{number:02}", f"2026-03-{number + 1:02}") for number in range(25)))
    page = await cleo.get("/worklist")
    assert titles(page) == [f"Task t{number:02}" for number in range(20)]
    (following,) = re.findall(r'href="(/worklist\?after=[^"]+)">Next page', page.text)
    await put(clinic, task("earlier", "2026-02-01"))
    assert titles(await cleo.get(following)) == [f"Task t{number}" for number in range(20, 25)]
    for strange in ("x", "1.2.3", "9" * 30, f"{'9' * 19}.1.1.1"):
        assert (await cleo.get(f"/worklist?after={strange}")).status_code == 200


async def test_the_form_chooses_and_sorts_and_every_line_says_why_it_is_here(clinic, cleo):
    await put(
        clinic,
        task("own", "2026-03-05T10:00:00Z"),
        task("pressing", "2026-03-06T10:00:00Z", priority="stat"),
        task("late", "2026-03-01T10:00:00Z", owner="Organization/clinic"),
        task("waiting", "2026-03-04", owner="Organization/clinic", performerType=role("clinician")),
        risk_of_ada(),
    )
    expected = {
        "": ["late", "waiting", "own", "pressing"],
        "why=mine": ["own", "pressing"],
        "why=role": ["waiting"],
        "why=organization&due=overdue": ["late"],
        "due=week&sort=priority": ["pressing", "late", "waiting", "own"],
        "priority=urgent": ["pressing"],
        "risk=high&sort=risk": ["late", "waiting", "own", "pressing"],
        "risk=nonsense&why=": ["late", "waiting", "own", "pressing"],
    }
    for query, ids in expected.items():
        page = await cleo.get(f"/worklist?{query}")
        assert titles(page) == [f"Task {id}" for id in ids], query
    page = await cleo.get("/worklist?why=role")
    assert "it waits for somebody in your role" in page.text
    assert "high risk" in page.text
    assert "Next: " in page.text
    assert '<option value="role" selected>' in page.text
    assert "Nothing is like that" in (await cleo.get("/worklist?why=offered")).text


async def test_what_others_wrote_is_shown_as_text(clinic, cleo):
    await put(clinic, task("evil", code={"text": HOSTILE}, businessStatus={"text": HOSTILE}))
    shown = (await cleo.get("/worklist")).text
    assert HOSTILE not in shown
    assert HOSTILE in unescape(shown)


async def test_an_app_is_launched_for_a_task_at_its_registered_address(clinic, cleo):
    encounter = {
        "resourceType": "Encounter",
        "id": "stay",
        "status": "in-progress",
        "class": {"code": "IMP"},
        "subject": ref("Patient/ada"),
    }
    contact = {"coding": [{"system": COORDINATION, "code": "contact"}]}
    await put(clinic, encounter, task("visit", code=contact, encounter=ref("Encounter/stay")))
    page = await cleo.get("/worklist")
    assert "form-action 'self' https://app.example;" in page.headers["content-security-policy"]
    answer = await cleo.send_form("/worklist/launch", {"task": "visit", "client": "growth"}, page)
    url = urlsplit(answer.headers["location"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == LAUNCH
    sent = parse_qs(url.query)
    assert sent["iss"] == ["http://hub.example/fhir"]
    kept = await clinic.state.authorization.launches.grants.take_launch(sent["launch"][0], 0)
    cleo_id = (await clinic.state.parts.logins.by_username("cleo")).id
    assert (kept["client_id"], kept["login"]) == ("growth", cleo_id)
    context = kept["context"]
    assert (context["patient"], context["encounter"], context["intent"]) == ("ada", "stay", "contact")
    assert context["fhirContext"] == [{"reference": "Task/visit"}]


async def test_a_task_asks_for_an_app_and_the_list_says_so(clinic, cleo):
    await put(clinic, task("ehr", **asks(LAUNCH)), task("alone", **asks(LAUNCH, "launch-app-standalone")))
    page = await cleo.get("/worklist")
    assert page.text.count("Open in Growth charts") == 2
    answer = await launched(cleo, task="ehr")
    sent = parse_qs(urlsplit(answer.headers["location"]).query)
    kept = await clinic.state.authorization.launches.grants.take_launch(sent["launch"][0], 0)
    assert kept["context"]["appContext"] == "what the app knows"
    assert (await launched(cleo, task="alone")).headers["location"] == LAUNCH


@pytest.mark.parametrize(
    "application", ["https://evil.example/", f"{LAUNCH}/more", f"{LAUNCH}?x=1", "//evil.example", "javascript:alert(1)"]
)
async def test_no_task_leads_to_an_address_that_is_not_registered(clinic, cleo, application):
    for code in ("launch-app-ehr", "launch-app-standalone"):
        await put(clinic, task("evil", **asks(application, code)))
        assert "as the task asks" not in (await cleo.get("/worklist")).text
        answer = await launched(cleo, task="evil")
        assert (answer.status_code, "location" in answer.headers) == (409, False)


async def test_only_open_tasks_that_are_seen_launch_and_only_apps_that_may_sign_in(clinic, cleo):
    await put(clinic, task("one"), task("done", status="completed"), task("cy-s", patient="cy", owner="Practitioner/other"))
    credentials = Credentials(clinic.state.store.database)
    await credentials.add_client("shut", APP | {"launch_uri": "https://shut.example/", "disabled": True})
    await credentials.add_client("no-launch", APP)
    expected = {("none", "growth"): 404, ("cy-s", "growth"): 404, ("done", "growth"): 409}
    expected |= {("one", client): 409 for client in ("shut", "no-launch", "nobody", "")}
    for (id, client), status in expected.items():
        answer = await launched(cleo, task=id, client=client)
        assert (answer.status_code, "location" in answer.headers) == (status, False), (id, client)
    assert "shut.example" not in (await cleo.get("/worklist")).headers["content-security-policy"]


async def test_the_list_is_for_those_who_work_by_it(clinic, admin, officer):
    for one in (admin, officer):
        assert (await one.get("/worklist")).status_code == 403
        assert (await one.get("/emergency")).status_code == 403
        answer = await one.send_form("/worklist/launch", {"task": "x", "client": "growth"}, await one.get("/account"))
        assert answer.status_code == 403
    async with Browser(clinic) as ada:
        await ada.sign_in("ada")
        assert (await ada.get("/worklist")).status_code == 403


# --- emergency access ---

WHY = {"identifier": "MRN-2", "birthdate": "1950-01-02", "reason": "Unconscious in the emergency room"}


async def emergency(one, **more):
    page = await one.get("/emergency")
    return await one.send_form("/emergency", WHY | more, page)


async def test_the_record_opens_after_it_is_asked_again_and_closes_by_itself(clinic, cleo, clock):
    await put(clinic, task("bo-s", patient="bo", owner="Organization/other"))
    asked = await emergency(cleo)
    assert "Open this record?" in asked.text
    assert "Bo Berg" not in asked.text
    store = clinic.state.store
    assert await _open_for_cleo(clinic) == []
    opened = await emergency(cleo, sure="yes")
    assert ("The record is open" in opened.text, "Bo Berg" in opened.text) == (True, True)
    assert "until 2 March 2026, 19:00" in opened.text
    (found,) = await _open_for_cleo(clinic)
    tree = (await store.read("Task", found)).tree
    assert tree["reasonCode"]["text"] == WHY["reason"]
    assert tree["performerType"][0]["coding"][0]["code"] == "privacy-officer"
    assert (await launched(cleo, task="bo-s", client="growth")).status_code == 303
    clock.advance(timedelta(hours=4, seconds=1))
    assert (await launched(cleo, task="bo-s", client="growth")).status_code == 404


async def _open_for_cleo(hub):
    from fhircm.fhir.query import parse_query

    found = await hub.state.store.search(parse_query("Task", [("code", "break-glass")]))
    return [one.id for one in found.matches]


@pytest.mark.parametrize(
    ("wrong", "field", "status"),
    [
        ({"identifier": ""}, "identifier", 422),
        ({"birthdate": "2 January 1950"}, "birthdate", 422),
        ({"reason": "because"}, "reason", 422),
        ({"birthdate": "1950-01-03", "sure": "yes"}, "identifier", 404),
        ({"identifier": "MRN-2,MRN-1", "sure": "yes"}, "identifier", 404),
        ({"identifier": "urn:mrn|", "sure": "yes"}, "identifier", 404),
        ({"identifier": HOSTILE, "sure": "yes"}, "identifier", 404),
    ],
)
async def test_what_is_wrong_is_told_at_the_field_and_opens_nothing(clinic, cleo, wrong, field, status):
    answer = await emergency(cleo, **wrong)
    assert (answer.status_code, f'id="error-{field}"' in answer.text) == (status, True), answer.text
    assert HOSTILE not in answer.text
    assert await _open_for_cleo(clinic) == []


async def test_two_patients_with_one_number_and_birth_date_are_nobody(clinic, cleo):
    twin = {
        "resourceType": "Patient",
        "id": "twin",
        "birthDate": "1950-01-02",
        "identifier": [{"system": "urn:other", "value": "MRN-2"}],
    }
    await put(clinic, twin)
    assert (await emergency(cleo, sure="yes")).status_code == 404


async def test_what_is_shown_launched_and_opened_is_recorded(database_url, clock, tmp_path, time):
    audit = AuditConfig(tmp_path / "audit", 10_000_000)
    async with running(database_url, clock, tmp_path, time, audit=audit) as app:
        await populate(app.state.store)
        await Credentials(app.state.store.database).add_client("growth", APP | {"launch_uri": LAUNCH})
        await put(app, task("own"))
        async with Browser(app) as cleo:
            await cleo.sign_in("cleo")
            await cleo.get("/worklist")
            await launched(cleo, task="own", client="growth")
            await emergency(cleo, sure="yes")
            app.state.journal.sync()
        written = "".join(path.read_text() for path in (tmp_path / "audit").rglob("*") if path.is_file())
    for what in ("Task/own/1", "!launch", "growth for Task/own", "!break-glass", "Patient/bo", "Practitioner/cleo"):
        assert what in written, what
