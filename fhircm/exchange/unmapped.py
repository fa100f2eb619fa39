"""The codes that a partner uses and its map does not know: remembered until the map knows them, never dropped.

https://hl7.org/fhir/R4/conceptmap.html. Facts that commit with the resources; one that is known costs no write.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from fhircm.exchange.map_rules import Unmapped
from fhircm.exchange.partners import Partner
from fhircm.store.resources import SetState, Store

INBOUND, OUTBOUND = "inbound", "outbound"


class Line(NamedTuple):
    """One line of the report: `resources` is the most that had it in one pull."""

    direction: str
    unmapped: Unmapped
    resources: int


def namespace(partner: str) -> str:
    """Where they are kept."""
    return f"unmapped:{partner}"


class Unknown:
    """What was met and not known, of one partner during one pull, or one sending."""

    def __init__(self, store: Store, partner: Partner, direction: str = INBOUND) -> None:
        self._store, self._direction, self._map = store, direction, partner.maps.fingerprint
        self._rows = namespace(partner.name)
        self._in: dict[Unmapped, set[str]] = {}
        self._kept: dict[str, dict[str, object]] | None = None
        self._pending: dict[str, dict[str, object]] = {}
        self._new = False

    def note(self, reference: str, found: Collection[Unmapped]) -> None:
        """Some stand in a resource (Type/id at the partner)."""
        for one in found:
            having = self._in.setdefault(one, set())
            self._new |= reference not in having
            having.add(reference)

    async def facts(self) -> list[SetState]:
        """What is to be committed; nothing when it is known. Tell `saved` when it is."""
        if not self._new:
            return []
        if self._kept is None:
            self._kept = await self._store.states(self._rows)
        self._pending = {}
        for one, having in self._in.items():
            key = "|".join((self._direction, *one))
            kept = self._kept.get(key)
            if kept is None or kept["map"] != self._map or int(str(kept["resources"])) < len(having):
                self._pending[key] = {"direction": self._direction, **one._asdict(), "resources": len(having), "map": self._map}
        # What was met under another map says nothing about this one.
        outdated = [key for key, row in self._kept.items() if row["map"] != self._map and key not in self._pending]
        forgotten = [SetState(self._rows, key, None) for key in outdated]
        return [*forgotten, *(SetState(self._rows, key, row) for key, row in self._pending.items())]

    def saved(self) -> None:
        """What `facts` gave last is committed."""
        if self._kept is not None:
            self._kept |= self._pending
        self._new, self._pending = False, {}


async def unmapped(store: Store, partner: Partner) -> list[Line]:
    """The report: what the map as it is now has met and does not know."""
    rows = await store.states(namespace(partner.name))
    return sorted(
        (
            Line(row["direction"], Unmapped(row["type"], row["path"], row["system"], row["code"]), row["resources"])
            for row in rows.values()
            if row["map"] == partner.maps.fingerprint
        ),
        key=lambda line: (-line.resources, line),
    )
