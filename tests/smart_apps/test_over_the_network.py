"""What SMART App Launch 2.2 asks of a server, seen by somebody who has nothing but its address: over real connections, with real headers.

https://hl7.org/fhir/smart-app-launch/conformance.html. That each requirement holds in every case is for tests/smart.
"""

import base64
import hashlib
import secrets
import time
from urllib.parse import urlencode

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from tests.rest.signing import KEYS, assertion, form

from .systems import system_token
from .window import parameters

BACK = "https://app.example/back"
SCOPE = "launch/patient openid fhirUser offline_access patient/Patient.rs"
HTML = "text/html"


@pytest.fixture
async def smart(hub, http):
    """What the hub says of itself."""
    answer = await http.get("/fhir/.well-known/smart-configuration", headers={"Accept": HTML})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    return answer.json()


@pytest.fixture
async def app(hub):
    """A confidential app with both kinds of keys, on a server of its own."""
    name = f"walker-{secrets.token_hex(4)}"
    await hub.app(name, SCOPE, secret_key=KEYS["ES384"], redirect_uris=[BACK], launch_uri="https://app.example/launch")
    return name


class Walk:
    """One authorization from its request to its tokens, written against the specification and nothing else."""

    def __init__(self, hub, smart, http, window, app):
        self.hub, self.smart, self.http, self.window, self.app = hub, smart, http, window, app
        self.verifier = secrets.token_urlsafe(48)
        self.state, self.nonce = secrets.token_urlsafe(16), secrets.token_urlsafe(16)

    @property
    def asked(self):
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return {
            "response_type": "code",
            "client_id": self.app,
            "redirect_uri": BACK,
            "scope": SCOPE,
            "state": self.state,
            "nonce": self.nonce,
            "aud": self.hub.fhir,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }

    async def code(self):
        """The code that comes back once the person agreed; the app's own server is not there and need not be."""
        page = self.window.page
        await page.route(f"{BACK}*", lambda route: route.fulfill(body="back"))
        await page.goto(f"{self.smart['authorization_endpoint']}?{urlencode(self.asked)}")
        await self.window.sign_in("cleo")
        await self.window.press("Ada Abbott")
        await self.window.press("Allow access")
        await page.wait_for_url(f"{BACK}*")
        told = parameters(page.url)
        assert (told["state"], told["iss"]) == (self.state, self.smart["issuer"])
        return told["code"]

    async def send(self, endpoint, fields, alg="ES384"):
        address = self.smart[endpoint]
        signed = assertion(alg, client=self.app, aud=self.smart["token_endpoint"])
        proof = {name: value for name, value in form(signed).items() if name.startswith("client_assertion")}
        return await self.http.post(address, data=proof | fields)

    async def exchange(self, code, **changes):
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": self.verifier}
        return await self.send("token_endpoint", fields | changes)


@pytest.fixture
def walk(hub, smart, http, window, app):
    return Walk(hub, smart, http, window, app)


async def test_the_addresses_of_the_configuration_are_there(hub, smart, http):
    assert smart["issuer"] == hub.base
    assert "S256" in smart["code_challenge_methods_supported"]
    assert "plain" not in smart["code_challenge_methods_supported"]
    for name, address in smart.items():
        if name.endswith(("_endpoint", "_uri")):
            assert address.startswith(f"{hub.base}/"), name
            answer = await http.options(address, headers={"Origin": hub.apps.origin, "Access-Control-Request-Method": "POST"})
            assert answer.status_code < 500, name
            assert (await http.get(address)).status_code not in (404, 500), name
    assert (await http.get("/.well-known/openid-configuration")).json()["issuer"] == hub.base


async def test_the_authorization_endpoint_answers_a_browser_by_get_and_by_post(hub, smart, http, walk):
    by_get = await http.get(smart["authorization_endpoint"], params=walk.asked)
    by_post = await http.post(smart["authorization_endpoint"], data=walk.asked)
    for answer in (by_get, by_post):
        assert answer.status_code == 303  # so that the browser goes on with GET
        page = await http.get(answer.headers["Location"], follow_redirects=True)
        assert (page.status_code, page.headers["Content-Type"].partition(";")[0]) == (200, HTML)
        assert "no-store" in page.headers["Cache-Control"]
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in page.headers


@pytest.mark.parametrize("left_out", ["code_challenge", "code_challenge_method", "state", "aud"])
async def test_what_is_left_out_is_told_to_the_app_and_to_nobody_else(smart, http, walk, left_out):
    asked = {name: value for name, value in walk.asked.items() if name != left_out}
    answer = await http.get(smart["authorization_endpoint"], params=asked)
    assert answer.headers["Location"].startswith(f"{BACK}?")
    error = parameters(answer.headers["Location"])["error"]
    assert error == ("invalid_target" if left_out == "aud" else "invalid_request")  # the former: RFC 8707 section 2
    elsewhere = await http.get(smart["authorization_endpoint"], params=asked | {"redirect_uri": "https://thief.example/"})
    assert (elsewhere.status_code, "Location" in elsewhere.headers) == (400, False)


