"""What attackers try at an authorization server, one test for each attack.

https://www.rfc-editor.org/rfc/rfc9700 and https://www.rfc-editor.org/rfc/rfc8725
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time

import httpx
import pytest
import respx
from joserfc import jws
from joserfc.jwk import RSAKey

from fhircm.exchange.jwks import JwksUnavailable, PublishedKeys
from fhircm.exchange.source_address import Allowed
from fhircm.smart.client_auth import ClientAuthentication
from fhircm.smart.clients import Client, is_redirect
from fhircm.smart.refusal import TokenRefused
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.grants import Code, Grant, Grants, UsedAgain
from tests.rest.signing import BASE, KEYS, assertion, form

from .flow import ASSERTION_TYPE, BACK, BEN, CLIENTS, SECRET, VERIFIER, request, told

OFFLINE = "openid offline_access launch/patient patient/*.rs"


async def refused(hub, signed):
    answer = await hub.http.post("/oauth/token", data=form(signed, "system/*.rs"))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text
    return answer.json()["error_description"]


def _part(tree):
    return base64.urlsafe_b64encode(json.dumps(tree).encode()).rstrip(b"=").decode()


def _by_hand(header, signature=b"", **changes):
    """An assertion with any header."""
    now = int(time.time())
    claims = {"iss": "app", "sub": "app", "aud": f"{BASE}/oauth/token", "exp": now + 240, "jti": f"hand-{now}"} | changes
    signed = f"{_part(header)}.{_part(claims)}"
    mac = signature(signed.encode()) if callable(signature) else signature
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


# --- assertions ---


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_algorithm_confusion_with_the_public_key_as_secret(hub, alg):
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[alg]
    for secret in (KEYS["RS384"].as_pem(private=False), json.dumps(KEYS["RS384"].as_dict(private=False)).encode()):
        await refused(hub, _by_hand({"alg": alg, "kid": "rs"}, lambda text, key=secret: hmac.digest(key, text, digest)))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 0])
async def test_an_assertion_without_signature(hub, alg):
    await refused(hub, _by_hand({"alg": alg, "kid": "es"}))
    await refused(hub, _by_hand({"alg": alg, "kid": "es"}, b"anything"))


async def test_a_key_that_the_assertion_brings_itself(hub):
    mine = RSAKey.generate_key(2048, {"kid": "rs"}, private=True)
    signed = assertion("RS384", mine, "rs")
    _, body, tail = signed.split(".")
    for header in (
        {"alg": "RS384", "kid": "rs", "jwk": mine.as_dict(private=False)},
        {"alg": "RS384", "kid": "rs", "jku": "https://evil.example/jwks"},
        {"alg": "RS384", "kid": "rs", "x5u": "https://evil.example/cert"},
    ):
        await refused(hub, f"{_part(header)}.{body}.{tail}")
    await refused(hub, signed)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://elsewhere.example/oauth/token"},
        {"aud": f"{BASE}/oauth/token/"},
        {"aud": []},
        {"aud": None},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": float("nan")},
        {"exp": 1e300},
        {"sub": "public"},
        {"iss": ["app"]},
        {"jti": ""},
        {"jti": "x" * 300},
        {"jti": 7},
        {"jti": "a\x00b"},
        {"iss": "app\x00", "sub": "app\x00"},
    ],
)
async def test_an_assertion_with_wrong_claims(hub, changes):
    await refused(hub, assertion(**changes))


@pytest.mark.parametrize(
    "nonsense", ["", "a.b", "a.b.c", "....", "é.é.é", f"{_part({'alg': 'ES384'})}.{'[' * 20_000}.x", "x" * 30_000]
)
async def test_an_assertion_that_is_none(hub, nonsense):
    answer = await hub.http.post("/oauth/token", data=form(nonsense or None, "system/*.rs"))
    assert answer.status_code == 401
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
    await refused(hub, f"{_part({'alg': 'ES384', 'kid': 'es'})}.{deep}.xx")


async def test_an_assertion_with_half_a_character(hub):
    now = int(time.time())
    good = {"iss": "app", "sub": "app", "aud": f"{BASE}/oauth/token", "exp": now + 240, "jti": "x"}
    for wrong in ({"jti": "\ud800"}, {"iss": "\ud800", "sub": "\ud800"}):
        payload = json.dumps(good | wrong).encode()
        await refused(hub, jws.serialize_compact({"alg": "ES384", "kid": "es"}, payload, KEYS["ES384"], algorithms=["ES384"]))


async def test_an_assertion_that_is_played_again_at_another_process(hub, database_url):
    """Eight copies of one assertion at two processes with connections of their own: one is taken."""
    signed = assertion()
    other = await open_database(database_url)
    mine = hub.server.tokens.authentication
    twin = ClientAuthentication(mine.audience, Credentials(other), PublishedKeys(allow_private=False))
    asked = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
    tries = [process.client(asked) for process in (mine, twin) for _ in range(4)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    await other.close()
    assert sum(isinstance(one, Client) for one in outcomes) == 1
    assert sum(isinstance(one, TokenRefused) and "used before" in one.description for one in outcomes) == 7


# --- codes ---


async def test_a_code_that_is_used_twice_ends_all_its_tokens(hub):
    code = await hub.code(scope=OFFLINE)
    first = (await hub.exchange(code)).json()
    renewed = (await hub.refresh(first["refresh_token"])).json()
    assert await hub.is_good(renewed["access_token"])
    assert (await hub.exchange(code)).json()["error"] == "invalid_grant"
    for token in (first["access_token"], renewed["access_token"]):
        assert not await hub.is_good(token)
    assert (await hub.refresh(renewed["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_code_at_two_processes_at_once_gives_one_grant_that_is_ended(hub, database_url):
    code = await hub.code(scope=OFFLINE)
    other = await open_database(database_url)
    now = int(time.time())
    tries = [grants.use_code(code, now) for grants in (hub.server.tokens.grants, Grants(other)) for _ in range(4)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    await other.close()
    (used,) = [one for one in outcomes if isinstance(one, Code)]
    assert sum(isinstance(one, UsedAgain) for one in outcomes) == 7
    assert (await hub.server.tokens.grants.grant(used.grant.id)).revoked is not None


async def test_a_verifier_that_is_not_the_right_one_ends_the_code(hub):
    code = await hub.code()
    assert (await hub.exchange(code, code_verifier="b" * 43)).json()["error"] == "invalid_grant"
    assert (await hub.exchange(code)).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("verifier", ["short", "x" * 129, "ä" * 43, "with space" * 5])
async def test_a_verifier_that_is_none(hub, verifier):
    assert (await hub.exchange(await hub.code(), code_verifier=verifier)).json()["error"] == "invalid_grant"


async def test_a_code_of_another_client(hub):
    code = await hub.code()
    stolen = await hub.exchange(code, "other", redirect_uri=BACK)
    assert stolen.json()["error"] == "invalid_grant"
    assert (await hub.exchange(code)).json()["error"] == "invalid_grant"


async def test_a_code_that_is_guessed(hub):
    assert (await hub.exchange("A" * 43)).json()["error"] == "invalid_grant"


async def test_a_request_is_decided_once(hub):
    id = hub.waiting(await hub.ask())
    complete = hub.server.authorizations.complete
    person = {"patient": "pat", "scopes": ["patient/*.rs"], "session_digest": BEN.session}
    outcomes = await asyncio.gather(*(complete(id, BEN, **person) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, str) for one in outcomes) == 1


async def test_a_session_of_another_person_decides_nothing(hub):
    from .flow import ANNA

    id = hub.waiting(await hub.ask())
    back = await hub.server.authorizations.complete(id, ANNA, patient="pat", scopes=["patient/*.rs"], session_digest=BEN.session)
    assert told(back)["error"] == "login_required"


# --- where codes are sent ---

TRICKS = [
    f"{BACK}/../evil",
    f"{BACK}x",
    f"{BACK}.evil.example",
    f"{BACK}?next=https://evil.example",
    f"{BACK}#fragment",
    f"{BACK}%2f..%2fevil",
    f"{BACK}/",
    f" {BACK}",
    f"{BACK} ",
    f"{BACK}\n",
    f"{BACK}\x00",
    BACK.upper(),
    BACK.replace("https", "HTTPS"),
    BACK.replace("https", "http"),
    BACK.replace("app.example", "APP.example"),
    BACK.replace("app.example", "app.example."),
    BACK.replace("app.example", "app.example:443"),
    BACK.replace("app.example", "app.example@evil.example"),
    BACK.replace("app.example", "evil.example#app.example"),
    BACK.replace("app.example", "evil.example\\@app.example"),
    BACK.replace("app.example", "evil.example%2f@app.example"),
    BACK.replace("app.example", "аpp.example"),  # a Cyrillic letter
    BACK.replace("back", "%62ack"),
    BACK.replace("//", "/\\"),
    "//app.example/back",
    "/back",
    "javascript:alert(1)//https://app.example/back",
    "data:text/html,https://app.example/back",
    "https://evil.example/?https://app.example/back",
    "",
]


@pytest.mark.parametrize("trick", TRICKS)
async def test_redirect_uri_tricks_are_answered_without_a_redirect(hub, trick):
    for answer in (
        await hub.http.get("/oauth/authorize", params=request(redirect_uri=trick)),
        await hub.http.post("/oauth/authorize", data=request(redirect_uri=trick)),
    ):
        assert answer.status_code == 400
        assert "Location" not in answer.headers
        assert "evil" not in answer.text


async def test_no_open_redirect_for_a_client_that_is_not_known(hub):
    for client in ("nobody", "", None, "public\x00", "' OR 1=1"):
        answer = await hub.http.get("/oauth/authorize", params=request(client_id=client))
        assert answer.status_code == 400
        assert "Location" not in answer.headers


async def test_a_parameter_that_comes_twice(hub):
    once = list(request().items())
    for name in ("client_id", "redirect_uri"):
        answer = await hub.http.get("/oauth/authorize", params=[*once, (name, "https://evil.example")])
        assert answer.status_code == 400
    answer = await hub.http.get("/oauth/authorize", params=[*once, ("scope", "user/*.cruds")])
    assert told(answer.headers["Location"])["error"] == "invalid_request"
    fields = [("grant_type", "refresh_token"), ("refresh_token", "a"), ("refresh_token", "b"), ("client_id", "public")]
    body = "&".join(f"{name}={value}" for name, value in fields)
    answer = await hub.http.post("/oauth/token", content=body)
    assert answer.json()["error"] == "invalid_request"


@pytest.mark.parametrize(
    ("registered", "asked", "good"),
    [
        ("http://127.0.0.1/back", "http://127.0.0.1:51004/back", True),
        ("http://[::1]/back", "http://[::1]:51004/back", True),
        ("http://127.0.0.1/back", "http://127.0.0.1:51004/other", False),
        ("http://127.0.0.1/back", "http://127.0.0.1:51004@evil.example/back", False),
        ("http://127.0.0.1/back", "http://127.0.0.1.evil.example/back", False),
        ("http://127.0.0.1/back", "https://127.0.0.1/back", False),
        ("http://localhost/back", "http://localhost:51004/back", False),
        ("https://127.0.0.1/back", "https://127.0.0.1:51004/back", False),
    ],
)
def test_only_the_port_of_a_loopback_address_is_free(registered, asked, good):
    assert Client("native", {"redirect_uris": [registered]}).redirects_to(asked) is good


@pytest.mark.parametrize(
    ("uri", "good"),
    [
        (BACK, True),
        ("com.example.app:/back", True),
        ("com.example.app://back", True),
        ("http://127.0.0.1/back", True),
        ("http://app.example/back", False),
        ("https://user@app.example/back", False),
        ("https://app.example/back#x", False),
        ("https://*.example/back", False),
        ("https:///back", False),
        ("https://app.example:port/back", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("app:/back", False),
        ("https://app.example/a\\b", False),
        ("https://app.example/a b", False),
    ],
)
def test_only_safe_addresses_are_registered(uri, good):
    assert is_redirect(uri) is good


async def test_mix_up_is_seen_by_iss_in_every_answer(hub):
    good = told(await hub.agree(await hub.ask()))
    wrong = told((await hub.ask(response_type="token")).headers["Location"])
    no = told(await hub.server.authorizations.refuse(hub.waiting(await hub.ask()), "access_denied"))
    assert {good["iss"], wrong["iss"], no["iss"]} == {BASE}


async def test_header_injection_through_state(hub):
    location = await hub.agree(await hub.ask(state="a\r\nSet-Cookie: x=y"))
    assert "\r" not in location
    assert "\n" not in location
    assert told(location)["state"] == "a\r\nSet-Cookie: x=y"
    wrong = await hub.ask(state="a\r\nSet-Cookie: x=y", response_type="token")
    assert "set-cookie" not in wrong.headers


async def test_what_is_not_supported_is_not_done_silently(hub):
    assert await hub.refused(request="eyJ") == "request_not_supported"
    assert await hub.refused(request_uri="https://evil.example/r") == "request_uri_not_supported"
    assert await hub.refused(response_mode="fragment") == "invalid_request"
    assert await hub.refused(state="x" * 3000) == "invalid_request"


# --- refresh tokens ---


async def test_a_refresh_token_that_is_used_twice_ends_everything(hub):
    first = await hub.tokens(scope=OFFLINE)
    second = (await hub.refresh(first["refresh_token"])).json()
    more = await hub.refresh(first["refresh_token"], scope="system/*.cruds")  # whatever else is wrong with it
    assert more.json()["error"] == "invalid_grant"
    assert (await hub.refresh(second["refresh_token"])).json()["error"] == "invalid_grant"
    assert not await hub.is_good(second["access_token"])


async def test_a_refresh_token_at_two_processes_at_once_gives_one_answer(hub, database_url):
    token = (await hub.tokens(scope=OFFLINE))["refresh_token"]
    other = await open_database(database_url)
    now = int(time.time())
    both = (hub.server.tokens.grants, Grants(other))
    tries = [grants.rotate(token, f"{n}-{id(grants)}", now) for grants in both for n in range(4)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    await other.close()
    assert sum(isinstance(one, Grant) for one in outcomes) == 1
    assert sum(isinstance(one, UsedAgain) for one in outcomes) == 7
    assert (await hub.server.tokens.grants.refresh_token(token)).grant.revoked is not None


@pytest.mark.parametrize(
    "scope",
    [
        "user/*.cruds",
        "patient/*.cruds",
        "patient/*.rs user/Task.r",
        "openid fhirUser",
        "system/*.rs",
        "patient/Observation.rs online_access",
        "introspect",
        "nonsense",
    ],
)
async def test_scope_escalation_through_refresh(hub, scope):
    answer = await hub.tokens(scope=OFFLINE)
    more = await hub.refresh(answer["refresh_token"], scope=scope)
    assert (more.status_code, more.json()["error"]) == (400, "invalid_scope")
    less = await hub.refresh(answer["refresh_token"], scope="patient/Observation.r")
    assert less.json()["scope"] == "patient/Observation.r"


async def test_a_refresh_token_of_another_client_ends_everything(hub):
    answer = await hub.tokens(scope=OFFLINE)
    assert (await hub.refresh(answer["refresh_token"], "other")).json()["error"] == "invalid_grant"
    assert (await hub.refresh(answer["refresh_token"])).json()["error"] == "invalid_grant"
    assert not await hub.is_good(answer["access_token"])


async def test_a_client_that_was_registered_anew_with_less_gets_less(hub):
    answer = await hub.tokens(scope="offline_access user/Task.rs user/Patient.rs")
    less = CLIENTS["public"] | {"scope": "offline_access user/Task.rs"}
    await hub.server.registrations.credentials.add_client("public", less)
    assert (await hub.refresh(answer["refresh_token"])).json()["scope"] == "offline_access user/Task.rs"


# --- clients ---


async def test_a_secret_in_the_address_is_refused(hub):
    code = await hub.code("post")
    fields = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER, "redirect_uri": BACK}
    known = {"client_id": "post", "client_secret": SECRET}
    for path, body in (("token", fields), ("introspect", {"token": "x"}), ("revoke", {"token": "x"})):
        answer = await hub.http.post(f"/oauth/{path}", params=known, data=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert (await hub.http.get("/oauth/token", params=known | fields)).status_code == 405


async def test_a_client_that_does_not_prove_who_it_is_in_its_own_way(hub):
    plain = {"grant_type": "refresh_token", "refresh_token": "x"}
    signed = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion(client="signed")}
    for data, auth, error in (
        (plain | {"client_id": "basic"}, None, "invalid_client"),
        (plain | {"client_id": "signed"}, None, "invalid_client"),
        (plain | {"client_id": "basic", "client_secret": SECRET}, None, "invalid_client"),
        (plain, ("post", SECRET), "invalid_client"),
        (plain, ("basic", "wrong"), "invalid_client"),
        (plain, ("public", ""), "invalid_client"),
        (plain | {"client_id": "post", "client_secret": "wrong"}, None, "invalid_client"),
        (plain | {"client_id": "post", "client_secret": SECRET}, ("basic", SECRET), "invalid_request"),
        (plain | {"client_id": "public"}, ("basic", SECRET), "invalid_request"),
        (plain | {"client_id": "public"} | signed, None, "invalid_request"),
        (plain | {"client_id": "public", "client_secret": "x"}, None, "invalid_client"),
    ):
        answer = await hub.http.post("/oauth/token", data=data, **({"auth": auth} if auth else {}))
        assert answer.json()["error"] == error, (data, auth)
        assert answer.status_code == (401 if error == "invalid_client" else 400)
        assert ("WWW-Authenticate" in answer.headers) == (error == "invalid_client" and auth is not None)
    for header in ("Basic", "Basic %%%", "Digest x", "Bearer x"):
        answer = await hub.http.post("/oauth/token", data=plain, headers={"Authorization": header})
        assert answer.json()["error"] == "invalid_client"


async def test_a_client_that_is_disabled_is_shut_out_at_once(hub):
    answer = await hub.tokens("basic", scope=OFFLINE)
    asked = await hub.ask("basic")
    await hub.server.registrations.credentials.change_client("basic", {"disabled": True})
    assert not await hub.is_good(answer["access_token"])
    assert (await hub.refresh(answer["refresh_token"], "basic")).json()["error"] == "invalid_client"
    assert (await hub.ask("basic")).status_code == 400
    assert told(await hub.agree(asked))["error"] == "unauthorized_client"
    assert (await hub.introspect(answer["access_token"]))["active"] is False


async def test_a_person_who_is_disabled_is_shut_out_at_once(hub):
    answer = await hub.tokens(scope=OFFLINE)
    code = await hub.code()
    await hub.forbid("UPDATE login SET disabled = TRUE WHERE id = $1", "anna")
    assert not await hub.is_good(answer["access_token"])
    assert (await hub.refresh(answer["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await hub.exchange(code)).json()["error"] == "invalid_grant"


async def test_a_token_of_registration_opens_nothing_else(hub):
    token = await hub.server.registrations.initial_token(60, None)
    assert not await hub.is_good(token)
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await hub.http.post("/oauth/introspect", data={"token": token}, headers=bearer)).status_code == 401
    client = await hub.system_token("system/*.rs")
    answer = await hub.http.post("/oauth/register", json={}, headers={"Authorization": f"Bearer {client}"})
    assert answer.status_code == 401


async def test_secrets_and_tokens_are_in_no_log_and_no_error(hub, caplog):
    caplog.set_level(logging.DEBUG)
    code = await hub.code("post", scope=OFFLINE)
    answer = await hub.exchange(code, "post")
    hidden = [code, SECRET, VERIFIER, *(answer.json()[name] for name in ("access_token", "refresh_token", "id_token"))]
    texts = [(await hub.exchange(code, "post")).text, (await hub.refresh(hidden[4], "post")).text]
    wrong = {"client_id": "post", "client_secret": "an-other-secret", "grant_type": "refresh_token"}
    texts.append((await hub.http.post("/oauth/token", data=wrong)).text)
    for text in (*texts, caplog.text):
        assert not any(one in text for one in (*hidden, "an-other-secret"))


async def test_the_database_holds_no_token_and_no_secret(hub):
    answer = await hub.tokens("basic", scope=OFFLINE)
    (kept,) = await hub.server.tokens.grants.grants(int(time.time()))
    async with hub.database.reading() as connection:
        rows = [
            tuple(row)
            for table in ("client", "access_token", "refresh_token", "authorization_code", "authorization_grant", "signing_key")
            for row in await connection.fetch(f"SELECT * FROM {table}")
        ]
    assert any(kept.id in row for row in rows)
    everything = repr(rows)
    for hidden in (answer["access_token"], answer["refresh_token"], SECRET, '"d":'):
        assert hidden not in everything


# --- JWKS addresses ---


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/jwks",
        "https://localhost/jwks",
        "https://[::1]/jwks",
        "https://10.0.0.1/jwks",
        "https://192.168.1.1/jwks",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:127.0.0.1]/jwks",
        "https://[64:ff9b::7f00:1]/jwks",
        "https://0.0.0.0/jwks",
        "https://2130706433/jwks",
        "http://93.184.216.34/jwks",
        "file:///etc/passwd",
        "gopher://93.184.216.34/jwks",
        "https://",
        "no url",
    ],
)
async def test_ssrf_through_a_jwks_address_inside(url):
    with respx.mock(assert_all_called=False) as network:
        anywhere = network.route().respond(json={"keys": []})
        with pytest.raises(JwksUnavailable):
            await PublishedKeys(allow_private=False).keys(url, "one")
        assert anywhere.call_count == 0


async def test_ssrf_through_a_redirect(monkeypatch):
    async def public(self, url):
        return "93.184.216.34"

    monkeypatch.setattr(Allowed, "address", public)
    with respx.mock(assert_all_called=False) as network:
        network.get("https://93.184.216.34/jwks").respond(302, headers={"Location": "https://127.0.0.1/jwks"})
        inside = network.get("https://127.0.0.1/jwks").respond(json={"keys": []})
        with pytest.raises(JwksUnavailable, match="302"):
            await PublishedKeys(allow_private=False).keys("https://keys.example/jwks", "one")
        assert inside.call_count == 0


async def test_ssrf_through_a_name_that_leads_inside(monkeypatch):
    """A name that means a private address, one among public ones, and one that changes its meaning after the check."""
    loop = asyncio.get_running_loop()
    means = [["10.0.0.7"], ["93.184.216.34", "127.0.0.1"], ["93.184.216.34"], ["127.0.0.1"]]
    real = loop.getaddrinfo

    async def lookup(host, port, **options):
        if host != "keys.example":
            return await real(host, port, **options)
        return [(2, 1, 6, "", (address, 443)) for address in means.pop(0)]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    published = PublishedKeys(allow_private=False)
    for _ in range(2):
        with pytest.raises(JwksUnavailable, match="private"):
            await published.keys("https://keys.example/jwks", "one")
    with respx.mock() as network:  # only the address that was checked is there
        route = network.get("https://93.184.216.34/jwks").mock(return_value=httpx.Response(200, json={"keys": [{"kid": "one"}]}))
        assert await published.keys("https://keys.example/jwks", "one") == [{"kid": "one"}]
        assert route.calls[0].request.headers["Host"] == "keys.example"
        assert route.calls[0].request.extensions["sni_hostname"] == "keys.example"


async def test_a_jwks_that_is_too_large_or_none():
    for content in (b'{"keys": [' + b" " * 300_000 + b"]}", b"[]", b'{"keys": 7}', b'{"keys": null}', b"\xff", b"<html>"):
        with respx.mock() as network:
            network.get("https://keys.example/jwks").respond(content=content)
            with pytest.raises(JwksUnavailable):
                await PublishedKeys(allow_private=True).keys("https://keys.example/jwks", "one")


async def test_characters_that_no_database_keeps(hub):
    bearer = {"Authorization": f"Bearer {await hub.server.registrations.initial_token(60, None)}"}
    for answer in (
        await hub.http.get("/oauth/authorize", params=request(scope="user/Task.rs?code=\x00")),
        await hub.http.post("/oauth/token", data={"grant_type": "refresh_token", "client_id": "public\x00"}),
        await hub.http.post("/oauth/token", data={"grant_type": "refresh_token"}, auth=("basic\x00", SECRET)),
        await hub.http.post("/oauth/introspect", data={"token": "x"}, headers={"Authorization": "Bearer \x01"}),
        await hub.http.get("/oauth/register/%00", headers=bearer),
        await hub.http.post(
            "/oauth/register",
            content=b'{"scope": "user/Task.rs?code=\\ud800", "redirect_uris": ["https://a.example/b"]}',
            headers=bearer,
        ),
    ):
        assert 400 <= answer.status_code < 402, answer.text


async def test_bodies_that_are_too_large(hub):
    large = b"a=" + b"x" * 70_000
    for path in ("token", "introspect", "revoke", "register"):
        assert (await hub.http.post(f"/oauth/{path}", content=large)).status_code in (400, 413)
    assert (await hub.http.post("/oauth/authorize", content=large)).status_code == 400
    many = "&".join(f"p{n}=1" for n in range(500))
    assert (await hub.http.post("/oauth/token", content=many)).status_code == 400
    assert (await hub.http.get(f"/oauth/authorize?{many}")).status_code == 400
