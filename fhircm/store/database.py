"""One way to speak SQL to SQLite (sqlite3, in the event loop) and to PostgreSQL (asyncpg).

Statements are written once, with $1 placeholders. SQLite runs in write-ahead mode: readers never wait, and writers take their turn by
`BEGIN IMMEDIATE`, tried again without blocking the event loop. Durability: a commit survives SIGKILL and, with synchronous=FULL, power loss.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, cast

import asyncpg

from fhircm.fhir.outcome import FhirError

BUSY = 30.0  # seconds that a writer waits for its turn on SQLite
_PLACEHOLDER = re.compile(r"\$(\d+)")


class DatabaseUnavailable(FhirError):
    """The database does not answer; the caller may try again."""

    status, code = 503, "transient"


class Connection(Protocol):
    """What the store needs of a connection."""

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Mapping[str, Any]]: ...
    async def fetchrow(self, sql: str, *arguments: Any) -> Mapping[str, Any] | None: ...
    async def fetchval(self, sql: str, *arguments: Any) -> Any: ...
    async def execute(self, sql: str, *arguments: Any) -> Any: ...
    async def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Any: ...


class Database(Protocol):
    """A database that is open."""

    dialect: str

    def reading(self, *, one_moment: bool = False) -> Any: ...
    def writing(self) -> Any: ...
    async def heard(self) -> int: ...
    async def wait(self, seconds: float, since: int | None = None) -> None: ...
    async def close(self) -> None: ...


async def open_database(url: str) -> Database:
    """Open `sqlite:///path` or `postgresql://…`. Raises DatabaseUnavailable."""
    if url.startswith("sqlite:///"):
        return SQLite(Path(url.removeprefix("sqlite:///")))
    try:
        return await PostgreSQL.open(url)
    except (OSError, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached ({type(error).__name__})") from None


# --- SQLite ------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _numbered(sql: str) -> str:
    return _PLACEHOLDER.sub(r"?\1", sql)


def connect_sqlite(path: Path) -> sqlite3.Connection:
    """A connection with the settings that every one of this program has."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=512)
    connection.row_factory = sqlite3.Row
    end = monotonic() + BUSY
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536", "temp_store=MEMORY"):
        while True:  # another process may be switching the same new file to write-ahead mode, which no busy handler waits for
            try:
                connection.execute(f"PRAGMA {pragma}")
                break
            except sqlite3.OperationalError:
                if monotonic() > end:
                    raise
    return connection


