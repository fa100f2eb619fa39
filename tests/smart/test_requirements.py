"""What SMART App Launch 2.2 asks of a server, one test for each requirement; docs/reference/smart.md lists them.

https://hl7.org/fhir/smart-app-launch/app-launch.html
"""

import time

import httpx
import pytest
import respx
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from fhircm.app import AppConfig, create_app
from fhircm.exchange.jwks import PublishedKeys
from fhircm.smart.authorize import RequestGone
from fhircm.smart.discovery import CAPABILITIES
from fhircm.smart.launch import CODES, LaunchWrong
from fhircm.smart.scopes import SUPPORTED
from fhircm.smart.server import SmartSettings
from tests.rest.conftest import REST
from tests.rest.signing import BASE, KEYS, assertion, form

from .flow import ANNA, BACK, BEN, CHALLENGE, CLIENTS, FHIR, PAT, Hub, request, settle, told

CONFIGURATION = "/fhir/.well-known/smart-configuration"

# --- discovery: https://hl7.org/fhir/smart-app-launch/conformance.html ---


@pytest.mark.parametrize("accept", [None, "application/fhir+json", "text/html", "application/fhir+xml"])
async def test_the_configuration_is_json_whatever_is_accepted(hub, accept):
    answer = await hub.http.get(CONFIGURATION, headers={"Accept": accept} if accept else {})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"


async def test_the_configuration_has_what_must_be_in_it_as_absolute_addresses(hub):
    known = (await hub.http.get(CONFIGURATION)).json()
    assert known["issuer"] == BASE
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "introspection_endpoint", "revocation_endpoint"):
        assert known[name].startswith(f"{BASE}/"), name
    assert {"authorization_code", "client_credentials", "refresh_token"} == set(known["grant_types_supported"])
    assert known["capabilities"] == CAPABILITIES
    assert {"launch-ehr", "launch-standalone", "sso-openid-connect", "authorize-post"} <= set(CAPABILITIES)


async def test_the_configuration_has_s256_and_not_plain(hub):
    assert (await hub.http.get(CONFIGURATION)).json()["code_challenge_methods_supported"] == ["S256"]


async def test_any_origin_may_read_what_is_public(hub):
    for path in (CONFIGURATION, "/.well-known/openid-configuration", "/.well-known/jwks.json"):
        assert (await hub.http.get(path)).headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("scope", [one for one in SUPPORTED if not one.startswith("system/")])
async def test_every_scope_that_is_listed_can_be_granted_to_an_app(hub, scope):
    wider = CLIENTS["public"] | {"scope": " ".join(SUPPORTED)}
    await hub.server.registrations.credentials.add_client("public", wider)
    asked = {"scope": f"user/Task.rs {scope}", "encounter": "e1", "scopes": None}
    if scope == "launch":
        asked["launch"] = await hub.server.launches.create("public", "anna", {"patient": "pat"})
    assert scope in (await hub.tokens(**asked))["scope"].split()


@pytest.mark.parametrize("scope", [one for one in SUPPORTED if one.startswith("system/")])
async def test_every_scope_that_is_listed_can_be_granted_to_a_system(hub, scope):
    answer = await hub.http.post("/oauth/token", data=form(assertion(), scope))
    assert answer.json()["scope"] == scope


async def test_openid_discovery_tells_the_same_server(hub):
    known = (await hub.http.get("/.well-known/openid-configuration")).json()
    assert known["issuer"] == BASE
    assert "RS256" in known["id_token_signing_alg_values_supported"]
    smart = (await hub.http.get(CONFIGURATION)).json()
    assert {name: known[name] for name in known if name.endswith("_endpoint") or name == "jwks_uri"} == {
        name: smart[name] for name in smart if name.endswith("_endpoint") or name == "jwks_uri"
    }


