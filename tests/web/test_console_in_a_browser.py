"""The console, the work list, emergency access and its review in a real browser: by keyboard, on a phone and a desk, in light and dark."""

import pytest

from fhircm.access.audit import audit_event
from fhircm.access.audit_journal import Event
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check_tree
from fhircm.store.credentials import Credentials
from fhircm.store.resources import Put

from . import test_console_partners
from .conftest import APP, PASSWORD
from .test_in_a_browser import PHONE, chromium, press, served, sound, tab_to, type_by_keyboard, window

__all__ = ["chromium", "served"]
DESK = {"width": 1200, "height": 900}


async def prepare(served):
    """Cleo is a clinician who treats Ada, with tasks; the app can be launched and leads to a page of this machine."""
    logins, store = served.state.parts.logins, served.state.store
    await logins.set_roles((await logins.by_username("cleo")).id, ["clinician"])
    elsewhere = served.state.base.replace("127.0.0.1", "localhost")
    growth = APP | {"launch_uri": f"{elsewhere}/signed-out"}
    await Credentials(store.database).add_client("growth", growth)
    await Credentials(store.database).add_client(
        "plans", growth | {"client_name": "Care plans", "launch_uri": f"{elsewhere}/signin"}
    )
    team = {"resourceType": "CareTeam", "status": "active", "id": "team", "subject": {"reference": "Patient/ada"}}
    team["participant"] = [{"member": {"reference": "Practitioner/cleo"}}]
    tasks = [
        {
            "resourceType": "Task",
            "id": id,
            "status": status,
            "intent": "order",
            "priority": priority,
            "code": {"coding": [{"system": COORDINATION, "code": code}], "text": text},
            "for": {"reference": "Patient/ada"},
            "owner": {"reference": owner},
            "restriction": {"period": {"end": due}},
        }
        for id, status, priority, code, text, owner, due in (
            ("contact", "ready", "urgent", "contact", "Contact the patient", "Practitioner/cleo", "2026-03-01T23:59:00Z"),
            (
                "visit",
                "in-progress",
                "routine",
                "follow-up-visit",
                "Follow-up visit within 14 days",
                "Practitioner/cleo",
                "2026-03-10",
            ),
            (
                "referral",
                "requested",
                "routine",
                "closed-loop-referral",
                "Referral to cardiology",
                "Organization/clinic",
                "2026-03-12",
            ),
        )
    ]
    await store.transact([Put(check_tree(tree)) for tree in (team, *tasks)], origin="test")


async def recorded(served):
    """What Cleo did with the record of Bo, as it is in the audit trail."""
    at = int(served.state.store.clock().timestamp() * 1e6)
    who = ("growth", "Practitioner/cleo", "login-1", "Organization/clinic", ("clinician",), "TREAT")
    events = [
        Event(at + 1, "read", 200, "GET", "192.0.2.7", "id-1", *who, "Patient/bo", None, ("Patient/bo/1",)),
        Event(at + 2, "search-type", 200, "GET", "192.0.2.7", "id-2", *who, "Observation", "patient=bo", ()),
        Event(at + 3, "search-type", 403, "GET", "192.0.2.7", "id-3", *who, "Consent", "patient=bo&status=active", ()),
    ]
    trees = [audit_event(event, ["bo"], f"{served.state.base}/fhir") for event in events]
    await served.state.store.transact([Put(check_tree({**tree, "id": f"e{at}"})) for at, tree in enumerate(trees)], origin="hub")


