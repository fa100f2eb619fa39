"""HL7 v2 over HTTP: only a client of the partner's own organisation, one message, answered with its acknowledgement."""

from dataclasses import replace

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from fhircm.exchange.adt_doors import Doors
from fhircm.exchange.hl7v2 import Hl7v2, Sending
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.query import parse_query
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database

from ..exchange.test_adt import ADT_YAML, message, partner
from ..exchange.test_adt import BASE as THERE
from .conftest import REST
from .signing import BASE, KEYS, signed_in

PATH = "/hl7v2/north-clinic"


@pytest.fixture
async def http(database_url, clock, tmp_path):
    folder = tmp_path / "mappings" / "north-clinic"
    folder.mkdir(parents=True)
    (folder / "adt.yaml").write_text(ADT_YAML)
    north = replace(partner(), folder=folder, hl7v2=Hl7v2((Sending("EPIC", None),)))
    app = create_app(
        AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, RULES, doors=lambda store: Doors(store, [north]))
    )
    own = f"Organization/{hub_id(THERE, 'Organization/north')}"
    async with app.router.lifespan_context(app):
        database = await open_database(database_url)
        jwks = {"keys": [key.as_dict(private=False) for key in KEYS.values()]}
        for client, organization in (("feed", own), ("other", "Organization/another")):
            registration = {"scope": "system/*.cruds", "jwks": jwks, "roles": ["system"], "organization": organization}
            await Credentials(database).add_client(client, registration)
        await database.close()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
            client.store = app.state.store
            yield client


async def post(http, raw, client="feed", path=PATH, scope="system/*.cruds", **headers):
    token = await signed_in(http, client, scope)
    return await http.post(
        path, content=raw, headers={"Authorization": f"Bearer {token}", "Content-Type": "application/hl7-v2", **headers}
    )


async def test_a_message_is_taken_and_acknowledged(http):
    answer = await post(http, message("A01", "c1"))
    assert answer.status_code == 200 and "MSA|AA|c1" in answer.text
    assert answer.headers["content-type"].startswith("application/hl7-v2")
    assert len((await http.store.search(parse_query("Encounter", []))).matches) == 1


async def test_what_cannot_be_taken_is_answered_with_its_reason(http):
    answer = await post(http, message("A60", "c1"))
    assert answer.status_code == 422 and "MSA|AR|c1" in answer.text and "ERR||MSH^1^9|200|E" in answer.text


async def test_who_may_not(http):
    raw = message("A01", "c1")
    assert (await http.post(PATH, content=raw)).status_code == 401
    assert (await post(http, raw, client="other")).status_code == 403
    assert (await post(http, raw, scope="system/Patient.r")).status_code == 403
    assert (await post(http, raw, path="/hl7v2/south-clinic")).status_code == 404
    assert (await post(http, raw, **{"Content-Type": "application/fhir+json"})).status_code == 415
    assert (await post(http, raw + b"Z" * 1_100_000)).status_code == 413
    assert not (await http.store.search(parse_query("Patient", []))).matches
