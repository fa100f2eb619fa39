"""Durable timers and leases: claimed under a fencing token, taken over when the holder falls silent."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from fhircm.store.database import Connection
from fhircm.store.operations import RepeatTimer, SetTimer, Timer
from fhircm.store.stored import micros, moment

_LONGEST = timedelta(hours=1)  # no claim holds longer: one that says so was made before the clock was set back, and holds no more


class StaleClaim(Exception):
    """The timer was claimed by another worker, or set anew, since this one claimed it."""


async def set_timer(connection: Connection, timer: SetTimer) -> None:
    """Set or replace; a claim on the old one becomes stale.

    A new one begins with a token that no timer of this key had: who claimed one that was finished since can finish nothing.
    """
    await connection.execute(
        "INSERT INTO timer (key, kind, due, payload, token) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key) DO UPDATE SET"
        " kind = excluded.kind, due = excluded.due, payload = excluded.payload, attempts = 0, leased_until = 0, token = timer.token + 1",
        timer.key,
        timer.kind,
        micros(timer.due),
        json.dumps(timer.payload),
        secrets.randbits(62),
    )


async def cancel_timer(connection: Connection, key: str) -> None:
    await connection.execute("DELETE FROM timer WHERE key = $1", key)


async def finish_timer(connection: Connection, timer: Timer) -> None:
    """Remove a timer that was handled. Raises StaleClaim."""
    if await connection.fetchval("DELETE FROM timer WHERE key = $1 AND token = $2 RETURNING key", timer.key, timer.token) is None:
        raise StaleClaim(timer.key)


async def repeat_timer(connection: Connection, again: RepeatTimer) -> None:
    """Set a claimed timer anew. Raises StaleClaim."""
    repeated = await connection.fetchval(
        "UPDATE timer SET due = $3, payload = $4, attempts = 0, leased_until = 0, token = token + 1"
        " WHERE key = $1 AND token = $2 RETURNING key",
        again.timer.key,
        again.timer.token,
        micros(again.due),
        json.dumps(again.payload),
    )
    if repeated is None:
        raise StaleClaim(again.timer.key)


async def read_timer(connection: Connection, key: str) -> Timer | None:
    """A timer as it stands, claimed or not."""
    row = await connection.fetchrow("SELECT key, kind, due, payload, attempts, token FROM timer WHERE key = $1", key)
    return None if row is None else _timer(row)


async def retry_timer(connection: Connection, timer: Timer, due: datetime) -> None:
    """Give a claimed timer back, to be due again. Raises StaleClaim."""
    given_back = await connection.fetchval(
        "UPDATE timer SET due = $3, leased_until = 0 WHERE key = $1 AND token = $2 RETURNING key",
        timer.key,
        timer.token,
        micros(due),
    )
    if given_back is None:
        raise StaleClaim(timer.key)


async def extend_timer(connection: Connection, timer: Timer, leased_from: float, lease: timedelta) -> bool:
    """Hold a claim until `leased_from` plus `lease`; False when it was lost."""
    until = int(leased_from * 1_000_000) + lease // timedelta(microseconds=1)
    held = await connection.fetchval(
        "UPDATE timer SET leased_until = $3 WHERE key = $1 AND token = $2 RETURNING key", timer.key, timer.token, until
    )
    return held is not None


_FREE = f"(leased_until <= $2 OR leased_until > $2 + {_LONGEST // timedelta(microseconds=1)})"


async def any_due(connection: Connection, kinds: Sequence[str], now: datetime, at: float) -> bool:
    """Whether something could be claimed.

    In order, though any would do: PostgreSQL, which plans for any `now`, would else read the table from end to end, for it takes a third to be due.
    """
    marks = ", ".join(f"${number}" for number in range(3, 3 + len(kinds)))
    sql = f"SELECT 1 FROM timer WHERE due <= $1 AND {_FREE} AND kind IN ({marks}) ORDER BY due LIMIT 1"
    return await connection.fetchval(sql, micros(now), int(at * 1_000_000), *kinds) is not None


async def next_due(connection: Connection, kinds: Sequence[str], at: float) -> datetime | None:
    """When the next timer that nobody has claimed is due."""
    marks = ", ".join(f"${number}" for number in range(2, 2 + len(kinds)))
    sql = f"SELECT due FROM timer WHERE leased_until <= $1 AND kind IN ({marks}) ORDER BY due LIMIT 1"
    due = await connection.fetchval(sql, int(at * 1_000_000), *kinds)
    return None if due is None else moment(due)


async def claim_timers(
    connection: Connection, dialect: str, kinds: Collection[str], now: datetime, leased_from: float, limit: int, lease: timedelta
) -> list[Timer]:
    """Claim what is due by `now`; a claim holds until `leased_from` (real seconds since the epoch) plus `lease`."""
    marks = ", ".join(f"${number}" for number in range(4, 4 + len(kinds)))
    locked = " FOR UPDATE SKIP LOCKED" if dialect == "postgresql" else ""
    start = int(leased_from * 1_000_000)
    rows = await connection.fetch(
        "UPDATE timer SET attempts = attempts + 1, token = token + 1, leased_until = $3 WHERE key IN ("
        f"SELECT key FROM timer WHERE due <= $1 AND {_FREE} AND kind IN ({marks}) ORDER BY due LIMIT {limit:d}{locked})"
        " RETURNING key, kind, due, payload, attempts, token",
        micros(now),
        start,
        start + lease // timedelta(microseconds=1),
        *kinds,
    )
    return sorted(map(_timer, rows), key=lambda timer: (timer.due, timer.key))


def _timer(row: Mapping[str, Any]) -> Timer:
    return Timer(row["key"], row["kind"], moment(row["due"]), json.loads(row["payload"]), row["attempts"], row["token"])


async def take_lease(connection: Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Take or renew a lease; False while another holds it."""
    taken = await connection.fetchval(
        "INSERT INTO lease (name, holder, until) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET"
        " holder = excluded.holder, until = excluded.until WHERE lease.holder = excluded.holder OR lease.until <= $4 RETURNING name",
        name,
        holder,
        int((now + seconds) * 1_000_000),
        int(now * 1_000_000),
    )
    return taken is not None


async def release_lease(connection: Connection, name: str, holder: str) -> None:
    await connection.execute("DELETE FROM lease WHERE name = $1 AND holder = $2", name, holder)