async def test_the_capability_statement_tells_the_same_server_to_older_apps(hub):
    security = (await hub.http.get("/fhir/metadata")).json()["rest"][0]["security"]
    (told,) = [one for one in security["extension"] if one["url"].endswith("/oauth-uris")]
    smart = (await hub.http.get(CONFIGURATION)).json()
    names = {"authorize": "authorization", "token": "token", "register": "registration"}
    names |= {"introspect": "introspection", "revoke": "revocation"}
    assert {one["url"]: one["valueUri"] for one in told["extension"]} == {
        name: smart[f"{known}_endpoint"] for name, known in names.items()
    }


# --- the authorization endpoint: https://hl7.org/fhir/smart-app-launch/app-launch.html#obtain-authorization-code ---


async def test_the_authorization_endpoint_takes_get_and_post(hub):
    for answer in (await hub.ask(), await hub.http.post("/oauth/authorize", data=request())):
        assert answer.status_code == 303
        assert answer.headers["Location"].startswith(f"{BASE}/oauth/authorize/")
        assert answer.headers["Cache-Control"] == "no-store"


async def test_pkce_is_required(hub):
    assert await hub.refused(code_challenge=None, code_challenge_method=None) == "invalid_request"
    assert await hub.refused(code_challenge=None) == "invalid_request"


async def test_pkce_plain_is_refused(hub):
    assert await hub.refused(code_challenge_method="plain") == "invalid_request"
    assert await hub.refused(code_challenge_method=None) == "invalid_request"  # which would mean plain: RFC 7636 section 4.3


async def test_the_code_verifier_is_required_and_verified(hub):
    for verifier in (None, "x" * 43, CHALLENGE):
        answer = await hub.exchange(await hub.code(), code_verifier=verifier)
        assert answer.status_code == 400
        assert answer.json()["error"] == ("invalid_request" if verifier is None else "invalid_grant")


@pytest.mark.parametrize("uri", [None, "https://app.example/other", f"{BACK}/", f"{BACK}?more=1"])
async def test_the_redirect_uri_is_one_that_is_registered(hub, uri):
    answer = await hub.ask(redirect_uri=uri)
    assert answer.status_code == 400
    assert "Location" not in answer.headers


async def test_state_is_required_and_comes_back_unchanged(hub):
    assert await hub.refused(state=None) == "invalid_request"
    odd = "a b&c=d/é+%20"
    assert told(await hub.agree(await hub.ask(state=odd)))["state"] == odd


async def test_response_type_is_code(hub):
    assert await hub.refused(response_type="token") == "unsupported_response_type"
    assert await hub.refused(response_type="code id_token") == "unsupported_response_type"
    assert await hub.refused(response_type=None) == "invalid_request"


async def test_aud_is_required_and_must_be_this_server(hub):
    assert await hub.refused(aud=None) == "invalid_target"
    assert await hub.refused(aud="https://elsewhere.example/fhir") == "invalid_request"
    assert (await hub.ask(aud=f"{FHIR}/")).headers["Location"].startswith(f"{BASE}/oauth/authorize/")


async def test_resource_is_a_synonym_of_aud(hub):
    assert (await hub.ask(aud=None, resource=FHIR)).headers["Location"].startswith(f"{BASE}/oauth/authorize/")
    assert await hub.refused(resource="https://elsewhere.example/fhir") == "invalid_request"


async def test_a_code_lives_a_minute(hub, passes):
    code = await hub.code()
    passes(61)
    assert (await hub.exchange(code)).json()["error"] == "invalid_grant"


async def test_a_request_waits_ten_minutes_for_its_person(hub, passes):
    id = hub.waiting(await hub.ask())
    passes(599)
    assert (await hub.server.authorizations.pending(id)).client_id == "public"
    passes(2)
    assert await hub.server.authorizations.pending(id) is None
    with pytest.raises(RequestGone):
        await hub.server.authorizations.complete(id, ANNA, patient="pat", scopes=["openid"], session_digest=ANNA.session)
    with pytest.raises(RequestGone):
        await hub.server.authorizations.refuse(id, "access_denied")


