"""From settings to running parts: what the command line and the demonstration start."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
from fhircm.attendance import Turn
from fhircm.coordination import build, loops, rules, task_states
from fhircm.coordination.context import Context, Neighbour
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.longitudinal import follow, words
from fhircm.coordination.protocol import load_pathways
from fhircm.coordination.timeline import rendered, timeline
from fhircm.exchange import bulk_due, bulk_export, drift, freshness, guides, hints, pull, push, subscriptions
from fhircm.exchange.adt_doors import Doors
from fhircm.exchange.backend_auth import access_token
from fhircm.exchange.breaker import Breakers
from fhircm.exchange.check import CheckReport, check
from fhircm.exchange.client import PartnerClient, connect
from fhircm.exchange.client_keys import signing_key, signing_keys
from fhircm.exchange.clients import Clients
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.hl7v2 import refusal
from fhircm.exchange.holding import holding
from fhircm.exchange.matching import Thresholds
from fhircm.exchange.members import members
from fhircm.exchange.mllp import MllpLimits, MllpServer
from fhircm.exchange.news import CURSOR, News, due, read_to, skip
from fhircm.exchange.notifications import round_at
from fhircm.exchange.partners import Partner, load_partners
from fhircm.exchange.proof import Client
from fhircm.exchange.source_address import Allowed
from fhircm.exchange.sources import Sources
from fhircm.exchange.status import PULLED
from fhircm.exchange.tokens import SharedTokens
from fhircm.exchange.writing import Explained, explain
from fhircm.fhir.outcome import FhirError, NotFound, VersionConflict
from fhircm.jobs import JOBS
from fhircm.jobs.import_progress import Imports
from fhircm.jobs.job import Means
from fhircm.jobs.reindex import start_indexing
from fhircm.jobs.running import run_jobs
from fhircm.reactions import REACTIONS, TIMERS, Reaction, reactions, timer_handlers
from fhircm.settings import Settings, SettingsWrong
from fhircm.store.database import open_database
from fhircm.store.logins import Logins
from fhircm.store.migrations import migrate
from fhircm.store.resources import Clock, Op, Put, SetState, Store
from fhircm.store.sessions import SessionRecords
from fhircm.worker import Worker, parked_at

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fhircm.edge.config import EdgeConfig
    from fhircm.smart.provider import ProviderSettings

log = logging.getLogger("fhircm.wiring")

RULES = (*rules.RULES, audit.RULE)
_SKEW = timedelta(seconds=1)  # by how much the clocks of machines that share a database may differ
_SLICE = timedelta(seconds=30)  # of a pull, before the partner is told what is due to it and others have their turn
_BULK_LOOK = timedelta(minutes=1)  # between two looks whether an export of a partner is due
_SUBSCRIPTIONS_LOOK = timedelta(seconds=30)  # between two looks at the hub's Subscriptions at a partner
_MOMENT = timedelta(milliseconds=50)  # so that what a pull brought is reacted to before its partner is looked at again


def clock(settings: Settings) -> Clock:
    """The clock of versions and deadlines: the machine's, moved as far as the settings say."""
    return lambda: datetime.now(UTC) + settings.clock_offset


def base_url(settings: Settings) -> str:
    """The public address, without a slash at its end."""
    return str(settings.public_base_url).rstrip("/")


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


def partners(settings: Settings, names: list[str] | None) -> list[Partner]:
    """The partners that the settings choose, or these of them. Raises PartnerWrong."""
    urls = {name: str(url).rstrip("/") for name, url in settings.partner_base_urls.items()}
    return load_partners(settings.mappings_dir, urls, names or settings.partners)


