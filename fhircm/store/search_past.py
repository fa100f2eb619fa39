"""What has changed since a page was first asked for, as it was then: found by the same statements, on a scratch database in memory.

https://hl7.org/fhir/R4/http.html#paging. The change log tells what changed, the version table how it was. The rows by which it was found
are made anew from the old bodies, so one search code serves the present and the past.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.conditions import AllOf, AnyOf, Chained, Condition, IdTest, Linked, Matches, Not, WordsTest
from fhircm.fhir.definitions import param_key
from fhircm.fhir.outcome import FhirError
from fhircm.store.database import Connection
from fhircm.store.full_text import INDEX_OF_SQLITE
from fhircm.store.operations import Narrowing
from fhircm.store.search_rows import SEARCH_TABLES, insert_statement, search_rows
from fhircm.store.search_sql import Builder

CHANGED_LIMIT = 10_000  # resources that may change while somebody pages; beyond, the search is to be asked anew
SNAPSHOT = re.compile(r"[0-9:,]{1,10000}")
_ASKED = 400
_OF_NOW = ("care_relationship", "consent_rule")  # who may see the past is decided by the present

Branch = tuple[str, Sequence[Condition]]  # a resource type, and what its matches fulfil

# The moment that a statement sees, as text; and which changes are not yet in it.
NOW = {
    "sqlite": "(SELECT CAST(COALESCE(MAX(number), 0) AS TEXT) FROM change)",
    "postgresql": "pg_current_snapshot()::text",
}
_SINCE = {
    "sqlite": "number > CAST($1 AS INTEGER)",
    "postgresql": "tx >= pg_snapshot_xmin($1::text::pg_snapshot)::text::bigint"
    " AND NOT pg_visible_in_snapshot(tx::text::xid8, $1::text::pg_snapshot)",
}


class PagesOutdated(FhirError):
    """Too much has changed since the first page."""

    status, code = 410, "expired"


@dataclass
class Past:
    """The resources that have changed (`keys`), in a scratch database as they were; `branches` are conditions that it can tell."""

    keys: Sequence[int]
    branches: Sequence[Branch]
    scratch: sqlite3.Connection | None = None

    def fetch(self, sql: str, arguments: Sequence[Any]) -> list[Mapping[str, Any]]:
        """The rows of a statement on how things were."""
        assert self.scratch is not None
        return list(self.scratch.execute(re.sub(r"\$(\d+)", r"?\1", sql), arguments).fetchall())


async def changed_since(
    connection: Connection, dialect: str, branches: Sequence[Branch], within: Narrowing | None, snapshot: str
) -> Past:
    """What has changed of these types since the snapshot. Raises PagesOutdated."""
    types = ", ".join(f"${at}" for at in range(2, len(branches) + 2))
    changed = await connection.fetch(
        f"SELECT type, id, MIN(version) AS version FROM change WHERE type IN ({types}) AND {_SINCE[dialect]}"
        f" GROUP BY type, id LIMIT {CHANGED_LIMIT + 1}",
        snapshot,
        *(type for type, _ in branches),
    )
    if not changed:
        return Past((), branches)
    if len(changed) > CHANGED_LIMIT:
        raise PagesOutdated(f"More than {CHANGED_LIMIT} resources have changed since the first page; ask for it again")
    keys, rows = await _as_they_were(connection, [(row["type"], row["id"], row["version"] - 1) for row in changed])
    return replace(await scratch_of(connection, dialect, within, rows, branches), keys=keys)


async def _as_they_were(
    connection: Connection, wanted: Sequence[tuple[str, str, int]]
) -> tuple[list[int], list[Mapping[str, Any]]]:
    """The keys of resources, and their versions of these numbers; those that were not there yet, or deleted, have none."""
    keys: list[int] = []
    rows: list[Mapping[str, Any]] = []
    for start in range(0, len(wanted), _ASKED):
        chunk = wanted[start : start + _ASKED]
        numbers = {(type, id): version for type, id, version in chunk}
        pairs = ", ".join(f"(${at}, ${at + 1})" for at in range(1, 2 * len(chunk), 2))
        found = await connection.fetch(
            f"SELECT key, type, id FROM resource WHERE (type, id) IN (VALUES {pairs})", *[part for one in numbers for part in one]
        )
        keys += [row["key"] for row in found]
        old = [(row["key"], numbers[row["type"], row["id"]]) for row in found]
        pairs = ", ".join(f"({key}, {version})" for key, version in old)  # numbers of ours
        rows += await connection.fetch(
            "SELECT r.key, r.type, r.id, v.version, v.method, v.last_updated, v.body FROM resource r"
            f" JOIN version v ON v.resource_key = r.key WHERE (v.resource_key, v.version) IN (VALUES {pairs}) AND v.method <> 'delete'"
        )
    return keys, rows


@cache
def _tables() -> tuple[str, ...]:
    # Large packages, which only this needs in a process that serves.
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateTable
    from sqlmodel import SQLModel

    import fhircm.store.tables  # noqa: F401 declares them

    tables = SQLModel.metadata.tables
    names = ("resource", "version", "change", *SEARCH_TABLES)
    return tuple(str(CreateTable(tables[name]).compile(dialect=sqlite.dialect())) for name in names)


def _scratch() -> sqlite3.Connection:
    scratch = sqlite3.connect(":memory:", isolation_level=None)
    scratch.row_factory = sqlite3.Row
    for statement in (*_tables(), *INDEX_OF_SQLITE):
        scratch.execute(statement)
    return scratch


def _asks_for_words(condition: Condition) -> bool:
    """Whether words of the resources themselves are asked for; those beyond a reference are asked of the present."""
    match condition:
        case Matches(tests=tests):
            return any(isinstance(test, WordsTest) for test in tests)
        case AnyOf(conditions) | AllOf(conditions):
            return any(map(_asks_for_words, conditions))
        case Not(inner):
            return _asks_for_words(inner)
    return False


async def passing(
    connection: Connection, dialect: str, within: Narrowing, rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Those of these versions that the narrowing lets through: each is looked at as it was, what is around it as it is now.

    The rows hold type, id, version, method, last_updated and body; there may be several versions of one resource.
    """
    numbered = [{**row, "key": number} for number, row in enumerate(rows) if row["method"] != "delete"]
    types = sorted({row["type"] for row in numbered})
    branches = [(type, Builder(dialect, within).narrowed(type, [])) for type in types]
    past = await scratch_of(connection, dialect, within, numbered, branches)
    good: set[int] = set()
    for type, conditions in past.branches:
        builder = Builder("sqlite", replace(within, by_type={}))
        tests = [builder.holds(one, "r.key", "r") for one in conditions]
        sql = f"SELECT r.key FROM resource r WHERE r.type = {builder.argument(type)}{''.join(f' AND {test}' for test in tests)}"
        good |= {row["key"] for row in past.fetch(sql, builder.arguments)}
    return [row for number, row in enumerate(rows) if row["method"] == "delete" or number in good]