async def test_a_person_who_does_not_agree_sends_the_app_back_with_access_denied(hub):
    id = (await hub.ask()).headers["Location"].rpartition("/")[2]
    back = told(await hub.server.authorizations.refuse(id, "access_denied"))
    assert (back["error"], back["state"], back["iss"]) == ("access_denied", request()["state"], BASE)


# --- token answers: https://hl7.org/fhir/smart-app-launch/app-launch.html#response-5 ---


@pytest.mark.parametrize("client", ["public", "basic", "post", "signed"])
async def test_clients_of_every_kind_get_tokens(hub, client):
    answer = await hub.exchange(await hub.code(client), client)
    assert answer.status_code == 200
    assert {"access_token", "token_type", "expires_in", "scope", "id_token", "patient"} <= answer.json().keys()
    assert answer.json()["token_type"] == "Bearer"
    assert await hub.is_good(answer.json()["access_token"])


async def test_token_answers_are_not_stored(hub):
    good, wrong = await hub.exchange(await hub.code()), await hub.exchange("nonsense")
    for answer in (good, wrong, await hub.http.post("/oauth/token", data={})):
        assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")


async def test_access_tokens_live_an_hour_at_most(hub, passes):
    answer = await hub.tokens()
    assert answer["expires_in"] == 900
    assert await hub.is_good(answer["access_token"])
    passes(901)
    assert not await hub.is_good(answer["access_token"])


async def test_the_redirect_uri_of_the_code_is_told_again(hub):
    assert (await hub.exchange(await hub.code(), redirect_uri="https://app.example/other")).json()["error"] == "invalid_grant"
    assert (await hub.exchange(await hub.code(), redirect_uri=None)).json()["error"] == "invalid_request"


# --- scopes: https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html ---


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("patient/Observation.rs", "patient/Observation.rs"),
        ("patient/Observation.read", "patient/Observation.read"),
        ("patient/Observation.sr user/Task.r", "user/Task.r"),  # letters out of order
        ("user/Nonsense.rs user/Task.r", "user/Task.r"),
        ("system/Task.rs user/Task.r", "user/Task.r"),  # an app of a person is no system
        ("user/Observation.rs?category=vital-signs", "user/Observation.rs?category=vital-signs"),
        ("whatever user/Task.r", "user/Task.r"),
    ],
)
async def test_scopes_of_both_versions_are_granted_as_far_as_they_are_known(hub, asked, given):
    assert (await hub.tokens(scope=asked))["scope"] == given


async def test_what_is_granted_is_what_is_registered(hub):
    narrow = CLIENTS["public"] | {"scope": "openid patient/Observation.rs"}
    await hub.server.registrations.credentials.add_client("public", narrow)
    assert (await hub.tokens(scope="openid fhirUser patient/*.cruds"))["scope"] == "openid patient/Observation.rs"
    assert await hub.refused(scope="user/Task.rs") == "invalid_scope"


async def test_what_is_granted_is_what_the_person_may_do(hub):
    scope = (await hub.tokens(scope="patient/Observation.cruds patient/Task.cruds", person=PAT))["scope"].split()
    assert sorted(scope) == ["patient/Observation.crus", "patient/Task.rs"]


async def test_what_is_granted_is_what_the_person_agreed_to(hub):
    answer = await hub.tokens(scope="openid user/Task.rs user/Patient.rs", scopes=["openid", "user/Patient.rs", "user/*.cruds"])
    assert answer["scope"] == "openid user/Patient.rs"
    location = await hub.agree(await hub.ask(), scopes=[])
    assert told(location)["error"] == "access_denied"


async def test_patient_scopes_come_with_a_patient_in_context(hub):
    answer = await hub.tokens(scope="patient/Observation.rs")
    assert answer["patient"] == "pat"
    without = await hub.tokens(scope="user/Task.rs patient/Observation.rs launch/patient", patient=None)
    assert (without["scope"], "patient" in without) == ("user/Task.rs", False)


