"""The console of administrators: clients, people, organisations, keys and grants, over HTTP on both databases."""

import json
import re
from html import unescape

import pytest

from fhircm.app import AuditConfig
from fhircm.smart.clients import Client
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grant

from .conftest import BASE, PASSWORD, Browser, populate, running

PAGES = [
    "/console/clients",
    "/console/clients/add",
    "/console/clients/show?client=growth",
    "/console/clients/initial-token",
    "/console/people",
    "/console/people/add",
    "/console/organizations",
    "/console/organizations/add",
    "/console/organizations/show?id=clinic",
    "/console/keys",
    "/console/grants",
    "/console/partners",
]
HOSTILE = "<script>alert(1)</script>"
BACKEND = {
    "client": "board",
    "name": "Discharge board",
    "kind": "private_key_jwt",
    "scope": "system/Task.rs",
    "jwks": json.dumps({"keys": [{"kty": "EC", "crv": "P-384", "kid": "1", "x": "a", "y": "b"}]}),
    "organization": "Organization/clinic",
    "role": "system",
}
WEB_APP = {
    "client": "web",
    "name": "Web app",
    "kind": "client_secret_basic",
    "scope": "openid\nlaunch patient/*.rs",
    "redirect_uris": "https://web.example/back\nhttps://web.example/back2",
    "launch_uri": "https://web.example/launch",
    "role": "system",
    "alg": "RS384",
}


@pytest.fixture
def clients(hub):
    return Credentials(hub.state.store.database)


def secret_of(answer):
    return unescape(re.search(r'<code class="secret" id="secret">([^<]+)</code>', answer.text)[1])


async def send(one, page, path, fields):
    """Send a form that stands on a page, and answer yes when it is asked again."""
    answer = await one.send_form(path, fields, await one.get(page))
    return answer


async def surely(one, page, path, fields):
    asked = await send(one, page, path, fields)
    assert asked.status_code == 200
    assert "Leave it as it is" in asked.text
    hidden = [(name, unescape(value)) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text)]
    kept = {}
    for name, value in hidden:
        if name != "form":
            kept.setdefault(name, []).append(value)
    return await one.send_form(path, kept | {"sure": "yes"}, asked)


async def test_the_console_is_for_administrators(hub, browser, admin, officer):
    assert (await browser.get("/console/clients")).headers["location"] == "/signin?next=%2Fconsole%2Fclients"
    await browser.sign_in("cleo")
    for path in PAGES:
        for one in (browser, officer):
            refused = await one.get(path)
            assert (refused.status_code, "This is not for you" in refused.text) == (403, True), path
        shown = await admin.get(path)
        assert shown.status_code == 200, path
        assert "<script" not in shown.text
    refused = await browser.send_form(
        "/console/clients/disable", {"client": "growth", "sure": "yes"}, await browser.get("/account")
    )
    assert refused.status_code == 403
    assert not Client("growth", await hub.state.parts.credentials.client("growth")).disabled


async def test_only_those_see_the_way_to_a_room_who_may_enter_it(browser, admin, officer):
    await browser.sign_in("cleo")
    ways = {one: set(re.findall(r'<a href="(/\w+)"', (await one.get("/account")).text)) for one in (browser, admin, officer)}
    assert ways[browser] == {"/worklist", "/emergency", "/account"}
    assert ways[admin] == {"/console", "/account"}
    assert ways[officer] == {"/privacy", "/account"}
    assert (await admin.get("/console")).headers["location"] == "/console/clients"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": ""}])
async def test_no_other_site_sends_the_forms_of_the_console(admin, clients, headers):
    page = await admin.get("/console/clients")
    token = re.search(r'name="form" value="([0-9a-f]+)"', page.text)[1]
    fields = {"form": token, "client": "growth", "sure": "yes"}
    assert (await admin.post("/console/clients/disable", data=fields, headers=headers)).status_code == 403
    fields["form"] = "0" * 64
    assert (await admin.post("/console/clients/disable", data=fields, headers={"Origin": BASE})).status_code == 403
    assert not Client("growth", await clients.client("growth")).disabled


