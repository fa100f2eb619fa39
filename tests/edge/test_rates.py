"""Who asks too often waits, nobody else does, and counting costs bounded memory."""

import pytest

from fhircm.edge import rates
from fhircm.edge.rates import Rate, TooManyRequests, caller
from tests.rest.signing import assertion, form, signed_in


def taken(rate, who, times):
    """How many of so many requests pass."""
    passed = 0
    for _ in range(times):
        try:
            rate.take(who)
            passed += 1
        except TooManyRequests:
            break
    return passed


def test_a_minutes_worth_at_once_and_then_one_after_the_other(monotonic):
    rate = Rate(6, monotonic)
    assert taken(rate, "a", 100) == 6
    with pytest.raises(TooManyRequests) as refused:
        rate.take("a")
    assert dict(refused.value.headers) == {"Retry-After": "10"}
    monotonic.advance(10)
    assert taken(rate, "a", 100) == 1
    monotonic.advance(1000)
    assert taken(rate, "a", 100) == 6


def test_being_refused_costs_nothing_more(monotonic):
    rate = Rate(6, monotonic)
    for _ in range(50):
        taken(rate, "a", 20)
    monotonic.advance(10)
    assert taken(rate, "a", 20) == 1


def test_one_caller_takes_nothing_from_another(monotonic):
    rate = Rate(3, monotonic)
    assert (taken(rate, "a", 9), taken(rate, "b", 9)) == (3, 3)


def test_zero_is_without_limit(monotonic):
    assert taken(Rate(0, monotonic), "a", 1000) == 1000


def test_no_crowd_of_callers_fills_the_memory(monotonic, monkeypatch):
    monkeypatch.setattr(rates, "BUCKETS", 100)
    rate = Rate(3, monotonic)
    taken(rate, "busy", 9)
    for n in range(10_000):
        rate.take(f"address-{n}")
        if n % 50 == 0:
            assert taken(rate, "busy", 1) == 0, "who goes on asking is not forgotten"
    assert len(rate) <= 101


def test_all_addresses_of_one_ipv6_network_are_one_caller():
    assert caller("2001:db8:1:2::1") == caller("2001:db8:1:2:ffff::9") != caller("2001:db8:1:3::1")
    assert caller("::ffff:192.0.2.1") == caller("192.0.2.1") == "192.0.2.1"
    assert caller("unknown") == "unknown"


async def test_the_token_endpoint_answers_too_many_as_oauth(door, monotonic):
    async with door(monotonic, token_rate=2) as http:
        for _ in range(2):
            assert (await http.post("/oauth/token", data=form(assertion()))).status_code == 200
        refused = await http.post("/oauth/token", data=form(assertion()))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["cache-control"] == "no-store"
        assert refused.json() == {"error": "temporarily_unavailable", "error_description": "Too many requests; ask again in 30 s"}
        assert (await http.post("/oauth/introspect")).status_code == 429, "they are counted together"
        assert (await http.get("/fhir/metadata")).status_code == 200
        monotonic.advance(30)
        assert (await http.post("/oauth/token", data=form(assertion()))).status_code == 200


@pytest.mark.parametrize(
    ("path", "rate"),
    [
        ("/signin", "sign_in_rate"),
        ("/account/password", "sign_in_rate"),
        ("/oauth/authorize/x1", "sign_in_rate"),
        ("/launch", "sign_in_rate"),
        ("/launch/callback/north", "sign_in_rate"),
        ("/oauth/register", "register_rate"),
        ("/oauth/launch", "token_rate"),
        ("/oauth/introspect", "token_rate"),
    ],
)
async def test_each_door_that_can_be_tried_is_counted(door, monotonic, path, rate):
    async with door(monotonic, **{rate: 1}) as http:
        assert (await http.post(path)).status_code != 429
        refused = await http.post(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


async def test_a_client_of_the_fhir_api_that_asks_too_often_hears_so_in_an_outcome(door, monotonic):
    async with door(monotonic, fhir_rate=2) as http:
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        assert [(await http.get("/fhir/Patient")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await http.get("/fhir/Patient")
        assert refused.headers["retry-after"] == "30"
        assert (refused.json()["resourceType"], refused.json()["issue"][0]["code"]) == ("OperationOutcome", "throttled")
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        assert (await http.get("/fhir/Patient")).status_code == 429, "another token is no other client"


async def test_who_guesses_tokens_is_made_to_wait_and_who_has_one_is_not(door, monotonic):
    async with door(monotonic, refused_rate=5) as http:
        good = {"Authorization": f"Bearer {await signed_in(http)}"}
        for _ in range(20):
            assert (await http.get("/fhir/Patient", headers=good)).status_code == 200
        guessed = [(await http.get("/fhir/Patient", headers={"Authorization": f"Bearer {n}"})).status_code for n in range(7)]
        assert guessed == [401] * 5 + [429] * 2
        monotonic.advance(60)
        assert (await http.get("/fhir/Patient", headers=good)).status_code == 200
