"""From settings to running parts: what the command line and the demonstration start."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from fhircm.access import audit
from fhircm.access.audit_drain import Drain
from fhircm.access.logins import SignIn
from fhircm.access.one_time_codes import OneTimeCodes
from fhircm.access.passwords import Passwords
from fhircm.access.people import People
from fhircm.access.roles import unknown
from fhircm.access.sealing import Seal
from fhircm.access.sessions import Sessions
from fhircm.coordination import build, rules, task_states
from fhircm.coordination import open_loops as watch
from fhircm.coordination.context import Context, Neighbour
from fhircm.coordination.deadlines import BusinessCalendar, Hours
from fhircm.coordination.longitudinal import follow, words
from fhircm.coordination.protocol import load_pathways
from fhircm.coordination.timeline import rendered, timeline
from fhircm.exchange import guides, push
from fhircm.exchange.adt_doors import Doors
from fhircm.exchange.backend_auth import access_token
from fhircm.exchange.client import connect
from fhircm.exchange.client_keys import signing_key, signing_keys
from fhircm.exchange.clients import Clients
from fhircm.exchange.hl7v2 import refusal
from fhircm.exchange.matching import Thresholds
from fhircm.exchange.mllp import MllpLimits, MllpServer
from fhircm.exchange.news import CURSOR, News, due
from fhircm.exchange.notifications import round_at
from fhircm.exchange.partners import Partner
from fhircm.exchange.proof import Client
from fhircm.exchange.source_address import Allowed
from fhircm.exchange.sources import Sources
from fhircm.fhir.outcome import FhirError, NotFound, VersionConflict
from fhircm.jobs import JOBS
from fhircm.jobs.import_progress import Imports
from fhircm.jobs.job import Means
from fhircm.jobs.reindex import start_indexing
from fhircm.jobs.running import run_jobs
from fhircm.partnering import base_url, bulk_round, partners, round_of, subscriptions_round, tokens
from fhircm.reactions import REACTIONS, TIMERS, Reaction, reactions, timer_handlers
from fhircm.settings import Settings, SettingsWrong
from fhircm.store.database import open_database
from fhircm.store.logins import Logins
from fhircm.store.migrations import migrate
from fhircm.store.resources import Clock, Op, Put, Store
from fhircm.store.sessions import SessionRecords
from fhircm.worker import Worker, parked_at

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fhircm.edge.config import EdgeConfig
    from fhircm.smart.provider import ProviderSettings

log = logging.getLogger("fhircm.wiring")

RULES = (*rules.RULES, audit.RULE)
_SKEW = timedelta(seconds=1)  # by how much the clocks of machines that share a database may differ


def clock(settings: Settings) -> Clock:
    """The clock of versions and deadlines: the machine's, moved as far as the settings say."""
    return lambda: datetime.now(UTC) + settings.clock_offset


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, brought up to date first, with the organisation that coordinates in it."""
    await migrate(settings.database_url)
    database = await open_database(settings.database_url)
    store = Store(database, clock=clock(settings), rules=RULES, full_text=settings.full_text)
    try:
        await store.guides.follow()  # what is checked before the first write is held to them too
        organization = build.coordinating_organization(settings.organization_name)
        if not await store.read_many([("Organization", organization.id or "")]):
            with suppress(VersionConflict):  # another process made it just now
                await store.transact([Put(organization, if_version=0)], origin="hub")
        yield store
    finally:
        await store.close()


def application(settings: Settings) -> FastAPI:
    """What `fhircm serve` serves. Its packages are imported here, for no other process needs them."""
    from fhircm.app import AppConfig, AuditConfig, create_app
    from fhircm.rest.exchange import RestSettings
    from fhircm.rest.notify import Notifier
    from fhircm.smart.server import SmartSettings
    from fhircm.web.routes import WebSettings

    secret = settings.metrics_token
    config = AppConfig(
        database_url=settings.database_url,
        public_base_url=base_url(settings),
        keys_dir=settings.keys_dir,
        rest=RestSettings(
            settings.body_limit,
            settings.bundle_limit,
            settings.update_create,
            settings.conditional_delete_limit,
            settings.full_text,
            import_sources(settings),
            settings.access_grace,
        ),
        allow_private_jwks=settings.allow_private_jwks,
        clock=clock(settings),
        rules=RULES,
        doors=partial(adt_doors, settings),
        edge=edge(settings),
        audit=AuditConfig(audit_folder(settings), settings.audit_limit, settings.audit_sync.total_seconds())
        if settings.audit
        else None,
        smart=SmartSettings(
            int(settings.access_token_lifetime.total_seconds()),
            int(settings.refresh_lifetime.total_seconds()),
            settings.registration_scopes,
        ),
        web=WebSettings(
            settings.organization_name,
            settings.time_zone,
            settings.session_idle,
            settings.session_longest,
            provider(settings),
            f"Organization/{build.coordinating_organization(settings.organization_name).id}",
        ),
        notifiers={
            one.name: Notifier(one.base_url, one.subscriptions)
            for one in partners(settings, None)
            if one.subscriptions is not None
        },
        partners=partners(settings, None),
        metrics_token=secret.get_secret_value() if secret else None,
    )
    return create_app(config)


def people(settings: Settings, store: Store) -> People:
    """What an administrator does with people."""
    logins, records = Logins(store.database), SessionRecords(store.database)
    sign_in = SignIn(logins, Passwords(), Seal.open(settings.keys_dir))
    return People(logins, sign_in, Sessions(records), OneTimeCodes(records, logins, sign_in))


def provider(settings: Settings) -> ProviderSettings | None:
    """The organisation's own OpenID Connect provider. Raises KeyWrong, and SettingsWrong for a role that there is not."""
    from fhircm.smart.provider import ProviderSettings

    if settings.provider_issuer is None:
        return None
    if wrong := unknown(settings.provider_roles.values()):
        raise SettingsWrong(f"FHIRCM_PROVIDER_ROLES names {', '.join(wrong)}, which is no role")
    secret = settings.provider_client_secret
    coordinating = build.coordinating_organization(settings.organization_name)
    return ProviderSettings(
        issuer=settings.provider_issuer,
        client_id=settings.provider_client_id,
        redirect_uri=f"{base_url(settings)}/signin/callback",
        client_secret=secret.get_secret_value() if secret else None,
        key=None if secret else signing_key(settings.keys_dir, "provider", "ES384"),
        scopes=settings.provider_scopes,
        button=settings.provider_button,
        user_claim=settings.provider_user_claim,
        roles_claim=settings.provider_roles_claim,
        roles=settings.provider_roles,
        provision=settings.provider_provision,
        organization=settings.provider_organization or f"Organization/{coordinating.id}",
    )


