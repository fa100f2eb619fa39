"""Signing in at the organisation's own OpenID Connect provider: one that answers as a provider does, and lies when told to."""

import base64
import hashlib
import json
from time import time as now
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
import respx
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fhircm.access.logins import new_id
from fhircm.smart.provider import ProviderSettings
from fhircm.store.logins import Login

from .conftest import BASE, Browser, populate, running

ISSUER = "https://login.clinic.example/realm"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}, private=True)
OTHER = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}, private=True)
OURS = ECKey.generate_key("P-384", {"kid": "hub", "alg": "ES384"}, private=True)
SECRET = "s/ecret+with:signs"


class FakeProvider:
    """Keeps to the specification where `lie` does not say otherwise."""

    def __init__(self):
        self.codes = {}
        self.claims = {
            "sub": "248289761001",
            "name": "Mira Physician",
            "groups": ["physicians", "staff"],
            "fhirUser": "Practitioner/mira",
        }
        self.lie = {}
        self.about = {}
        self.key, self.algorithm, self.header = KEY, "RS256", {"kid": "one"}
        self.published = [KEY.as_dict(private=False)]
        self.exchanged = []
        self.unsigned = self.down = False

    def mount(self, network):
        network.get(f"{ISSUER}/.well-known/openid-configuration").mock(side_effect=self._discovery)
        network.get(f"{ISSUER}/keys").mock(side_effect=lambda _: httpx.Response(200, json={"keys": self.published}))
        network.post(f"{ISSUER}/token").mock(side_effect=self._token)

    def _discovery(self, request):
        if self.down:
            raise httpx.ConnectError("down")
        return httpx.Response(
            200,
            json={
                "issuer": ISSUER,
                "authorization_endpoint": f"{ISSUER}/auth?tenant=1",
                "token_endpoint": f"{ISSUER}/token",
                "jwks_uri": f"{ISSUER}/keys",
                "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            }
            | self.about,
        )

    def sign_in(self, url):
        """Somebody signs in at the provider: the query of the redirect back."""
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{ISSUER}/auth"
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert asked["tenant"] == "1"
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return {"code": code, "state": asked["state"]}

    def _token(self, request):
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        self.exchanged.append((request, form))
        asked = self.codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        claims = {"iss": ISSUER, "aud": asked["client_id"], "exp": int(now()) + 300, "iat": int(now()), "nonce": asked["nonce"]}
        claims = {name: value for name, value in (claims | self.claims | self.lie).items() if value is not None}
        if self.unsigned:
            parts = (json.dumps(part).encode() for part in ({"alg": "none", "kid": "one"}, claims))
            token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."
            return httpx.Response(200, json={"id_token": token})
        token = jwt.encode({"alg": self.algorithm, **self.header}, claims, self.key, algorithms=[self.algorithm])
        return httpx.Response(200, json={"id_token": token, "access_token": "x", "token_type": "Bearer"})


@pytest.fixture
def provider():
    fake = FakeProvider()
    with respx.mock(assert_all_called=False) as network:
        fake.mount(network)
        yield fake


def settings(**changes):
    told = {
        "issuer": ISSUER,
        "client_id": "the hub",
        "redirect_uri": f"{BASE}/signin/callback",
        "client_secret": SECRET,
        "roles": {"physicians": "clinician"},
        "provision": True,
        "organization": "Organization/clinic",
        "button": "Sign in with Riverbend",
    }
    return ProviderSettings(**(told | changes))


@pytest.fixture
def hub_with(database_url, clock, tmp_path, time):
    def started(**changes):
        return running(database_url, clock, tmp_path, time, provider=settings(**changes))

    return started


async def through(browser, provider, onward="/account"):
    """From the button to the provider and back."""
    page = await browser.get("/signin", params={"next": onward})
    assert "Sign in with Riverbend" in page.text
    leaving = await browser.get("/signin/provider", params={"next": onward})
    assert leaving.status_code == 303
    return await browser.get("/signin/callback", params=provider.sign_in(leaving.headers["location"]))


async def test_somebody_whom_the_provider_vouches_for_is_let_in_and_known_again(hub_with, provider):
    async with hub_with() as app, Browser(app) as browser:
        await populate(app.state.store)
        answer = await through(browser, provider, "/account/password")
        assert answer.headers["location"] == "/account/password"
        logins = app.state.parts.logins
        made = await logins.by_identity(ISSUER, "248289761001")
        assert (made.name, made.fhir_user, made.organization) == ("Mira Physician", "Practitioner/mira", "Organization/clinic")
        assert made.roles == {"clinician"}
        request, form = provider.exchanged[0]
        kind, _, credentials = request.headers["authorization"].partition(" ")
        name, _, secret = base64.b64decode(credentials).decode().partition(":")
        assert (kind, unquote(name), unquote(secret)) == ("Basic", "the hub", SECRET)
        assert "client_secret" not in form
        async with Browser(app) as again:
            assert (await through(again, provider)).status_code == 303
        assert len([one for one in await logins.all() if one.subject]) == 1
        assert "Through your organisation" in (await browser.get("/account")).text


async def test_the_hub_signs_with_its_own_key_where_it_has_no_secret(hub_with, provider):
    async with hub_with(client_secret=None, key=OURS) as app, Browser(app) as browser:
        assert (await through(browser, provider)).status_code == 303
        _, form = provider.exchanged[0]
        claims = jwt.decode(form["client_assertion"], OURS, algorithms=["ES384"]).claims
        assert (claims["iss"], claims["sub"], claims["aud"]) == ("the hub", "the hub", f"{ISSUER}/token")


async def test_a_secret_goes_into_the_form_where_the_provider_wants_it_there(hub_with, provider):
    provider.about = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    async with hub_with() as app, Browser(app) as browser:
        assert (await through(browser, provider)).status_code == 303
        request, form = provider.exchanged[0]
        assert form["client_secret"] == SECRET
        assert "authorization" not in request.headers


@pytest.mark.parametrize(
    "lie",
    [
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"aud": ["the hub", "another client"]},
        {"aud": ["the hub", "another client"], "azp": "another client"},
        {"azp": "another client"},
        {"exp": 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"iat": 2**40},
        {"iat": None},
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
    ],
)
async def test_an_identity_token_that_is_not_for_this_sign_in_lets_nobody_in(hub_with, provider, lie):
    provider.lie = lie
    async with hub_with() as app, Browser(app) as browser:
        answer = await through(browser, provider)
        assert (answer.status_code, "did not let you in" in answer.text) == (401, True)
        assert (await browser.get("/account")).status_code == 303
        assert not await app.state.parts.logins.all()


