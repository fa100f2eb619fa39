"""Dynamic registration: https://www.rfc-editor.org/rfc/rfc7591 and https://www.rfc-editor.org/rfc/rfc7592"""

import jsonschema_rs
import pytest

from fhircm.smart.clients import Client
from tests.rest.signing import BASE

from .flow import BACK, FHIR, JWKS, VERIFIER, request, told

APP = {
    "client_name": "A new app",
    "redirect_uris": [BACK],
    "token_endpoint_auth_method": "none",
    "scope": "openid fhirUser launch/patient patient/*.rs user/*.cruds system/*.rs",
    "grant_types": ["authorization_code", "refresh_token"],
}


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def initial(hub):
    return bearer(await hub.server.registrations.initial_token(3600, "Organization/clinic"))


async def registered(hub, initial, **changes):
    asked = {name: value for name, value in (APP | changes).items() if value is not None}
    answer = await hub.http.post("/oauth/register", json=asked, headers=initial)
    assert answer.status_code == 201, answer.text
    return answer.json()


def keeps_to(told, path, method, answer):
    listed = told["paths"][path][method]["responses"][str(answer.status_code)]
    schema = listed["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for({**schema, "components": told["components"]})
    assert list(validator.iter_errors(answer.json())) == [], answer.text


async def test_a_client_registers_itself_and_signs_a_person_in(hub, initial):
    known = await registered(hub, initial)
    assert known["scope"] == "openid fhirUser launch/patient patient/*.rs user/*.rs"  # as far as the setting allows
    assert known["client_id_issued_at"] > 0
    assert "client_secret" not in known
    asked = await hub.http.get("/oauth/authorize", params=request(client_id=known["client_id"]))
    code = told(await hub.agree(asked))["code"]
    form = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER, "redirect_uri": BACK}
    answer = await hub.http.post("/oauth/token", data=form | {"client_id": known["client_id"]})
    assert answer.json()["patient"] == "pat"
    assert (await hub.server.registrations.credentials.client(known["client_id"]))["organization"] == "Organization/clinic"


async def test_a_secret_is_told_once_and_works(hub, initial):
    known = await registered(hub, initial, token_endpoint_auth_method=None)  # HTTP Basic is the default
    assert known["token_endpoint_auth_method"] == "client_secret_basic"
    assert known["client_secret_expires_at"] == 0
    plain = {"grant_type": "refresh_token", "refresh_token": "x"}
    answer = await hub.http.post("/oauth/token", data=plain, auth=(known["client_id"], known["client_secret"]))
    assert answer.json()["error"] == "invalid_grant"  # who it is was proved
    again = await hub.http.get(known["registration_client_uri"], headers=bearer(known["registration_access_token"]))
    assert "client_secret" not in again.json()
    assert known["client_secret"] not in str(await hub.server.registrations.credentials.client(known["client_id"]))


async def test_a_client_reads_changes_and_deletes_its_registration(hub, initial):
    known = await registered(hub, initial)
    url, own = known["registration_client_uri"], bearer(known["registration_access_token"])
    assert url == f"{BASE}/oauth/register/{known['client_id']}"
    assert (await hub.http.get(url, headers=own)).json()["client_name"] == "A new app"
    fresh = APP | {"client_id": known["client_id"], "redirect_uris": ["https://app.example/new"], "client_name": None}
    changed = await hub.http.put(url, json=fresh, headers=own)
    assert changed.json()["redirect_uris"] == ["https://app.example/new"]
    assert "client_name" not in changed.json()
    kept = await hub.server.registrations.credentials.client(known["client_id"])
    assert (kept["organization"], kept["created"]) == ("Organization/clinic", known["client_id_issued_at"])
    assert (await hub.http.delete(url, headers=own)).status_code == 204
    assert (await hub.http.get(url, headers=own)).status_code == 401
    assert (await hub.http.get("/oauth/authorize", params=request(client_id=known["client_id"]))).status_code == 400


async def test_a_client_that_deletes_itself_ends_its_tokens(hub, initial):
    known = await registered(hub, initial, scope="offline_access patient/*.rs")
    asked = await hub.http.get("/oauth/authorize", params=request(client_id=known["client_id"], scope="patient/*.rs"))
    form = {"grant_type": "authorization_code", "code_verifier": VERIFIER, "redirect_uri": BACK, "client_id": known["client_id"]}
    answer = await hub.http.post("/oauth/token", data=form | {"code": told(await hub.agree(asked))["code"]})
    assert await hub.is_good(answer.json()["access_token"])
    url, own = known["registration_client_uri"], bearer(known["registration_access_token"])
    assert (await hub.http.delete(url, headers=own)).status_code == 204
    assert not await hub.is_good(answer.json()["access_token"])


async def test_a_change_of_the_way_to_prove_who_it_is(hub, initial):
    known = await registered(hub, initial)
    url, own = known["registration_client_uri"], bearer(known["registration_access_token"])
    base = APP | {"client_id": known["client_id"]}
    first = (await hub.http.put(url, json=base | {"token_endpoint_auth_method": "client_secret_post"}, headers=own)).json()
    second = (await hub.http.put(url, json=base | {"token_endpoint_auth_method": "client_secret_basic"}, headers=own)).json()
    assert "client_secret" not in second  # it keeps the one that it has
    credentials = hub.server.registrations.credentials
    client = Client(known["client_id"], await credentials.client(known["client_id"]))
    assert client.has_secret(first["client_secret"])
    signed = base | {"token_endpoint_auth_method": "private_key_jwt", "jwks": JWKS}
    assert (await hub.http.put(url, json=signed, headers=own)).json()["jwks"] == JWKS
    assert "client_secret" not in await credentials.client(known["client_id"])