async def test_a_patient_is_the_patient_in_context(hub):
    assert (await hub.tokens(person=PAT, patient="somebody-else"))["patient"] == "pat"


async def test_without_launch_patient_no_patient_is_chosen(hub):
    assert "patient" not in await hub.tokens(scope="user/Task.rs")


# --- launches: https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch ---

CONTEXT = {
    "patient": "p1",
    "encounter": "e1",
    "fhirContext": [{"reference": "Task/t1"}, {"canonical": "http://example.org/q|1", "type": "Questionnaire"}],
    "need_patient_banner": False,
    "intent": "reconcile-medications",
    "smart_style_url": "https://hub.example/style.json",
    "tenant": "t-1",
}
EHR = "openid fhirUser launch patient/*.rs"


async def test_an_ehr_launch_gives_the_app_its_context(hub):
    launch = await hub.server.launches.create("public", "anna", CONTEXT)
    answer = await hub.tokens(scope=EHR, launch=launch, patient="another-patient")
    assert {name: answer[name] for name in CONTEXT} == CONTEXT
    assert "launch" in answer["scope"].split()


async def test_an_ehr_launch_opens_the_registered_address_with_iss_and_launch(hub):
    url = await hub.server.launches.url("public", "anna", {"patient": "p1"})
    assert url.startswith("https://app.example/launch?")
    assert told(url)["iss"] == FHIR
    answer = await hub.tokens(scope=EHR, launch=told(url)["launch"])
    assert (answer["patient"], answer["need_patient_banner"], answer["tenant"]) == ("p1", True, "clinic")
    style = await hub.http.get(answer["smart_style_url"])
    assert style.json()["color_background"].startswith("#")


async def test_a_launch_is_good_once_for_five_minutes_and_for_one_app(hub, passes):
    launch = await hub.server.launches.create("public", "anna", CONTEXT)
    assert (await hub.ask(scope=EHR, launch=launch)).headers["Location"].startswith(f"{BASE}/oauth/authorize/")
    assert await hub.refused(scope=EHR, launch=launch) == "invalid_request"
    assert await hub.refused(scope=EHR, launch=await hub.server.launches.create("other", "anna", CONTEXT)) == "invalid_request"
    old = await hub.server.launches.create("public", "anna", CONTEXT)
    passes(301)
    assert await hub.refused(scope=EHR, launch=old) == "invalid_request"


async def test_a_launch_is_for_the_person_who_made_it(hub):
    launch = await hub.server.launches.create("public", "anna", CONTEXT)
    location = await hub.agree(await hub.ask(scope=EHR, launch=launch), BEN)
    assert told(location)["error"] == "access_denied"


async def test_a_launch_needs_the_scope_launch(hub):
    launch = await hub.server.launches.create("public", "anna", CONTEXT)
    assert await hub.refused(scope="patient/*.rs", launch=launch) == "invalid_scope"


async def test_a_standalone_launch_gets_the_patient_and_encounter_that_the_person_chose(hub):
    answer = await hub.tokens(scope="launch/patient launch/encounter patient/*.rs", patient="p9", encounter="e9")
    assert (answer["patient"], answer["encounter"]) == ("p9", "e9")
    assert "tenant" not in answer


@pytest.mark.parametrize(
    "wrong",
    [
        {"fhirContext": [{"reference": "Patient/p1"}]},
        {"fhirContext": [{"reference": "https://hub.example/fhir/Encounter/e1"}]},
        {"fhirContext": [{"role": "launch"}]},
        {"fhirContext": "Task/t1"},
        {"need_patient_banner": "yes"},
        {"login": "ben"},
        {"user": "Practitioner/ben"},
        {"patient": 7},
    ],
)
async def test_a_launch_context_says_what_smart_knows(hub, wrong):
    with pytest.raises(LaunchWrong):
        await hub.server.launches.create("public", "anna", wrong)
    other = {"fhirContext": [{"reference": "Patient/twin", "role": "https://example.org/role/donor"}]}
    assert await hub.server.launches.create("public", "anna", other)