def _changed(**changes):
    def change(provider):
        for name, value in changes.items():
            setattr(provider, name, value)

    return change


SHARED = OctKey.import_key(SECRET.encode().ljust(32, b"-"), {"kid": "one"})


@pytest.mark.parametrize(
    "change",
    [
        _changed(key=OTHER),
        _changed(header={"kid": "two"}),
        _changed(key=SHARED, algorithm="HS256"),
        _changed(key=SHARED, algorithm="HS256", published=[SHARED.as_dict()]),
        _changed(published=[]),
        _changed(published=[KEY.as_dict(private=False), OTHER.as_dict(private=False)]),
        _changed(published=[KEY.as_dict(private=False) | {"use": "enc"}]),
    ],
)
async def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(hub_with, provider, change):
    change(provider)
    async with hub_with() as app, Browser(app) as browser:
        assert (await through(browser, provider)).status_code == 401
        assert (await browser.get("/account")).status_code == 303


async def test_an_unsigned_token_lets_nobody_in(hub_with, provider):
    provider.unsigned = True
    async with hub_with() as app, Browser(app) as browser:
        assert (await through(browser, provider)).status_code == 401
        assert (await browser.get("/account")).status_code == 303


async def test_an_answer_is_good_for_the_browser_that_asked_and_once(hub_with, provider):
    async with hub_with() as app, Browser(app) as browser, Browser(app) as victim:
        leaving = await browser.get("/signin/provider")
        answer = provider.sign_in(leaving.headers["location"])
        assert (await victim.get("/signin/callback", params=answer)).status_code == 400  # signed in as the attacker: no
        await victim.get("/signin/provider")
        assert (await victim.get("/signin/callback", params=answer)).status_code == 401  # another state
        assert (await browser.get("/signin/callback", params=answer)).status_code == 303
        assert (await browser.get("/signin/callback", params=answer)).status_code == 400


@pytest.mark.parametrize(
    ("about", "told", "status"),
    [
        ({}, {"iss": "https://evil.example"}, 401),
        ({}, {"iss": ISSUER}, 303),
        ({"authorization_response_iss_parameter_supported": True}, {}, 401),
        ({"authorization_response_iss_parameter_supported": True}, {"iss": ISSUER}, 303),
    ],
)
async def test_the_answer_of_another_provider_is_not_taken_for_that_of_ours(hub_with, provider, about, told, status):
    provider.about = about
    async with hub_with() as app, Browser(app) as browser:
        leaving = await browser.get("/signin/provider")
        answer = provider.sign_in(leaving.headers["location"]) | told
        assert (await browser.get("/signin/callback", params=answer)).status_code == status
        assert bool(provider.exchanged) == (status == 303)  # the code goes to nobody else


async def test_who_was_refused_by_the_provider_can_try_again(hub_with, provider, caplog):
    async with hub_with() as app, Browser(app) as browser:
        state = provider.sign_in((await browser.get("/signin/provider")).headers["location"])["state"]
        answer = await browser.get("/signin/callback", params={"error": "access_denied\r\nforged line", "state": state})
        assert (answer.status_code, "did not let you in" in answer.text) == (401, True)
        assert "\nforged" not in caplog.text


