"""Take a partner's notification: prove whose it is, note of whom it tells, and say so within a moment. Nothing of its content is believed.

https://hl7.org/fhir/uv/subscriptions-backport/notifications.html and https://www.w3.org/TR/websub/#signature-validation. What is committed is
a hint that something changed, and the number of the event; the resource itself is read from the partner, by the hub's own client.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from fhircm.access.sealing import Seal
from fhircm.exchange.bulk_content import patient_of_copy
from fhircm.exchange.hints import ANY, hinted
from fhircm.exchange.mapping import Source, hub_id, source
from fhircm.exchange.news import due
from fhircm.exchange.subscription_shape import Subscriptions
from fhircm.fhir import json as fhir_json
from fhircm.fhir.outcome import Forbidden, Malformed, NotFound, TooLarge
from fhircm.store.resources import Op, SetState, Store

LIMIT = 1024 * 1024  # bytes of a notification
EVENTS = 1000  # in one notification
HEADER = "X-Fhircm-Notify"  # that carries the secret, where the partner sends the headers that it was given


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `number` counts as the partner counts; `name` tells it from others where the numbers do not."""

    number: int
    name: str
    focus: Source | None
    around: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What a notification, $status or $events says of a Subscription. `events` since its start."""

    subscription: str  # its id at the partner; "" when it is not told
    type: str  # handshake, heartbeat, event-notification, query-status, query-event
    status: str
    events: int | None
    event: tuple[Event, ...] = field(default=())


def rows_at(partner: str) -> str:
    """The namespace of the hub's Subscriptions at a partner."""
    return f"subscription:{partner}"


def doors_at(partner: str) -> str:
    """The namespace of the addresses that the partner notifies at: the hash of each leads to its Subscription."""
    return f"notify:{partner}"


def told_at(partner: str) -> str:
    """The namespace of the events that came and are not yet reckoned."""
    return f"notified:{partner}"


def round_at(partner: str) -> str:
    """The name of the rounds that keep the Subscriptions at a partner, by which they are made due."""
    return f"{partner} subscriptions"


def unread_at(partner: str) -> str:
    """The namespace of resources that changed, of which it is not known whose they are."""
    return f"notified-of:{partner}"


def digest(token: str) -> str:
    """Under which name an address is known."""
    return hashlib.sha256(token.encode()).hexdigest()


async def receive(
    store: Store,
    partner: str,
    base_url: str,
    shape: Subscriptions,
    seal: Seal,
    token: str,
    headers: Mapping[str, str],
    body: bytes,
    named: str | None = None,
) -> None:
    """Take a notification that came at the address of a token; `named` is the Type/id that plain R4 puts behind it.

    When this returns, what the notification hints at is committed, once however often it comes. Raises NotFound for an address that is
    none, Forbidden for one whose secret is wrong, Malformed and TooLarge.
    """
    if len(body) > LIMIT:
        raise TooLarge(f"A notification may have {LIMIT} bytes")
    door = await store.state(doors_at(partner), digest(token))
    row = await store.state(rows_at(partner), door["key"]) if door else None
    if door is None or row is None:
        raise NotFound("There is no such address for notifications")
    _prove(shape, json.loads(seal.unseal(row["sealed"].encode()))["secret"], headers, body)
    key, now = door["key"], store.clock()
    status = read_status(base_url, body, named, row)
    if status.subscription and row.get("id") and status.subscription != row["id"]:
        raise NotFound("The Subscription is another one than that of this address")
    heard = {"at": now.isoformat(), "events": status.events, "status": status.status, "type": status.type}
    operations: list[Op] = [SetState(told_at(partner), f"{key}|heard", heard)]
    fresh = await _fresh(store, partner, shape, key, row, status)
    operations += [SetState(told_at(partner), name, {"at": now.isoformat()}) for name in fresh]
    if fresh:
        found = await hints(store, partner, base_url, row, fresh.values(), now)
        operations += [*found, due(partner, now)]
        if any(one.namespace == unread_at(partner) for one in found):  # whose it is must be read first, at once
            operations.append(due(round_at(partner), now))
    await store.transact(operations, origin=f"partner:{partner}")


def _prove(shape: Subscriptions, secret: str, headers: Mapping[str, str], body: bytes) -> None:
    if shape.proof == "header" and not hmac.compare_digest(headers.get(HEADER, "").encode(), secret.encode()):
        raise Forbidden("The notification does not carry its secret")
    if shape.proof == "signature":
        method, _, sent = headers.get("X-Hub-Signature", "").partition("=")
        if method not in ("sha256", "sha384", "sha512"):
            raise Forbidden("The notification is not signed with a method that is taken")
        if not hmac.compare_digest(hmac.new(secret.encode(), body, method).hexdigest().encode(), sent.lower().encode()):
            raise Forbidden("The notification's signature is not good")


async def _fresh(
    store: Store, partner: str, shape: Subscriptions, key: str, row: Mapping[str, Any], status: Status
) -> dict[str, Event]:
    """The events that were not told before, by the name under which they are noted."""
    if status.type in ("handshake", "heartbeat"):
        return {}
    counted = shape.running_numbers
    named = {f"{key}|{one.number:015}" if counted and one.number else f"{key}|{one.name}": one for one in status.event}
    if not named:  # something changed, and nothing says what
        name = f"{status.events:015}" if counted and status.events else uuid4().hex
        named = {f"{key}|{name}": Event(status.events or 0, name, None, ())}
    known = await store.states_of(told_at(partner), named)
    return {
        name: one
        for name, one in named.items()
        if name not in known and not (counted and one.number and one.number <= row.get("upto", 0))
    }


