"""The hub is launched by an EHR: what is asked, what is believed, and what is not."""

import base64
import hashlib
import json
import re

import pytest
import respx
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fhircm.exchange import jwks
from fhircm.exchange.client_keys import public_jwks
from fhircm.exchange.credentials import Secret
from fhircm.exchange.launch import ALGORITHMS, EhrLaunches, LaunchRefused, LaunchUnavailable, Registration, ask_for, read
from fhircm.exchange.mapping import Source, hub_id
from fhircm.exchange.yaml_keys import Keys, YamlWrong
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put

from ..launching_ehr import LaunchingEhr, query

HUB = "https://hub.example"


@pytest.fixture
def network():
    with respx.mock(assert_all_called=False) as mocked:
        yield mocked


@pytest.fixture
def ehr(network):
    one = LaunchingEhr("north", HUB)
    one.mount(network)
    return one


@pytest.fixture
def hub(ehr, tmp_path):
    return EhrLaunches([ehr.partner()], tmp_path / "keys", HUB, now=lambda: ehr.now)


async def launched(hub, ehr, user="Practitioner/p1", patient="p-7", **context):
    partner = hub.by_address(ehr.base_url)
    started = await hub.start(partner, ehr.door.launch(user, patient, **context), ehr.base_url)
    return await hub.finish(started.kept, query(await ehr.authorized(started.url)))


async def test_a_launch_asks_what_smart_asks_for_and_tells_who_and_for_whom(hub, ehr):
    partner = hub.by_address(ehr.base_url)
    launch = ehr.door.launch("Practitioner/p1", "p-7", need_patient_banner=False)
    started = await hub.start(partner, launch, ehr.base_url)
    asked = query(started.url)
    assert (asked["response_type"], asked["client_id"], asked["aud"]) == ("code", "the hub", ehr.base_url)
    assert asked["redirect_uri"] == f"{HUB}/launch/callback/north"
    assert asked["scope"] == "launch openid fhirUser"
    assert asked["launch"] == launch
    assert asked["code_challenge_method"] == "S256"
    assert len(asked["state"]) >= 43
    assert asked["state"] != asked["nonce"]
    found = await hub.finish(started.kept, query(await ehr.authorized(started.url)))
    assert (found.user, found.patient, found.banner) == (Source("Practitioner", "p1"), "p-7", False)
    assert found.fhir_user == f"Practitioner/{hub_id(ehr.base_url, 'Practitioner/p1')}"
    assert found.hub_patient == hub_id(ehr.base_url, "Patient/p-7")
    assert found.issuer == "partner:north"
    assert found.organization == f"Organization/{hub_id(ehr.base_url, f'Organization/{partner.organization.id}')}"


async def test_a_standalone_launch_asks_for_no_launch_context(hub, ehr):
    ehr.door.standalone = {"user": "Practitioner/p2"}
    started = await hub.start(hub.by_name("north"), None)
    asked = query(started.url)
    assert "launch" not in asked
    assert asked["scope"] == "openid fhirUser"
    found = await hub.finish(started.kept, query(await ehr.authorized(started.url)))
    assert (found.user, found.patient, found.banner) == (Source("Practitioner", "p2"), None, True)


def test_only_the_very_address_of_a_partner_may_launch(hub, ehr):
    assert hub.by_address(f"{ehr.base_url}/") is not None
    for iss in ("", ehr.server, f"{ehr.base_url}//", f"{ehr.base_url}/x", f"{ehr.base_url}?", ehr.base_url.upper()):
        assert hub.by_address(iss) is None
    assert hub.by_address(f"https://north.example@evil.example{'/fhir'}") is None
    assert hub.by_name("south") is None


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_confidential_app_proves_who_it_is(network, tmp_path, method):
    ehr = LaunchingEhr("south", HUB, method, "s/ecret: one")
    ehr.mount(network)
    (tmp_path / "secret").write_text("s/ecret: one\n")
    hub = EhrLaunches([ehr.partner(method=method, secret=Secret(tmp_path / "secret"))], tmp_path, HUB, now=lambda: ehr.now)
    assert (await launched(hub, ehr)).patient == "p-7"
    (tmp_path / "secret").write_text("another")
    with pytest.raises(LaunchRefused, match="invalid_client"):
        await launched(hub, ehr)
    (tmp_path / "secret").unlink()
    with pytest.raises(LaunchUnavailable, match="cannot be read"):
        await launched(hub, ehr)


