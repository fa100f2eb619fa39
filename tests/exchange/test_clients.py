"""Clients of many partners are opened when they are needed, shared, and closed when they were not needed for a while."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from fhircm.exchange import clients as room
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.clients import Clients
from tests.exchange.test_pull import partner

PARTNERS = [replace(partner(), name=f"p{number}", base_url=f"https://p{number}.example/fhir") for number in range(30)]


@pytest.fixture
def world(monkeypatch):
    """The clients, which of them are open, and a clock."""
    open_now, now = [], [0.0]
    monkeypatch.setattr(room, "monotonic", lambda: now[0])

    @asynccontextmanager
    async def opened(one):
        async def answer(request):
            return httpx.Response(200, json={"resourceType": "Binary", "id": "b", "data": "aGk="})

        open_now.append(one.name)
        async with PartnerClient(one, transport=httpx.MockTransport(answer)) as client:
            yield client
        await asyncio.sleep(0)  # closing takes its time, and others go on meanwhile
        open_now.remove(one.name)

    return Clients(PARTNERS, opened, idle=60.0), open_now, now


async def test_a_client_is_shared_while_it_is_used_and_closed_when_it_was_idle(world):
    clients, open_now, now = world
    async with clients, clients.at("p1") as first:
        async with clients.at("p1") as second, clients.at("p2"):
            assert first is second
        now[0] = 100.0
        async with clients.at("p3"):
            pass
        assert open_now == ["p1", "p3"]  # p1 is in use, however long
    assert open_now == []


async def test_many_at_once_are_closed_once_each(world):
    clients, open_now, now = world

    async def use(number):
        async with clients.at(f"p{number}"):
            await asyncio.sleep(0)

    async with clients:
        for _ in range(3):
            await asyncio.gather(*(use(number) for number in range(30)))
            now[0] += 100.0
        await use(0)
        assert open_now == ["p0"]


async def test_a_document_is_fetched_where_its_address_belongs(world):
    clients, open_now, _ = world
    async with clients:
        assert await clients.fetch("https://p7.example/fhir/Binary/b") == b"hi"
        assert open_now == ["p7"]
        with pytest.raises(LookupError):
            await clients.fetch("https://elsewhere.example/fhir/Binary/b")