# --- clients ---


async def test_each_kind_of_client_is_added_and_a_secret_is_shown_once(admin, clients):
    for typed in (BACKEND, {**WEB_APP, "client": "phone", "kind": "none"}):
        answer = await send(admin, "/console/clients/add", "/console/clients/add", typed)
        assert answer.headers["location"].startswith(f"/console/clients/show?client={typed['client']}"), answer.text
    answer = await send(admin, "/console/clients/add", "/console/clients/add", WEB_APP)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    secret = secret_of(answer)
    kept = Client("web", await clients.client("web"))
    assert kept.has_secret(secret)
    assert kept.scope == "openid launch patient/*.rs"
    assert kept.redirect_uris == ("https://web.example/back", "https://web.example/back2")
    assert kept.registration["id_token_signed_response_alg"] == "RS384"
    assert kept.grant_types == ("authorization_code", "refresh_token")
    shown = await admin.get("/console/clients/show?client=web")
    assert secret not in shown.text
    assert "sha256" not in shown.text
    board = Client("board", await clients.client("board"))
    assert (board.grant_types, board.registration["organization"]) == (("client_credentials",), "Organization/clinic")
    again = await send(admin, "/console/clients/add", "/console/clients/add", WEB_APP)
    assert (again.status_code, "registered already" in again.text) == (422, True)
    assert Client("web", await clients.client("web")).has_secret(secret)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"client": "a b"}, "without spaces"),
        ({"kind": "magic"}, "token_endpoint_auth_method is one of"),
        ({"scope": "system/Nothing.rs"}, "not known here"),
        ({"redirect_uris": ""}, "Give a redirect URI"),
        ({"redirect_uris": "ftp://x"}, "redirect URI is https"),
        ({"launch_uri": "javascript:alert(1)"}, "launch_uri is an https address"),
        ({"organization": "Clinic"}, "is no reference"),
        ({"role": "king"}, "is no role"),
        ({"kind": "private_key_jwt", "jwks": "{"}, "not JSON"),
        ({"kind": "private_key_jwt", "jwks": '{"keys": [{"kty": "EC", "kid": "1", "d": "secret"}]}'}, "private key"),
    ],
)
async def test_what_cannot_be_registered_is_told_and_what_was_typed_stays(admin, clients, wrong, said):
    answer = await send(admin, "/console/clients/add", "/console/clients/add", {**WEB_APP, "name": HOSTILE, **wrong})
    assert answer.status_code == 422
    assert said in unescape(answer.text)
    assert HOSTILE not in answer.text
    assert HOSTILE in unescape(answer.text)
    assert await clients.client("web") is None


async def test_a_client_is_edited_and_what_is_taken_away_is_asked_again(admin, clients):
    await send(admin, "/console/clients/add", "/console/clients/add", WEB_APP)
    before = await clients.client("web")
    page = "/console/clients/show?client=web"
    more = {**WEB_APP, "scope": "openid launch patient/*.rs user/Task.rus", "name": "Better app"}
    answer = await send(admin, page, "/console/clients/edit", more)
    assert answer.headers["location"].endswith("done=edited")
    after = await clients.client("web")
    assert (after["client_name"], after["scope"]) == ("Better app", "openid launch patient/*.rs user/Task.rus")
    assert after["client_secret"] == before["client_secret"]
    less = {**more, "scope": "openid patient/*.rs", "redirect_uris": "https://web.example/back"}
    asked = await send(admin, page, "/console/clients/edit", less)
    assert all(gone in asked.text for gone in ("user/Task.rus", "https://web.example/back2", '<li class="wrap">launch</li>'))
    assert await clients.client("web") == after
    done = await surely(admin, page, "/console/clients/edit", less)
    assert done.headers["location"].endswith("done=edited")
    assert (await clients.client("web"))["redirect_uris"] == ["https://web.example/back"]
    wrong = await send(admin, page, "/console/clients/edit", {**less, "launch_uri": "http://evil.example/"})
    assert (wrong.status_code, "launch_uri" in wrong.text) == (422, True)
    gone = await send(admin, page, "/console/clients/edit", {"client": "nobody"})
    assert gone.status_code == 404