def edge(settings: Settings) -> EdgeConfig:
    """What the edge of the HTTP process needs."""
    from fhircm.edge.config import EdgeConfig

    return EdgeConfig(
        https=settings.public_base_url.scheme == "https",
        trusted_proxies=tuple(map(str, settings.trusted_proxies)),
        cors_origins=tuple(settings.cors_origins),
        sign_in_rate=settings.sign_in_rate,
        token_rate=settings.token_rate,
        register_rate=settings.register_rate,
        refused_rate=settings.refused_rate,
        fhir_rate=settings.fhir_rate,
        slow_seconds=settings.slow_client.total_seconds(),
    )


def audit_folder(settings: Settings) -> Path:
    """The folder of the audit journal for this database: what was done in one must not be told in another."""
    parts = urlsplit(settings.database_url)
    where = f"{parts.hostname}:{parts.port}{parts.path}"
    if parts.scheme == "sqlite":
        where = str(Path(settings.database_url.removeprefix("sqlite:///")).resolve())
    return settings.audit_dir / hashlib.sha256(where.encode()).hexdigest()[:16]


def audit_drain(settings: Settings, store: Store) -> Drain:
    """What writes the audit journal of this machine to the database."""
    return Drain(store, audit_folder(settings), f"{base_url(settings)}/fhir")


def import_sources(settings: Settings) -> Allowed:
    """From where files may be imported."""
    return Allowed(tuple(settings.import_sources), settings.allow_private_jwks)


