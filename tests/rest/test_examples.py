"""HL7's own examples through the API, byte for byte, and every resource type through its whole life.

https://hl7.org/fhir/R4/http.html. A written version differs from what was sent in `meta` alone, where the server puts its version and time.
"""

import json
import re
from functools import cache

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import children
from fhircm.fhir.validation import check_tree
from fhircm.rest.exchange import RestSettings
from tests.fhir.test_validation import EXAMPLES, WRONG

from .signing import BASE, register, signed_in

JSON = {"Content-Type": "application/fhir+json"}
REST = RestSettings(body_limit=1_000_000, bundle_limit=10_000_000, update_create=True, conditional_delete_limit=1)
REFERENCE = re.compile(r'("reference"\s*:\s*")([A-Z][A-Za-z]+/[A-Za-z0-9\-.]+)((?:/_history/[^"]+)?")')


@pytest.fixture
async def hub(database_url, clock, tmp_path):
    """A hub where clients choose ids. What follows on a write by a client is not its matter: the write rules are those of no room."""
    await register(database_url, "app", "system/*.cruds")
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, []))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        yield http


@cache
def examples():
    """The examples that are legal, by Type/id; what refers to none of them refers to another server."""
    legal = {name: text for name, text in EXAMPLES.items() if name not in WRONG}
    here = {"{resourceType}/{id}".format(**json.loads(text)): text for text in legal.values()}

    def elsewhere(found):
        known = found[2] in here and found[3] == '"'
        return found[0] if known else f"{found[1]}https://elsewhere.example/fhir/{found[2]}{found[3]}"

    return {name: REFERENCE.sub(elsewhere, text) for name, text in here.items()}


def members(text):
    """The members of an object, each as it is written: by a reader that shares nothing with the server's."""
    decoder, found, at = json.JSONDecoder(), {}, text.index("{") + 1
    while text[at:].lstrip()[:1] == '"':
        at = text.index('"', at)
        name, at = decoder.raw_decode(text, at)
        at = re.compile(r"\s*:\s*").match(text, at).end()
        _, end = decoder.raw_decode(text, at)
        found[name] = text[at:end]
        at = re.compile(r"\s*,?").match(text, end).end()
    return found


def assert_same(sent, served):
    """Every byte is the same but for those of meta, which says what it said and what the server knows."""
    before, after = members(sent).get("meta"), members(served)["meta"]
    assert served.replace(f',"meta":{after}', "", 1) == sent if before is None else served.replace(after, before, 1) == sent
    told = json.loads(after)
    assert told.pop("versionId").isdigit()
    assert told.pop("lastUpdated").startswith("2026-03-02T15:00")
    own = json.loads(before or "{}")
    assert told == {name: value for name, value in own.items() if name not in ("versionId", "lastUpdated")}


async def test_every_example_is_served_as_it_was_sent_alone_and_in_bundles(hub):
    entries = ",".join(f'{{"resource":{text},"request":{{"method":"PUT","url":"{name}"}}}}' for name, text in examples().items())
    bundle = f'{{"resourceType":"Bundle","type":"transaction","entry":[{entries}]}}'
    created = await hub.post("/fhir", content=bundle.encode(), headers=JSON)
    assert {entry["response"]["status"] for entry in created.json()["entry"]} == {"201 Created"}
    assert len(created.json()["entry"]) == len(examples()) > 700
    served = {name: (await hub.get(f"/fhir/{name}")).text for name in examples()}
    for name, text in examples().items():
        assert_same(text, served[name])
    for type in {name.partition("/")[0] for name in examples()}:
        page = await hub.get(f"/fhir/{type}?_count=200")
        of_type = [text for name, text in served.items() if name.startswith(f"{type}/")]
        assert len(page.json()["entry"]) == len(of_type)
        assert all(f'"resource":{text}' in page.text for text in of_type), type


async def test_every_example_is_served_as_it_was_put(hub):
    """One after the other: what they refer to is made elsewhere, for nothing here can refer forward."""
    for name, text in examples().items():
        text = REFERENCE.sub(r"\1https://elsewhere.example/fhir/\2\3", text)
        put = await hub.put(f"/fhir/{name}", content=text.encode(), headers=JSON)
        assert put.status_code == 201, (name, put.text)
        assert_same(text, put.text)


# --- every type ----------------------------------------------------------------------------------------------------------------

VALUES = {"boolean": True, "integer": 1, "positiveInt": 1, "unsignedInt": 1, "decimal": 1.5, "date": "2026-01-02"}
VALUES |= {"dateTime": "2026-01-02", "instant": "2026-01-02T03:04:05Z", "time": "03:04:05", "base64Binary": "AAAA"}


def minimal(type):
    """The least that the definitions ask of a type: its required elements, filled by their types alone."""
    made, choices = {}, set()
    for name, child in children(type).items():
        if child.element.min and child.element.path not in choices:
            choices.add(child.element.path)
            one = value(child)
            made[name] = [one] if child.element.max != 1 else one
    return made or some_member(type)


def some_member(type):
    """A resource may be empty; a data type or a part of a resource must say something."""
    if type in definitions().resource_types:
        return {}
    name = next(name for name in ("text", "display", "value", *children(type)) if name in children(type))
    return {name: value(children(type)[name])}


def value(child):
    if child.element.codes:
        return min(child.element.codes)
    if child.type == "Resource":
        return {"resourceType": "Basic", "code": {"text": "x"}}
    if child.is_primitive:
        return VALUES.get(child.type, "urn:x" if child.type in ("uri", "url", "canonical") else "x")
    return minimal(child.type)


# What an invariant asks besides.
BESIDES = {"Organization": {"name": "x"}}


def resource(type):
    return {"resourceType": type, "id": "least", **minimal(type), **BESIDES.get(type, {})}


def test_the_least_resource_of_every_type_is_legal():
    wrong = {}
    for type in sorted(definitions().resource_types):
        try:
            check_tree(resource(type))
        except Exception as error:
            wrong[type] = str(error)
    assert wrong == {}


async def test_every_type_is_created_found_read_updated_and_deleted(hub):
    for type in sorted(definitions().resource_types):
        created = await hub.post(f"/fhir/{type}", json=resource(type), headers=JSON)
        assert created.status_code == 201, (type, created.text)
        at = f"/fhir/{type}/{created.json()['id']}"
        assert (await hub.get(at)).json() == created.json()
        found = (await hub.get(f"/fhir/{type}?_id={created.json()['id']}")).json()
        assert [entry["resource"] for entry in found["entry"]] == [created.json()], type
        updated = await hub.put(at, json=created.json() | {"language": "en"}, headers=JSON)
        assert (updated.status_code, updated.json()["meta"]["versionId"]) == (200, "2"), type
        assert (await hub.delete(at)).status_code in (200, 204), type
        assert (await hub.get(at)).status_code == 410, type
        assert "entry" not in (await hub.get(f"/fhir/{type}?_id={created.json()['id']}")).json(), type
