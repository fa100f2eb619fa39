"""What is public may be read by every page; tokens and records by pages of registered clients; nothing with cookies."""

import pytest

from fhircm.edge.cors import Origins, origin_of
from fhircm.store.database import DatabaseUnavailable

APP = "https://app.example"


async def preflight(http, path, origin, method="GET", headers="authorization"):
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return await http.options(path, headers=asked)


@pytest.mark.parametrize(
    "path",
    ["/.well-known/smart-configuration", "/fhir/.well-known/smart-configuration", "/.well-known/jwks.json", "/fhir/metadata"],
)
async def test_discovery_is_for_pages_of_any_origin(door, path):
    async with door() as http:
        answer = await http.get(path, headers={"Origin": "https://anybody.example"})
        assert answer.headers.get_list("access-control-allow-origin") == ["*"]
        assert "access-control-allow-credentials" not in answer.headers
        asked = await preflight(http, path, "https://anybody.example")
        assert (asked.status_code, asked.headers["access-control-allow-methods"]) == (204, "GET, HEAD")


@pytest.mark.parametrize("path", ["/fhir/Patient", "/fhir", "/oauth/token", "/oauth/introspect", "/oauth/revoke"])
async def test_pages_of_a_registered_client_may_use_tokens_and_records(door, registered, path):
    await registered("growth", redirect_uris=[f"{APP}/after/sign-in?x=1"], launch_uri="https://Launch.example:8443/launch")
    async with door() as http:
        for origin in (APP, "https://launch.example:8443"):
            asked = await preflight(http, path, origin, "PUT")
            assert asked.status_code == 204
            assert asked.headers["access-control-allow-origin"] == origin
            assert asked.headers["vary"] == "Origin"
            allowed = {one.strip() for one in asked.headers["access-control-allow-headers"].split(",")}
            assert allowed >= {"Authorization", "Content-Type", "If-Match", "If-None-Match", "Prefer"}
            assert "PUT" in asked.headers["access-control-allow-methods"]
            answer = await http.get(path, headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            shown = {one.strip() for one in answer.headers["access-control-expose-headers"].split(",")}
            assert shown >= {"ETag", "Location", "Content-Location", "Retry-After", "Last-Modified", "X-Progress", "X-Request-Id"}
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://app.example",
        "https://app.example.evil.example",
        "https://app.example:444",
        "https://xapp.example",
        "https://APP.example",
        "*",
        "",
    ],
)
async def test_pages_of_other_origins_may_not(door, registered, origin):
    await registered("growth", redirect_uris=[f"{APP}/cb"])
    async with door() as http:
        for path in ("/fhir/Patient", "/oauth/token"):
            if origin:
                assert (await preflight(http, path, origin, "POST")).status_code == 403
            answer = await http.get(path, headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin", "a cache must not give one origin the answer to another"


async def test_pages_of_sign_in_are_read_by_nobody_else(door, registered):
    await registered("growth", redirect_uris=[f"{APP}/cb"])
    async with door() as http:
        for path in ("/oauth/authorize", "/signin", "/oauth/register", "/health/live"):
            assert (await preflight(http, path, APP, "POST")).status_code == 403
            assert "access-control-allow-origin" not in (await http.get(path, headers={"Origin": APP})).headers


async def test_a_client_that_is_registered_or_disabled_counts_a_moment_later(door, registered, monotonic):
    async with door(monotonic) as http:

        async def allowed():
            return (await preflight(http, "/fhir/Patient", APP)).status_code == 204

        assert not await allowed()
        await registered("growth", redirect_uris=[f"{APP}/cb"])
        monotonic.advance(6)
        assert await allowed()
        await registered("growth", redirect_uris=[f"{APP}/cb"], disabled=True)
        monotonic.advance(6)
        assert not await allowed()


async def test_origins_of_the_settings_are_allowed_too(door):
    async with door(cors_origins=("https://portal.example/",)) as http:
        assert (await preflight(http, "/fhir/Patient", "https://portal.example")).status_code == 204


async def test_when_the_database_does_not_answer_what_was_known_holds_on(monotonic):
    answers = [["https://a.example/cb"], DatabaseUnavailable("down")]

    async def addresses():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    origins = Origins(addresses, now=monotonic)
    assert await origins.allow("https://a.example")
    monotonic.advance(60)
    assert await origins.allow("https://a.example")
    assert not answers


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.example:443/x", "https://a.example"),
        ("http://127.0.0.1:8000/cb", "http://127.0.0.1:8000"),
        ("http://[::1]:80/cb", "http://[::1]"),
        ("com.example.app:/cb", None),
        ("https://user@a.example/", "https://a.example"),
        ("javascript:alert(1)", None),
        ("https://a.example:port/", None),
        ("https:///x", None),
    ],
)
def test_the_origin_of_an_address(url, origin):
    assert origin_of(url) == origin