async def test_a_registered_launcher_launches_apps_for_whoever_signs_in(hub):
    bearer = {"Authorization": f"Bearer {await hub.system_token('launcher')}"}
    launched = await hub.http.post("/oauth/launch", json={"client_id": "public"} | CONTEXT, headers=bearer)
    assert launched.json()["iss"] == FHIR
    answer = await hub.tokens(scope=EHR, launch=launched.json()["launch"], person=BEN)
    assert {name: answer[name] for name in CONTEXT} == CONTEXT
    for body in ({}, [], {"client_id": "nobody"}, {"client_id": 7}, {"client_id": "public", "login": "anna"}):
        wrong = await hub.http.post("/oauth/launch", json=body, headers=bearer)
        assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_request")
    reader = {"Authorization": f"Bearer {await hub.system_token('system/*.rs')}"}
    for headers, status in (({}, 401), (reader, 403)):
        assert (await hub.http.post("/oauth/launch", json={"client_id": "public"}, headers=headers)).status_code == status


def task(code, application="https://app.example/launch"):
    coded = {"coding": [{"system": CODES, "code": code}]}
    return {
        "resourceType": "Task",
        "id": "t7",
        "code": coded,
        "for": {"reference": "Patient/p7"},
        "encounter": {"reference": f"{FHIR}/Encounter/e7"},
        "input": [
            {"type": {"coding": [{"system": CODES, "code": "smartonfhir-application"}]}, "valueUrl": application},
            {"type": {"coding": [{"system": CODES, "code": "smartonfhir-appcontext"}]}, "valueString": '{"form":"phq9"}'},
        ],
    }


async def test_a_task_asks_for_an_ehr_launch(hub):
    url = await hub.server.launches.url_for_task(task("launch-app-ehr"), "anna")
    assert url.startswith("https://app.example/launch?")
    answer = await hub.tokens(scope=EHR, launch=told(url)["launch"])
    assert (answer["patient"], answer["encounter"], answer["appContext"]) == ("p7", "e7", '{"form":"phq9"}')
    assert answer["fhirContext"] == [{"reference": "Task/t7"}]


async def test_a_task_asks_for_a_standalone_launch(hub):
    assert await hub.server.launches.url_for_task(task("launch-app-standalone"), "anna") == "https://app.example/launch"


async def test_a_task_opens_no_address_that_is_not_registered(hub):
    for wrong in (task("launch-app-ehr", "https://evil.example/launch"), task("other"), {"resourceType": "Task"}):
        with pytest.raises(LaunchWrong):
            await hub.server.launches.url_for_task(wrong, "anna")


# --- identity: https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-identity-data ---


async def verified(hub, id_token, algorithm):
    keys = KeySet.import_key_set((await hub.http.get("/.well-known/jwks.json")).json())
    return jwt.decode(id_token, keys, algorithms=[algorithm])


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "ES384"])
async def test_an_identity_token_tells_who_the_person_is(hub, algorithm):
    registration = CLIENTS["public"] | {"id_token_signed_response_alg": algorithm}
    if algorithm == "RS256":
        del registration["id_token_signed_response_alg"]  # the default
    await hub.server.registrations.credentials.add_client("public", registration)
    token = await verified(hub, (await hub.tokens(nonce="n-1"))["id_token"], algorithm)
    claims, now = token.claims, time.time()
    assert (claims["iss"], claims["sub"], claims["aud"], claims["nonce"]) == (BASE, "anna", "public", "n-1")
    assert claims["fhirUser"] == f"{FHIR}/Practitioner/anna"
    assert now - 60 < claims["iat"] <= now < claims["exp"] < now + 3600
    assert abs(claims["auth_time"] - now) < 60
    assert token.header["alg"] == algorithm


async def test_an_identity_token_is_given_only_for_openid_and_fhir_user_only_for_its_scope(hub):
    assert "id_token" not in await hub.tokens(scope="fhirUser user/Task.rs")
    token = await verified(hub, (await hub.tokens(scope="openid user/Task.rs"))["id_token"], "ES384")
    assert "fhirUser" not in token.claims


