"""Bring a database to the schema of this version.

To add a migration: change store/tables.py, then `python -m fhircm.store.migrations "what it does"` writes the difference as a new file.
Every process asks at its start; Alembic, which takes as long to import as all the rest, is there only for a database that is older.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg

from fhircm.store.database import DatabaseUnavailable

_REVISION = "SELECT version_num FROM alembic_version"


async def migrate(url: str) -> None:
    """Upgrade to the newest schema; does nothing when it is there already, and two processes may do it at once.

    Raises DatabaseUnavailable when the database cannot be reached.
    """
    newest = max(file.stem.partition("_")[0] for file in (Path(__file__).parent / "versions").glob("[0-9]*.py"))
    try:
        if await _revision(url) == newest:
            return
        from fhircm.store.migrations.upgrade import upgrade

        await upgrade(url)
    except (OSError, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached ({type(error).__name__})") from None


async def _revision(url: str) -> str | None:
    """The revision of a database, None of one that has no schema yet."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        if not path.exists():
            return None
        try:
            with closing(sqlite3.connect(path, timeout=30)) as file:
                row = file.execute(_REVISION).fetchone()
        except sqlite3.OperationalError:  # there is no such table
            return None
        return str(row[0]) if row else None
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(_REVISION)  # type: ignore[no-any-return]
    except asyncpg.UndefinedTableError:
        return None
    finally:
        await connection.close()