async def test_a_client_is_shut_out_let_in_and_gets_another_secret(admin, clients):
    first = secret_of(await send(admin, "/console/clients/add", "/console/clients/add", WEB_APP))
    page = "/console/clients/show?client=web"
    asked = await send(admin, page, "/console/clients/disable", {"client": "web"})
    assert "Shut Web app out?" in asked.text
    assert not Client("web", await clients.client("web")).disabled
    await surely(admin, page, "/console/clients/disable", {"client": "web"})
    assert Client("web", await clients.client("web")).disabled
    await send(admin, page, "/console/clients/enable", {"client": "web"})
    assert not Client("web", await clients.client("web")).disabled
    answer = await surely(admin, page, "/console/clients/rotate-secret", {"client": "web"})
    kept = Client("web", await clients.client("web"))
    assert (kept.has_secret(first), kept.has_secret(secret_of(answer))) == (False, True)
    assert (await surely(admin, page, "/console/clients/rotate-secret", {"client": "growth"})).status_code == 409


async def test_clients_are_found_and_come_in_pages(admin, clients):
    for number in range(30):
        await clients.add_client(f"app-{number:02}", {"scope": "openid", "client_name": f"App {number:02}"})
    first = await admin.get("/console/clients")
    assert ("App 24" in first.text, "App 25" in first.text, "Page 1 of 2" in first.text) == (True, False, True)
    second = await admin.send_form("/console/clients", {"find": "", "page": "2"}, first)
    assert ("App 24" in second.text, "App 25" in second.text) == (False, True)
    found = await admin.send_form("/console/clients", {"find": "APP 07"}, first)
    assert ("App 07" in found.text, "App 08" in found.text) == (True, False)
    none = await admin.send_form("/console/clients", {"find": HOSTILE, "page": "x"}, first)
    assert "No client is found" in none.text
    assert HOSTILE not in none.text


async def test_an_initial_access_token_registers_clients_of_its_organisation(hub, admin, clients):
    fields = {"organization": "Organization/clinic", "hours": "24"}
    answer = await send(admin, "/console/clients/initial-token", "/console/clients/initial-token", fields)
    registration = {
        "redirect_uris": ["https://self.example/back"],
        "token_endpoint_auth_method": "none",
        "scope": "openid launch patient/*.rs",
    }
    made = await admin.post("/oauth/register", json=registration, headers={"Authorization": f"Bearer {secret_of(answer)}"})
    assert made.status_code == 201, made.text
    assert (await clients.client(made.json()["client_id"]))["organization"] == "Organization/clinic"
    page = "/console/clients/initial-token"
    for wrong in ({"hours": "9999"}, {"organization": "Practitioner/1"}):
        assert (await send(admin, page, page, fields | wrong)).status_code == 422


# --- people ---

NEW = {
    "username": "Nia",
    "name": "Nia New",
    "user": "Practitioner/nia",
    "organization": "Organization/clinic",
    "roles": ["nurse"],
}


async def chosen(one, username, code, password="four quiet otters"):
    page = await one.get("/signin/renew")
    return await one.send_form("/signin/renew", {"username": username, "once": code, "new": password, "again": password}, page)


