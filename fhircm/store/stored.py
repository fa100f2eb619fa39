"""A version of a resource as it is kept: the bytes that were accepted, and what the server knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fhircm.fhir import json

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stored:
    """One version. `body` is empty for a deletion; `method` is create, update or delete."""

    type: str
    id: str
    version: int
    last_updated: datetime
    deleted: bool
    body: bytes
    method: str

    @property
    def tree(self) -> dict[str, Any]:
        """The resource as a tree of its own for each call, decimals as Decimal."""
        return json.loads(self.body)


def micros(at: datetime) -> int:
    """Microseconds since the epoch: how times are kept in both databases."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The time of so many microseconds since the epoch, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def instant(at: datetime) -> str:
    """A FHIR instant in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
