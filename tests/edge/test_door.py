"""Every answer leaves with the headers that protect, and every request has an id that harms nobody."""

import logging

import httpx
import pytest

from tests.rest.signing import assertion, form, signed_in

ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin", "x-frame-options": "DENY"}
PATHS = ["/fhir/Patient", "/fhir/metadata", "/fhir/Nothing/1", "/health/live", "/oauth/nothing", "/openapi.json", "/nowhere"]


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_headers_that_protect(door, path):
    async with door(https=True) as http:
        answer = await http.get(path)
        assert {name: answer.headers[name] for name in ALWAYS} == ALWAYS
        assert answer.headers["strict-transport-security"].startswith("max-age=63072000")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers


async def test_over_plain_http_nothing_is_promised_of_https(door):
    async with door() as http:
        assert "strict-transport-security" not in (await http.get("/health/live")).headers


async def test_what_may_hold_a_patients_record_is_kept_nowhere(door):
    async with door() as http:
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        made = await http.post("/fhir/Patient", json={"resourceType": "Patient", "gender": "other"})
        for path in ("/fhir/Patient", f"/fhir/Patient/{made.json()['id']}", "/fhir/Patient/unknown", "/fhir/Patient/_history"):
            assert (await http.get(path)).headers["cache-control"] == "no-store", path
        assert "cache-control" not in (await http.get("/fhir/metadata")).headers
        assert (await http.get("/.well-known/jwks.json")).headers["cache-control"] == "max-age=60", "what is set already stays"
        token = await http.post("/oauth/token", data=form(assertion()))
        assert token.headers.get_list("cache-control") == ["no-store"]


async def test_a_harmless_request_id_is_told_again_and_stands_in_the_log(door, caplog):
    async with door() as http:
        with caplog.at_level(logging.INFO, "fhircm"):
            answer = await http.get("/fhir/Patient", headers={"X-Request-Id": "Order-17.a"})
        assert answer.headers.get_list("x-request-id") == ["Order-17.a"]
        other = await http.get("/fhir/Patient")
        assert len(other.headers["x-request-id"]) == 36
        assert other.headers["x-request-id"] != (await http.get("/fhir/Patient")).headers["x-request-id"]


@pytest.mark.parametrize(
    "given", ["a\tb", "<script>", "a" * 65, "", "-x", "a b", "é", "a;b", '"', "\x1b[31m", "../..", "a%0d%0aSet-Cookie:x"]
)
async def test_a_request_id_that_could_do_something_is_replaced(door, given):
    async with door() as http:
        answer = await http.get("/health/live", headers={"X-Request-Id": given.encode("latin-1")})
        assert len(answer.headers["x-request-id"]) == 36
        assert answer.headers.get_list("set-cookie") == []


@pytest.mark.parametrize("path", ["/fhir/Patient", "/oauth/token", "/health/live"])
async def test_what_fails_unexpectedly_shows_the_request_id_and_nothing_else(door, caplog, path):
    async def broken(scope, receive, send):
        raise RuntimeError("birthDate 1971-03-09 of Okafor")

    async with door() as http:
        http.app.door._inside = broken
        with caplog.at_level(logging.INFO, "fhircm"):
            answer = await http.get(path, headers={"X-Request-Id": "r1"})
    assert answer.status_code == 500
    assert "r1" in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    for told in (answer.text, caplog.text):
        assert "Okafor" not in told
    assert "RuntimeError" in caplog.text


async def test_half_an_answer_does_not_look_like_a_whole_one(door):
    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    async with door() as http:
        http.app.door._inside = broken
        http._transport = httpx.ASGITransport(http.app)
        with pytest.raises(RuntimeError):
            await http.get("/health/live")