async def test_somebody_new_chooses_a_password_with_a_one_time_code(hub, admin, parts, browser):
    answer = await send(admin, "/console/people/add", "/console/people/add", NEW)
    code = secret_of(answer)
    nia = await parts.logins.by_username("nia")
    assert (nia.roles, nia.has_password, code in (await admin.get(f"/console/people/show?login={nia.id}")).text) == (
        {"nurse"},
        False,
        False,
    )
    for wrong in ("AAAAA-AAAAA-AAAAA-AAAAA", ""):
        assert (await chosen(browser, "nia", wrong)).status_code in (401, 422)
    assert (await chosen(browser, "nia", code, "short")).status_code == 422
    async with Browser(hub) as other:
        assert (await chosen(other, "cleo", code)).status_code == 401
    assert (await chosen(browser, "NIA", code.lower().replace("-", " "))).headers["location"] == "/signin"
    assert (await chosen(browser, "nia", code, "another good one")).status_code == 401
    assert (await browser.sign_in("nia", "four quiet otters")).status_code == 303


async def test_a_one_time_code_ends_what_was_before_and_the_next_one_ends_it(hub, admin, parts, browser, time):
    await browser.sign_in("cleo")
    cleo = await parts.logins.by_username("cleo")
    page, path = f"/console/people/show?login={cleo.id}", "/console/people/one-time-code"
    first = secret_of(await surely(admin, page, path, {"login": cleo.id}))
    assert (await browser.get("/account")).status_code == 303
    assert (await browser.sign_in("cleo", PASSWORD)).status_code == 401
    second = secret_of(await surely(admin, page, path, {"login": cleo.id}))
    assert (await chosen(browser, "cleo", first)).status_code == 401
    time.now += 86_401
    assert (await chosen(browser, "cleo", second)).status_code == 401


async def test_codes_are_not_guessed(admin, parts, browser):
    cleo = await parts.logins.by_username("cleo")
    code = secret_of(
        await surely(admin, f"/console/people/show?login={cleo.id}", "/console/people/one-time-code", {"login": cleo.id})
    )
    for _ in range(5):
        assert (await chosen(browser, "cleo", "AAAAA-AAAAA-AAAAA-AAAAA")).status_code == 401
    assert (await chosen(browser, "cleo", code)).status_code == 401  # paused
    page = f"/console/people/show?login={cleo.id}"
    assert "Paused until" in (await admin.get(page)).text
    await send(admin, page, "/console/people/unlock", {"login": cleo.id})
    assert (await chosen(browser, "cleo", code)).status_code == 303


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"username": " "}, "username"),
        ({"username": "CLEO"}, "username"),
        ({"name": ""}, "name"),
        ({"user": "Organization/1"}, "user"),
        ({"organization": HOSTILE}, "organization"),
        ({"roles": ["king"]}, "roles"),
    ],
)
async def test_a_person_that_cannot_be_is_told_at_the_field(admin, parts, wrong, field):
    answer = await send(admin, "/console/people/add", "/console/people/add", NEW | wrong)
    assert (answer.status_code, f'id="error-{field}"' in answer.text) == (422, True)
    assert HOSTILE not in answer.text
    assert await parts.logins.by_username("nia") is None


