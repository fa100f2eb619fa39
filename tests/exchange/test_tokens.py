"""Tokens are shared: the processes of a hub use one, one of them fetches it, and one that dies meanwhile holds nobody up for long."""

import asyncio
import json
import logging
from dataclasses import replace

import httpx
import pytest

from fhircm.access.sealing import Seal
from fhircm.exchange.backend_auth import BackendAuth
from fhircm.exchange.client_keys import signing_key
from fhircm.exchange.proof import Client
from fhircm.exchange.tokens import NAMESPACE, SharedTokens, told
from fhircm.store.database import open_database
from fhircm.store.resources import Store

BASE = "https://ehr.example/fhir"
TOKEN_URL = f"{BASE}/token"


class Ehr:
    """Takes every token that it gave out and did not revoke; `gate` holds its token endpoint up."""

    def __init__(self):
        self.issued, self.good, self.gate, self.hangs = 0, set(), None, False

    @property
    def transport(self):
        return httpx.MockTransport(self.answer)

    async def answer(self, request):
        if str(request.url) == TOKEN_URL:
            if self.hangs:
                self.hangs, gate = False, self.gate
                await gate.wait()
                raise httpx.ReadTimeout("too long")
            if self.gate is not None:
                await self.gate.wait()
            self.issued += 1
            token = f"secret-token-{self.issued}"
            self.good.add(f"Bearer {token}")
            return httpx.Response(200, json={"access_token": token, "token_type": "Bearer", "expires_in": 100, "scope": "a b"})
        return httpx.Response(200 if request.headers["Authorization"] in self.good else 401)


class Process:
    """A process of the hub: a store of its own on the one database, and its own clocks."""

    def __init__(self, store, keys_dir, ehr, lease=15.0):
        self.store, self.passed, self.today = store, 0.0, 1_800_000_000.0
        tokens = SharedTokens(store, Seal.open(keys_dir), lease=lease, now=lambda: self.today, monotonic=lambda: self.passed)
        key = signing_key(keys_dir, "north-clinic", "ES384")
        client = Client("fhircm", keys=lambda: [key])
        self.auth = BackendAuth(
            BASE,
            client,
            ["system/Patient.rs"],
            name="north-clinic",
            token_url=TOKEN_URL,
            tokens=tokens,
            transport=ehr.transport,
            now=lambda: self.today,
            monotonic=lambda: self.passed,
        )
        self.http = httpx.AsyncClient(auth=self.auth, transport=ehr.transport)

    async def get(self):
        return (await self.http.get(f"{BASE}/Patient/1")).status_code

    def pass_time(self, seconds):
        self.passed += seconds
        self.today += seconds


@pytest.fixture
def ehr():
    return Ehr()


@pytest.fixture
async def processes(database_url, clock, tmp_path, ehr):
    stores = [Store(await open_database(database_url), clock=clock) for _ in range(2)]
    yield [Process(store, tmp_path / "keys", ehr) for store in stores]
    for store in stores:
        await store.close()


async def test_the_processes_of_a_hub_use_one_token_and_fetch_the_next_one_once(processes, ehr):
    one, other = processes
    assert await asyncio.gather(*(process.get() for process in (one, other) * 10)) == [200] * 20
    assert ehr.issued == 1
    assert other.auth.granted == ("a", "b")
    for process in processes:
        process.pass_time(70)
    assert await asyncio.gather(one.get(), other.get()) == [200, 200]
    assert ehr.issued == 1
    for process in processes:
        process.pass_time(11)
    assert await asyncio.gather(*(process.get() for process in (one, other) * 10)) == [200] * 20
    assert ehr.issued == 2


async def test_a_refusal_ends_only_the_token_that_was_refused(processes, ehr):
    one, other = processes
    assert (await one.get(), await other.get(), ehr.issued) == (200, 200, 1)
    ehr.good.clear()
    assert await asyncio.gather(*(one.get() for _ in range(5))) == [200] * 5
    assert ehr.issued == 2
    assert await asyncio.gather(*(other.get() for _ in range(5))) == [200] * 5  # refused with the first, it finds the second
    assert ehr.issued == 2
    assert await one.get() == 200


async def test_while_one_fetches_the_others_wait(processes, ehr):
    one, other = processes
    ehr.gate = asyncio.Event()
    first, second = asyncio.create_task(one.get()), asyncio.create_task(other.get())
    await asyncio.sleep(0.25)
    assert not first.done()
    assert not second.done()
    ehr.gate.set()
    assert (await first, await second, ehr.issued) == (200, 200, 1)


async def test_one_that_falls_silent_while_it_fetches_is_not_waited_for_beyond_its_lease(
    database_url, clock, tmp_path, ehr, processes
):
    dead = SharedTokens(processes[0].store, Seal.open(tmp_path / "keys"), lease=0.3)
    assert await dead.claim(processes[1].auth._name, "a process that was killed")
    async with asyncio.timeout(5):
        assert await processes[1].get() == 200
    assert ehr.issued == 1


async def test_one_whose_answer_does_not_come_uses_the_token_of_who_took_over(processes, ehr):
    one, other = processes
    for process in processes:
        process.auth._tokens._lease = 0.2
    ehr.gate, ehr.hangs = asyncio.Event(), True
    slow = asyncio.create_task(one.get())
    while ehr.hangs:
        await asyncio.sleep(0.01)
    gate, ehr.gate = ehr.gate, None
    assert await other.get() == 200
    gate.set()
    assert (await slow, ehr.issued) == (200, 1)


async def test_one_that_gives_up_lets_the_next_one_fetch_at_once(processes, ehr):
    one, other = processes
    ehr.gate = asyncio.Event()
    cancelled = asyncio.create_task(one.get())
    await asyncio.sleep(0.1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    ehr.gate.set()
    async with asyncio.timeout(2):  # far less than the lease
        assert await other.get() == 200


async def test_a_clock_of_another_machine_makes_no_token_last_longer_than_it_does(processes, ehr):
    one, other = processes
    one.today += 86_400  # this machine's clock is a day ahead
    assert (await one.get(), await other.get(), ehr.issued) == (200, 200, 1)
    other.pass_time(81)
    assert await other.get() == 200
    assert ehr.issued == 2


async def test_nothing_that_is_kept_or_logged_tells_a_token(processes, ehr, caplog):
    caplog.set_level(logging.DEBUG)
    one, _ = processes
    assert await one.get() == 200
    kept = json.dumps(await one.store.states(NAMESPACE))
    assert "north-clinic" in kept
    for text in (kept, caplog.text, repr(one.auth), repr(one.auth._held)):
        assert "secret-token" not in text


async def test_a_token_under_another_seal_is_fetched_anew(processes, ehr, tmp_path):
    one, other = processes
    assert await one.get() == 200
    (tmp_path / "keys" / "seal.key").unlink()
    other.auth._tokens = SharedTokens(other.store, Seal.open(tmp_path / "keys"), monotonic=lambda: 0.0)
    assert (await other.get(), ehr.issued) == (200, 2)


async def test_what_sign_in_showed_is_told_to_the_operator(processes):
    tokens, store = processes[0].auth._tokens, processes[0].store
    assert await told(store, "north-clinic") == []
    token = await processes[0].auth.token()
    await tokens.keep("x", replace(token, skew=-90.0, refused_key="k2"), "north-clinic")
    await tokens.keep("y", replace(token, skew=-90.0), "another")
    assert await told(store, "north-clinic") == [
        "Its clock is 90 s behind ours; assertions are dated by its clock",
        "It does not take the key k2 yet, and the one before it signs: ask it to read our JWKS",
    ]
