"""The pages in a real browser: by keyboard alone, on a phone, in light and dark, held to the rules of axe."""

import asyncio
import os
import re
import shutil
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import axe_playwright_python
import pytest
import uvicorn
from playwright.async_api import async_playwright

from fhircm.access import totp
from fhircm.store.credentials import Credentials

from .conftest import APP, PASSWORD, populate, running
from .test_console_partners import partners
from .test_worklist import put, risk_of_ada, role, task

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PHONE = {"width": 360, "height": 740}
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
SCOPE = (
    "launch/patient openid fhirUser offline_access patient/Patient.rs patient/Condition.rs patient/Task.cruds"
    " patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
)
BASICS = """() => {
  const shown = [...document.querySelectorAll('input:not([type=hidden]), select, textarea')].filter(e => e.checkVisibility());
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  return {
    lang: document.documentElement.lang,
    headings: document.querySelectorAll('h1').length,
    unlabelled: shown.filter(e => !e.labels.length).map(e => e.name),
    doubled: ids.filter((id, at) => ids.indexOf(id) !== at),
    dangling: [...document.querySelectorAll('[aria-describedby]')].flatMap(e => e.getAttribute('aria-describedby').split(' '))
      .filter(id => !document.getElementById(id)),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    small: [...document.querySelectorAll('button, a.button, input:not([type=hidden], [type=checkbox])')].filter(e => e.checkVisibility())
      .filter(e => e.getBoundingClientRect().height < 40).map(e => e.textContent || e.name),
  }
}"""
FOCUS = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && document.activeElement !== document.body;
}"""


@pytest.fixture(scope="session")
async def chromium():
    path = shutil.which("chromium")
    assert path, "Chromium is needed: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def served(sqlite_url, clock, tmp_path, time):
    """The hub on a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    async with running(sqlite_url, clock, tmp_path, time, base=base, partners=partners()) as app:
        await populate(app.state.store)
        logins = app.state.parts.logins
        await logins.set_roles((await logins.by_username("cleo")).id, ["custodian"])
        registration = APP | {"redirect_uris": [f"http://localhost:{port}/signed-out"]}
        await Credentials(app.state.store.database).add_client("growth", registration)
        server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, lifespan="off", log_level="error"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        app.state.base = base
        yield app
        server.should_exit = True
        await task


@asynccontextmanager
async def window(chromium, served, **options):
    context = await chromium.new_context(base_url=served.state.base, reduced_motion="reduce", **options)
    page = await context.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    try:
        yield page
    finally:
        await context.close()


async def asked(served, scope=SCOPE):
    parameters = {
        "response_type": "code",
        "client_id": "growth",
        "redirect_uri": served.state.base.replace("127.0.0.1", "localhost") + "/signed-out",
        "scope": scope,
        "state": "state-of-the-app",
        "aud": f"{served.state.base}/fhir",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    }
    return await served.state.parts.authorizations.ask(list(parameters.items()))


async def sound(page, name):
    """Everybody can use this page; a picture of it is kept where the environment says."""
    basics = await page.evaluate(BASICS)
    assert basics == {
        "lang": "en",
        "headings": 1,
        "unlabelled": [],
        "doubled": [],
        "dangling": [],
        "overflow": 0,
        "small": [],
    }, name
    await page.evaluate(AXE)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found = await page.evaluate("rules => axe.run(document, rules).then(found => found.violations)", rules)
    told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
    assert told == [], name
    if folder := os.environ.get("FHIRCM_PICTURES"):
        await page.screenshot(path=f"{folder}/{name}.png", full_page=True)


async def type_by_keyboard(page, *texts):
    """Fill the fields in their order and send the form, with Tab and Enter; the focus is seen all the way."""
    for text in texts:
        await page.wait_for_function(FOCUS, timeout=5000)  # a page takes a moment to give its first field the focus
        await page.keyboard.type(text)
        if text != texts[-1]:
            await page.keyboard.press("Tab")
    async with page.expect_navigation():
        await page.keyboard.press("Enter")