async def test_people_are_edited_disabled_enabled_and_recovered(hub, admin, parts, browser):
    await browser.sign_in("cleo")
    cleo = await parts.logins.by_username("cleo")
    page = f"/console/people/show?login={cleo.id}"
    await send(
        admin,
        page,
        "/console/people/edit",
        {"login": cleo.id, "name": "Cleo Other", "user": "Practitioner/2", "organization": "Organization/2"},
    )
    after = await parts.logins.get(cleo.id)
    assert (after.name, after.fhir_user, after.organization) == ("Cleo Other", "Practitioner/2", "Organization/2")
    wrong = await send(
        admin, page, "/console/people/edit", {"login": cleo.id, "name": "", "user": "x", "organization": "Organization/2"}
    )
    assert wrong.status_code == 422
    answer = await send(admin, page, "/console/people/roles", {"login": cleo.id, "roles": ["clinician", "nurse"]})
    assert answer.headers["location"].endswith("done=roles")
    asked = await send(admin, page, "/console/people/roles", {"login": cleo.id, "roles": ["nurse"]})
    assert "Clinician" in asked.text
    await surely(admin, page, "/console/people/roles", {"login": cleo.id, "roles": ["nurse", "social-worker"]})
    assert (await parts.logins.get(cleo.id)).roles == {"nurse", "social-worker"}
    await parts.logins.set_totp(cleo.id, b"sealed", 1)
    await surely(admin, page, "/console/people/totp-reset", {"login": cleo.id})
    assert not (await parts.logins.get(cleo.id)).has_totp
    assert (await browser.get("/account")).status_code == 303
    await browser.sign_in("cleo")
    await surely(admin, page, "/console/people/disable", {"login": cleo.id})
    assert (await browser.get("/account")).status_code == 303
    assert (await browser.sign_in("cleo")).status_code == 401
    await send(admin, page, "/console/people/enable", {"login": cleo.id})
    assert (await browser.sign_in("cleo")).status_code == 303


async def test_nobody_shuts_themselves_out_or_makes_themselves_more(admin, parts):
    root = await parts.logins.by_username("root")
    page = await admin.get("/console/people")
    for path in ("edit", "disable", "roles", "one-time-code", "totp-reset"):
        answer = await admin.send_form(f"/console/people/{path}", {"login": root.id, "roles": "custodian", "sure": "yes"}, page)
        assert answer.status_code == 409, path
    assert await parts.logins.get(root.id) == root


async def test_people_are_found_and_no_patient_is_shown(admin):
    page = await admin.get("/console/people")
    found = await admin.send_form("/console/people", {"find": "privacy-officer"}, page)
    assert ("Priya Officer" in found.text, "Cleo Example" in found.text) == (True, False)
    for path in PAGES:
        shown = (await admin.get(path)).text
        assert not any(word in shown for word in ("MRN-", "1948-05-17", "17 May 1948", "Carver")), path


# --- organisations, keys, grants ---


async def test_organisations_are_added_edited_and_put_out_of_use(hub, admin):
    store = hub.state.store
    answer = await send(admin, "/console/organizations/add", "/console/organizations/add", {"name": HOSTILE, "npi": "1234567893"})
    page = answer.headers["location"]
    id = re.search(r"id=([^&]+)", page)[1]
    tree = (await store.read("Organization", id)).tree
    assert (tree["name"], tree["identifier"][0]["value"], tree["active"]) == (HOSTILE, "1234567893", True)
    listed = await admin.get("/console/organizations")
    assert HOSTILE not in listed.text
    assert HOSTILE in unescape(listed.text)
    await send(admin, page, "/console/organizations/edit", {"id": id, "name": "Lakeside", "npi": ""})
    tree = (await store.read("Organization", id)).tree
    assert (tree["name"], "identifier" in tree) == ("Lakeside", False)
    wrong = await send(admin, page, "/console/organizations/edit", {"id": id, "name": "", "npi": "1234567890"})
    assert wrong.status_code == 422
    await surely(admin, page, "/console/organizations/disable", {"id": id})
    assert (await store.read("Organization", id)).tree["active"] is False
    await send(admin, page, "/console/organizations/enable", {"id": id})
    assert (await store.read("Organization", id)).tree["active"] is True
    found = await admin.send_form("/console/organizations", {"find": "keSi"}, listed)
    assert ("Lakeside" in found.text, "Riverbend Clinic" in found.text) == (True, False)
    assert (await admin.get("/console/organizations/show?id=nothing")).status_code == 404


@pytest.mark.parametrize("npi", ["1234567890", "123", "12345678931", "abcdefghij"])
async def test_an_npi_has_its_check_digit(admin, npi):
    answer = await send(admin, "/console/organizations/add", "/console/organizations/add", {"name": "X", "npi": npi})
    assert (answer.status_code, 'id="error-npi"' in answer.text) == (422, True)


