"""The hub of a simulated year: its real application behind a real socket, its real worker, and one clock that the year moves.

What is not as in production: application and worker share a process, so that they share the clock, and the worker is let run until nothing
is left to do whenever the clock has moved, in place of running all the time.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from benchmarks.year.network import Kind, Network, Place
from benchmarks.year.records import records
from fhircm import wiring
from fhircm.app import AppConfig, create_app
from fhircm.coordination import build, open_loops
from fhircm.coordination.context import Context
from fhircm.fhir.validation import check_tree
from fhircm.reactions import reactions, timer_handlers
from fhircm.rest.exchange import RestSettings
from fhircm.settings import Settings
from fhircm.store.credentials import Credentials, TokenRecord
from fhircm.store.resources import Put, Store
from fhircm.worker import Worker

_FOREVER = 4_102_444_800  # the year 2100, in seconds since the epoch
_COORDINATOR: Kind = "coordinator"


@dataclass
class Clock:
    """The time of the year."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Hub:
    """The hub while it runs. `feed` brings what happens in the hospitals, as their integration engines do; `at` are clients by place."""

    store: Store
    worker: Worker
    checking: Worker
    clock: Clock
    around: Context
    feed: httpx.AsyncClient
    coordinator: httpx.AsyncClient
    at: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    done: int = 0  # reactions and timers
    stirred: bool = True  # something was written since the worker was idle

    async def react(self, until: datetime) -> None:
        """Let the worker do everything that there is to do by then, timers at their time."""
        kinds = frozenset(handler.kind for handler in self.worker.timers)
        if self.stirred:
            self.done, self.stirred = self.done + await self.worker.run_until_idle(), False
        while (due := await self.store.next_due(kinds)) is not None and due <= until:
            self.clock.now = max(self.clock.now, due)
            self.done += await self.worker.run_until_idle()
        self.clock.now = max(self.clock.now, until)

    async def check(self) -> None:
        """Let the standing check go over all that is open; it would go round the clock, and here does so once."""
        begun = self.clock.now
        while (timer := await self.store.timer(open_loops.KIND)) is not None and timer.due <= begun + open_loops.PAUSE:
            self.clock.now = max(self.clock.now, timer.due)
            self.done += await self.checking.run_timers()
        self.done += await self.worker.run_until_idle()


@asynccontextmanager
async def running(url: str, folder: Path, network: Network, start: datetime) -> AsyncIterator[Hub]:
    """The hub with the network on record and a client for each of its places."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base, clock = f"http://127.0.0.1:{port}", Clock(start)
    settings = Settings(database_url=url, public_base_url=base, keys_dir=folder / "keys", audit=False)
    rest = RestSettings(2_000_000, 20_000_000, True, 1, grace=settings.access_grace)
    app = create_app(AppConfig(url, base, folder / "keys", rest, False, clock, wiring.RULES))
    async with app.router.lifespan_context(app):
        store: Store = app.state.store
        organization = build.coordinating_organization(settings.organization_name)
        await store.transact([Put(organization, if_version=0)], origin="hub")
        for load in records(network):
            await store.transact([Put(check_tree(tree), if_version=0) for tree in load], origin="load")
        around = replace(wiring.context(settings, store, []), window=settings.transition_window)
        parts = (partial(wiring._parked, around), partial(wiring._unparked, around))
        timers = timer_handlers(around)
        worker = Worker(store, reactions(around), [one for one in timers if one.kind != open_loops.KIND], *parts)
        checking = Worker(store, [], [one for one in timers if one.kind == open_loops.KIND], *parts)
        server = uvicorn.Server(
            uvicorn.Config(app, "127.0.0.1", port, lifespan="off", log_level="error", timeout_keep_alive=3600)
        )
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        clients = _Clients(store, base)
        feed = await clients.make("feed", None, "custodian")
        coordinator = await clients.make(_COORDINATOR, f"Organization/{organization.id}", "custodian")
        hub = Hub(store, worker, checking, clock, around, feed, coordinator)
        await open_loops.begin(store)
        for place in network.places:
            hub.at[place.id] = await clients.make(place.id, place.reference, "system")
        hub.done += await worker.run_until_idle()
        try:
            yield hub
        finally:
            for one in (feed, coordinator, *hub.at.values()):
                await one.aclose()
            server.should_exit = True
            await serving


@dataclass
class _Clients:
    store: Store
    base: str

    async def make(self, name: str, organization: str | None, role: str) -> httpx.AsyncClient:
        credentials, token = Credentials(self.store.database), secrets.token_urlsafe(32)
        registration: dict[str, Any] = {"scope": "system/*.cruds", "roles": [role]}
        if organization:
            registration["organization"] = organization
        await credentials.add_client(name, registration)
        await credentials.save_token(token, TokenRecord(name, "system/*.cruds", _FOREVER), 0)
        return httpx.AsyncClient(base_url=f"{self.base}/fhir", headers={"Authorization": f"Bearer {token}"}, timeout=120)


def coordinator_of(hub: Hub) -> Place:
    """The organisation that runs the hub, as one that works its own list."""
    return Place(hub.around.organization, _COORDINATOR, hub.around.organization_name)
