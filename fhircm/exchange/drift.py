"""What a partner stops and starts to support: kept, told to a human once, and followed in what it is asked.

https://hl7.org/fhir/R4/capabilitystatement.html. What was never declared and works all the same is asked for as before: only what was there
once and is gone is left out. It is asked for again when it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fhircm.exchange import human
from fhircm.exchange.capabilities import NAMESPACE, Capabilities, discover, drift, granted
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.granted import allows
from fhircm.exchange.partners import Partner
from fhircm.exchange.pull_types import PullType, Search
from fhircm.fhir.outcome import VersionConflict
from fhircm.store.resources import Op, SetState, Store

CODE, DISPLAY = "partner-changed", "A partner does less than before"
# What a care coordinator would want to give back to a partner.
GIVEN_BACK = ("CarePlan", "CareTeam", "Goal", "Task", "ServiceRequest", "Communication", "DocumentReference")
_WRITES = ("create", "update", "patch")
AGAIN = 3


async def kept(store: Store, partner: str) -> Capabilities | None:
    """The last snapshot of a partner, or None when it was never asked."""
    snapshot = await store.state(NAMESPACE, partner)
    return Capabilities.from_json(snapshot) if snapshot else None


async def refresh(store: Store, client: PartnerClient, owner: str | None = None) -> tuple[Capabilities, list[str]]:
    """Ask the partner anew and keep what it says. Returns the snapshot and how it differs from the one before, a sentence each.

    A Task for a human opens when something that is wanted is gone, and is taken back when all of it has returned; `owner` is its owner.
    Raises the client's errors: then the snapshot stays.
    """
    return await _keep(store, client, await kept(store, client.partner.name), await discover(client), owner)


async def note_granted(store: Store, client: PartnerClient, owner: str | None = None) -> tuple[Capabilities | None, list[str]]:
    """After the client has signed in: keep which scopes it was granted. The same as `refresh`, without asking the partner."""
    before, scopes = await kept(store, client.partner.name), granted(client)
    if before is None or scopes is None or scopes == before.granted:
        return before, []
    return await _keep(store, client, before, replace(before, granted=scopes), owner)


async def _keep(
    store: Store, client: PartnerClient, before: Capabilities | None, now: Capabilities, owner: str | None
) -> tuple[Capabilities, list[str]]:
    partner = client.given
    for again in reversed(range(AGAIN)):
        if before is not None:
            now = replace(now, granted=now.granted if now.granted is not None else before.granted)
            now = replace(now, lost=_lost(partner, before, now))
        if before == now:
            break
        operations: list[Op] = [SetState(NAMESPACE, partner.name, now.as_json())]
        if before is not None and before.lost != now.lost:
            operations += await _told(store, partner, now, owner)
        try:
            await store.transact(operations, origin="hub")
            break
        except VersionConflict:  # another process told of it, or a human is at the Task
            if not again:
                raise
            before = await kept(store, partner.name)
    return now, drift(before, now) if before else []


async def _told(store: Store, partner: Partner, now: Capabilities, owner: str | None) -> list[Op]:
    parts = ("capability", partner.name)
    if not now.lost:
        return list(await human.take_back(store, parts, "The partner supports all of it again"))
    what = "; ".join(_sentence(one) for one in now.lost)
    reason = (
        f"{partner.name} does not support any more: {what}. The hub does without; what was read before stays."
        f" Ask the partner whether that is meant; `fhircm partner check {partner.name}` tells how it is now."
    )
    return list(await human.tell(store, parts, CODE, DISPLAY, reason, focus=None, patient=None, owner=owner))


# --- what is wanted of a partner, each in a word that is kept: "CarePlan search-type", "CarePlan ?category" -----------------------------


def wanted(partner: Partner) -> Iterator[str]:
    """Everything that the hub wants of a partner, as it stands in its file."""
    yield "Patient read"
    if partner.group and partner.panel is None:
        yield "Group read"
    for one in partner.pull:
        if one.searches:
            yield f"{one.type} search-type"
            yield from (
                f"{one.type} ?{name}" for name in dict.fromkeys(_name(name) for search in one.searches for name, _ in search)
            )
            if one.last_updated or one.if_declared:
                yield f"{one.type} ?_lastUpdated"
        if one.by_reference:
            yield f"{one.type} read"
    if partner.deliver:
        yield from (f"{type} {how}" for type in GIVEN_BACK for how in _WRITES)


def has(capabilities: Capabilities, one: str) -> bool:
    """Whether a partner has something that is wanted."""
    type, _, what = one.partition(" ")
    if what.startswith("?"):
        return what[1:] in capabilities.search_params(type)
    return capabilities.can(type, what)


def _lost(partner: Partner, before: Capabilities, now: Capabilities) -> tuple[str, ...]:
    gone = {one for one in wanted(partner) if (one in before.lost or has(before, one)) and not has(now, one)}
    searched = {one.partition(" ")[0] for one in gone if one.endswith(" search-type")}
    return tuple(sorted(one for one in gone if not (" ?" in one and one.partition(" ")[0] in searched)))


def _sentence(one: str) -> str:
    type, _, what = one.partition(" ")
    if what.startswith("?"):
        return f"search of {type} by {what[1:]}"
    return f"search of {type}" if what == "search-type" else f"{what} of {type}"


def _name(parameter: str) -> str:
    return parameter.split(":")[0].split(".")[0]


# --- what is asked of it now ---------------------------------------------------------------------------------------------------------


def followed(partner: Partner, capabilities: Capabilities | None) -> tuple[Partner, list[str]]:
    """The partner as it can be asked now, and what is left out, a sentence each.

    A type that it lost, or that the granted scopes do not reach, is not pulled; a search parameter that it lost is left out of the searches;
    _lastUpdated is used where the file says `declared` and the partner declares it.
    """
    if capabilities is None:
        return partner, []
    pull: list[PullType] = []
    told: list[str] = []
    for one in partner.pull:
        now, why = _followed(one, capabilities)
        told += [f"{one.type}: {text}" for text in why]
        if now.searches or now.by_reference:
            pull.append(now)
    return replace(partner, pull=tuple(pull)), told


def _followed(one: PullType, capabilities: Capabilities) -> tuple[PullType, list[str]]:
    told: list[str] = []
    searches, by_reference, lost = one.searches, one.by_reference, set(capabilities.lost)
    allowed = {how: allows(capabilities.granted, one.type, how) for how in ("search-type", "read")}
    if searches and (f"{one.type} search-type" in lost or not allowed["search-type"]):
        searches = ()
        told.append(
            "is not searched any more" if allowed["search-type"] else "may not be searched with the scopes that were granted"
        )
    if by_reference and (f"{one.type} read" in lost or not allowed["read"]):
        by_reference = False
        told.append("is not read by id any more" if allowed["read"] else "may not be read with the scopes that were granted")
    names = {what.partition(" ?")[2] for what in lost if what.startswith(f"{one.type} ?")}
    if searches and names - {"_lastUpdated"}:
        searches = _without(searches, names)
        told.append(
            f"is searched without {', '.join(sorted(names - {'_lastUpdated'}))}" if searches else "cannot be searched by patient"
        )
    declared = "_lastUpdated" in capabilities.search_params(one.type)
    last_updated = bool(searches) and "_lastUpdated" not in names and (one.last_updated or (one.if_declared and declared))
    return replace(one, searches=searches, by_reference=by_reference, last_updated=last_updated), told


def _without(searches: tuple[Search, ...], names: set[str]) -> tuple[Search, ...]:
    """Searches without some parameters; one that does not name the patient any more is left out, and of equal ones one stays."""
    left = (tuple((name, value) for name, value in search if _name(name) not in names) for search in searches)
    return tuple(dict.fromkeys(search for search in left if any("{patient}" in value for _, value in search)))