async def test_the_keys_are_published_as_bare_jwks_without_private_parts(hub):
    await hub.tokens()
    keys = (await hub.http.get("/.well-known/jwks.json")).json()["keys"]
    assert keys
    assert all({"kty", "kid", "alg", "use"} <= key.keys() and not {"d", "p", "q"} & key.keys() for key in keys)


async def test_a_retired_key_stays_published_while_its_tokens_live(hub, passes):
    before = (await hub.tokens())["id_token"]
    (fresh,) = await hub.server.keys.rotate()
    passes(500)
    assert (await verified(hub, before, "ES384")).claims["sub"] == "anna"
    after = await verified(hub, (await hub.tokens())["id_token"], "ES384")
    assert after.header["kid"] == fresh
    passes(5000)
    assert [key["kid"] for key in (await hub.http.get("/.well-known/jwks.json")).json()["keys"]] == [fresh]


@pytest.mark.parametrize(
    ("changes", "passed", "outcome"),
    [
        ({"max_age": "100"}, 0, "code"),
        ({"max_age": "100"}, 200, "error"),
        ({"prompt": "login"}, 5, "error"),
        ({"prompt": "none"}, 200, "code"),
    ],
)
async def test_max_age_and_prompt_are_kept_to(hub, passes, changes, passed, outcome):
    passes(passed)
    back = told(await hub.agree(await hub.ask(**changes)))
    assert outcome in back
    assert back.get("error", "login_required") == "login_required"


async def test_prompt_none_goes_with_no_other(hub):
    assert await hub.refused(prompt="none login") == "invalid_request"
    assert await hub.refused(prompt="whatever") == "invalid_request"
    assert await hub.refused(max_age="soon") == "invalid_request"


# --- refresh tokens: https://hl7.org/fhir/smart-app-launch/app-launch.html#refresh-access-token ---


async def test_offline_access_gives_a_refresh_token_that_outlives_the_session(hub, passes):
    answer = await hub.tokens(scope="offline_access launch/patient patient/*.rs")
    await hub.forbid("DELETE FROM session")
    passes(80 * 86_400)
    again = await hub.refresh(answer["refresh_token"])
    assert again.status_code == 200
    assert again.json()["scope"] == answer["scope"]
    assert again.json()["patient"] == "pat"
    assert again.json()["refresh_token"] != answer["refresh_token"]
    assert again.headers["Cache-Control"] == "no-store"
    passes(11 * 86_400)
    assert (await hub.refresh(again.json()["refresh_token"])).json()["error"] == "invalid_grant"


async def test_online_access_ends_with_the_session(hub):
    answer = await hub.tokens(scope="online_access user/Task.rs")
    again = (await hub.refresh(answer["refresh_token"])).json()
    await hub.forbid("DELETE FROM session WHERE login_id = $1", "anna")
    assert (await hub.refresh(again["refresh_token"])).json()["error"] == "invalid_grant"


async def test_no_refresh_token_without_its_scope_or_its_grant_type(hub):
    assert "refresh_token" not in await hub.tokens(scope="user/Task.rs")
    plain = CLIENTS["public"] | {"grant_types": ["authorization_code"]}
    await hub.server.registrations.credentials.add_client("public", plain)
    assert "refresh_token" not in await hub.tokens(scope="offline_access user/Task.rs")


async def test_a_refresh_may_narrow_the_scope_and_later_ask_for_all_again(hub):
    answer = await hub.tokens(scope="offline_access user/Task.rs user/Patient.rs")
    narrow = (await hub.refresh(answer["refresh_token"], scope="user/Task.r")).json()
    assert narrow["scope"] == "user/Task.r"
    assert (await hub.refresh(narrow["refresh_token"])).json()["scope"] == answer["scope"]


