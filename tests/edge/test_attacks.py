"""Requests made to break something: each is answered in plain words, and the process goes on serving. Also tests/rest/test_bad_input.py."""

import json
import logging

import pytest

from fhircm.fhir.json import DEPTH
from fhircm.log_lines import Lines
from tests.rest.signing import signed_in

FHIR = {"Content-Type": "application/fhir+json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PATCH = {"Content-Type": "application/json-patch+json"}


@pytest.fixture
async def http(door):
    """A client that signed in; it is served after whatever the test did, and nothing failed unexpectedly."""
    async with door() as http:
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        failed = []
        http.event_hooks["response"] = [lambda answer: _note(failed, answer)]
        yield http
        assert (await http.post("/fhir/Patient", json={"resourceType": "Patient", "gender": "other"})).status_code == 201
        assert failed == []


async def _note(failed, answer):
    if answer.status_code >= 500:
        failed.append((answer.request.url, answer.status_code))


def code(answer):
    return answer.status_code, answer.json()["issue"][0]["code"]


# --- nesting ----------------------------------------------------------------------------------------------------------------------


def nested(text, before, after, levels):
    return before * levels + text + after * levels


def bundles(levels):
    within = '{"resourceType":"Bundle","type":"collection","entry":[{"resource":'
    return nested('{"resourceType":"Basic","code":{"text":"x"}}', within, "}]}", levels)


def extensions(levels):
    value = nested('{"url":"http://x.example","valueString":"x"}', '{"url":"http://x.example","extension":[', "]}", levels)
    return f'{{"resourceType":"Basic","code":{{"text":"x"}},"extension":[{value}]}}'


DEEP = {
    "brackets that never end": "[" * 100_000,
    "braces that never end": '{"a":' * 100_000,
    "brackets": '{"resourceType":"Basic","x":' + nested("", "[", "]", 100_000) + "}",
    "just too deep": '{"resourceType":"Basic","x":' + nested("", "[", "]", DEPTH) + "}",
    "extensions": extensions(DEPTH // 2),
    "bundles": bundles(300),
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("path", ["/fhir/Basic", "/fhir/Basic/$validate", "/fhir", "/fhir/Patient/$match"])
async def test_what_is_nested_too_deep_is_refused_by_whatever_reads_it(http, path, body):
    answer = await http.post(path, content=body, headers=FHIR)
    assert code(answer) == (400, "structure")
    assert answer.json()["issue"][0]["diagnostics"] == "The body is nested too deep"


async def test_a_patch_that_is_nested_too_deep_is_refused(http):
    made = (await http.post("/fhir/Basic", content=extensions(1), headers=FHIR)).json()["id"]
    for value in ("[" * 100_000, nested("", "[", "]", DEPTH + 10)):
        change = f'[{{"op":"add","path":"/extension","value":{value}}}]'
        assert code(await http.patch(f"/fhir/Basic/{made}", content=change, headers=PATCH)) == (400, "structure")


async def test_what_is_as_deep_as_may_be_is_stored_found_and_patched(http):
    deep = extensions(DEPTH // 2 - 2)
    answer = await http.post("/fhir/Basic", content=deep, headers=FHIR)
    assert answer.status_code == 201
    id = answer.json()["id"]
    change = '[{"op":"add","path":"/language","value":"en"}]'
    assert (await http.patch(f"/fhir/Basic/{id}", content=change, headers=PATCH)).status_code == 200
    for path in (f"/fhir/Basic/{id}", f"/fhir/Basic?_id={id}&_pretty=true", "/fhir/Basic?_summary=true", "/fhir/Basic/_history"):
        assert (await http.get(path)).status_code == 200
    assert (await http.post("/fhir/Basic/$validate", content=deep, headers=FHIR)).status_code == 200


@pytest.mark.parametrize(
    "filter",
    ["(" * 3000 + "name eq x" + ")" * 3000, "not (" * 1500 + "name eq x" + ")" * 1500, "a[" * 3000],
    ids=lambda text: text[:8],
)
async def test_a_filter_that_is_nested_too_deep_is_refused(http, filter):
    answer = await http.post("/fhir/Patient/_search", data={"_filter": filter})
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["partof." * 500 + "name", "_has:Organization:partof:" * 300 + "name"])
async def test_a_chain_without_end_is_refused(http, name):
    assert code(await http.post("/fhir/Organization/_search", data={name: "x"})) == (400, "not-supported")


# --- numbers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("&".join(["name=a"] * 20_000), {(403, "too-costly")}),
        ("&".join(f"p{n}=a" for n in range(20_000)), {(400, "not-supported")}),
        ("name=" + ",".join("a" * 20_000), {(400, "value")}),
        ("a" * 199_000, {(400, "not-supported"), (400, "value")}),
        ("&" * 199_000, None),
        ("a" * 1_000_001, {(413, "too-long")}),
    ],
    ids=["repeated", "unknown", "alternatives", "one long name", "only signs", "more than the limit"],
)
async def test_parameters_without_number_cost_little(http, form, expected):
    answer = await http.post("/fhir/Patient/_search", content=form, headers=FORM)
    if expected is None:
        assert answer.status_code == 200
    else:
        assert code(answer) in expected


@pytest.mark.parametrize("number", ["9" * 100_000, "-" * 50_000, "1e999999999999"])
async def test_numbers_without_end_cost_little(http, number):
    body = '{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":NUMBER}}'.replace(
        "NUMBER", number
    )
    assert (await http.post("/fhir/Observation", content=body, headers=FHIR)).status_code in (201, 400, 422)
    assert (await http.post("/fhir/Observation/_search", data={"value-quantity": number})).status_code == 400


# --- lines of headers and of the log -------------------------------------------------------------------------------------------------


FORGED = [
    "%0d%0aSet-Cookie:%20session=evil",
    "%0aX-Evil:%201",
    "\u560d\u560aSet-Cookie:session=evil",
    "%00",
    "%1b[2J",
    "%e2%80%a8x",
]
PLACES = [
    "/fhir/Patient/{}",
    "/fhir/{}",
    "/fhir/Patient?_id={}",
    "/fhir/Patient?_format={}",
    "/fhir/Patient?_count=1&_tag={}",
    "/fhir/$export-status/{}",
    "/oauth/{}",
    "/{}",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("forged", FORGED)
async def test_nothing_that_is_asked_for_makes_a_header_or_a_log_line_of_its_own(http, caplog, place, forged):
    caplog.handler.setFormatter(Lines())
    with caplog.at_level(logging.DEBUG, "fhircm"):
        answer = await http.get(place.format(forged))
    assert answer.status_code < 500
    assert "set-cookie" not in answer.headers
    assert "x-evil" not in answer.headers
    assert all(value.isprintable() for value in answer.headers.values())
    lines = caplog.text.splitlines()
    assert len(lines) == len(caplog.records)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("evil", ["a\r\nSet-Cookie: x=1", "a\nforged", "\x1b[31m", "a\x00"])
async def test_nor_does_who_asks_for_a_token(http, caplog, evil):
    caplog.handler.setFormatter(Lines())
    form = {"grant_type": "client_credentials", "client_id": evil, "scope": evil, "client_assertion": evil}
    form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    with caplog.at_level(logging.DEBUG, "fhircm"):
        answer = await http.post("/oauth/token", data=form)
    assert answer.status_code in (400, 401)
    assert all(value.isprintable() for value in answer.headers.values())
    assert all(line.isprintable() for line in caplog.text.splitlines())


async def test_a_stored_reference_makes_no_header(http):
    body = {"resourceType": "Basic", "code": {"text": "x\r\nSet-Cookie: a=b"}, "language": "en"}
    made = await http.post("/fhir/Basic", content=json.dumps(body), headers=FHIR)
    assert "set-cookie" not in made.headers
    search = {"If-None-Exist": "identifier=x\u0085y"}
    answer = await http.post("/fhir/Basic", json=body, headers=FHIR | {k: v.encode("latin-1") for k, v in search.items()})
    assert "set-cookie" not in answer.headers