async def test_signing_keys_are_listed_and_rotated(hub, admin):
    keys = hub.state.authorization.keys
    assert "None yet" in (await admin.get("/console/keys")).text
    assert (await surely(admin, "/console/keys", "/console/keys/rotate", {})).headers["location"].endswith("none")
    first = (await keys.to_sign("ES384")).as_dict()["kid"]
    assert first in (await admin.get("/console/keys")).text
    await surely(admin, "/console/keys", "/console/keys/rotate", {})
    second = (await keys.to_sign("ES384")).as_dict()["kid"]
    shown = (await admin.get("/console/keys")).text
    assert (second != first, shown.index(second) < shown.index(first), "retired" in shown) == (True, True, True)
    assert '"d"' not in shown


@pytest.fixture
async def granted(ask, browser, grants):
    """The grant of an app that ada let in."""
    await browser.sign_in("ada")
    page = await browser.get(await ask())
    path = re.search(r'action="(/oauth/authorize/[^"]+/decision)"', page.text)[1]
    scopes = [unescape(one) for one in re.findall(r'name="scope" value="([^"]+)"', page.text)]
    answer = await browser.send_form(path, {"decision": "allow", "scope": scopes}, page)
    assert "code=" in answer.headers["location"]
    (grant,) = await grants.grants(0)
    assert isinstance(grant, Grant)
    return grant


async def test_what_people_let_apps_do_is_listed_and_taken_back(admin, grants, granted):
    page = await admin.get("/console/grants")
    assert "Growth charts, for Ada Abbott" in page.text
    for find, there in (("growth", True), ("ada ABB", True), ("nobody", False)):
        found = await admin.send_form("/console/grants", {"find": find}, page)
        assert ("Growth charts, for" in found.text) == there, find
    asked = await admin.send_form("/console/grants/revoke", {"grant": granted.id}, page)
    assert "Take back access?" in asked.text
    assert len(await grants.grants(0)) == 1
    done = await surely(admin, "/console/grants", "/console/grants/revoke", {"grant": granted.id})
    assert done.headers["location"].endswith("ended")
    assert await grants.grants(0) == []
    again = await admin.send_form("/console/grants/revoke", {"grant": granted.id}, page)
    assert again.headers["location"].endswith("gone")


# --- what is recorded ---


async def test_each_change_is_recorded_and_no_secret_is_anywhere(database_url, clock, tmp_path, time, caplog):
    caplog.set_level("DEBUG")
    audit = AuditConfig(tmp_path / "audit", 10_000_000)
    async with running(database_url, clock, tmp_path, time, audit=audit) as app:
        await populate(app.state.store)
        async with Browser(app) as admin:
            await admin.sign_in("root")
            secrets = [secret_of(await send(admin, "/console/clients/add", "/console/clients/add", WEB_APP))]
            page = "/console/clients/show?client=web"
            secrets.append(secret_of(await surely(admin, page, "/console/clients/rotate-secret", {"client": "web"})))
            await surely(admin, page, "/console/clients/disable", {"client": "web"})
            secrets.append(secret_of(await send(admin, "/console/people/add", "/console/people/add", NEW)))
            await send(admin, "/console/organizations/add", "/console/organizations/add", {"name": "Lakeside"})
            token = "/console/clients/initial-token"
            secrets.append(secret_of(await send(admin, token, token, {"organization": "", "hours": "1"})))
            app.state.journal.sync()
        written = "".join(path.read_text() for path in (tmp_path / "audit").rglob("*") if path.is_file())
    for what in ("web added", "web has another secret", "web disabled", "initial access token", " added", "has a one-time code"):
        assert what in written, what
    root = "Practitioner/root"
    assert root in written
    for secret in (*secrets, PASSWORD):
        assert secret not in written + caplog.text
        assert secret.replace("-", "") not in written + caplog.text
