"""Who gets in: assertions, tokens and scopes. https://hl7.org/fhir/smart-app-launch/backend-services.html"""

import time

import pytest
import respx
from joserfc.jwk import ECKey, RSAKey

from .signing import assertion, form, signed_in

STRANGER = ECKey.generate_key("P-384", {"kid": "es"}, private=True)


@pytest.mark.parametrize("alg", ["ES384", "RS384"])
async def test_a_signed_assertion_gets_a_short_lived_token(anonymous, alg):
    answer = await anonymous.post("/oauth/token", data=form(assertion(alg), "system/Patient.rs system/Nonsense.rs"))
    assert answer.status_code == 200
    assert answer.json() | {"access_token": ""} == {
        "access_token": "",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "system/Patient.rs",
    }
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "signed",
    [
        lambda: "not.a.jwt",
        lambda: assertion(key=STRANGER),
        lambda: assertion(kid="another"),
        lambda: assertion(client="nobody"),
        lambda: assertion(sub="someone-else"),
        lambda: assertion(aud="https://elsewhere.example/token"),
        lambda: assertion(exp=int(time.time()) - 60),
        lambda: assertion(exp=int(time.time()) + 900),
        lambda: assertion(exp=None),
        lambda: assertion(jti=None),
        lambda: assertion("RS256", RSAKey.generate_key(2048, {"kid": "rs"}, private=True), "rs"),
    ],
)
async def test_a_doubtful_assertion_gets_invalid_client(anonymous, signed):
    answer = await anonymous.post("/oauth/token", data=form(signed()))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_an_assertion_is_good_once(anonymous):
    signed = assertion()
    assert (await anonymous.post("/oauth/token", data=form(signed))).status_code == 200
    assert (await anonymous.post("/oauth/token", data=form(signed))).json()["error"] == "invalid_client"


async def test_other_grants_and_scopes_are_refused(anonymous):
    refused = await anonymous.post("/oauth/token", data=form(assertion()) | {"grant_type": "password"})
    assert (refused.status_code, refused.json()["error"]) == (400, "unsupported_grant_type")
    refused = await anonymous.post("/oauth/token", data=form(assertion(client="reader"), "system/Task.rs"))
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_scope")


async def test_no_token_a_wrong_one_and_one_that_expired(anonymous, monkeypatch):
    for header in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
        answer = await anonymous.get("/fhir/Patient", headers=header)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    token = {"Authorization": f"Bearer {await signed_in(anonymous)}"}
    assert (await anonymous.get("/fhir/Patient", headers=token)).status_code == 200
    later = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later)
    assert (await anonymous.get("/fhir/Patient", headers=token)).status_code == 401


async def test_a_missing_scope_is_named(anonymous):
    token = {
        "Authorization": f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}",
        "Content-Type": "application/fhir+json",
    }
    assert (await anonymous.get("/fhir/Patient", headers=token)).status_code == 200
    for method, path, scope in (
        ("GET", "Task", "system/Task.s"),
        ("GET", "Task/x", "system/Task.r"),
        ("POST", "Patient", "system/Patient.c"),
    ):
        answer = await anonymous.request(method, f"/fhir/{path}", json={"resourceType": "Patient"}, headers=token)
        assert answer.status_code == 403
        assert scope in answer.json()["issue"][0]["diagnostics"]


async def test_includes_and_chains_do_not_reach_types_without_scope(anonymous):
    full = {"Authorization": f"Bearer {await signed_in(anonymous)}", "Content-Type": "application/fhir+json"}
    organization = (
        await anonymous.post("/fhir/Organization", json={"resourceType": "Organization", "name": "Secret"}, headers=full)
    ).json()
    patient = {"resourceType": "Patient", "managingOrganization": {"reference": f"Organization/{organization['id']}"}}
    await anonymous.post("/fhir/Patient", json=patient, headers=full)
    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"}
    query = "/fhir/Patient?_include=Patient:organization"
    assert len((await anonymous.get(query, headers=full)).json()["entry"]) == 2
    assert len((await anonymous.get(query, headers=narrow)).json()["entry"]) == 1
    chained = "/fhir/Patient?organization.name=Secret"
    assert len((await anonymous.get(chained, headers=full)).json()["entry"]) == 1
    assert "entry" not in (await anonymous.get(chained, headers=narrow)).json()


async def test_published_keys_are_cached_and_never_fetched_from_inside():
    from fhircm.exchange.jwks import JwksUnavailable, PublishedKeys

    keys = [{"kid": "one", "kty": "EC"}]
    with respx.mock() as network:
        route = network.get("https://keys.example/jwks").respond(json={"keys": keys}, headers={"Cache-Control": "max-age=600"})
        published = PublishedKeys(allow_private=True)
        assert await published.keys("https://keys.example/jwks", "one") == keys
        assert await published.keys("https://keys.example/jwks", "one") == keys
        assert route.call_count == 1
    for inside in ("http://127.0.0.1/jwks", "https://127.0.0.1/jwks", "https://localhost/jwks"):
        with pytest.raises(JwksUnavailable):
            await PublishedKeys(allow_private=False).keys(inside, "one")