def context(settings: Settings, store: Store, chosen: list[Partner]) -> Context:
    """What reactions may look at."""
    neighbours = [
        Neighbour(
            one.name,
            one.organization.npi,
            one.base_url,
            _calendar_of(one),
            one.identity,
        )
        for one in chosen
    ]
    organization = build.coordinating_organization(settings.organization_name)
    return Context(
        store=store,
        organization=organization.id or "",
        organization_name=settings.organization_name,
        calendar=_calendar(settings),
        neighbours=tuple(neighbours),
        pathways=load_pathways(),
        window=settings.transition_window,
    )


def _calendar(settings: Settings) -> BusinessCalendar:
    """That of the coordinating organisation. Raises SettingsWrong."""
    begin, end = (_hour(part) for part in settings.business_hours.split("-"))
    try:
        return BusinessCalendar(
            settings.time_zone,
            settings.calendar_country,
            settings.calendar_subdivision,
            settings.calendar_closed,
            hours=dict.fromkeys(range(7), ((begin, end),)),
        )
    except ValueError as error:
        raise SettingsWrong(f"The calendar of the coordinating organisation: {error}") from error


def _hour(text: str) -> time:
    """A time of the day; 24:00 is the midnight at its end."""
    return time() if text == "24:00" else time.fromisoformat(text)


def _calendar_of(partner: Partner) -> BusinessCalendar:
    said, hours = partner.calendar, dict[int, Hours]()
    for one in said.hours:
        for day in one.days:
            hours[day] = (*hours.get(day, ()), ((datetime.min + one.start).time(), (datetime.min + one.end).time()))
    return BusinessCalendar(partner.time_zone, said.country, said.subdivision, said.closed, said.weekend, hours or None)


async def open_loops(settings: Settings, store: Store) -> list[watch.Loop]:
    """Every open loop of the hub, with who has it, when something happens to it next, and what is wrong with it."""
    return await watch.everything(context(settings, store, partners(settings, None)))


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    """The background process over the store, with a client for each partner."""
    chosen = partners(settings, None)
    async with open_store(settings) as store, AsyncExitStack() as stack:
        around = context(settings, store, chosen)
        shared = tokens(settings, store)
        clients = await stack.enter_async_context(Clients(chosen, lambda partner: connect(partner, settings.keys_dir, shared)))
        rounds = {partner.name: partial(round_of, settings, store, clients, partner, around) for partner in chosen}
        for one in chosen:
            if one.bulk is not None:
                rounds[f"{one.name} in bulk"] = partial(bulk_round, settings, store, clients, one, around)
            if one.subscriptions is not None:
                rounds[round_at(one.name)] = subscriptions_round(settings, store, clients, one)
        park, unpark = partial(_parked, around), partial(_unparked, around)
        sources = Sources(import_sources(settings))
        stack.push_async_callback(sources.close)
        jobs = partial(run_jobs, means(settings, store, sources), JOBS, settings.lease)
        reader = News(store, chosen)
        await watch.begin(store)
        listening = [*reactions(around), Reaction(CURSOR, reader.types, reader.tell)]
        yield Worker(store, listening, timer_handlers(around), park, unpark, rounds, settings.lease, jobs)


def means(settings: Settings, store: Store, sources: Sources) -> Means:
    """What the slices of jobs work with: each is done long before its claim ends."""
    seconds = min(1.0, settings.lease.total_seconds() / 4)
    imports = Imports(sources, settings.body_limit, settings.update_create)
    skew = (
        _SKEW if store.database.dialect == "postgresql" else timedelta()
    )  # an embedded database has the clock of its one machine
    return Means(store, f"{base_url(settings)}/fhir", seconds, settings.export_retention, skew, imports, settings.access_grace)


def _parked(around: Context, where: str, what: str, error: Exception) -> Op:
    """The Task that tells a human what the worker gave up on."""
    why = str(error) if isinstance(error, FhirError) else type(error).__name__
    id = build.stable_id("parked", where, what)
    reason = f"'{where}' failed at {what}: {why}"
    versioned = what if "/_history/" in what else f"Organization/{around.organization}"
    return build.for_a_human(id, "parked", reason, owner=around.coordinator, focus=versioned, patient=None, at=around.now())