async def signed_in(page, username):
    await page.goto("/signin")
    await type_by_keyboard(page, username, PASSWORD)


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desk", "dark"), ("desk", "light")])
async def test_an_administrator_works_by_keyboard(chromium, served, size, scheme):
    await prepare(served)
    await test_console_partners.well(served.state.store)
    await test_console_partners.broken(served.state.store)
    await served.state.authorization.keys.to_sign("ES384")
    name = f"console-{size}-{scheme}"
    async with window(chromium, served, color_scheme=scheme, viewport=PHONE if size == "phone" else DESK) as page:
        await signed_in(page, "root")
        await press(page, "Console")
        await sound(page, f"{name}-1-clients")
        await press(page, "Add a client")
        await sound(page, f"{name}-2-add")
        await page.locator("#client").focus()
        await page.keyboard.type("board")
        await page.locator("#kind").select_option("client_secret_basic")
        await page.locator("#scope").fill("openid\npatient/*.rs")
        await press(page, "Add it")
        assert await page.get_by_role("status").or_(page.get_by_role("alert")).first.is_visible()  # redirect_uris are needed
        await sound(page, f"{name}-3-refused")
        await page.locator("#redirect_uris").fill("https://board.example/back")
        await press(page, "Add it")
        secret = await page.locator("#secret").inner_text()
        await sound(page, f"{name}-4-secret")
        await press(page, "I have it")
        assert secret not in await page.content()
        await sound(page, f"{name}-5-client")
        await press(page, "Shut it out")
        await sound(page, f"{name}-6-sure")
        await press(page, "Shut it out")
        assert await page.get_by_text("It is shut out").is_visible()
        await press(page, "People")
        await sound(page, f"{name}-7-people")
        await press(page, "Add a person")
        await sound(page, f"{name}-8-add")
        await page.goto("/console/people")
        await press(page, "Cleo Example")
        await sound(page, f"{name}-9-person")
        await press(page, "Organisations")
        await sound(page, f"{name}-10-organisations")
        await press(page, "Riverbend Clinic")
        await sound(page, f"{name}-11-organisation")
        await press(page, "Signing keys")
        await sound(page, f"{name}-12-keys")
        await press(page, "Access of apps")
        await sound(page, f"{name}-13-grants")
        await page.goto("/console/clients/initial-token")
        await sound(page, f"{name}-14-initial-token")
        await press(page, "Partners")
        await sound(page, f"{name}-15-partners")
        await press(page, "south-clinic")
        await sound(page, f"{name}-16-partner")
        await page.goto("/console/partners/show?partner=north-clinic")
        await sound(page, f"{name}-17-partner-that-is-well")
        told = [fault for fault in page.faults if "422" not in fault]
        assert told == []


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desk", "dark"), ("desk", "light")])
async def test_a_clinician_opens_an_app_from_the_work_list_and_the_officer_reviews_an_emergency(chromium, served, size, scheme):
    await prepare(served)
    name = f"work-{size}-{scheme}"
    viewport = PHONE if size == "phone" else DESK
    async with window(chromium, served, color_scheme=scheme, viewport=viewport) as page:
        await signed_in(page, "cleo")
        await press(page, "Work list")
        await sound(page, f"{name}-1-list")
        await tab_to(page, "Open in")
        await page.keyboard.press("Enter")
        await sound(page, f"{name}-2-open-in")
        await press(page, "Growth charts")
        assert page.url.startswith(
            served.state.base.replace("127.0.0.1", "localhost") + "/signed-out?iss="
        )  # by no policy kept from it
        assert "&launch=" in page.url
        await page.goto("/emergency")
        await sound(page, f"{name}-3-emergency")
        await page.locator("#identifier").focus()
        await page.keyboard.type("MRN-2")
        await page.keyboard.press("Tab")
        await page.keyboard.type("1950-01-02")
        await page.keyboard.press("Tab")
        await page.keyboard.type("Unconscious in the emergency room")
        await press(page, "Go on")
        await sound(page, f"{name}-4-sure")
        await press(page, "Open it")
        await sound(page, f"{name}-5-open")
        assert page.faults == []
    async with window(chromium, served, color_scheme=scheme, viewport=viewport) as page:
        await signed_in(page, "prio")
        await press(page, "Privacy")
        await sound(page, f"{name}-6-waiting")
        await press(page, "opened the record of")
        await sound(page, f"{name}-7-emergency")
        await press(page, "I review it")
        await page.locator("#found").fill("It was an emergency, and no more was looked at than needed.")
        await sound(page, f"{name}-8-review")
        await press(page, "End the review")
        await sound(page, f"{name}-9-reviewed")
        await recorded(served)
        await press(page, "Who looked at this record")
        assert await page.get_by_text("search-type Observation?patient=bo").is_visible()
        await sound(page, f"{name}-10-trail")
        await press(page, "Another trail")
        await sound(page, f"{name}-11-ask")
        assert page.faults == []


async def test_a_one_time_code_is_used_by_keyboard(chromium, served):
    login = await served.state.parts.logins.by_username("cleo")
    code = await served.state.parts.codes.give(login)
    async with window(chromium, served, viewport=PHONE) as page:
        await page.goto("/signin")
        await press(page, "choose a password")
        await sound(page, "renew-1")
        for text in ("cleo", code, "four quiet otters"):
            await page.keyboard.type(text)
            await page.keyboard.press("Tab")
        await type_by_keyboard(page, "four quiet otters")
        assert page.url.endswith("/signin")
        await type_by_keyboard(page, "cleo", "four quiet otters")
        assert page.url.endswith("/account")
        assert page.faults == []
