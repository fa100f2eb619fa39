"""Exactly one of 64 organisations has a request that was given to all, when all accept it over HTTP at the same moment."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from tests.access.world import Someone, admitted
from tests.rest.conftest import BASE, REST

from .conftest import World
from .network import NEED, Network, ref

MANY = [f"m{number}" for number in range(64)]


@pytest.fixture
async def hub(database_url, clock, tmp_path):
    app = create_app(
        AppConfig(database_url, BASE, tmp_path / "keys", replace(REST, grace=timedelta(days=7)), False, clock, list(RULES))
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, timeout=60) as http,
    ):
        network = Network(World(app.state.store, clock))
        await network.world.begin()
        await network.begin()
        await network.written(*({"resourceType": "Organization", "id": one, "active": True, "name": one} for one in MANY))
        yield network, http


async def tokens(network, names=MANY):
    made = [Someone(one, "system/*.cruds", f"Organization/{one}") for one in names]
    return {one.name: {"Authorization": f"Bearer {await admitted(network.store.database, one)}"} for one in made}


async def test_one_of_64_has_it(hub):
    network, http = hub
    signed_in = await tokens(network)
    await network.order("s", to=MANY, how="first-accept")
    asked = await network.tasks("s")

    async def accept(number, who):
        """Half of them by the operation, half by a plain update."""
        url, headers = f"/fhir/Task/{asked[who]['id']}", signed_in[who]
        if number % 2:
            return who, await http.post(f"{url}/$accept", headers=headers)
        return who, await http.put(url, json=asked[who] | {"status": "accepted"}, headers=headers)

    answers = dict(await asyncio.gather(*(accept(number, who) for number, who in enumerate(MANY))))
    (winner,) = (who for who, answer in answers.items() if answer.status_code == 200)
    refused = [answer for who, answer in answers.items() if who != winner]
    assert {answer.status_code for answer in refused} == {409}
    assert all("Another organisation has accepted this request already" in answer.text for answer in refused)
    await network.react()
    states = await network.states("s")
    assert states.pop(winner) == "accepted"
    assert set(states.values()) == {("cancelled", "filled-by-another")}


async def test_one_of_those_who_are_able_takes_an_open_request(hub):
    network, http = hub
    some = MANY[:16]
    signed_in = await tokens(network, some)
    services = [
        {"resourceType": "HealthcareService", "id": f"s-{one}", "providedBy": ref(f"Organization/{one}"), "type": [NEED]}
        for one in some
    ]
    await network.written(*services)
    await network.order("t", performerType=NEED)
    task = (await network.tasks("t"))[""]
    url = f"/fhir/Task/{task['id']}"

    async def accept(number, who):
        if number % 2:
            return who, await http.post(f"{url}/$accept", headers=signed_in[who])
        taken = task | {"status": "accepted", "owner": ref(f"Organization/{who}")}
        return who, await http.put(url, json=taken, headers=signed_in[who])

    answers = dict(await asyncio.gather(*(accept(number, who) for number, who in enumerate(some))))
    (winner,) = (who for who, answer in answers.items() if answer.status_code == 200)
    assert {answer.status_code for who, answer in answers.items() if who != winner} <= {403, 409}
    assert await network.states("t") == {winner: "accepted"}