async def test_a_confidential_app_may_sign(network, tmp_path):
    ehr = LaunchingEhr("south", HUB, "private_key_jwt")
    ehr.mount(network)

    async def published():
        return public_jwks(tmp_path)["keys"]

    ehr.door.sign_in.keys = published
    hub = EhrLaunches([ehr.partner(method="private_key_jwt", algorithm="RS384")], tmp_path, HUB, now=lambda: ehr.now)
    assert (await launched(hub, ehr)).user == Source("Practitioner", "p1")


LIES = [
    ({"nonce": "of another sign-in"}, "nonce"),
    ({"nonce": None}, "nonce"),
    ({"iss": "https://evil.example"}, "another issuer"),
    ({"aud": "another client"}, "another client"),
    ({"aud": ["the hub", "another client"]}, "another client"),
    ({"azp": "another client"}, "another client"),
    ({"exp": 1_000_000_000}, "expired"),
    ({"exp": None}, "expired"),
    ({"iat": 9_000_000_000}, "future"),
    ({"sub": ""}, "who it is about"),
]


@pytest.mark.parametrize(("lie", "told"), LIES)
async def test_an_id_token_that_is_not_for_this_launch_is_refused(hub, ehr, lie, told):
    ehr.lie = lie
    with pytest.raises(LaunchRefused, match=told):
        await launched(hub, ehr)


async def test_an_id_token_without_signature_or_with_a_secret_or_by_another_key_is_refused(hub, ehr):
    claims = {"iss": ehr.server, "aud": "the hub", "sub": "x", "exp": ehr.now + 300, "iat": ehr.now}
    none = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    )
    ehr.token = f"{none}."
    with pytest.raises(LaunchRefused, match="not accepted"):
        await launched(hub, ehr)
    ehr.token = "x"
    with pytest.raises(LaunchRefused, match="no id_token"):
        await launched(hub, ehr)
    ehr.token = None
    ehr.key, ehr.header = OctKey.import_key(json.dumps(ehr.door.key.as_dict(private=False))), {"alg": "HS256"}
    with pytest.raises(LaunchRefused, match="not accepted"):
        await launched(hub, ehr)
    ehr.key, ehr.header = RSAKey.generate_key(2048, private=True), {}
    with pytest.raises(LaunchRefused, match="signature"):
        await launched(hub, ehr)
    assert "none" not in ALGORITHMS


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_id_tokens_are_taken_in_each_algorithm_of_the_list(hub, ehr, algorithm):
    curves, about = {"ES256": "P-256", "ES384": "P-384"}, {"use": "sig", "alg": algorithm}
    kind = curves.get(algorithm)
    key = ECKey.generate_key(kind, about, auto_kid=True) if kind else RSAKey.generate_key(2048, about, auto_kid=True)

    def signed(asked, user, _):
        claims = {
            "iss": ehr.server,
            "sub": "1",
            "aud": "the hub",
            "iat": int(ehr.now),
            "exp": int(ehr.now) + 60,
            "fhirUser": user,
        }
        return jwt.encode({"alg": algorithm, "kid": key.kid}, claims | {"nonce": asked["nonce"]}, key, algorithms=[algorithm])

    ehr.door.key, ehr.door.id_token = key, signed
    assert (await launched(hub, ehr)).user == Source("Practitioner", "p1")


async def test_an_answer_of_another_sign_in_or_server_is_refused(hub, ehr):
    partner = hub.by_address(ehr.base_url)
    one = await hub.start(partner, ehr.door.launch("Practitioner/p1", "p-7"), ehr.base_url)
    answer = query(await ehr.authorized(one.url))
    other = await hub.start(partner, ehr.door.launch("Practitioner/p1", "p-8"), ehr.base_url)
    for changed, told in (
        ({"state": query(other.url)["state"]}, "state"),
        ({"state": ""}, "state"),
        ({"iss": "https://evil.example"}, "iss"),
        ({"iss": None}, "iss"),
        ({"code": None}, "no code"),
        ({"error": "access_denied\nforged"}, "access_deniedforged"),
    ):
        tampered = {name: value for name, value in (answer | changed).items() if value is not None}
        with pytest.raises(LaunchRefused, match=told):
            await hub.finish(one.kept, tampered)
    # A code that was taken from another sign-in is bound to the verifier of that one.
    with pytest.raises(LaunchRefused, match="invalid_grant"):
        await hub.finish(other.kept, answer | {"state": query(other.url)["state"]})


