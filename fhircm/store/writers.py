"""Who is writing: so that a time can be told which every later write is behind.

https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
"""

from __future__ import annotations

from fhircm.store.database import Connection

_DONE = (
    "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND xact_start <= $1::text::timestamptz AND clock_timestamp() < $1::text::timestamptz + interval '60 seconds')"
)


async def writers(connection: Connection, dialect: str) -> str:
    """The time by the database, as text. SQLite has one writer at a time, so there is nothing to wait for."""
    return "" if dialect == "sqlite" else str(await connection.fetchval("SELECT clock_timestamp()::text"))


async def writers_done(connection: Connection, dialect: str, mark: str) -> bool:
    """Whether all transactions have ended that had begun then. One that goes on for a minute is none of a writer of ours."""
    return dialect == "sqlite" or bool(await connection.fetchval(_DONE, mark))
