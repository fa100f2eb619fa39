"""Every interaction leaves its event, about the right patients; and one says nothing of itself."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from fhircm.access.audit import RULE
from fhircm.access.audit_drain import Drain
from fhircm.app import AppConfig, AuditConfig, create_app
from fhircm.coordination.rules import RULES
from fhircm.fhir.validation import check
from tests.rest.conftest import REST
from tests.rest.signing import BASE, register, signed_in


class Audited:
    """A hub with its journal; `events()` drains it and gives what came since it was last asked."""

    def __init__(self, app, http, folder):
        self.app, self.http, self.folder, self.seen = app, http, folder, set()

    async def events(self):
        self.app.state.journal.close_segment()
        await Drain(self.app.state.store, self.folder, f"{BASE}/fhir").drain()
        return [tree for tree in await self.all() if tree["id"] not in self.seen and not self.seen.add(tree["id"])]

    async def all(self):
        async with self.app.state.store.database.reading() as connection:
            rows = await connection.fetch(
                "SELECT v.body FROM audit_link l JOIN resource r ON r.type = 'AuditEvent' AND r.id = l.id"
                " JOIN version v ON v.resource_key = r.key ORDER BY l.number"
            )
        return [json.loads(bytes(row["body"])) for row in rows]

    async def asked(self, method, path, **more):
        await self.events()
        answer = await self.http.request(method, f"/fhir/{path}", **more)
        return answer, await self.events()


@asynccontextmanager
async def audited(database_url, clock, folder, limit=10**8):
    await register(database_url, "app", "system/*.cruds")
    await register(database_url, "reader", "system/Patient.rs")
    config = AppConfig(
        database_url, BASE, folder / "keys", REST, False, clock, [*RULES, RULE], audit=AuditConfig(folder / "audit", limit)
    )
    app = create_app(config)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("192.0.2.7", 4711)), base_url=BASE) as http,
    ):
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        yield Audited(app, http, folder / "audit")


@pytest.fixture
async def hub(database_url, clock, tmp_path):
    async with audited(database_url, clock, tmp_path) as found:
        yield found


async def patient(hub, family="Marker"):
    answer = await hub.http.post("/fhir/Patient", json={"resourceType": "Patient", "name": [{"family": family}]})
    return answer.json()["id"]


async def goal(hub, of):
    tree = {
        "resourceType": "Goal",
        "lifecycleStatus": "active",
        "description": {"text": "walk"},
        "subject": {"reference": f"Patient/{of}"},
    }
    return (await hub.http.post("/fhir/Goal", json=tree)).json()


def patients(event):
    return [one["what"]["reference"] for one in event.get("entity", []) if one.get("role", {}).get("code") == "1"]


def things(event):
    return [one["what"]["reference"] for one in event.get("entity", []) if one.get("role", {}).get("code") == "4"]


def queries(event):
    return [base64.b64decode(one["query"]).decode() for one in event.get("entity", []) if "query" in one]


def subtype(event):
    return event["subtype"][-1]["code"]


async def test_each_interaction_says_what_was_done_and_about_whom(hub):
    one, other = await patient(hub), await patient(hub)
    made = await goal(hub, one)
    id = made["id"]
    moved = made | {"subject": {"reference": f"Patient/{other}"}}
    patch = [{"op": "replace", "path": "/lifecycleStatus", "value": "completed"}]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    new = {
        "resourceType": "Goal",
        "lifecycleStatus": "active",
        "description": {"text": "x"},
        "subject": {"reference": f"Patient/{one}"},
    }
    entry = {"resource": new, "request": {"method": "POST", "url": "Goal"}}
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [entry, {"request": {"method": "GET", "url": f"Goal/{id}"}}],
    }
    table = [
        ("GET", f"Goal/{id}", {}, ["read R"], [one], [f"Goal/{id}/_history/1"], []),
        ("HEAD", f"Patient/{one}", {}, ["read R"], [one], [f"Patient/{one}/_history/1"], []),
        ("GET", f"Goal/{id}", {"headers": {"If-None-Match": 'W/"1"'}}, ["read R"], [one], [f"Goal/{id}/_history/1"], []),
        ("GET", f"Goal/{id}/_history/1", {}, ["vread R"], [one], [f"Goal/{id}/_history/1"], []),
        ("GET", "Patient?family=Marker", {}, ["search-type E"], [one, other], [], ["Patient?family=Marker"]),
        ("GET", f"Goal?patient={one}&_summary=count", {}, ["search-type E"], [one], [], [f"Goal?patient={one}&_summary=count"]),
        ("POST", "Goal/_search", {"content": f"subject=Patient/{one}", "headers": form}, ["search-type E"], [one], [], [f"Goal?subject=Patient%2F{one}"]),
        ("GET", f"Patient/{one}/Goal", {}, ["search-type E"], [one], [], [f"Patient/{one}?"]),
        ("GET", "?_type=Goal", {}, ["search-system E"], [one], [], ["?_type=Goal"]),
        ("GET", f"Goal?_id={id}&_include=Goal:subject", {}, ["search-type E"], [one], [], [f"Goal?_id={id}&_include=Goal%3Asubject"]),
        ("GET", f"Goal/{id}/_history", {}, ["history-instance R"], [one], [f"Goal/{id}"], []),
        ("GET", f"Patient/{one}/$everything", {}, ["everything E"], [one], [f"Patient/{one}"], []),
        ("PUT", f"Goal/{id}", {"json": moved}, ["update U"], [other], [f"Goal/{id}/_history/2"], []),
        ("GET", f"Goal/{id}/_history/1", {}, ["vread R"], [one], [f"Goal/{id}/_history/1"], []),
        ("PATCH", f"Goal/{id}", {"json": patch, "headers": {"Content-Type": "application/json-patch+json"}}, ["patch U"], [other], [f"Goal/{id}/_history/3"], []),
        ("POST", "", {"json": bundle}, ["read R", "transaction E"], [one, other], None, []),
        ("POST", "", {"json": bundle | {"type": "batch"}}, ["batch E", "create C", "read R"], [one, other], None, []),
        ("DELETE", f"Goal/{id}", {}, ["delete D"], [other], [f"Goal/{id}/_history/4"], []),
        ("GET", f"Goal/{id}", {}, ["read R"], [other], [f"Goal/{id}"], []),
        ("GET", "Organization/nowhere", {}, ["read R"], [], ["Organization/nowhere"], []),
        ("GET", "Goal?nonsense=1", {}, ["search-type E"], [], [], ["Goal?nonsense=1"]),
    ]  # fmt: skip
    for method, path, more, said, about, touched, asked in table:
        answer, events = await hub.asked(method, path, **more)
        name = f"{method} {path} {answer.status_code}"
        assert sorted(f"{subtype(one)} {one['action']}" for one in events) == said, name
        found = {found for event in events for found in patients(event)}
        assert found == {f"Patient/{id}" for id in about}, name
        assert [found for event in events for found in queries(event)] == asked, name
        if touched is not None:
            assert [found for event in events for found in things(event)] == touched, name
        for event in events:
            ok = answer.status_code < 400
            assert (event["outcome"] == "0", event.get("outcomeDesc")) == (ok, None if ok else str(answer.status_code)), name
            assert event["agent"][0]["who"]["identifier"]["value"] == "app"
            assert event["agent"][0]["network"] == {"address": "192.0.2.7", "type": "2"}
            check(json.dumps(event).encode(), "AuditEvent")


async def test_refusals_are_recorded_too(hub):
    one = await patient(hub)
    _, (event,) = await hub.asked("GET", f"Patient/{one}", headers={"Authorization": "Bearer nothing"})
    assert (event["outcome"], event["outcomeDesc"]) == ("8", "401")
    assert event["agent"][0]["who"] == {"display": "somebody who did not sign in"}
    assert patients(event) == [f"Patient/{one}"]
    token = await signed_in(hub.http, "reader", "system/Patient.rs")
    _, (event,) = await hub.asked("GET", "Goal/any", headers={"Authorization": f"Bearer {token}"})
    assert (event["outcome"], event["outcomeDesc"], things(event)) == ("8", "403", ["Goal/any"])
    assert event["agent"][0]["who"]["identifier"]["value"] == "reader"


async def test_the_request_id_is_kept_and_secrets_are_not(hub):
    headers = {"X-Request-Id": "Abc-17"}
    _, (event,) = await hub.asked("GET", "Patient?family=x&access_token=Marker-Secret", headers=headers)
    assert event["entity"][-1]["what"] == {"identifier": {"value": "Abc-17"}}
    assert "Marker-Secret" not in str([event, queries(event)])
    assert queries(event) == ["Patient?family=x&access_token="]
    found = (await hub.http.get("/fhir/AuditEvent?entity:identifier=Abc-17")).json()
    assert [one["resource"]["id"] for one in found["entry"]] == [event["id"]]


async def test_a_client_can_neither_change_nor_delete_an_event_nor_speak_for_the_hub(hub):
    await hub.http.get("/fhir/Patient/nobody")
    await hub.events()
    event = (await hub.http.get("/fhir/AuditEvent?_count=1")).json()["entry"][0]["resource"]
    id = event["id"]
    patch = {"Content-Type": "application/json-patch+json"}
    attempts = [
        ("PUT", f"AuditEvent/{id}", {"json": event | {"outcome": "4"}}),
        ("PATCH", f"AuditEvent/{id}", {"json": [{"op": "remove", "path": "/entity"}], "headers": patch}),
        ("DELETE", f"AuditEvent/{id}", {}),
        ("DELETE", f"AuditEvent?_id={id}", {}),
        ("POST", f"AuditEvent/{id}/$meta-add", {"json": {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "x"}]}}]}}),
        ("POST", "AuditEvent", {"json": event}),
    ]  # fmt: skip
    for method, path, more in attempts:
        answer = await hub.http.request(method, f"/fhir/{path}", **more)
        assert answer.status_code == 403, (method, path, answer.text)
    assert (await hub.http.get(f"/fhir/AuditEvent/{id}")).json() == event
    app = {"type": event["agent"][0]["type"], "who": {"display": "an app"}, "requestor": True}
    own = {**event, "source": {"observer": {"display": "an app"}}, "agent": [app]}
    del own["entity"]
    assert (await hub.http.post("/fhir/AuditEvent", json=own)).status_code == 201


async def test_what_was_read_can_be_deleted_all_the_same(hub):
    one = await patient(hub)
    await hub.asked("GET", f"Patient/{one}")
    assert (await hub.http.delete(f"/fhir/Patient/{one}")).status_code == 204


async def test_events_are_found_by_patient_user_outcome_and_time(hub, clock):
    one = await patient(hub)
    await hub.asked("GET", f"Patient/{one}")
    for query, expected in [
        (f"patient={one}&action=R", 1),
        (f"entity=Patient/{one}&subtype=read&outcome=0", 1),
        (f"patient={one}&date=gt2100", 0),
        ("agent:identifier=app&type=rest&address=192.0.2.7&subtype=read", 1),
    ]:
        found = (await hub.http.get(f"/fhir/AuditEvent?{query}")).json()
        assert len(found.get("entry", [])) == expected, query


async def test_a_journal_that_is_full_refuses_before_anything_is_done(database_url, clock, tmp_path):
    async with audited(database_url, clock, tmp_path, limit=3_000) as hub:
        statuses = [(await hub.http.post("/fhir/Patient", json={"resourceType": "Patient"})).status_code for _ in range(30)]
        assert statuses[0] == 201 and statuses[-1] == 503
        await asyncio.sleep(0)
        made = statuses.count(201)
        events = await hub.events()
        assert sum(subtype(one) == "create" for one in events) == made
        answer = await hub.http.get("/fhir/Patient?_summary=count")
        assert answer.json()["total"] == made


async def test_the_audit_records_who_reads_it_but_not_its_own_writing(hub):
    await hub.asked("GET", "Patient/nobody")
    assert await hub.events() == []
    _, (event,) = await hub.asked("GET", "AuditEvent?outcome=4")
    assert (subtype(event), queries(event)) == ("search-type", ["AuditEvent?outcome=4"])


async def test_who_looked_at_a_record_is_no_part_of_it_unless_it_is_asked_for(hub):
    one = await patient(hub)
    await hub.asked("GET", f"Patient/{one}")
    whole = (await hub.http.get(f"/fhir/Patient/{one}/$everything")).json()
    assert {entry["resource"]["resourceType"] for entry in whole["entry"]} == {"Patient"}
    named = (await hub.http.get(f"/fhir/Patient/{one}/$everything?_type=AuditEvent")).json()
    assert {subtype(entry["resource"]) for entry in named["entry"]} >= {"create", "read"}


async def test_pages_say_the_query_that_they_continue(hub):
    for _ in range(3):
        await patient(hub, "Paged")
    first = (await hub.http.get("/fhir/Patient?family=Paged&_count=2")).json()
    following = next(link["url"] for link in first["link"] if link["relation"] == "next")
    _, (event,) = await hub.asked("GET", following.removeprefix(f"{BASE}/fhir/"))
    assert queries(event)[0].startswith("Patient?family=Paged")
    assert len(patients(event)) == 1


async def test_a_request_that_cannot_be_recorded_is_not_answered(hub, monkeypatch):
    one = await patient(hub)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fhircm.access.audit_journal.os.write", full)
    answer = await hub.http.get(f"/fhir/Patient/{one}")
    assert answer.status_code == 503
    assert one not in answer.text


async def test_what_clients_do_at_the_authorization_server_leaves_its_event(hub):
    await hub.events()
    token = await signed_in(hub.http)
    issued, *more = await hub.events()
    assert not more
    assert (issued["subtype"][0]["code"], issued["outcome"]) == ("ITI-71", "0")
    assert issued["agent"][0]["who"]["identifier"]["value"] == "app"
    sent = hub.http.build_request("POST", "/oauth/token", data={"grant_type": "client_credentials", "client_id": "app"})
    sent.headers.pop("Authorization")
    assert (await hub.http.send(sent)).status_code == 401
    (refused,) = await hub.events()
    assert (refused["subtype"][0]["code"], refused["outcome"]) == ("ITI-71", "8")
    sent = hub.http.build_request("POST", "/oauth/revoke", data={"token": token, "client_id": "stranger\n"})
    sent.headers.pop("Authorization")
    await hub.http.send(sent)
    (revoked,) = await hub.events()
    assert revoked["subtype"][-1]["code"] == "revoke"
    assert token not in json.dumps([issued, refused, revoked])


async def test_a_message_of_hl7_v2_leaves_its_event_too(hub):
    await hub.events()
    answer = await hub.http.post("/hl7v2/nobody", content=b"MSH|", headers={"Content-Type": "application/hl7-v2"})
    (event,) = await hub.events()
    assert answer.status_code == 404, "there is no such partner"
    assert event["subtype"][-1]["code"].endswith("hl7v2") and event["outcome"] != "0"