async def tab_to(page, text):
    """Press Tab until the element with this text has the focus."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        told = await page.evaluate("() => document.activeElement.innerText || document.activeElement.value || ''")
        if text in told:
            assert await page.evaluate(FOCUS), text
            return
    raise AssertionError(f"'{text}' is not reached by keyboard")


async def press(page, text, key="Enter"):
    await tab_to(page, text)
    async with page.expect_navigation():
        await page.keyboard.press(key)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desk"])
async def test_an_app_is_let_in_by_keyboard_alone(chromium, served, scheme, size):
    viewport = PHONE if size == "phone" else {"width": 1200, "height": 900}
    name = f"{size}-{scheme}"
    async with window(chromium, served, color_scheme=scheme, viewport=viewport) as page:
        await page.goto(await asked(served))
        await sound(page, f"{name}-1-sign-in")
        await type_by_keyboard(page, "cleo", "not my password")
        await sound(page, f"{name}-2-refused")
        await type_by_keyboard(page, PASSWORD)  # the user name is still there, and the focus is in the password
        await sound(page, f"{name}-3-patients")
        await type_by_keyboard(page, "abb")
        await sound(page, f"{name}-4-found")
        await press(page, "Ada Abbott")
        await sound(page, f"{name}-5-consent")
        await tab_to(page, "patient/Task.cruds")
        await page.keyboard.press("Space")
        assert not await page.get_by_label("tasks of coordination").is_checked()
        await press(page, "Allow access")
        assert re.fullmatch(r"http://localhost:\d+/signed-out\?code=.*", page.url)  # no policy kept the browser from the app
        await page.goto("/account")
        await sound(page, f"{name}-6-account")
        assert "tasks of coordination" not in await page.content()
        await press(page, "Take back access")
        await sound(page, f"{name}-7-taken-back")
        assert page.faults == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]


async def test_codes_are_set_up_and_asked_for_by_keyboard_alone(chromium, served, time):
    async with window(chromium, served, viewport=PHONE) as page:
        await page.goto("/signin")
        await type_by_keyboard(page, "cleo", PASSWORD)
        await press(page, "Set them up")
        await sound(page, "phone-8-codes")
        spelled = (await page.locator("#key").inner_text()).replace(" ", "")
        import base64

        secret = base64.b32decode(spelled)
        await page.locator("#code").focus()
        await type_by_keyboard(page, totp.code(secret, int(time()) // 30), PASSWORD)
        await sound(page, "phone-9-account")
        await press(page, "Sign out")
        await sound(page, "phone-10-signed-out")
        await press(page, "Sign in again")
        await type_by_keyboard(page, "cleo", PASSWORD)
        await sound(page, "phone-11-code")
        time.now += 30
        await type_by_keyboard(page, totp.code(secret, int(time()) // 30))
        assert page.url.endswith("/account")
        await page.goto("/account/codes")
        await sound(page, "phone-12-codes-off")
        await page.goto("/account/password")
        await page.locator("#current").focus()
        await type_by_keyboard(page, "x", "short", "other")
        await sound(page, "phone-13-password")


async def test_long_names_break_instead_of_the_page(chromium, served):
    long = "Verylongnamewithoutanyblankinit" * 6
    registration = APP | {"client_name": long, "redirect_uris": ["https://app.example/back"], "organization": None}
    await Credentials(served.state.store.database).add_client("growth", registration)
    parameters = {"redirect_uri": "https://app.example/back"}
    async with window(chromium, served, viewport={"width": 320, "height": 600}) as page:
        url = await served.state.parts.authorizations.ask(
            list(
                {
                    "response_type": "code",
                    "client_id": "growth",
                    "scope": SCOPE.replace("launch/patient ", "").replace("patient/", "user/"),
                    "state": "s",
                    "aud": f"{served.state.base}/fhir",
                    "code_challenge": CHALLENGE,
                    "code_challenge_method": "S256",
                    **parameters,
                }.items()
            )
        )
        await page.goto(url)
        await sound(page, "small-1-sign-in")
        await type_by_keyboard(page, "cleo", PASSWORD)
        await sound(page, "small-2-consent")


async def test_pages_without_the_person_s_fault_are_sound_too(chromium, served):
    async with window(chromium, served, viewport=PHONE) as page:
        await page.goto("/oauth/authorize/unknown")
        await sound(page, "phone-14-over")
        await page.goto("/signin")
        await type_by_keyboard(page, "", "")
        assert await page.locator("#error-username").is_visible()
        await sound(page, "phone-15-empty")


@pytest.mark.parametrize(("scheme", "size"), [("light", "phone"), ("dark", "desk")])
async def test_the_work_list_is_chosen_from_and_paged_by_keyboard(chromium, served, scheme, size):
    logins = served.state.parts.logins
    await logins.set_roles((await logins.by_username("cleo")).id, ["clinician"])
    await Credentials(served.state.store.database).add_client("growth", APP | {"launch_uri": "https://app.example/launch"})
    mine, waiting = {"owner": "Practitioner/cleo"}, {"owner": "Organization/clinic", "performerType": role("clinician")}
    tasks = [
        task(
            f"t{number:02}",
            f"2026-03-{number + 1:02}",
            **(waiting if number % 3 else mine),
            priority="asap" if number % 4 else "routine",
        )
        for number in range(25)
    ]
    await put(served, risk_of_ada(), *tasks)
    viewport = PHONE if size == "phone" else {"width": 1200, "height": 900}
    async with window(chromium, served, color_scheme=scheme, viewport=viewport) as page:
        await page.goto("/signin")
        await type_by_keyboard(page, "cleo", PASSWORD)
        await page.goto("/worklist")
        await sound(page, f"{size}-{scheme}-worklist")
        await press(page, "Next page")
        assert await page.locator("h2").all_inner_texts() == [f"Task t{number}" for number in range(20, 25)]
        await press(page, "First page")
        await tab_to(page, "Choose and sort")
        await page.keyboard.press("Enter")
        await page.get_by_label("Show", exact=True).select_option("mine")
        await press(page, "Show the list")
        assert len(await page.locator("h2").all_inner_texts()) == 9
        await sound(page, f"{size}-{scheme}-worklist-chosen")
        assert page.faults == []