async def test_a_new_key_of_the_ehr_is_fetched_and_discovery_is_kept(hub, ehr, monkeypatch):
    monkeypatch.setattr(jwks, "_AGAIN", 0.0)
    assert (await launched(hub, ehr)).patient == "p-7"
    ehr.door.rotate_key()
    assert (await launched(hub, ehr)).patient == "p-7"
    paths = [request.url.path for request in ehr.asked]
    assert paths.count("/fhir/.well-known/smart-configuration") == 1
    assert paths.count("/oauth2/jwks") == 2


async def test_keys_are_found_by_openid_discovery_when_smart_does_not_say_where(hub, ehr):
    ehr.about = {"jwks_uri": None}
    assert (await launched(hub, ehr)).patient == "p-7"
    assert "/.well-known/openid-configuration" in [request.url.path for request in ehr.asked]


@pytest.mark.parametrize(
    "about",
    [
        {"authorization_endpoint": None},
        {"authorization_endpoint": "http://north.example/oauth2/authorize"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
    ],
)
async def test_discovery_that_names_no_safe_endpoint_is_told(hub, ehr, about):
    ehr.about = about
    with pytest.raises(LaunchUnavailable):
        await hub.start(hub.by_name("north"), None)


async def test_an_ehr_that_is_down_is_told(hub, ehr):
    ehr.down = True
    with pytest.raises(LaunchUnavailable, match=r"north\.example cannot be reached"):
        await hub.start(hub.by_name("north"), None)


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("https://north.example/fhir/Practitioner/a", Source("Practitioner", "a")),
        ("Practitioner/a", Source("Practitioner", "a")),
        ("https://evil.example/fhir/Practitioner/a", None),
        ("Patient/a", None),
        (7, None),
        (None, None),
    ],
)
async def test_who_somebody_is_must_be_a_practitioner_of_this_partner(hub, ehr, user, found):
    ehr.lie = {"fhirUser": user}
    assert (await launched(hub, ehr)).user == found


async def test_an_older_ehr_tells_who_somebody_is_in_the_claim_profile(hub, ehr):
    ehr.lie = {"fhirUser": None, "profile": "Practitioner/old"}
    assert (await launched(hub, ehr)).user == Source("Practitioner", "old")


@pytest.mark.parametrize("patient", ["../p", "", "a b", 7, ["p"]])
async def test_a_patient_that_is_no_id_is_refused(hub, ehr, patient):
    ehr.extra = {"patient": patient}
    with pytest.raises(LaunchRefused, match="no id"):
        await launched(hub, ehr)


# --- the EHR's side enforces what vendors do ---


async def test_the_ehr_takes_a_launch_and_a_code_once_and_not_for_long(hub, ehr):
    partner, launch = hub.by_name("north"), ehr.door.launch("Practitioner/p1", "p-7")
    one = await hub.start(partner, launch, ehr.base_url)
    answer = query(await ehr.authorized(one.url))
    again = await hub.start(partner, launch, ehr.base_url)
    assert query(await ehr.authorized(again.url))["error"] == "invalid_request"
    await hub.finish(one.kept, answer)
    with pytest.raises(LaunchRefused, match="invalid_grant"):
        await hub.finish(one.kept, answer)
    late = await hub.start(partner, ehr.door.launch("Practitioner/p1"), ehr.base_url)
    ehr.now += 301
    assert query(await ehr.authorized(late.url))["error"] == "invalid_request"
    slow = await hub.start(partner, ehr.door.launch("Practitioner/p1"), ehr.base_url)
    answer = query(await ehr.authorized(slow.url))
    ehr.now += 61
    with pytest.raises(LaunchRefused, match="invalid_grant"):
        await hub.finish(slow.kept, answer)


