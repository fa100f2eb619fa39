"""The hub signs in as SMART says: keys that only it can read, assertions that are good once, tokens that are never told."""

import asyncio
import json
import logging
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from fhircm.exchange.backend_auth import BackendAuth, KeyWrong, assertion, public_jwks, signing_key
from fhircm.exchange.client import PartnerAnswerBroken, PartnerUnavailable, SignInRefused

BASE = "https://ehr.example/fhir"
TOKEN_URL = "https://login.ehr.example/token"


class Ehr:
    """A partner that issues tokens and takes only the last one."""

    def __init__(self, keys_dir, lifetime=300):
        self.keys_dir, self.lifetime = keys_dir, lifetime
        self.issued, self.claims, self.requests = 0, [], []
        self.token_answer = None
        self.configuration = {"token_endpoint": TOKEN_URL}

    @property
    def transport(self):
        return httpx.MockTransport(self.answer)

    def answer(self, request):
        self.requests.append(request)
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
    auth = BackendAuth(BASE, "fhircm", key, ["system/Patient.rs", "system/Goal.rs"], **more)
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


async def test_a_token_is_kept_until_shortly_before_its_end(elliptic, tmp_path, monkeypatch):
    ehr = Ehr(tmp_path, lifetime=100)
    _, http = signed_in(ehr, elliptic)
    now = time.time()
    async with http:
        for seconds, issued in ((0, 1), (75, 1), (81, 2), (150, 2), (162, 3)):
            monkeypatch.setattr("fhircm.exchange.backend_auth.time.time", lambda at=now + seconds: at)
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
    original = ehr.answer
    ehr.answer = lambda request: httpx.Response(401) if request.url.path == "/fhir/Patient/1" else original(request)
    async with httpx.AsyncClient(auth=http.auth, transport=httpx.MockTransport(ehr.answer)) as stubborn:
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


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    first = signing_key(tmp_path / "keys", "a", "ES384")
    again = signing_key(tmp_path / "keys", "a", "ES384")
    assert first.thumbprint() == again.thumbprint()
    assert stat.S_IMODE((tmp_path / "keys" / "a.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["a.json"]


def test_public_keys_hold_nothing_private(tmp_path):
    for name, algorithm in (("a", "RS384"), ("b", "ES384")):
        signing_key(tmp_path, name, algorithm)
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "jwks.public.json").write_text(json.dumps(public_jwks(tmp_path)))
    keys = public_jwks(tmp_path)["keys"]
    assert [(key["kty"], key["alg"], key["use"]) for key in keys] == [("RSA", "RS384", "sig"), ("EC", "ES384", "sig")]
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & {member for key in keys for member in key}
    assert len({key["kid"] for key in keys}) == 2
    assert public_jwks(tmp_path / "nowhere") == {"keys": []}


def test_an_rsa_key_is_long_enough(tmp_path):
    signing_key(tmp_path, "a", "RS384")
    [key] = public_jwks(tmp_path)["keys"]
    assert len(key["n"]) * 6 >= 3072


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kty":"oct","k":"abc"}', '{"kty":"EC"}', "\x00"])
def test_a_file_that_is_no_key_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(KeyWrong, match=r"a\.json is not a private key"):
        signing_key(tmp_path, "a", "ES384")


def test_a_key_for_another_algorithm_is_told(tmp_path):
    signing_key(tmp_path, "a", "ES384")
    with pytest.raises(KeyWrong, match="is a key for ES384, and RS384 is wanted"):
        signing_key(tmp_path, "a", "RS384")
    with pytest.raises(KeyWrong, match="not an algorithm of SMART"):
        signing_key(tmp_path, "b", "HS256")


def test_several_that_make_a_key_at_once_get_one(tmp_path):
    gate = Barrier(6)

    def kid(_):
        gate.wait(10)
        return signing_key(tmp_path, "a", "ES384").kid

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(kid, range(6)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
