"""The hub signs in as SMART says: keys that only it can read, assertions that are good once, tokens that are never told."""

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from fhircm.exchange.backend_auth import BackendAuth
from fhircm.exchange.client import PartnerAnswerBroken, PartnerUnavailable, SignInRefused
from fhircm.exchange.client_keys import public_jwks, signing_key
from fhircm.exchange.credentials import Secret
from fhircm.exchange.discovery import OAUTH_URIS, elsewhere
from fhircm.exchange.proof import Client, assertion
from fhircm.sandbox.signin import Refused, SignIn

BASE = "https://ehr.example/fhir"
TOKEN_URL = "https://login.ehr.example/token"


class Ehr:
    """A partner that issues tokens and takes only the last one."""

    def __init__(self, keys_dir, lifetime=300):
        self.keys_dir, self.lifetime = keys_dir, lifetime
        self.issued, self.claims, self.requests = 0, [], []
        self.token_answer = None
        self.configuration = {"token_endpoint": TOKEN_URL}
        self.statement = {"resourceType": "CapabilityStatement"}

    @property
    def transport(self):
        return httpx.MockTransport(self.answer)

    def answer(self, request):
        self.requests.append(request)
        if request.url.path == "/fhir/metadata":
            return httpx.Response(200, json=self.statement)
        if request.url.path.endswith("/.well-known/smart-configuration"):
            return httpx.Response(200, json=self.configuration)
        if str(request.url) == TOKEN_URL:
            return self.token(request)
        good = request.headers.get("Authorization") == f"Bearer token-{self.issued}"
        return httpx.Response(200 if good else 401, json={"ok": good}, headers={} if good else {"WWW-Authenticate": "Bearer"})

    def token(self, request):
        form = dict(httpx.QueryParams(request.content.decode()))
        keys = KeySet.import_key_set(public_jwks(self.keys_dir))
        self.claims.append((form, jwt.decode(form["client_assertion"], keys, algorithms=["RS384", "ES384"])))
        if self.token_answer is not None:
            return self.token_answer
        self.issued += 1
        body = {"access_token": f"token-{self.issued}", "token_type": "bearer", "scope": "system/Patient.rs"}
        return httpx.Response(200, json={**body, "expires_in": self.lifetime})


@pytest.fixture(params=["RS384", "ES384"])
def key(request, tmp_path):
    return signing_key(tmp_path, "north-clinic", request.param)


@pytest.fixture
def elliptic(tmp_path):
    return signing_key(tmp_path, "north-clinic", "ES384")


def signed_in(ehr, key, **more):
    client = Client("fhircm", keys=lambda: [key])
    auth = BackendAuth(BASE, client, ["system/Patient.rs", "system/Goal.rs"], transport=ehr.transport, **more)
    return auth, httpx.AsyncClient(auth=auth, transport=ehr.transport)


async def test_the_assertion_is_what_smart_asks_for(key, tmp_path):
    ehr = Ehr(tmp_path)
    auth, http = signed_in(ehr, key)
    async with http:
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
    form, token = ehr.claims[0]
    assert form["grant_type"] == "client_credentials"
    assert form["scope"] == "system/Patient.rs system/Goal.rs"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert token.header == {"alg": key.alg, "kid": key.kid, "typ": "JWT"}
    assert token.claims["iss"] == token.claims["sub"] == "fhircm"
    assert token.claims["aud"] == TOKEN_URL
    assert 0 < token.claims["exp"] - time.time() <= 300
    assert auth.granted == ("system/Patient.rs",)


def test_every_assertion_is_another(elliptic):
    keys = KeySet([elliptic])
    once = [jwt.decode(assertion(elliptic, "fhircm", TOKEN_URL), keys, algorithms=["ES384"]).claims["jti"] for _ in range(20)]
    assert len(set(once)) == 20


async def test_a_token_is_kept_until_shortly_before_its_end(elliptic, tmp_path):
    ehr = Ehr(tmp_path, lifetime=100)
    passed = 0.0
    _, http = signed_in(ehr, elliptic, monotonic=lambda: passed)
    async with http:
        for seconds, issued in ((0, 1), (75, 1), (81, 2), (150, 2), (162, 3)):
            passed = float(seconds)
            await http.get(f"{BASE}/Patient/1")
            assert ehr.issued == issued


