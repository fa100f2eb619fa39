"""Alembic, run from the installed package: what brings an older database to the schema of this version. https://alembic.sqlalchemy.org/"""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from fhircm.store.database import BUSY, connect_sqlite

_LOCK = 0x666869  # one migration at a time in a PostgreSQL database


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


async def upgrade(url: str) -> None:
    """Upgrade to the newest schema; two processes may do it at once. Raises what the driver raises when the database cannot be reached."""
    if url.startswith("sqlite:///"):
        await asyncio.to_thread(_in_sqlite, Path(url.removeprefix("sqlite:///")), _upgrade)
    else:
        await _in_postgresql(url, _upgrade)


def _upgrade(connection: Connection) -> None:
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() != newest:
        command.upgrade(_config(connection), "head")


def _in_sqlite(path: Path, work: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine("sqlite://", creator=partial(connect_sqlite, path), poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        _take_turn(connection)

    with engine.connect() as connection:
        connection.connection.driver_connection.execute(f"PRAGMA busy_timeout={int(BUSY * 1000)}")  # type: ignore[union-attr]
        with connection.begin():
            work(connection)
    engine.dispose()


def _take_turn(connection: Connection) -> None:
    end = monotonic() + BUSY
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            if monotonic() > end:
                raise


async def _in_postgresql(url: str, work: Any) -> None:
    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(asyncpg.connect, url), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        await connection.run_sync(work)
    await engine.dispose()