def context(settings: Settings, store: Store, chosen: list[Partner]) -> Context:
    """What reactions may look at."""
    neighbours = [
        Neighbour(
            one.name,
            one.organization.npi,
            one.base_url,
            BusinessCalendar(
                one.time_zone, one.calendar.country, one.calendar.subdivision, one.calendar.closed, one.calendar.weekend
            ),
            one.identity,
        )
        for one in chosen
    ]
    organization = build.coordinating_organization(settings.organization_name)
    return Context(
        store=store,
        organization=organization.id or "",
        organization_name=settings.organization_name,
        calendar=BusinessCalendar(settings.time_zone, settings.calendar_country),
        neighbours=tuple(neighbours),
        pathways=load_pathways(),
        window=settings.transition_window,
    )


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    """The background process over the store, with a client for each partner."""
    chosen = partners(settings, None)
    async with open_store(settings) as store, AsyncExitStack() as stack:
        around = context(settings, store, chosen)
        shared = tokens(settings, store)
        clients = await stack.enter_async_context(Clients(chosen, lambda partner: connect(partner, settings.keys_dir, shared)))
        rounds = {partner.name: partial(_round, settings, store, clients, partner, around) for partner in chosen}
        for one in chosen:
            if one.bulk is not None:
                rounds[f"{one.name} in bulk"] = partial(_bulk_round, settings, store, clients, one, around)
            if one.subscriptions is not None:
                rounds[round_at(one.name)] = _subscriptions_round(settings, store, clients, one)
        park, unpark = partial(_parked, around), partial(_unparked, around)
        sources = Sources(import_sources(settings))
        stack.push_async_callback(sources.close)
        jobs = partial(run_jobs, means(settings, store, sources), JOBS, settings.lease)
        reader = News(store, chosen)
        await loops.begin(store)
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


async def _round(settings: Settings, store: Store, clients: Clients, partner: Partner, around: Context) -> Turn:
    """Pull for a while when it is time, then push what is due."""
    done, again = 0, await _next_pull(settings, store, partner)
    now = store.clock()
    hinted = bool(await store.state_keys(hints.namespace(partner.name), 1))
    if again <= now or (hinted and partner.schedule.open(now)):
        async with clients.at(partner.name) as client:
            done = await _pull_for_a_while(settings, store, client, around, hinted_only=again > now)
        again = max(await _next_pull(settings, store, partner), store.clock() + (_MOMENT if done else timedelta()))
    if partner.schedule.maintained(store.clock()):
        return Turn(done, again)  # nothing is sent either
    pushed, waiting = await _push(settings, store, clients, partner, around)
    return Turn(done + pushed, min(again, waiting) if waiting else again)


async def _next_pull(settings: Settings, store: Store, partner: Partner) -> datetime:
    last, now = await store.state(PULLED, partner.name), store.clock()
    return partner.schedule.next(datetime.fromisoformat(last["at"]) if last else None, now, settings.pull_interval)


async def _pull_for_a_while(
    settings: Settings, store: Store, client: PartnerClient, around: Context, *, hinted_only: bool
) -> int:
    """One slice of a pull: of everything when that is due, else of what is likely to have changed."""
    partner = client.partner
    means = {
        "lease_seconds": settings.lease.total_seconds(),
        "owner": f"Organization/{around.organization}",
        "seconds": _SLICE.total_seconds(),
    }
    try:
        if not hinted_only:
            await _ask(store, client, means["owner"])
        await _follow(store, client)
        if hinted_only:
            report = await pull.changes(store, client, hinted_only=True, **means)
        elif await _full_is_due(store, partner):
            report = await pull.reconcile(store, client, within_budget=0.5 if await _was_pulled(store, partner) else 1.0, **means)
            if partner.budget.per_hour is not None and await _was_pulled(store, partner):
                log.info("%s: %s", partner.name, report.summary())
                report = await pull.changes(store, client, **means)
        elif partner.budget.per_hour is not None:
            report = await pull.changes(store, client, **means)
        else:
            report = await pull.pull(store, client, **means)
        await drift.note_granted(store, client, means["owner"])
    except (PartnerUnavailable, PartnerRefused, PartnerAnswerBroken, pull.PullRunning) as error:
        log.warning("%s could not be pulled: %s", partner.name, type(error).__name__)
        await _pulled(store, partner, str(error))  # the next attempt is a whole interval away; what was read is kept
        return 0
    log.info("%s: %s", partner.name, report.summary())
    out_of_time = report.cut and partner.budget.per_hour is None
    if not hinted_only and not out_of_time:
        await _pulled(store, partner)
    return report.written + report.patients if out_of_time else report.written


async def _ask(store: Store, client: PartnerClient, owner: str) -> None:
    """Ask the partner what it has, and keep that."""
    _, told = await drift.refresh(store, client, owner)
    for line in told:
        log.warning("%s: %s", client.partner.name, line)


async def _follow(store: Store, client: PartnerClient) -> None:
    """Ask from now on for what the partner's last snapshot says that it has and grants."""
    before = client.partner
    client.partner, left_out = drift.followed(client.given, await drift.kept(store, client.given.name))
    if client.partner != before:
        for line in left_out:
            log.info("%s: %s", client.partner.name, line)


