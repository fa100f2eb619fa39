"""Apps written with the client library of others, in a real browser, of another origin and site than the hub."""

import pytest

from fhircm.smart.clients import hashed
from tests.rest.signing import KEYS, assertion, form

from .app_server import AppServer
from .population import LABORATORY
from .window import parameters

STANDALONE = "launch/patient openid fhirUser offline_access patient/Patient.rs patient/Condition.rs"
LAUNCHED = "launch openid fhirUser patient/Patient.rs patient/Condition.rs patient/Encounter.rs"
CONDITIONS = ["Asthma", "Type 2 diabetes", "Heart failure"]


async def let_in(window, address, patient="Ada Abbott", username="cleo"):
    """A person signs in, chooses a patient and allows everything."""
    await window.page.goto(address)
    await window.sign_in(username)
    await window.press(patient)
    await window.press("Allow access")


async def test_a_standalone_launch_shows_the_patient_that_was_chosen(hub, window):
    await let_in(window, await hub.app("standalone", STANDALONE))
    assert await window.shown() == ("Ada Abbott", CONDITIONS)
    told = await window.tokens()
    assert told["patient"] == "ada"
    assert set(told["scope"].split()) == set(STANDALONE.split())
    assert await window.run("() => client.getFhirUser()") == "Practitioner/cleo"
    assert window.faults == []


@pytest.mark.parametrize("secret", [None, "correct-horse"])
async def test_an_app_in_a_browser_refreshes_its_tokens(hub, window, secret):
    proof = {"token_endpoint_auth_method": "client_secret_basic", "client_secret": hashed(secret)} if secret else {}
    name = "refreshing-with-a-secret" if secret else "refreshing"
    address = await hub.app(name, STANDALONE, **proof)
    hub.apps.configs[name]["clientSecret"] = secret
    await let_in(window, address)
    await window.shown()
    first = await window.tokens()
    again = await window.run("() => client.refresh().then(state => state.tokenResponse)")
    assert "error" not in again, again
    assert again["access_token"] != first["access_token"]
    assert again["refresh_token"] != first["refresh_token"]
    assert (again["patient"], again["scope"]) == ("ada", first["scope"])
    assert (await window.run("() => client.patient.read()"))["id"] == "ada"


async def test_an_app_with_a_key_proves_who_it_is_also_when_it_refreshes(hub, http, window):
    await let_in(window, await hub.app("refreshing-with-a-key", STANDALONE, secret_key=KEYS["ES384"]))
    await window.shown()
    kept = (await window.tokens())["refresh_token"]
    assert "invalid_client" in (await window.run("() => client.refresh()"))["error"]  # the library does not sign this
    fields = {"grant_type": "refresh_token", "refresh_token": kept}
    signed = form(assertion("ES384", client="refreshing-with-a-key", aud=f"{hub.base}/oauth/token")) | fields
    del signed["scope"]
    assert (await http.post("/oauth/token", data=signed)).json()["patient"] == "ada"


@pytest.mark.parametrize("alg", ["ES384", "RS384"])
async def test_an_ehr_launch_tells_an_app_with_a_key_where_it_was_opened(hub, window, alg):
    name = f"launched-{alg.lower()}"
    await hub.app(name, LAUNCHED, secret_key=KEYS[alg])
    context = {
        "patient": "ada",
        "encounter": "stay",
        "intent": "reconcile-medications",
        "fhirContext": [{"reference": "Condition/diabetes"}],
    }
    await window.page.goto(await hub.launch(name, "cleo", **context))
    await window.sign_in("cleo")
    await window.press("Allow access")
    assert await window.shown() == ("Ada Abbott", CONDITIONS)
    told = await window.tokens()
    assert {what: told[what] for what in context} == context
    assert told["need_patient_banner"] is True
    assert (await window.run("() => client.encounter.read()"))["id"] == "stay"
    style = await window.run("address => fetch(address).then(answer => answer.json())", told["smart_style_url"])
    assert style["color_text"].startswith("#")
    # The second time the person is signed in and agreed before: the app opens without a question.
    asked = len(window.requests)
    await window.page.goto(await hub.launch(name, "cleo", **context | {"encounter": None}))
    assert await window.shown() == ("Ada Abbott", CONDITIONS)
    assert "encounter" not in await window.tokens()
    assert {one.method for one in window.requests[asked:] if one.is_navigation_request()} == {"GET"}
    assert window.faults == []


async def test_a_launch_is_good_once(hub, window):
    await hub.app("launched-twice", LAUNCHED)
    address = await hub.launch("launched-twice", "cleo", patient="ada")
    await window.page.goto(address)
    await window.sign_in("cleo")
    await window.press("Allow access")
    await window.shown()
    await window.page.goto(address)
    assert "The launch is not known" in await window.app_tells()