async def test_the_ehr_refuses_what_is_not_registered_or_not_whole(hub, ehr):
    started = await hub.start(hub.by_name("north"), ehr.door.launch("Practitioner/p1"), ehr.base_url)
    async with ehr.screen() as http:
        for changed in ({"redirect_uri": f"{HUB}/launch/callback/north/x"}, {"client_id": "another"}):
            assert (await http.post("/oauth2/authorize", data=query(started.url) | changed)).status_code == 400
        for changed in (
            {"code_challenge_method": "plain"},
            {"code_challenge": ""},
            {"aud": "https://evil.example/fhir"},
            {"state": ""},
            {"launch": "made up"},
            {"scope": "openid fhirUser"},
            {"response_type": "token"},
        ):
            answer = await http.post("/oauth2/authorize", data=query(started.url) | changed)
            assert query(answer.headers["location"])["error"] in ("invalid_request", "unsupported_response_type")


async def test_a_refresh_token_is_good_once_and_a_second_use_of_a_code_ends_what_it_brought(ehr):
    door, verifier = ehr.door, "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    asked = {
        "response_type": "code",
        "client_id": "the hub",
        "redirect_uri": f"{HUB}/launch/callback/north",
        "scope": "openid user/Patient.rs offline_access",
        "state": "s",
        "aud": ehr.base_url,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    form = {"grant_type": "authorization_code", "code": query(door.authorize(asked))["code"], "client_id": "the hub"}
    form |= {"redirect_uri": asked["redirect_uri"], "code_verifier": verifier}
    first = await door.token(form, "")
    assert door.sign_in.allowed(f"Bearer {first['access_token']}", "r", "Patient")
    refresh = {"grant_type": "refresh_token", "client_id": "the hub", "refresh_token": first["refresh_token"]}
    second = await door.token(refresh, "")
    with pytest.raises(Exception, match="invalid_grant"):
        await door.token(refresh, "")
    with pytest.raises(Exception, match="invalid_grant"):
        await door.token(form, "")
    assert door.sign_in.allowed(f"Bearer {second['access_token']}", "r", "Patient") is None


# --- partner.yaml, and a record that is not copied ---


def section(tmp_path, told):
    return Keys(tmp_path / "partner.yaml", "", {"launch": told} if told is not None else {})


def test_the_registration_is_read(tmp_path):
    assert read(section(tmp_path, None)) is None
    assert read(section(tmp_path, {"client_id": "x"})) == Registration("x")
    told = {"client_id": "x", "method": "client_secret_post", "secret": {"env": "S"}, "roles": ["nurse", "clinician"]}
    found = read(section(tmp_path, told))
    assert (found.secret, found.roles) == (Secret(env="S"), {"nurse", "clinician"})


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"method": "none"}, "launch.client_id is missing"),
        ({"client_id": "x", "method": "client_secret_basic"}, "launch.secret is missing"),
        ({"client_id": "x", "scopes": ["launch"]}, "launch.scopes must hold openid and fhirUser"),
        ({"client_id": "x", "scopes": ["openid", 'fhir"User']}, r"launch.scopes\[1\]"),
        ({"client_id": "x", "roles": ["administrator"]}, "launch.roles must not hold administrator"),
        ({"client_id": "x", "roles": ["custodian"]}, "launch.roles must not hold custodian"),
        ({"client_id": "x", "roles": ["king"]}, "launch.roles must not hold king"),
        ({"client_id": "x", "colour": "red"}, "launch.colour is not a key"),
    ],
)
def test_each_mistake_of_the_registration_is_told(tmp_path, told, why):
    with pytest.raises(YamlWrong, match=why):
        read(section(tmp_path, told))


async def test_who_asks_for_a_record_twice_makes_one_task(store, ehr):
    hub = {"resourceType": "Organization", "id": "hub", "name": "The hub"}
    await store.transact([Put(check_tree(hub))], origin="test")
    for _ in range(2):
        await ask_for(store, ehr.partner(), "p-7", "Organization/hub")
    [task] = (await store.search(parse_query("Task", [("status", "ready")]))).matches
    assert re.search(r"Patient/p-7 of .* was opened from its EHR", task.tree["reasonCode"]["text"])