async def _remember_access(connection: Connection, dialect: str, within: Narrowing, scratch: sqlite3.Connection) -> None:
    """What decides now whether the viewer may see what the scratch database holds."""
    viewer = within.viewer
    assert viewer is not None
    named = scratch.execute("SELECT DISTINCT target_type AS type, target_id AS id FROM search_reference").fetchall()
    own = scratch.execute("SELECT DISTINCT type, id FROM resource").fetchall()
    wanted = sorted({(row["type"], row["id"]) for row in (*named, *own)})
    for start in range(0, len(wanted), _ASKED):
        chunk = wanted[start : start + _ASKED]
        pairs = ", ".join(f"(${at}, ${at + 1})" for at in range(1, 2 * len(chunk), 2))
        builder = Builder(dialect)
        builder.arguments = [part for one in chunk for part in one]
        rows = await connection.fetch(
            f"SELECT g.* FROM care_relationship g WHERE (g.type, g.id) IN (VALUES {pairs}) AND g.grantee {builder.argument(viewer.known_as)}",
            *builder.arguments,
        )
        _copy(scratch, "care_relationship", rows)
        patients = [id for type, id in chunk if type == "Patient"]
        marks = ", ".join(f"${at}" for at in range(1, len(patients) + 1)) or "NULL"
        _copy(
            scratch,
            "consent_rule",
            await connection.fetch(f"SELECT * FROM consent_rule WHERE patient_id IN ({marks})", *patients),
        )


def _copy(scratch: sqlite3.Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        names, values = zip(*dict(row).items(), strict=True)
        marks = ", ".join("?" * len(names))
        scratch.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})", values)


