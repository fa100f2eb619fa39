"""Hints that a patient's record at a partner changed: from a subscription, an ADT message, another patient's search, or the hub's own write.

https://hl7.org/fhir/R4/subscription.html. A hint is durable and stands once for a patient and a type. A round takes it back in the
transaction that knows what it read, and only as it was when the round began: one that came meanwhile is for the next round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from fhircm.exchange.news import due
from fhircm.store.resources import SetState, Store

ANY = "*"  # every type


@dataclass(frozen=True, slots=True)
class Hint:
    """That something changed, by whose word (`means`: subscription, adt, bulk, push, last-updated)."""

    patient: str  # id at the partner
    type: str
    means: str
    row: Mapping[str, Any]  # as it is kept


def namespace(partner: str) -> str:
    """Where the hints about a partner's patients are kept."""
    return f"hint:{partner}"


def hinted(partner: str, patient: str, types: Iterable[str], means: str, at: datetime) -> list[SetState]:
    """The facts of a hint, to commit with whatever tells of it. `patient` is an id at the partner; no types stand for all of them.

    With news.due(partner, at) beside them, a round follows them at once rather than when it is due.
    """
    row = {"means": means, "at": at.isoformat(), "mark": uuid4().hex[:8]}  # no two are taken for one another
    return [SetState(namespace(partner), f"{patient}/{type}", row) for type in sorted(set(types)) or [ANY]]


async def hint(store: Store, partner: str, patient: str, types: Iterable[str], means: str) -> None:
    """Hint that a patient's resources of these types changed at a partner; without types, all of them. A round follows at once."""
    at = store.clock()
    await store.transact([*hinted(partner, patient, types, means, at), due(partner, at)], origin="hub")


async def waiting(store: Store, partner: str) -> list[Hint]:
    """The hints that no round has followed yet."""
    rows = await store.states(namespace(partner))
    return [Hint(*key.rsplit("/", 1), row["means"], row) for key, row in rows.items()]


def followed(partner: str, hint: Hint) -> SetState:
    """The fact that a hint was followed, to commit once what it hints at was read."""
    return SetState(namespace(partner), f"{hint.patient}/{hint.type}", None, if_equal=dict(hint.row))