async def _was_pulled(store: Store, partner: Partner) -> bool:
    """Whether everything was looked at once: then what is likely to have changed has its part of the budget, too."""
    return (await store.state(freshness.NAMESPACE, partner.name) or {}).get("full") is not None


async def _full_is_due(store: Store, partner: Partner) -> bool:
    last = (await store.state(freshness.NAMESPACE, partner.name) or {}).get("full")
    at = datetime.fromisoformat(last["at"]) if last else None
    return partner.schedule.full_due(at, store.clock(), freshness.FULL)


async def _push(
    settings: Settings, store: Store, clients: Clients, partner: Partner, around: Context
) -> tuple[int, datetime | None]:
    """Push when something may concern the partner. Returns how much was done, and until when the partner is left alone."""
    snapshot = await drift.kept(store, partner.name)
    cursor = f"push:{partner.name}"
    kept = await skip(store, partner.name, cursor)
    if snapshot is None or (kept is None and not await push.anything_due(store, partner.name)):
        return 0, None
    async with clients.at(partner.name) as client:
        owner = f"Organization/{around.organization}"
        report = await push.push(
            store, partner, client, snapshot, store.clock, attempts=settings.push_attempts, owner=owner, fetch=clients.fetch
        )
    if kept is not None:
        await read_to(store, partner.name, cursor, kept)
    return report.done, report.waiting_until


async def _pulled(store: Store, partner: Partner, why: str | None = None) -> None:
    """Note when a partner was pulled, and `why` that did not come to its end."""
    at = store.clock().isoformat()
    success = (await store.state(PULLED, partner.name) or {}).get("success") if why else at
    row = {"at": at, **({"success": success} if success else {}), **({"why": why} if why else {})}
    await store.transact([SetState(PULLED, partner.name, row)], origin="hub")


async def pull_partner(
    settings: Settings, store: Store, client: PartnerClient, progress: Callable[[int, int], None] = lambda done, total: None
) -> pull.PullReport:
    """Ask a partner what it has, and pull that now."""
    owner = f"Organization/{build.coordinating_organization(settings.organization_name).id}"
    await _ask(store, client, owner)
    await _follow(store, client)
    report = await pull.pull(store, client, progress=progress, lease_seconds=settings.lease.total_seconds())
    await drift.note_granted(store, client, owner)
    await _pulled(store, client.partner)
    return report


async def reconcile_partner(
    settings: Settings, store: Store, client: PartnerClient, progress: Callable[[int, int], None] = lambda done, total: None
) -> pull.PullReport:
    """Look at everything of a partner now, and believe nothing that it said of changes."""
    owner = f"Organization/{build.coordinating_organization(settings.organization_name).id}"
    seconds = settings.lease.total_seconds()
    await _ask(store, client, owner)
    await _follow(store, client)
    report = await pull.reconcile(store, client, progress=progress, lease_seconds=seconds, owner=owner)
    await drift.note_granted(store, client, owner)
    await _pulled(store, client.partner)
    return report


async def check_partner(settings: Settings, store: Store, partner: Partner) -> CheckReport:
    """Try everything that the hub wants of a partner."""
    async with connect(partner, settings.keys_dir) as client:  # and signs in anew: a token that is kept would prove nothing
        organization = build.coordinating_organization(settings.organization_name)
        return await check(client, store, base_url(settings), owner=f"Organization/{organization.id}")


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


def tokens(settings: Settings, store: Store) -> SharedTokens:
    """The access tokens of partners, shared by all processes of this hub."""
    return SharedTokens(store, Seal.open(settings.keys_dir))


async def explain_delivery(settings: Settings, store: Store, partner: Partner, resource: str) -> list[Explained]:
    """How a partner would be told of the newest version of a resource. Raises NotFound, Gone."""
    type, _, id = resource.partition("/")
    stored = await store.read(type, id)
    snapshot = await drift.kept(store, partner.name)
    if snapshot is None:
        raise NotFound(f"{partner.name} was never asked what it can do: run `fhircm partner check {partner.name}`, or pull it")
    breakers = Breakers(store, partner.name, partner.breaker, store.clock)
    await breakers.load()
    return await explain(store, partner, snapshot, stored, store.clock(), breakers)