def _remember(scratch: sqlite3.Connection, row: Mapping[str, Any], words: bool) -> None:
    key, version, body = row["key"], row["version"], bytes(row["body"])
    scratch.execute("INSERT INTO resource VALUES (?, ?, ?, ?, ?, 0)", (key, row["type"], row["id"], version, row["last_updated"]))
    scratch.execute("INSERT INTO version VALUES (?, ?, ?, ?, ?)", (key, version, row["method"], row["last_updated"], body))
    for table, rows in search_rows(key, row["type"], json.loads(body), words=words).by_table.items():
        if table in _OF_NOW:
            continue
        scratch.executemany(insert_statement(table), rows)


async def _resolved(
    connection: Connection, dialect: str, within: Narrowing | None, scratch: sqlite3.Connection, condition: Condition
) -> Condition:
    """The condition in words that the scratch database can tell: what lies beyond a reference is asked of the present."""
    match condition:
        case AnyOf(conditions):
            return AnyOf(tuple([await _resolved(connection, dialect, within, scratch, one) for one in conditions]))
        case AllOf(conditions):
            return AllOf(tuple([await _resolved(connection, dialect, within, scratch, one) for one in conditions]))
        case Not(inner):
            return Not(await _resolved(connection, dialect, within, scratch, inner))
        case Chained():
            return await _beyond(connection, dialect, within, scratch, condition)
        case Linked(type=type):
            rows = scratch.execute("SELECT key, id FROM resource WHERE type = ?", (type,)).fetchall()
            builder = Builder(dialect, within)
            holds = builder.holds(condition, "r.key", "r")
            ids = {row["key"]: row["id"] for row in rows}
            found = await _among_keys(connection, builder, holds, list(ids))
            return Matches(type, "_id", tuple(IdTest(ids[key]) for key in found)) if found else AnyOf(())
    return condition


async def _beyond(
    connection: Connection, dialect: str, within: Narrowing | None, scratch: sqlite3.Connection, chain: Chained
) -> Condition:
    """A chain as the references to those targets that fulfil it."""
    param = param_key(chain.type, chain.parameter)
    rows = scratch.execute("SELECT DISTINCT resource_key, target_id, target_type FROM search_reference WHERE param = ?", (param,))
    referring = rows.fetchall()
    held: set[str] = set()
    for target, inner in chain.targets:
        wanted = {row["target_id"] for row in referring if row["target_type"] == target}
        builder = Builder(dialect, within)
        tests = [builder.holds(one, "r.key", "r") for one in builder.narrowed(target, [inner])]
        holds = " AND ".join(tests)
        listed = ", ".join(builder.argument(id) for id in wanted) or "NULL"
        found = await connection.fetch(
            f"SELECT r.id FROM resource r WHERE r.type = {builder.argument(target)} AND r.id IN ({listed}) AND NOT r.deleted AND {holds}",
            *builder.arguments,
        )
        held |= {f"{target}/{row['id']}" for row in found}
    keys = {row["resource_key"] for row in referring if f"{row['target_type']}/{row['target_id']}" in held}
    ids = [row["id"] for row in scratch.execute("SELECT key, id FROM resource") if row["key"] in keys]
    return Matches(chain.type, "_id", tuple(IdTest(id) for id in ids)) if ids else AnyOf(())


async def _among_keys(connection: Connection, builder: Builder, holds: str, keys: Sequence[int]) -> list[int]:
    listed = ", ".join(map(str, keys)) or "NULL"  # numbers of ours
    rows = await connection.fetch(f"SELECT r.key FROM resource r WHERE r.key IN ({listed}) AND {holds}", *builder.arguments)
    return [row["key"] for row in rows]


async def scratch_of(
    connection: Connection, dialect: str, within: Narrowing | None, rows: Sequence[Mapping[str, Any]], branches: Sequence[Branch]
) -> Past:
    """Versions (as `_as_they_were` reads them) in a scratch database, and conditions that it can tell of them."""
    scratch, words = _scratch(), any(_asks_for_words(one) for _, listed in branches for one in listed)
    for row in rows:
        _remember(scratch, row, words)
    if within is not None and within.viewer is not None:
        await _remember_access(connection, dialect, within, scratch)
    resolved = [
        (type, [await _resolved(connection, dialect, within, scratch, one) for one in listed]) for type, listed in branches
    ]
    return Past([row["key"] for row in rows], resolved, scratch)
