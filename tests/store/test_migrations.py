"""The migrations bring any database to exactly what tables.py declares, once, whoever starts them."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from fhircm.store import tables
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.migrations import migrate
from fhircm.store.migrations.upgrade import _in_postgresql, _in_sqlite


async def looked_at(url, look):
    """What a function of a SQLAlchemy connection finds in a database."""
    found = []
    if url.startswith("sqlite:///"):
        from pathlib import Path

        await asyncio.to_thread(
            _in_sqlite, Path(url.removeprefix("sqlite:///")), lambda connection: found.append(look(connection))
        )
    else:
        await _in_postgresql(url, lambda connection: found.append(look(connection)))
    return found[0]


async def test_a_migrated_database_is_what_the_tables_declare(database_url):
    def differences(connection):
        return compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "include_name": tables.declared}),
            SQLModel.metadata,
        )

    assert tables.Resource.__tablename__ in SQLModel.metadata.tables
    assert await looked_at(database_url, differences) == []


async def test_migrating_again_and_from_two_sides_changes_nothing(database_url, store, put):
    await put("p")
    await asyncio.gather(migrate(database_url), migrate(database_url))
    assert (await store.read("Patient", "p")).version == 1


async def test_two_may_bring_an_empty_database_up_at_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'new' / 'fhircm.db'}"
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    revision = await looked_at(url, lambda connection: MigrationContext.configure(connection).get_current_revision())
    assert revision is not None


async def test_a_server_that_is_not_there_is_told():
    with pytest.raises(DatabaseUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:9/none")