async def test_the_refresh_token_of_a_public_app_says_whose_it_is(hub):
    async def alone(token):
        return await hub.http.post("/oauth/token", data={"grant_type": "refresh_token", "refresh_token": token})

    answer = await hub.tokens(scope="offline_access user/Task.rs")
    again = await alone(answer["refresh_token"])
    assert again.status_code == 200, again.text
    assert again.json()["scope"] == answer["scope"]
    signed = await hub.tokens("signed", scope="offline_access user/Task.rs")
    refused = [await alone(token) for token in (signed["refresh_token"], "not-a-token", "")]
    assert [(one.status_code, one.json()["error"]) for one in refused] == [(401, "invalid_client")] * 3
    assert (await hub.refresh(signed["refresh_token"], "signed")).status_code == 200
    assert (await alone(answer["refresh_token"])).json()["error"] == "invalid_grant"  # the second time
    assert not await hub.is_good(again.json()["access_token"])


# --- introspection and revocation: https://hl7.org/fhir/smart-app-launch/token-introspection.html ---


async def test_introspection_tells_scope_client_and_expiry(hub):
    answer = await hub.tokens(scope="user/Task.rs")
    found = await hub.introspect(answer["access_token"])
    assert (found["active"], found["scope"], found["client_id"]) == (True, "user/Task.rs", "public")
    assert abs(found["exp"] - time.time() - 900) < 60


async def test_introspection_tells_the_launch_context_of_the_token_answer(hub):
    launch = await hub.server.launches.create("public", "anna", CONTEXT)
    found = await hub.introspect((await hub.tokens(scope=EHR, launch=launch))["access_token"])
    assert {name: found[name] for name in CONTEXT} == CONTEXT


async def test_introspection_tells_who_the_person_is_when_an_identity_token_did(hub):
    found = await hub.introspect((await hub.tokens())["access_token"])
    assert (found["iss"], found["sub"], found["fhirUser"]) == (BASE, "anna", f"{FHIR}/Practitioner/anna")
    assert "sub" not in await hub.introspect((await hub.tokens(scope="user/Task.rs"))["access_token"])


async def test_introspection_takes_a_bearer_token_with_the_scope_for_it(hub):
    token = (await hub.tokens())["access_token"]
    for scope, status in (("introspect", 200), ("system/*.rs", 403)):
        bearer = {"Authorization": f"Bearer {await hub.system_token(scope)}"}
        answer = await hub.http.post("/oauth/introspect", data={"token": token}, headers=bearer)
        assert answer.status_code == status
    for header in ({}, {"Authorization": "Bearer nonsense"}):
        assert (await hub.http.post("/oauth/introspect", data={"token": token}, headers=header)).status_code == 401


async def test_introspection_tells_a_client_of_its_own_tokens_only(hub):
    mine, other = (await hub.tokens("basic"))["access_token"], (await hub.tokens("post"))["access_token"]
    assert (await hub.introspect(mine, "basic"))["active"] is True
    assert await hub.introspect(other, "basic") == {"active": False}
    assert (await hub.post("/oauth/introspect", "public", {"token": mine})).status_code == 401


async def test_what_is_worth_nothing_is_not_active(hub, passes):
    token = (await hub.tokens())["access_token"]
    assert await hub.introspect("nonsense") == {"active": False}
    passes(901)
    assert await hub.introspect(token) == {"active": False}


async def test_revoking_an_access_token_ends_it(hub):
    token = (await hub.tokens())["access_token"]
    assert await hub.is_good(token)
    assert (await hub.post("/oauth/revoke", "public", {"token": token})).status_code == 200
    assert not await hub.is_good(token)


async def test_revoking_a_refresh_token_ends_everything_that_was_granted(hub):
    answer = await hub.tokens(scope="offline_access user/Task.rs")
    again = (await hub.refresh(answer["refresh_token"])).json()
    assert (await hub.post("/oauth/revoke", "public", {"token": answer["refresh_token"]})).status_code == 200
    assert not await hub.is_good(answer["access_token"])
    assert not await hub.is_good(again["access_token"])
    assert (await hub.refresh(again["refresh_token"])).json()["error"] == "invalid_grant"


