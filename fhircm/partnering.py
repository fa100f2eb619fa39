"""What the worker and the command line do with a partner: pull, push, exports in bulk and subscriptions, as the settings say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from fhircm.access.sealing import Seal
from fhircm.attendance import Turn
from fhircm.coordination import build
from fhircm.coordination.context import Context
from fhircm.exchange import bulk_due, bulk_export, drift, freshness, hints, pull, push, subscriptions
from fhircm.exchange.breaker import Breakers
from fhircm.exchange.check import CheckReport, check
from fhircm.exchange.client import PartnerClient, connect
from fhircm.exchange.clients import Clients
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.holding import holding
from fhircm.exchange.members import members
from fhircm.exchange.news import read_to, skip
from fhircm.exchange.partners import Partner, load_partners
from fhircm.exchange.status import PULLED
from fhircm.exchange.tokens import SharedTokens
from fhircm.exchange.writing import Explained, explain
from fhircm.fhir.outcome import NotFound
from fhircm.settings import Settings
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.partnering")

_SLICE = timedelta(seconds=30)  # of a pull, before the partner is told what is due to it and others have their turn
_BULK_LOOK = timedelta(minutes=1)  # between two looks whether an export of a partner is due
_SUBSCRIPTIONS_LOOK = timedelta(seconds=30)  # between two looks at the hub's Subscriptions at a partner
_MOMENT = timedelta(milliseconds=50)  # so that what a pull brought is reacted to before its partner is looked at again


def base_url(settings: Settings) -> str:
    """The public address, without a slash at its end."""
    return str(settings.public_base_url).rstrip("/")


def partners(settings: Settings, names: list[str] | None) -> list[Partner]:
    """The partners that the settings choose, or these of them. Raises PartnerWrong."""
    urls = {name: str(url).rstrip("/") for name, url in settings.partner_base_urls.items()}
    return load_partners(settings.mappings_dir, urls, names or settings.partners)


def tokens(settings: Settings, store: Store) -> SharedTokens:
    """The access tokens of partners, shared by all processes of this hub."""
    return SharedTokens(store, Seal.open(settings.keys_dir))


async def round_of(settings: Settings, store: Store, clients: Clients, partner: Partner, around: Context) -> Turn:
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


async def bulk_round(settings: Settings, store: Store, clients: Clients, partner: Partner, around: Context) -> Turn:
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


def subscriptions_round(settings: Settings, store: Store, clients: Clients, partner: Partner) -> Callable[[], Awaitable[Turn]]:
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
