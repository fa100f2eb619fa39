"""Thirty-two clients at once, over two applications on one database as two processes have it: one winner, nothing twice, no 5xx."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import pytest

from fhircm.app import AppConfig, create_app

from .conftest import REST
from .signing import BASE, register, signed_in

JSON = {"Content-Type": "application/fhir+json"}
MANY = 32


@pytest.fixture
async def clients(database_url, clock, tmp_path):
    await register(database_url, "app", "system/*.cruds")
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(2):
            app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, []))
            await stack.enter_async_context(app.router.lifespan_context(app))
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)
            opened.append(await stack.enter_async_context(http))
        token = await signed_in(opened[0])
        for http in opened:
            http.headers["Authorization"] = f"Bearer {token}"
        yield opened


async def at_once(clients, ask):
    return await asyncio.gather(*(ask(clients[n % 2], n) for n in range(MANY)))


def patient(value, **members):
    return {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": value}], **members}


async def total(clients, query):
    return (await clients[0].get(f"/fhir/Patient?_summary=count&{query}")).json()["total"]


async def test_one_update_wins_and_the_others_learn_of_it(clients):
    made = (await clients[0].post("/fhir/Patient", json=patient("1"), headers=JSON)).json()

    async def ask(http, n):
        tree = made | {"multipleBirthInteger": n}
        return await http.put(f"/fhir/Patient/{made['id']}", json=tree, headers=JSON | {"If-Match": 'W/"1"'})

    answers = await at_once(clients, ask)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: MANY - 1}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
async def test_of_equal_conditional_creates_one_creates_and_all_lead_to_it(clients, inside):
    condition = "identifier=urn:mrn|1"

    async def ask(http, n):
        if not inside:
            answer = await http.post("/fhir/Patient", json=patient("1"), headers=JSON | {"If-None-Exist": condition})
            return answer.status_code, answer.json()["id"]
        create = {"resource": patient("1"), "request": {"method": "POST", "url": "Patient", "ifNoneExist": condition}}
        other = {"resource": patient(f"other-{n}"), "request": {"method": "POST", "url": "Patient"}}
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [other, create]}
        answer = await http.post("/fhir", json=bundle, headers=JSON)
        assert answer.status_code == 200, answer.text
        response = answer.json()["entry"][1]["response"]
        return int(response["status"][:3]), response["location"].split("/")[-3]

    answers = await at_once(clients, ask)
    assert Counter(status for status, _ in answers) == {201: 1, 200: MANY - 1}
    assert len({id for _, id in answers}) == 1
    assert await total(clients, condition) == 1


async def test_of_equal_conditional_updates_one_creates(clients):
    async def ask(http, n):
        return await http.put("/fhir/Patient?identifier=urn:mrn|1", json=patient("1", multipleBirthInteger=n), headers=JSON)

    answers = await at_once(clients, ask)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: MANY - 1}
    versions = sorted(int(answer.headers["ETag"][3:-1]) for answer in answers)
    assert versions == list(range(1, MANY + 1)), "no update was lost"


async def test_transactions_over_the_same_resources_in_opposite_order_all_finish(clients):
    made = [(await clients[0].post("/fhir/Patient", json=patient(name), headers=JSON)).json() for name in "abc"]

    async def ask(http, n):
        listed = made if n % 2 else made[::-1]
        puts = [
            {"resource": one | {"multipleBirthInteger": n}, "request": {"method": "PUT", "url": f"Patient/{one['id']}"}}
            for one in listed
        ]
        return await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": puts}, headers=JSON)

    assert {answer.status_code for answer in await at_once(clients, ask)} == {200}
    last = [(await clients[1].get(f"/fhir/Patient/{one['id']}")).json() for one in made]
    assert len({one["multipleBirthInteger"] for one in last}) == 1, "all are from the same transaction"
    assert {one["meta"]["versionId"] for one in last} == {str(MANY + 1)}


async def test_patches_without_a_version_all_count(clients):
    made = (await clients[0].post("/fhir/Patient", json=patient("1"), headers=JSON)).json()

    async def ask(http, n):
        change = [{"op": "add", "path": "/identifier/-", "value": {"value": str(n)}}]
        headers = {"Content-Type": "application/json-patch+json"}
        return await http.patch(f"/fhir/Patient/{made['id']}", json=change, headers=headers)

    assert {answer.status_code for answer in await at_once(clients, ask)} == {200}
    now = (await clients[0].get(f"/fhir/Patient/{made['id']}")).json()
    assert {one["value"] for one in now["identifier"]} == {"1", *(str(n) for n in range(MANY))}


async def test_mixed_work_on_few_resources_never_meets_an_error_of_the_server(clients):
    made = [(await clients[0].post("/fhir/Patient", json=patient(str(n)), headers=JSON)).json()["id"] for n in range(4)]

    async def ask(http, n):
        id = made[n % 4]
        answers = [
            await http.put(f"/fhir/Patient/{id}", json=patient("9", id=id), headers=JSON),
            await http.delete("/fhir/Patient?identifier=urn:mrn|9"),
            await http.post("/fhir/Condition", json={"resourceType": "Condition", "subject": {"reference": f"Patient/{id}"}}, headers=JSON),
            await http.delete(f"/fhir/Patient/{id}"),
            await http.get("/fhir/Patient?_sort=-_lastUpdated&_revinclude=Condition:patient"),
        ]  # fmt: skip
        return [answer.status_code for answer in answers]

    statuses = Counter(status for one in await at_once(clients, ask) for status in one)
    assert max(statuses) < 500, statuses
