"""What an export reads: resources in order of their keys, as they were at one moment, in pages of bounded size.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html (transactionTime). The moment is a time that all writers are past (`writers_done`): a
version belongs to it when its last_updated is not later. What has not changed since is found by its search rows, and its bytes are served
as they are stored; what has is looked up in the versions, and tested on a scratch database as search_past.py makes it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.conditions import Condition
from fhircm.fhir.definitions import definitions, param_key
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import among
from fhircm.store.search_past import scratch_of
from fhircm.store.search_sql import Builder

BYTES = 4 * 1024 * 1024  # of bodies in one page; one larger body stands alone
ROWS = 2000
_ASKED = 400


@dataclass(frozen=True, slots=True)
class ExportQuery:
    """What is exported of one type; times are microseconds since the epoch.

    `moment`: of the export. `since`, `until`: of the last change, both not included. `alternatives`: one of these lists of conditions holds.
    `compartment`: only what belongs to Patients (when `members`, to those that are kept for the job). `referenced`: only what is kept
    for the job. `few`: the members are so few that their records are sought rather than all others passed over.
    """

    job: str
    type: str
    moment: int
    since: int | None = None
    until: int | None = None
    alternatives: tuple[tuple[Condition, ...], ...] = ()
    compartment: bool = False
    members: bool = False
    few: bool = False
    referenced: bool = False
    after: int = 0

    @property
    def plain(self) -> bool:
        """Whether no test is to be made of a resource but on its time."""
        return not self.alternatives and not self.compartment


class ExportRow(NamedTuple):
    """A resource to export."""

    key: int
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ExportPage:
    """A page. `deleted` are ids of resources that were deleted since; `seen` is how many were looked at.

    `after` is where the next page begins; None: nothing is left of this type.
    """

    rows: list[ExportRow]
    deleted: list[str]
    seen: int
    after: int | None


class _Then(NamedTuple):
    """A resource at the moment of the export; `changed`: later, or gone, so that its search rows tell nothing of it."""

    key: int
    id: str
    version: int
    updated: int
    deleted: bool
    changed: bool


async def export_page(connection: Connection, dialect: str, query: ExportQuery, within: Narrowing | None) -> ExportPage:
    """The next page; the connection must see one moment."""
    heads = await _heads(connection, query)
    if not heads:
        return ExportPage([], [], 0, None)
    then = [one for one in await _then(connection, query, heads) if _in_time(query, one)]
    narrowed = Builder(within).narrowed(query.type, [])
    if narrowed or not query.plain:
        now = {one.key for one in then if not one.changed}
        passed = await _holding(connection, dialect, query, within, narrowed, now) if now else set()
        was = [one for one in then if one.changed]
        passed |= await _held(connection, dialect, query, within, narrowed, was) if was else set()
        then = [one for one in then if one.key in passed]
    alive = [one for one in then if not one.deleted]
    bodies = await _bodies(connection, dialect, [(one.key, one.version) for one in alive])
    rows = [ExportRow(one.key, one.id, bodies[one.key]) for one in alive]
    return ExportPage(rows, [one.id for one in then if one.deleted], len(heads), heads[-1]["key"])


# --- which, and as of when


async def _heads(connection: Connection, query: ExportQuery) -> Sequence[Mapping[str, Any]]:
    """The next resources that may be in it, as they are now; their bodies come to about BYTES."""
    source, where, arguments = _candidates(query)
    rows = await connection.fetch(
        "SELECT h.key, h.id, h.version, h.last_updated, h.deleted, length(v.body) AS size FROM"
        f" (SELECT r.key, r.id, r.version, r.last_updated, r.deleted FROM {source} WHERE r.type = $1 AND r.key > $2 AND {where}"
        f" ORDER BY r.key LIMIT {ROWS}) h JOIN version v ON v.resource_key = h.key AND v.version = h.version ORDER BY h.key",
        query.type,
        query.after,
        *arguments,
    )
    size = 0
    for at, row in enumerate(rows):
        size += row["size"]
        if size > BYTES and at:
            return rows[:at]
    return rows


def _candidates(query: ExportQuery) -> tuple[str, str, list[Any]]:
    """Where to look: what is kept for the job, what has changed since, the records of few Patients, or all of the type."""
    if query.referenced:
        return "job_target t JOIN resource r ON r.type = t.type AND r.id = t.id", "t.job = $3 AND t.type = $1", [query.job]
    if query.since is not None:
        return "resource r", "r.last_updated > $3", [query.since]
    if query.few and query.type != "Provenance":
        own = " UNION SELECT o.key FROM job_target m JOIN resource o ON o.type = m.type AND o.id = m.id WHERE m.job = $3 AND m.type = $1"
        keys = (
            "SELECT x.resource_key FROM job_target m CROSS JOIN search_reference x"  # so that SQLite begins with the Patients
            " WHERE m.job = $3 AND m.type = 'Patient' AND x.target_id = m.id AND x.target_type = m.type"
            f" AND x.param IN ({_params(query.type)}) AND x.resource_key > $2"
            f"{own if query.type == 'Patient' else ''}"
            " UNION SELECT c.key FROM resource c WHERE c.type = $1 AND c.last_updated > $4"
        )
        return "resource r", f"r.key IN ({keys})", [query.job, query.moment]
    return "resource r", "1 = 1", []


def _params(type: str) -> str:
    """The keys of the search parameters that put a type into the compartment of a Patient."""
    known = definitions().search_parameters[type]
    codes = [code for code in definitions().compartments["Patient"].get(type, ()) if code in known]
    return ", ".join(str(param_key(type, code)) for code in codes) or "NULL"


@cache
def _every_param() -> str:
    return ", ".join(params for type in definitions().compartments["Patient"] if (params := _params(type)) != "NULL")


async def _then(connection: Connection, query: ExportQuery, heads: Sequence[Mapping[str, Any]]) -> list[_Then]:
    """Each as it was at the moment; those that were not there yet are left out."""
    later = [row["key"] for row in heads if row["last_updated"] > query.moment]
    older = {row["resource_key"]: row for row in await _versions_of(connection, later, query.moment)}
    found: list[_Then] = []
    for row in heads:
        if row["last_updated"] <= query.moment:
            gone = bool(row["deleted"])
            found.append(_Then(row["key"], row["id"], row["version"], row["last_updated"], gone, gone))
        elif (was := older.get(row["key"])) is not None:
            found.append(_Then(row["key"], row["id"], was["version"], was["last_updated"], was["method"] == "delete", True))
    return found


async def _versions_of(connection: Connection, keys: Sequence[int], moment: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for chunk in _chunks(keys):
        listed = ", ".join(map(str, chunk))  # numbers of ours
        found += await connection.fetch(
            "SELECT v.resource_key, v.version, v.method, v.last_updated FROM version v JOIN (SELECT resource_key, MAX(version) AS version"
            f" FROM version WHERE resource_key IN ({listed}) AND last_updated <= $1 GROUP BY resource_key) n"
            " ON n.resource_key = v.resource_key AND n.version = v.version",
            moment,
        )
    return found


def _in_time(query: ExportQuery, one: _Then) -> bool:
    """Whether its last change is in the time that is asked for; what was deleted counts only when a client has had it before."""
    if one.deleted and (query.since is None or query.referenced):
        return False
    if query.referenced:
        return True
    return (query.since is None or one.updated > query.since) and (query.until is None or one.updated < query.until)


# The versions (key, version) that come as arguments, of which no statement has another text: databases keep those that they have read.
_WANTED = {
    "sqlite": "(SELECT json_extract(value, '$[0]') AS key, json_extract(value, '$[1]') AS version FROM json_each($1)) w",
    "postgresql": "(SELECT * FROM unnest($1::bigint[], $2::bigint[])) AS w (key, version)",
}


def _wanted(dialect: str, versions: Sequence[tuple[int, int]]) -> list[Any]:
    if dialect == "sqlite":
        return [json.dumps(versions)]
    return [[key for key, _ in versions], [version for _, version in versions]]


async def _bodies(connection: Connection, dialect: str, versions: Sequence[tuple[int, int]]) -> dict[int, bytes]:
    rows = await connection.fetch(
        f"SELECT v.resource_key, v.body FROM {_WANTED[dialect]} CROSS JOIN version v"
        " WHERE v.resource_key = w.key AND v.version = w.version",
        *_wanted(dialect, versions),
    )
    return {row["resource_key"]: bytes(row["body"]) for row in rows}


def _chunks(all: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (all[start : start + _ASKED] for start in range(0, len(all), _ASKED))


# --- tests


async def _holding(
    connection: Connection,
    dialect: str,
    query: ExportQuery,
    within: Narrowing | None,
    narrowed: Sequence[Condition],
    keys: Iterable[int],
) -> set[int]:
    """Those of these keys that pass every test now."""
    builder = Builder(within)
    where = f"r.key {among(builder, dialect, sorted(keys), 'bigint')}"
    sql = f"SELECT r.key FROM resource r WHERE {where} AND {_tests(builder, query, query.alternatives, narrowed)}"
    return {row["key"] for row in await connection.fetch(sql, *builder.arguments)}


async def _held(
    connection: Connection,
    dialect: str,
    query: ExportQuery,
    within: Narrowing | None,
    narrowed: Sequence[Condition],
    was: Sequence[_Then],
) -> set[int]:
    """Those that passed every test at the moment, or before they were deleted."""
    rows = await connection.fetch(
        f"SELECT r.key, r.type, r.id, v.version, v.method, v.last_updated, v.body FROM {_WANTED[dialect]} CROSS JOIN version v"
        " JOIN resource r ON r.key = v.resource_key WHERE v.resource_key = w.key AND v.version = w.version AND v.method <> 'delete'",
        *_wanted(dialect, [(one.key, one.version - one.deleted) for one in was]),
    )
    branches = [(query.type, list(one)) for one in (*query.alternatives, narrowed)]
    past = await scratch_of(connection, within, rows, branches)
    *alternatives, extra = (tuple(conditions) for _, conditions in past.branches)
    assert past.scratch is not None
    if query.compartment and query.type == "Provenance":
        await _remember_targets(connection, past.scratch)
    past.scratch.execute("CREATE TABLE job_target (job, type, id)")
    if query.members:
        referred = past.scratch.execute("SELECT target_id AS id FROM search_reference WHERE target_type = 'Patient'").fetchall()
        ids = {row["id"] for row in referred} | {row["id"] for row in rows}
        members = [(query.job, "Patient", id) for id in await _members(connection, query.job, sorted(ids))]
        past.scratch.executemany("INSERT INTO job_target VALUES (?, ?, ?)", members)
    builder = Builder()
    sql = f"SELECT r.key FROM resource r WHERE {_tests(builder, query, alternatives, extra)}"
    return {row["key"] for row in past.fetch(sql, builder.arguments)}


async def _remember_targets(connection: Connection, scratch: sqlite3.Connection) -> None:
    """To which Patients those resources belong, as of now, that Provenances in a scratch database are about."""
    target = param_key("Provenance", "target")
    wanted = scratch.execute("SELECT DISTINCT target_type, target_id FROM search_reference WHERE param = ?", (target,)).fetchall()
    for chunk in _chunks(wanted):
        pairs = ", ".join(f"(${at}, ${at + 1})" for at in range(1, 2 * len(chunk), 2))
        rows = await connection.fetch(
            "SELECT t.key, t.type, t.id, y.param, y.target_id FROM resource t JOIN search_reference y ON y.resource_key = t.key"
            f" WHERE (t.type, t.id) IN (VALUES {pairs}) AND y.param IN ({_every_param()}) AND y.target_type = 'Patient'",
            *(part for one in chunk for part in one),
        )
        for row in rows:
            own = (row["key"], row["type"], row["id"])
            scratch.execute("INSERT OR IGNORE INTO resource VALUES (?, ?, ?, 0, 0, 0)", own)
            reference = (row["param"], row["target_id"], row["key"], "Patient")
            scratch.execute("INSERT OR IGNORE INTO search_reference VALUES (?, ?, ?, ?)", reference)


async def _members(connection: Connection, job: str, ids: Sequence[str]) -> list[str]:
    found: list[str] = []
    for chunk in _chunks(ids):
        marks = ", ".join(f"${at}" for at in range(2, len(chunk) + 2))
        rows = await connection.fetch(
            f"SELECT id FROM job_target WHERE job = $1 AND type = 'Patient' AND id IN ({marks})", job, *chunk
        )
        found += [row["id"] for row in rows]
    return found


def _tests(
    builder: Builder, query: ExportQuery, alternatives: Sequence[Sequence[Condition]], narrowed: Sequence[Condition]
) -> str:
    """Every test on a resource `r`, as SQL."""
    tests = [builder.holds(condition, "r.key", "r") for condition in narrowed]
    ways = [" AND ".join(builder.holds(condition, "r.key", "r") for condition in one) or "1 = 1" for one in alternatives]
    if ways:
        tests.append(f"({' OR '.join(f'({way})' for way in ways)})")
    if query.compartment:
        tests.append(f"({' OR '.join(_belongs(builder, query))})")
    return " AND ".join(tests) or "1 = 1"


def _belongs(builder: Builder, query: ExportQuery) -> Iterable[str]:
    """The ways in which a resource belongs to a Patient: https://hl7.org/fhir/R4/compartmentdefinition-patient.html"""

    def patient(id: str) -> str:
        if not query.members:
            return ""
        job = builder.argument(query.job)
        return f" AND EXISTS (SELECT 1 FROM job_target m WHERE m.job = {job} AND m.type = 'Patient' AND m.id = {id})"

    if query.type == "Patient":
        yield f"(1 = 1{patient('r.id')})"
    yield (
        f"EXISTS (SELECT 1 FROM search_reference x WHERE x.resource_key = r.key AND x.param IN ({_params(query.type)})"
        f" AND x.target_type = 'Patient'{patient('x.target_id')})"
    )
    if query.type == "Provenance":  # and that of whatever belongs to the Patient
        yield (
            "EXISTS (SELECT 1 FROM search_reference x JOIN resource t ON t.type = x.target_type AND t.id = x.target_id"
            f" JOIN search_reference y ON y.resource_key = t.key WHERE x.resource_key = r.key AND"
            f" x.param = {param_key('Provenance', 'target')} AND y.param IN ({_every_param()}) AND y.target_type = 'Patient'{patient('y.target_id')})"
        )


# --- the moment

_WRITERS = (
    "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND xact_start <= $1::text::timestamptz AND clock_timestamp() < $1::text::timestamptz + interval '60 seconds')"
)


async def writers(connection: Connection, dialect: str) -> str:
    """The time by the database, as text. SQLite has one writer at a time, so there is nothing to wait for."""
    return "" if dialect == "sqlite" else str(await connection.fetchval("SELECT clock_timestamp()::text"))


async def writers_done(connection: Connection, dialect: str, mark: str) -> bool:
    """Whether all transactions have ended that had begun then. One that goes on for a minute is none of a writer of ours."""
    return dialect == "sqlite" or bool(await connection.fetchval(_WRITERS, mark))