async def test_revoking_what_is_not_known_is_no_error_and_of_another_client_is(hub):
    assert (await hub.post("/oauth/revoke", "public", {"token": "nonsense"})).status_code == 200
    answer = await hub.tokens(scope="offline_access user/Task.rs")
    assert (await hub.post("/oauth/revoke", "other", {"token": answer["refresh_token"]})).status_code == 400
    await hub.post("/oauth/revoke", "other", {"token": answer["access_token"]})
    assert await hub.is_good(answer["access_token"])


# --- backend services: https://hl7.org/fhir/smart-app-launch/backend-services.html ---


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
async def test_a_system_gets_a_token_for_five_minutes_and_no_refresh_token(hub, algorithm):
    answer = await hub.http.post("/oauth/token", data=form(assertion(algorithm), "system/Task.rs"))
    assert answer.json().keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert answer.json()["expires_in"] == 300


async def test_client_credentials_take_an_assertion_and_nothing_less(hub):
    for client in ("public", "basic", "post", "signed"):
        asked = {"grant_type": "client_credentials", "scope": "system/*.rs"}
        assert (await hub.post("/oauth/token", client, asked)).json()["error"] == "unauthorized_client"


async def test_lifetimes_are_settings(database_url, clock, tmp_path):
    settings = SmartSettings(access_token_lifetime=120, refresh_lifetime=7200, registration_scopes="openid user/Task.r")
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, [], smart=settings))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
        await settle(app.state.store.database)
        hub = Hub(app, http)
        assert (await hub.tokens(scope="offline_access user/Task.rs"))["expires_in"] == 120
        (grant,) = await hub.server.tokens.grants.grants(int(time.time()))
        assert grant.expires - grant.created == 7200
        token = await hub.server.registrations.initial_token(60, None)
        asked = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none"}
        made = await http.post("/oauth/register", json=asked, headers={"Authorization": f"Bearer {token}"})
        assert made.json()["scope"] == "openid user/Task.r"


@pytest.mark.parametrize("member", ["jwks_uri", "jwks_url"])  # the latter is how the command line once wrote it
async def test_keys_are_taken_from_a_jwks_url_as_long_as_its_headers_allow(hub, monkeypatch, member):
    url = "https://keys.example/jwks"
    registration = {"scope": "system/*.rs", member: url, "roles": ["custodian"]}
    await hub.server.registrations.credentials.add_client("app", registration)
    published = hub.server.tokens.authentication.published
    monkeypatch.setattr(published, "_allow_private", True)  # there is no name service here
    keys = {"keys": [KEYS["ES384"].as_dict(private=False)]}
    with respx.mock() as network:
        route = network.get(url).mock(return_value=httpx.Response(200, json=keys, headers={"Cache-Control": "no-store"}))
        for count in (1, 2):  # what must not be stored is fetched each time
            assert (await hub.http.post("/oauth/token", data=form(assertion(), "system/*.rs"))).status_code == 200
            assert route.call_count == count


async def test_a_key_is_found_by_kid_and_type_exactly_once(hub):
    twin = ECKey.generate_key("P-384", {"kid": "es"}, private=True)
    double = {"keys": [KEYS["ES384"].as_dict(private=False), twin.as_dict(private=False)]}
    await hub.server.registrations.credentials.add_client("app", {"scope": "system/*.rs", "jwks": double})
    answer = await hub.http.post("/oauth/token", data=form(assertion(), "system/*.rs"))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_an_unknown_kid_is_looked_for_anew():
    published = PublishedKeys(allow_private=True)
    with respx.mock() as network:
        route = network.get("https://keys.example/jwks").respond(json={"keys": []}, headers={"Cache-Control": "max-age=600"})
        published._cached["https://keys.example/jwks"] = (0.0, time.monotonic() + 600, [])
        assert await published.keys("https://keys.example/jwks", "new") == []
        assert route.call_count == 1
