"""A Subscription of the hub at a partner: what is kept of it, and the resource that it is there.

https://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition-backport-subscription.html and https://hl7.org/fhir/R4/subscription.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fhircm.exchange.client import FHIR_JSON
from fhircm.exchange.notifications import HEADER, rows_at
from fhircm.exchange.subscription_shape import PATIENT, Subscriptions, Topic
from fhircm.store.resources import Store

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"


@dataclass(frozen=True, slots=True)
class Row:
    """One Subscription, as it is kept. Times are ISO 8601; `upto`: all events to this number are reckoned."""

    topic: str  # mark of the topic
    types: list[str]
    patient: str | None
    sealed: str  # its address and secret
    door: str  # hash of its address
    id: str | None = None
    state: str = "asked"  # asked, requested, active, error, refused
    end: str | None = None
    upto: int = 0
    heard: str | None = None
    checked: str | None = None
    due: str | None = None
    failures: int = 0
    why: str = ""


async def kept(store: Store, partner: str) -> dict[str, Row]:
    """The Subscriptions at a partner, by topic and patient."""
    return {key: Row(**row) for key, row in (await store.states(rows_at(partner))).items()}


def subscription(
    shape: Subscriptions, topic: Topic, row: Row, known: Mapping[str, str], notify_url: str, end: datetime
) -> dict[str, Any]:
    """The resource that asks for a topic until `end`; `known` are its address and secret."""
    put = (lambda text: text.replace(PATIENT, quote(row.patient, safe="-."))) if row.patient else (lambda text: text)
    channel: dict[str, Any] = {"type": "rest-hook", "endpoint": f"{notify_url}/{known['token']}"}
    tree: dict[str, Any] = {"resourceType": "Subscription", "status": "requested", "reason": "Care coordination"}
    tree |= {"end": end.isoformat(timespec="seconds"), "criteria": put(topic.criteria), "channel": channel}
    if row.id:
        tree["id"] = row.id
    if shape.proof == "header":
        channel["header"] = [f"{HEADER}: {known['secret']}"]
    if topic.payload == "none":
        return tree
    channel |= {
        "payload": FHIR_JSON,
        "_payload": {"extension": [{"url": f"{BACKPORT}/backport-payload-content", "valueCode": topic.payload}]},
    }
    if shape.heartbeat:
        seconds = int(shape.heartbeat.total_seconds())
        channel["extension"] = [{"url": f"{BACKPORT}/backport-heartbeat-period", "valueUnsignedInt": seconds}]
    if topic.filters:
        filters = [{"url": f"{BACKPORT}/backport-filter-criteria", "valueString": put(one)} for one in topic.filters]
        tree["_criteria"] = {"extension": filters}
    tree["meta"] = {"profile": [f"{BACKPORT}/backport-subscription"]}
    return tree
