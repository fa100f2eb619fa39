"""What is kept of an export that is under way, so that any process can go on with it.

https://hl7.org/fhir/uv/bulkdata/export.html#bulk-data-export-operation-request-flow
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from fhircm.exchange.bulk_due import namespace
from fhircm.store.resources import ClearStates, Op, SetState, Store

EXPORT = "export"
FIRST_WAIT = 10.0  # seconds after the first failure; doubled with each in a row
TOLD = 50  # sentences that are kept of one export


class Phase(StrEnum):
    """What an export waits for, in words for an operator."""

    KICK_OFF = "to be started"
    RUNNING = "running at the partner"
    FETCHING = "its files are being fetched"
    SORTING = "its files are being sorted"
    WRITING = "being written"
    ENDING = "being cleaned up at the partner"


@dataclass
class Export:
    """One export, as it is kept. Times are ISO 8601."""

    id: str
    types: list[str]
    since: str | None
    patients: list[str] | None
    members: list[str] | None
    begun: str
    due: str
    phase: Phase = Phase.KICK_OFF
    asked: str | None = None  # when a kick-off was sent whose answer is not known
    lost_answers: int = 0  # of kick-offs: exports that may run at the partner, and nobody asks for
    starts: int = 0
    failures: int = 0  # in a row, of whatever is to be done next
    status_url: str | None = None
    progress: str = ""
    following: str | None = None  # the next page of the manifest
    pages: int = 0
    transaction_time: str | None = None
    files: int = 0
    parts: int = 0
    written: int = 0  # parts
    mend: list[int] = field(default_factory=list)  # parts to be written once more
    content: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # type: why
    told: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The form in which it is kept."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Export:
        """What was kept."""
        return cls(**{**kept, "phase": Phase(kept["phase"])})

    def tell(self, text: str) -> None:
        """Keep a sentence for the report."""
        if text not in self.told and len(self.told) < TOLD:
            self.told.append(text)

    def fail(self, types: list[str], why: str) -> None:
        """These types did not come as a whole."""
        for type in types:
            self.failed.setdefault(type, why)


class Restart(Exception):
    """The partner has lost or broken off its export: it is to be started anew. The message says why."""


async def kept(store: Store, partner: str) -> Export | None:
    """The export of a partner that is under way."""
    row = await store.state(namespace(partner), EXPORT)
    return Export.from_json(row) if row else None


def keep(partner: str, export: Export) -> SetState:
    """The fact of how an export stands."""
    return SetState(namespace(partner), EXPORT, export.as_json())


def files_at(partner: str) -> str:
    """The namespace of the files of its manifest, by number."""
    return f"bulk-file:{partner}"


def cleared(partner: str) -> list[Op]:
    """The end of all that is kept of it."""
    return [SetState(namespace(partner), EXPORT, None), ClearStates(files_at(partner))]


async def renew(store: Store, name: str, holder: str, seconds: float) -> None:
    """Keep a lease; returns when it was lost."""
    while True:
        await asyncio.sleep(seconds / 3)
        if not await store.lease(name, holder, seconds):
            return