async def test_registering_takes_a_token_that_is_for_it(hub, passes, initial):
    known = await registered(hub, initial)
    other = await registered(hub, initial)
    for headers in ({}, bearer("nonsense"), bearer(known["registration_access_token"]), {"Authorization": "Basic eDp5"}):
        answer = await hub.http.post("/oauth/register", json=APP, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    url, theirs = known["registration_client_uri"], bearer(other["registration_access_token"])
    assert (await hub.http.get(url, headers=theirs)).status_code == 401
    assert (await hub.http.put(url, json=APP | {"client_id": known["client_id"]}, headers=theirs)).status_code == 401
    assert (await hub.http.delete(url, headers=initial)).status_code == 401
    passes(3601)
    assert (await hub.http.post("/oauth/register", json=APP, headers=initial)).status_code == 401


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"redirect_uris": None}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": BACK}, "invalid_redirect_uri"),
        ({"redirect_uris": [7]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["http://app.example/back"]}, "invalid_redirect_uri"),
        ({"redirect_uris": [BACK, "javascript:alert(1)"]}, "invalid_redirect_uri"),
        ({"software_statement": "eyJ"}, "unapproved_software_statement"),
        ({"scope": "patient/Nonsense.rs"}, "invalid_client_metadata"),
        ({"scope": "system/*.cruds"}, "invalid_client_metadata"),
        ({"scope": 7}, "invalid_client_metadata"),
        ({"scope": "introspect"}, "invalid_client_metadata"),
        ({"grant_types": ["password"]}, "invalid_client_metadata"),
        ({"grant_types": ["implicit"]}, "invalid_client_metadata"),
        ({"grant_types": ["refresh_token"]}, "invalid_client_metadata"),
        ({"grant_types": 7}, "invalid_client_metadata"),
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        ({"response_types": ["token"]}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "client_secret_jwt"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"jwks": JWKS, "jwks_uri": "https://app.example/jwks"}, "invalid_client_metadata"),
        ({"jwks": {"keys": [{"kty": "RSA", "kid": "x", "n": "a", "e": "AQAB", "d": "secret"}]}}, "invalid_client_metadata"),
        ({"jwks": {"keys": [{"kty": "oct", "kid": "x", "k": "secret"}]}}, "invalid_client_metadata"),
        ({"jwks": {"keys": []}}, "invalid_client_metadata"),
        ({"jwks": []}, "invalid_client_metadata"),
        ({"jwks_uri": "http://app.example/jwks"}, "invalid_client_metadata"),
        ({"jwks_uri": "file:///etc/passwd"}, "invalid_client_metadata"),
        ({"logo_uri": "javascript:alert(1)"}, "invalid_client_metadata"),
        ({"launch_uri": "com.example.app:/launch"}, "invalid_client_metadata"),
        ({"client_name": "a\nb"}, "invalid_client_metadata"),
        ({"client_name": ["a"]}, "invalid_client_metadata"),
        ({"id_token_signed_response_alg": "none"}, "invalid_client_metadata"),
        ({"id_token_signed_response_alg": "HS256"}, "invalid_client_metadata"),
    ],
)
async def test_what_cannot_be_registered(hub, initial, changes, error):
    answer = await hub.http.post("/oauth/register", json=APP | changes, headers=initial)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    description = (await hub.http.get("/openapi.json")).json()
    keeps_to(description, "/oauth/register", "post", answer)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 30_000])
async def test_a_body_that_is_no_registration(hub, initial, body):
    answer = await hub.http.post("/oauth/register", content=body, headers=initial)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client_metadata")


async def test_the_answers_keep_to_the_description(hub, initial):
    description = (await hub.http.get("/openapi.json")).json()
    made = await hub.http.post("/oauth/register", json=APP, headers=initial)
    keeps_to(description, "/oauth/register", "post", made)
    own = bearer(made.json()["registration_access_token"])
    read = await hub.http.get(made.json()["registration_client_uri"], headers=own)
    keeps_to(description, "/oauth/register/{client_id}", "get", read)
    token = (await hub.tokens())["access_token"]
    for asked in ({"token": token}, {"token": "nonsense"}, {}):
        keeps_to(description, "/oauth/introspect", "post", await hub.post("/oauth/introspect", "signed", asked))
        keeps_to(description, "/oauth/revoke", "post", await hub.post("/oauth/revoke", "public", asked))
    no = await hub.http.post("/oauth/introspect", data={"token": token}, headers=bearer(await hub.system_token("system/*.rs")))
    keeps_to(description, "/oauth/introspect", "post", no)
    launch = await hub.server.launches.create("public", "anna", {"patient": "p1", "fhirContext": [{"reference": "Task/1"}]})
    code = await hub.code(scope="openid fhirUser launch offline_access patient/*.rs", launch=launch)
    answer = await hub.exchange(code)
    keeps_to(description, "/oauth/token", "post", answer)
    assert (await hub.introspect(answer.json()["access_token"]))["fhirUser"] == f"{FHIR}/Practitioner/anna"
