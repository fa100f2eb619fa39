"""How what a partner sends by itself, or in bulk, is doing: its Subscriptions, its export and its HL7 v2 messages, as they are kept.

https://hl7.org/fhir/uv/subscriptions-backport/errors.html, https://hl7.org/fhir/uv/bulkdata/export.html. Nothing here tells of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fhircm.exchange.bulk_due import LAST
from fhircm.exchange.bulk_state import EXPORT, Export, Phase

HEARD = "hl7v2-heard"  # namespace: when the last HL7 v2 message of each partner was taken, to the minute
WORKING = frozenset({"active"})
BEGINNING = frozenset({"asked", "requested"})


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of one partner at one moment; times in UTC.

    `subscriptions`: how many there are by state (asked, requested, active, error, off, refused). `export`: the one that is under way, its beginning with it.
    `finished`: when the last export ended; `failed`: the types that it did not bring, and why. `message`: when the last HL7 v2 message was taken.
    """

    subscriptions: Mapping[str, int] = field(default_factory=dict)
    export: Phase | None = None
    begun: datetime | None = None
    progress: str = ""  # as the partner tells it
    finished: datetime | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    message: datetime | None = None

    @property
    def broken(self) -> int:
        """Subscriptions that bring nothing."""
        return sum(number for state, number in self.subscriptions.items() if state not in WORKING | BEGINNING)


def channels(subscriptions: Mapping[str, int], bulk: Mapping[str, dict[str, Any]], heard: Mapping[str, Any] | None) -> Channels:
    """What is kept, read: of the namespaces of a partner's Subscriptions (tallied) and exports, and its row in HEARD."""
    under_way = Export.from_json(bulk[EXPORT]) if EXPORT in bulk else None
    last = bulk.get(LAST, {})
    return Channels(
        subscriptions,
        under_way.phase if under_way else None,
        _time(under_way.begun) if under_way else None,
        under_way.progress if under_way else "",
        _time(last.get("finished")),
        last.get("failed", {}),
        _time(heard["at"]) if heard else None,
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
