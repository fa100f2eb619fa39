"""A storm of faults on both sides of the exchange, out of one seed: two EHRs, a hub that lives many short lives, and then quiet.

Everything runs in this process, so that thousands of runs are affordable: requests reach the sandbox EHRs without a socket, and a hub
that is killed can do nothing any more, not even in its `finally`: neither database nor network answer it. What is real: the databases, their
errors (a full disk on SQLite, connections that the PostgreSQL server ends), the EHRs' rules, and the product's own code from worker to SQL.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import asyncpg
import httpx

from fhircm.coordination import build
from fhircm.exchange import capabilities, mirror
from fhircm.exchange.client import PartnerClient, PartnerUnavailable
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import load_partners
from fhircm.exchange.pull import PullRunning, pull
from fhircm.exchange.push import push
from fhircm.fhir.outcome import FhirError
from fhircm.reactions import reactions, timer_handlers
from fhircm.sandbox.__main__ import sandbox
from fhircm.sandbox.chart import Chart
from fhircm.sandbox.ehr import Ehr, vendor
from fhircm.sandbox.population import population
from fhircm.sandbox.staff import NotPossible, Staff, known_at_both
from fhircm.settings import Settings
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable, open_database
from fhircm.store.resources import Put, Store
from fhircm.wiring import RULES, context
from fhircm.worker import Worker

HOSPITAL, CLINIC = "lakeside-hospital", "riverbend-clinic"
VENDORS = {HOSPITAL: "epic", CLINIC: "oracle"}
LEASE = 0.2  # seconds of real time that a killed hub is missed for
LOUD = 0.06  # how likely a request meets a fault while it storms
TYPES_TO_EDIT = ("CarePlan", "Goal", "Encounter", "Condition", "CareTeam", "Coverage")


class Killed(BaseException):
    """The hub's process ends here."""


@dataclass
class Life:
    """One life of the hub's process."""

    dead: bool = False

    def end(self) -> None:
        self.dead = True
        raise Killed

    def check(self) -> None:
        if self.dead:
            raise Killed


@dataclass
class Weather:
    """What goes wrong, and how often; `quiet` ends it."""

    random: Random
    loud: float = LOUD
    happened: Counter = field(default_factory=Counter)

    def quiet(self) -> None:
        self.loud = 0.0

    def strikes(self, often: float = 1.0) -> bool:
        return self.loud > 0 and self.random.random() < self.loud * often

    def one_of(self, *kinds: str) -> str:
        kind = self.random.choice(kinds)
        self.happened[kind] += 1
        return kind


class MortalDatabase:
    """The database as one life of the hub sees it."""

    def __init__(self, database, life: Life, weather: Weather, storm: Storm) -> None:
        self.inner, self.life, self.weather, self.storm = database, life, weather, storm
        self.dialect = database.dialect

    @asynccontextmanager
    async def reading(self, *, one_moment=False):
        self.life.check()
        async with self.inner.reading(one_moment=one_moment) as connection:
            yield connection
            self.life.check()

    @asynccontextmanager
    async def writing(self):
        self.life.check()
        kind = None
        if self.weather.strikes():
            kind = self.weather.one_of("kill before commit", "kill after commit", "disk full", "database restart")
        if kind == "database restart":
            await self.storm.restart_database()
        async with self.full() if kind == "disk full" else self.inner.writing() as connection:
            yield connection
            self.life.check()
            if kind == "kill before commit":
                self.life.end()
        if kind == "kill after commit":
            self.life.end()

    @asynccontextmanager
    async def full(self):
        """A transaction on a disk with no room left."""
        if self.dialect == "postgresql":  # as its server would say it
            async with self.inner.writing() as connection:
                yield connection
                raise asyncpg.DiskFullError("could not extend file: No space left on device")
        raw = self.inner._writer.raw
        raw.execute(f"PRAGMA max_page_count = {raw.execute('PRAGMA page_count').fetchone()[0]}")
        try:
            async with self.inner.writing() as connection:
                yield connection
        finally:
            raw.execute("PRAGMA max_page_count = 1073741823")

    async def wait(self, seconds):
        self.life.check()

    async def close(self):
        await self.inner.close()