async def hints(
    store: Store, partner: str, base_url: str, row: Mapping[str, Any], events: Iterable[Event], now: datetime
) -> list[SetState]:
    """What these events hint at: a patient's resources of some types; or a resource that must be read to know whose it is."""
    events = list(events)
    owners = await _owners(store, base_url, [one.focus for one in events if one.focus is not None])
    facts: dict[str, SetState] = {}
    for one in events:
        patient = row.get("patient") or next(
            (near.id for near in (one.focus, *one.around) if near and near.type == "Patient"), None
        )
        patient = patient or (owners.get(one.focus) if one.focus else None)
        types = [one.focus.type] if one.focus and one.focus.type != "Patient" else row.get("types", [])
        if patient:
            made = [*hinted(partner, patient, types, "subscription", now)]
        else:
            made = [SetState(unread_at(partner), str(one.focus) if one.focus else ANY, {"at": now.isoformat(), "types": types})]
        facts |= {f"{fact.namespace} {fact.key}": fact for fact in made}
    return list(facts.values())


async def _owners(store: Store, base_url: str, wanted: list[Source]) -> dict[Source, str]:
    """Of resources that the hub has a copy of, the id of the patient at the partner."""
    names = {(one.type, hub_id(base_url, str(one))): one for one in wanted}
    copies = await store.read_many(names) if names else {}
    about = {names[key]: patient_of_copy(copy.body) for key, copy in copies.items()}
    patients = await store.read_many({("Patient", id) for id in about.values() if id})
    there = {id: patient.tree["meta"].get("source", "").rpartition("/")[2] for (_, id), patient in patients.items()}
    return {one: there[id] for one, id in about.items() if id in there}


# --- reading ---------------------------------------------------------------------------------------------------------------------


def read_status(base_url: str, body: bytes, named: str | None, row: Mapping[str, Any]) -> Status:
    """What a notification says. Raises Malformed."""
    if named is not None or not body.strip():
        focus = source(base_url, named) if named else None
        event = (Event(0, uuid4().hex, focus, ()),) if focus else ()
        return Status("", "event-notification", "active", None, event)
    tree = fhir_json.parse(body)
    if tree.get("resourceType") != "Bundle":  # plain R4 with a payload: the resource itself
        focus = source(base_url, f"{tree.get('resourceType')}/{tree.get('id')}")
        return Status("", "event-notification", "active", None, (Event(0, uuid4().hex, focus, ()),) if focus else ())
    statuses = statuses_in(base_url, tree)
    if not statuses:
        raise Malformed("The first entry of a notification is its status")
    return statuses[0]


def statuses_in(base_url: str, bundle: Mapping[str, Any]) -> list[Status]:
    """The statuses in a Bundle: of a notification, of $events, of $status."""
    entries = [one for one in _list(bundle.get("entry")) if isinstance(one, dict)]
    resources = [one["resource"] for one in entries if isinstance(one.get("resource"), dict)]
    found = [_status(base_url, one) for one in resources if one.get("resourceType") in ("Parameters", "SubscriptionStatus")]
    if len(found) == 1 and not found[0].event and found[0].type in ("event-notification", "query-event"):
        named = [source(base_url, str(one.get("fullUrl", ""))) for one in entries[1:]]  # the resources alone tell of what
        events = tuple(Event(found[0].events or 0, str(one), one, ()) for one in named if one is not None)
        found = [Status(found[0].subscription, found[0].type, found[0].status, found[0].events, events)]
    return found


def _status(base_url: str, tree: Mapping[str, Any]) -> Status:
    if tree["resourceType"] == "Parameters":
        tree = _plain(_list(tree.get("parameter")))
    events = [one for one in _list(tree.get("notificationEvent")) if isinstance(one, dict)][:EVENTS]
    subscription = source(base_url, str(_reference(tree.get("subscription"))))
    return Status(
        subscription.id if subscription and subscription.type == "Subscription" else "",
        str(tree.get("type", "")),
        str(tree.get("status", "")),
        _number(tree.get("eventsSinceSubscriptionStart")),
        tuple(_event(base_url, one) for one in events),
    )


_NAMES = {
    "events-since-subscription-start": "eventsSinceSubscriptionStart",
    "notification-event": "notificationEvent",
    "event-number": "eventNumber",
    "additional-context": "additionalContext",
}


def _plain(parameters: list[Any]) -> dict[str, Any]:
    """Parameters as the SubscriptionStatus that they stand for."""
    tree: dict[str, Any] = {}
    for one in parameters:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            continue
        name = _NAMES.get(one["name"], one["name"])
        value = (
            _plain(_list(one.get("part"))) if "part" in one else next((v for k, v in one.items() if k.startswith("value")), None)
        )
        if name in ("notificationEvent", "additionalContext"):
            tree.setdefault(name, []).append(value)
        else:
            tree[name] = value
    return tree


def _event(base_url: str, tree: Mapping[str, Any]) -> Event:
    focus = source(base_url, str(_reference(tree.get("focus"))))
    around = (source(base_url, str(_reference(one))) for one in _list(tree.get("additionalContext")))
    name = str(
        tree.get("id") or hashlib.sha256(json.dumps([tree.get("timestamp"), str(focus)], default=str).encode()).hexdigest()
    )[:64]
    return Event(_number(tree.get("eventNumber")) or 0, name, focus, tuple(one for one in around if one is not None))


def _reference(tree: Any) -> Any:
    return tree.get("reference", "") if isinstance(tree, dict) else ""


def _number(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _list(tree: Any) -> list[Any]:
    return tree if isinstance(tree, list) else []
