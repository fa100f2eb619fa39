"""What a partner sent and the hub could not take: kept as it came, with the reason, until it can be taken or a human gives it up.

Nothing here is served as FHIR, and nothing of it is in any record.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.store.database import Connection
from fhircm.store.operations import Hold, LetGo
from fhircm.store.stored import micros, moment

_ASKED = 400
_LISTED = "partner, name, kind, batch, digest, reason, first_seen, last_seen, times"


@dataclass(frozen=True, slots=True)
class Held:
    """One thing in quarantine: `name` is what it is at the partner (Type/id, a search, a message), `reason` holds nothing of a patient.

    `batch` is the patient in whose batch it came (Patient/id at the partner), or empty.
    """

    partner: str
    name: str
    kind: str
    batch: str
    digest: str
    reason: str
    first_seen: datetime
    last_seen: datetime
    times: int


async def hold(connection: Connection, held: Hold, now: datetime) -> None:
    """Keep it; the same name again is the newest of it, seen once more."""
    at = micros(now)
    await connection.execute(
        "INSERT INTO quarantine (partner, name, kind, batch, digest, reason, body, first_seen, last_seen, times)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, 1) ON CONFLICT (partner, name) DO UPDATE SET kind = excluded.kind,"
        " batch = excluded.batch, digest = excluded.digest, reason = excluded.reason, body = excluded.body,"
        " last_seen = excluded.last_seen, times = quarantine.times + 1",
        held.partner,
        held.name,
        held.kind,
        held.batch,
        held.digest,
        held.reason,
        held.body,
        at,
    )


async def let_go(connection: Connection, gone: LetGo) -> None:
    """Forget it, if it is there."""
    await connection.execute("DELETE FROM quarantine WHERE partner = $1 AND name = $2", gone.partner, gone.name)


async def held(connection: Connection, partner: str, names: Collection[str]) -> dict[str, Held]:
    """Those of these names that are held."""
    wanted, found = sorted(names), {}
    for start in range(0, len(wanted), _ASKED):
        chunk = wanted[start : start + _ASKED]
        marks = ", ".join(f"${at}" for at in range(2, len(chunk) + 2))
        rows = await connection.fetch(
            f"SELECT {_LISTED} FROM quarantine WHERE partner = $1 AND name IN ({marks})", partner, *chunk
        )
        found |= {row["name"]: _held(row) for row in rows}
    return found


async def held_page(
    connection: Connection, partner: str | None, kind: str | None, after: tuple[str, str], limit: int
) -> list[Held]:
    """What is held, in order of partner and name, behind `after` (partner, name)."""
    tests, arguments = ["(partner, name) > ($1, $2)"], [*after, limit]
    for column, value in (("partner", partner), ("kind", kind)):
        if value is not None:
            arguments.append(value)
            tests.append(f"{column} = ${len(arguments)}")
    rows = await connection.fetch(
        f"SELECT {_LISTED} FROM quarantine WHERE {' AND '.join(tests)} ORDER BY partner, name LIMIT $3", *arguments
    )
    return [_held(row) for row in rows]


async def counts(connection: Connection, partner: str) -> dict[str, int]:
    """How many of each kind are held for a partner."""
    rows = await connection.fetch("SELECT kind, COUNT(*) AS held FROM quarantine WHERE partner = $1 GROUP BY kind", partner)
    return {row["kind"]: int(row["held"]) for row in sorted(rows, key=lambda row: row["kind"])}


async def body(connection: Connection, partner: str, name: str) -> bytes | None:
    """The bytes that came; None when it is not held."""
    found = await connection.fetchval("SELECT body FROM quarantine WHERE partner = $1 AND name = $2", partner, name)
    return None if found is None else bytes(found)


def _held(row: Any) -> Held:
    times = moment(row["first_seen"]), moment(row["last_seen"])
    return Held(row["partner"], row["name"], row["kind"], row["batch"], row["digest"], row["reason"], *times, row["times"])