async def push_partner(settings: Settings, store: Store, partner: Partner) -> push.PushReport:
    """Tell a partner now all that is due. Raises Busy while a worker does it, and NotFound for one that was never asked what it takes."""
    snapshot = await drift.kept(store, partner.name)
    if snapshot is None:
        raise NotFound(f"{partner.name} was never asked what it can do: run `fhircm partner check {partner.name}`, or pull it")
    shared, everyone = tokens(settings, store), partners(settings, None)
    async with (
        holding(store, f"partner:{partner.name}", settings.lease.total_seconds()),
        Clients(everyone, lambda one: connect(one, settings.keys_dir, shared)) as clients,
        clients.at(partner.name) as client,
    ):
        organization = build.coordinating_organization(settings.organization_name)
        owner = f"Organization/{organization.id}"
        return await push.push(
            store, partner, client, snapshot, store.clock, attempts=settings.push_attempts, owner=owner, fetch=clients.fetch
        )


async def plan_in_words(settings: Settings, store: Store, patient: str) -> str:
    """The longitudinal care plan of a person, as the records say now. Nothing is written. Raises NotFound."""
    around = context(settings, store, partners(settings, None))
    return await words.told(around, await follow.current(around, patient))


def thresholds(settings: Settings) -> dict[str, Thresholds]:
    """What partners ask for besides before their Patients are linked, by base URL. Raises PartnerWrong."""
    return {one.base_url: one.identity for one in partners(settings, None) if one.identity}


async def _bulk_round(settings: Settings, store: Store, clients: Clients, partner: Partner, around: Context) -> Turn:
    """Do the next thing of a partner's exports, if one is due."""
    async with clients.at(partner.name) as client:
        step = await _advance_bulk(settings, store, client, f"Organization/{around.organization}")
    later = min(step.due or store.clock() + _BULK_LOOK, store.clock() + _BULK_LOOK)
    return Turn(int(step.did), store.clock() if step.did else later)


async def _advance_bulk(
    settings: Settings,
    store: Store,
    client: PartnerClient,
    owner: str,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> bulk_export.Advanced:
    assert client.partner.bulk is not None
    seconds = settings.lease.total_seconds()
    return await bulk_export.advance(
        store, client, client.partner.bulk, settings.spool_dir, owner=owner, tell=tell, lease_seconds=seconds
    )


async def pull_in_bulk(
    settings: Settings, store: Store, client: PartnerClient, tell: Callable[[str, int, int], None], patience: timedelta
) -> tuple[list[dict[str, Any]], bulk_export.Advanced]:
    """Have a partner export now and take it in. Returns what the exports that ended came to, and how things stand.

    It comes back earlier when the partner wants to be left alone for longer than `patience`: any worker, or the next call, goes on.
    """
    name = client.partner.name
    if await bulk_export.kept(store, name) is None:
        await store.transact([bulk_due.request(store, name)], origin="hub")
    owner = build.coordinating_organization(settings.organization_name)
    ended: list[dict[str, Any]] = []
    while True:
        step = await _advance_bulk(settings, store, client, f"Organization/{owner.id}", tell)
        if step.finished is not None:
            ended.append(step.finished)
        elif not step.did:
            wait = step.due - store.clock() if step.due else timedelta(seconds=1)
            if step.export is None or wait > patience:
                return ended, step
            await asyncio.sleep(max(0.0, wait.total_seconds()))


async def cancel_bulk(settings: Settings, store: Store, partner: Partner) -> bool:
    """End the export of a partner that is under way, there too. Returns whether there was one."""
    async with connect(partner, settings.keys_dir, tokens(settings, store)) as client:
        return await bulk_export.cancel(store, client, settings.spool_dir)


def _subscriptions_round(settings: Settings, store: Store, clients: Clients, partner: Partner) -> Callable[[], Awaitable[Turn]]:
    """What keeps the hub's Subscriptions at a partner; the panel is asked for anew once in a pull's interval."""
    present = list[str]()
    asked: datetime | None = None
    seal = Seal.open(settings.keys_dir)

    async def round_of_work() -> Turn:
        nonlocal asked
        assert partner.subscriptions is not None
        now = store.clock()
        async with clients.at(partner.name) as client:
            if asked is None or now - asked >= settings.pull_interval:
                present[:] = sorted(set(await members(client, store)))
                asked = now
            url = f"{base_url(settings)}/notify/{partner.name}"
            done = await subscriptions.keep(store, client, partner.subscriptions, url, seal, present)
        return Turn(done, store.clock() + (timedelta() if done else _SUBSCRIPTIONS_LOOK))

    return round_of_work


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
