"""What this machine could do at most: a bare ASGI application that moves the same rows through the bare driver, and does nothing else.

No routing, no authorization, no validation, no paging: `GET /read/LIST` answers the bodies of a list of keys, found by primary key in
one statement; `POST /write/NAME` takes the body of the request and writes the rows of a sample, in one statement or transaction.
Started by benchmarks.run: `python -m benchmarks.ceiling PLAN PORT`.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import asyncpg
import uvicorn

from fhircm.fhir import json as fhir_json
from fhircm.store.database import connect_sqlite
from fhircm.store.search_rows import SEARCH_TABLES, SearchRows, insert_statement, insert_statements, search_rows

_BODIES = "SELECT v.body FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version WHERE r.key"
_HEADERS = [(b"content-type", b"application/fhir+json")]


class Ceiling:
    """The application. `lists` are keys to read, `samples` bodies of resources to write, by name."""

    def __init__(self, url: str, lists: list[list[int]], samples: dict[str, list[str]]) -> None:
        self.url, self.lists = url, lists
        self.samples = {name: [fhir_json.loads(text.encode()) for text in bodies] for name, bodies in samples.items()}
        self.bodies = {name: [text.encode() for text in bodies] for name, bodies in samples.items()}
        self.keys = itertools.count(10**12 + os.getpid() * 10**9, 1000)
        self.pool: asyncpg.Pool | None = None
        self.file: sqlite3.Connection | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        what, _, name = scope["path"].strip("/").partition("/")
        answer = (
            b"[%s]" % b",".join(await self._read(int(name))) if what == "read" else b"" if what == "" else await self._write(name)
        )
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, length]})
        await send({"type": "http.response.body", "body": answer})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        if self.url.startswith("sqlite:///"):
            self.file = connect_sqlite(Path(self.url.removeprefix("sqlite:///")))
        else:
            self.pool = await asyncpg.create_pool(self.url, min_size=1, max_size=16, reset=_nothing)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _read(self, number: int) -> list[bytes]:
        keys = self.lists[number]
        if self.file is not None:
            marks = ", ".join("?" * len(keys))
            return [row[0] for row in self.file.execute(f"{_BODIES} IN ({marks})", keys)]
        assert self.pool is not None
        async with self.pool.acquire() as connection:
            return [row[0] for row in await connection.fetch(f"{_BODIES} = ANY($1::bigint[])", keys)]

    async def _write(self, name: str) -> bytes:
        first = next(self.keys)
        trees, bodies = self.samples[name], self.bodies[name]
        made = [
            (first + at, tree["resourceType"], f"c{first + at}", 1, "create", 0, body)
            for at, (tree, body) in enumerate(zip(trees, bodies, strict=True))
        ]
        rows = [_moved(one, first + at) for at, one in enumerate(self._rows(name))]
        if self.file is not None:
            self._write_sqlite(self.file, made, rows)
        else:
            await self._write_postgresql(made, rows)
        return b"{}"

    def _rows(self, name: str) -> list[SearchRows]:
        if name not in _MADE:
            _MADE[name] = [search_rows(0, tree["resourceType"], tree, words=False) for tree in self.samples[name]]
        return _MADE[name]

    def _write_sqlite(self, file: sqlite3.Connection, made: list[tuple[Any, ...]], rows: list[SearchRows]) -> None:
        file.execute("BEGIN IMMEDIATE")
        file.executemany(
            "INSERT INTO resource (key, type, id, version, last_updated, deleted) VALUES (?1, ?2, ?3, ?4, ?6, 0)",
            [one[:6] for one in made],
        )
        file.executemany(
            "INSERT INTO version (resource_key, version, method, last_updated, body) VALUES (?, ?, ?, ?, ?)",
            [(key, version, method, at, body) for key, _, _, version, method, at, body in made],
        )
        file.executemany(
            "INSERT INTO change (tx, type, id, version, method, origin, at) VALUES (0, ?, ?, ?, ?, 'ceiling', ?)",
            [(type, id, version, method, at) for _, type, id, version, method, at, _ in made],
        )
        for table in SEARCH_TABLES:
            if batch := [row for one in rows for row in one.by_table.get(table, ())]:
                file.executemany(insert_statement(table), batch)
        file.execute("COMMIT")

    async def _write_postgresql(self, made: list[tuple[Any, ...]], rows: list[SearchRows]) -> None:
        parts = [
            "given AS (SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[],"
            " $7::bytea[]) AS given (key, type, id, version, method, at, body))",
            "placed AS (SELECT key AS place, key FROM given)",
            "heads AS (INSERT INTO resource (key, type, id, version, last_updated, deleted)"
            " SELECT key, type, id, version, at, false FROM given)",
            "versions AS (INSERT INTO version (resource_key, version, method, last_updated, body)"
            " SELECT key, version, method, at, body FROM given)",
        ]
        arguments: list[Any] = list(map(list, zip(*made, strict=True)))
        for number, (insert, arrays) in enumerate(insert_statements(rows, 8)):
            parts.append(f"rows{number} AS ({insert})")
            arguments += arrays
        change = (
            "INSERT INTO change (tx, type, id, version, method, origin, at) SELECT 0, type, id, version, method, 'ceiling', at"
        )
        assert self.pool is not None
        async with self.pool.acquire() as connection:
            await connection.execute(f"WITH {', '.join(parts)} {change} FROM given", *arguments)


_MADE: dict[str, list[SearchRows]] = {}


def _moved(rows: SearchRows, key: int) -> SearchRows:
    return SearchRows({table: [(key, *row[1:]) for row in listed] for table, listed in rows.by_table.items()})


async def _nothing(_: Any) -> None:
    """Like the hub's, the pool resets nothing."""


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    app = Ceiling(plan["database_url"], plan["lists"], plan["samples"])
    uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning", proxy_headers=False)


if __name__ == "__main__":
    main()
