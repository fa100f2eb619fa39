"""The versions of a resource, of a type or of everything, the newest first, as they were when the first page was asked for.

https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import narrowed_types
from fhircm.store.search_past import passing
from fhircm.store.search_sql import Builder
from fhircm.store.search_tests import one_of
from fhircm.store.stored import Stored, moment
from fhircm.store.visibility import begun_with, is_open

Place = tuple[int, ...]  # of the last entry of a page: its version, or the position of its change


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Whose versions: of one resource, of a type, or (neither) of all. Times are microseconds since the epoch.

    `since`: written then or later. `at`: current at some time of [low, high). `snapshot` and `after` go on behind a page.
    """

    type: str | None
    id: str | None
    count: int
    since: int | None = None
    at: tuple[int, int] | None = None
    snapshot: str | None = None
    after: Place = ()


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One page; `after` is where the next one begins, and None when there is none."""

    versions: list[Stored]
    snapshot: str
    after: Place | None


_NOW = {
    "sqlite": "SELECT CAST(COALESCE(MAX(number), 0) AS TEXT) FROM change",
    "postgresql": "SELECT pg_current_snapshot()::text",
}
_FEW = 100  # patients: what is of more is met often enough among the changes
_VISIBLE = {
    "sqlite": "c.number <= CAST({} AS INTEGER)",
    "postgresql": "pg_visible_in_snapshot(c.tx::text::xid8, {}::text::pg_snapshot)",
}


async def snapshot_now(connection: Connection, dialect: str) -> str:
    """What is committed at this moment, as text that tells it again later, in any process."""
    return str(await connection.fetchval(_NOW[dialect]))


async def history_page(connection: Connection, dialect: str, query: HistoryQuery, within: Narrowing | None = None) -> HistoryPage:
    """A page of versions. A resource that never was, or that may not be seen now, has none; nor is a version told that names a patient
    who may not be seen, or that was labelled so.
    """
    snapshot = query.snapshot or await snapshot_now(connection, dialect)
    if within is None:
        rows = await connection.fetch(*_statement(dialect, query, snapshot, None))
        return _page(query, rows, snapshot)
    told: list[Any] = []
    asked = query
    while True:
        rows = await connection.fetch(*_statement(dialect, asked, snapshot, within))
        told += await passing(connection, dialect, within, rows) if rows else []
        if len(told) > query.count or len(rows) <= query.count:
            return _page(query, told, snapshot)
        asked = replace(asked, after=_place(query, rows[-1]))


def _page(query: HistoryQuery, rows: Sequence[Any], snapshot: str) -> HistoryPage:
    shown = rows[: query.count]
    return HistoryPage([_stored(row) for row in shown], snapshot, _place(query, shown[-1]) if len(rows) > query.count else None)


def _place(query: HistoryQuery, row: Any) -> Place:
    return (row["version"],) if query.id else (row["tx"], row["number"])


def _statement(dialect: str, query: HistoryQuery, snapshot: str, within: Narrowing | None) -> list[Any]:
    """The statement and its arguments."""
    builder = Builder(dialect, within)
    argument = builder.argument
    columns = "r.type, r.id, v.version, v.last_updated, v.method, v.body"
    if query.id is not None:  # versions only grow, so the place of the last one is the whole snapshot
        source = f"SELECT {columns} FROM resource r JOIN version v ON v.resource_key = r.key"
        where = [f"r.type = {argument(query.type)}", f"r.id = {argument(query.id)}"]
        where += [f"v.version < {argument(query.after[0])}"] if query.after else []
        order = "v.version DESC"
    else:
        source = (
            f"SELECT {columns}, c.tx, c.number FROM change c JOIN resource r ON r.type = c.type AND r.id = c.id"
            " JOIN version v ON v.resource_key = r.key AND v.version = c.version"
        )
        where = [_VISIBLE[dialect].format(argument(snapshot))]
        where += [f"c.type = {argument(query.type)}"] if query.type else []
        where += [f"(c.tx, c.number) < ({argument(query.after[0])}, {argument(query.after[1])})"] if query.after else []
        order = "c.tx DESC, c.number DESC"
    if query.since is not None:
        where.append(f"v.last_updated >= {argument(query.since)}")
    if query.at is not None:
        low, high = query.at
        where.append(f"v.last_updated < {argument(high)}")
        where.append(
            "NOT EXISTS (SELECT 1 FROM version n WHERE n.resource_key = v.resource_key AND n.version = v.version + 1"
            f" AND n.last_updated <= {argument(low)})"
        )
    if within is not None and query.id is None and _few(within):
        # Few of all changes are of what the viewer sees: what that is, is looked up once.
        types = [query.type] if query.type else list(within.by_type)
        opened = [type for type in types if is_open(type)]
        ways = [one_of("r.type", opened, builder.argument)] if opened else []
        if keys := [begun_with(builder, type) for type in types if not is_open(type)]:
            ways.append(f"r.key IN (SELECT k.resource_key FROM ({' UNION '.join(keys)}) k)")
        where.append(f"({' OR '.join(ways) or '1 = 0'})")
    if within is not None:
        where.append(f"NOT r.deleted{narrowed_types(builder, [query.type] if query.type else within.by_type)}")
    return [f"{source} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT {argument(query.count + 1)}", *builder.arguments]


def _few(within: Narrowing) -> bool:
    return within.viewer is not None and within.viewer.relationships <= _FEW


def _stored(row: Any) -> Stored:
    method = row["method"]
    at = moment(row["last_updated"])
    return Stored(row["type"], row["id"], row["version"], at, method == "delete", bytes(row["body"]), method)
