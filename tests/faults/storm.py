"""A storm of faults on both sides of the exchange, out of one seed: two EHRs, a hub that lives many short lives, and then quiet.

Everything runs in this process, so that thousands of runs are affordable: requests reach the sandbox EHRs without a socket, and a hub
that is killed can do nothing any more, not even in its `finally`: neither database nor network answer it. What is real: the databases, their
errors (a full disk on SQLite, connections that the PostgreSQL server ends), the EHRs' rules and their sign-in, and the product's own code
from the worker's rounds to SQL.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from random import Random

import asyncpg

import fhircm.store.resources
import fhircm.worker
from fhircm.access.sealing import Seal
from fhircm.attendance import Attendance
from fhircm.coordination import build
from fhircm.exchange.backend_auth import BackendAuth
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.client_keys import public_jwks, signing_keys
from fhircm.exchange.clients import Clients
from fhircm.exchange.credentials import client_at
from fhircm.exchange.due import queue
from fhircm.exchange.news import CURSOR, News
from fhircm.exchange.partners import load_partner, load_partners
from fhircm.exchange.tokens import SharedTokens
from fhircm.fhir.outcome import FhirError
from fhircm.partnering import round_of
from fhircm.reactions import Reaction, reactions, timer_handlers
from fhircm.sandbox.__main__ import sandbox
from fhircm.sandbox.chart import Chart
from fhircm.sandbox.ehr import Ehr, vendor
from fhircm.sandbox.population import population
from fhircm.sandbox.signin import SignIn
from fhircm.sandbox.staff import Staff, known_at_both
from fhircm.settings import Settings
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable, open_database
from fhircm.store.resources import Plan, Put, SetState, Store
from fhircm.wiring import RULES, _parked, _unparked, context
from fhircm.worker import Worker
from tests.faults.people import People
from tests.faults.weather import Killed, Life, MortalDatabase, Weather, Wire

HOSPITAL, CLINIC = "lakeside-hospital", "riverbend-clinic"
SILENT = 120.0  # seconds that leases are put forward by when a hub was killed: longer than any lease
PLAIN = """
shape: r4
base_url: http://127.0.0.1:9102/fhir
client_id: fhircm
organization: {id: riverbend, name: Riverbend Clinic, npi: "1982736450"}
time_zone: America/Chicago
calendar: {country: US, subdivision: IL}
panel: {group: panel}
scopes: [system/*.rs, system/*.cruds]
deliver:
  referral-sent: [[referral-task, referral-order, letter], [message, none]]
  referral-accepted: []
  care-plan-changed: default
  care-team-changed: default
  goal-changed: default
  order-changed: default
  task-changed: default
"""  # the clinic of every other seed: it takes the hub's own resources natively


class Leases:
    """The real time by which leases are held. `pass_by` lets those of the dead run out."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def pass_by(self) -> None:
        self.ahead += SILENT


@dataclass
class Ledger:
    """What was seen of the queues: where each delivery stood in line, and what was ever put aside."""

    places: dict[tuple[str, str], str] = field(default_factory=dict)  # partner, occasion: place
    parked: set[tuple[str, str]] = field(default_factory=set)  # partner, key


class WatchedStore(Store):
    """The store, with a look at what goes into the queues."""

    ledger: Ledger

    async def transact(self, operations, *, origin):
        if isinstance(operations, Plan):
            make = operations.make
            return await super().transact(replace(operations, make=lambda found: self._watched(make(found))), origin=origin)
        return await super().transact(self._watched(operations), origin=origin)

    def _watched(self, operations):
        for one in operations:
            if isinstance(one, SetState) and one.value is not None:
                kind, _, partner = one.namespace.rpartition(":")
                place, _, occasion = one.key.partition(":")
                if kind == "queue":
                    self.ledger.places.setdefault((partner, occasion), place)
                if kind == "parked:push":
                    self.ledger.parked.add((partner, one.key))
        return operations


@cache
def shipped():
    """The partners that fhircm ships, read once for many storms."""
    return load_partners(names=[HOSPITAL, CLINIC])


class Storm:
    """One run. `begin` once, then `blow`, `calm`, and the checks of tests/faults/agreement.py."""

    def __init__(self, seed: int, database_url: str, folder: Path, humans: int = 3) -> None:
        self.seed, self.url, self.folder = seed, database_url, folder
        self.random = Random(seed)
        self.weather = Weather(self.random)
        self.leases, self.ledger = Leases(), Ledger()
        self.now = self.there = datetime.now(UTC)  # the hub's clock, and the EHRs'
        self.lives = 0
        self.twins = seed % 3 == 0  # two hubs at once
        self.plain = seed % 2 == 0
        today = population(seed, humans, self.now.date())
        charts = {
            HOSPITAL: Chart(today.hospital, clock=lambda: self.there),
            CLINIC: Chart(today.clinic, clock=lambda: self.there),
        }
        known = known_at_both(today.truth)
        self.keys = folder.parent / "keys"  # the same for all seeds
        self.settings = Settings(
            database_url=database_url, keys_dir=self.keys, audit=False, pull_interval=timedelta(minutes=1), push_attempts=4
        )
        self.partners = {one.name: self.quick(one) for one in self.chosen()}
        self.ehrs, self.apps, self.staff = {}, {}, {}
        for name, partner in self.partners.items():
            habits = vendor({"lakeside-hospital": "epic"}.get(name, "r4" if self.plain else "oracle"))
            habits["algorithm"] = partner.algorithm
            server = partner.base_url.removesuffix(habits["base_path"])
            signing_keys(self.keys, name, partner.algorithm)
            sign_in = SignIn("fhircm", self.published, f"{server}/oauth2/token", habits["algorithm"], habits["scopes"], 3600)
            self.ehrs[name] = Ehr(habits, partner.base_url, charts[name], sign_in)
            self.staff[name] = Staff(charts[name], known)
            self.apps[name] = sandbox(self.ehrs[name], self.staff[name], server)
        self.people = People(self)

    def chosen(self):
        if not self.plain:
            return shipped()
        path = self.folder / CLINIC / "partner.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLAIN)
        return [shipped()[0], load_partner(path)]

    def quick(self, partner):
        """The partner as it is, but nobody waits, and it is read in full once a day."""
        limits = replace(partner.limits, requests_per_second=100_000.0, attempts=2, patience=0.5)
        schedule = replace(partner.schedule, full=timedelta(days=1))
        return replace(partner, limits=limits, schedule=schedule, algorithm="ES384")  # RSA takes its time

    def comes_today(self, database_url):
        """A hub that knows the same EHRs, at this hour, and nothing of what was."""
        other = copy(self)
        other.url, other.weather, other.ledger = database_url, Weather(self.random, loud=0.0), Ledger()
        return other

    async def published(self):
        return public_jwks(self.keys)["keys"]

    @contextmanager
    def felt(self):
        """Leases by the storm's own time, and no pauses between attempts at one change."""
        module, pause = fhircm.store.resources, fhircm.worker.RETRY
        before, module.time, fhircm.worker.RETRY = module.time, self.leases, 0.0
        try:
            yield
        finally:
            module.time, fhircm.worker.RETRY = before, pause

    # --- the hub ---------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hub(self):
        """One life of the hub, until it is left or killed."""
        life = Life()
        self.lives += 1
        inner = await open_database(self.url)
        store = WatchedStore(MortalDatabase(inner, life, self.weather, self), clock=lambda: self.now, rules=RULES)
        store.ledger = self.ledger
        hub = Hub(self, store, life)
        try:
            yield hub
        finally:
            life.dead = True
            await hub.end()
            await asyncio.sleep(0)
            await inner.close()

    async def begin(self):
        """The organisation that coordinates is there before anything else."""
        store = Store(await open_database(self.url), clock=lambda: self.now, rules=RULES)
        await store.transact([Put(build.coordinating_organization(self.settings.organization_name), if_version=0)], origin="hub")
        await store.close()

    async def restart_database(self):
        """The database server ends every connection; SQLite has none to end."""
        if self.url.startswith("postgresql"):
            connection = await asyncpg.connect(self.url)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await connection.close()

    # --- what happens ----------------------------------------------------------------------------------------------------------

    async def blow(self, rounds: int):
        """So many rounds of work while people act and things go wrong."""
        self.left = rounds
        await asyncio.gather(*(self._one() for _ in range(2 if self.twins else 1)))

    async def _one(self):
        while self.left > 0:
            try:
                async with self.hub() as hub:
                    while self.left > 0:
                        self.left -= 1
                        self.now += timedelta(minutes=2)
                        self.there += timedelta(minutes=2)
                        await self.people.act(hub)
                        await hub.round()
            except Killed:
                self.leases.pass_by()

    # --- quiet -----------------------------------------------------------------------------------------------------------------

    async def calm(self):
        """Everything works again; the hub is left to itself until it has nothing more to do."""
        self.weather.quiet()
        self.leases.pass_by()
        self.people.mend()
        self.now = self.there = max(self.now, self.there)
        async with self.hub() as hub:
            quiet = 0
            for number in range(30):
                # What waited is due, and every partner is read in full; then time hardly moves, so that deadlines end nothing more.
                self.now = self.there = self.now + (timedelta(hours=25) if number < 2 else timedelta(minutes=6))
                before = await hub.last()
                await hub.round()
                waiting = [key for name in self.partners for key in await hub.store.state_keys(queue(name), 1)]
                quiet = quiet + 1 if await hub.last() == before and not waiting else 0
                if quiet >= 2 and number > 2:
                    return
        raise AssertionError(f"seed {self.seed}: the hub does not come to rest; it waits with {waiting[:2]}")


class Hub:
    """One life of the hub: what its worker runs, with the network in the storm's hands."""

    def __init__(self, storm: Storm, store: Store, life: Life) -> None:
        self.storm, self.store, self.life = storm, store, life
        chosen = list(storm.partners.values())
        self.around = context(storm.settings, store, chosen)
        self.clients = Clients(chosen, self.connect)
        reader = News(store, chosen)
        listening = [*reactions(self.around), Reaction(CURSOR, reader.types, reader.tell)]
        park, unpark = partial(_parked, self.around), partial(_unparked, self.around)
        self.worker = Worker(store, listening, timer_handlers(self.around), park, unpark)
        rounds = {one.name: partial(round_of, storm.settings, store, self.clients, one, self.around) for one in chosen}
        self.attendance = Attendance(store, rounds, self.worker.holder, self.worker.lease)

    @asynccontextmanager
    async def connect(self, partner):
        """A client that signs in as the partner's file says, over the storm's wire."""
        storm, told = self.storm, partner.credentials
        wire = Wire(storm.apps[partner.name], self.life, storm.weather, storm, partner.name)
        tokens = SharedTokens(self.store, Seal.open(storm.keys))
        auth = BackendAuth(
            partner.base_url, client_at(partner, storm.keys), partner.scopes, name=partner.name,
            token_url=told.token_endpoint, tokens=tokens, transport=wire,
        )  # fmt: skip

        async def at_once(_):
            await asyncio.sleep(0)

        yield PartnerClient(partner, auth, transport=wire, sleep=at_once)

    async def round(self) -> None:
        """One round of everything, as the worker does it; what fails is left for the next."""
        await self.tried(self.attendance.plan())
        for _ in range(2):
            await self.tried(self.attendance.start())
            turns = list(self.attendance._running.values())
            if any(isinstance(end, Killed) for end in await asyncio.gather(*turns, return_exceptions=True)):
                raise Killed
            for reaction in self.worker.reactions:
                await self.tried(self.worker.react(reaction))
            await self.tried(self.worker.run_timers())

    async def tried(self, work) -> None:
        """Do something that the worker would try again."""
        try:
            await work
        except (FhirError, CursorMoved, DatabaseUnavailable, sqlite3.OperationalError, asyncpg.PostgresError, OSError) as error:
            self.storm.weather.happened[f"the worker met {type(error).__name__}"] += 1
        except asyncpg.InterfaceError:
            self.storm.weather.happened["the worker met a closed connection"] += 1

    async def last(self) -> int:
        """The number of the last change."""
        async with self.store.database.reading() as connection:
            return await connection.fetchval("SELECT max(number) FROM change") or 0

    async def end(self) -> None:
        await self.attendance.close()