async def test_a_walk_from_the_request_to_the_end_of_its_tokens(hub, smart, http, walk):
    code = await walk.code()
    answer = await walk.exchange(code)
    told = answer.json()
    assert (answer.status_code, told["token_type"], told["patient"]) == (200, "Bearer", "ada")
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    assert 0 < told["expires_in"] <= 3600
    assert set(told["scope"].split()) == set(SCOPE.split())
    # Who the person is, by the published keys alone.
    published = KeySet.import_key_set((await http.get(smart["jwks_uri"])).json())
    token = jwt.decode(told["id_token"], published, algorithms=["RS256"])
    claims = token.claims
    assert token.header["kid"] in {key.kid for key in published}
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (smart["issuer"], walk.app, walk.nonce)
    assert claims["exp"] > time.time() > claims["iat"] - 1
    assert claims["fhirUser"] == f"{hub.fhir}/Practitioner/cleo"
    bearer = {"Authorization": f"Bearer {told['access_token']}"}
    who = await http.get(claims["fhirUser"], headers=bearer)
    assert who.status_code == 403  # user/ scopes were not asked for
    read = await http.get("/fhir/Patient/ada", headers=bearer)
    assert (read.status_code, read.json()["id"]) == (200, "ada")
    # What others are told of the token.
    system = await system_token(hub, http, "introspect")
    asking = {"Authorization": f"Bearer {system}"}
    known = (await http.post(smart["introspection_endpoint"], data={"token": told["access_token"]}, headers=asking)).json()
    assert known["active"] is True
    assert (known["client_id"], known["scope"], known["patient"]) == (walk.app, told["scope"], "ada")
    assert (known["iss"], known["sub"], known["fhirUser"]) == (claims["iss"], claims["sub"], claims["fhirUser"])
    assert abs(known["exp"] - time.time() - told["expires_in"]) < 60
    # A fresh pair by the other kind of key; then all of it is given back.
    again = await walk.send("token_endpoint", {"grant_type": "refresh_token", "refresh_token": told["refresh_token"]}, "RS384")
    assert again.status_code == 200, again.text
    fresh = again.json()
    assert (await walk.send("revocation_endpoint", {"token": fresh["refresh_token"]})).status_code == 200
    for access in (told["access_token"], fresh["access_token"]):
        headers = {"Authorization": f"Bearer {access}"}
        ended = await http.get("/fhir/Patient/ada", headers=headers)
        assert (ended.status_code, ended.headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Bearer")
        assert (await walk.send("introspection_endpoint", {"token": access})).json() == {"active": False}
    gone = await walk.send("token_endpoint", {"grant_type": "refresh_token", "refresh_token": fresh["refresh_token"]})
    assert (gone.status_code, gone.json()["error"]) == (400, "invalid_grant")


async def test_a_code_with_another_verifier_is_worth_nothing_even_for_who_has_the_right_one(walk):
    code = await walk.code()
    stolen = await walk.exchange(code, code_verifier=secrets.token_urlsafe(48))
    assert (stolen.status_code, stolen.json()["error"]) == (400, "invalid_grant")
    assert (await walk.exchange(code)).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("alg", ["RS384", "ES384"])
async def test_a_backend_system_gets_in_with_a_key_of_either_kind(hub, smart, http, alg):
    signed = assertion(alg, client="system", aud=smart["token_endpoint"])
    answer = await http.post(smart["token_endpoint"], data=form(signed, "system/Patient.rs"))
    told = answer.json()
    assert (answer.status_code, told["token_type"], told["scope"]) == (200, "Bearer", "system/Patient.rs")
    assert told["expires_in"] <= 300
    assert "refresh_token" not in told
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    bearer = {"Authorization": f"Bearer {told['access_token']}"}
    assert (await http.get("/fhir/Patient/cy", headers=bearer)).status_code == 200
    assert (await http.get("/fhir/Condition/migraine", headers=bearer)).status_code == 403
    played_again = await http.post(smart["token_endpoint"], data=form(signed, "system/Patient.rs"))
    assert (played_again.status_code, played_again.json()["error"]) == (401, "invalid_client")


async def test_a_registered_launcher_opens_an_app_for_whoever_signs_in(hub, http, window):
    address = await hub.app("from-a-portal", "launch openid fhirUser patient/Patient.rs patient/Condition.rs", KEYS["RS384"])
    bearer = {"Authorization": f"Bearer {await system_token(hub, http, 'launcher')}"}
    asked = {"client_id": "from-a-portal", "patient": "ada", "intent": "review"}
    launched = (await http.post("/oauth/launch", json=asked, headers=bearer)).json()
    await window.page.goto(f"{address}?{urlencode({'iss': launched['iss'], 'launch': launched['launch']})}")
    await window.sign_in("cleo")
    await window.press("Allow access")
    assert (await window.shown())[0] == "Ada Abbott"
    assert (await window.tokens())["intent"] == "review"