@pytest.mark.parametrize(
    "about",
    [{"issuer": "https://evil.example"}, {"token_endpoint": "http://login.clinic.example/token"}, {"jwks_uri": None}],
)
async def test_a_provider_that_describes_itself_wrongly_is_not_used(hub_with, provider, about):
    provider.about = about
    async with hub_with() as app, Browser(app) as browser:
        answer = await browser.get("/signin/provider")
        assert (answer.status_code, "does not answer at the moment" in answer.text) == (503, True)


async def test_a_provider_that_does_not_answer_leaves_the_password(hub_with, provider):
    async with hub_with() as app, Browser(app) as browser:
        await populate(app.state.store)
        provider.down = True
        assert (await browser.get("/signin/provider")).status_code == 503
        assert (await browser.sign_in()).headers["location"] == "/account"


@pytest.mark.parametrize(
    ("claims", "changes"),
    [
        ({}, {"provision": False}),
        ({"groups": ["visitors"]}, {}),
        ({"groups": None}, {}),
        ({"fhirUser": None}, {}),
        ({"fhirUser": "Organization/1"}, {}),
        ({"fhirUser": "Practitioner/../1"}, {}),
        ({"fhirUser": ["Practitioner/1"]}, {}),
    ],
)
async def test_nobody_is_provisioned_who_is_not_told_apart(hub_with, provider, claims, changes):
    provider.claims |= claims
    async with hub_with(**changes) as app, Browser(app) as browser:
        answer = await through(browser, provider)
        assert (answer.status_code, "Ask your administrator" in answer.text) == (403, True)
        assert not await app.state.parts.logins.all()


async def test_roles_follow_the_provider_at_each_sign_in(hub_with, provider):
    async with hub_with(roles={"physicians": "clinician", "nurses": "nurse"}) as app, Browser(app) as browser:
        await through(browser, provider)
        provider.claims["groups"] = ["nurses"]
        async with Browser(app) as again:
            await through(again, provider)
        assert (await app.state.parts.logins.by_identity(ISSUER, "248289761001")).roles == {"nurse"}
        provider.claims["groups"] = []
        async with Browser(app) as gone:
            assert (await through(gone, provider)).status_code == 403


async def test_whom_the_administrator_added_keeps_the_roles_of_the_hub(hub_with, provider):
    async with hub_with(roles={}, provision=False) as app, Browser(app) as browser:
        known = Login(
            id=new_id(),
            username="mira",
            name="Mira",
            fhir_user="Practitioner/m",
            organization="Organization/clinic",
            roles=frozenset({"nurse"}),
            issuer=ISSUER,
            subject="248289761001",
        )
        await app.state.parts.logins.add(known)
        assert (await through(browser, provider)).status_code == 303
        assert "Nurse" in (await browser.get("/account")).text
        await app.state.parts.logins.set_disabled(known.id, True)
        async with Browser(app) as again:
            assert (await through(again, provider)).status_code == 403


async def test_keys_that_the_provider_changed_are_fetched_anew(hub_with, provider, monkeypatch):
    from fhircm.exchange import jwks

    monkeypatch.setattr(jwks, "_AGAIN", 0.0)
    async with hub_with() as app, Browser(app) as browser, Browser(app) as later:
        assert (await through(browser, provider)).status_code == 303
        fresh = RSAKey.generate_key(2048, {"kid": "two", "use": "sig"}, private=True)
        provider.key, provider.header, provider.published = fresh, {"kid": "two"}, [fresh.as_dict(private=False)]
        assert (await through(later, provider)).status_code == 303


async def test_an_app_that_asks_for_a_fresh_sign_in_has_the_provider_ask_anew(hub_with, provider, time):
    async with hub_with() as app, Browser(app) as browser:
        await populate(app.state.store)
        assert "prompt" not in parse_qs(urlsplit((await browser.get("/signin/provider")).headers["location"]).query)
        time.now -= 30
        await through(browser, provider)
        time.now += 30
        parameters = {
            "response_type": "code",
            "client_id": "growth",
            "redirect_uri": "https://app.example/back",
            "scope": "user/Patient.rs",
            "state": "s",
            "aud": f"{BASE}/fhir",
            "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
            "code_challenge_method": "S256",
            "prompt": "login",
        }
        path = (await app.state.parts.authorizations.ask(list(parameters.items()))).removeprefix(BASE)
        leaving = await browser.get("/signin/provider", params={"next": path})
        assert parse_qs(urlsplit(leaving.headers["location"]).query)["prompt"] == ["login"]
        time.now = now() + 1
        answer = await browser.get("/signin/callback", params=provider.sign_in(leaving.headers["location"]))
        assert answer.headers["location"] == path
        assert "Give Growth charts access?" in (await browser.get(path)).text