class _SQLiteConnection:
    """The sqlite3 connection behind the asynchronous face; statements are short and run in the event loop."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.raw = connection

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        return cast("Sequence[Mapping[str, Any]]", self.raw.execute(_numbered(sql), arguments).fetchall())

    async def fetchrow(self, sql: str, *arguments: Any) -> Mapping[str, Any] | None:
        return cast("Mapping[str, Any] | None", self.raw.execute(_numbered(sql), arguments).fetchone())

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        row = self.raw.execute(_numbered(sql), arguments).fetchone()
        return None if row is None else row[0]

    async def execute(self, sql: str, *arguments: Any) -> Any:
        return self.raw.execute(_numbered(sql), arguments).rowcount

    async def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Any:
        self.raw.executemany(_numbered(sql), rows)


class SQLite:
    """The embedded database: one file, one writer at a time, any number of processes."""

    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._writer = _SQLiteConnection(connect_sqlite(self.path))
        self._turn = asyncio.Lock()
        self._idle: list[_SQLiteConnection] = []

    @asynccontextmanager
    async def reading(self, *, one_moment: bool = False) -> AsyncIterator[Connection]:
        """A connection that sees one snapshot for as long as it is held, asked for or not."""
        connection = self._idle.pop() if self._idle else _SQLiteConnection(connect_sqlite(self.path))
        try:
            connection.raw.execute("BEGIN")
            yield connection
        finally:
            if connection.raw.in_transaction:
                connection.raw.execute("COMMIT")
            self._idle.append(connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """A transaction; committed at the end, rolled back when an error leaves it. Raises DatabaseUnavailable after long waiting."""
        async with self._turn:
            await self._begin()
            try:
                yield self._writer
            except BaseException:
                self._writer.raw.execute("ROLLBACK")
                raise
            self._writer.raw.execute("COMMIT")

    async def _begin(self) -> None:
        end = monotonic() + BUSY
        pause = 0.001
        while True:
            try:
                self._writer.raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                if monotonic() > end:
                    raise DatabaseUnavailable(f"Another process has been writing for {BUSY:.0f} s") from None
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 jitter, not a secret
            pause = min(pause * 2, 0.05)

    async def heard(self) -> int:
        """Up to where changes (of any process) were heard of; for `wait`."""
        async with self.reading() as connection:
            return int(await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM change"))

    async def wait(self, seconds: float, since: int | None = None) -> None:
        """Return when there is a change since what was heard (None: since now), or when the time is over (seconds)."""
        seen = await self.heard() if since is None else since
        end = monotonic() + seconds
        while await self.heard() == seen and monotonic() < end:
            await asyncio.sleep(min(0.05, max(0.0, end - monotonic())))

    async def close(self) -> None:
        for connection in (*self._idle, self._writer):
            connection.raw.close()
        self._idle = []


# --- PostgreSQL --------------------------------------------------------------------------------------------------------------

_BROKEN = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
)


# A statement that asks what a viewer may see is long, and takes longer to plan (3 to 13 ms) than to carry out: its plan is kept for as long as
# the connection lasts. PostgreSQL itself makes it anew when tables or what it knows of them have changed.
_PREPARED = {"max_cacheable_statement_size": 65_536, "max_cached_statement_lifetime": 0}


async def _begin(connection: Any) -> None:
    """Compiling a statement over many types takes longer (300 ms) than carrying it out (60 ms)."""
    await connection.execute("SET jit = off")


async def _reset(connection: Any) -> None:
    """Nothing here changes a session (locks are those of transactions), so a connection goes back without a round trip."""
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


class PostgreSQL:
    """The production database; any number of processes and machines."""

    dialect = "postgresql"

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self._url, self._pool = url, pool
        self._heard, self._changed = 0, asyncio.Event()
        self._listener: asyncpg.Connection | None = None
        self._listening = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> PostgreSQL:
        pool = await asyncpg.create_pool(url, min_size=1, max_size=16, command_timeout=60, init=_begin, reset=_reset, **_PREPARED)
        assert pool is not None
        return cls(url, pool)

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            async with self._pool.acquire() as connection:
                try:
                    yield cast("asyncpg.Connection", connection)
                except asyncpg.InternalClientError:  # it broke off within a statement, and is of no use to anybody any more
                    connection.terminate()
                    raise
        except _BROKEN as error:
            raise DatabaseUnavailable(f"PostgreSQL does not answer ({type(error).__name__})") from None

    @asynccontextmanager
    async def reading(self, *, one_moment: bool = False) -> AsyncIterator[Connection]:
        """A connection that reads what is committed, statement by statement, or all of them as of one moment."""
        async with self._acquired() as connection:
            if not one_moment:
                yield cast("Connection", connection)
                return
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                yield cast("Connection", connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """A transaction; committed at the end, rolled back when an error leaves it."""
        async with self._acquired() as connection, connection.transaction():
            yield cast("Connection", connection)

    async def heard(self) -> int:
        """Up to where changes (of any process) were heard of; for `wait`."""
        async with self._listening:
            if self._listener is None or self._listener.is_closed():
                try:
                    self._listener = await asyncpg.connect(self._url)
                    await self._listener.add_listener("fhircm_change", self._hear)
                except (OSError, asyncpg.PostgresError) as error:
                    raise DatabaseUnavailable(f"PostgreSQL does not answer ({type(error).__name__})") from None
                self._hear()  # what was committed while nobody listened
        return self._heard

    def _hear(self, *_: object) -> None:
        self._heard += 1
        self._changed.set()  # everybody who waits
        self._changed = asyncio.Event()

    async def wait(self, seconds: float, since: int | None = None) -> None:
        """Return when there is a change since what was heard (None: since now), or when the time is over (seconds)."""
        if await self.heard() != (self._heard if since is None else since):
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        await self._pool.close()