async def test_an_app_is_told_that_the_person_does_not_agree(hub, window):
    await window.page.goto(await hub.app("unwanted", STANDALONE))
    await window.sign_in("cleo")
    await window.press("Ada Abbott")
    await window.press("Do not allow")
    assert await window.app_tells() == "access_denied"
    told = parameters(next(one.url for one in window.requests if "error=" in one.url))
    assert told.keys() == {"error", "state", "iss"}
    assert told["iss"] == hub.base


async def test_access_that_was_taken_back_ends_at_once(hub, window):
    await let_in(window, await hub.app("withdrawn", STANDALONE))
    await window.shown()
    account = await window.context.new_page()
    await account.goto(f"{hub.base}/account")
    await account.get_by_role("button", name="Take back access of Withdrawn").click()
    await account.get_by_text("The app has no access any more.").wait_for()
    asked = len(window.requests)
    assert "invalid_grant" in (await window.run("() => client.refresh()"))["error"]
    assert "error" in await window.run("() => client.request('Patient/ada')")
    answers = [(one.url, (await one.response()).status) for one in window.requests[asked:] if one.method != "OPTIONS"]
    assert answers == [(f"{hub.base}/oauth/token", 400), (f"{hub.fhir}/Patient/ada", 401)]


async def test_an_app_with_a_narrow_scope_sees_nothing_else(hub, window):
    narrow = f"launch/patient patient/Patient.rs patient/Condition.rs patient/Observation.rs?category={LABORATORY}"
    await let_in(window, await hub.app("narrow", narrow))
    await window.shown()

    async def found(asked):
        ids = "(asked) => client.request(asked, {flat: true, pageLimit: 0}).then(list => list.map(one => one.id).sort())"
        return await window.run(ids, asked)

    assert await found("Observation") == ["potassium", "sodium"]
    assert await found("Observation?category=vital-signs") == []
    assert await found("Condition?subject=Patient/ada&_revinclude=Observation:focus") == ["asthma", "diabetes", "failure"]
    assert "404" in (await window.run("() => client.request('Observation/pressure')"))["error"]
    assert "404" in (await window.run("() => client.request('Patient/bo')"))["error"]
    assert "403" in (await window.run("() => client.request('Encounter')"))["error"]


async def test_an_app_sees_no_patient_of_another_organisation(hub, window, open_window):
    scope = "launch/patient user/Patient.rs user/Condition.rs"
    address = await hub.app("of-a-clinician", scope)
    await window.page.goto(address)
    await window.sign_in("cleo")
    offered = await window.page.locator("li.pick strong").all_inner_texts()
    assert [name.split()[0] for name in offered] == ["Ada", "Bo"]
    await window.press("Ada Abbott")
    await window.press("Allow access")
    await window.shown()
    ids = "asked => client.request(asked, {flat: true, pageLimit: 0}).then(list => list.map(one => one.id).sort())"
    assert await window.run(ids, "Patient") == ["ada", "bo"]
    assert await window.run(ids, "Condition") == ["asthma", "diabetes", "failure"]
    assert await window.run(ids, "Condition?patient=cy") == []
    hidden, missing = [(await window.run(f"() => client.request('Patient/{id}')"))["error"] for id in ("cy", "no-one")]
    assert "404" in hidden
    assert hidden.replace("cy", "no-one") == missing
    async with open_window(hub) as other:
        await let_in(other, address, "Cy Carver", "dora")
        assert await other.shown() == ("Cy Carver", ["Migraine"])


async def test_an_app_is_not_opened_with_a_patient_of_another_organisation(hub, window):
    async def launched(patient):
        await window.page.goto(await hub.launch("at-another-patient", "cleo", patient=patient))

    async def is_refused():
        await window.page.get_by_role("heading", name="This choice is not there any more").wait_for()
        assert "Carver" not in await window.page.content()

    await hub.app("at-another-patient", LAUNCHED, secret_key=KEYS["ES384"])
    await launched("cy")
    await window.sign_in("cleo")
    await is_refused()
    await launched("ada")
    await window.press("Allow access")
    await window.shown()
    await launched("cy")
    await is_refused()  # also when nobody is asked any more


async def test_codes_and_tokens_are_in_no_address_and_in_no_referer(hub, window, told):
    await let_in(window, await hub.app("discreet", STANDALONE))
    await window.shown()
    first = await window.tokens()
    again = await window.run("() => client.refresh().then(state => state.tokenResponse)")
    await window.run("() => client.request('Condition?_count=1', {pageLimit: 0})")
    tokens = [value for one in (first, again) for name, value in one.items() if name.endswith("_token")]
    back = [one for one in window.requests if "code" in parameters(one.url)]
    assert [one.url.partition("?")[0] for one in back] == [f"{hub.apps.origin}/discreet/"]
    code = parameters(back[0].url)["code"]
    sent = [(one.url, await one.all_headers()) for one in window.requests]
    assert not [url for url, _ in sent if any(token in url for token in tokens)]
    # The page that holds the code in its address asks the hub for tokens: the browser tells from which origin, not from which page.
    referers = {headers.get("referer", "") for url, headers in sent if url.startswith(hub.base)}
    assert f"{hub.apps.origin}/" in referers
    assert not [one for one in referers if code in one or any(token in one for token in tokens)]
    # The hub's own addresses, which name its request, are told to nobody else.
    assert not [headers for url, headers in sent if url.startswith(hub.apps.origin) and hub.base in headers.get("referer", "")]
    history = await window.history()
    assert not [url for url in history if code in url or any(token in url for token in tokens)]
    kept = told.text()
    assert not [one for one in (*tokens, code) if one in kept]


