"""A connection to PostgreSQL that is out of step is told as a database that does not answer, and is not lent again."""

import asyncpg
import pytest

from fhircm.store.database import DatabaseUnavailable, open_database


async def test_a_connection_that_broke_off_within_a_statement_is_given_up(postgres_url):
    database = await open_database(postgres_url)
    with pytest.raises(DatabaseUnavailable):
        async with database.reading() as connection:
            broken = await connection.fetchval("SELECT pg_backend_pid()")
            raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
    async with database.writing() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") != broken
    await database.close()
