"""/openapi.json tells what the addresses outside FHIR take and answer: each is called, and its answer held against the schema.

https://spec.openapis.org/oas/v3.1.0
"""

import jsonschema_rs
import pytest

from fhircm.store.database import DatabaseUnavailable

from .signing import BASE, assertion, form

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
async def told(anonymous):
    return (await anonymous.get("/openapi.json")).json()


def operations(told):
    return [(path, method, one) for path, methods in told["paths"].items() for method, one in methods.items()]


def keeps_to(told, operation, answer):
    """The answer is one that is listed, and its body as the schema says."""
    listed = operation["responses"][str(answer.status_code)]
    schema = listed["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for({**schema, "components": told["components"]})
    assert list(validator.iter_errors(answer.json())) == [], answer.text


async def test_every_address_is_told_with_what_it_is_for(told, rest_app):
    routes = [route for route in rest_app.routes if getattr(route, "include_in_schema", False)]
    served = {(route.path, method.lower()) for route in routes for method in route.methods - {"HEAD"}}
    assert {(path, method) for path, method, _ in operations(told)} == served
    assert all(operation["summary"] and operation["description"] for _, _, operation in operations(told))
    assert told["servers"] == [{"url": BASE}]
    assert "/fhir/metadata" in told["info"]["description"]


async def test_what_is_asked_for_by_get_answers_as_told(anonymous, told):
    called = [(path, operation) for path, method, operation in operations(told) if method == "get" and "{" not in path]
    called = [(path, operation) for path, operation in called if path != "/metrics"]  # text: tests/test_metrics.py
    assert len(called) == 8
    for path, operation in called:
        answer = await anonymous.get(path)
        assert answer.status_code == 200, path
        keeps_to(told, operation, answer)


async def test_every_answer_of_the_token_endpoint(anonymous, told):
    operation = told["paths"]["/oauth/token"]["post"]
    schema = operation["requestBody"]["content"][FORM]["schema"]
    good = form(assertion())
    jsonschema_rs.validator_for(schema).validate(good)
    assert good.keys() <= schema["properties"].keys()
    seen = set()
    refused = [
        form(assertion(client="nobody")),
        form(assertion()) | {"grant_type": "password"},
        form(assertion()) | {"grant_type": "authorization_code"},
        form(assertion()) | {"client_secret": "another way"},
        form(assertion(), "system/Nonsense.r"),
    ]
    for asked in (good, *refused, *(form(assertion()) | {name: ""} for name in good)):
        answer = await anonymous.post("/oauth/token", data=asked)
        keeps_to(told, operation, answer)
        seen.add(str(answer.status_code))
    keeps_to(told, operation, await anonymous.post("/oauth/token", content=b"\xff", headers={"Content-Type": FORM}))
    assert seen | {"429"} == operation["responses"].keys(), "how often is asked too often, tests/edge shows"


async def test_not_ready_answers_as_told(anonymous, told, rest_app, monkeypatch):
    async def away(name):
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(rest_app.state.store, "cursor", away)
    answer = await anonymous.get("/health/ready")
    assert answer.status_code == 503
    keeps_to(told, told["paths"]["/health/ready"]["get"], answer)