async def test_many_who_need_a_token_at_once_wait_for_one(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    _, http = signed_in(ehr, elliptic)
    async with http:
        answers = await asyncio.gather(*(http.get(f"{BASE}/Patient/{n}") for n in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert ehr.issued == 1


async def test_a_token_that_is_refused_is_replaced_once(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    _, http = signed_in(ehr, elliptic)
    async with http:
        await http.get(f"{BASE}/Patient/1")
        ehr.issued = 7  # the partner forgot the token
        assert (await http.post(f"{BASE}/Task", content=b'{"a":1}')).status_code == 200
        assert ehr.requests[-1].content == b'{"a":1}'
        answers = await asyncio.gather(*(http.get(f"{BASE}/Patient/{n}") for n in range(5)))
        assert {answer.status_code for answer in answers} == {200}
    assert ehr.issued == 8


async def test_a_partner_that_takes_no_token_is_not_asked_for_ever(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    _, http = signed_in(ehr, elliptic)
    refuses = httpx.MockTransport(lambda _: httpx.Response(401))
    async with httpx.AsyncClient(auth=http.auth, transport=refuses) as stubborn:
        assert (await stubborn.get(f"{BASE}/Patient/1")).status_code == 401
    await http.aclose()
    assert ehr.issued == 2


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (
            httpx.Response(400, json={"error": "invalid_client", "error_description": "kid unknown"}),
            SignInRefused,
            "400: invalid_client: kid unknown",
        ),
        (httpx.Response(401, text="<html>"), SignInRefused, "answered 401"),
        (httpx.Response(400, json={"error": {"not": "text"}}), SignInRefused, "answered 400"),
        (httpx.Response(400, json=[1]), SignInRefused, "answered 400"),
        (httpx.Response(503), PartnerUnavailable, "answered 503"),
        (httpx.Response(200, text="<html>"), PartnerAnswerBroken, "not a JSON object"),
        (httpx.Response(200, json={"access_token": ""}), PartnerAnswerBroken, "no bearer token"),
        (httpx.Response(200, json={"access_token": "x", "token_type": "mac"}), PartnerAnswerBroken, "no bearer token"),
        (
            httpx.Response(200, json={"access_token": "x\nHost: evil", "token_type": "bearer"}),
            PartnerAnswerBroken,
            "no bearer token",
        ),
        (httpx.Response(200, content=b" " * 5_000_000), PartnerAnswerBroken, "more than"),
        (httpx.Response(302, headers={"Location": "https://evil.example"}), PartnerAnswerBroken, "answered 302"),
    ],
)
async def test_a_sign_in_that_fails_is_told(elliptic, tmp_path, answer, error, told):
    ehr = Ehr(tmp_path)
    ehr.token_answer = answer
    _, http = signed_in(ehr, elliptic)
    async with http:
        with pytest.raises(error, match=told):
            await http.get(f"{BASE}/Patient/1")
        ehr.token_answer = None
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200


async def test_a_429_of_the_token_endpoint_names_its_wait(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    ehr.token_answer = httpx.Response(429, headers={"Retry-After": "30"})
    _, http = signed_in(ehr, elliptic)
    async with http:
        with pytest.raises(PartnerUnavailable) as told:
            await http.post(f"{BASE}/Task", content=b"{}")
    assert (told.value.retry_after, told.value.sent, told.value.throttled) == (30.0, False, True)


@pytest.mark.parametrize(
    "endpoint", [None, 7, "", "/token", "http://login.ehr.example/token", "file:///etc/passwd", "https://[x"]
)
async def test_an_assertion_goes_to_no_unsafe_endpoint(elliptic, tmp_path, endpoint):
    ehr = Ehr(tmp_path)
    ehr.configuration = {"token_endpoint": endpoint}
    _, http = signed_in(ehr, elliptic)
    async with http:
        with pytest.raises(PartnerAnswerBroken, match="names no token_endpoint"):
            await http.get(f"{BASE}/Patient/1")
    assert not ehr.claims


async def test_neither_token_nor_key_is_told(elliptic, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    ehr = Ehr(tmp_path)
    auth, http = signed_in(ehr, elliptic)
    async with http:
        await http.get(f"{BASE}/Patient/1")
    private = json.loads((tmp_path / "north-clinic.json").read_text())["d"]
    for text in (caplog.text, repr(auth), str(auth)):
        assert "token-1" not in text
        assert private not in text


# --- the token endpoint of an old vendor, and at another host ---


def statement(token):
    uris = {"url": OAUTH_URIS, "extension": [{"url": "token", "valueUri": token}]}
    return {"resourceType": "CapabilityStatement", "rest": [{"mode": "server", "security": {"extension": [uris]}}]}


async def test_an_old_vendor_tells_its_token_endpoint_in_the_capability_statement(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    ehr.configuration, ehr.statement = {"capabilities": []}, statement(TOKEN_URL)
    _, http = signed_in(ehr, elliptic)
    async with http:
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
    assert ehr.claims[0][1].claims["aud"] == TOKEN_URL


async def test_an_old_vendor_is_held_to_the_same_safety(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    ehr.configuration, ehr.statement = {}, statement("http://login.ehr.example/token")
    _, http = signed_in(ehr, elliptic)
    async with http:
        with pytest.raises(PartnerAnswerBroken, match="names no token_endpoint"):
            await http.get(f"{BASE}/Patient/1")
    assert not ehr.claims


def test_a_token_endpoint_at_another_host_is_told():
    assert elsewhere(TOKEN_URL, BASE) == "Signs in at another host, login.ehr.example: ask the partner whether that is theirs"
    assert elsewhere("https://ehr.example/token", BASE) is None
    assert elsewhere(None, BASE) is None


async def test_a_token_endpoint_and_parameters_of_the_partner_file_are_used(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    ehr.configuration = {}
    _, http = signed_in(ehr, elliptic, token_url=TOKEN_URL, parameters={"resource": "urn:tenant:7"})
    async with http:
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
    assert ehr.claims[0][0]["resource"] == "urn:tenant:7"
    _, unsafe = signed_in(ehr, elliptic, token_url="http://login.ehr.example/token")
    async with unsafe:
        with pytest.raises(PartnerAnswerBroken, match="must be https"):
            await unsafe.get(f"{BASE}/Patient/1")


# --- secrets ---


class SecretEhr(Ehr):
    """A vendor that insists on a secret: the sandbox's sign-in."""

    def __init__(self, folder, method):
        super().__init__(folder)
        self.sign_in = SignIn("the hub", None, TOKEN_URL, "RS384", "v2", 1, "one/two three", method)

    async def answer(self, request):
        if str(request.url) == TOKEN_URL:
            self.claims.append((dict(httpx.QueryParams(request.content.decode())), request.headers.get("Authorization", "")))
            try:
                return httpx.Response(200, json=await self.sign_in.token(*self.claims[-1]))
            except Refused as error:
                return httpx.Response(401, json={"error": str(error)})
        if request.url.path == "/fhir/Patient/1":
            return httpx.Response(200 if self.sign_in.allowed(request.headers["Authorization"], "r", "Patient") else 401)
        return super().answer(request)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_secret_is_sent_as_the_vendor_wants_it_and_a_new_one_counts_without_a_restart(tmp_path, method, caplog):
    caplog.set_level(logging.DEBUG)
    ehr, file = SecretEhr(tmp_path, method), tmp_path / "secret"
    file.write_text(f"{ehr.sign_in.secret}\n")
    passed = 0.0
    client = Client("the hub", method, secret=Secret(file).read)
    auth = BackendAuth(BASE, client, ["system/*.rs"], transport=ehr.transport, monotonic=lambda: passed)
    async with httpx.AsyncClient(auth=auth, transport=ehr.transport) as http:
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
        ehr.sign_in.secret, passed = "another", 10.0
        with pytest.raises(SignInRefused, match="invalid_client"):
            await http.get(f"{BASE}/Patient/1")
        file.write_text("another")
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
    for form, basic in ehr.claims:
        assert ("client_secret" in form) == (method == "client_secret_post") != bool(basic)
        assert "client_assertion" not in form
    assert "one/two" not in caplog.text
    assert "another" not in caplog.text


# --- clocks ---


class StrictEhr(Ehr):
    """A vendor whose clock is `ahead` by so many seconds, and which takes only assertions of now."""

    ahead = 0.0

    def token(self, request):
        at = time.time() + self.ahead
        form = dict(httpx.QueryParams(request.content.decode()))
        keys = KeySet.import_key_set(public_jwks(self.keys_dir))
        claims = jwt.decode(form["client_assertion"], keys, algorithms=["ES384"]).claims
        self.claims.append(claims)
        date = {"Date": format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True)}
        if not claims["iat"] - 30 <= at <= claims["exp"] <= at + 300:
            return httpx.Response(400, json={"error": "invalid_client"}, headers=date)
        self.issued += 1
        body = {"access_token": f"token-{self.issued}", "token_type": "Bearer", "expires_in": 100}
        return httpx.Response(200, json=body, headers=date)


@pytest.mark.parametrize("ahead", [-1800, 7200])
async def test_assertions_follow_the_clock_of_the_partner_when_ours_differs(elliptic, tmp_path, ahead):
    ehr = StrictEhr(tmp_path)
    ehr.ahead, passed = ahead, 0.0
    auth, http = signed_in(ehr, elliptic, monotonic=lambda: passed)
    async with http:
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
        assert (ehr.issued, len(ehr.claims)) == (1, 2)
        passed = 90.0
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
        assert (ehr.issued, len(ehr.claims)) == (2, 3)  # what was learnt is remembered
        ehr.ahead, passed = 0.0, 180.0  # somebody set the clock right
        assert (await http.get(f"{BASE}/Patient/1")).status_code == 200
        assert (ehr.issued, len(ehr.claims)) == (3, 5)
    assert abs(auth.skew) < 5


async def test_a_refusal_at_the_right_time_is_not_tried_again(elliptic, tmp_path):
    ehr = Ehr(tmp_path)
    now = format_datetime(datetime.now(UTC), usegmt=True)
    ehr.token_answer = httpx.Response(400, json={"error": "invalid_client"}, headers={"Date": now})
    _, http = signed_in(ehr, elliptic)
    async with http:
        with pytest.raises(SignInRefused):
            await http.get(f"{BASE}/Patient/1")
    assert len(ehr.claims) == 1


async def test_the_life_of_a_token_does_not_hang_on_the_time_of_day(elliptic, tmp_path):
    ehr, passed, today = Ehr(tmp_path, lifetime=100), 0.0, time.time()
    _, http = signed_in(ehr, elliptic, monotonic=lambda: passed, now=lambda: today)
    async with http:
        await http.get(f"{BASE}/Patient/1")
        today += 86_400
        await http.get(f"{BASE}/Patient/1")
        assert ehr.issued == 1
        today -= 10 * 86_400
        passed = 90.0
        await http.get(f"{BASE}/Patient/1")
        assert ehr.issued == 2