async def test_the_cookie_of_the_session_is_for_the_hub_alone(hub, window):
    await let_in(window, await hub.app("without-cookies", STANDALONE))
    await window.shown()
    (cookie,) = await window.context.cookies(hub.base)
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    with_cookies = [one for one in window.requests if cookie["value"] in (await one.all_headers()).get("cookie", "")]
    assert with_cookies
    assert {one.resource_type for one in with_cookies} <= {"document", "stylesheet", "image", "other"}
    # A page of another site gets at nothing with it, not even when it asks the browser to send it along.
    asked = "address => fetch(address, {credentials: 'include'}).then(answer => answer.status)"
    assert "Failed to fetch" in (await window.run(asked, f"{hub.base}/account"))["error"]
    assert "Failed to fetch" in (await window.run(asked, f"{hub.fhir}/Patient/ada"))["error"]
    page = await window.context.new_page()
    await page.goto(f"{hub.base}/account")
    assert await page.get_by_role("heading", name="Cleo Clinician").is_visible()
    assert await page.evaluate("document.cookie") == ""


async def test_over_tls_the_cookie_belongs_to_the_host(encrypted_hub, open_window):
    async with open_window(encrypted_hub) as window:
        await let_in(window, await encrypted_hub.app("encrypted", STANDALONE))
        assert await window.shown() == ("Ada Abbott", CONDITIONS)
        (cookie,) = await window.context.cookies(encrypted_hub.base)
        assert cookie["name"].startswith("__Host-")
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, True, "Lax", "/")
        assert window.faults == []


async def test_a_page_of_another_site_takes_no_access_back(hub, window):
    await let_in(window, await hub.app("kept", STANDALONE))
    await window.shown()
    forge = """address => {
      const form = Object.assign(document.createElement('form'), {method: 'POST', action: address, target: 'forged'});
      form.append(Object.assign(document.createElement('input'), {name: 'client', value: 'kept'}));
      document.body.append(form);
      form.submit();
    }"""
    async with window.context.expect_page() as opened:
        await window.page.evaluate(forge, f"{hub.base}/account/apps")
    page = await opened.value
    await page.wait_for_load_state()
    sent = [one for one in window.requests if one.url == f"{hub.base}/account/apps"]
    assert [one.method for one in sent] == ["POST"]
    assert "cookie" not in await sent[0].all_headers()
    assert (await sent[0].response()).status == 403
    assert (await window.run("() => client.patient.read()"))["id"] == "ada"


async def test_pages_of_the_hub_are_shown_in_no_frame(hub, window):
    await hub.app("framing", STANDALONE)
    await window.page.goto(f"{hub.apps.origin}/framing/")
    frame = "address => { document.body.append(Object.assign(document.createElement('iframe'), {src: address})); }"
    async with window.page.expect_event("requestfailed", lambda one: one.url == f"{hub.base}/signin") as failed:
        await window.page.evaluate(frame, f"{hub.base}/signin")
    assert (await failed.value).failure == "net::ERR_BLOCKED_BY_RESPONSE"


async def test_a_page_of_an_unknown_origin_reads_what_is_public_and_nothing_else(hub, window, library):
    stranger = AppServer(library)
    try:
        await window.page.goto(f"{stranger.origin}/fhir-client.js")
        status = "address => fetch(address).then(answer => answer.status)"
        for public in ("/fhir/.well-known/smart-configuration", "/.well-known/jwks.json", "/fhir/metadata"):
            assert await window.run(status, hub.base + public) == 200
        form = "{method: 'POST', body: new URLSearchParams({grant_type: 'refresh_token', refresh_token: 'x'})}"
        ask = f"address => fetch(address, {form}).then(answer => answer.status)"
        assert "Failed to fetch" in (await window.run(ask, f"{hub.base}/oauth/token"))["error"]
        read = "address => fetch(address, {headers: {Authorization: 'Bearer x'}}).then(answer => answer.status)"
        assert "Failed to fetch" in (await window.run(read, f"{hub.fhir}/Patient/ada"))["error"]
    finally:
        stranger.close()
    # The same from the origin of an app is read, although it is refused.
    await hub.app("known", STANDALONE)
    await window.page.goto(f"{hub.apps.origin}/known/")
    assert await window.run(read, f"{hub.fhir}/Patient/ada") == 401
    assert await window.run(ask, f"{hub.base}/oauth/token") == 401
