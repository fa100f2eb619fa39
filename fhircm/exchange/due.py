"""What is due for a partner: rows of the store, in the order of the changes that made them, a lane for each patient.

https://hl7.org/fhir/R4/http.html. The cursor of the change log moves in the transaction that makes the rows, so no change is lost and none is
due twice. A lane is worked off from its front: what waits there keeps back what follows for the same patient, and nobody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from fhircm.exchange.case import subject_of
from fhircm.exchange.disclosure import records
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Position, SetState, Store

PAGE = 2_000


def queue(partner: str) -> str:
    """The namespace of what is due for a partner."""
    return f"queue:{partner}"


def idle(partner: str) -> tuple[str, str]:
    """Namespace and key of the time before which nothing that is due can be done."""
    return f"push:{partner}", "next"


@dataclass(frozen=True, slots=True)
class Due:
    """One occasion to be told of. Times are ISO 8601 in UTC."""

    key: str  # sorts as the changes do
    lane: str  # the human that it is about
    type: str
    id: str
    version: int
    occasion: str | None  # None: what it means could not be found out yet
    queued: str
    attempts: int = 0
    first: str | None = None  # attempt
    until: str | None = None  # not to be tried before
    letter: str | None = None  # the dead letter that is tried again
    number: int | None = None  # of the thing wanted, for a dead letter
    replay: str | None = None  # why it is tried again: asked, known, consent
    prefer: str | None = None

    @property
    def about(self) -> str:
        """The local reference of the resource."""
        return f"{self.type}/{self.id}"

    @property
    def place(self) -> str:
        """Where it stands in the order of all that is due."""
        return self.key.partition(":")[0]

    def again(self, **changed: Any) -> Due:
        """The same with other members."""
        return replace(self, **changed)

    def put(self, partner: str) -> SetState:
        """Put it into the queue, or what changed of it."""
        row = {name: value for name, value in asdict(self).items() if value is not None and name != "key"}
        return SetState(queue(partner), self.key, row)

    def done(self, partner: str) -> SetState:
        """Take it out; Conflict when another worker did."""
        return SetState(queue(partner), self.key, None, if_present=True)


def place(position: Position) -> str:
    """The place of what a change made due."""
    return f"{position.transaction:020d}.{position.number:020d}"


def due(key: str, row: dict[str, Any]) -> Due:
    """A row as it was put."""
    return Due(key, **{"occasion": None, **row})


async def lane_of(store: Store, tree: dict[str, Any]) -> str:
    """Whose lane something goes in: all records of one human have one lane."""
    parsed = parse_reference((subject_of(tree) or {}).get("reference", ""))
    if parsed.kind != "local" or parsed.type != "Patient" or not parsed.id:
        return f"{tree['resourceType']}/{tree.get('id')}"
    return (await records(store, {"id": parsed.id}))[0]


async def lanes(store: Store, partner: str) -> AsyncIterator[dict[str, list[Due]]]:
    """All that is due, some at a time, by lanes in their order."""
    after = ""
    while rows := await store.states(queue(partner), after=after, limit=PAGE):
        found: dict[str, list[Due]] = {}
        for key, row in rows.items():
            one = due(key, row)
            found.setdefault(one.lane, []).append(one)
        after = key
        yield found
        if len(rows) < PAGE:
            return


def moment(text: str | None) -> datetime | None:
    """A time of a row."""
    return datetime.fromisoformat(text) if text else None