async def _unparked(around: Context, where: str, what: str) -> list[Op]:
    """The end of that Task, unless a human ended it before."""
    id = build.stable_id("parked", where, what)
    task = (await around.store.read_many([("Task", id)])).get(("Task", id))
    if task is None or not task_states.is_open(task.tree):
        return []
    done = {"text": "It was done again, and succeeded"}
    return [build.edit(task, status="cancelled", statusReason=done, lastModified=build.instant(around.now()))]


async def waiting(settings: Settings, store: Store) -> list[tuple[str, str, str]]:
    """What was parked, everywhere: where, under which key, and why."""
    places = [*REACTIONS, *TIMERS, *(f"push:{partner.name}" for partner in partners(settings, None))]
    rows = [(place, key, row) for place in places for key, row in (await store.states(parked_at(place))).items()]
    return [(place, key, row.get("reason", "")) for place, key, row in rows]


async def replay(settings: Settings, where: str, key: str) -> str:
    """Do again what was parked under a key; returns what becomes of it. Raises NotFound, Conflict, and what fails again."""
    name = where.removeprefix("push:")
    if name != where:
        async with open_store(settings) as store:
            await push.replay(store, partners(settings, [name])[0].name, key)
            await store.transact([due(name, store.clock())], origin="hub")
        return "It is in line again; `fhircm work` delivers it"
    if where not in {*REACTIONS, *TIMERS}:
        raise NotFound(f"'{where}' is none of: {', '.join([*REACTIONS, *TIMERS])}, push:PARTNER")
    async with worker(settings) as parked:
        await parked.replay(where, key)
    return "It is done"


async def told(settings: Settings, store: Store, patient: str, since: datetime | None) -> str:
    """The timeline of a patient as text, from a day of the organisation's own time zone on. Raises NotFound."""
    zone = ZoneInfo(settings.time_zone)
    return rendered(await timeline(store, patient, since=since.replace(tzinfo=zone) if since else None), zone)


async def load_guide(store: Store, path: Path) -> guides.LoadReport:
    """Load an implementation guide from its package. Raises PackageWrong, GuidesBusy, OSError."""
    with path.open("rb") as file:
        return await guides.load(store, file, partial(start_indexing, store))


async def remove_guide(store: Store, name: str) -> list[guides.Removed]:
    """Take a guide out of force: the version that is named (`name#version`), or every one. Raises NotFound, GuidesBusy."""
    keys = await guides.versions(store, name) or [name]
    return [await guides.remove(store, key, partial(start_indexing, store)) for key in keys]


async def client_token(url: str, client_id: str, key: Path, scope: str) -> str:
    """Sign in at a hub as a backend client. Raises PartnerRefused, PartnerUnavailable."""
    client = Client(client_id, keys=partial(signing_keys, key.parent, key.stem, "ES384"))
    return await access_token(f"{url}/fhir", client, scope.split())


async def plan_in_words(settings: Settings, store: Store, patient: str) -> str:
    """The longitudinal care plan of a person, as the records say now. Nothing is written. Raises NotFound."""
    around = context(settings, store, partners(settings, None))
    return await words.told(around, await follow.current(around, patient))


def thresholds(settings: Settings) -> dict[str, Thresholds]:
    """What partners ask for besides before their Patients are linked, by base URL. Raises PartnerWrong."""
    return {one.base_url: one.identity for one in partners(settings, None) if one.identity}


def adt_doors(settings: Settings, store: Store) -> Doors:
    """The doors for the HL7 v2 messages of the partners. Raises PartnerWrong."""
    return Doors(store, partners(settings, None))


@asynccontextmanager
async def mllp(settings: Settings) -> AsyncIterator[tuple[MllpServer, int]]:
    """Listen for HL7 v2 messages; gives the server and its port. Raises OSError, PartnerWrong."""
    async with open_store(settings) as store:
        limits = MllpLimits(connections=settings.mllp_connections)
        server = MllpServer(adt_doors(settings, store).receive, lambda error: refusal(store.clock(), error), limits)
        port = await server.start(settings.mllp_host, settings.mllp_port, _mllp_tls(settings))
        try:
            yield server, port
        finally:
            await server.close()


def _mllp_tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.mllp_tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.mllp_client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.mllp_tls_cert, settings.mllp_tls_key)
    if settings.mllp_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