class Wire(httpx.AsyncBaseTransport):
    """The network between one life of the hub and one EHR."""

    def __init__(self, app, life: Life, weather: Weather, storm: Storm, party: str) -> None:
        self.inner = httpx.ASGITransport(app=app)
        self.life, self.weather, self.storm, self.party = life, weather, storm, party

    async def handle_async_request(self, request):
        self.life.check()
        if not self.weather.strikes():
            return await self.through(request)
        kind = self.weather.one_of(
            "cut before", "cut after", "timeout before", "timeout after", "429", "500", "503 after", "html", "truncated",
            "pages repeated", "pages reordered", "kill before", "kill after", "tokens expire",
        )  # fmt: skip
        match kind:
            case "cut before":
                raise httpx.ConnectError("refused")
            case "timeout before":
                raise httpx.ReadTimeout("slow")
            case "429":
                return httpx.Response(429, headers={"Retry-After": "1"})
            case "500":
                return httpx.Response(500)
            case "html":
                return httpx.Response(200, html="<html><body>Service temporarily unavailable</body></html>")
            case "kill before":
                self.life.end()
            case "tokens expire":
                self.storm.ehrs[self.party].sign_in.expire_all()
                return await self.through(request)
        answer = await self.through(request)
        match kind:
            case "cut after":
                raise httpx.ReadError("reset")
            case "timeout after":
                raise httpx.ReadTimeout("slow")
            case "503 after":
                return httpx.Response(503)
            case "kill after":
                self.life.end()
            case "truncated":
                return httpx.Response(answer.status_code, content=answer.content[: len(answer.content) // 2])
        return self.shuffled(answer, kind)

    def shuffled(self, answer, kind):
        """A page whose entries come in another order, or twice."""
        try:
            tree = answer.json()
        except ValueError:
            return answer
        entries = tree.get("entry") if isinstance(tree, dict) else None
        if not entries:
            return answer
        tree["entry"] = entries[::-1] if kind == "pages reordered" else [*entries, *entries[:2]]
        return httpx.Response(answer.status_code, json=tree, headers={"Date": answer.headers["Date"]})

    async def through(self, request):
        answer = await self.inner.handle_async_request(request)
        content = await answer.aread()
        self.life.check()
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        headers["Date"] = format_datetime(self.storm.there, usegmt=True)
        return httpx.Response(answer.status_code, headers=headers, content=content)


class Storm:
    """One run. `begin` once, then `blow`, `calm`, and the checks."""

    def __init__(self, seed: int, database_url: str, folder, humans: int = 6) -> None:
        self.seed, self.url, self.folder = seed, database_url, folder
        self.random = Random(seed)
        self.weather = Weather(self.random)
        self.now = datetime.now(UTC)
        self.lives = 0
        self.trouble: list[str] = []  # why pulls failed
        people = population(seed, humans, self.now.date())
        self.there = self.now  # the EHRs' clock
        charts = {HOSPITAL: DatedChart(people.hospital, self), CLINIC: DatedChart(people.clinic, self)}
        known = known_at_both(people.truth)
        self.partners = {one.name: self.quick(one) for one in load_partners(names=[HOSPITAL, CLINIC])}
        self.settings = Settings(database_url=database_url, keys_dir=folder / "keys", audit=False)
        self.ehrs, self.apps, self.staff = {}, {}, {}
        for name, partner in self.partners.items():
            self.ehrs[name] = Ehr(vendor(VENDORS[name]), partner.base_url, charts[name], Doorkeeper())
            self.staff[name] = Staff(charts[name], known)
            self.apps[name] = sandbox(
                self.ehrs[name], self.staff[name], partner.base_url.removesuffix(self.ehrs[name].habits["base_path"])
            )
        self.interactions = {
            (name, type): list(served["interactions"])
            for name, ehr in self.ehrs.items()
            for type, served in ehr.habits["types"].items()
        }

    def quick(self, partner):
        """The partner as it is, but nobody waits."""
        from dataclasses import replace

        return replace(partner, limits=replace(partner.limits, requests_per_second=100_000.0, attempts=2, patience=0.5))

    # --- the hub ---------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hub(self):
        """One life of the hub, until it is left or killed."""
        life = Life()
        self.lives += 1
        inner = await open_database(self.url)
        store = Store(MortalDatabase(inner, life, self.weather, self), clock=lambda: self.now, rules=RULES)

        async def at_once(_):
            await asyncio.sleep(0)

        clients = {
            name: PartnerClient(partner, Ticket(), transport=Wire(self.apps[name], life, self.weather, self, name), sleep=at_once)
            for name, partner in self.partners.items()
        }
        try:
            yield Hub(self, store, clients)
        finally:
            life.dead = True
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
        done = 0
        while done < rounds:
            try:
                async with self.hub() as hub:
                    while done < rounds:
                        self.happen()
                        await hub.round()
                        done += 1
            except Killed:
                done += 1

    def happen(self):
        """Something at an EHR, or to a clock, or to what an EHR can do."""
        for _ in range(self.random.randrange(1, 4)):
            name = self.random.choice([HOSPITAL, CLINIC])
            act = self.random.choice(
                ["edit", "edit", "edit", "remove", "discharge", "order", "book", "note", "clock", "capability"]
            )
            getattr(self, f"_{act}")(name)

    def _edit(self, name):
        chart = self.ehrs[name].chart
        found = [one for type in TYPES_TO_EDIT for one in chart.of_type(type)]
        one = self.random.choice(sorted(found, key=lambda tree: (tree["resourceType"], tree["id"])))
        note = f"changed {self.random.randrange(10**9)}"
        chart.write({**one, "extension": [{"url": "https://ehr.example/note", "valueString": note}]}, one["id"])

    def _remove(self, name):
        chart = self.ehrs[name].chart
        found = [one for one in chart.of_type("Goal") if self.random.random() < 0.2]
        for one in found[:1]:
            chart.delete("Goal", one["id"])

    def _discharge(self, name):
        self._act(HOSPITAL, "discharge", {"disposition": "home"})

    def _order(self, name):
        self._act(HOSPITAL, "order-referral", {"known_at_clinic": self.random.random() < 0.8})

    def _book(self, name):
        for number, patient in self._letters():
            self._act(CLINIC, "book", {"referral_number": number, "patient": patient, "at": self.now.isoformat()}, number)

    def _note(self, name):
        for number, patient in self._letters():
            self._act(CLINIC, "consult-note", {"referral_number": number, "patient": patient, "text": "Seen."}, number)

    def _letters(self):
        """One referral that the clinic has a letter of, sometimes."""
        system = "https://fhircm.example/referral"
        found = [
            (one["value"], tree["subject"]["reference"].removeprefix("Patient/"))
            for tree in self.ehrs[CLINIC].chart.of_type("DocumentReference")
            for one in tree.get("identifier", [])
            if one.get("system", "").endswith("/referral") or one.get("system") == system
        ]
        return [self.random.choice(sorted(set(found)))] if found else []

    def _act(self, name, what, details, key=None):
        try:
            self.staff[name].act(what, {"key": key or f"{self.random.randrange(10**9)}", **details})
        except (NotPossible, KeyError, IndexError):
            self.weather.happened["nothing to do"] += 1

    def _clock(self, name):
        by = timedelta(minutes=self.random.choice([-90, -5, 1, 30, 600]))
        self.now += by
        self.there += max(by, -timedelta(minutes=5))  # an EHR's clock is set back by less than reads overlap
        self.weather.happened["clock jumps"] += 1

    def _capability(self, name):
        habits = self.ehrs[name].habits["types"]
        type = self.random.choice(sorted(habits))
        kept = self.interactions[name, type]
        lacks = set(kept) - set(habits[type]["interactions"])
        gone = self.random.choice(kept)
        habits[type]["interactions"] = list(kept) if lacks else [one for one in kept if one != gone]
        self.weather.happened["capability changes"] += 1

    # --- quiet -----------------------------------------------------------------------------------------------------------------

    async def calm(self):
        """Everything works again; the hub is left to itself until it has nothing more to do."""
        self.weather.quiet()
        await asyncio.sleep(LEASE)  # a hub that was killed holds its leases for so long
        for (name, type), kept in self.interactions.items():
            self.ehrs[name].habits["types"][type]["interactions"] = list(kept)
        self.now = self.there = max(self.now, self.there)
        for number in range(16):
            # What waited is due, and every partner is read in full; then time hardly moves, so that deadlines end nothing more.
            self.now = self.there = self.now + (timedelta(hours=25) if number < 3 else timedelta(minutes=6))
            async with self.hub() as hub:
                if not await hub.round() and number >= 3:
                    return
        raise AssertionError(f"seed {self.seed}: the hub does not come to rest: {self.trouble[-2:]}")


class DatedChart(Chart):
    """A chart by the EHRs' clock."""

    def __init__(self, resources, storm):
        super().__init__(resources)
        self.storm = storm

    def write(self, tree, id=None):
        stored = super().write(tree, id)
        stored["meta"]["lastUpdated"] = self.storm.there.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return stored


class Ticket(httpx.Auth):
    """Sign-in in short: a token that the EHR takes until it expires them."""

    requires_response_body = True

    def auth_flow(self, request):
        request.headers["Authorization"] = "Bearer ticket"
        answer = yield request
        if answer.status_code == 401:
            request.headers["Authorization"] = "Bearer renewed"
            yield request


class Doorkeeper:
    """The EHR's side of that: after an expiry the old token is refused once."""

    def __init__(self):
        self.expired = False

    def allowed(self, authorization, letter, type):
        if self.expired and authorization == "Bearer ticket":
            self.expired = False
            return None
        return True

    def expire_all(self):
        self.expired = True


@dataclass
class Hub:
    """What one life of the hub works with."""

    storm: Storm
    store: Store
    clients: dict[str, PartnerClient]

    async def round(self) -> int:
        """One round of everything, as the worker does it; what fails is left for the next. Returns how much was done."""
        around = context(self.storm.settings, self.store, list(self.storm.partners.values()))
        worker = Worker(self.store, reactions(around), timer_handlers(around), self.park(around), self.unpark)
        done = 0
        for name in self.clients:
            done += await self.tried(self.partner(name, around))
        for _ in range(5):
            step = 0
            for reaction in worker.reactions:
                step += await self.tried(worker.react(reaction))
            step += await self.tried(worker.run_timers())
            done += step
            if not step:
                break
        return done

    async def tried(self, work) -> int:
        try:
            return await work
        except (
            FhirError, CursorMoved, DatabaseUnavailable, PullRunning, sqlite3.OperationalError, asyncpg.PostgresError,
            asyncpg.InterfaceError, OSError,
        ):  # fmt: skip
            return 1
        except BaseExceptionGroup as group:
            if group.subgroup(Killed):
                raise Killed from None
            raise

    async def partner(self, name, around):
        client = self.clients[name]
        snapshot = await capabilities.kept(self.store, name)
        try:
            snapshot, _ = await capabilities.refresh(self.store, client)
            report = await pull(self.store, client, lease_seconds=LEASE)
            done = report.written
        except (PartnerUnavailable, PartnerRefused, PartnerAnswerBroken, PullRunning) as error:
            self.storm.trouble.append(f"{name}: {type(error).__name__}: {error}")
            done = 1
        if snapshot is None:
            return done
        report = await push(
            self.store, client.partner, client, snapshot, self.store.clock, owner=f"Organization/{around.organization}"
        )
        return done + len(report.delivered)

    def park(self, around):
        from fhircm.wiring import _parked

        return lambda where, what, error: _parked(around, where, what, error)

    async def unpark(self, where, what):
        return []


# --- what must hold --------------------------------------------------------------------------------------------------------------


async def mirrored(store, bases) -> dict[tuple[str, str], dict]:
    """Every copy at a hub, without what the hub adds."""
    async with store.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT r.type, r.id, v.body FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version WHERE NOT r.deleted"
        )
    found = {}
    for row in rows:
        tree = json.loads(bytes(row["body"]))
        meta = tree.get("meta", {})
        if "source" in meta:
            tree["meta"] = {name: value for name, value in meta.items() if name not in ("versionId", "lastUpdated")}
            found[row["type"], row["id"]] = led_home(tree, bases)
    return found


def led_home(node, bases):
    """A copy in which a reference to what a hub lacks is as it would be if the hub had it: one hub may still hold what is gone."""
    if isinstance(node, list):
        return [led_home(one, bases) for one in node]
    if isinstance(node, dict):
        return {name: led_home(value, bases) if name != "meta" else value for name, value in node.items()}
    for base in bases:
        if isinstance(node, str) and node.startswith(base + "/") and node.count("/") == base.count("/") + 2:
            what = node.removeprefix(base + "/")
            return f"{what.split('/')[0]}/{hub_id(base, what)}"
    return node


async def agree(storm: Storm, fresh_url: str) -> None:
    """The hub that went through it has what a hub has that comes today; what it has besides is marked as gone, or held."""
    after = Store(await open_database(storm.url), clock=lambda: storm.now)
    bases = [partner.base_url for partner in storm.partners.values()]
    fresh = Storm(storm.seed, fresh_url, storm.folder)
    fresh.ehrs, fresh.apps, fresh.staff = storm.ehrs, storm.apps, storm.staff
    fresh.now, fresh.there = storm.now, storm.there
    fresh.weather.quiet()
    await fresh.begin()
    async with fresh.hub() as hub:
        for name in hub.clients:
            await pull(hub.store, hub.clients[name], lease_seconds=30)
            await pull(hub.store, hub.clients[name], lease_seconds=30)
        there = await mirrored(hub.store, bases)
    here = await mirrored(after, bases)
    held = {hub_id(storm.partners[one.partner].base_url, one.name.split(" ")[0]) for one in await after.held_page(limit=10_000)}
    differ = [key for key in there if here.get(key) != there[key] and key[1] not in held]
    assert not differ, f"seed {storm.seed}: {len(differ)} differ: {_difference(here, there, differ[0])}"
    gone = await _gone(after, storm)
    extra = [key for key in here.keys() - there.keys() if key not in gone]
    assert not extra, f"seed {storm.seed}: not at the partner, and not marked as gone: {extra[:3]}"
    await after.close()


def _difference(here, there, key):
    return f"{key}: here {json.dumps(here.get(key))[:1500]} there {json.dumps(there[key])[:1500]}"


async def _gone(store, storm):
    found = set()
    for name, partner in storm.partners.items():
        for row in (await store.states(f"mirror:{name}")).values():
            for what, mark in row["of"].items():
                if mark == mirror.GONE:
                    found.add((what.split("/")[0], hub_id(partner.base_url, what)))
    return found


def nothing_doubled(storm: Storm) -> None:
    """What the hub sent stands once at each EHR."""
    for name, ehr in storm.ehrs.items():
        sent = Counter(
            (tree["resourceType"], one["value"])
            for type in ("DocumentReference", "Communication", "Task", "ServiceRequest", "CarePlan", "Goal", "CareTeam")
            for tree in ehr.chart.of_type(type)
            for one in tree.get("identifier", [])
            if one.get("system", "").endswith("/delivery")
        )
        assert not sent or max(sent.values()) == 1, f"seed {storm.seed}: {name} has twice: {sent.most_common(2)}"
